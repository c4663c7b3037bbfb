// The settings' form: what of it goes into a request, what is wrong with it, and that a reload does not lose it.

import { keep, kept } from "./storage.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const SYNONYMS = { max_new_tokens: "max_tokens", max_completion_tokens: "max_tokens" };
const KEY = "rungpt-settings";

export class Settings {
  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.form = form;
    const values = kept(KEY) ?? {};
    for (const field of this.fields) field.value = values[field.name] ?? "";
    form.addEventListener("input", (event) => {
      this.clear(event.target);
      this.save();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => {
      for (const field of this.fields) this.clear(field);
      setTimeout(() => this.save()); // the fields are emptied after this event
    });
  }

  get fields() {
    return [...this.form.querySelectorAll("input, textarea")];
  }

  save() {
    keep(KEY, Object.fromEntries(this.fields.map((field) => [field.name, field.value])));
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  /** The parameters that are set. What is empty is left out, so that the server's default holds. */
  get parameters() {
    const set = {};
    for (const name of NUMBERS) {
      const { value } = this.form.elements[name];
      if (value !== "") set[name] = Number(value);
    }
    const stop = this.form.elements.stop.value.split("\n").filter((line) => line !== "").map(unescape);
    if (stop.length) set.stop = stop;
    return set;
  }

  /** The first field that holds no possible value, after its hint was made to say why; null if all is well. */
  wrong() {
    const field = this.fields.find((each) => !each.checkValidity()) ?? null;
    if (field) this.mark(field.name, field.validationMessage);
    return field;
  }

  /** Marks the field that an error names, such as "stop.0", if it is one of these. */
  mark(param, message) {
    const name = param.split(".")[0];
    const field = this.fields.find((each) => each.name === (SYNONYMS[name] ?? name));
    if (!field) return;
    field.setAttribute("aria-invalid", "true");
    const hint = this.hint(field);
    hint.dataset.hint ??= hint.textContent;
    hint.textContent = message;
  }

  clear(field) {
    field.removeAttribute("aria-invalid");
    const hint = this.hint(field);
    hint.textContent = hint.dataset.hint ?? hint.textContent;
  }

  hint(field) {
    return document.getElementById(field.getAttribute("aria-describedby"));
  }
}

/** A stop text as it is typed: \n and \t are what they mean elsewhere, \\ is a backslash. */
function unescape(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

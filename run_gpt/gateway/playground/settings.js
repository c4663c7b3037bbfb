// The settings form: its values for a request, the check of them, and their copy that survives a reload.

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

  /** Parameters that are set. Empty fields are left out, so that the server's default applies. */
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

  /** Returns the first field with an invalid value, after showing the error in its hint; null if all are valid. */
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

/** Returns a stop text with its escapes \n, \t and \\ replaced. */
function unescape(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

// The settings' form: what of it goes into a request, what is wrong with it, and that a reload does not lose it.

import { keep, kept } from "./storage.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const KEY = "rungpt-settings";

export class Settings {
  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.form = form;
    const values = kept(KEY) ?? {};
    for (const field of this.fields) field.value = values[field.name] ?? "";
    form.addEventListener("input", (event) => {
      event.target.removeAttribute("aria-invalid");
      this.save();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => {
      for (const field of this.fields) field.removeAttribute("aria-invalid");
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

  /** The first field that holds no possible value, marked as such; null if all is well. */
  wrong() {
    const field = this.fields.find((each) => !each.checkValidity());
    if (!field) return null;
    field.setAttribute("aria-invalid", "true");
    return { field, message: `${this.form.querySelector(`label[for=${field.id}]`).textContent}: ${field.validationMessage}` };
  }

  /** Marks the field that the server's error names, if it is one of these. */
  mark(name) {
    this.fields.find((field) => field.name === name)?.setAttribute("aria-invalid", "true");
  }
}

/** A stop text as it is typed: \n and \t are what they mean elsewhere, \\ is a backslash. */
function unescape(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

// The model picker; each of several models is listed with its state.

import { listModels } from "./api.js";
import { keep, kept } from "./storage.js";

const KEY = "rungpt-model";
const STATES = {
  unloaded: "loads on first use",
  failed: "did not load the last time",
  unavailable: "not available",
};

export class Models {
  /** @param {HTMLSelectElement} picker */
  constructor(picker) {
    this.picker = picker;
    this.all = [];
    picker.addEventListener("change", () => keep(KEY, picker.value));
    picker.addEventListener("focus", () => this.refresh());
  }

  /** Name of the chosen model; "" before the models are listed. */
  get chosen() {
    return this.picker.value;
  }

  /** True if states are shown: there are several models, or a model is not in memory. */
  get differ() {
    return this.all.length > 1 || this.all.some((model) => model.state !== "loaded");
  }

  /** Requests the list of models. Throws ApiError. */
  async load() {
    try {
      this.show(await listModels());
    } catch (error) {
      this.all = [];
      this.picker.replaceChildren(new Option("No models", ""));
      throw error;
    }
  }

  /** Updates the states of the models, if they are shown. */
  async refresh() {
    if (!this.differ) return;
    try {
      this.show(await listModels());
    } catch (error) {
      console.info(`The states of the models are not known: ${error.message}`); // the next message shows the error
    }
  }

  /** Updates the state of one model: {state, done, total}. */
  note(name, state) {
    this.show(this.all.map((model) => (model.name === name ? { ...state, name } : model)));
  }

  show(models) {
    const options = [...this.picker.options];
    const same = models.length === options.length && models.every((model, i) => model.name === options[i].value);
    this.all = models;
    if (!same) {
      const chosen = this.chosen || kept(KEY);
      this.picker.replaceChildren(...models.map((model) => new Option(model.name, model.name)));
      if (models.some((model) => model.name === chosen)) this.picker.value = chosen;
      this.picker.disabled = false;
    }
    models.forEach((model, i) => (this.picker.options[i].text = this.differ ? `${model.name} (${stateOf(model)})` : model.name));
  }
}

function stateOf(model) {
  return model.state === "loading" ? ["loading", share(model)].filter(Boolean).join(" ") : STATES[model.state] ?? model.state;
}

/** Returns the share of a load's step that is done, such as "43 %"; "" if it is not known. */
export function share({ done, total }) {
  return total ? `${Math.floor((100 * (done ?? 0)) / total)} %` : "";
}

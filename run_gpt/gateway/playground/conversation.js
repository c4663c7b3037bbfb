// The conversation: its exchanges, the messages of a request, and the life of an answer.

import { ApiError, loadModel, streamChat } from "./api.js";
import { keep, kept } from "./storage.js";

const KEY = "rungpt-conversation";
const SOON = 300; // milliseconds; an answer that begins sooner needs no progress of a load

/**
 * One exchange: {question, thought, answer, state, finish, error, param, ttft, tokens, rate}.
 * `state` is "running", "done", "stopped" or "failed"; `ttft` is in milliseconds, `rate` in tokens per second.
 */
export class Conversation {
  constructor() {
    this.exchanges = kept(KEY) ?? [];
    for (const exchange of this.exchanges) {
      if (exchange.state === "running") exchange.state = "stopped"; // by the reload
    }
    this.aborter = null;
  }

  get running() {
    return this.aborter !== null;
  }

  get last() {
    return this.exchanges.at(-1) ?? null;
  }

  save() {
    keep(KEY, this.exchanges);
  }

  add(question) {
    this.exchanges.push({ question });
    return this.last;
  }

  /** Removes the last exchange and returns it. */
  drop() {
    const exchange = this.exchanges.pop();
    this.save();
    return exchange;
  }

  /** Ends the running answer and keeps its text. Closing the connection cancels the request on the server. */
  stop() {
    this.aborter?.abort();
  }

  /** Removes all exchanges. */
  clear() {
    this.stop();
    this.aborter = null;
    this.exchanges = [];
    this.save();
  }

  /**
   * The messages up to the last question. An exchange that failed or was stopped without a word of an answer is left
   * out: many models take only questions and answers in turn.
   */
  messages(system) {
    const messages = system ? [{ role: "system", content: system }] : [];
    for (const exchange of this.exchanges) {
      const open = exchange === this.last;
      if (!open && !exchange.answer && exchange.state !== "done") continue;
      messages.push({ role: "user", content: exchange.question });
      if (!open) messages.push({ role: "assistant", content: exchange.answer });
    }
    return messages;
  }

  /**
   * Requests the answer to the last question; calls `onText()` after each new text, and `onLoad(state)` while the
   * model is being loaded. Never throws.
   */
  async run({ model, system, parameters, onText, onLoad }) {
    const exchange = this.last;
    const fresh = { thought: "", answer: "", state: "running", finish: null, error: null, param: null, ttft: null, tokens: null, rate: null };
    Object.assign(exchange, fresh);
    const aborter = new AbortController();
    this.aborter = aborter;
    const clock = new Clock();
    const wait = new Wait(model, aborter.signal, clock, onLoad);
    const take = (part) => (text) => {
      wait.end({ answered: true });
      clock.tick();
      exchange[part] += text;
      onText();
    };
    const takers = { onText: take("answer"), onThought: take("thought") };
    try {
      const request = { model, messages: this.messages(system), ...parameters };
      const { finish, usage } = await streamChat(request, { signal: aborter.signal, ...takers });
      Object.assign(exchange, { state: "done", finish, tokens: usage?.completion_tokens ?? null });
    } catch (error) {
      if (aborter.signal.aborted) exchange.state = "stopped";
      else Object.assign(exchange, { state: "failed", error: error.message, param: error.param ?? null });
      if (!aborter.signal.aborted && !(error instanceof ApiError)) console.error(error);
    }
    wait.end({ answered: false });
    Object.assign(exchange, { ttft: clock.ttft, rate: clock.rate(exchange.tokens) });
    if (this.aborter !== aborter) return; // cleared meanwhile
    this.aborter = null;
    this.save();
  }
}

/** Reports the load of the answer's model, if the answer does not begin soon. */
class Wait {
  constructor(model, stopped, clock, onLoad) {
    this.over = new AbortController();
    this.signal = AbortSignal.any([stopped, this.over.signal]);
    this.loading = false;
    this.clock = clock;
    this.onLoad = onLoad;
    this.timer = setTimeout(() => this.follow(model), SOON);
  }

  async follow(model) {
    const onState = (state) => !this.signal.aborted && this.take(state);
    try {
      await loadModel(model, { signal: this.signal, onState });
    } catch (error) {
      // The answer waits for the same load, and its error is shown.
      if (!this.signal.aborted && !(error instanceof ApiError)) console.error(error);
    }
  }

  take(state) {
    if (state.state !== "loading" && !this.loading) return; // it was loaded before
    this.loading = state.state === "loading";
    this.clock.restart(); // the time to the first token excludes the load
    this.onLoad(state);
  }

  end({ answered }) {
    clearTimeout(this.timer);
    this.over.abort();
    if (answered && this.loading) this.onLoad({ state: "loaded" });
    this.loading = false;
  }
}

/** Times of the pieces of an answer. */
class Clock {
  constructor() {
    this.restart();
    this.first = null;
    this.latest = null;
  }

  restart() {
    this.begin = performance.now();
  }

  tick() {
    this.latest = performance.now();
    this.first ??= this.latest;
  }

  get ttft() {
    return this.first === null ? null : this.first - this.begin;
  }

  /** Returns tokens per second after the first; null if it cannot be computed. */
  rate(tokens) {
    return tokens > 1 && this.latest > this.first ? ((tokens - 1) * 1000) / (this.latest - this.first) : null;
  }
}

// The view of an exchange: the question, the answer, its result, and the buttons under it.

import { copy } from "./copy.js";
import { share } from "./models.js";
import { Markdown } from "./render.js";

/** An element with a class, a text, and children. */
export function make(tag, { className = "", text = "", children = [], ...properties } = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

function button(text, label, onclick) {
  const made = make("button", { type: "button", className: "quiet", text, onclick });
  if (label !== text) made.setAttribute("aria-label", label);
  return made;
}

/** View of one exchange; `say(text)` announces a text to screen readers. */
export class ExchangeView {
  /** @param actions {onRetry, onEdit, say} */
  constructor(exchange, actions) {
    this.exchange = exchange;
    this.actions = actions;
    this.tools = make("div", { className: "tools" });
    this.body = make("div", { className: "answer" });
    this.thought = make("p");
    this.thinking = make("summary", { text: "Thinking" });
    this.thoughts = make("details", { className: "thoughts", hidden: true, children: [this.thinking, this.thought] });
    this.foot = make("div", { className: "foot" });
    this.edit = make("div", { className: "tools" });
    this.markdown = new Markdown(this.body, (block) => this.decorate(block));
    this.question = make("article", {
      className: "turn question",
      children: [make("h3", { className: "hidden", text: "You" }), make("p", { text: exchange.question }), this.edit],
    });
    this.reply = make("article", {
      className: "turn reply",
      children: [
        make("h3", { className: "hidden", text: "Answer" }),
        this.thoughts,
        this.body,
        make("div", { className: "after", children: [this.foot, this.tools] }),
      ],
    });
    this.frame = 0;
    this.waiting = false;
  }

  get elements() {
    return [this.question, this.reply];
  }

  /** Text of the answer for screen readers. */
  get spoken() {
    const text = this.exchange.answer.trim();
    return text.length > 800 ? `${text.slice(0, 800)} … The whole answer is in the conversation.` : text;
  }

  begin() {
    this.reply.setAttribute("aria-busy", "true");
    this.reply.classList.add("running");
    this.foot.replaceChildren();
    this.tools.replaceChildren();
    this.edit.replaceChildren();
    this.show();
  }

  /** Shows the thinking, folded, and the answer. */
  show() {
    const { thought = "", answer } = this.exchange;
    this.thoughts.hidden = !thought;
    if (this.thought.textContent !== thought) this.thought.textContent = thought;
    this.markdown.show(answer);
  }

  /** Shows the progress of the load that the answer waits for: {state, step, done, total}. */
  wait({ state, step, done, total }) {
    this.waiting = state === "loading";
    if (!this.waiting) return this.foot.replaceChildren();
    const text = `${step ?? "Loading the model"} ${share({ done, total })}`.trim();
    const bar = make("progress", { max: 1 });
    if (total) bar.value = (done ?? 0) / total;
    bar.setAttribute("aria-label", text);
    this.foot.replaceChildren(make("p", { className: "loading", text }), bar);
  }

  /** Shows new text, at most once per frame. */
  update() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.show();
    });
  }

  /** Shows the end of the answer. `last`: with buttons to regenerate it and to edit its question. */
  end(last) {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.waiting = false;
    this.show();
    this.reply.removeAttribute("aria-busy");
    this.reply.classList.remove("running");
    this.foot.replaceChildren(...this.notes());
    this.showTools(last);
  }

  notes() {
    const { state, finish, error } = this.exchange;
    const notes = [];
    if (state === "failed") {
      const alert = make("p", { className: "error", text: error });
      alert.setAttribute("role", "alert");
      notes.push(alert);
    }
    if (state === "stopped") notes.push(make("p", { className: "note", text: "Stopped" }));
    if (finish === "length") notes.push(make("p", { className: "note", text: "Cut at max tokens" }));
    else if (finish && finish !== "stop") notes.push(make("p", { className: "note", text: `Ended by ${finish}` }));
    const figures = this.figures();
    if (figures) notes.push(make("p", { className: "figures", text: figures }));
    return notes;
  }

  figures() {
    const { ttft, tokens, rate } = this.exchange;
    const parts = [];
    if (rate) parts.push(`${rate.toFixed(1)} tokens/s`);
    if (ttft !== null) parts.push(`TTFT ${Math.round(ttft)} ms`);
    if (tokens !== null) parts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
    return parts.join(" · ");
  }

  showTools(last) {
    const { say, onRetry, onEdit } = this.actions;
    const tools = [];
    if (this.exchange.answer) {
      tools.push(copyButton("Copy answer", () => this.exchange.answer, say));
    }
    if (last) {
      const failed = this.exchange.state === "failed";
      tools.push(button(failed ? "Try again" : "Regenerate", failed ? "Try again" : "Regenerate", onRetry));
    }
    this.tools.replaceChildren(...tools);
    this.edit.replaceChildren(...(last ? [button("Edit", "Edit this message", onEdit)] : []));
  }

  decorate(block) {
    for (const bar of block.querySelectorAll(".code-bar")) {
      const code = bar.nextElementSibling;
      bar.append(copyButton("Copy code", () => code.textContent, this.actions.say));
    }
    for (const wide of block.querySelectorAll("pre, .table")) {
      wide.tabIndex = 0; // it scrolls sideways, by keyboard too
      wide.setAttribute("role", "group");
      wide.setAttribute("aria-label", wide.matches("pre") ? "Code" : "Table");
    }
  }
}

function copyButton(label, text, say) {
  const made = button("Copy", label, async () => {
    const done = await copy(text());
    made.textContent = done ? "Copied" : "Not copied";
    say(done ? "Copied" : "The browser did not let this page copy");
    setTimeout(() => (made.textContent = "Copy"), 2000);
  });
  return made;
}

// Puts the page together: the message box, the model picker, the settings' panel, the conversation and its scrolling.

import { Conversation } from "./conversation.js";
import { Models } from "./models.js";
import { Settings } from "./settings.js";
import { ExchangeView } from "./views.js";

const $ = (id) => document.getElementById(id);
const NEAR_END = 48; // pixels: so near, the page follows the answer as it grows

const conversation = new Conversation();
const models = new Models($("model"));
const settings = new Settings($("settings-form"));
let views = [];

// -- Messages and answers

function show(exchange) {
  const view = new ExchangeView(exchange, { onRetry: retry, onEdit: edit, say });
  views.push(view);
  $("messages").append(...view.elements);
  $("welcome").hidden = true;
  return view;
}

async function send(event) {
  event.preventDefault();
  if (conversation.running) return say("An answer is still coming. Escape stops it.");
  if (!$("prompt").value.trim()) return $("prompt").focus();
  if (!(await ready())) return;
  const text = $("prompt").value;
  $("prompt").value = "";
  fit();
  views.at(-1)?.showTools(false);
  show(conversation.add(text));
  ask();
}

/** Returns true if a request can be sent now: all settings are valid, and there is a model. Else shows the error. */
async function ready() {
  const field = settings.wrong();
  if (field) {
    openSettings(true);
    field.focus(); // its hint shows the error
    return false;
  }
  if (!models.chosen) await loadModels();
  return models.chosen !== "" && !conversation.running;
}

async function retry() {
  if (await ready()) ask();
}

/** Requests the answer to the last question, for the first time or again. */
async function ask() {
  const view = views.at(-1);
  const { exchange } = view;
  const model = models.chosen;
  const onLoad = (state) => loading(view, model, state);
  const request = { model, system: settings.system, parameters: settings.parameters };
  const running = conversation.run({ ...request, onText: () => view.update(), onLoad });
  view.begin();
  busy(true);
  toEnd();
  say("Answering");
  await running;
  models.refresh();
  if (views.at(-1) !== view) return; // a new chat has begun
  view.end(true);
  busy(false);
  if (exchange.param) settings.mark(exchange.param, exchange.error);
  if (exchange.state === "stopped") say("Stopped");
  else if (exchange.state === "done") say(`Answer: ${view.spoken}`);
}

/** Shows the progress of a load that the answer waits for. */
function loading(view, model, state) {
  models.note(model, state);
  if (views.at(-1) !== view) return; // a new chat has begun
  if (state.state === "loading" && !view.waiting) say(`Loading ${model}`);
  view.wait(state);
}

function stop() {
  conversation.stop();
}

function edit() {
  const view = views.pop();
  const draft = $("prompt").value;
  const { question } = conversation.drop();
  $("prompt").value = draft ? `${question}\n\n${draft}` : question;
  view.elements.forEach((element) => element.remove());
  views.at(-1)?.showTools(true);
  $("welcome").hidden = views.length > 0;
  fit();
  $("prompt").focus();
}

function newChat() {
  conversation.clear();
  views = [];
  $("messages").replaceChildren();
  $("welcome").hidden = false;
  notice("");
  busy(false);
  say("New chat");
  $("prompt").focus();
}

function busy(running) {
  const focused = document.activeElement === $("stop-answer") || document.activeElement === document.body;
  $("send").hidden = running;
  $("stop-answer").hidden = !running;
  if (!focused) return;
  // A touch screen's keyboard would cover the answer.
  (matchMedia("(pointer: coarse)").matches ? $("scroller") : $("prompt")).focus({ preventScroll: true });
}

// -- Messages to the user

/** Announces a text to screen readers. */
function say(text) {
  $("status").textContent = text;
}

/** Shows a text above the message box. */
function notice(text) {
  $("notice").textContent = text;
}

// -- Models

async function loadModels() {
  try {
    await models.load();
    notice("");
  } catch (error) {
    notice(`${error.message} Sending a message tries again.`);
  }
}

// -- Settings

function openSettings(open) {
  $("settings").hidden = !open;
  $("toggle-settings").setAttribute("aria-expanded", String(open));
}

function closeSettings() {
  openSettings(false);
  $("toggle-settings").focus();
}

// -- Scrolling and size

let following = true;
let top = 0;

function scrolled() {
  const { scrollTop, scrollHeight, clientHeight } = $("scroller");
  if (scrollHeight - scrollTop - clientHeight < NEAR_END) following = true;
  else if (scrollTop < top) following = false;
  top = scrollTop;
  $("to-end").hidden = following;
}

function toEnd() {
  following = true;
  $("scroller").scrollTop = $("scroller").scrollHeight;
  $("to-end").hidden = true;
}

/** The message box grows with its text, where CSS does not do that. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

// -- Keys

function onPromptKey(event) {
  // While an input method composes a word, Enter chooses it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  $("composer").requestSubmit();
}

function onKey(event) {
  if (event.key !== "Escape" || event.isComposing) return;
  if (conversation.running) stop();
  else if ($("settings").contains(document.activeElement)) closeSettings();
}

$("composer").addEventListener("submit", send);
$("prompt").addEventListener("keydown", onPromptKey);
$("prompt").addEventListener("input", fit);
$("stop-answer").addEventListener("click", stop);
$("new-chat").addEventListener("click", newChat);
$("toggle-settings").addEventListener("click", () => openSettings($("settings").hidden));
$("close-settings").addEventListener("click", closeSettings);
$("scroller").addEventListener("scroll", scrolled, { passive: true });
$("to-end").addEventListener("click", () => {
  toEnd();
  $("scroller").focus();
});
document.addEventListener("keydown", onKey);

const sizes = new ResizeObserver(() => following && toEnd());
sizes.observe($("messages"));
sizes.observe($("scroller"));

openSettings(matchMedia("(min-width: 64rem)").matches);
for (const exchange of conversation.exchanges) show(exchange).end(exchange === conversation.last);
loadModels();

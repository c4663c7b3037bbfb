// The calls that the page makes of its server: the models, how far a load is, and a streamed answer to a chat.

import { readEvents } from "./stream.js";

/** What the server, or the way to it, says is wrong. `param` names the field, where there is one. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The models that the server serves: {name, state} of each, the default one first. Throws ApiError. */
export async function listModels() {
  const response = await call("v1/models");
  const { data } = await response.json().catch(() => ({}));
  if (!Array.isArray(data)) throw new ApiError("The server's list of models cannot be read.");
  return data.map((model) => ({ name: String(model.id), state: model.state ?? "loaded" }));
}

/**
 * Has the server load a model, and passes on how far that is: `onState({state, step, done, total})`, the last time
 * with the state "loaded". Throws ApiError, or the signal's AbortError.
 */
export async function loadModel(model, { signal, onState }) {
  for await (const state of stream("models/load", { model }, { signal, lost: "The connection was lost." })) onState(state);
}

/**
 * Asks for an answer and passes on what comes of it: `onText(text)` with each new piece.
 * Returns {finish, usage}: why it ended, and the server's count of tokens (null if it gave none).
 * Throws ApiError, or the signal's AbortError.
 */
export async function streamChat(request, { signal, onText }) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const answer = { finish: null, usage: null };
  const chunks = stream("v1/chat/completions", body, { signal, lost: "The connection was lost in mid-answer." });
  for await (const chunk of chunks) take(chunk, answer, onText);
  return complete(answer);
}

/** The JSON of each event that answers `body`, up to "[DONE]" or the end. `lost` is said of a connection that broke. */
async function* stream(path, body, { signal, lost }) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  const response = await call(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  try {
    for await (const { event, data } of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parse(data);
      if (event === "error" || chunk.error) throw new ApiError(messageOf(chunk), { param: chunk.error?.param });
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal?.aborted) throw error;
    throw new ApiError(lost);
  }
}

function take(chunk, answer, onText) {
  answer.usage = chunk.usage ?? answer.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  answer.finish = choice.finish_reason ?? answer.finish;
  if (choice.delta?.content) onText(choice.delta.content);
}

/** A stream that just stops is not a whole answer, whatever it says of itself. */
function complete(answer) {
  if (answer.finish === null) throw new ApiError("The stream ended before the answer was complete.");
  return answer;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(address(path), { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.text().catch(() => "");
  const error = parse(body, {});
  throw new ApiError(advice(response, messageOf(error, response)), { status: response.status, param: error.error?.param });
}

/** Beside this page's own path, so that a proxy may add a prefix; without a name and password in the page's address. */
function address(path) {
  return new URL(path, location.origin + location.pathname);
}

function parse(text, otherwise) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    if (otherwise) return otherwise;
    throw new ApiError("The server sent an event that is not JSON.");
  }
}

function messageOf(body, response) {
  if (body.error?.message) return String(body.error.message);
  return response ? `The server answered ${response.status} ${response.statusText}`.trim() : "The server gave no message.";
}

function advice(response, message) {
  if (response.status === 401) {
    return `${message} This server wants a key: reload the page, and give the key as the password (any user name).`;
  }
  const wait = response.headers.get("Retry-After");
  if (response.status === 429 && wait) return `${message} Try again in ${wait} s.`;
  return message;
}

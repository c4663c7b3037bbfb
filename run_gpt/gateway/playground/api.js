// The page's requests to its server: the list of models, the load of a model, and a streamed answer to a chat.

import { readEvents } from "./stream.js";

/** Error of the server or of the connection. `param` names the wrong field, if any. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** Returns the models that the server serves: {name, state} of each, the default one first. Throws ApiError. */
export async function listModels() {
  const response = await call("v1/models");
  const { data } = await response.json().catch(() => ({}));
  if (!Array.isArray(data)) throw new ApiError("The server's list of models cannot be read.");
  return data.map((model) => ({ name: String(model.id), state: model.state ?? "loaded" }));
}

/**
 * Requests the load of a model and reports its progress: `onState({state, step, done, total})`, the last time with
 * the state "loaded". Throws ApiError, or the signal's AbortError.
 */
export async function loadModel(model, { signal, onState }) {
  for await (const state of stream("models/load", { model }, { signal, lost: "The connection was lost." })) onState(state);
}

/**
 * Requests an answer and reports each new piece: `onText(text)`, and `onThought(text)` for the model's thinking.
 * Returns {finish, usage}: the finish reason, and the server's count of tokens (null if it sent none).
 * Throws ApiError, or the signal's AbortError.
 */
export async function streamChat(request, { signal, onText, onThought }) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const answer = { finish: null, usage: null };
  const chunks = stream("v1/chat/completions", body, { signal, lost: "The connection was lost in mid-answer." });
  for await (const chunk of chunks) take(chunk, answer, onText, onThought);
  return complete(answer);
}

/** Yields the JSON of each event, up to "[DONE]" or the end. `lost` is the message if the connection breaks. */
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

function take(chunk, answer, onText, onThought) {
  answer.usage = chunk.usage ?? answer.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  answer.finish = choice.finish_reason ?? answer.finish;
  const thought = choice.delta?.reasoning_content ?? choice.delta?.reasoning;
  if (thought) onThought(thought);
  if (choice.delta?.content) onText(choice.delta.content);
}

/** Returns the answer. Throws ApiError if the stream ended without a finish reason. */
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

/** Returns the URL beside this page's path, so that a proxy may add a prefix; without user name and password. */
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
    return `${message} This server requires a key: reload the page, and enter the key as the password (any user name).`;
  }
  const wait = response.headers.get("Retry-After");
  if (response.status === 429 && wait) return `${message} Try again in ${wait} s.`;
  return message;
}

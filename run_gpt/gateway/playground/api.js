// The two calls that the page makes of its server: the models, and a streamed answer to a chat.

import { readEvents } from "./stream.js";

/** What the server, or the way to it, says is wrong. `param` names the field, where there is one. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The names of the models that the server serves. Throws ApiError. */
export async function listModels() {
  const response = await call("v1/models");
  const { data } = await response.json().catch(() => ({}));
  if (!Array.isArray(data)) throw new ApiError("The server's list of models cannot be read.");
  return data.map((model) => String(model.id));
}

/**
 * Asks for an answer and passes on what comes of it: `onText(text)` with each new piece.
 * Returns {finish, usage}: why it ended, and the server's count of tokens (null if it gave none).
 * Throws ApiError, or the signal's AbortError.
 */
export async function streamChat(request, { signal, onText }) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body,
    signal,
  });
  const answer = { finish: null, usage: null };
  try {
    for await (const { event, data } of readEvents(response.body)) {
      if (data === "[DONE]") return complete(answer);
      take(event, parse(data), answer, onText);
    }
  } catch (error) {
    if (error instanceof ApiError || signal?.aborted) throw error;
    throw new ApiError("The connection was lost in mid-answer.");
  }
  return complete(answer);
}

function take(event, chunk, answer, onText) {
  if (event === "error" || chunk.error) throw new ApiError(messageOf(chunk), { param: chunk.error?.param });
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

// Parser of server-sent events; chunks of the body may be cut anywhere.

/**
 * Yields the events of a stream of bytes: {event, data}. A line ends in LF, CR LF or CR; an event that the stream's end
 * cuts off is dropped, as the standard requires.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{event: string, data: string}>}
 */
export async function* readEvents(body) {
  let event = "";
  let data = [];
  for await (const line of readLines(body)) {
    if (line === "") {
      if (data.length) yield { event: event || "message", data: data.join("\n") };
      event = "";
      data = [];
      continue;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") data.push(value);
    else if (name === "event") event = value;
  }
}

async function* readLines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder(); // keeps half a character for the next chunk, and takes a byte order mark off
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        if (rest.endsWith("\r")) yield rest.slice(0, -1);
        return;
      }
      rest += decoder.decode(value, { stream: true });
      // A CR at the very end may be half of a CR LF: it waits for the next chunk.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      yield* lines;
    }
  } finally {
    reader.cancel().catch(() => {}); // the consumer may have stopped early; read() throws if the connection is lost
  }
}

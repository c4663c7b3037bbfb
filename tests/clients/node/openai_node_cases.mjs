// The official client for JavaScript: its objects sent back to the server as the next request's history.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { BASE_URL, CITY_SCHEMA, KEY, MODEL, PARIS, case_, check, run } from "./cases.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: KEY, maxRetries: 0, timeout: 120_000 });
const ASKED = { role: "user", content: PARIS };
const City = z.object({ city: z.enum(["Paris", "Rome"]) });
const few = { model: MODEL, max_tokens: 4 };

async function goesOn(...messages) {
  const answer = await client.chat.completions.create({ ...few, messages: [ASKED, ...messages, ASKED] });
  check(["length", "stop"].includes(answer.choices[0].finish_reason), answer);
}

case_("chat: text", async () => {
  const answer = await client.chat.completions.create({
    model: MODEL, messages: [ASKED], max_tokens: 12, temperature: 0,
  });
  check(answer.choices[0].message.content.includes("Paris"), answer);
  await goesOn(answer.choices[0].message);
});

case_("chat: stream", async () => {
  const stream = await client.chat.completions.create({
    model: MODEL, messages: [ASKED], max_tokens: 12, temperature: 0, stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  check(text.includes("Paris"), text);
  check(usage.total_tokens > 0, usage);
});

case_("chat: parse, and the parsed message sent back", async () => {
  const answer = await client.chat.completions.parse({
    model: MODEL, messages: [ASKED], max_tokens: 30, response_format: zodResponseFormat(City, "city"),
  });
  check(["Paris", "Rome"].includes(answer.choices[0].message.parsed.city), answer);
  await goesOn(answer.choices[0].message);
});

case_("chat: runTools sends the parsed call and its result", async () => {
  const cities = [];
  const weather = zodFunction({
    name: "get_weather", parameters: City,
    function: ({ city }) => { cities.push(city); return "rain"; },
  });
  const runner = client.chat.completions.runTools({
    model: MODEL, messages: [ASKED], tools: [weather], tool_choice: "required", parallel_tool_calls: false,
    max_tokens: 60,
  }, { maxChatCompletions: 2 });
  await runner.done().catch((error) => { if (!/maxChatCompletions|maximum/i.test(error.message)) throw error; });
  check(["Paris", "Rome"].includes(cities[0]), cities);
  check(cities.length === 2, cities);
});

case_("chat: the accumulator of a stream, and its message sent back", async () => {
  const stream = client.chat.completions.stream({
    model: MODEL, messages: [ASKED], max_tokens: 60, parallel_tool_calls: false,
    tools: [{ type: "function", function: { name: "get_weather", strict: true, parameters: CITY_SCHEMA } }],
    tool_choice: { type: "function", function: { name: "get_weather" } },
  });
  const { message } = (await stream.finalChatCompletion()).choices[0];
  check(message.tool_calls[0].function.parsed_arguments.city.length > 3, message);
  await goesOn(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "rain" });
});

case_("responses: parse, and the parsed items sent back", async () => {
  const answer = await client.responses.parse({
    model: MODEL, input: PARIS, max_output_tokens: 30, text: { format: zodTextFormat(City, "city") },
  });
  check(["Paris", "Rome"].includes(answer.output_parsed.city), answer);
  const next = await client.responses.create({
    model: MODEL, input: [ASKED, ...answer.output, ASKED], max_output_tokens: 16,
  });
  check(next.output.length > 0, next);
});

case_("responses: stream with a call, and its items sent back", async () => {
  const stream = client.responses.stream({
    model: MODEL, input: PARIS, max_output_tokens: 60, parallel_tool_calls: false,
    tools: [{ type: "function", name: "get_weather", strict: true, parameters: CITY_SCHEMA }],
    tool_choice: { type: "function", name: "get_weather" },
  });
  const answer = await stream.finalResponse();
  const call = answer.output.find((item) => item.type === "function_call");
  check(call.parsed_arguments.city.length > 3, answer);
  const next = await client.responses.create({
    model: MODEL, max_output_tokens: 16,
    input: [ASKED, ...answer.output, { type: "function_call_output", call_id: call.call_id, output: "rain" }],
  });
  check(next.output.length > 0, next);
});

case_("completions and embeddings", async () => {
  const text = await client.completions.create({ ...few, prompt: "The capital of France is", temperature: 0 });
  check(text.choices[0].text.includes("Paris"), text);
  const vectors = await client.embeddings.create({ model: MODEL, input: ["a", "b"] });
  check(vectors.data.length === 2 && vectors.data[0].embedding.length > 100, vectors.data.length);
});

case_("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  check(ids.includes(MODEL), ids);
  check((await client.models.retrieve(MODEL)).id === MODEL, MODEL);
});

await run();

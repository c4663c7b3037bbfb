// Vercel's AI SDK: its providers for servers like OpenAI's, and for OpenAI.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embedMany, generateText, isStepCount, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { BASE_URL, KEY, MODEL, PARIS, case_, check, run } from "./cases.mjs";

const compatible = createOpenAICompatible({
  name: "rungpt", baseURL: BASE_URL, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: BASE_URL, apiKey: KEY });
const City = z.object({ city: z.enum(["Paris", "Rome"]) });
const few = {
  maxOutputTokens: 60, temperature: 0, maxRetries: 0,
  providerOptions: { openai: { store: false } }, // else it sends names of stored items instead of the history
};
const steps = (count) => (isStepCount ?? stepCountIs)(count);

async function all(model) {
  const whole = await generateText({ model, ...few, system: "Be short.", prompt: PARIS });
  check(whole.text.includes("Paris"), whole.text);
  const messages = [
    { role: "user", content: PARIS }, ...whole.response.messages, { role: "user", content: PARIS },
  ];
  check((await generateText({ model, ...few, messages })).text.length > 0, "no answer to the history");
  const stream = streamText({ model, ...few, prompt: PARIS, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const part of stream.textStream) text += part;
  check(text.includes("Paris"), text);
}

async function tools(model) {
  const cities = [];
  const weather = tool({
    description: "Get the weather of a city.", inputSchema: City,
    execute: async ({ city }) => { cities.push(city); return "rain"; },
  });
  await generateText({
    model, ...few, prompt: PARIS, tools: { get_weather: weather }, toolChoice: "required", stopWhen: steps(2),
  });
  check(cities.length >= 2, cities);
}

async function form(model) {
  const { output } = await generateText({ model, ...few, prompt: PARIS, output: Output.object({ schema: City }) });
  check(["Paris", "Rome"].includes(output.city), output);
}

const MODELS = { compatible: compatible(MODEL), chat: openai.chat(MODEL), responses: openai(MODEL) };
case_("openai-compatible: text, history and a stream", () => all(MODELS.compatible));
case_("openai-compatible: tools and their results", () => tools(MODELS.compatible));
case_("openai-compatible: an object", () => form(MODELS.compatible));
case_("openai's chat: text, history and a stream", () => all(MODELS.chat));
case_("openai's chat: tools and their results", () => tools(MODELS.chat));
case_("openai's chat: an object", () => form(MODELS.chat));
case_("openai's responses: text, history and a stream", () => all(MODELS.responses));
case_("openai's responses: tools and their results", () => tools(MODELS.responses));
case_("openai's responses: an object", () => form(MODELS.responses));
case_("completions and embeddings", async () => {
  const { text } = await generateText({
    model: compatible.completionModel(MODEL), ...few, maxOutputTokens: 4, prompt: "The capital of France is",
  });
  check(text.length > 0, text);
  const model = compatible.embeddingModel?.(MODEL) ?? compatible.textEmbeddingModel(MODEL);
  const { embeddings } = await embedMany({ model, values: ["a", "b"] });
  check(embeddings.length === 2, embeddings.length);
});

await run();

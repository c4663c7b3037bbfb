// OpenAI's agents for JavaScript, over responses and over chats.
import {
  Agent, MaxTurnsExceededError, OpenAIChatCompletionsModel, OpenAIResponsesModel, run as ask, setTracingDisabled, tool,
} from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { BASE_URL, KEY, MODEL, PARIS, case_, check, run } from "./cases.mjs";

setTracingDisabled(true);
const client = new OpenAI({ baseURL: BASE_URL, apiKey: KEY, maxRetries: 0 });
const City = z.object({ city: z.enum(["Paris", "Rome"]) });
const cities = [];
const weather = tool({
  name: "get_weather", description: "Get the weather of a city.", parameters: City,
  execute: async ({ city }) => { cities.push(city); return `rain in ${city}`; },
});
const agent = (model, more = {}, settings = {}) => new Agent({
  name: "a", instructions: "Be short.", model, modelSettings: { maxTokens: 60, temperature: 0, ...settings }, ...more,
});

async function all(model) {
  const first = await ask(agent(model), PARIS);
  check(first.finalOutput.includes("Paris"), first.finalOutput);
  const again = await ask(agent(model), [...first.history, { role: "user", content: PARIS }]);
  check(again.finalOutput.length > 0, again.finalOutput);
  await ask(agent(model, { tools: [weather] }, { toolChoice: "required" }), PARIS, { maxTurns: 2 }).catch((error) => {
    if (!(error instanceof MaxTurnsExceededError)) throw error; // a small model calls again and again
  });
  check(["Paris", "Rome"].includes(cities.pop()), cities);
  const formed = await ask(agent(model, { outputType: City }), PARIS);
  check(["Paris", "Rome"].includes(formed.finalOutput.city), formed.finalOutput);
}

case_("responses: text, history, tools, a form", () => all(new OpenAIResponsesModel(client, MODEL)));
case_("chat: text, history, tools, a form", () => all(new OpenAIChatCompletionsModel(client, MODEL)));

await run();

// LangChain for JavaScript: ChatOpenAI, OpenAIEmbeddings.
import { HumanMessage, SystemMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { BASE_URL, KEY, MODEL, PARIS, case_, check, run } from "./cases.mjs";

const AT = { apiKey: KEY, maxRetries: 0, timeout: 120_000, configuration: { baseURL: BASE_URL } };
const chat = new ChatOpenAI({ ...AT, model: MODEL, temperature: 0, maxTokens: 60 });
const City = z.object({ city: z.enum(["Paris", "Rome"]) });
const weather = tool(({ city }) => `rain in ${city}`, {
  name: "get_weather", description: "Get the weather of a city.", schema: City,
});

case_("chat: text and a stream", async () => {
  const messages = [new SystemMessage("Be short."), new HumanMessage(PARIS)];
  const whole = await chat.invoke(messages);
  check(whole.text.includes("Paris"), whole);
  check(whole.usage_metadata.output_tokens > 0, whole);
  let text = "";
  for await (const part of await chat.stream(messages)) text += part.text;
  check(text === whole.text, [text, whole.text]);
});

case_("chat: tools, and their results sent back", async () => {
  const bound = chat.bindTools([weather], { tool_choice: "required", parallel_tool_calls: false });
  const called = await bound.invoke(PARIS);
  check(["Paris", "Rome"].includes(called.tool_calls[0]?.args.city), called);
  const result = await weather.invoke(called.tool_calls[0]);
  const answer = await chat.invoke([new HumanMessage(PARIS), called, result]);
  check(answer.text !== undefined, answer);
});

case_("chat: structured output, each method", async () => {
  for (const method of ["jsonSchema", "functionCalling"]) {
    const answer = await chat.withStructuredOutput(City, { method, name: "city" }).invoke(PARIS);
    check(["Paris", "Rome"].includes(answer.city), answer);
  }
});

case_("responses: text, and items sent back", async () => {
  const answers = new ChatOpenAI({ ...AT, model: MODEL, temperature: 0, maxTokens: 60, useResponsesApi: true });
  const first = await answers.invoke(PARIS);
  check(first.text.includes("Paris"), first);
  const second = await answers.invoke([new HumanMessage(PARIS), first, new HumanMessage(PARIS)]);
  check(second.text.length > 0, second);
});

case_("embeddings", async () => {
  const vectors = await new OpenAIEmbeddings({ ...AT, model: MODEL }).embedDocuments(["a", "b"]);
  check(vectors.length === 2 && vectors[0].length > 100, vectors.length);
});

await run();

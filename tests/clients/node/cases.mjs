// The cases of a client that is written in JavaScript: each is a function, and one line of JSON tells how it ended.

export const BASE_URL = process.env.BASE_URL; // the server's OpenAI API, with /v1
export const MODEL = process.env.MODEL;
export const KEY = "unused";
export const PARIS = "What is the capital of France?";
export const CITY_SCHEMA = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

const CASES = new Map();

export function check(condition, what) {
  if (!condition) throw new Error(`not as expected: ${typeof what === "string" ? what : JSON.stringify(what)}`);
}

export function case_(name, run) {
  CASES.set(name, run);
}

export async function run() {
  const chosen = process.argv.length > 2 ? process.argv.slice(2) : [...CASES.keys()];
  for (const name of chosen) {
    let error = null;
    try {
      await CASES.get(name)();
    } catch (raised) {
      error = `${raised?.stack ?? raised}\n${JSON.stringify(raised?.responseBody ?? raised?.cause ?? null)}`;
    }
    console.log(JSON.stringify({ case: name, error }));
  }
  process.exit(0); // connections that a client keeps open do not hold the process
}

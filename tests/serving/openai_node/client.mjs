// OpenAI's client for Node against a server: node client.mjs URL MODEL. Prints what it saw as JSON, exits 1 at a failure.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const seen = {};

async function chat() {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
  seen.chat = answer.choices[0].message.content;
  seen.tokens = answer.usage.completion_tokens;
}

async function stream() {
  const options = { model, messages, max_tokens: 12, temperature: 0, stream: true };
  const chunks = await client.chat.completions.create({ ...options, stream_options: { include_usage: true } });
  let text = "";
  let usage = null;
  for await (const chunk of chunks) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, seen.chat);
  assert.equal(usage.completion_tokens, seen.tokens);
}

async function tools() {
  const parameters = {
    type: "object",
    properties: { city: { enum: ["Paris", "Rome"] } },
    required: ["city"],
    additionalProperties: false,
  };
  const options = {
    model,
    messages,
    max_tokens: 80,
    temperature: 0,
    tools: [{ type: "function", function: { name: "weather", parameters } }],
    tool_choice: { type: "function", function: { name: "weather" } },
  };
  const whole = await client.chat.completions.create(options);
  const call = whole.choices[0].message.tool_calls[0];
  assert.equal(call.function.name, "weather");
  assert.ok(["Paris", "Rome"].includes(JSON.parse(call.function.arguments).city));
  const streamed = await client.chat.completions.stream(options).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  seen.tool = call.function.arguments;
}

async function schema() {
  const form = {
    type: "object",
    properties: { age: { type: "integer" }, tea: { type: "boolean" } },
    required: ["age", "tea"],
    additionalProperties: false,
  };
  const answer = await client.chat.completions.create({
    model,
    messages,
    max_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "person", schema: form, strict: true } },
  });
  const said = JSON.parse(answer.choices[0].message.content);
  assert.ok(Number.isInteger(said.age) && typeof said.tea === "boolean");
  seen.schema = said;
}

async function errors() {
  const asked = (fields) => client.chat.completions.create({ model, messages, ...fields });
  await assert.rejects(asked({ model: "gpt-9" }), OpenAI.NotFoundError);
  await assert.rejects(asked({ logit_bias: { 5: 1 } }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "logit_bias");
    return true;
  });
}

async function cancel() {
  const running = async () => (await (await fetch(`${url}/health`)).json()).running;
  const chunks = await client.completions.create({ model, prompt: "Hello", max_tokens: 2000, stream: true, temperature: 0 });
  for await (const _ of chunks) break; // leaves the stream, which closes its connection
  const stop = new AbortController();
  const whole = client.completions.create({ model, prompt: "Hello", max_tokens: 2000, temperature: 0 }, { signal: stop.signal });
  setTimeout(() => stop.abort(), 100);
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  const deadline = Date.now() + 5000;
  while ((await running()) > 0) {
    assert.ok(Date.now() < deadline, "an answer that nobody waits for still runs");
    await new Promise((done) => setTimeout(done, 20));
  }
}

for (const check of [chat, stream, tools, schema, errors, cancel]) await check();
const models = [];
for await (const each of client.models.list()) models.push(each.id);
assert.deepEqual(models, [model]);
console.log(JSON.stringify(seen));

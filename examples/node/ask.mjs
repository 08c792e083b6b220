// The bundle's model/ folder in Node, through onnxruntime's own API:  node ask.mjs BUNDLE "What is ...?"
//
// One run computes all the ids it is given and writes their keys and values into the cache, one buffer for each layer
// that is both past and present. What it returns are the logits of the last id; the largest is the next one.

import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [bundle, question] = process.argv.slice(2);
const json = async (path) => JSON.parse(await readFile(join(bundle, path), "utf8"));

const { model } = await json("manifest.json");
const tokenizer = new Tokenizer(await json(model.tokenizer), await json("model/tokenizer_config.json"));
const template = new Template(await readFile(join(bundle, model.chat_template), "utf8"));
const session = await InferenceSession.create(join(bundle, model.graph), {
  graphOptimizationLevel: "all",
  intraOpNumThreads: Number(process.env.THREADS ?? 0),
});

const cache = {};
for (let layer = 0; layer < model.num_hidden_layers; layer++) {
  for (const part of ["key", "value"]) {
    const shape = [1, model.num_key_value_heads, model.context_length, model.head_dim];
    const size = shape.reduce((product, length) => product * length);
    cache[`${layer}.${part}`] = new Tensor("float32", new Float32Array(size), shape);
  }
}
const named = (prefix) => Object.fromEntries(Object.entries(cache).map(([name, tensor]) => [`${prefix}.${name}`, tensor]));

async function nextId(ids, past) {
  const total = past + ids.length;
  const inputs = {
    input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
    attention_mask: new Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
  };
  const { logits } = await session.run({ ...inputs, ...named("past_key_values") }, { logits: null, ...named("present") });
  return logits.data.reduce((best, logit, id, all) => (logit > all[best] ? id : best), 0);
}

const text = template.render({
  messages: [{ role: "user", content: question }],
  add_generation_prompt: true,
  bos_token: model.bos_token,
  eos_token: model.eos_token,
});
let ids = tokenizer.encode(text, { add_special_tokens: false }).ids;
const answer = [];
for (let past = 0; past + ids.length < model.context_length; ) {
  const id = await nextId(ids, past);
  if (model.eos_token_ids.includes(id)) break;
  answer.push(id);
  past += ids.length;
  ids = [id];
}
console.log(tokenizer.decode(answer, { skip_special_tokens: true }));

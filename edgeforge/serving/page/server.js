// The server's interface: one conversation in, pieces of an answer out, problems as sentences.

export class Problem extends Error {
  constructor(sentence, { status = 0 } = {}) {
    super(sentence);
    this.status = status;
  }
}

/** The model that is served: its name. */
export async function servedModel(key) {
  const { data } = await (await ask("v1/models", { headers: headers(key) })).json();
  return data[0].id;
}

/** Yields {text, ended} for each piece of the answer; `ended` is why it ended, with the last one. Throws Problem. */
export async function* answer(request, key, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Problem(sentence(event.error.message));
    for (const choice of event.choices) {
      yield { text: choice.delta.content ?? "", ended: choice.finish_reason };
    }
  }
  throw new Problem("The answer broke off: the connection to the server ended.");
}

/** The data of server-sent events: lines that begin with `data:`, as many as stand before an empty line. */
async function* events(body) {
  let held = "";
  let data = [];
  for await (const text of texts(body)) {
    const lines = (held + text).split(/\r?\n/);
    held = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

async function* texts(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The answer broke off: the connection to the server ended.");
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached.");
  }
  if (!response.ok) throw new Problem(await refusal(response), { status: response.status });
  return response;
}

async function refusal(response) {
  if (response.status === 401) return "The server asks for an API key: enter it under Settings.";
  if (response.status === 429) {
    const seconds = Number(response.headers.get("Retry-After")) || 0;
    return seconds ? `The server is busy: try again in ${seconds} s.` : "The server is busy: try again later.";
  }
  const body = await response.json().catch(() => ({}));
  if (body.error?.code === "context_length_exceeded") {
    return "The conversation has outgrown the model's context: start a new chat, or ask something shorter.";
  }
  return sentence(body.error?.message ?? `the server answered with status ${response.status}`);
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?)]$/.test(text) ? "" : "."}`;
}

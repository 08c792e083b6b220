// The conversation on the page.

import { show } from "./blocks.js";
import { Problem, answer, servedModel } from "./server.js";
import { apiKey, keepSettings, openSettings, options, systemMessages } from "./settings.js";

const element = (id) => document.getElementById(id);
const log = element("log");
const page = document.querySelector("main");
const said = element("said");
const ASIDES = { length: "(cut off: the longest answer, or the model's context, is reached)", stopped: "(stopped)" };

let model = "";
let turns = []; // {role, content}, without the system message
let running = null; // the AbortController of the answer on its way

keepSettings();
meetModel();

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("stop").addEventListener("click", () => running?.abort());
element("new").addEventListener("click", startAnew);
element("open-settings").addEventListener("click", () => openSettings(element("settings").hidden));
element("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  openSettings(false);
});
element("key").addEventListener("change", meetModel);
said.addEventListener("input", fitHeight);
said.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else if (!element("settings").hidden) openSettings(false);
});

async function meetModel() {
  try {
    model = await servedModel(apiKey());
    element("model").textContent = document.title = model;
    tell("");
  } catch (problem) {
    tellProblem(problem);
  }
}

function startAnew() {
  running?.abort();
  turns = [];
  log.replaceChildren();
  tell("");
  said.focus();
}

async function send() {
  const text = said.value.trim();
  if (!text || running) return;
  tell("");
  said.value = "";
  fitHeight();
  const asked = { role: "user", content: text };
  turns.push(asked);
  const question = addMessage("user", "You said:");
  show(question.text, text);
  const shown = addMessage("assistant", "The model answered:");
  const { content, ended, problem } = await receive(shown.text);
  if (!turns.includes(asked)) return; // a new chat has begun meanwhile
  shown.text.classList.remove("waiting");
  if (content || ended) {
    turns.push({ role: "assistant", content });
    if (ASIDES[ended]) addAside(shown.item, ASIDES[ended]);
    element("announcer").textContent = content;
  } else {
    // Nothing came: as if it had not been asked, so that Enter asks again.
    turns.pop();
    question.item.remove();
    shown.item.remove();
    if (!said.value) said.value = text;
    fitHeight();
  }
  if (problem) tellProblem(problem);
}

/** The answer to the conversation so far, shown in `place` as it comes. `ended` is null where a problem ended it. */
async function receive(place) {
  let content = "";
  let ended = null;
  let problem = null;
  let frame = 0;
  const draw = () => {
    frame = 0;
    const follows = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
    show(place, content);
    if (follows) page.scrollTop = page.scrollHeight;
  };
  setRunning(new AbortController());
  place.classList.add("waiting");
  page.scrollTop = page.scrollHeight;
  try {
    const request = { model, messages: [...systemMessages(), ...turns], ...options() };
    for await (const piece of answer(request, apiKey(), running.signal)) {
      content += piece.text;
      ended = piece.ended ?? ended;
      frame ||= requestAnimationFrame(draw);
    }
  } catch (error) {
    if (error.name === "AbortError") ended = "stopped";
    else problem = error;
  }
  cancelAnimationFrame(frame);
  draw();
  setRunning(null);
  return { content, ended, problem };
}

function setRunning(controller) {
  running = controller;
  element("send").hidden = running !== null;
  element("stop").hidden = running === null;
}

function addMessage(role, label) {
  const item = document.createElement("li");
  item.className = `message ${role}`;
  const who = document.createElement("span");
  who.className = "for-screen-readers";
  who.textContent = label;
  const text = document.createElement("div");
  item.append(who, text);
  log.append(item);
  return { item, text };
}

function addAside(item, text) {
  const aside = document.createElement("p");
  aside.className = "aside";
  aside.textContent = text;
  item.append(aside);
}

function tell(sentence) {
  element("problem").textContent = sentence;
}

function tellProblem(problem) {
  tell(problem instanceof Problem ? problem.message : `The page failed: ${problem.message}.`);
  if (problem.status === 401) openSettings(true, { focus: "key" });
}

function fitHeight() {
  said.style.height = "auto";
  said.style.height = `${said.scrollHeight + 2}px`;
}

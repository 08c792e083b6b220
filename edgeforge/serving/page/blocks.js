// A text as paragraphs and fenced code. Everything goes in as text, never as HTML.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;

/** What the text consists of: {code: false, text} and {code: true, language, text}; an open fence runs to the end. */
export function blocks(text) {
  const found = [];
  let lines = [];
  let fence = null;
  const close = (code, language = "") => {
    const joined = lines.join("\n");
    if (code || joined.trim()) found.push({ code, language, text: code ? joined : joined.replace(/^\n+|\n+$/g, "") });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const match = FENCE.exec(line);
    if (fence === null && match) {
      close(false);
      fence = { mark: match[1], language: match[2] };
    } else if (fence !== null && match && match[1].startsWith(fence.mark) && !match[2]) {
      close(true, fence.language);
      fence = null;
    } else {
      lines.push(line);
    }
  }
  close(fence !== null, fence?.language);
  return found;
}

/** Show the text in `element`, leaving alone what it shows already: what is selected or focused there stays so. */
export function show(element, text) {
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const old = element.children[index];
    const fits = old && old.classList.contains("code") === block.code && (old.dataset.language ?? "") === block.language;
    const shown = fits ? old : block.code ? codeBlock(block.language) : document.createElement("p");
    if (!old) element.append(shown);
    else if (!fits) old.replaceWith(shown);
    const place = block.code ? shown.querySelector("code") : shown;
    if (place.textContent !== block.text) place.textContent = block.text;
  });
  while (element.children.length > wanted.length) element.lastElementChild.remove();
}

function codeBlock(language) {
  const block = document.createElement("div");
  block.className = "code";
  if (language) block.dataset.language = language;
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = language || "code";
  const copy = document.createElement("button");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", `Copy ${language || "code"}`);
  head.append(name, copy);
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // it scrolls: the keyboard must reach it
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language || "code");
  const code = document.createElement("code");
  pre.append(code);
  block.append(head, pre);
  copy.addEventListener("click", async () => {
    copy.textContent = (await copied(code)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  return block;
}

async function copied(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    // Only secure pages have the clipboard, and a server in the house has no certificate.
    getSelection().selectAllChildren(element);
    return false;
  }
}

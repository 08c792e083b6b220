// What the user sets, and keeps over a reload. The API key stays in this tab.

const field = (id) => document.getElementById(id);
const KEPT = [
  { id: "system", storage: () => localStorage },
  { id: "temperature", storage: () => localStorage },
  { id: "max-tokens", storage: () => localStorage },
  { id: "key", storage: () => sessionStorage },
];

/** Fill the fields with what was kept, and keep what is entered. */
export function keepSettings() {
  for (const { id, storage } of KEPT) {
    try {
      field(id).value = storage().getItem(`edgeforge.${id}`) ?? "";
    } catch {
      continue; // a browser that keeps nothing
    }
    field(id).addEventListener("input", () => storage().setItem(`edgeforge.${id}`, field(id).value));
  }
}

export const apiKey = () => field("key").value.trim();

/** The system message as the conversation's first one, where there is one. */
export function systemMessages() {
  const content = field("system").value.trim();
  return content ? [{ role: "system", content }] : [];
}

/** The request's options; what is left empty, or makes no sense, is the server's to choose. */
export function options() {
  const chosen = {};
  const temperature = field("temperature");
  const longest = field("max-tokens");
  if (temperature.value !== "" && temperature.validity.valid) chosen.temperature = temperature.valueAsNumber;
  if (longest.value !== "" && longest.validity.valid) chosen.max_completion_tokens = longest.valueAsNumber;
  return chosen;
}

/** Open or close the settings; `focus` names the field to enter. */
export function openSettings(open, { focus = "system" } = {}) {
  field("settings").hidden = !open;
  field("open-settings").setAttribute("aria-expanded", String(open));
  field(open ? focus : "said").focus();
}

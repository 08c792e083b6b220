"""What was said in a chat, and the commands that change it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeforge.errors import UsageError

HELP = '''/reset         forget the conversation
/system TEXT   set the system message, and forget the conversation; without TEXT there is none
/retry         answer the last question anew
/undo          take back the last question and its answer
/save FILE     write the conversation to FILE: messages if it ends in .json, else Markdown
/help          this list
/exit          leave (as Ctrl-D does)
Ctrl-C         stop an answer
A line that ends in \\ goes on in the next one; """ begins and ends a text of several lines.'''


@dataclass(slots=True, kw_only=True)
class Conversation:
    """What was said so far. `system` stays over a reset."""

    system: str | None = None
    turns: list[dict[str, object]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, object]]:
        head: list[dict[str, object]] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*head, *self.turns]

    def take_back(self) -> str | None:
        """Forget the last question and its answer; the question, None where nothing was asked."""
        asked = None
        while self.turns and asked is None:
            last = self.turns.pop()
            asked = str(last["content"]) if last["role"] == "user" else None
        return asked


def obey(conversation: Conversation, said: str) -> str:
    """Carry out a slash command; what to tell the user. UsageError, OSError for what cannot be done."""
    word, _, rest = said.partition(" ")
    match word:
        case "/reset":
            conversation.turns.clear()
            return "The conversation starts anew."
        case "/system":
            conversation.turns.clear()
            conversation.system = rest.strip() or None
            return "The system message is set." if conversation.system else "There is no system message now."
        case "/undo":
            return "Nothing was asked yet." if conversation.take_back() is None else "Taken back."
        case "/save":
            return _save(conversation, rest.strip())
        case "/help":
            return HELP
        case _:
            return f"There is no command {word}.\n{HELP}"


def _save(conversation: Conversation, name: str) -> str:
    if not name:
        raise UsageError("/save needs the name of a file", hint="/save talk.md, or /save talk.json")
    path = Path(name).expanduser()
    if path.suffix == ".json":
        text = json.dumps(conversation.messages, indent=2, ensure_ascii=False) + "\n"
    else:
        text = "\n".join(_markdown(message) for message in conversation.messages)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already", hint="choose another name") from None
    return f"Saved to {path}."


def _markdown(message: Mapping[str, object]) -> str:
    return f"**{str(message['role']).capitalize()}**\n\n{message['content']}\n"

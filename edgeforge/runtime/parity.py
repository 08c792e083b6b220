"""parity.json: what the original's tokenizer and chat template make of fixed texts and chats. Do the bundle's agree?

The vectors are made where a bundle is built (`edgeforge.model.parity`). Hashes tell whether a file is the one that was
packed; these tell whether it still means the same: a tokenizer or template that was replaced together with its hash is
found, and so is a release of tokenizers or jinja2 that reads the same file differently.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .chat import Message, render
from .errors import CorruptBundle, UnusableBundle
from .fields import Fields
from .manifest import Manifest
from .requirements import import_package

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PARITY_NAME = "parity.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TextVector:
    """A text, its ids as a prompt (with the BOS that the tokenizer adds), and what those decode to again."""

    text: str
    ids: tuple[int, ...]
    decoded: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatVector:
    """A chat and the prompt made of it, with its ids; `text` is None where the template refuses such a chat."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool
    text: str | None
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """All vectors; `now` is the time that a template which writes the date was given."""

    now: datetime
    texts: tuple[TextVector, ...]
    chats: tuple[ChatVector, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Talker:
    """What turns text into ids and chats into text: the parts of a bundle, or of a checkpoint."""

    tokenizer: "Tokenizer"
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def render(self, messages: Sequence[Message], now: datetime, *, add_generation_prompt: bool) -> str | None:
        """The prompt; None where there is no template, or it refuses."""
        if self.chat_template is None:
            return None
        try:
            return render(
                self.chat_template,
                messages,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                add_generation_prompt=add_generation_prompt,
                now=now,
            )
        except UnusableBundle:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """How many vectors agreed. `rendered` is False where jinja2 is missing: then chats were not rendered."""

    texts: int
    chats: int
    rendered: bool


def check_parity(bundle: Path, manifest: Manifest) -> Checked | None:
    """Hold the bundle's tokenizer and template against its vectors; None for a bundle that was built without.

    CorruptBundle names the first vector that differs.
    """
    if PARITY_NAME not in manifest.files:
        return None
    parity = read_parity(bundle / PARITY_NAME)
    talker = open_talker(bundle, manifest)
    rendered = find_spec("jinja2") is not None
    for problem in differences(parity, talker, render_chats=rendered):
        raise CorruptBundle(
            f"the bundle does not read text as the original does: {problem}",
            hint="its tokenizer or template was replaced, or this release of tokenizers or jinja2 reads them "
            "differently: build it again, or pip install --upgrade tokenizers jinja2",
        )
    return Checked(texts=len(parity.texts), chats=len(parity.chats), rendered=rendered)


def open_talker(bundle: Path, manifest: Manifest) -> Talker:
    """The bundle's own tokenizer and template. UnusableBundle where the tokenizer cannot be read."""
    model = manifest.model
    template = None if model.chat_template is None else (bundle / model.chat_template).read_text(encoding="utf-8")
    return Talker(
        tokenizer=open_tokenizer(bundle / model.tokenizer),
        chat_template=template,
        bos_token=model.bos_token,
        eos_token=model.eos_token,
    )


def open_tokenizer(path: Path) -> "Tokenizer":
    package = import_package("tokenizers")
    try:
        tokenizer: Tokenizer = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise UnusableBundle(f"{path.name} cannot be read by the tokenizers package: {error}") from error
    return tokenizer


def differences(parity: Parity, talker: Talker, *, render_chats: bool = True) -> Iterator[str]:
    """What differs, a phrase for each vector: texts first, then chats."""
    for vector in parity.texts:
        ids = talker.encode(vector.text)
        if ids != vector.ids:
            yield f"{quoted(vector.text)} becomes {_shown(ids, vector.ids)}"
        elif (decoded := talker.decode(ids)) != vector.decoded:
            yield f"the ids of {quoted(vector.text)} become the text {quoted(decoded)}, not {quoted(vector.decoded)}"
    for chat in parity.chats:
        if render_chats:
            text = talker.render(chat.messages, parity.now, add_generation_prompt=chat.add_generation_prompt)
            if text != chat.text:
                yield f"the chat {_roles(chat)} is rendered {_apart(text, chat.text)}"
                continue
        if chat.text is not None and (ids := talker.encode(chat.text, add_special_tokens=False)) != chat.ids:
            yield f"the chat {_roles(chat)} becomes {_shown(ids, chat.ids)}"


def read_parity(path: Path) -> Parity:
    """The exact inverse of `parity_text`; CorruptBundle or UnusableBundle where the file is not as it must be."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptBundle(f"{PARITY_NAME} is not JSON: {error}", hint="copy the bundle again") from None
    fields = Fields(value, file=PARITY_NAME)
    version = fields.take("schema_version", int)
    if version != SCHEMA_VERSION:
        raise fields.wrong("schema_version", f"is {version}, and this runtime knows {SCHEMA_VERSION}")
    texts = tuple(
        TextVector(text=item.take("text", str), ids=item.integers("ids"), decoded=item.take("decoded", str))
        for item in fields.children("texts")
    )
    chats = tuple(
        ChatVector(
            messages=tuple({name: each.take(name, str) for name in each.names()} for each in item.children("messages")),
            add_generation_prompt=item.take("add_generation_prompt", bool),
            text=item.optional("text", str),
            ids=item.integers("ids"),
        )
        for item in fields.children("chats")
    )
    try:
        now = datetime.fromisoformat(fields.take("now", str))
    except ValueError:
        raise fields.wrong("now", "is not a time") from None
    fields.close()
    return Parity(now=now, texts=texts, chats=chats)


def quoted(text: str) -> str:
    """As a person can read it in a sentence: escaped, and not too long."""
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _shown(ids: Sequence[int], wanted: Sequence[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
    have, want = (str(each[place]) if place < len(each) else "nothing" for each in (ids, wanted))
    return f"{len(ids)} ids where the original has {len(wanted)}: at {place} comes {have} and not {want}"


def _roles(chat: ChatVector) -> str:
    return "/".join(str(message["role"]) for message in chat.messages)


def _apart(text: str | None, wanted: str | None) -> str:
    if text is None:
        return "by no template, or refused, where the original renders it"
    if wanted is None:
        return "where the original refuses it"
    pairs = zip(text, wanted, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(wanted)))
    start = max(0, place - 10)
    return f"{quoted(text[start : start + 40])} where the original has {quoted(wanted[start : start + 40])}"

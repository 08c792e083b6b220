"""What `run` and `chat` share: the answer's options, and streaming an answer to stdout."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import click

if TYPE_CHECKING:
    from edgeforge.runtime.constraint import Constraint
    from edgeforge.runtime.stream import Chunk


CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How an answer is chosen; None leaves it to what the model's authors recommend."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: tuple[str, ...]


class Answers(Protocol):
    """The part of `edgeforge.runtime.Model` that a conversation needs."""

    @property
    def chat_template(self) -> str | None: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def chat_ids(self, messages: Sequence[dict[str, object]]) -> list[int]: ...
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: threading.Event | None = None,
        constraint: "Constraint | None" = None,
    ) -> Iterator["Chunk"]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer; `last` carries why it ended, its usage and timings."""

    text: str
    last: "Chunk"


def answer(
    model: Answers,
    ids: Sequence[int],
    options: AnswerOptions,
    *,
    write: Callable[[str], None],
    cancel: threading.Event | None = None,
    constraint: "Constraint | None" = None,
) -> Answer:
    """Generate after `ids`, handing every piece of text to `write` as soon as it is certain."""
    pieces = []
    chunks = model.generate(
        ids,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        stop=options.stop,
        cancel=cancel,
        constraint=constraint,
    )
    for chunk in chunks:
        pieces.append(chunk.text)
        if chunk.text:
            write(chunk.text)
        last = chunk
    return Answer(text="".join(pieces), last=last)


def to_stdout(text: str) -> None:
    """A piece of an answer. A terminal gets no control characters: a model could move the cursor, or worse."""
    click.echo(text.translate(CONTROLS) if sys.stdout.isatty() else text, nl=False)


def speed_text(last: "Chunk") -> str:
    """`12 prompt tokens at 700/s, 8 new at 150/s, ended by stop`"""
    usage, timings = last.usage, last.timings
    if usage is None or timings is None:
        return ""
    reused = f" ({usage.reused_tokens} reused)" if usage.reused_tokens else ""
    return (
        f"{usage.prompt_tokens} prompt tokens{reused} at {timings.prefill_tokens_per_s:,.0f}/s, "
        f"{usage.completion_tokens} new at {timings.decode_tokens_per_s:,.0f}/s, ended by {last.finish_reason}"
    )

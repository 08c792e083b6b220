"""A model that says what it is told to, for tests of the commands around it."""

import threading
from collections.abc import Callable, Iterator, Sequence

from edgeforge.runtime.constraint import Constraint
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.generate import FinishReason
from edgeforge.runtime.stream import Chunk, Timings, Usage


class FakeModel:
    """Satisfies `edgeforge.cli.answering.Answers`. `during` is called before each piece of the answer."""

    def __init__(
        self,
        pieces: Sequence[str] = ("Par", "is"),
        *,
        chat_template: str | None = "{{ messages }}",
        context: int = 1000,
        during: Callable[[], None] = lambda: None,
    ) -> None:
        self.pieces = pieces
        self.chat_template = chat_template
        self.context = self.context_length = context
        self.constraint: Constraint | None = None
        self.during = during
        self.prompts: list[object] = []
        self.options: dict[str, object] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.prompts.append(text)
        return [ord(character) for character in text]

    def chat_ids(self, messages: Sequence[dict[str, object]]) -> list[int]:
        self.prompts.append([dict(message) for message in messages])
        return [1] * sum(len(str(message["content"])) for message in messages)

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
        constraint: Constraint | None = None,
    ) -> Iterator[Chunk]:
        self.constraint = constraint
        self.options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "stop": stop}
        if len(prompt) > self.context:
            raise UnusableBundle(f"the prompt has {len(prompt)} tokens, more than the context of {self.context}")
        return self._chunks(len(prompt), cancel)

    def _chunks(self, prompt_tokens: int, cancel: threading.Event | None) -> Iterator[Chunk]:
        reason: FinishReason = "stop"
        count = 0
        for piece in self.pieces:
            self.during()
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            count += 1
            yield Chunk(text=piece, token_ids=(count,))
        yield Chunk(
            text="",
            token_ids=(),
            finish_reason=reason,
            usage=Usage(prompt_tokens=prompt_tokens, reused_tokens=0, completion_tokens=count),
            timings=Timings(prefill_ms=10.0, decode_ms=20.0, prefill_tokens_per_s=700.0, decode_tokens_per_s=150.0),
        )

"""A running generation as text: chunks as they become certain, and at the end why, how many and how fast."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import UnusableBundle
from .generate import FinishReason
from .text import Detokenizer, StopFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens. `reused_tokens` of the prompt were still in the KV cache; the end-of-text token is not counted."""

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """`prefill_ms` runs up to the first new token, `decode_ms` over all later ones; a speed is 0 where nothing ran."""

    prefill_ms: float
    decode_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of the answer. The last has a finish_reason (stop, length, cancelled), usage and timings, and may have no
    text.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class Turns:
    """Who may use the one KV cache: the generation that started last. An older one that goes on is told so."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # one that nobody reads any more may be closed while another one computes
        self._current = 0

    def take(self) -> int:
        with self._lock:
            self._current += 1
            return self._current

    @contextmanager
    def hold(self, turn: int) -> Iterator[None]:
        with self._lock:
            if turn != self._current:
                raise UnusableBundle(
                    "another generation was started on this model before this one ended",
                    hint="finish or close one before the next, or load the model twice",
                )
            yield

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Until nobody computes, whoever's turn it is."""
        with self._lock:
            yield


def stream(
    tokens: Generator[int, None, FinishReason],
    detokenizer: Detokenizer,
    stops: StopFilter,
    *,
    turns: Turns,
    prompt_tokens: int,
    reused_tokens: Callable[[], int],
) -> Iterator[Chunk]:
    """Chunks of the text that `tokens` spell, up to the first stop string.

    `reused_tokens` is asked while `tokens` has its turn. `tokens` is closed at the end, also where nobody reads on.
    """
    try:
        yield from _chunks(tokens, detokenizer, stops, turns, prompt_tokens, reused_tokens)
    finally:
        with turns.wait():
            tokens.close()


def _chunks(
    tokens: Generator[int, None, FinishReason],
    detokenizer: Detokenizer,
    stops: StopFilter,
    turns: Turns,
    prompt_tokens: int,
    reused_tokens: Callable[[], int],
) -> Iterator[Chunk]:
    turn = turns.take()
    reused = 0
    seconds: list[float] = []
    pending: list[int] = []
    completion = 0
    reason: FinishReason
    while True:
        begin = time.perf_counter()
        try:
            with turns.hold(turn):
                try:
                    token = next(tokens)
                finally:
                    reused = reused_tokens()
        except StopIteration as end:
            reason = end.value
            text = stops.push(detokenizer.flush())
            text += stops.flush()
            break
        finally:
            seconds.append(time.perf_counter() - begin)
        completion += 1
        pending.append(token)
        text = stops.push(detokenizer.push(token))
        if stops.stopped:
            reason = "stop"
            break
        if text:
            yield Chunk(text=text, token_ids=tuple(pending))
            pending.clear()
    yield Chunk(
        text=text,
        token_ids=tuple(pending),
        finish_reason=reason,
        usage=Usage(prompt_tokens=prompt_tokens, reused_tokens=reused, completion_tokens=completion),
        timings=_timings(seconds, prompt_tokens - reused),
    )


def _timings(seconds: list[float], prefilled: int) -> Timings:
    prefill, decode = seconds[0], sum(seconds[1:])
    return Timings(
        prefill_ms=1000 * prefill,
        decode_ms=1000 * decode,
        prefill_tokens_per_s=prefilled / prefill if prefill > 0 else 0.0,
        decode_tokens_per_s=(len(seconds) - 1) / decode if decode > 0 else 0.0,
    )

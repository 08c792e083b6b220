"""A running generation as text: chunks as they become certain, and at the end why, how many and how fast."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType

from .generate import FinishReason, Generation, Token, TokenLogprob
from .text import Detokenizer, StopFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens. `reused_tokens` of the prompt were known before; the end-of-text token is not counted."""

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long the reader waited: `prefill_ms` for the first new token, `decode_ms` for all later ones; a speed is 0
    where nothing ran.
    """

    prefill_ms: float
    decode_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of the answer. `logprobs`, where asked for, has one entry for each of `token_ids`.

    The last has a finish_reason (stop, length, cancelled, timeout), usage and timings, and may have no text.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class Stream(Iterator[Chunk], AsyncIterator[Chunk]):
    """An answer's chunks, for `for` and `async for`, up to the first stop string.

    `cancel` ends it with a last chunk that says so, `close` (leaving `with`, or forgetting the stream) without one;
    both from any thread. Chunks are computed as they are asked for; `async for` does so in a thread, one step at a
    time, and cancels when its task is cancelled.
    """

    def __init__(
        self, generation: Generation, detokenizer: Detokenizer, stops: StopFilter, *, prompt_tokens: int, logprobs: bool
    ) -> None:
        self._generation = generation
        self._detokenizer = detokenizer
        self._stops = stops
        self._prompt_tokens = prompt_tokens
        self._logprobs = logprobs
        self._reading = threading.Lock()
        self._closed = False
        self._pending: list[Token] = []
        self._completion = 0
        self._prefill_s: float | None = None
        self._waited_s = 0.0

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Chunk:
        while not self._closed:
            if (chunk := self._poll()) is not None:
                return chunk
        raise StopIteration

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Chunk:
        try:
            while not self._closed:
                if (chunk := await asyncio.to_thread(self._poll)) is not None:
                    return chunk
        except asyncio.CancelledError:
            self.close()
            raise
        raise StopAsyncIteration

    def cancel(self) -> None:
        """End the answer before its next token."""
        self._generation.cancel()

    def close(self) -> None:
        """End the answer and the iteration."""
        self._closed = True
        self._generation.cancel()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_generation"):
            self._generation.cancel()

    def _poll(self) -> Chunk | None:
        """The next chunk, or None where it needs more steps (or the stream was closed)."""
        with self._reading:
            if self._closed:
                return None
            begin = time.perf_counter()
            try:
                told = self._generation.poll()
            except BaseException:
                self._closed = True
                self._generation.cancel()
                raise
            finally:
                self._waited_s += time.perf_counter() - begin
            if told is None:
                return None
            if self._prefill_s is None:
                self._prefill_s, self._waited_s = self._waited_s, 0.0
            return self._chunk_after(told) if isinstance(told, Token) else self._last(told)

    def _chunk_after(self, token: Token) -> Chunk | None:
        self._completion += 1
        self._pending.append(token)
        text = self._stops.push(self._detokenizer.push(token.id))
        if self._stops.stopped:
            self._generation.cancel()
            return self._last("stop", text)
        return self._chunk(text) if text else None

    def _last(self, reason: FinishReason, text: str | None = None) -> Chunk:
        self._closed = True
        # An end-of-text token was computed, and is not part of the answer.
        computed = self._completion + (reason == "stop" and text is None)
        if text is None:
            text = self._stops.push(self._detokenizer.flush())
            text += self._stops.flush()
        reused = self._generation.reused_tokens
        usage = Usage(prompt_tokens=self._prompt_tokens, reused_tokens=reused, completion_tokens=self._completion)
        return self._chunk(text, reason, usage, self._timings(self._prompt_tokens - reused, computed))

    def _chunk(
        self,
        text: str,
        reason: FinishReason | None = None,
        usage: Usage | None = None,
        timings: Timings | None = None,
    ) -> Chunk:
        tokens, self._pending = self._pending, []
        known = tuple(token.logprob for token in tokens if token.logprob is not None)
        return Chunk(
            text=text,
            token_ids=tuple(token.id for token in tokens),
            logprobs=known if self._logprobs else None,
            finish_reason=reason,
            usage=usage,
            timings=timings,
        )

    def _timings(self, prefilled: int, computed: int) -> Timings:
        prefill, decode = self._prefill_s or 0.0, self._waited_s
        return Timings(
            prefill_ms=1000 * prefill,
            decode_ms=1000 * decode,
            prefill_tokens_per_s=prefilled / prefill if prefill > 0 else 0.0,
            decode_tokens_per_s=max(computed - 1, 0) / decode if decode > 0 else 0.0,
        )

"""One repeat of a case: as many generations as its batch, advanced together through the runtime's public interface."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from edgeforge.errors import UsageError
from edgeforge.runtime.stream import Chunk
from edgeforge.validation.benching.records import Run
from edgeforge.validation.benching.stopwatch import Stopwatch


class Generates(Protocol):
    """The part of `edgeforge.runtime.Model` that is measured."""

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        repetition_penalty: float,
        ignore_eos: bool,
    ) -> Iterator[Chunk]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """When a generation began, had its first new token, and gave each chunk (time, tokens so far); by perf_counter.

    The runtime's own clock says when the first token was there: a chunk may come later, once its letters are whole.
    """

    began: float
    first_token: float
    chunks: Sequence[tuple[float, int]]
    computed_tokens: int
    reused_tokens: int

    @property
    def ended(self) -> float:
        """When the last token was there; the chunk that says why it ended may come later."""
        _, total = self.chunks[-1]
        return next(at for at, tokens in self.chunks if tokens == total)

    def tokens_between(self, begin: float, end: float) -> int:
        """Tokens that came after `begin`, up to `end`."""
        return self._tokens_at(end) - self._tokens_at(begin)

    def _tokens_at(self, moment: float) -> int:
        """At least the first, which the runtime's clock saw before any chunk was due."""
        seen = 1 if moment >= self.first_token else 0
        return max([seen, *(tokens for at, tokens in self.chunks if at <= moment)])


def prime(model: Generates, contexts: Sequence[Sequence[int]]) -> None:
    """Have the cache hold each context, which costs nothing where it still does."""
    for ids in contexts:
        if ids:
            _all(_greedy(model, ids, 1))


def run_once(model: Generates, prompts: Sequence[Sequence[int]], *, new_tokens: int, watch: Stopwatch | None) -> Run:
    """Read all prompts at once, then generate `new_tokens` more after the first new one of each."""
    if len(prompts) == 1:
        streams = [_follow(model, prompts[0], new_tokens, None)]
    else:
        barrier = threading.Barrier(len(prompts))
        with ThreadPoolExecutor(len(prompts)) as pool:
            streams = list(pool.map(lambda ids: _follow(model, ids, new_tokens, barrier), prompts))
    return summed_up(streams, watch)


def summed_up(streams: Sequence[Stream], watch: Stopwatch | None) -> Run:
    """Prefill until the last sequence has its first token; decode from there until the first sequence ends.

    UsageError where one ended before the last began, so that there is no such time.
    """
    began = min(stream.began for stream in streams)
    all_started = max(stream.first_token for stream in streams)
    first_ended = min(stream.ended for stream in streams)
    decoded = sum(stream.tokens_between(all_started, first_ended) for stream in streams)
    seconds = first_ended - all_started
    if seconds <= 0:
        raise UsageError("a sequence ended before all of them had read their prompts", hint="ask for more --new-tokens")
    inside = watch.inside(all_started, first_ended) if watch is not None and watch.runs else None
    return Run(
        prefill_tokens_per_s=sum(stream.computed_tokens for stream in streams) / (all_started - began),
        decode_tokens_per_s=decoded / seconds,
        time_to_first_token_ms=1000 * median(stream.first_token - stream.began for stream in streams),
        reused_tokens=sum(stream.reused_tokens for stream in streams),
        python_share=None if inside is None else 1 - inside / seconds,
    )


def _follow(model: Generates, ids: Sequence[int], new_tokens: int, barrier: threading.Barrier | None) -> Stream:
    if barrier is not None:
        barrier.wait()
    began = time.perf_counter()
    chunks = []
    count = 0
    for chunk in _greedy(model, ids, new_tokens + 1):
        count += len(chunk.token_ids)
        chunks.append((time.perf_counter(), count))
    assert chunk.timings is not None and chunk.usage is not None, "the runtime ends every generation with its timings"
    return Stream(
        began=began,
        first_token=began + chunk.timings.prefill_ms / 1000,
        chunks=chunks,
        computed_tokens=chunk.usage.prompt_tokens - chunk.usage.reused_tokens,
        reused_tokens=chunk.usage.reused_tokens,
    )


def _greedy(model: Generates, ids: Sequence[int], max_new_tokens: int) -> Iterator[Chunk]:
    return model.generate(ids, max_new_tokens=max_new_tokens, temperature=0.0, repetition_penalty=1.0, ignore_eos=True)


def _all(chunks: Iterator[Chunk]) -> None:
    for _ in chunks:
        pass

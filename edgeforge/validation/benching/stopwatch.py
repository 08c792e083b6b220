"""How much of a span of time passed inside onnxruntime: what is left is Python's share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import IOBinding, RunOptions


@dataclass(slots=True)
class Stopwatch:
    """Runs as (begin, end) of `time.perf_counter`, in the order they ended."""

    runs: list[tuple[float, float]] = field(default_factory=list)

    def inside(self, begin: float, end: float) -> float:
        """Seconds of the span from `begin` to `end` that passed in runs."""
        return sum(max(min(stop, end) - max(start, begin), 0.0) for start, stop in self.runs)


@contextmanager
def time_in_onnxruntime() -> Iterator[Stopwatch]:
    """Take the time of every `InferenceSession.run_with_iobinding`, which is how the runtime runs its graphs.

    Put in the class's place rather than into the runtime: what ships does not pay for what only a bench asks.
    """
    import onnxruntime as ort

    watch = Stopwatch()
    plain: Callable[[object, IOBinding, RunOptions | None], None] = ort.InferenceSession.run_with_iobinding

    def timed(session: object, iobinding: "IOBinding", run_options: "RunOptions | None" = None) -> None:
        begin = time.perf_counter()
        try:
            plain(session, iobinding, run_options)
        finally:
            watch.runs.append((begin, time.perf_counter()))

    ort.InferenceSession.run_with_iobinding = timed
    try:
        yield watch
    finally:
        ort.InferenceSession.run_with_iobinding = plain

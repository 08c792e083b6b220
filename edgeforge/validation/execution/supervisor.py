"""Runs programs, each in a warden of its own, several at a time."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from edgeforge.validation.execution.launch import launch
from edgeforge.validation.execution.layers import layers_here
from edgeforge.validation.execution.outcome import DEFAULT, Limits, Outcome

# A kernel that is short of namespaces for a moment is asked again.
ATTEMPTS = 3
PAUSE_SECONDS = 0.5


def run_program(source: str, limits: Limits = DEFAULT) -> Outcome:
    """Runs a Python program contained. "passed": it ran past its last line, within its limits.

    The program runs as in OpenAI's human-eval: in an empty namespace, `__name__` not "__main__", nothing on standard
    input. Raises MissingDependency where programs cannot be contained at all; `isolation` says what holds here.
    """
    return _run(source, limits, layers_here())


def _run(source: str, limits: Limits, layers: tuple[str, ...]) -> Outcome:
    for _ in range(ATTEMPTS - 1):
        answer = launch(source, limits, layers, exact=True)
        if answer.outcome.status != "refused":
            return answer.outcome
        time.sleep(PAUSE_SECONDS)
    return launch(source, limits, layers, exact=True).outcome


def run_programs(
    sources: Sequence[str],
    limits: Limits = DEFAULT,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Outcome, ...]:
    """Outcomes in the order of the sources. `progress(done, all)` is called in the caller's thread after each."""
    layers = layers_here()
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        running = [pool.submit(_run, source, limits, layers) for source in sources]
        try:
            for done, _ in enumerate(as_completed(running), start=1):
                if progress is not None:
                    progress(done, len(sources))
            return tuple(future.result() for future in running)
        finally:
            for future in running:
                future.cancel()

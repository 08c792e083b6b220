"""Gives each of pytest-xdist's workers its share of the processors, on import: before numpy, which counts them.

The threads of onnxruntime and OpenBLAS spin while they wait, so that two workers on the same processors would spend
most of their time on waiting for each other.
"""

import os


def share(processors: set[int], *, worker: int, workers: int) -> set[int]:
    """Every `workers`-th of them, from the `worker`-th on; where there are fewer than workers, one."""
    ordered = sorted(processors)
    return set(ordered[worker % workers :: workers]) or {ordered[worker % len(ordered)]}


def take_share() -> None:
    name = os.environ.get("PYTEST_XDIST_WORKER")
    if name is not None and hasattr(os, "sched_setaffinity"):
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, share(os.sched_getaffinity(0), worker=int(name.removeprefix("gw")), workers=workers))


take_share()

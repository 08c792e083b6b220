"""Threads whose number does not change a result: work is cut in pieces that do not depend on it, and each piece is
computed by one thread alone. (torch's own threads split sums by their number, and other sums may mean other codes.)
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`map` runs pieces on the threads, in any order, and gives results in the pieces' own."""

    def __init__(self, pool: ThreadPoolExecutor | None) -> None:
        self._pool = pool

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        return [function(item) for item in items] if self._pool is None else list(self._pool.map(function, items))


@contextmanager
def workers(threads: int) -> Iterator[Workers]:
    """Within the block torch itself computes on one thread, and does not keep what gradients would need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            if threads == 1:
                yield Workers(None)
            else:
                with ThreadPoolExecutor(threads, "calibrate", initializer=_prepare) as pool:
                    yield Workers(pool)
    finally:
        torch.set_num_threads(before)


@contextmanager
def products_in_bfloat16() -> Iterator[None]:
    """Within the block, matrix products may round their float32 factors to bfloat16, where the machine has instructions
    for that (AMX: four times as fast); sums stay float32. Enough for activations, not for what is summed over them.

    Shared by all threads: enter it before the work is handed out.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _prepare() -> None:
    """Both are a thread's own."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

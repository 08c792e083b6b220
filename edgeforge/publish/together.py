"""Several transfers at once: a small one is mostly waiting for an answer, and a large one leaves time for others."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
# To be called now and then: raises where the work is in vain, since something else has failed.
GoOn = Callable[[], None]


class _InVain(Exception):
    """Another item failed, or the whole was interrupted."""


def together(work: Callable[[T, GoOn], None], items: Sequence[T], *, at_once: int) -> None:
    """`work` for every item, in their order, `at_once` at a time.

    The first error is raised, when what had begun has ended. An interruption waits for nothing: the threads are
    daemons, and go on no longer than to their next `GoOn`.
    """
    waiting = deque(items)
    errors: list[Exception] = []
    over = threading.Event()

    def go_on() -> None:
        if over.is_set():
            raise _InVain

    def run() -> None:
        while not over.is_set():
            try:
                item = waiting.popleft()
            except IndexError:
                return
            try:
                work(item, go_on)
            except _InVain:
                return
            except Exception as error:  # whatever it is, it is raised below
                errors.append(error)
                over.set()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(at_once, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        over.set()
    if errors:
        raise errors[0]

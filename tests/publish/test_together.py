"""Transfers beside each other: none is left out, an error ends them all soon, an interruption at once."""

import os
import signal
import threading
import time

import pytest

from edgeforge.publish.together import GoOn, together


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_every_item_is_worked_on_once_and_no_more_than_allowed_at_once(at_once: int) -> None:
    now, most, seen, alone = 0, 0, [], threading.Lock()

    def work(item: int, go_on: GoOn) -> None:
        nonlocal now, most
        go_on()
        with alone:
            now += 1
            most = max(most, now)
            seen.append(item)
        time.sleep(0.002)
        with alone:
            now -= 1

    together(work, range(40), at_once=at_once)
    assert sorted(seen) == list(range(40))
    assert most <= at_once
    assert at_once > 1 or seen == sorted(seen)
    together(work, [], at_once=at_once)


def test_the_first_error_ends_what_is_on_its_way_and_is_the_one_that_is_raised() -> None:
    ended = threading.Event()
    begun: list[str] = []

    def work(item: str, go_on: GoOn) -> None:
        begun.append(item)
        if item == "wrong":
            raise ValueError("other bytes")
        try:
            while True:
                time.sleep(0.001)
                go_on()
        finally:
            ended.set()

    with pytest.raises(ValueError, match="other bytes"):
        together(work, ["large", "wrong", "never", "never either"], at_once=2)
    assert ended.is_set()
    assert begun == ["large", "wrong"]


def test_an_interruption_waits_for_nobody() -> None:
    ended = threading.Event()

    def work(item: str, go_on: GoOn) -> None:
        if item == "interrupts":
            os.kill(os.getpid(), signal.SIGINT)
            return
        ended.wait(30)  # as a server that does not answer

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        together(work, ["stalls", "interrupts"], at_once=2)
    assert time.monotonic() - started < 10
    ended.set()

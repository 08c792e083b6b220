"""Progress: bars for people, lines for logs, silence on request, and never the reason that work ends."""

import io
import threading

import pytest

from edgeforge.cli.progress import Progress, style_for


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_style_follows_the_stream() -> None:
    assert style_for(Terminal(), quiet=False) == "bars"
    assert style_for(io.StringIO(), quiet=False) == "lines"
    assert style_for(Terminal(), quiet=True) == "none"


def test_a_pipe_gets_one_line_a_stage_and_no_control_characters() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        for done in range(101):
            clock.now = done / 50
            progress("quantize", done, 100)
        progress("hash", 5, 5)
    assert stream.getvalue() == "Quantizing  done in 2.0 s\nHashing     done in 0.0 s\n"


def test_a_long_stage_reports_to_a_pipe_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        for second in range(26):
            clock.now = float(second)
            progress("quantize", second, 100)
    assert stream.getvalue() == "Quantizing: 10 %\nQuantizing: 20 %\n"


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    stream, clock = Terminal(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress("quantize", 0, 100)
        clock.now = 2.0
        progress("quantize", 50, 100)
    text = stream.getvalue()
    assert "━" in text
    assert "50 %" in text
    assert "2 s left" in text
    assert text.endswith("\r\x1b[2K")


def test_a_bar_is_not_redrawn_at_every_call() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream=stream, clock=clock)
    for done in range(10_000):
        progress("quantize", done, 100_000)
    assert stream.getvalue().count("Quantizing") == 1


def test_the_end_of_a_stage_is_told_once() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    for _ in range(3):
        progress("hash", 7, 7)
    assert stream.getvalue().count("done") == 1


def test_an_unknown_total_is_no_division_by_zero() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream=stream, clock=clock)
    progress("fetch", 10, 0)
    assert "..." in stream.getvalue()


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with Progress(stream=stream, quiet=True) as progress:
        progress("hash", 7, 7)
    assert stream.getvalue() == ""


def test_a_closed_stream_does_not_end_the_work() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream, style="lines")
    stream.close()
    progress("hash", 7, 7)
    with progress:
        pass


@pytest.mark.parametrize("style", ["bars", "lines"])
def test_worker_threads_may_report(style: str) -> None:
    stream = Terminal() if style == "bars" else io.StringIO()
    progress = Progress(stream=stream)

    def work(name: str) -> None:
        for done in range(1, 201):
            progress(name, done, 200)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("quantize", "hash")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.getvalue().count("done in") == 2

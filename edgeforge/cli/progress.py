"""Progress on stderr: bars on a terminal, plain lines in a pipe, nothing when asked to be quiet."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TextIO

Style = Literal["bars", "lines", "none"]
REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0
SAYS = {
    "fetch": "Fetching",
    "allocate": "Weighing options",
    "calibrate": "Calibrating",
    "quantize": "Quantizing",
    "engine": "Compiling",
    "hash": "Hashing",
    "validate": "Validating",
    "verify": "Verifying",
    "upload": "Uploading",
    "download": "Downloading",
    "measure": "Measuring",
    "tasks": "Asking tasks",
    "probes": "Probing",
}


@dataclass(slots=True, kw_only=True)
class _Stage:
    started: float
    last_shown: float
    done: int = 0
    total: int = 0


def style_for(stream: TextIO, *, quiet: bool) -> Style:
    """Bars for a terminal, lines for a pipe."""
    if quiet:
        return "none"
    return "bars" if stream.isatty() else "lines"


class Progress:
    """Called as `progress(stage, done, total)` from any thread; a stage ends when done reaches total.

    A context manager: leaving it takes away a half-drawn bar, so that an error starts on a clean line.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        style: Style | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._style = style_for(self._stream, quiet=quiet) if style is None else style
        self._clock = clock
        self._stages: dict[str, _Stage] = {}
        self._lock = threading.Lock()
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            self._erase()
            self._stream.flush()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._style == "none":
            return
        with self._lock:
            now = self._clock()
            state = self._stages.get(stage)
            if state is None:
                state = self._stages[stage] = _Stage(started=now, last_shown=now - REDRAW_SECONDS)
            elif state.total and state.done >= state.total:
                if done >= total:
                    return  # the end was already told
                state.started = now  # the same stage again
            state.done, state.total = done, total
            if total > 0 and done >= total:
                self._finish(stage, now - state.started)
            elif self._style == "bars":
                self._draw(stage, state, now)
            elif now - state.last_shown >= LINE_SECONDS:
                state.last_shown = now
                self._write(f"{_says(stage)}: {_percent(state)}\n")

    def log(self, line: str) -> None:
        """A line that another program said, as it is, above the bar."""
        if self._style == "none":
            return
        with self._lock:
            self._erase()
            self._write(f"{line}\n")

    def _finish(self, stage: str, seconds: float) -> None:
        self._erase()
        self._write(f"{_says(stage):<11} done in {seconds:.1f} s\n")

    def _draw(self, stage: str, state: _Stage, now: float) -> None:
        if now - state.last_shown < REDRAW_SECONDS:
            return
        state.last_shown = now
        elapsed = now - state.started
        share = state.done / state.total if state.total else 0.0
        left = f"  {elapsed / share * (1 - share):.0f} s left" if share > 0.02 and elapsed > 1 else ""
        width = max(10, min(40, shutil.get_terminal_size().columns - 40))
        full = round(width * share)
        bar = "━" * full + "─" * (width - full)
        self._write(f"\r\x1b[2K{_says(stage):<11} {bar} {_percent(state):>5}{left}")
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r\x1b[2K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError, UnicodeEncodeError):
            self._style = "none"  # a progress bar must never end the work


def _says(stage: str) -> str:
    return SAYS.get(stage, stage.capitalize())


def _percent(state: _Stage) -> str:
    return f"{100 * state.done / state.total:.0f} %" if state.total else "..."

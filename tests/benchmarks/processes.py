"""Children and what they cost: seconds and peak memory of each one, not of all that ran so far."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

# Nobody reaches for a network, and a library that would start a thread per core of a larger machine starts two.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One finished process."""

    seconds: float
    peak_bytes: int
    exit_code: int


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, **QUIET, "OMP_NUM_THREADS": str(threads)}


def run_child(command: Sequence[str | Path], *, log: Path, threads: int, exit_codes: Sequence[int] = (0,)) -> Child:
    """Run to the end, output into `log`. RuntimeError with the log's end for any other exit code.

    Peak memory is ru_maxrss of this child and its own children (wait4), mapped file pages included, the same for
    everybody. Linux counts the launching pytest's own peak in (a child starts as its copy): a floor of about 100 MB.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(threads),
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code not in exit_codes:
        raise RuntimeError(_last_words(command, code, log))
    return Child(seconds=seconds, peak_bytes=usage.ru_maxrss * 1024, exit_code=code)


class Worker:
    """A process that has its model open and measures when asked: one line of JSON in, one out."""

    def __init__(self, command: Sequence[str | Path], *, log: Path, threads: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._command, self._log = command, log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(threads),
                text=True,
                bufsize=1,
            )

    def ask(self, request: Mapping[str, object]) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
        except BrokenPipeError:
            raise self._failure() from None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise self._failure()

    def _failure(self) -> RuntimeError:
        return RuntimeError(_last_words(self._command, self._process.wait(), self._log))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def _last_words(command: Sequence[str | Path], code: int, log: Path) -> str:
    return f"{' '.join(map(str, command))} ended with {code}:\n{log.read_text(errors='replace')[-2000:]}"


def warm(path: Path) -> None:
    """Have the file, or the folder's files, in the page cache and older output on the disk: the same start for all."""
    os.sync()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.read(1 << 24):
                    pass


def size_bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())

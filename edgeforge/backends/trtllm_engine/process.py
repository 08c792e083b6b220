"""Runs a program that may take an hour: its lines as they come, its end in one sentence, none of its children left."""

import os
import queue
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from edgeforge.errors import EdgeForgeError, MissingDependency, OutOfResources

KEPT_LINES = 400
LOOK_AGAIN_S = 0.2
GRACE_S = 10.0
LONGEST_LINE = 300
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)

_STAMP = re.compile(r"^(\[[^\]]*\]\s*)+")  # [11/16/2024-00:05:47] [TRT-LLM] [E]
_RAISED = re.compile(r"^([A-Za-z_][\w.]*\.)?\w*(Error|Exception)\b|^error:|: error: ")
_SAYS_NOTHING = re.compile(r"please check (the )?error log", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`lines`: the last ones, stdout and stderr together."""

    exit_code: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cause:
    pattern: re.Pattern[str]
    error: type[EdgeForgeError]
    sentence: str
    hint: str


_CAUSES: tuple[_Cause, ...] = (
    _Cause(
        pattern=re.compile(r"OutOfMemory|out of memory|could not be allocated|insufficient memory", re.IGNORECASE),
        error=OutOfResources,
        sentence="trtllm-build ran out of GPU memory",
        hint="free the GPU's memory, or build with a smaller --batch or --context",
    ),
    _Cause(
        pattern=re.compile(r"No space left on device"),
        error=OutOfResources,
        sentence="trtllm-build ran out of disk",
        hint="free some space, or choose a folder on another disk with --out",
    ),
    _Cause(
        pattern=re.compile(r"plugin.*(not found|missing|unavailable)|could not find plugin|plg_creator", re.IGNORECASE),
        error=MissingDependency,
        sentence="TensorRT-LLM's plugins are missing, or are those of another TensorRT",
        hint="install tensorrt-llm and its tensorrt again, in an environment of its own",
    ),
    _Cause(
        pattern=re.compile(r"ImportError|ModuleNotFoundError|cannot open shared object file|libcuda|libnvinfer"),
        error=MissingDependency,
        sentence="TensorRT-LLM cannot be imported in that environment",
        hint="check `nvidia-smi`, and install tensorrt-llm again in an environment of its own",
    ),
    _Cause(
        pattern=re.compile(r"unrecognized arguments|invalid choice|unexpected keyword argument"),
        error=MissingDependency,
        sentence="this TensorRT-LLM does not know an option that EdgeForge gives",
        hint="use TensorRT-LLM 1.2.1",
    ),
    _Cause(
        pattern=re.compile(r"Required but not provided tensors|not the same shape as the original"),
        error=MissingDependency,
        sentence="this TensorRT-LLM does not take the checkpoint",
        hint="use TensorRT-LLM 1.2.1",
    ),
)


def run(command: Sequence[str], log: Callable[[str], None]) -> Outcome:
    """Run the command to its end; `log` gets each line, in this thread. MissingDependency where it cannot start.

    Whatever ends this early (Ctrl-C, an error of `log`) ends the program and all that it started.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a group of its own, to be ended as one
        )
    except OSError as error:
        raise MissingDependency(f"{command[0]} cannot be run: {error.strerror}", hint="check the path") from None
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        _follow(process, log, kept)
    except BaseException:
        _end(process)
        raise
    return Outcome(exit_code=process.wait(), lines=tuple(kept))


def _follow(process: subprocess.Popen[str], log: Callable[[str], None], kept: deque[str]) -> None:
    """Take lines until the program ends. Children that outlive it, and hold its output open, are ended."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    while True:
        try:
            line = lines.get(timeout=LOOK_AGAIN_S)
        except queue.Empty:
            if process.poll() is not None:
                _signal(process, signal.SIGKILL)
            continue
        if line is None:
            break
        kept.append(line)
        log(line)
    reader.join()
    process.wait()


def _read(process: subprocess.Popen[str], lines: "queue.SimpleQueue[str | None]") -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            if line.strip():
                lines.put(line.rstrip())
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the group to end (a container's client passes that on), and after a while make it."""
    _signal(process, signal.SIGTERM)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # where all of them have ended
        os.killpg(process.pid, number)


def failure(outcome: Outcome) -> EdgeForgeError:
    """One sentence, with the line that tells most, and what to do."""
    line = telling_line(outcome.lines)
    if outcome.exit_code in KILLED:
        return OutOfResources(
            f"trtllm-build was killed, as the system does when memory runs out; its last words: {line}",
            hint="free main memory, add swap, or build on a machine with more",
        )
    for cause in _CAUSES:
        if any(cause.pattern.search(each) for each in outcome.lines[-60:]):
            told = next(each for each in reversed(outcome.lines) if cause.pattern.search(each))
            return cause.error(f"{cause.sentence}: {_bare(told)}", hint=cause.hint)
    how = f"signal {-outcome.exit_code}" if outcome.exit_code < 0 else f"exit code {outcome.exit_code}"
    return MissingDependency(f"trtllm-build failed with {how}: {line}", hint="its log above says more")


def telling_line(lines: Sequence[str]) -> str:
    """The last line that names an error, else the last."""
    useful = [line for line in lines if not _SAYS_NOTHING.search(line)] or list(lines)
    for tells in (_RAISED.search, lambda line: "[E]" in line):
        found = next((line for line in reversed(useful) if tells(line)), None)
        if found is not None:
            return _bare(found)
    return _bare(useful[-1]) if useful else "it said nothing"


def _bare(line: str) -> str:
    return _STAMP.sub("", line).strip()[:LONGEST_LINE]

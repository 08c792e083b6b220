"""Starts one warden and reads its answer."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeforge.validation.execution.outcome import STATUSES, Limits, Outcome
from edgeforge.validation.execution.places import interpreter

# Over the program's own seconds: the warden's start, its set-up, and the end of the tree.
GRACE_SECONDS = 45.0
END_SECONDS = 15.0
# The package `warden` under its own name, so that nothing else of ours is imported.
START = (
    "import sys, types; package = types.ModuleType('warden'); package.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['warden'] = package; from warden.main import main; main()"
)
WARDEN = Path(__file__).parent / "warden"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the program ended, and the layers that were in force around it."""

    outcome: Outcome
    layers: tuple[str, ...]


def launch(source: str, limits: Limits, layers: Collection[str], *, exact: bool) -> Answer:
    """Runs one program. `exact`: refuses to run it unless each of the layers holds; else takes those it can get.

    The calling thread must live until this returns: the kernel ends the warden with the thread that started it.
    """
    with _folder() as folder:
        warden = subprocess.Popen(
            _command(folder, limits, layers, exact=exact),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
        with warden:
            try:
                wait = limits.seconds + GRACE_SECONDS
                output, _ = warden.communicate(source.encode(errors="replace"), timeout=wait)
            except subprocess.TimeoutExpired:
                return Answer(outcome=Outcome(status="timed out", detail="its warden did not answer"), layers=())
            finally:
                _end(warden)
    return _read(output)


@contextmanager
def _folder() -> Iterator[str]:
    """An empty folder: the private root is mounted over it, or the program works in it where there is none."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="edgeforge-program-"))
    try:
        yield folder
    finally:
        # TemporaryDirectory's clean-up followed a program's symbolic links (CVE-2023-6597).
        shutil.rmtree(folder, ignore_errors=True)


def _end(warden: "subprocess.Popen[bytes]") -> None:
    """Asks it to end its tree first: without a PID namespace nobody else can."""
    if warden.poll() is not None:
        return
    warden.terminate()
    try:
        warden.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        warden.kill()


def _command(folder: str, limits: Limits, layers: Collection[str], *, exact: bool) -> list[str]:
    python = interpreter()
    request = [
        *(str(os.getpid()), folder, python.executable, python.library_path),
        *("\n".join(python.sources), ",".join(layers), "exact" if exact else "possible"),
        *(repr(limits.seconds), str(limits.cpu_seconds), str(limits.memory_bytes), str(limits.processes)),
        *(str(limits.file_bytes), str(limits.output_bytes)),
    ]
    return [python.executable, "-I", "-S", "-c", START, str(WARDEN), *request]


def _environment() -> dict[str, str]:
    path = interpreter().library_path
    return {"LD_LIBRARY_PATH": path} if path else {}


def _read(output: bytes) -> Answer:
    status, detail, names, *_ = [*output.decode(errors="replace").split("\n"), "", "", ""]
    for known in STATUSES:
        if status == known:
            return Answer(outcome=Outcome(status=known, detail=detail), layers=tuple(names.split(",")))
    return Answer(outcome=Outcome(status="killed", detail="its warden ended without an answer"), layers=())

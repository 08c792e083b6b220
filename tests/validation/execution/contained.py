"""Runs a hostile program in chosen layers, and looks for what it left behind."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from edgeforge.errors import MissingDependency
from edgeforge.validation.execution import Limits, Outcome, supervisor
from edgeforge.validation.execution.layers import PHRASES, layers_without

ROOT = Path(__file__).resolve().parents[3]
NAMESPACES = frozenset({"userns", "pid", "net", "ipc", "uts", "root"})
QUICK = Limits(seconds=4, cpu_seconds=3)


def run(source: str, limits: Limits = QUICK, *, without: Collection[str] = ()) -> Outcome:
    """The outcome. Fails the test where a process of the program lives on."""
    # An odd limit marks every process that descends from the program: nothing lifts it, and fork hands it on.
    marked = replace(limits, file_bytes=limits.file_bytes + secrets.randbelow(1 << 20))
    outcome = supervisor._run(source, marked, here(frozenset(without)))
    assert survivors(marked.file_bytes) == []
    return outcome


@cache
def here(without: frozenset[str]) -> tuple[str, ...]:
    """The layers of this system but for some; skips the test where it lacks others."""
    if sys.platform != "linux":
        pytest.skip("programs are contained on Linux only")
    try:
        layers = layers_without(without)
    except MissingDependency as error:
        pytest.skip(f"{error.message}")
    one_of = {"userns", "user"}
    missing = set(PHRASES) - without - one_of - set(layers)
    if missing:
        pytest.skip(f"this system lacks {', '.join(sorted(missing))}")
    return layers


def survivors(mark: int) -> list[str]:
    """The command lines of processes under a limit on file sizes of just this many bytes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"Max file size             {mark} " in (process / "limits").read_text():
                found.append((process / "cmdline").read_text()[-60:])
        except OSError:
            continue
    return found


def wait_until_gone(mark: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while survivors(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not survivors(mark)


def other_python() -> str:
    """An interpreter of this version's line that any user may run."""
    for python in (
        Path(sys.executable).resolve(),
        *Path("/usr/bin").glob("python3.[0-9]*"),
        Path("/usr/local/bin/python3"),
    ):
        if python.name.endswith("config") or not python.exists():
            continue
        command = [python, "-I", "-S", "-c", "import sys, ctypes, ssl; raise SystemExit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True).returncode == 0:
                return str(python)
        except OSError:
            continue
    pytest.skip("no Python 3.11 or later here that another user may run")


def as_user(user: int, script: str) -> str:
    """What a script prints that another user runs, with only `edgeforge.validation.execution` to import."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    path = (
        f"import sys, types; sys.path.insert(0, {str(ROOT)!r}); import edgeforge\n"
        "package = types.ModuleType('edgeforge.validation')\n"
        f"package.__path__ = [{str(ROOT / 'edgeforge' / 'validation')!r}]\n"
        "sys.modules['edgeforge.validation'] = package\n"
    )
    command = [other_python(), "-B", "-I", "-S", "-c", path + script]
    done = subprocess.run(
        command, user=user, group=user, extra_groups=[], capture_output=True, text=True, cwd="/", env={}, timeout=60
    )
    if "Permission denied" in done.stderr and str(ROOT) in done.stderr:
        pytest.skip("another user may not read the source tree")
    assert done.returncode == 0, done.stderr
    return done.stdout

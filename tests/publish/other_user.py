"""Another user of this machine, and Python environments that hold named packages and nothing else.

Nothing is fetched: packages are linked out of the environment that runs the tests, with all that they require.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

USER = 54_321  # as in a container: an account without a name, and without a group that anything belongs to
ASK = "import ssl, sys, sysconfig; print(sys.version, sysconfig.get_platform())"


@dataclass(frozen=True)
class OtherUser:
    """Who owns `home` and nothing else. `python` is an interpreter like ours that this user may run."""

    home: Path
    python: Path

    def run(self, *command: object, path: str = "") -> "subprocess.CompletedProcess[str]":
        return _run_as(command, self.home, {"PATH": f"{path}:/usr/bin:/bin", "HOME": str(self.home)})


def other_user(home: Path) -> OtherUser:
    """Skips the test where we may not become somebody else, or somebody else may not run a Python like ours."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    home.mkdir()
    os.chown(home, USER, USER)
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (Path(sys.executable).resolve(), Path("/usr/local/bin", name), Path("/usr/bin", name)):
        # A Python whose libraries this user may not read can start all the same, with those of another Python.
        answers = [_answer([python, "-I", "-c", ASK], who, home) for who in (0, USER)]
        if answers[0] is not None and answers[0] == answers[1]:
            return OtherUser(home=home, python=python)
    pytest.skip(f"no {name} here that another user may run")


def environment(folder: Path, python: Path, requirements: Sequence[Requirement]) -> Path:
    """A virtual environment in `folder` with what the requirements name and need; its site-packages."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True, capture_output=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for found in _closure(requirements):
        for file in found.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                _link(Path(str(found.locate_file(file))), site / file)
    return site


def needs(found: Distribution, extra: str = "") -> list[Requirement]:
    """What a distribution requires on this platform."""
    wanted = [Requirement(text) for text in found.requires or []]
    return [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": extra})]


def _closure(requirements: Sequence[Requirement]) -> Iterator[Distribution]:
    """Every distribution once."""
    waiting, seen = list(requirements), set()
    while waiting:
        wanted = waiting.pop()
        found, name = distribution(wanted.name), canonicalize_name(wanted.name)
        if (name, "") not in seen:
            yield found
        for extra in ("", *wanted.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += needs(found, extra)


def _link(source: Path, place: Path) -> None:
    """A link where one can be made and everybody may read it, else a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.stat().st_mode & 0o004:
            os.link(source, place)
            return
    except OSError:
        pass
    shutil.copyfile(source, place)


def _run_as(command: Sequence[object], cwd: Path, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env=environment,
        user=USER,
        group=USER,
        extra_groups=[],
    )


def _answer(command: Sequence[object], user: int, cwd: Path) -> str | None:
    """What a program prints, None where it does not run."""
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=True, cwd=cwd, user=user, env={}
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout

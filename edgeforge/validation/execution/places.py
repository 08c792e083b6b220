"""Which files a bare interpreter needs, and nothing of the user's besides."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """An executable, what it reads (no path beneath another), and its libraries' search path, mostly empty."""

    executable: str
    sources: tuple[str, ...]
    library_path: str


@cache
def interpreter() -> Interpreter:
    """The interpreter that runs us, or the one that its virtual environment was made of."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    library_path = _library_path()
    folders = [
        executable,
        os.path.dirname(os.path.realpath(os.__file__)),
        os.path.join(sys.base_prefix, sys.platlibdir),
        os.path.join(sys.base_prefix, "lib"),
        os.path.join(sys.base_exec_prefix, sys.platlibdir),
        *(path for path in sys.path if path.endswith(".zip")),
        *library_path,
        *SYSTEM_LIBRARIES,
    ]
    return Interpreter(executable=executable, sources=outermost(folders), library_path=":".join(library_path))


def _library_path() -> list[str]:
    """The folders of LD_LIBRARY_PATH in which a libpython lies: some installations of Python are found no other way."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return [f for f in folders if os.path.isdir(f) and any(n.startswith("libpython") for n in os.listdir(f))]


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths that exist and lie beneath no other; of symbolic links both the link and what it names."""
    links = {path for path in paths if os.path.islink(path)}
    real = sorted({os.path.realpath(path) for path in paths if os.path.exists(path)})
    kept: list[str] = []
    for path in real:
        if not any(path == parent or path.startswith(parent.rstrip("/") + "/") for parent in kept):
            kept.append(path)
    # A link within a folder that is there already comes with it.
    outside = [link for link in sorted(links) if not any(link.startswith(parent.rstrip("/") + "/") for parent in kept)]
    return (*kept, *outside)

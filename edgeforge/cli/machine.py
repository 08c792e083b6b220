"""The machine: processor, memory, disk, packages, tools. Reads files and metadata, imports nothing heavy."""

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeforge.runtime.choice import installed_version as installed_version
from edgeforge.runtime.requirements import numbers

TOOL_SECONDS = 10
# Instruction sets that int8 kernels use, by the names Linux gives them.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    name: str
    architecture: str
    usable_threads: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`total_bytes` respects a container's limit."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program on the PATH. `version` None: its package could not be found."""

    name: str
    path: str
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One line of a package's dependencies: `numpy>=1.26; extra == "cpu"`."""

    name: str
    minimum: str | None
    extra: str | None


def cpu(root: Path = Path("/")) -> Cpu:
    """The processor as Linux tells it, or as Python does elsewhere."""
    text = _read(root / "proc/cpuinfo")
    name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cpu(
        name=name.group(1).strip() if name else platform.processor() or platform.machine(),
        architecture=platform.machine(),
        usable_threads=usable,
        features=tuple(feature for feature in FEATURES if feature in present),
    )


def memory(root: Path = Path("/")) -> Memory:
    """Installed and available memory in bytes; a cgroup limit below the installed memory wins."""
    text = _read(root / "proc/meminfo")
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    total = kib.get("MemTotal", 0) * 1024
    if not total and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = kib.get("MemAvailable", total // 1024) * 1024
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        used = _read(root / "sys/fs/cgroup/memory.current").strip()
        total = int(limit)
        available = min(available, max(0, total - int(used or 0)))
    return Memory(total_bytes=total, available_bytes=available)


def disk_free_bytes(path: Path) -> int:
    """Free space where `path` is, or where it would be made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def tegra_model(root: Path = Path("/")) -> str | None:
    """A Jetson's model name, from its device tree."""
    text = _read(root / "proc/device-tree/model").strip("\0 \n")
    return text if "jetson" in text.lower() or "tegra" in text.lower() else None


def tool(name: str, package: str) -> Tool | None:
    """A program on the PATH and the version of the package it comes from; None where there is no such program.

    The package is looked up in the environment of the Python that the program names in its first line, since running
    the program itself imports what needs a GPU.
    """
    path = shutil.which(name)
    if path is None:
        return None
    with open(path, "rb") as file:
        first = file.readline(1000).decode(errors="replace")
    interpreter = first.removeprefix("#!").split() if first.startswith("#!") else []
    version = _version_in(interpreter[0], package) if interpreter and "python" in interpreter[0] else None
    return Tool(name=name, path=path, version=version)


def _version_in(interpreter: str, package: str) -> str | None:
    code = f"from importlib import metadata; print(metadata.version({package!r}))"
    try:
        done = subprocess.run(
            [interpreter, "-I", "-c", code], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def requirements_of(package: str) -> tuple[Requirement, ...]:
    """What the package's metadata asks for; nothing when it is not installed as a package."""
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return ()
    return tuple(requirement for requirement in map(parse_requirement, lines) if requirement is not None)


def parse_requirement(line: str) -> Requirement | None:
    """The name, lower bound and extra of a dependency line.

    >>> parse_requirement('onnxruntime>=1.23; extra == "cpu"')
    Requirement(name='onnxruntime', minimum='1.23', extra='cpu')
    """
    name = re.match(r"\s*([A-Za-z0-9._-]+)", line)
    if name is None:
        return None
    minimum = re.search(r">=\s*([0-9][\w.]*)", line.partition(";")[0])
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
    return Requirement(
        name=name.group(1),
        minimum=minimum.group(1) if minimum else None,
        extra=extra.group(1) if extra else None,
    )


def at_least(found: str, minimum: str | None) -> bool:
    """Whether version `found` reaches `minimum`, by their release numbers."""
    if minimum is None:
        return True
    return numbers(found) >= numbers(minimum)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

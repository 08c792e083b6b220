"""Before a bundle appears: its weight files have the bytes that were written, and are those of the plan."""

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgeforge import backends
from edgeforge.errors import IntegrityError
from edgeforge.model.placed_file import Extent
from edgeforge.pipeline.journal import read_entries
from edgeforge.planning import BuildPlan

BLOCK_BYTES = 1 << 20
BEHIND = 4
"""Extents that may be read and not yet compared."""


def checked_sha256(path: Path, extents: Sequence[Extent]) -> str:
    """SHA-256 of the file in hex, read once; meanwhile another core hashes `extents`, which are the file's own.

    IntegrityError where one does not have the bytes that were written.
    """
    digest, behind = hashlib.sha256(), deque[tuple[Extent, Future[str]]]()
    with ThreadPoolExecutor(1) as pool, path.open("rb", buffering=0) as file:
        for extent in sorted(extents, key=lambda extent: extent.offset):
            while gap := file.read(min(BLOCK_BYTES, max(0, extent.offset - file.tell()))):
                digest.update(gap)
            found = file.read(extent.size)
            behind.append((extent, pool.submit(_sha256, found)))
            digest.update(found)
            if len(behind) > BEHIND:
                _compare(path, *behind.popleft())
        while rest := file.read(BLOCK_BYTES):
            digest.update(rest)
        for extent, hashed in behind:
            _compare(path, extent, hashed)
    return digest.hexdigest()


def check_stored(plan: BuildPlan, model: Path) -> None:
    """The headers of the files in `model` name every tensor of the plan, in its type and shape; UnusableInput.

    ONNX's data has no header: its graphs are made of the same layout, and the file has its size.
    """
    if plan.target.backend != "onnx":
        backends.load_readable(plan.target.backend).read_back(plan, model)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _compare(path: Path, extent: Extent, found: Future[str]) -> None:
    if found.result() != extent.sha256:
        raise IntegrityError(
            f"{path.name}, bytes {extent.offset} to {extent.offset + extent.size - 1}, is not what was written there",
            hint="run the same command again, which does that part anew; the disk or the memory may be failing",
        )


def extents_by_file(journal: Path) -> dict[str, list[Extent]]:
    """Everything that the journal at this path tells of."""
    found: dict[str, list[Extent]] = {}
    for entry in read_entries(journal):
        for extent in entry.extents:
            found.setdefault(extent.file, []).append(extent)
    return found

"""The journal of a build: what was asked, and every finished piece with the hash of its bytes, one JSON line each.

    {"asked": {...}}
    {"piece": ["model.layers.0.mlp.up_proj.weight", 0, 256], "extents": [["model.onnx.data", 4096, 131072, "9f86..."]]}

A line is written once its bytes are, and both reach the disk in the background. Which comes first does not matter:
before a later process believes a line, it hashes the bytes again (`edgeforge.pipeline.resuming`). A line that a crash
or a full disk cut short is no JSON, and passed over.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgeforge.model.placed_file import Extent

SETTLED_BYTES = 256 << 20
"""What a power cut may cost, besides the work that was under way."""


class Piece(NamedTuple):
    """Rows [start, stop) of the checkpoint tensor `name`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A finished piece, and where its bytes lie."""

    piece: Piece
    extents: Sequence[Extent]

    @property
    def size_bytes(self) -> int:
        return sum(extent.size for extent in self.extents)


class Journal:
    """The open journal of one bundle whose weight files are in `folder`. Thread-safe.

    The file appears with its first line: where nothing was finished, nothing is left. A context manager; leaving it
    waits for the disk. OSError where that is full or broken.
    """

    def __init__(self, path: Path, folder: Path, asked: Mapping[str, object]) -> None:
        self._path = path
        self._folder = folder
        self._asked = asked
        self._descriptor: int | None = None
        self._rows = Counter[str]()
        self._files = set[str]()
        self._unsettled_bytes = 0
        self._lock = threading.Lock()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._settling: Future[None] | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._disk.shutdown()
            if self._settling is not None and error[0] is None:
                self._settling.result()
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)

    @property
    def path(self) -> Path:
        return self._path

    def rows_done(self, name: str) -> int:
        """Of the checkpoint tensor `name`."""
        return self._rows[name]

    def record(self, entry: Entry) -> None:
        """The entry's bytes are written."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = _begun(self._path, self._asked)
            _append(self._descriptor, _line(entry))
            self._count(entry)
            self._unsettled_bytes += entry.size_bytes
            if self._unsettled_bytes >= SETTLED_BYTES and (self._settling is None or self._settling.done()):
                self._settle_more(self._descriptor)

    def go_on(self, entries: Iterable[Entry]) -> None:
        """Begin with these, which are all that is still true of an older journal in the same place."""
        successor = self._path.with_name(f"{self._path.name}.new")
        descriptor = _begun(successor, self._asked)
        try:
            for entry in entries:
                _append(descriptor, _line(entry))
                self._count(entry)
            os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if not self._rows:
            os.close(descriptor)
            successor.unlink()
            self._path.unlink()
            return
        os.replace(successor, self._path)
        self._descriptor = descriptor

    def _count(self, entry: Entry) -> None:
        self._rows[entry.piece.name] += entry.piece.stop - entry.piece.start
        self._files.update(extent.file for extent in entry.extents)

    def _settle_more(self, descriptor: int) -> None:
        if self._settling is not None:
            self._settling.result()
        self._unsettled_bytes = 0
        self._settling = self._disk.submit(_settle, [self._folder / file for file in self._files], descriptor)


def read_asked(path: Path) -> Mapping[str, object] | None:
    """What the build was asked for whose journal is at `path`; None where there is none to go on with."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.readline())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    asked = found.get("asked") if isinstance(found, dict) else None
    return asked if isinstance(asked, dict) else None


def read_entries(path: Path) -> Iterator[Entry]:
    """Every line that is whole, as it comes."""
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
                if "piece" in found:
                    yield Entry(piece=_piece(*found["piece"]), extents=[_extent(*told) for told in found["extents"]])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue


def _piece(name: object, start: object, stop: object) -> Piece:
    """TypeError for what no journal says."""
    if not (isinstance(name, str) and isinstance(start, int) and isinstance(stop, int)):
        raise TypeError("a piece is a name and two rows")
    return Piece(name, start, stop)


def _extent(file: object, offset: object, size: object, sha256: object) -> Extent:
    """TypeError for what no journal says."""
    if not (isinstance(file, str) and isinstance(offset, int) and isinstance(size, int) and isinstance(sha256, str)):
        raise TypeError("an extent is a file, two numbers of bytes and a hash")
    return Extent(file=file, offset=offset, size=size, sha256=sha256)


def _begun(path: Path, asked: Mapping[str, object]) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
    _append(descriptor, json.dumps({"asked": asked}).encode() + b"\n")
    return descriptor


def _line(entry: Entry) -> bytes:
    extents = [(extent.file, extent.offset, extent.size, extent.sha256) for extent in entry.extents]
    return json.dumps({"piece": entry.piece, "extents": extents}, separators=(",", ":")).encode() + b"\n"


def _append(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def _settle(files: Sequence[Path], journal: int) -> None:
    """Wait until the bytes, and then the lines about them, are on the disk."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.fsync(journal)

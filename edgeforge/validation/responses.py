"""What a model answered, kept in a journal, so that an interrupted validation goes on where it stopped.

One folder per model, by a hash of its content: the reference's answers serve every target. A record is one line of
JSON, appended by one write and not rewritten; a line that a killed process left torn is skipped when read. Processes
append to one file, each under a lock for as long as its line takes.

lm-eval's own CachingLM was looked at: it, too, keys by content and can keep each answer as it comes. But its sqlite
file holds pickles, which makes a cache file a program; a second process that writes ends in "database is locked"; and
the rolling log-likelihoods of its own models arrive after all of them are computed.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeforge.errors import OutOfResources
from edgeforge.model.hub import cache_folder

Answer = list[float | bool] | float | str

FORMAT = 1  # of keys and answers


class Responses:
    """The answers of one model: known ones are read at the start, new ones kept as they come. A context manager."""

    def __init__(self, key: str, *, folder: Path | None = None) -> None:
        """`key`: a hash of everything that its answers depend on. `folder`: default the user's cache."""
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        self.path = (folder or cache_folder() / "validation" / "responses") / name / "answers.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._known: dict[str, Answer] = {}
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, kind: str, arguments: Sequence[object]) -> Answer | None:
        """The answer to a request, where it is known. `arguments` are the request's own, of JSON's types."""
        return self._known.get(_key(kind, arguments))

    def add(self, kind: str, arguments: Sequence[object], answer: Answer) -> None:
        """Keep an answer. OutOfResources where the disk is full."""
        key = _key(kind, arguments)
        if key in self._known:
            return
        self._known[key] = answer
        line = json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n"
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._append(line.encode())
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise OutOfResources(
                f"answers cannot be kept in {self.path}: {error.strerror}",
                hint="free some space; the answers until now are kept",
            ) from None

    def _append(self, line: bytes) -> None:
        """After what another process left torn, begin a line of its own."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[os.write(self._file, line) :]

    def _read(self) -> None:
        for line in self.path.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                key, answer = record["key"], record["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(key, str) and isinstance(answer, (list, float, int, str)):
                self._known[key] = answer


def _key(kind: str, arguments: Sequence[object]) -> str:
    text = json.dumps([FORMAT, kind, *arguments], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

"""What this machine remembers of its pushes: uploads that were cut off, and which repositories hold a blob.

Small files in EdgeForge's cache, of which any may be missing: then a blob is sent again, whole.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeforge.publish.reference import OciReference

MOST_HOLDERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """`folder` is made when something is written. Upload URLs may carry a permission, so that only the user reads
    them.
    """

    folder: Path

    def upload(self, reference: OciReference, digest: str) -> str | None:
        """Where the upload of a blob to the reference's repository goes on."""
        value = _read(self.upload_file(reference, digest)).get("location")
        return value if isinstance(value, str) else None

    @contextmanager
    def alone(self, reference: OciReference, digest: str) -> Iterator[int]:
        """One push at a time sends a blob to a repository; the open file that is locked. Whoever inherits it holds the
        lock as long.
        """
        path = self.upload_file(reference, digest).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock.fileno()

    def begin(self, reference: OciReference, digest: str, location: str) -> None:
        _write(self.upload_file(reference, digest), {"location": location})

    def end(self, reference: OciReference, digest: str) -> None:
        """The blob is there, or its upload is lost."""
        self.upload_file(reference, digest).unlink(missing_ok=True)

    def holders(self, reference: OciReference, digest: str) -> tuple[str, ...]:
        """Other repositories of the same registry that got the blob from this machine, the latest first."""
        names = _read(self._blob(reference, digest)).get("repositories")
        known = names if isinstance(names, list) else []
        return tuple(name for name in known if isinstance(name, str) and name != reference.name)

    def hold(self, reference: OciReference, digest: str) -> None:
        """The reference's repository has the blob."""
        names = [reference.name, *self.holders(reference, digest)][:MOST_HOLDERS]
        _write(self._blob(reference, digest), {"repositories": names})

    def upload_file(self, reference: OciReference, digest: str) -> Path:
        """The file that `begin` writes: an object with `location`."""
        return self.folder / "uploads" / f"{_key(reference.host, reference.name, digest)}.json"

    def _blob(self, reference: OciReference, digest: str) -> Path:
        return self.folder / "blobs" / f"{_key(reference.host, digest)}.json"


def _key(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:40]


def _read(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(path: Path, value: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(partial, path)

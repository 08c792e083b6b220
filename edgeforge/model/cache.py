"""What EdgeForge keeps between runs, below `cache_folder()`: each entry can be made or fetched again.

Only entries in this table are looked at: EDGEFORGE_CACHE may name a folder that holds other things too. Checkpoints of
the hub are the hub's own cache (`hf cache`).
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeforge.model.hub import alone, cache_folder

ENTRIES = {
    "demo": "the demo model, fetched from PyPI",
    "calibration": "the text that codes are chosen on, fetched from PyPI",
    "weighing": "what budgets learned of models, measured again when asked",
    "publish": "interrupted uploads, and which registry holds what",
    "validation": "originals to compare with, and models' answers, which a validation goes on from",
    "benchmarks": "models and figures of tests/benchmarks",
}
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One kind of thing in the cache. `age_days` counts from the newest file's last change."""

    name: str
    what: str
    path: Path
    files: int
    size_bytes: int
    age_days: float


def entries() -> tuple[Entry, ...]:
    """Everything that is there, in the table's order."""
    found = (_entry(name, what) for name, what in ENTRIES.items())
    return tuple(entry for entry in found if entry is not None)


def prune(names: Sequence[str], *, older_than_days: float = 0) -> tuple[Entry, ...]:
    """Remove the named entries that have not changed for so many days, and return them. A download that is under way
    is waited for. Links are removed, not followed.
    """
    doomed = [entry for entry in entries() if entry.name in names and entry.age_days >= older_than_days]
    for entry in doomed:
        with alone(entry.path):
            for path in entry.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
        # The lock stays where another process came in between, and so does what that one writes.
        (entry.path / ".lock").unlink(missing_ok=True)
        if not any(entry.path.iterdir()):
            entry.path.rmdir()
    return tuple(doomed)


def _entry(name: str, what: str) -> Entry | None:
    path = cache_folder() / name
    if not path.is_dir() or path.is_symlink():
        return None
    status = [Path(folder, file).lstat() for folder, _, files in os.walk(path) for file in files if file != ".lock"]
    if not status:
        return None
    return Entry(
        name=name,
        what=what,
        path=path,
        files=len(status),
        size_bytes=sum(each.st_size for each in status),
        age_days=max(0.0, (time.time() - max(each.st_mtime for each in status)) / SECONDS_PER_DAY),
    )

"""Where a bundle is built: a hidden folder beside its destination, which one process has, and the next goes on in.

.NAME.partial/lock       held while a process builds here; the kernel lets go of it when that ends, however it ends
.NAME.partial/journal    what is finished (`edgeforge.pipeline.journal`); without one, nothing is left to go on with
.NAME.partial/scales-*   measured scales of activations (`edgeforge.pipeline.scales_file`)
.NAME.partial/bundle/    the bundle to be, renamed to its destination when it is whole
.NAME.partial/replaced/  an older bundle, for the moment in which the new one takes its place
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeforge.bundle.publish import check_destination
from edgeforge.errors import UsageError

LOCK = "lock"
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})
"""Of file systems without locks, where nobody can be kept out."""
NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})
"""Of file systems that put names on the disk when they think fit."""
BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own
SYNCED_AT_ONCE = 8
"""The disk writes its own journal once for several files that are waited for together: 60 small ones took 0.12 s on
ext4, one after the other 0.5 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The hidden folder, while this process has it."""

    folder: Path
    destination: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def replaced(self) -> Path:
        return self.folder / "replaced"

    def clear(self) -> None:
        """Forget what is here. The journal goes first, so that nobody goes on with the half that a crash leaves."""
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.bundle, ignore_errors=True)

    def open_bundle(self, kept: Container[str]) -> None:
        """Make the bundle's folder and its model/. Where there is a journal, the files of model/ in `kept` stay, and
        nothing else: what comes around the weights is made again.
        """
        model = self.bundle / "model"
        if not self.journal.exists():
            self.clear()
        model.mkdir(parents=True, exist_ok=True)
        others = [path for path in self.bundle.iterdir() if path != model]
        for path in others + [path for path in model.iterdir() if path.name not in kept]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def publish(self, *, replace: bool) -> None:
        """Rename the bundle to its destination, once every byte of it is on the disk.

        With `replace` an older bundle makes room, and is removed afterwards. UsageError as `check_destination` raises.
        """
        _sync(self.bundle)
        check_destination(self.destination, replace=replace)
        if os.path.lexists(self.destination):
            os.rename(self.destination, self.replaced)
        try:
            os.rename(self.bundle, self.destination)
        finally:
            self.settle()
        _sync_file(self.destination.parent)
        self.clear()

    def settle(self) -> None:
        """An older bundle that had made room comes back where no other took its place, and is removed where one did."""
        if not self.replaced.exists():
            return
        if os.path.lexists(self.destination):
            shutil.rmtree(self.replaced, ignore_errors=True)
        else:
            os.rename(self.replaced, self.destination)


@contextmanager
def workplace(destination: Path) -> Iterator[Workplace]:
    """The folder of the bundle `destination`, for this process alone. Afterwards it stays where a journal and what it
    tells of are there to go on with.

    UsageError where another process has it.
    """
    place = _place(destination)
    descriptor = _locked(place)
    try:
        place.settle()
        try:
            yield place
        finally:
            place.settle()  # before all else: it may hold an older bundle
            if not (place.journal.exists() and place.bundle.exists()):
                shutil.rmtree(place.folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def unfinished_bytes(destination: Path) -> int:
    """What an unfinished build of the bundle takes of the disk already."""
    return sum(path.lstat().st_blocks * BLOCK_BYTES for path in _place(destination).bundle.rglob("*"))


def _place(destination: Path) -> Workplace:
    return Workplace(folder=destination.parent / f".{destination.name}.partial", destination=destination)


def _locked(place: Workplace) -> int:
    """The lock file's descriptor, which holds the lock until it is closed."""
    while True:
        place.folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(place.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # who had it has just finished, and took the folder away
        try:
            _lock(descriptor, place.destination)
            if os.path.samestat(os.fstat(descriptor), os.stat(place.folder / LOCK)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, destination: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another process is building {destination}", hint="wait for it, or name another folder with --out"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _sync(folder: Path) -> None:
    """Wait until all files under `folder`, and their names, are on the disk."""
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
        list(pool.map(_sync_file, (folder, *folder.rglob("*"))))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)

"""Where a bundle arrives: a hidden folder beside its destination, in which an interrupted pull goes on.

`.NAME.pull/blobs/` holds files under their SHA-256, some of them begun; `.NAME.pull/bundle/` is the bundle when all are
there. Only a bundle that was verified is renamed to its destination, and then the folder is gone.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeforge.errors import IntegrityError, OutOfResources, UsageError
from edgeforge.publish.artifact import Layer
from edgeforge.runtime.errors import BundleError, CorruptBundle
from edgeforge.runtime.integrity import SUMS_NAME, sha256_of, verify
from edgeforge.runtime.manifest import MANIFEST_NAME, Manifest, manifest_from_json, read_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """The hidden folder, while one process has it."""

    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def unsorted(self) -> Path:
        """Where a library puts files under their own names."""
        return self.folder / "files"

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256


@contextmanager
def arrival(destination: Path) -> Iterator[Arrival]:
    """The folder beside `destination`, alone. It stays behind only where there is something to go on with: not after
    an error that says the content itself is wrong.
    """
    folder = destination.parent / f".{destination.name}.pull"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another pull is writing to {destination}", hint="wait for it, or pull to another folder"
            ) from None
        shutil.rmtree(folder / "bundle", ignore_errors=True)
        wrong = done = False
        try:
            yield Arrival(folder=folder)
            done = True
        except (IntegrityError, CorruptBundle):
            wrong = True
            raise
        except KeyboardInterrupt as error:
            error.add_note(f"what arrived is kept beside {destination}, and the same command goes on there")
            raise
        finally:
            begun = any((folder / "blobs").iterdir()) or (folder / "files").exists()
            if done or wrong or not begun:
                shutil.rmtree(folder, ignore_errors=True)


def forget_others(room: Arrival, wanted: Iterable[str]) -> None:
    """What an older pull left, and this one has no use for."""
    keep = set(wanted)
    for file in (room.folder / "blobs").iterdir():
        if file.name not in keep:
            file.unlink()


def older_files(destination: Path) -> Mapping[str, Path]:
    """SHA-256 -> file of the bundle at `destination`, by its manifest's word; nothing where there is none."""
    try:
        manifest = read_manifest(destination)
    except (BundleError, OSError):
        return {}
    return {record.sha256: destination / path for path, record in manifest.files.items()}


def reuse(old: Path, new: Path, sha256: str) -> bool:
    """Whether `new` now has the content of `old`, which is that of `sha256`. A link where links can be made: both
    bundles are on one disk, and the old one goes away.
    """
    if old.is_symlink() or not old.is_file():
        return False
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
    if sha256_of(new) == sha256:
        return True
    new.unlink()
    return False


def check_room(room: Arrival, layers: Sequence[Layer], elsewhere: Iterable[str]) -> None:
    """`check_free` for what is neither here in part nor in the files whose SHA-256 are `elsewhere`."""
    known = set(elsewhere)
    missing = {layer.blob.sha256: layer.blob.size for layer in layers if layer.blob.sha256 not in known}
    there = sum(min(file.stat().st_size, missing.get(file.name, 0)) for file in (room.folder / "blobs").iterdir())
    check_free(room, sum(missing.values()) - there)


def check_free(room: Arrival, needed: int) -> None:
    """OutOfResources before the first byte, where the disk cannot hold what is still to come."""
    free = shutil.disk_usage(room.folder).free
    if needed > free:
        raise OutOfResources(
            f"the bundle needs {needed / 1e6:,.0f} MB, and the disk of {room.folder.parent} has {free / 1e6:,.0f} MB"
            " free",
            hint="free some space, or pull to another disk",
        )


def check_layers(manifest_json: object, layers: Sequence[Layer]) -> Manifest:
    """The bundle's manifest agrees with the artifact's layers, file by file; IntegrityError names what does not."""
    manifest = manifest_from_json(manifest_json)
    have = {layer.path: layer.blob for layer in layers}
    for path, record in manifest.files.items():
        blob = have.get(path)
        if blob is None:
            raise IntegrityError(f"{path} is missing in the artifact", hint="publish the bundle again")
        if (blob.sha256, blob.size) != (record.sha256, record.size):
            raise IntegrityError(
                f"{path} in the artifact is not the file that {MANIFEST_NAME} lists", hint="publish the bundle again"
            )
    return manifest


def assemble(room: Arrival, layers: Sequence[Layer]) -> Path:
    """Put every blob in its place, and check the folder as a bundle. Every hash was taken while the bytes arrived, so
    that the large ones are not read again.
    """
    placed: dict[str, Path] = {}
    for layer in layers:
        file = room.bundle / layer.path
        file.parent.mkdir(parents=True, exist_ok=True)
        twin = placed.get(layer.blob.sha256)
        if twin is None:
            os.replace(room.blob(layer.blob.sha256), file)
            placed[layer.blob.sha256] = file
        else:
            shutil.copyfile(twin, file)
    verify(room.bundle, "quick")
    digests = {layer.path: layer.blob.sha256 for layer in layers}
    for line in (room.bundle / SUMS_NAME).read_text(encoding="utf-8").splitlines():
        sha256, _, path = line.partition("  ")
        if digests.get(path) != sha256:
            raise IntegrityError(f"{path} is not the file that {SUMS_NAME} lists", hint="publish the bundle again")
    return room.bundle

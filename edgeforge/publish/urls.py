"""Bundles in folders that fsspec opens: `file://`, and whatever its packages add (`s3://`, `gs://`, `sftp://`...).

manifest.json makes a folder a bundle. So it goes first when a bundle there is changed, and comes last when it is
complete: nothing half-written looks whole, even where a folder cannot be renamed.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.bundle import publish_directory, staging_directory
from edgeforge.errors import IntegrityError, MissingDependency, UnusableInput, UsageError
from edgeforge.publish.arrival import check_layers
from edgeforge.publish.artifact import DOCUMENT_TYPE, Descriptor, Layer, target_name
from edgeforge.publish.download import Arriving, wrong_digest, wrong_size
from edgeforge.publish.outcome import Pulled, Pushed, Verified
from edgeforge.publish.pull import Check, Progress, land
from edgeforge.publish.reference import UrlReference
from edgeforge.runtime.errors import BundleError
from edgeforge.runtime.integrity import BLOCK_BYTES, SUMS_NAME, sha256_of, tree
from edgeforge.runtime.manifest import MANIFEST_NAME, is_safe_path, manifest_from_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def push_to_url(reference: UrlReference, bundle: Verified, *, progress: Progress) -> Pushed:
    """The folder holds the bundle and nothing else afterwards. A file that the bundle there has is not sent again."""
    system, root = _open(reference)
    files = tree(bundle.folder)
    if _is_local(system):
        sent = _copy(Path(root), bundle.folder, sum(files.values()), progress)
    else:
        sent = _send(system, root, bundle, files, progress)
    return Pushed(
        digest=f"sha256:{sha256_of(bundle.folder / SUMS_NAME)}",
        targets=(target_name(bundle.manifest),),
        files=len(files),
        size_bytes=sum(files.values()),
        sent_bytes=sent,
        present_bytes=sum(files.values()) - sent,
        mounted_bytes=0,
    )


def pull_from_url(reference: UrlReference, destination: Path, *, check: Check, progress: Progress) -> Pulled:
    """The bundle in the folder is at `destination` afterwards, or nothing has changed."""
    system, root = _open(reference)
    sizes = _listed(system, root, reference)
    contents = {path: system.cat_file(f"{root}/{path}") for path in (MANIFEST_NAME, SUMS_NAME)}
    sums = _sums(contents[SUMS_NAME])
    for path in sizes:
        if path not in sums:  # the sums themselves, and a signature made after them
            content = contents.get(path) or system.cat_file(f"{root}/{path}")
            sums[path] = hashlib.sha256(content).hexdigest()
    layers = tuple(_layer(path, sums, sizes) for path in sorted(sums))
    manifest = check_layers(_json(contents[MANIFEST_NAME]), layers)

    def fetch(layer: Layer, file: Path, received: Callable[[int], None]) -> int:
        return _fetch(system, f"{root}/{layer.path}", layer, file, received)

    counts = land(destination, layers, fetch, check=check, progress=progress)
    return Pulled(
        digest=f"sha256:{sums[SUMS_NAME]}",
        target=target_name(manifest),
        files=len(layers),
        size_bytes=sum(sizes.values()),
        received_bytes=counts.received,
        resumed_bytes=counts.resumed,
        reused_bytes=counts.reused,
    )


def _open(reference: UrlReference) -> "tuple[AbstractFileSystem, str]":
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(reference.url)
    except ImportError as error:
        raise MissingDependency(f"{reference} needs another package: {error}", hint="pip install it") from None
    except ValueError as error:
        raise UsageError(
            f"{reference} cannot be opened: {error}", hint="give oci://, hf:// or a URL of fsspec"
        ) from None
    return system, str(root).rstrip("/")


def _is_local(system: "AbstractFileSystem") -> bool:
    return "file" in ([system.protocol] if isinstance(system.protocol, str) else list(system.protocol))


def _copy(destination: Path, bundle: Path, total: int, progress: Progress) -> int:
    """On this machine a folder can be renamed."""
    with staging_directory(destination) as staging:
        shutil.copytree(bundle, staging / "bundle")
        progress(total, total)
        publish_directory(staging / "bundle", destination, replace=True)
    return total


def _send(
    system: "AbstractFileSystem", root: str, bundle: Verified, files: Mapping[str, int], progress: Progress
) -> int:
    there = _records(system, root)
    own = {path: record.sha256 for path, record in bundle.manifest.files.items()}
    if system.exists(f"{root}/{MANIFEST_NAME}"):
        system.rm_file(f"{root}/{MANIFEST_NAME}")
    system.makedirs(root, exist_ok=True)
    total, done, sent = sum(files.values()), 0, 0
    for path, size in files.items():
        if path == MANIFEST_NAME:
            continue
        if path not in own or there.get(path) != own[path]:
            system.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(bundle.folder / path), f"{root}/{path}")
            sent += size
        done += size
        progress(done, total)
    for path in set(_found(system, root)) - set(files):
        system.rm_file(f"{root}/{path}")
    system.put_file(str(bundle.folder / MANIFEST_NAME), f"{root}/{MANIFEST_NAME}")
    progress(total, total)
    return sent + files[MANIFEST_NAME]


def _records(system: "AbstractFileSystem", root: str) -> dict[str, str]:
    """Path -> SHA-256 of the bundle in the folder, by its own word; nothing where there is none."""
    try:
        manifest = manifest_from_json(json.loads(system.cat_file(f"{root}/{MANIFEST_NAME}")))
    except (OSError, ValueError, RecursionError, BundleError):
        return {}
    sizes = _found(system, root)
    return {path: record.sha256 for path, record in manifest.files.items() if sizes.get(path) == record.size}


def _found(system: "AbstractFileSystem", root: str) -> dict[str, int]:
    """Relative path -> size of every file in the folder."""
    entries = system.find(root, detail=True)
    return {str(name)[len(root) :].lstrip("/"): int(entry["size"]) for name, entry in entries.items()}


def _listed(system: "AbstractFileSystem", root: str, reference: UrlReference) -> dict[str, int]:
    """`_found`, of what must be a bundle."""
    try:
        sizes = _found(system, root)
    except OSError as error:
        raise UnusableInput(f"{reference} cannot be read: {error}", hint="check the URL, and who may read it") from None
    for name in (MANIFEST_NAME, SUMS_NAME):
        if name not in sizes:
            raise UnusableInput(f"{reference} is no bundle: it has no {name}", hint="`edgeforge publish` makes one")
    for path in sizes:
        if not is_safe_path(path):
            raise IntegrityError(f"{reference} has a file {path!r}, which leads out of its folder")
    return sizes


def _sums(content: bytes) -> dict[str, str]:
    """Path -> SHA-256, by SHA256SUMS. Its form is checked when the bundle is."""
    lines = content.decode("utf-8", errors="replace").splitlines()
    return {path: sha256 for sha256, _, path in (line.partition("  ") for line in lines) if path}


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{MANIFEST_NAME} is not JSON", hint="publish the bundle again") from None


def _layer(path: str, sums: Mapping[str, str], sizes: Mapping[str, int]) -> Layer:
    if path not in sizes:
        raise IntegrityError(f"{path} is missing, {SUMS_NAME} lists it", hint="publish the bundle again")
    if not re.fullmatch("[0-9a-f]{64}", sums[path]):
        raise IntegrityError(f"{SUMS_NAME} has no SHA-256 for {path}", hint="publish the bundle again")
    return Layer(path=path, blob=Descriptor(media_type=DOCUMENT_TYPE, digest=f"sha256:{sums[path]}", size=sizes[path]))


def _fetch(system: "AbstractFileSystem", url: str, layer: Layer, file: Path, received: Callable[[int], None]) -> int:
    """The file is whole afterwards, and right; what it held before is its beginning, or it is fetched anew."""
    arriving = Arriving(file, layer.blob)
    kept = arriving.size
    for start in (kept, 0):
        if start == 0:
            arriving.restart()
        with system.open(url, "rb") as source, arriving.filling() as take:
            source.seek(start)
            while block := source.read(BLOCK_BYTES):
                take(block)
                received(len(block))
        if arriving.size != layer.blob.size:
            file.unlink()
            raise wrong_size(layer.path, arriving.size, layer.blob)
        if arriving.digest.hexdigest() == layer.blob.sha256:
            return start
    file.unlink()
    raise wrong_digest(layer.path)

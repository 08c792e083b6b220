"""A bundle out of a registry: the manifest, what is missing of its files, and a rename when all of it is proven."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeforge.bundle import publish_directory
from edgeforge.errors import IntegrityError, UnusableInput
from edgeforge.publish.arrival import (
    Arrival,
    arrival,
    assemble,
    check_layers,
    check_room,
    forget_others,
    older_files,
    reuse,
)
from edgeforge.publish.artifact import INDEX_TYPE, Layer, layers_from, target_name
from edgeforge.publish.download import fetch_blob, fetch_bytes
from edgeforge.publish.index import variants_from
from edgeforge.publish.manifests import Fetched, fetch_manifest
from edgeforge.publish.outcome import Pulled
from edgeforge.publish.registry import Registry
from edgeforge.publish.together import GoOn, together
from edgeforge.runtime.manifest import MANIFEST_NAME, Manifest, manifest_from_json

FILES_AT_ONCE = 4

Progress = Callable[[int, int], None]
Check = Callable[[Path], None]
# Manifests by target -> the target that this machine runs; raises where there is none.
Choose = Callable[[Mapping[str, Manifest]], str]
# (layer, file, count bytes that came) -> bytes of the layer that were in the file before; all are there afterwards.
Fetch = Callable[[Layer, Path, Callable[[int], None]], int]


def pull(
    registry: Registry,
    destination: Path,
    *,
    platform: str | None,
    choose: Choose,
    check: Check,
    progress: Progress,
) -> Pulled:
    """The bundle is at `destination` afterwards, in the place of the one that was there; or nothing has changed.

    `platform` names the target to take from an index; without it, `choose` decides. `check` sees the complete bundle
    before it is in place, and refuses it by raising.
    """
    found = _chosen(registry, platform, choose)
    layers = layers_from(found.content)
    manifest = check_layers(_manifest_json(registry, layers), layers)
    if platform is not None and target_name(manifest) != platform:
        raise _no_such(registry, platform, [target_name(manifest)])

    def fetch(layer: Layer, file: Path, received: Callable[[int], None]) -> int:
        return fetch_blob(registry, layer.blob, file, name=layer.path, received=received)

    counts = land(destination, layers, fetch, check=check, progress=progress, at_once=FILES_AT_ONCE)
    return Pulled(
        digest=found.digest,
        target=target_name(manifest),
        files=len(layers),
        size_bytes=sum(layer.blob.size for layer in layers),
        received_bytes=counts.received,
        resumed_bytes=counts.resumed,
        reused_bytes=counts.reused,
    )


@dataclass(slots=True, kw_only=True)
class Counts:
    """Bytes of a pull, by where they came from."""

    received: int = 0
    resumed: int = 0
    reused: int = 0


def land(
    destination: Path,
    layers: tuple[Layer, ...],
    fetch: Fetch,
    *,
    check: Check,
    progress: Progress,
    at_once: int = 1,
) -> Counts:
    """Fetch what is missing of the layers, put them together, prove the bundle, and rename it to `destination`.

    `at_once`: how many threads may be in `fetch`.
    """
    with arrival(destination) as room:
        counts = _receive(fetch, room, layers, older_files(destination), progress, at_once)
        bundle = assemble(room, layers)
        check(bundle)
        publish_directory(bundle, destination, replace=True)
    return counts


def _chosen(registry: Registry, platform: str | None, choose: Choose) -> Fetched:
    """The manifest of one bundle: the only one under the reference, or a variant of the index that is there."""
    found = fetch_manifest(registry, registry.reference.place)
    if found.media_type != INDEX_TYPE:
        return found
    variants = {variant.target: variant.descriptor.digest for variant in variants_from(found.content)}
    if platform is not None and platform not in variants:
        raise _no_such(registry, platform, list(variants))
    if platform is None:
        fetched = {target: fetch_manifest(registry, digest) for target, digest in variants.items()}
        layers = {target: layers_from(one.content) for target, one in fetched.items()}
        manifests = {target: manifest_from_json(_manifest_json(registry, each)) for target, each in layers.items()}
        return fetched[choose(manifests)]
    return fetch_manifest(registry, variants[platform])


def _no_such(registry: Registry, platform: str, there: list[str]) -> UnusableInput:
    return UnusableInput(
        f"{registry.reference} has nothing for {platform}", hint=f"it has {', '.join(sorted(there))}: name one of them"
    )


def _manifest_json(registry: Registry, layers: tuple[Layer, ...]) -> object:
    for layer in layers:
        if layer.path == MANIFEST_NAME:
            try:
                return json.loads(fetch_bytes(registry, layer.blob, name=MANIFEST_NAME))
            except (ValueError, RecursionError):
                raise IntegrityError(f"{MANIFEST_NAME} is not JSON", hint="publish the bundle again") from None
    raise UnusableInput(
        f"{registry.reference} is an OCI artifact, and no bundle: it has no {MANIFEST_NAME}",
        hint="`edgeforge publish` makes one that is",
    )


def _receive(
    fetch: Fetch,
    room: Arrival,
    layers: tuple[Layer, ...],
    older: Mapping[str, Path],
    progress: Progress,
    at_once: int,
) -> Counts:
    """Every blob is in the room afterwards, the large ones begun first."""
    blobs = {layer.blob.sha256: layer for layer in layers}
    forget_others(room, blobs)
    check_room(room, layers, older)
    total, done = sum(layer.blob.size for layer in blobs.values()), 0
    counts, alone = Counts(), threading.Lock()

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    def obtain(layer: Layer, go_on: GoOn) -> None:
        def receive(count: int) -> None:
            go_on()
            with alone:
                counts.received += count
                tell(count)

        there = fetch(layer, room.blob(layer.blob.sha256), receive)
        with alone:
            counts.resumed += there
            tell(there)

    missing = []
    for sha256, layer in blobs.items():
        file = room.blob(sha256)
        if sha256 in older and not file.exists() and reuse(older[sha256], file, sha256):
            counts.reused += layer.blob.size
            tell(layer.blob.size)
        else:
            missing.append(layer)
    missing.sort(key=lambda layer: layer.blob.size, reverse=True)
    together(obtain, missing, at_once=at_once)
    return counts

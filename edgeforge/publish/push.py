"""Bundles into a registry: every file that is not there yet, then the manifest that names them.

One bundle becomes an OCI manifest, several become an OCI image index over theirs. Until the last request the tag
stays what it was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeforge.errors import IntegrityError
from edgeforge.publish.artifact import (
    CONFIG_TYPE,
    INDEX_TYPE,
    Artifact,
    Descriptor,
    artifact_of,
    digest_of,
    target_name,
)
from edgeforge.publish.index import Variant, index_of, read_variants, variant_of
from edgeforge.publish.journal import Journal
from edgeforge.publish.outcome import Pushed, Verified
from edgeforge.publish.registry import Registry
from edgeforge.publish.upload import CHUNK_BYTES, Push, Source, push_blob

Progress = Callable[[int, int], None]


def push(
    registry: Registry,
    bundles: Sequence[Verified],
    journal: Journal,
    *,
    add: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    progress: Progress = lambda done, total: None,
) -> Pushed:
    """The bundles are under the registry's reference afterwards; with `add`, beside those of other targets there."""
    before = read_variants(registry) if add else ()
    artifacts = [artifact_of(bundle.folder, bundle.manifest) for bundle in bundles]
    blobs = _blobs(bundles, artifacts)
    meter = _Meter(total=sum(blob.size for blob in blobs), progress=progress)
    pushing = Push(registry=registry, journal=journal, chunk_bytes=chunk_bytes, sent=meter.send)
    sizes = {"present": 0, "mounted": 0, "sent": 0}
    for blob, source in blobs.items():
        sizes[push_blob(pushing, blob, source)] += blob.size
        meter.finish(blob.size)
    if len(artifacts) == 1 and not add:
        digest, targets = artifacts[0].descriptor.digest, [target_name(bundles[0].manifest)]
        put_manifest(registry, registry.reference.tag, artifacts[0].descriptor, artifacts[0].manifest)
    else:
        digest, targets = _push_index(registry, bundles, artifacts, before)
    return Pushed(
        digest=digest,
        targets=tuple(targets),
        files=sum(len(artifact.layers) for artifact in artifacts),
        size_bytes=meter.total,
        sent_bytes=meter.sent,
        present_bytes=sizes["present"],
        mounted_bytes=sizes["mounted"],
    )


def put_manifest(registry: Registry, place: str, descriptor: Descriptor, content: bytes) -> None:
    """Store a manifest or index under a tag or its digest (distribution-spec, "Pushing Manifests")."""
    response = registry.request(
        "PUT",
        registry.url(f"manifests/{place}"),
        expect=(201,),
        headers={"Content-Type": descriptor.media_type},
        body=content,
    )
    stored = response.headers.get("Docker-Content-Digest", descriptor.digest)
    if stored != descriptor.digest:
        raise IntegrityError(f"{registry.host} stored another manifest than was sent", hint="publish the bundle again")


def _push_index(
    registry: Registry, bundles: Sequence[Verified], artifacts: Sequence[Artifact], before: Sequence[Variant]
) -> tuple[str, list[str]]:
    """The index's digest and its targets."""
    for artifact in artifacts:
        put_manifest(registry, artifact.descriptor.digest, artifact.descriptor, artifact.manifest)
    own = [variant_of(artifact, bundle.manifest) for artifact, bundle in zip(artifacts, bundles, strict=True)]
    targets = {variant.target for variant in own}
    variants = (*(variant for variant in before if variant.target not in targets), *own)
    content = index_of(variants)
    descriptor = Descriptor(media_type=INDEX_TYPE, digest=digest_of(content), size=len(content))
    put_manifest(registry, registry.reference.tag, descriptor, content)
    return descriptor.digest, [variant.target for variant in variants]


def _blobs(bundles: Sequence[Verified], artifacts: Sequence[Artifact]) -> Mapping[Descriptor, Source]:
    """Every blob once, the small ones first: what is small is often all that changed."""
    blobs: dict[str, tuple[Descriptor, Source]] = {}
    for bundle, artifact in zip(bundles, artifacts, strict=True):
        config = Descriptor(media_type=CONFIG_TYPE, digest=digest_of(artifact.config), size=len(artifact.config))
        blobs[config.digest] = (config, Source(name="the artifact's config", content=artifact.config))
        for layer in artifact.layers:
            source = Source(name=layer.path, content=bundle.folder / layer.path)
            blobs.setdefault(layer.blob.digest, (layer.blob, source))
    return dict(sorted(blobs.values(), key=lambda pair: (pair[0].size, pair[0].digest)))


@dataclass(slots=True, kw_only=True)
class _Meter:
    """Counts what is done, and what of it went over the wire."""

    total: int
    progress: Progress
    done: int = 0
    sent: int = 0
    finished: int = 0

    def send(self, count: int) -> None:
        self.sent += count
        self.done = min(self.done + count, self.total)
        self.progress(self.done, self.total)

    def finish(self, size: int) -> None:
        self.finished += size
        self.done = self.finished
        self.progress(self.done, self.total)

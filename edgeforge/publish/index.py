"""Bundles of several targets under one reference: an OCI image index, one entry for each target.

OCI image-spec 1.1, image-index.md. `platform` is what container tools choose by, and is too coarse for GPUs; the
target's name is an annotation, and `edgeforge.runtime.variants` decides by each variant's own manifest.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeforge.errors import UnusableInput
from edgeforge.publish.artifact import (
    ARTIFACT_TYPE,
    INDEX_TYPE,
    MANIFEST_TYPE,
    TARGET,
    Artifact,
    Descriptor,
    Json,
    annotations_of,
    descriptor_from,
    document_of,
    target_name,
)
from edgeforge.publish.manifests import find_manifest
from edgeforge.publish.registry import Registry
from edgeforge.runtime.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One bundle of an index. `entry` is its place in the index, as it is written."""

    target: str
    descriptor: Descriptor
    entry: Json


def variant_of(artifact: Artifact, manifest: Manifest) -> Variant:
    platform = {"architecture": _architecture(manifest.profile), "os": "linux"}
    entry = {
        **artifact.descriptor.to_json(),
        "artifactType": ARTIFACT_TYPE,
        "platform": platform,
        "annotations": annotations_of(manifest),
    }
    return Variant(target=target_name(manifest), descriptor=artifact.descriptor, entry=entry)


def index_of(variants: Sequence[Variant]) -> bytes:
    """The index, the same bytes for the same variants in whatever order they came."""
    document = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "manifests": [variant.entry for variant in sorted(variants, key=lambda variant: variant.target)],
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def variants_from(content: bytes) -> tuple[Variant, ...]:
    """The bundles of an index; UnusableInput where it has none."""
    entries = document_of(content).get("manifests")
    found = []
    for entry in entries if isinstance(entries, list) else []:
        descriptor = descriptor_from(entry)
        annotations = entry.get("annotations")
        target = annotations.get(TARGET) if isinstance(annotations, dict) else None
        if descriptor.media_type == MANIFEST_TYPE and isinstance(target, str):
            found.append(Variant(target=target, descriptor=descriptor, entry=entry))
    if not found:
        raise UnusableInput("this is an OCI index, and none of bundles", hint="`edgeforge publish A B REF` makes one")
    return tuple(found)


def read_variants(registry: Registry) -> tuple[Variant, ...]:
    """Those of the index under the registry's reference; none where there is nothing yet.

    UnusableInput where there is a single bundle, which an index would hide.
    """
    found = find_manifest(registry, registry.reference.place)
    if found is None:
        return ()
    if found.media_type != INDEX_TYPE:
        raise UnusableInput(
            f"{registry.reference} is a single bundle, and nothing can be added to it",
            hint="publish all bundles together, or under another tag",
        )
    return variants_from(found.content)


def _architecture(profile: Mapping[str, object]) -> str:
    """GOARCH's word, as image-index.md asks for: boards and ARM processors are arm64, everything else amd64."""
    arm = profile.get("kind") == "soc" or "arm64" in str(profile.get("name"))
    return "arm64" if arm else "amd64"

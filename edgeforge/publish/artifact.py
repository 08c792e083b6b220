"""A bundle as an OCI artifact, and back: one layer for each file, described as the CNCF ModelPack specification asks.

Sources: OCI image-spec 1.1 (manifest.md, descriptor.md, image-index.md); modelpack/model-spec (docs/spec.md,
docs/config.md, specs-go/v1/mediatype.go, specs-go/v1/annotations.go). Files are neither packed nor compressed, so that
a file that two bundles share is one blob. Nothing tells the time: the same bundle gives the same digests.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeforge.errors import IntegrityError, UnusableInput
from edgeforge.runtime.integrity import sha256_of, tree
from edgeforge.runtime.manifest import GRAPH_BACKENDS, Manifest, is_safe_path

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
SETTINGS_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT_TYPE = "application/vnd.cncf.model.doc.v1.raw"
CODE_TYPE = "application/vnd.cncf.model.code.v1.raw"

FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
TARGET = "edgeforge.target"
BACKEND = "edgeforge.backend"

_TYPES = {
    "graph": WEIGHT_TYPE,
    "scoring_graph": WEIGHT_TYPE,
    "runtime_graph": WEIGHT_TYPE,
    "weights": WEIGHT_TYPE,
    "engine": WEIGHT_TYPE,
    "runtime": CODE_TYPE,
    "entry": CODE_TYPE,
    "script": CODE_TYPE,
    "tokenizer": SETTINGS_TYPE,
    "chat_template": SETTINGS_TYPE,
    "configuration": SETTINGS_TYPE,
}
LARGEST_MANIFEST_BYTES = 4 << 20  # distribution-spec, "Pushing Manifests": registries take at least this much

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What the image-spec calls so: a blob or manifest by digest (`sha256:...`) and size in bytes."""

    media_type: str
    digest: str
    size: int

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")

    def to_json(self) -> Json:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One file of a bundle: `path` is relative to it."""

    path: str
    blob: Descriptor

    def to_json(self) -> Json:
        return {**self.blob.to_json(), "annotations": {TITLE: self.path, FILEPATH: self.path}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A bundle's OCI manifest and config, as the bytes that are stored, and its layers."""

    layers: tuple[Layer, ...]
    config: bytes
    manifest: bytes
    descriptor: Descriptor


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def artifact_of(bundle: Path, manifest: Manifest) -> Artifact:
    """The artifact for a verified bundle. Files outside the manifest (sums, reports, signatures) are hashed here."""
    layers = tuple(_layer(bundle, manifest, path, size) for path, size in tree(bundle).items())
    config = _text(_config(manifest, layers))
    document: Json = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": Descriptor(media_type=CONFIG_TYPE, digest=digest_of(config), size=len(config)).to_json(),
        "layers": [layer.to_json() for layer in layers],
        "annotations": annotations_of(manifest),
    }
    content = _text(document)
    if len(content) > LARGEST_MANIFEST_BYTES:
        raise UnusableInput(f"{bundle} has too many files for a registry: {len(layers):,}", hint="publish it elsewhere")
    descriptor = Descriptor(media_type=MANIFEST_TYPE, digest=digest_of(content), size=len(content))
    return Artifact(layers=layers, config=config, manifest=content, descriptor=descriptor)


def annotations_of(manifest: Manifest) -> dict[str, str]:
    """What a registry's pages show of a bundle, and what tells variants apart."""
    return {
        TITLE: f"{model_name(manifest)} for {target_name(manifest)}",
        VERSION: manifest.edgeforge_version,
        TARGET: target_name(manifest),
        BACKEND: manifest.model.backend,
    }


def target_name(manifest: Manifest) -> str:
    return str(manifest.target.get("name") or manifest.profile.get("name") or "any")


def model_name(manifest: Manifest) -> str:
    return manifest.source.name or "model"


def layers_from(content: bytes) -> tuple[Layer, ...]:
    """The layers of an OCI manifest. Raises UnusableInput for what is no bundle, IntegrityError for a path that leads
    out of its folder.
    """
    document = document_of(content)
    entries = document.get("layers")
    if document.get("mediaType", MANIFEST_TYPE) != MANIFEST_TYPE or not isinstance(entries, list) or not entries:
        raise UnusableInput("this is an OCI artifact, and no bundle", hint="`edgeforge publish` makes one that is")
    layers = tuple(_layer_from(entry) for entry in entries)
    seen = set[str]()
    for layer in layers:
        if layer.path.casefold() in seen:
            raise IntegrityError(f"the artifact has {layer.path} twice", hint="publish the bundle again")
        seen.add(layer.path.casefold())
    return layers


def document_of(content: bytes) -> Json:
    """The JSON object of a manifest or index."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UnusableInput("the registry's manifest is not a JSON object", hint="is it an OCI registry?")
    return document


def descriptor_from(value: object) -> Descriptor:
    """UnusableInput unless it has a media type, a SHA-256 and a size."""
    entry: Mapping[str, object] = value if isinstance(value, dict) else {}
    media_type, digest, size = entry.get("mediaType"), entry.get("digest"), entry.get("size")
    if (
        not isinstance(media_type, str)
        or not isinstance(digest, str)
        or not isinstance(size, int)
        or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
        or size < 0
    ):
        raise UnusableInput("the artifact has an entry without type, SHA-256 or size", hint="publish the bundle again")
    return Descriptor(media_type=media_type, digest=digest, size=size)


def _layer_from(entry: object) -> Layer:
    blob = descriptor_from(entry)
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    names = annotations if isinstance(annotations, dict) else {}
    path = names.get(FILEPATH, names.get(TITLE))
    if not isinstance(path, str):
        raise UnusableInput("this is an OCI artifact, and no bundle: it has a layer without a path")
    if not is_safe_path(path):
        raise IntegrityError(
            f"the artifact has a file {path!r}, which leads out of its folder", hint="do not trust who published it"
        )
    return Layer(path=path, blob=blob)


def _layer(bundle: Path, manifest: Manifest, path: str, size: int) -> Layer:
    record = manifest.files.get(path)
    sha256 = sha256_of(bundle / path) if record is None else record.sha256
    default = SETTINGS_TYPE if path == "manifest.json" else DOCUMENT_TYPE
    media_type = default if record is None else _TYPES.get(record.role, DOCUMENT_TYPE)
    return Layer(path=path, blob=Descriptor(media_type=media_type, digest=f"sha256:{sha256}", size=size))


def _config(manifest: Manifest, layers: Sequence[Layer]) -> Json:
    """model-spec's docs/config.md; its schema (schema/config-schema.json) allows no other keys."""
    model, source = manifest.model, manifest.source
    descriptor = {
        "name": model_name(manifest),
        "version": manifest.edgeforge_version,
        "title": annotations_of(manifest)[TITLE],
        "family": "llama",
        **({"revision": source.revision} if source.revision else {}),
    }
    config = {
        "architecture": "transformer",
        "format": "onnx" if model.backend in GRAPH_BACKENDS else model.backend,
        "precision": model.activations,
        "quantization": str(manifest.target.get("scheme") or "none"),
    }
    digests = [layer.blob.digest for layer in layers]
    return {"descriptor": descriptor, "config": config, "modelfs": {"type": "layers", "diffIds": digests}}


def _text(document: Json) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

"""manifest.json: what a bundle is, which files it has, and what it needs. Read strictly, verified byte by byte.

The writer is `edgeforge.bundle`; the JSON Schema beside it (manifest.schema.json) says the same as the dataclasses
here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import CorruptBundle, UnusableBundle
from .fields import Fields

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
BACKENDS = ("onnx", "optimum")
PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """The checkpoint that the bundle was made from."""

    kind: str
    name: str | None
    revision: str | None
    precision: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecord:
    """generation_config.json's sampling fields; None where its authors did not say."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The files under model/ and the shape of the decoder, as far as running it needs to know.

    `backend` onnx: past and present share one buffer of `context_length` positions. optimum: present is a new, longer
    tensor. Paths are relative to the bundle. `weights` is None where the graph file holds them itself.
    """

    backend: str
    graph: str
    scoring_graph: str
    weights: str | None
    activations: str
    kv_cache: str
    context_length: int
    vocab_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    tokenizer: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    add_bos: bool
    generation: GenerationRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Python packages with their least versions (">=1.26"), and the onnxruntime execution provider."""

    packages: Mapping[str, str]
    provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Determinism:
    reproducible: bool
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """sha256 in hex, size in bytes, and what the file is for."""

    sha256: str
    size: int
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json. `target`, `profile` and `plan` are the toolchain's; the runtime carries them unread."""

    schema_version: int
    edgeforge_version: str
    target: Mapping[str, object]
    profile: Mapping[str, object]
    plan: Mapping[str, object]
    source: SourceRecord
    model: ModelRecord
    requirements: Requirements
    determinism: Determinism
    files: Mapping[str, FileRecord]


def read_manifest(bundle: Path) -> Manifest:
    """Read BUNDLE/manifest.json; UnusableBundle if there is none or a field is not as it must be."""
    path = bundle / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableBundle(
            f"{bundle} is not a bundle: it has no {MANIFEST_NAME}", hint="`edgeforge build` makes one"
        ) from None
    except UnicodeDecodeError:
        raise CorruptBundle(f"{MANIFEST_NAME} is not UTF-8 text", hint="copy the bundle again") from None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CorruptBundle(f"{MANIFEST_NAME} is not JSON: {error}", hint="copy the bundle again") from None
    return manifest_from_json(value)


def manifest_from_json(value: object) -> Manifest:
    """The exact inverse of `edgeforge.bundle.manifest_to_json`."""
    fields = Fields(value, file=MANIFEST_NAME)
    version = fields.take("schema_version", int)
    if version > SCHEMA_VERSION:
        raise UnusableBundle(
            f"the bundle's manifest has schema version {version}, and this runtime knows up to {SCHEMA_VERSION}",
            hint="update EdgeForge, or run the bundle with the runtime inside it: python BUNDLE",
        )
    if version < 1:
        raise fields.wrong("schema_version", "must be at least 1")
    manifest = Manifest(
        schema_version=version,
        edgeforge_version=fields.take("edgeforge_version", str),
        target=fields.mapping("target"),
        profile=fields.mapping("profile"),
        plan=fields.mapping("plan"),
        source=_source(fields.child("source")),
        model=_model(fields.child("model")),
        requirements=_requirements(fields.child("requirements")),
        determinism=_determinism(fields.child("determinism")),
        files=_files(fields.child("files")),
    )
    fields.close()
    _check_model_files(manifest)
    return manifest


def is_safe_path(path: str) -> bool:
    """Whether a manifest's path stays inside the bundle on every system: relative, `/` between plain names."""
    parts = path.split("/")
    return (
        all(part not in ("", ".", "..") for part in parts)
        and not any(character in '\\:*?"<>|' or ord(character) < 32 for character in path)
        and not PurePosixPath(path).is_absolute()
    )


def _source(fields: Fields) -> SourceRecord:
    record = SourceRecord(
        kind=fields.take("kind", str),
        name=fields.optional("name", str),
        revision=fields.optional("revision", str),
        precision=fields.take("precision", str),
        fingerprint=fields.take("fingerprint", str),
    )
    fields.close()
    return record


def _model(fields: Fields) -> ModelRecord:
    record = ModelRecord(
        backend=fields.take("backend", str),
        graph=fields.take("graph", str),
        scoring_graph=fields.take("scoring_graph", str),
        weights=fields.optional("weights", str),
        activations=fields.take("activations", str),
        kv_cache=fields.take("kv_cache", str),
        context_length=fields.count("context_length"),
        vocab_size=fields.count("vocab_size"),
        num_hidden_layers=fields.count("num_hidden_layers"),
        num_key_value_heads=fields.count("num_key_value_heads"),
        head_dim=fields.count("head_dim"),
        bos_token_id=fields.optional("bos_token_id", int),
        eos_token_ids=fields.integers("eos_token_ids"),
        tokenizer=fields.take("tokenizer", str),
        chat_template=fields.optional("chat_template", str),
        bos_token=fields.optional("bos_token", str),
        eos_token=fields.optional("eos_token", str),
        add_bos=fields.take("add_bos", bool),
        generation=_generation(fields.child("generation")),
    )
    fields.close()
    if record.backend not in BACKENDS:
        raise fields.wrong("backend", f"is {record.backend!r}; this runtime runs {' and '.join(BACKENDS)}")
    return record


def _generation(fields: Fields) -> GenerationRecord:
    record = GenerationRecord(
        do_sample=fields.optional("do_sample", bool),
        temperature=fields.optional("temperature", float),
        top_k=fields.optional("top_k", int),
        top_p=fields.optional("top_p", float),
        repetition_penalty=fields.optional("repetition_penalty", float),
    )
    fields.close()
    return record


def _requirements(fields: Fields) -> Requirements:
    record = Requirements(packages=fields.texts("packages"), provider=fields.take("provider", str))
    fields.close()
    for package, least in record.packages.items():
        if not re.fullmatch(r"(>=[0-9][0-9.]*)?", least):
            raise fields.wrong(f"packages.{package}", f"is {least!r}, not of the form >=1.2")
    if record.provider not in PROVIDERS:
        raise fields.wrong("provider", f"is {record.provider!r}; this runtime knows {' and '.join(PROVIDERS)}")
    return record


def _determinism(fields: Fields) -> Determinism:
    record = Determinism(reproducible=fields.take("reproducible", bool), note=fields.take("note", str))
    fields.close()
    return record


def _files(fields: Fields) -> Mapping[str, FileRecord]:
    files: dict[str, FileRecord] = {}
    for path in fields.names():
        if not is_safe_path(path):
            raise fields.wrong(repr(path), "is not a path inside the bundle")
        child = fields.child(path)
        record = FileRecord(
            sha256=child.take("sha256", str), size=child.take("size", int), role=child.take("role", str)
        )
        child.close()
        if len(record.sha256) != 64 or set(record.sha256) - set("0123456789abcdef"):
            raise child.wrong("sha256", "is not a SHA-256 in lower-case hex")
        if record.size < 0:
            raise child.wrong("size", "is negative")
        files[path] = record
    return files


def _check_model_files(manifest: Manifest) -> None:
    """Every file that the model names is one that the manifest vouches for."""
    model = manifest.model
    for field in ("graph", "scoring_graph", "weights", "tokenizer", "chat_template"):
        path: str | None = getattr(model, field)
        if path is not None and path not in manifest.files:
            raise UnusableBundle(f"{MANIFEST_NAME}: model.{field} is {path!r}, which `files` does not list")

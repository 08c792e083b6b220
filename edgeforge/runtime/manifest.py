"""manifest.json: what a bundle is, which files it has, and what it needs. Read strictly, verified byte by byte.

The dataclasses are in `records`; the writer is `edgeforge.bundle`, and the JSON Schema beside it (manifest.schema.json)
says the same as the reader here. `engine` came with the second kind of bundle: manifests without it stay readable, and
those of ONNX bundles are written without it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import cast, get_args

from .errors import CorruptBundle, UnusableBundle
from .fields import Fields
from .records import (
    Determinism,
    EngineName,
    EngineRecord,
    EngineState,
    FileRecord,
    GenerationRecord,
    Manifest,
    ModelRecord,
    Requirements,
    SourceRecord,
)

__all__ = [
    "BACKENDS",
    "BUILT_WITH",
    "ENGINE_BACKENDS",
    "GRAPH_BACKENDS",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Determinism",
    "EngineName",
    "EngineRecord",
    "EngineState",
    "FileRecord",
    "GenerationRecord",
    "Manifest",
    "ModelRecord",
    "Requirements",
    "SourceRecord",
    "is_safe_path",
    "manifest_from_json",
    "read_manifest",
]

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
GRAPH_BACKENDS = ("onnx", "optimum")
ENGINE_BACKENDS = ("modelopt", "compressed-tensors", "tensorrt-llm", "trtllm-engine")
BACKENDS = (*GRAPH_BACKENDS, *ENGINE_BACKENDS)
PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider")
BUILT_WITH = ("tensorrt_llm", "tensorrt", "cuda", "driver")


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
    except (ValueError, RecursionError) as error:
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
        engine=_engine(fields.optional_child("engine")),
    )
    fields.close()
    _check_kind(manifest, fields)
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
        graph=fields.optional("graph", str),
        scoring_graph=fields.optional("scoring_graph", str),
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
        runtime_graph=fields.optional("runtime_graph", str, required=False),
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
    record = Requirements(packages=fields.texts("packages"), provider=fields.optional("provider", str))
    fields.close()
    for package, least in record.packages.items():
        if not re.fullmatch(r"(>=[0-9][0-9.]*)?", least):
            raise fields.wrong(f"packages.{package}", f"is {least!r}, not of the form >=1.2")
    if record.provider not in (None, *PROVIDERS):
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
            raise CorruptBundle(
                f"{MANIFEST_NAME} lists {path!r}, which is not a path inside the bundle",
                hint="do not use the bundle, ask who published it",
            )
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


def _engine(fields: Fields | None) -> EngineRecord | None:
    if fields is None:
        return None
    record = EngineRecord(
        name=cast(EngineName, fields.word("name", get_args(EngineName))),
        tensor_parallel=fields.count("tensor_parallel"),
        pipeline_parallel=fields.count("pipeline_parallel"),
        compute_capability=fields.optional("compute_capability", str),
        state=cast(EngineState, fields.word("state", get_args(EngineState))),
        script=fields.optional("script", str),
        versions=fields.texts("versions"),
    )
    fields.close()
    capability = record.compute_capability
    if capability is not None and not re.fullmatch(r"[0-9]+\.[0-9]", capability):
        raise fields.wrong("compute_capability", f"is {capability!r}, not of the form 8.9")
    for name in record.versions:
        if name not in BUILT_WITH:
            raise fields.wrong(f"versions.{name}", f"is unknown; there are {', '.join(BUILT_WITH)}")
    built = record.name == "tensorrt" and record.state == "ready"
    if built and (capability is None or "tensorrt_llm" not in record.versions):
        # Nothing else says where such an engine may be loaded, and a wrong place ends in a crash.
        raise fields.wrong("versions", "must have tensorrt_llm, and compute_capability must be given: it is ready")
    return record


def _check_kind(manifest: Manifest, fields: Fields) -> None:
    """A graph has a provider and no engine; a checkpoint has an engine, and neither graph nor provider."""
    model, provider, engine = manifest.model, manifest.requirements.provider, manifest.engine
    graphs = {"model.graph": model.graph, "model.scoring_graph": model.scoring_graph, "requirements.provider": provider}
    for name, value in graphs.items():
        if (value is None) is (model.backend in GRAPH_BACKENDS):
            raise fields.wrong(name, f"{'is null' if value is None else 'is not null'}, with backend {model.backend}")
    if model.runtime_graph is not None and model.backend != "onnx":
        raise fields.wrong("model.runtime_graph", f"is not null, with backend {model.backend}")
    if (engine is None) is (model.backend in ENGINE_BACKENDS):
        what = "is missing" if engine is None else "is not null"
        raise fields.wrong("engine", f"{what}, with backend {model.backend}")


def _check_model_files(manifest: Manifest) -> None:
    """Every file that the model or the engine names is one that the manifest vouches for."""
    model = manifest.model
    paths = {
        "model.graph": model.graph,
        "model.scoring_graph": model.scoring_graph,
        "model.runtime_graph": model.runtime_graph,
        "model.weights": model.weights,
        "model.tokenizer": model.tokenizer,
        "model.chat_template": model.chat_template,
        "engine.script": manifest.engine and manifest.engine.script,
    }
    for name, path in paths.items():
        if path is not None and path not in manifest.files:
            raise UnusableBundle(f"{MANIFEST_NAME}: {name} is {path!r}, which `files` does not list")

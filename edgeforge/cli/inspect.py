"""`edgeforge inspect`: what a model or a bundle holds, from headers alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeforge.cli.options import json_option, revision_option

if TYPE_CHECKING:
    from edgeforge.model.architecture import LlamaArchitecture
    from edgeforge.model.checkpoint import Checkpoint, LazyTensor, Source
    from edgeforge.runtime.manifest import EngineRecord, Manifest, SourceRecord

# Weights per block and bytes per block of what a checkpoint stores; ggml's figures are from its ggml-common.h.
STORED = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DtypeSummary:
    """All tensors of one stored type; `stored_bytes` is None for a type whose layout is not in the table."""

    dtype: str
    tensors: int
    parameters: int
    stored_bytes: int | None


def stored_bytes(dtype: str, parameters: int) -> int | None:
    """Bytes that `parameters` weights take in the file."""
    layout = STORED.get(dtype)
    return None if layout is None else -(-parameters // layout[0]) * layout[1]


def by_dtype(tensors: Iterable["LazyTensor"]) -> tuple[DtypeSummary, ...]:
    """Summaries in order of size, largest first."""
    counts: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        number, parameters = counts.get(tensor.dtype, (0, 0))
        counts[tensor.dtype] = (number + 1, parameters + _product(tensor.shape))
    summaries = [
        DtypeSummary(dtype=dtype, tensors=number, parameters=parameters, stored_bytes=stored_bytes(dtype, parameters))
        for dtype, (number, parameters) in counts.items()
    ]
    return tuple(sorted(summaries, key=lambda summary: -summary.parameters))


@click.command()
@click.argument("path", metavar="PATH")
@revision_option
@click.option("--tensors", "every_tensor", is_flag=True, help="List every tensor (or every file of a bundle).")
@json_option
def inspect(path: str, revision: str | None, every_tensor: bool, as_json: bool) -> None:
    """Show what PATH holds: a bundle, a checkpoint folder, a .gguf file, a URL of either, a hub
    id, or `demo`.

    Reads headers and configuration only, never the weights.

    \b
    Examples:
      edgeforge inspect artifacts/demo-cpu
      edgeforge inspect model.gguf --tensors
      edgeforge inspect demo --json
    """
    from edgeforge.cli.console import emit_json

    if (Path(path) / "manifest.json").is_file():
        from edgeforge.runtime.manifest import read_manifest

        manifest = read_manifest(Path(path))
        if as_json:
            emit_json(bundle_document(path, manifest, every_tensor))
        else:
            click.echo(_render_bundle(path, manifest, every_tensor))
        return
    from edgeforge.model.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path, revision=revision)
    if as_json:
        emit_json(checkpoint_document(path, checkpoint, every_tensor))
    else:
        click.echo(_render_checkpoint(path, checkpoint, every_tensor))


def checkpoint_document(path: str, checkpoint: "Checkpoint", every_tensor: bool) -> dict[str, object]:
    """The JSON of a checkpoint."""
    from dataclasses import asdict

    from edgeforge.model.architecture import architecture_to_json

    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    document: dict[str, object] = {
        "kind": "checkpoint",
        "path": path,
        "source": asdict(checkpoint.source),
        "fingerprint": checkpoint.fingerprint,
        "architecture": architecture_to_json(checkpoint.architecture),
        "parameters": checkpoint.architecture.parameter_count,
        "dtypes": [asdict(summary) for summary in by_dtype(tensors)],
        "notices": sorted(checkpoint.notices),
    }
    if every_tensor:
        document["tensors"] = [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors]
    return document


def bundle_document(path: str, manifest: "Manifest", every_file: bool) -> dict[str, object]:
    """The JSON of a bundle: what its manifest says, and the sizes that follow from it."""
    from dataclasses import asdict

    architecture = _planned_architecture(manifest)
    document: dict[str, object] = {
        "kind": "bundle",
        "path": path,
        "edgeforge_version": manifest.edgeforge_version,
        "target": dict(manifest.target),
        "source": asdict(manifest.source),
        "architecture": manifest.plan.get("architecture"),
        "parameters": None if architecture is None else architecture.parameter_count,
        "model": asdict(manifest.model),
        "requirements": {**asdict(manifest.requirements), "packages": dict(manifest.requirements.packages)},
        "engine": None if manifest.engine is None else asdict(manifest.engine),
        "size_bytes": sum(record.size for record in manifest.files.values()),
        "size_bytes_by_role": size_by_role(manifest),
    }
    if every_file:
        document["files"] = {name: asdict(record) for name, record in manifest.files.items()}
    return document


def size_by_role(manifest: "Manifest") -> dict[str, int]:
    """Bytes of the bundle's files by their role, largest first."""
    sizes: dict[str, int] = {}
    for record in manifest.files.values():
        sizes[record.role] = sizes.get(record.role, 0) + record.size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def architecture_fields(architecture: "LlamaArchitecture") -> list[tuple[str, str]]:
    """The architecture as a reader of config.json would tell it."""
    a = architecture
    rotary = a.rotary.kind if a.rotary.factor == 1.0 else f"{a.rotary.kind} x{a.rotary.factor:g}"
    return [
        ("parameters", f"{a.parameter_count:,}"),
        ("layers", f"{a.num_hidden_layers} of hidden size {a.hidden_size}, feed-forward {a.intermediate_size}"),
        ("attention", f"{a.num_attention_heads} heads, {a.num_key_value_heads} KV heads, head size {a.head_dim}"),
        ("vocabulary", f"{a.vocab_size:,}, {'tied' if a.tie_word_embeddings else 'untied'} embeddings"),
        ("positions", f"{a.max_position_embeddings:,}, rotary theta {a.rotary.theta:g}, {rotary}"),
    ]


def _render_checkpoint(path: str, checkpoint: "Checkpoint", every_tensor: bool) -> str:
    from edgeforge.cli.text import bytes_text, fields, table

    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    head = [("model", path), ("source", _origin(checkpoint.source)), ("fingerprint", checkpoint.fingerprint)]
    rows = [
        (s.dtype, str(s.tensors), f"{s.parameters:,}", "" if s.stored_bytes is None else bytes_text(s.stored_bytes))
        for s in by_dtype(tensors)
    ]
    parts = [
        fields([*head, *architecture_fields(checkpoint.architecture)], indent=0),
        table(("Stored as", "Tensors", "Parameters", "Size"), rows, right=frozenset({1, 2, 3})),
    ]
    if every_tensor:
        listing = [(t.name, t.dtype, " x ".join(map(str, t.shape))) for t in tensors]
        parts.append(table(("Tensor", "Stored as", "Shape"), listing))
    return "\n\n".join(parts)


def _render_bundle(path: str, manifest: "Manifest", every_file: bool) -> str:
    from edgeforge.cli.text import bytes_text, fields, table

    source, model, target = manifest.source, manifest.model, manifest.target
    packages = ", ".join(f"{name}{least}" for name, least in manifest.requirements.packages.items())
    pairs = [
        ("bundle", f"{path}, built by EdgeForge {manifest.edgeforge_version}"),
        ("target", f"{target.get('name')}: {target.get('description', '')}".removesuffix(": ")),
        ("scheme", f"{target.get('scheme')}, activations {model.activations}, KV cache {model.kv_cache}"),
        ("source", _origin(source)),
        ("fingerprint", source.fingerprint),
        ("context", f"{model.context_length:,} tokens"),
        ("needs", "; ".join(part for part in (packages, manifest.requirements.provider) if part)),
    ]
    if manifest.engine is not None:
        pairs.append(("engine", _engine_text(manifest.engine)))
    architecture = _planned_architecture(manifest)
    if architecture is not None:
        pairs += architecture_fields(architecture)
    counts = {role: sum(record.role == role for record in manifest.files.values()) for role in size_by_role(manifest)}
    rows = [(role, str(counts[role]), bytes_text(size)) for role, size in size_by_role(manifest).items()]
    rows.append(("all", str(len(manifest.files)), bytes_text(sum(size_by_role(manifest).values()))))
    parts = [fields(pairs, indent=0), table(("Role", "Files", "Size"), rows, right=frozenset({1, 2}))]
    if every_file:
        listing = [(name, record.role, bytes_text(record.size)) for name, record in manifest.files.items()]
        parts.append(table(("File", "Role", "Size"), listing, right=frozenset({2})))
    return "\n\n".join(parts)


def _engine_text(engine: "EngineRecord") -> str:
    """`tensorrt 1.2.1 for compute capability 9.0, 4 GPUs; to be built by build-on-device.sh`"""
    text: str = engine.name
    if engine.compute_capability is not None:
        text += f" for compute capability {engine.compute_capability}"
    gpus = engine.tensor_parallel * engine.pipeline_parallel
    if gpus > 1:
        text += f", {gpus} GPUs"
    if engine.versions:
        text += ", built with " + ", ".join(f"{name} {version}" for name, version in engine.versions.items())
    if engine.state == "to-be-built":
        text += f"; to be built on the device{f' by {engine.script}' if engine.script else ''}"
    return text


def _planned_architecture(manifest: "Manifest") -> "LlamaArchitecture | None":
    from edgeforge.model.architecture import architecture_from_json

    document = manifest.plan.get("architecture")
    return architecture_from_json(document) if isinstance(document, dict) else None


def _origin(source: "Source | SourceRecord") -> str:
    """`hub org/name 1a2b3c, stored as BF16`"""
    words = dict.fromkeys(word for word in (source.kind, source.name, source.revision) if word)
    return f"{' '.join(words)}, stored as {source.precision}"


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size

"""The stages in order: checkpoint -> plan -> quantize -> compile -> package -> validate.

The only module that chains stages. A build writes into a hidden folder beside its destination and renames it at the
end, so a bundle is whole or not there. The checkpoint is walked once, in file order, in pieces of a few rows; each
piece is read, quantized and put in its place by one worker, so memory is bounded by a piece per worker.
"""

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edgeforge import bundle as bundles
from edgeforge.backends import Rows
from edgeforge.errors import MissingDependency, OutOfResources, UnusableInput, UsageError
from edgeforge.hardware import Target, profile_to_json, target_to_json
from edgeforge.model.checkpoint import Checkpoint, LazyTensor, open_checkpoint
from edgeforge.planning import BuildPlan, apply_overrides, make_plan, plan_to_json
from edgeforge.quantization.rtn import quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor
from edgeforge.runtime.manifest import (
    Determinism,
    GenerationRecord,
    Manifest,
    ModelRecord,
    Requirements,
    SourceRecord,
)

if TYPE_CHECKING:
    from edgeforge.validation import ValidationReport

__all__ = ["BuildOptions", "BuildResult", "Prepared", "apply_overrides", "build", "prepare", "resolve_target"]

Progress = Callable[[str, int, int], None]
"""(stage, done, total), from any thread."""

PIECE_ELEMENTS = 1 << 18
"""Weights that a worker holds at once: 1 MB as float32, so that every pass over them stays in the core's own cache."""

resolve_target = apply_overrides
Exporter = Literal["edgeforge", "optimum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build. `chunks`: pieces of 512 tokens that the closing validation scores."""

    target: Target
    model: str
    out: Path
    revision: str | None = None
    validate: bool = True
    threads: int | None = None
    exporter: Exporter = "edgeforge"
    chunks: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that can be known before a weight is read."""

    plan: BuildPlan
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """The finished bundle. `validation` is None when it was skipped."""

    bundle: Path
    plan: BuildPlan
    manifest: Manifest
    size_bytes: int
    seconds: float
    validation: "ValidationReport | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Rows [start, stop) of one checkpoint tensor."""

    tensor: LazyTensor
    scheme: QuantizationScheme | None
    start: int
    stop: int


def prepare(options: BuildOptions) -> Prepared:
    """Open the checkpoint and plan; raises for anything that cannot be built, before the work starts."""
    _check_tools(options)
    checkpoint = open_checkpoint(options.model, revision=options.revision)
    grids = {name: grid for name in checkpoint.names if (grid := checkpoint.tensor(name).grid) is not None}
    plan = make_plan(checkpoint.architecture, options.target, stored=grids)
    checkpoint.tokenizer.load()
    return Prepared(plan=plan, checkpoint=checkpoint)


def _check_tools(options: BuildOptions) -> None:
    if options.validate and find_spec("onnxruntime") is None:
        raise MissingDependency(
            "validation runs the bundle, which needs onnxruntime",
            hint="pip install 'edgeforge[cpu]' (or [gpu]), or build with --no-validate",
        )
    if options.exporter == "optimum" and not options.target.scheme.startswith("f"):
        raise UsageError(
            f"optimum exports unquantized graphs, not {options.target.scheme}", hint="add --scheme f32 or --scheme f16"
        )
    if options.exporter == "optimum":
        from edgeforge.backends import optimum

        optimum.check_installed()


def build(options: BuildOptions, *, progress: Progress) -> BuildResult:
    """Build the bundle at `options.out`. A failed gate is in the result's report, not an exception."""
    started = time.perf_counter()
    bundles.check_destination(options.out)
    prepared = prepare(options)
    _check_disk(options.out, prepared.plan)
    with bundles.staging_directory(options.out) as staging:
        record, requirements = _write_model(options, prepared, staging, progress)
        manifest = _package(prepared, staging, record, requirements, progress)
        report = _validate(options, prepared, staging, progress) if options.validate else None
        bundles.publish_directory(staging, options.out)
    return BuildResult(
        bundle=options.out,
        plan=prepared.plan,
        manifest=manifest,
        size_bytes=sum(file.size for file in manifest.files.values()),
        seconds=time.perf_counter() - started,
        validation=report,
    )


def _check_disk(out: Path, plan: BuildPlan) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < plan.disk_bytes:
        raise OutOfResources(
            f"the bundle takes {plan.disk_bytes / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free",
            hint="free some space, or choose a folder on another disk with --out",
        )


# compile


def _write_model(
    options: BuildOptions, prepared: Prepared, staging: Path, progress: Progress
) -> tuple[ModelRecord, Requirements]:
    """Fill staging/model with everything the consumer loads."""
    folder = staging / "model"
    folder.mkdir()
    for name, content in prepared.checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)
    if options.exporter == "optimum":
        from edgeforge.backends import optimum

        progress("export", 0, 1)
        needs = optimum.export(prepared.plan, prepared.checkpoint, folder)
        progress("export", 1, 1)
        record = _model_record(prepared, "optimum", optimum.GRAPH_FILE, optimum.GRAPH_FILE, optimum.data_file(folder))
        return record, Requirements(packages=_packages(needs.packages), provider=needs.provider)

    from edgeforge.backends import onnx

    with onnx.sink(prepared.plan, folder) as sink:
        _walk(prepared, sink.put, options.threads or _available_cores(), progress)
    onnx.finish(prepared.plan, prepared.checkpoint.generation, folder)
    needs = onnx.requirements(prepared.plan)
    record = _model_record(prepared, "onnx", onnx.GRAPH_FILE, onnx.SCORING_GRAPH_FILE, onnx.DATA_FILE)
    return record, Requirements(packages=_packages(needs.packages), provider=needs.provider)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _walk(prepared: Prepared, put: Callable[[str, int, Rows], None], threads: int, progress: Progress) -> None:
    """Read, quantize and put every piece of the checkpoint, on `threads` workers. The first failure stops them all."""
    checkpoint, schemes = prepared.checkpoint, prepared.plan.schemes
    tensors = [checkpoint.tensor(name) for name in checkpoint.names]
    total, done = sum(math.prod(tensor.shape) for tensor in tensors), 0
    pieces = (piece for tensor in tensors for piece in _pieces(tensor, schemes.get(tensor.name)))
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal done
        while not stop.is_set():
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            put(piece.tensor.name, piece.start, _convert(piece))
            with lock:
                done += (piece.stop - piece.start) * math.prod(piece.tensor.shape[1:])
                told = done
            progress("quantize", told, total)

    with ThreadPoolExecutor(threads, thread_name_prefix="quantize") as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            for worker in as_completed(workers):
                worker.result()
        finally:
            stop.set()


def _pieces(tensor: LazyTensor, scheme: QuantizationScheme | None) -> Iterator[_Piece]:
    rows = tensor.shape[0]
    step = max(1, PIECE_ELEMENTS // math.prod(tensor.shape[1:]))
    for start in range(0, rows, step):
        yield _Piece(tensor=tensor, scheme=scheme, start=start, stop=min(start + step, rows))


def _convert(piece: _Piece) -> Rows:
    """The piece as its scheme stores it: the checkpoint's own codes where they are the scheme's, else rounded."""
    tensor, scheme = piece.tensor, piece.scheme
    if scheme is None or scheme.is_float:
        return tensor.rows(piece.start, piece.stop)
    grid = tensor.grid
    if grid is not None and (grid.bits, grid.group_size, grid.offset) == (
        scheme.bits,
        scheme.group_size,
        scheme.offset,
    ):
        stored = tensor.stored_codes(piece.start, piece.stop)
        assert stored is not None
        return QuantizedTensor(
            scheme=scheme, codes=stored.codes, scales=stored.scales, offsets=_rounded(stored.offsets, scheme)
        )
    try:
        return quantize(tensor.rows(piece.start, piece.stop), scheme)
    except ValueError as error:
        raise UnusableInput(
            f"{tensor.name}, rows {piece.start} to {piece.stop - 1}: {error}",
            hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
        ) from None


def _rounded(offsets: NDArray[np.float32] | None, scheme: QuantizationScheme) -> NDArray[np.float32] | None:
    """Offsets as their slot holds them. ggml's scales are float16 and exact anywhere; its offsets, centred, are not."""
    if offsets is None or scheme.scale_dtype == "f32":
        return offsets
    return offsets.astype(np.float16).astype(np.float32)


# package


def _package(
    prepared: Prepared, staging: Path, record: ModelRecord, requirements: Requirements, progress: Progress
) -> Manifest:
    plan, checkpoint = prepared.plan, prepared.checkpoint
    source = checkpoint.source
    return bundles.assemble(
        staging,
        target=target_to_json(plan.target),
        profile=profile_to_json(plan.target.profile),
        plan=plan_to_json(plan),
        source=SourceRecord(**asdict(source), fingerprint=checkpoint.fingerprint),
        model=record,
        requirements=requirements,
        determinism=Determinism(
            reproducible=record.backend == "onnx",
            note="the same checkpoint, target and EdgeForge version give the same bytes on any machine"
            if record.backend == "onnx"
            else "the graph is torch's and optimum's, which do not promise the same bytes",
        ),
        notices=checkpoint.notices,
        progress=lambda done, total: progress("hash", done, total),
    )


def _packages(backend: Mapping[str, str]) -> dict[str, str]:
    return {**backend, "numpy": ">=1.26", "tokenizers": ">=0.20"}


def _model_record(prepared: Prepared, backend: str, graph: str, scoring_graph: str, weights: str | None) -> ModelRecord:
    a, target, tokenizer = prepared.plan.architecture, prepared.plan.target, prepared.checkpoint.tokenizer
    template = next((name for name in tokenizer.files if name.endswith(".jinja")), None)
    return ModelRecord(
        backend=backend,
        graph=f"model/{graph}",
        scoring_graph=f"model/{scoring_graph}",
        weights=weights and f"model/{weights}",
        activations=target.activations,
        kv_cache=target.kv_cache,
        context_length=target.context,
        vocab_size=a.vocab_size,
        num_hidden_layers=a.num_hidden_layers,
        num_key_value_heads=a.num_key_value_heads,
        head_dim=a.head_dim,
        bos_token_id=a.bos_token_id,
        eos_token_ids=a.eos_token_ids,
        tokenizer="model/tokenizer.json",
        chat_template=template and f"model/{template}",
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        add_bos=tokenizer.add_bos,
        generation=GenerationRecord(**asdict(prepared.checkpoint.generation)),
    )


# validate


def _validate(options: BuildOptions, prepared: Prepared, staging: Path, progress: Progress) -> "ValidationReport":
    from edgeforge.validation import validate, write_report

    report = validate(
        staging,
        prepared.checkpoint,
        gate=prepared.plan.target.gate,
        chunks=options.chunks,
        threads=options.threads,
        progress=lambda done, total: progress("validate", done, total),
    )
    write_report(report, staging)
    bundles.seal(staging)
    return report

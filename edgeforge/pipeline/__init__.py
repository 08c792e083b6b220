"""The stages in order: checkpoint -> plan -> quantize -> compile -> package -> validate.

The only module that chains stages. A build writes into a hidden folder beside its destination and renames it at the
end, so a bundle is whole or not there.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeforge import bundle as bundles
from edgeforge.errors import MissingDependency, OutOfResources, UsageError
from edgeforge.hardware import Target, profile_to_json, target_to_json
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.pipeline import records
from edgeforge.pipeline.walk import available_cores, walk
from edgeforge.planning import BuildPlan, apply_overrides, make_plan, plan_to_json
from edgeforge.runtime.integrity import sha256_of
from edgeforge.runtime.manifest import Determinism, Manifest, ModelRecord, Requirements

if TYPE_CHECKING:
    from edgeforge.validation import ValidationReport

__all__ = ["BuildOptions", "BuildResult", "Prepared", "build", "prepare", "resolve_target"]

Progress = Callable[[str, int, int], None]
"""(stage, done, total), from any thread."""

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
class _Model:
    """What the manifest says of the files under model/. `digests`: SHA-256 of those already hashed, by path."""

    record: ModelRecord
    requirements: Requirements
    determinism: Determinism
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """The finished bundle. `validation` is None when it was skipped."""

    bundle: Path
    plan: BuildPlan
    manifest: Manifest
    size_bytes: int
    seconds: float
    validation: "ValidationReport | None"


def prepare(options: BuildOptions) -> Prepared:
    """Open the checkpoint and plan; raises for anything that cannot be built, before the work starts."""
    _check_tools(options)
    checkpoint = open_checkpoint(options.model, revision=options.revision)
    grids = {name: grid for name in checkpoint.names if (grid := checkpoint.tensor(name).grid) is not None}
    plan = make_plan(checkpoint.architecture, options.target, stored=grids)
    checkpoint.tokenizer  # noqa: B018 - reading it checks it, before the work
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
        model = _write_model(options, prepared, staging, progress)
        manifest = _package(prepared, model, staging, progress)
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


def _write_model(options: BuildOptions, prepared: Prepared, staging: Path, progress: Progress) -> _Model:
    """Fill staging/model with everything the consumer loads."""
    plan, checkpoint = prepared.plan, prepared.checkpoint
    folder = staging / "model"
    folder.mkdir()
    for name, content in checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)
    if options.exporter == "optimum":
        from edgeforge.backends import optimum

        progress("export", 0, 1)
        needs = optimum.export(plan, checkpoint, folder)
        progress("export", 1, 1)
        names = (optimum.GRAPH_FILE, optimum.GRAPH_FILE, optimum.data_file(folder))
        determinism, digests = records.NOT_REPRODUCIBLE, {}
    else:
        from edgeforge.backends import onnx

        with onnx.sink(plan, folder) as sink:
            threads = options.threads or available_cores()
            told = partial(progress, "quantize")
            walk(checkpoint, plan.schemes, sink.put, threads=threads, progress=told)
        digests = _finish_while_hashing(
            folder / onnx.DATA_FILE, partial(onnx.finish, plan, checkpoint.generation, folder)
        )
        needs = onnx.requirements(plan)
        names = (onnx.GRAPH_FILE, onnx.SCORING_GRAPH_FILE, onnx.DATA_FILE)
        determinism = records.REPRODUCIBLE
    backend = "optimum" if options.exporter == "optimum" else plan.target.backend
    graph, scoring_graph, weights = names
    record = records.model_record(
        plan, checkpoint, backend=backend, graph=graph, scoring_graph=scoring_graph, weights=weights
    )
    return _Model(record=record, requirements=records.requirements(needs), determinism=determinism, digests=digests)


def _finish_while_hashing(weights: Path, finish: Callable[[], object]) -> dict[str, str]:
    """The weights' hash by their path in the bundle. A large file takes a core for seconds, the graphs another."""
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(sha256_of, weights)
        finish()
        return {f"model/{weights.name}": digest.result()}


def _package(prepared: Prepared, model: _Model, staging: Path, progress: Progress) -> Manifest:
    plan, checkpoint = prepared.plan, prepared.checkpoint
    return bundles.assemble(
        staging,
        target=target_to_json(plan.target),
        profile=profile_to_json(plan.target.profile),
        plan=plan_to_json(plan),
        source=records.source_record(checkpoint),
        model=model.record,
        requirements=model.requirements,
        determinism=model.determinism,
        notices=checkpoint.notices,
        digests=model.digests,
        progress=partial(progress, "hash"),
    )


def _validate(options: BuildOptions, prepared: Prepared, staging: Path, progress: Progress) -> "ValidationReport":
    from edgeforge.validation import validate, write_report

    report = validate(
        staging,
        prepared.checkpoint,
        gate=prepared.plan.target.gate,
        chunks=options.chunks,
        threads=options.threads,
        progress=partial(progress, "validate"),
    )
    write_report(report, staging)
    bundles.seal(staging)
    return report

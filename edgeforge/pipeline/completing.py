"""Everything around the weights: graph and configuration, engine, hashes, manifest, validation."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge import backends
from edgeforge import bundle as bundles
from edgeforge.hardware import profile_to_json, target_to_json
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.parity import make_parity, parity_text
from edgeforge.model.placed_file import Extent
from edgeforge.model.rotation import RotatedCheckpoint
from edgeforge.pipeline import device, records
from edgeforge.pipeline.checking import check_stored, checked_sha256, extents_by_file
from edgeforge.pipeline.request import BuildOptions, BuildResult, Log, Prepared, Progress
from edgeforge.pipeline.walk import available_cores
from edgeforge.planning import BuildPlan
from edgeforge.runtime.manifest import Determinism, EngineRecord, Manifest, ModelRecord, Requirements

if TYPE_CHECKING:
    from edgeforge.validation import ValidationReport


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What the manifest says of the files under model/. `digests`: SHA-256 of those already hashed, by path."""

    record: ModelRecord
    requirements: Requirements
    determinism: Determinism
    engine: EngineRecord | None
    digests: Mapping[str, str]


def complete(
    options: BuildOptions,
    prepared: Prepared,
    place: bundles.Workplace,
    started: float,
    progress: Progress,
    log: Log,
) -> BuildResult:
    """Everything around the weights. The bundle counts, whatever its gate says."""
    staging = place.bundle
    model = _write_model(options, prepared, place, progress, log)
    manifest = _package(prepared, model, staging, progress)
    report = _validate(options, prepared, staging, progress) if options.validate else None
    bundles.verify(staging, "quick")
    return BuildResult(
        bundle=options.out,
        plan=prepared.plan,
        manifest=manifest,
        size_bytes=sum(file.size for file in manifest.files.values()),
        seconds=time.perf_counter() - started,
        validation=report,
    )


def _write_model(
    options: BuildOptions, prepared: Prepared, place: bundles.Workplace, progress: Progress, log: Log
) -> _Model:
    """Complete model/ with everything but the weights, which are there, and what the device needs beside it."""
    plan, checkpoint, folder = prepared.plan, prepared.checkpoint, place.bundle / "model"
    if options.exporter == "optimum":
        return _export(plan, checkpoint, folder, progress)
    backend = backends.load(plan.target.backend)
    files = backend.files(plan)
    origin = backends.Origin(config=checkpoint.config, generation=checkpoint.generation)
    extents = extents_by_file(place.journal)
    weights = {folder / name: extents.get(name, []) for name in files.weights}
    digests = _finish_while_hashing(weights, partial(backend.finish, plan, origin, folder))
    check_stored(plan, folder)
    needs = backend.requirements(plan)
    engine = device.complete(
        plan, place.bundle, needs.engine, prepared.builder, log=log, progress=partial(progress, "engine")
    )
    return _Model(
        record=records.model_record(plan, checkpoint, backend=plan.target.backend, files=files),
        requirements=records.requirements(needs),
        determinism=records.determinism(
            prepared.calibration, reads_text=plan.reads_text, has_engine=prepared.builder is not None
        ),
        engine=engine,
        digests=digests,
    )


def _export(plan: BuildPlan, checkpoint: Checkpoint, folder: Path, progress: Progress) -> _Model:
    """The second, independent road to an ONNX bundle."""
    from edgeforge.backends import optimum

    progress("export", 0, 1)
    needs = optimum.export(plan, checkpoint, folder)
    progress("export", 1, 1)
    data = optimum.data_file(folder)
    files = backends.ModelFiles(
        weights=(data,) if data else (), graph=optimum.GRAPH_FILE, scoring_graph=optimum.GRAPH_FILE
    )
    return _Model(
        record=records.model_record(plan, checkpoint, backend="optimum", files=files),
        requirements=records.requirements(needs),
        determinism=records.NOT_REPRODUCIBLE,
        engine=None,
        digests={},
    )


def _finish_while_hashing(weights: Mapping[Path, Sequence[Extent]], finish: Callable[[], object]) -> dict[str, str]:
    """The weights' hashes by their paths in the bundle. A large file takes a core for seconds, the rest another."""
    with ThreadPoolExecutor(available_cores()) as pool:
        digests = {path: pool.submit(checked_sha256, path, extents) for path, extents in weights.items()}
        finish()
        return {f"model/{path.name}": digest.result() for path, digest in digests.items()}


def _package(prepared: Prepared, model: _Model, staging: Path, progress: Progress) -> Manifest:
    plan, checkpoint, quantized = prepared.plan, prepared.original, prepared.checkpoint
    return bundles.assemble(
        staging,
        target=target_to_json(plan.target),
        profile=profile_to_json(plan.target.profile),
        plan=records.plan_record(
            plan,
            prepared.calibration,
            None if prepared.learned is None else prepared.learned.samples,
            None if prepared.spent is None else prepared.spent.document(),
            quantized.document if isinstance(quantized, RotatedCheckpoint) else None,
        ),
        source=records.source_record(checkpoint),
        model=model.record,
        requirements=model.requirements,
        determinism=model.determinism,
        engine=model.engine,
        notices=checkpoint.notices,
        parity=parity_text(make_parity(checkpoint.tokenizer)),
        digests=model.digests,
        progress=partial(progress, "hash"),
    )


def _validate(options: BuildOptions, prepared: Prepared, staging: Path, progress: Progress) -> "ValidationReport":
    from edgeforge.validation import validate, write_report

    report = validate(
        staging,
        prepared.original,
        gate=prepared.plan.target.gate,
        chunks=options.chunks,
        threads=options.threads,
        progress=partial(progress, "validate"),
    )
    write_report(report, staging)
    bundles.seal(staging)
    return report

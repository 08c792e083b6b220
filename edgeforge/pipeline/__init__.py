"""The stages in order: checkpoint -> plan -> calibrate -> quantize -> compile -> package -> validate.

The only module that chains stages. A build writes into a hidden folder beside its destination and renames it at the
end, so a bundle is whole or not there; a build that was stopped goes on in that folder, by its journal. Several targets
are built in one pass: the checkpoint is walked once.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge import __version__, backends
from edgeforge import bundle as bundles
from edgeforge.errors import MissingDependency, OutOfResources, UnusableInput, UsageError
from edgeforge.hardware import with_algorithm
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.rotation import rotated
from edgeforge.pipeline import budget as budgeting
from edgeforge.pipeline import calibrated, device, scales_file
from edgeforge.pipeline.calibration import check_source, is_text, load_or_measure, part_of
from edgeforge.pipeline.chunks import Chunks, share
from edgeforge.pipeline.completing import complete
from edgeforge.pipeline.journal import Journal
from edgeforge.pipeline.request import BuildOptions, BuildResult, Log, Prepared, Progress, unheard
from edgeforge.pipeline.resuming import asked_for, check_same
from edgeforge.pipeline.walk import available_cores
from edgeforge.pipeline.weights import Filling, fill, telling_what_is_left
from edgeforge.planning import BuildPlan, apply_overrides, make_plan, weight_rows
from edgeforge.quantization.calibration import EMPTY, Calibration

if TYPE_CHECKING:
    from edgeforge.backends.trtllm_engine import Builder

__all__ = ["BuildOptions", "BuildResult", "Prepared", "build", "build_all", "prepare", "prepare_all", "resolve_target"]

resolve_target = apply_overrides


def prepare(options: BuildOptions) -> Prepared:
    """Open the checkpoint and plan; raises for anything that cannot be built, before the work starts."""
    return prepare_all((options,))[0]


def prepare_all(options: Sequence[BuildOptions]) -> tuple[Prepared, ...]:
    """The same for several targets of one model, which share the open checkpoint."""
    first = options[0]
    if any((each.model, each.revision) != (first.model, first.revision) for each in options):
        raise ValueError("one pass builds one model")
    for each in options:
        _check_tools(each)
    builders = [_find_builder(each, options) for each in options]
    checkpoint = open_checkpoint(first.model, revision=first.revision)
    grids = {name: grid for name in checkpoint.names if (grid := checkpoint.tensor(name).grid) is not None}
    alone = len(options) == 1  # text chooses the codes of one target at a time
    targets = [
        with_algorithm(each.target, has_text=alone and (is_text(each.calibration) or each.budget is not None))
        for each in options
    ]
    plans = [make_plan(checkpoint.architecture, target, stored=grids) for target in targets]
    for plan in plans:
        backends.load(plan.target.backend).check(plan)
    _chunks(first, plans)  # too little memory shows here
    source = None if first.calibration == "none" else first.calibration
    if len({plan.target.rotate for plan in plans}) > 1:
        raise UsageError(
            "one pass rotates the model for all its targets or for none", hint="add --rotate or --no-rotate for all"
        )
    budgeting.check(plans, first.budget)
    calibrated.check(plans, first.device)
    check_source(
        plans,
        source,
        wanted=first.calibration != "none",
        save=first.save_calibration,
        weighs=first.budget is not None,
    )
    checkpoint.tokenizer  # noqa: B018 - reading it checks it, before the work
    quantized = rotated(checkpoint) if plans[0].target.rotate else checkpoint
    return tuple(
        Prepared(plan=plan, original=checkpoint, checkpoint=quantized, builder=builder)
        for plan, builder in zip(plans, builders, strict=True)
    )


def _find_builder(options: BuildOptions, every: Sequence[BuildOptions]) -> "Builder | None":
    return device.find_builder(
        options.target,
        options.out,
        python=options.trtllm_python,
        command=options.trtllm_command,
        targets=[each.target for each in every],
    )


def _check_tools(options: BuildOptions) -> None:
    target = options.target
    if options.validate and target.engine == "onnxruntime" and find_spec("onnxruntime") is None:
        raise MissingDependency(
            "validation runs the bundle, which needs onnxruntime",
            hint="pip install 'edgeforge[cpu]' (or [gpu]), or build with --no-validate",
        )
    if options.exporter != "optimum":
        return
    if target.backend != "onnx":
        raise UsageError(f"optimum exports ONNX graphs, not backend {target.backend}", hint="leave out --exporter")
    if not target.scheme.startswith("f"):
        raise UsageError(
            f"optimum exports unquantized graphs, not {target.scheme}", hint="add --scheme f32 or --scheme f16"
        )
    from edgeforge.backends import optimum

    optimum.check_installed()


def build(options: BuildOptions, *, progress: Progress, log: Log = unheard) -> BuildResult:
    """Build the bundle at `options.out`. A failed gate is in the result's report, not an exception."""
    return build_all((options,), progress=progress, log=log)[0]


def build_all(options: Sequence[BuildOptions], *, progress: Progress, log: Log = unheard) -> tuple[BuildResult, ...]:
    """Build several targets of one model: each weight is read once, and each bundle appears once it is whole.

    What a build that was stopped had finished is kept. UsageError where that was asked for something else.
    """
    started = time.perf_counter()
    for each in options:
        bundles.check_destination(each.out, replace=each.replace)
    prepared = prepare_all(options)
    _check_disk(options, prepared)
    with ExitStack() as stack:
        places = [stack.enter_context(bundles.workplace(each.out)) for each in options]
        for each, ready, place in zip(options, prepared, places, strict=True):
            _check_unfinished(each, ready, place)
        prepared = _allocate(options[0], prepared, progress, log)
        for ready in prepared:
            _tell_untied(ready, log)
        prepared = _calibrate(options[0], prepared, places[0], progress, log)
        fillings = [
            _filling(each, ready, place, stack) for each, ready, place in zip(options, prepared, places, strict=True)
        ]
        stack.enter_context(telling_what_is_left(fillings))
        _write_weights(options, prepared, fillings, places, progress)
        results = tuple(
            complete(each, ready, place, started, progress, log)
            for each, ready, place in zip(options, prepared, places, strict=True)
        )
        for each, place in zip(options, places, strict=True):
            place.publish(replace=each.replace)
    for ready in prepared:
        if ready.learned is not None:
            ready.learned.discard()
    return results


def _check_unfinished(options: BuildOptions, prepared: Prepared, place: bundles.Workplace) -> None:
    """Before the work: an unfinished build in this place has to be the same, as far as that is known."""
    if options.fresh:
        place.clear()
        shutil.rmtree(calibrated.state_folder(options.out), ignore_errors=True)
        return
    asked = asked_for(prepared.checkpoint, prepared.plan, exporter=options.exporter)
    if options.budget is not None:
        del asked["target"], asked["schemes"]  # which it chooses later
    check_same(place.journal, options.out, asked)


def _filling(options: BuildOptions, prepared: Prepared, place: bundles.Workplace, stack: ExitStack) -> Filling:
    """An empty model/, or one with the weights of an unfinished build of the same."""
    plan, calibration = prepared.plan, prepared.calibration
    asked = asked_for(prepared.checkpoint, plan, exporter=options.exporter, calibration=calibration)
    check_same(place.journal, options.out, asked)
    place.open_bundle(backends.load(plan.target.backend).files(plan).weights)
    folder = place.bundle / "model"
    return Filling(
        plan=plan,
        calibration=calibration,
        learned=prepared.learned,
        folder=folder,
        journal=stack.enter_context(Journal(place.journal, folder, asked)),
    )


def _check_disk(options: Sequence[BuildOptions], prepared: Sequence[Prepared]) -> None:
    """Bundles on one disk need room together."""
    wanted: dict[Path, int] = {}
    for each, ready in zip(options, prepared, strict=True):
        folder = next(parent for parent in each.out.absolute().parents if parent.exists())
        copies = 1 if ready.builder is None else 2  # the checkpoint, and the engine made of it
        there = 0 if each.fresh else bundles.unfinished_bytes(each.out)
        wanted[folder] = wanted.get(folder, 0) + max(0, copies * ready.plan.disk_bytes - there)
    for folder, size in wanted.items():
        free = shutil.disk_usage(folder).free
        if free < size:
            what = "the bundle takes" if len(options) == 1 else "the bundles take"
            raise OutOfResources(
                f"{what} {size / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free",
                hint="free some space, or choose a folder on another disk with --out",
            )


def _tell_untied(prepared: Prepared, log: Log) -> None:
    """What a rotation costs a model whose output head was its embedding."""
    if prepared.original.architecture.tie_word_embeddings and not prepared.plan.architecture.tie_word_embeddings:
        head = sum(row.stored_bytes for row in weight_rows(prepared.plan) if row.role == "lm_head")
        log(
            "the output head was the embedding, which it cannot be in a rotated model: stored apart, it takes "
            f"{head:,} bytes more"
        )


def _allocate(
    options: BuildOptions, prepared: Sequence[Prepared], progress: Progress, log: Log
) -> tuple[Prepared, ...]:
    """The plan's schemes, where a budget chooses them."""
    if options.budget is None:
        return tuple(prepared)
    spent = budgeting.spend_on(
        prepared[0].checkpoint,
        prepared[0].plan,
        options.budget,
        options.calibration if isinstance(options.calibration, Path) else None,
        options.out,
        device=options.device,
        threads=options.threads or available_cores(),
        progress=partial(progress, "allocate"),
        log=log,
    )
    return (replace(prepared[0], plan=spent.plan, spent=spent),)


def _calibrate(
    options: BuildOptions, prepared: Sequence[Prepared], place: bundles.Workplace, progress: Progress, log: Log
) -> tuple[Prepared, ...]:
    """One pass of calibration text for all targets that need it, or what a file of scales says."""
    learned = _learn(options, prepared[0], progress, log) if prepared[0].plan.reads_text else None
    calibration = _scales(options, prepared, place, progress) if learned is None else learned.calibration
    if options.save_calibration is not None and calibration is not EMPTY:
        scales_file.save(calibration, options.save_calibration, fingerprint=prepared[0].checkpoint.fingerprint)
    return tuple(replace(ready, calibration=part_of(calibration, ready.plan), learned=learned) for ready in prepared)


def _scales(
    options: BuildOptions, prepared: Sequence[Prepared], place: bundles.Workplace, progress: Progress
) -> Calibration:
    measured = any(ready.plan.calibrates for ready in prepared)
    has_scales = options.calibration is not None and not is_text(options.calibration)
    if options.calibration == "none" or not (measured or has_scales):
        return EMPTY
    return load_or_measure(
        prepared[0].checkpoint,
        options.calibration,
        progress=partial(progress, "calibrate"),
        kept=place.folder / f"scales-{__version__}{scales_file.SUFFIX}",
    )


def _learn(options: BuildOptions, prepared: Prepared, progress: Progress, log: Log) -> calibrated.Learned:
    return calibrated.learn(
        prepared.checkpoint,
        prepared.plan,
        options.calibration if isinstance(options.calibration, Path) else None,
        options.out,
        device=options.device,
        threads=options.threads or available_cores(),
        progress=partial(progress, "calibrate"),
        log=log,
    )


def _chunks(options: BuildOptions, plans: Sequence[BuildPlan]) -> Chunks:
    return share(options.memory_bytes, plans, options.threads or available_cores())


def _write_weights(
    options: Sequence[BuildOptions],
    prepared: Sequence[Prepared],
    fillings: Sequence[Filling],
    places: Sequence[bundles.Workplace],
    progress: Progress,
) -> None:
    """Fill every model/ with the tokenizer and the weights. Of a checkpoint that turns out damaged, nothing is kept."""
    checkpoint = prepared[0].checkpoint
    for filling in fillings:
        for name, content in checkpoint.tokenizer.files.items():
            (filling.folder / name).write_bytes(content)
    own = [filling for each, filling in zip(options, fillings, strict=True) if each.exporter == "edgeforge"]
    try:
        fill(checkpoint, own, chunks=_chunks(options[0], [ready.plan for ready in prepared]), progress=progress)
    except UnusableInput:
        for place in places:
            place.clear()
        raise

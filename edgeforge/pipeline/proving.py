"""A thorough validation, in order: divergence on text, then the original as a bundle, benchmark tasks, probes, speed.

Everything that can be refused is refused before a model computes. Whatever was computed is kept in the cache, so that
an interrupted validation goes on, and another target's finds the original's answers there.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from edgeforge import runtime
from edgeforge.errors import UsageError
from edgeforge.pipeline.reference import Original, ReferenceBundle, open_original, reference_bundle
from edgeforge.planning import plan_from_json
from edgeforge.runtime import Manifest
from edgeforge.runtime.manifest import ENGINE_BACKENDS
from edgeforge.runtime.model import Model
from edgeforge.validation import ValidationReport, bench, validate
from edgeforge.validation.candidate import open_model
from edgeforge.validation.findings import Findings, SizeAndSpeed, Speed, TaskFindings
from edgeforge.validation.gate import Limits, combine
from edgeforge.validation.probes import ProbeFindings, check_names, run_probes
from edgeforge.validation.protocol import Protocol
from edgeforge.validation.tasks import PreparedTasks, TaskOptions, prepare_tasks, run_tasks

Progress = Callable[[str, int, int], None]
SPEED_REPEATS = 3
PROMPT_TOKENS, NEW_TOKENS = 128, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofOptions:
    """What to find out about a bundle. `texts` None scores the package's own; `tasks` None and no `probes`: text alone.

    `command` is what the report tells people to run.
    """

    bundle: Path
    reference: str | None = None
    allow_other_reference: bool = False
    texts: Sequence[str] | None = None
    text_name: str | None = None
    chunks: int | None = None
    context: int | None = None
    protocol: Protocol = "llama.cpp"
    tasks: TaskOptions | None = None
    probes: tuple[str, ...] = ()
    threads: int | None = None
    command: str | None = None


def prove(options: ProofOptions, *, progress: Progress) -> ValidationReport:
    """The report, with the verdict of the target's gate on the text and on every task.

    Raises UsageError, UnusableInput, DoesNotFit, MissingDependency and the runtime's BundleError; GateFailed only for
    logits that are not finite.
    """
    started = time.perf_counter()
    manifest = runtime.verify(options.bundle, "quick")
    thorough = options.tasks is not None or bool(options.probes)
    if thorough:
        _check_engine(manifest)
    check_names(options.probes)
    prepared = None if options.tasks is None else prepare_tasks(options.tasks)
    original = open_original(manifest, options.reference, allow_other=options.allow_other_reference)
    gate = plan_from_json(manifest.plan).target.gate
    report = validate(
        options.bundle,
        original.checkpoint,
        gate=gate,
        texts=options.texts,
        text_name=options.text_name,
        chunks=options.chunks,
        context=options.context,
        protocol=options.protocol,
        threads=options.threads,
        progress=partial(progress, "validate"),
    )
    findings = Findings(command=options.command)
    if thorough:
        findings = replace(_ask_both(options, manifest, original, prepared, gate, progress), command=options.command)
    return replace(
        report,
        gate=combine(report.gate, [task.check for task in findings.tasks]),
        findings=findings,
        notes=(*report.notes, *_notes(findings)),
        seconds=round(time.perf_counter() - started, 3),
    )


def _check_engine(manifest: Manifest) -> None:
    backend = manifest.model.backend
    if backend in ENGINE_BACKENDS:
        raise UsageError(
            f"tasks and probes ask a bundle's own graph, and a bundle of backend {backend} has none",
            hint="validate its text alone, or run lm-eval's own backend (vllm, trt-llm) on its model/ folder",
        )


def _ask_both(
    options: ProofOptions,
    manifest: Manifest,
    original: Original,
    prepared: PreparedTasks | None,
    gate: Limits,
    progress: Progress,
) -> Findings:
    """Both bundles open at once: one after the other they answer each task and probe."""
    built = reference_bundle(
        original, context=manifest.model.context_length, threads=options.threads, progress=progress
    )
    reference = runtime.load(built.bundle, threads=options.threads, device="cpu")
    candidate = open_model(options.bundle, manifest, threads=options.threads)
    tasks: tuple[TaskFindings, ...] = ()
    if prepared is not None:
        tasks = run_tasks(
            prepared,
            reference=reference,
            candidate=candidate,
            reference_key=_answer_key(built.key, reference),
            candidate_key=_answer_key(_manifest_sha256(options.bundle), candidate),
            limits=gate,
            progress=partial(progress, "tasks"),
        )
    probes = ProbeFindings()
    if options.probes:
        probes = run_probes(
            options.probes,
            bundle=options.bundle,
            checkpoint=original.checkpoint,
            reference=reference,
            candidate=candidate,
            progress=partial(progress, "probes"),
        )
    return Findings(
        tasks=tasks,
        probes=probes.probes,
        languages=probes.languages,
        positions=probes.positions,
        layers=probes.layers,
        size_and_speed=_size_and_speed(built, reference, candidate, progress),
    )


def _answer_key(content: str, model: Model) -> str:
    """What a model's answers depend on: its content, and what computes."""
    import onnxruntime

    return hashlib.sha256(f"{content} {model.device} onnxruntime {onnxruntime.__version__}".encode()).hexdigest()


def _manifest_sha256(bundle: Path) -> str:
    return hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def _size_and_speed(
    built: ReferenceBundle, reference: Model, candidate: Model, progress: Progress
) -> SizeAndSpeed | None:
    """None where the context has no room for the prompt and the answer that are timed."""
    if candidate.context_length <= PROMPT_TOKENS + NEW_TOKENS + 1:
        return None
    return SizeAndSpeed(
        reference_precision=built.precision,
        reference=_speed(reference, progress),
        candidate=_speed(candidate, progress),
    )


def _speed(model: Model, progress: Progress) -> Speed:
    vocab = model.manifest.model.vocab_size
    prompts = [bench.random_ids(PROMPT_TOKENS, vocab, repeat) for repeat in range(SPEED_REPEATS + 1)]
    runs = bench.measure(model, prompts, new_tokens=NEW_TOKENS, progress=progress)
    return Speed(
        weight_bytes=sum(record.size for record in model.manifest.files.values() if record.role == "weights"),
        prefill_tokens_per_s=median(run.prefill_tokens_per_s for run in runs),
        decode_tokens_per_s=median(run.decode_tokens_per_s for run in runs),
    )


def _notes(findings: Findings) -> list[str]:
    """What a reader of the verdict has to know of the rest."""
    notes = [f"{probe.title}: {probe.summary}" for probe in findings.probes if probe.verdict == "fail"]
    for task in findings.tasks:
        check = task.check
        if check.verdict == "undecided":
            enough = "" if check.items_needed is None else f"; about {check.items_needed:,} would do"
            notes.append(f"{task.task}: {task.subset.items:,} items are too few to tell{enough}.")
    return notes

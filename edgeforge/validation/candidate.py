"""The bundle as the candidate: run as a user would run it or, where its engine is another program, as it is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeforge import runtime
from edgeforge.planning import plan_from_json
from edgeforge.runtime.manifest import ENGINE_BACKENDS, Manifest
from edgeforge.validation import stored
from edgeforge.validation.compare import ForwardLogits, LogitsOfChunk, Progress
from edgeforge.validation.protocol import Chunks

if TYPE_CHECKING:
    from edgeforge.runtime.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Its logits; how often it reports progress for them; what the report must say of how they came about."""

    logits: LogitsOfChunk
    steps: int
    notes: Sequence[str]


def open_candidate(
    bundle: Path, manifest: Manifest, chunks: Chunks, *, threads: int | None, progress: Progress
) -> Candidate:
    """Checks the bundle's files, computes nothing yet. Raises the runtime's BundleError, and UnusableInput."""
    if manifest.model.backend in ENGINE_BACKENDS:
        runtime.verify(bundle, "quick")
        plan = plan_from_json(manifest.plan)
        weights, tap = stored.open_stored(plan, bundle / "model")
        forward = ForwardLogits(weights=weights, chunks=chunks, progress=progress, tap=tap)
        return Candidate(logits=forward, steps=forward.steps, notes=(stored.note(plan),))
    model = open_model(bundle, manifest, threads=threads)
    provider = manifest.requirements.provider
    note = f"The same graph was run on the processor: this onnxruntime has no {provider}."
    return Candidate(
        logits=lambda chunk: model.score(chunks.ids[chunk].tolist())[chunks.positions],
        steps=0,
        notes=(note,) if _device(manifest) == "cpu" else (),
    )


def open_model(bundle: Path, manifest: Manifest, *, threads: int | None) -> "Model":
    """The bundle as users run it, or its graph on the processor where this machine lacks its device."""
    return runtime.load(bundle, threads=threads, verify="quick", device=_device(manifest))


def _device(manifest: Manifest) -> Literal["cpu"] | None:
    """None: the bundle's own device. Where onnxruntime has no provider for it, the processor runs the same graph."""
    import onnxruntime

    return None if manifest.requirements.provider in onnxruntime.get_available_providers() else "cpu"

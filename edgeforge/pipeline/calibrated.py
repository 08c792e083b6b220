"""Builds whose codes are chosen on text: the samples, the state folder beside the destination, what the sink gets."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgeforge.backends import Rows
from edgeforge.errors import UsageError
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.calibration_samples import read_samples
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise import Quantized, Recipe, check_torch, quantize_layers
from edgeforge.pipeline.layerwise.recipe import Algorithm
from edgeforge.pipeline.walk import steps
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.scheme import QuantizedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A finished pass. `folder` holds its tensors: delete it when the bundle is whole."""

    quantized: Quantized
    samples: CalibrationTokens
    folder: Path

    @property
    def calibration(self) -> Calibration:
        return self.quantized.calibration

    def put_all(self, put: Callable[[str, int, Rows], object]) -> None:
        """Give every tensor of the pass to a sink, in the pieces that a walk would."""
        for name in self.quantized.names:
            tensor = self.quantized.tensor(name)
            for start, stop in steps(tensor.codes.shape if isinstance(tensor, QuantizedTensor) else tensor.shape):
                rows = tensor.rows(start, stop) if isinstance(tensor, QuantizedTensor) else tensor[start:stop]
                put(name, start, rows)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def check(plans: Sequence[BuildPlan], device: str) -> None:
    """Before any work. Raises UsageError, MissingDependency."""
    if not any(plan.reads_text for plan in plans):
        if device != "cpu":
            raise UsageError(
                f"--device {device} is for algorithms that run the model on text",
                hint="leave out --device, or add --algorithm gptq",
            )
        return
    if len(plans) > 1:
        raise UsageError(
            "codes are chosen on text for one target at a time",
            hint="build the targets one after the other, or leave out --algorithm",
        )
    check_torch(device)


def learn(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    source: Path | None,
    out: Path,
    *,
    device: str,
    threads: int,
    progress: Callable[[int, int], None],
    log: Callable[[str], None],
) -> Learned:
    """Run the pass for the bundle `out`, or go on with it where it was stopped. `source`: what --calibration named."""
    samples = read_samples(checkpoint, source)
    folder = state_folder(out)
    try:
        quantized = quantize_layers(
            checkpoint,
            plan,
            samples,
            recipe_of(plan),
            folder,
            device=device,
            threads=threads,
            progress=progress,
            log=log,
        )
    except KeyboardInterrupt as error:
        error.add_note("finished layers are kept: run the same command to go on; --fresh starts again")
        raise
    return Learned(quantized=quantized, samples=samples, folder=folder)


def state_folder(out: Path) -> Path:
    """Where the pass for the bundle `out` keeps its finished layers."""
    return out.absolute().parent / f".{out.name}.calibration"


def recipe_of(plan: BuildPlan) -> Recipe:
    """The best that was measured for the plan's algorithm."""
    algorithm = next(name for name in get_args(Algorithm) if name == plan.target.algorithm)
    return Recipe(algorithm=algorithm)

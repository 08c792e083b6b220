"""What a build is asked for, what is known before its work, and what it results in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeforge.hardware import Target
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline import budget as budgeting
from edgeforge.pipeline import calibrated
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import EMPTY, Calibration
from edgeforge.runtime.manifest import Manifest

if TYPE_CHECKING:
    from edgeforge.backends.trtllm_engine import Builder
    from edgeforge.validation import ValidationReport

Progress = Callable[[str, int, int], None]
"""(stage, done, total), from any thread."""

Log = Callable[[str], None]
"""Gets what other programs say while they work, line by line."""


def unheard(line: str) -> None:
    """Nobody listens."""


Exporter = Literal["edgeforge", "optimum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build. `chunks`: pieces of 512 tokens that the closing validation scores. `calibration`: a text or a file
    of scales for what is scaled ahead; None takes the built-in text, "none" leaves it to the engine where that can.
    `save_calibration`: a file for the scales that were used. `device`: where algorithms that read text run the model.
    `budget`: what the schemes of the linears are chosen under, instead of the target's.
    `trtllm_python`, `trtllm_command`: the environment whose
    trtllm-build makes the engine, by its Python or by a container command; None takes one from the PATH.
    `memory_bytes`: what reading, quantizing and writing may take; None stands for half of the machine's.
    `replace`: an older bundle at `out`, once the new one is whole. `fresh`: forget what an unfinished build left there.
    """

    target: Target
    model: str
    out: Path
    revision: str | None = None
    validate: bool = True
    threads: int | None = None
    exporter: Exporter = "edgeforge"
    chunks: int = 8
    calibration: Path | Literal["none"] | None = None
    save_calibration: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    budget: budgeting.Budget | None = None
    trtllm_python: Path | None = None
    trtllm_command: str | None = None
    replace: bool = False
    fresh: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that can be known before a weight is read, and then what calibration found for the plan.

    `original`: what the bundle has to answer like; `checkpoint`: what is quantized, the same or its rotation.
    `builder` is None where no engine is built: none is wanted, or the device has to do it. `learned`: the codes, where
    they were chosen on text. `spent`: what a budget bought.
    """

    plan: BuildPlan
    original: Checkpoint
    checkpoint: Checkpoint
    builder: "Builder | None" = None
    calibration: Calibration = EMPTY
    learned: calibrated.Learned | None = None
    spent: budgeting.Spent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """The finished bundle. `validation` is None when it was skipped. `seconds` count from the start of the pass."""

    bundle: Path
    plan: BuildPlan
    manifest: Manifest
    size_bytes: int
    seconds: float
    validation: "ValidationReport | None"

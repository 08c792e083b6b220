"""The calibrated pass: one decoder layer in memory at a time, run on text, quantized, and run again as it then is.

    hidden states before layer l (a file) ──► Gram matrices of its four inputs ──► scales and codes (a file)
                                          └─► the layer with its quantized weights ──► hidden states before l + 1

Whatever a layer leaves behind is a file in the state folder, so that a stopped pass goes on at the layer where it was.
torch does the arithmetic; this module does without it until the pass begins.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from edgeforge.errors import MissingDependency
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.pipeline.calibration_source import CalibrationTokens
from edgeforge.pipeline.layerwise.recipe import Recipe
from edgeforge.pipeline.layerwise.state import Grams, Quantized, StateFolder
from edgeforge.planning import BuildPlan

__all__ = ["Grams", "Quantized", "Recipe", "StateFolder", "check_torch", "collect_grams", "quantize_layers"]

Progress = Callable[[int, int], None]
Log = Callable[[str], None]


def quantize_layers(
    checkpoint: Checkpoint,
    plan: BuildPlan,
    tokens: CalibrationTokens,
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    progress: Progress,
    log: Log,
) -> Quantized:
    """Every linear that `plan.schemes` quantizes to codes of its own, by `recipe`, and what calibration learned.

    `folder` is the state folder: made where it is not there, gone on with where the same pass left it, emptied where
    another one did (`log` is told). Delete it after the last read of what is returned. The same arguments give the
    same bytes on any number of threads. `progress` gets (steps done, steps in all). Raises MissingDependency without
    torch or the device, UnusableInput for activations or weights that are not finite and for Hessians that nothing
    makes regular, OutOfResources.
    """
    check_torch(device)
    from edgeforge.pipeline.layerwise.quantizing import run

    return run(checkpoint, plan, tokens, recipe, folder, device=device, threads=threads, progress=progress, log=log)


def collect_grams(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    folder: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    progress: Progress,
    log: Log,
) -> Grams:
    """The Gram matrices of all linears' inputs in the unquantized model, on disk, by every linear's name.

    The output head's are by its name, or the embedding's where they are tied. Arguments and errors are those of
    `quantize_layers`.
    """
    check_torch(device)
    from edgeforge.pipeline.layerwise.collecting import run

    return run(checkpoint, tokens, folder, device=device, threads=threads, progress=progress, log=log)


def check_torch(device: str) -> None:
    """MissingDependency where torch or the device is not there. Imports torch only to ask for a device of its own."""
    if find_spec("torch") is None:
        raise MissingDependency(
            "calibrated quantization needs torch",
            hint="pip install 'edgeforge[calibrate]', or use --algorithm search (rtn for FP8)",
        )
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise MissingDependency("torch finds no CUDA device", hint="use --device cpu")

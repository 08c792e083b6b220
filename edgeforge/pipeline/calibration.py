"""Calibration: the largest magnitudes that a model's linears and caches meet on text, for scales that are fixed ahead.

The plainest of calibrations, max |x|, by the reference forward pass, with one block of weights in memory at a time.
Figures are rounded up to bfloat16: processors differ in the last bits of a matrix product, e4m3 keeps three, and
bundles should have the same bytes wherever they are built.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput, UsageError
from edgeforge.hardware import ENGINES
from edgeforge.model.checkpoint import Checkpoint
from edgeforge.model.forward import cache_names, final_hidden
from edgeforge.pipeline import scales_file
from edgeforge.pipeline.calibration_source import CalibrationTokens, read_tokens
from edgeforge.planning import BuildPlan, fused_blocks
from edgeforge.quantization.calibration import EMPTY, Calibration

Progress = Callable[[int, int], None]

WORKING_BYTES = 1 << 30  # activations of the forward pass
HEAD = "lm_head.weight"


def check_source(
    plans: Sequence[BuildPlan], source: Path | None, *, wanted: bool, save: Path | None, weighs: bool = False
) -> None:
    """Before any work: whether there are figures to find, and whether `source` (or, where not `wanted`, none) will do.
    `weighs`: whether text decides what a budget buys.

    Raises UsageError, UnusableInput.
    """
    calibrated = [plan for plan in plans if plan.calibrates]
    learning = [f"algorithm {plan.target.algorithm}" for plan in plans if plan.reads_text]
    learning += ["--scheme auto"] if weighs else []
    smoothed = _is_scales_file(source) and any(map(_takes_pre_quant_scales, plans))
    if not (calibrated or learning or smoothed) and (source is not None or save is not None):
        raise UsageError(
            "nothing is calibrated: no target has static scales, a quantized KV cache or an algorithm that reads text",
            hint="leave out --calibration and --save-calibration, or use --algorithm gptq or --scheme fp8",
        )
    if learning and (not wanted or _is_scales_file(source)):
        raise UsageError(
            f"{learning[0]} reads text" + (f", and {source} holds scales" if source is not None else ""),
            hint="give text with --calibration or leave it out for the default set, or use --algorithm search"
            + (" and name a scheme" if weighs else ""),
        )
    if not wanted:
        if save is not None:
            raise UsageError("--calibration none leaves nothing to save", hint="leave out --save-calibration")
        for plan in calibrated:
            _check_engine_calibrates(plan)
    if source is not None and not source.exists():
        raise UnusableInput(
            f"there is no calibration text or scales file at {source}",
            hint="leave --calibration out for the built-in text, or correct the path",
        )
    if save is not None and (save.suffix != scales_file.SUFFIX or not save.absolute().parent.is_dir()):
        raise UsageError(
            f"{save} cannot be a scales file", hint=f"name a *{scales_file.SUFFIX} file in a folder that exists"
        )


def _check_engine_calibrates(plan: BuildPlan) -> None:
    """TensorRT-LLM alone takes FP8 weights without an input scale, and finds it while it runs."""
    target = plan.target
    if target.kv_cache in ("fp8", "int8"):
        raise UsageError(
            f"a KV cache in {target.kv_cache} needs measured scales",
            hint=f"leave out --calibration none, or use --kv-cache {target.activations}",
        )
    if (target.backend, target.engine, target.scheme) != ("modelopt", "tensorrt-llm", "fp8"):
        raise UsageError(
            f"scheme {target.scheme} for {ENGINES[target.engine].title} needs measured scales",
            hint="leave out --calibration none, or use --scheme fp8-dynamic",
        )


def _takes_pre_quant_scales(plan: BuildPlan) -> bool:
    """Whether its format has a place for every linear's."""
    target = plan.target
    return target.scheme in ("w4a16", "w4a8") and target.backend in ("modelopt", "tensorrt-llm", "trtllm-engine")


def is_text(calibration: Path | Literal["none"] | None) -> bool:
    """Whether the user gave text (or rows of it) to calibrate on."""
    return isinstance(calibration, Path) and not _is_scales_file(calibration)


def _is_scales_file(source: Path | None) -> bool:
    return source is not None and source.suffix == scales_file.SUFFIX


def part_of(calibration: Calibration, plan: BuildPlan) -> Calibration:
    """What a target uses. Raises UnusableInput for pre-quant scales that its files have no place for."""
    if not calibration.pre_quant_scales:
        return calibration if plan.calibrates else EMPTY
    if plan.target.backend == "onnx":
        return EMPTY
    if not _takes_pre_quant_scales(plan):
        raise UnusableInput(
            f"the scales file has pre-quant scales, which scheme {plan.target.scheme} of backend {plan.target.backend} "
            "has no place for",
            hint="use --scheme w4a16 with --backend modelopt, or other scales",
        )
    return calibration


def load_or_measure(
    checkpoint: Checkpoint, source: Path | None, *, progress: Progress, kept: Path | None = None
) -> Calibration:
    """The figures of a scales file, or measured on the text of `source` (None: the package's own).

    `kept`: a scales file that measured figures go to, and come from the next time that they are of the same text.
    `progress` gets (layers done, layers in all). Raises UnusableInput: a file that is neither, too little text, scales
    of another model, activations that are not finite.
    """
    if source is not None and _is_scales_file(source):
        return scales_file.load(source, checkpoint)
    tokens = read_tokens(checkpoint, source)
    known = None if kept is None else scales_file.known(kept, checkpoint, tokens.text_sha256)
    if known is not None:
        return known
    found = measure(checkpoint, tokens, progress=progress)
    if kept is not None:
        scales_file.save(found, kept, fingerprint=checkpoint.fingerprint)
    return found


def measure(checkpoint: Checkpoint, tokens: CalibrationTokens, *, progress: Progress) -> Calibration:
    """max |x| of each linear's input, max |k| and |v| of each layer's cache, over all tokens."""
    architecture = checkpoint.architecture
    largest: dict[str, np.float32] = {}

    def tap(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        largest[name] = np.maximum(largest.get(name, np.float32(0)), _largest(name, x))
        return x

    groups = list(_groups(checkpoint, tokens.ids))
    layers = architecture.num_hidden_layers
    for done, ids in enumerate(groups):

        def layer_done(layer: int, _: int, done: int = done) -> None:
            progress(done * layers + layer, len(groups) * layers)

        with np.errstate(over="ignore", invalid="ignore"):  # told by the tap, with the layer's name
            tap(HEAD, final_hidden(checkpoint, ids, progress=layer_done, tap=tap))
    caches = [cache_names(layer) for layer in range(layers)]
    return Calibration(
        inputs={
            linear.name: _rounded_up(largest[block[0].name]) for block in fused_blocks(architecture) for linear in block
        },
        keys=tuple(_rounded_up(largest[keys]) for keys, _ in caches),
        values=tuple(_rounded_up(largest[values]) for _, values in caches),
        tokens=tokens.ids.size,
        text_sha256=tokens.text_sha256,
    )


def _groups(checkpoint: Checkpoint, ids: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """As many sequences at once as WORKING_BYTES allow: each group reads all weights."""
    architecture = checkpoint.architecture
    # per token: the residual stream, its norm, queries and attention's answer; gate and up of the MLP
    values = 4 * architecture.hidden_size + 2 * architecture.intermediate_size
    size = max(1, WORKING_BYTES // (4 * values * ids.shape[1]))
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _largest(name: str, x: NDArray[np.float32]) -> np.float32:
    amax = np.float32(np.maximum(x.max(), -x.min()))
    if not np.isfinite(amax):
        raise UnusableInput(
            f"the activations are not finite at {name} when the original reads calibration text",
            hint="the checkpoint is damaged, or its training diverged; fetch it again or take another",
        )
    return amax


def _rounded_up(amax: np.float32) -> float:
    """The next bfloat16, as which the upper half of a float32 counts."""
    bits = (int(np.asarray(amax, np.float32).view(np.uint32)) + 0xFFFF) & 0xFFFF0000
    return float(np.asarray(bits, np.uint32).view(np.float32))

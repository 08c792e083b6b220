"""The whole way through the public interface: one pass over a checkpoint, and every bundle holds the quantizer's codes.

And what the pass measures first is what ModelOpt measures on the same tokens.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from built import quiet
from compressed_reader import read_compressed
from random_llama import LLAMA, Floats
from trtllm_reader import read_trtllm
from unified_reader import read_unified
from written import assert_weights, chosen, expected, made_up

from edgeforge.hardware import Target
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.pipeline import BuildOptions, build_all, scales_file
from edgeforge.pipeline.calibration import measure
from edgeforge.pipeline.calibration_source import CalibrationTokens

Read = Callable[[Path], Mapping[str, Floats]]
BUNDLES: Mapping[str, tuple[Target, Read]] = {
    "fp8": (chosen("modelopt", "fp8"), lambda folder: read_unified(folder).weights),
    "w4a16": (chosen("modelopt", "w4a16", group_size=64), lambda folder: read_unified(folder).weights),
    "nvfp4": (chosen("modelopt", "nvfp4"), lambda folder: read_unified(folder).weights),
    "ranks": (chosen("tensorrt-llm", "w4a8", tensor_parallel=4), lambda folder: read_trtllm(folder).weights),
    "int4": (chosen("compressed-tensors", "w4a16", symmetric=False), lambda folder: read_compressed(folder).weights),
}


def test_five_formats_in_one_pass(random_checkpoint: Path, tmp_path: Path) -> None:
    scales, calibration = tmp_path / "scales.safetensors", made_up(LLAMA)
    scales_file.save(calibration, scales, fingerprint=open_checkpoint(str(random_checkpoint)).fingerprint)
    options = [
        BuildOptions(
            target=target, model=str(random_checkpoint), out=tmp_path / name, validate=False, calibration=scales
        )
        for name, (target, _) in BUNDLES.items()
    ]
    for result, (_, read) in zip(build_all(options, progress=quiet), BUNDLES.values(), strict=True):
        found = read(result.bundle / "model")
        assert_weights(found, LLAMA, expected(LLAMA, result.plan.schemes, calibration, algorithm="search"))


def test_magnitudes_are_those_that_modelopt_finds(random_checkpoint: Path, modelopt_exports: Path) -> None:
    """Ours are rounded up to bfloat16, so that every processor finds the same."""
    theirs = json.loads((modelopt_exports / "amax.json").read_text())
    tokens = CalibrationTokens(ids=np.array(theirs["tokens"], np.int64), text_sha256=None)
    ours = measure(open_checkpoint(str(random_checkpoint)), tokens, progress=lambda done, total: None)
    inputs = {name: ours.inputs[name] for name in theirs["inputs"]}
    assert len(inputs) == 7 * LLAMA.layers
    pairs = [*zip(inputs.values(), theirs["inputs"].values(), strict=True)]
    pairs += [*zip(ours.keys, theirs["keys"], strict=True), *zip(ours.values, theirs["values"], strict=True)]
    for found, largest in pairs:
        assert largest * (1 - 1e-5) < found < largest * (1 + 2**-7 + 1e-5)

"""Checkpoints that our backends write, with calibration figures made up by the test, and what should be in them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from random_llama import Floats, Llama, as_floats

from edgeforge import backends
from edgeforge.hardware import Target, load_target
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.pipeline.walk import Consumer, walk
from edgeforge.planning import apply_overrides, make_plan
from edgeforge.quantization.calibration import EMPTY, Calibration
from edgeforge.quantization.quantize import Algorithm, quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

BLOCKS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""A layer's linears; those of one block share their input, and scales that a matrix has one of."""


def chosen(
    backend: str,
    scheme: str,
    *,
    group_size: int | None = None,
    symmetric: bool | None = None,
    kv_cache: str | None = None,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    hardware: str | None = None,
) -> Target:
    """The backend's files for `hardware`, or for a GPU that has the scheme's arithmetic."""
    return apply_overrides(
        load_target(hardware or ("b200" if scheme == "nvfp4" else "h100")),
        backend=backend,
        scheme=scheme,
        group_size=group_size,
        symmetric=symmetric,
        kv_cache=kv_cache,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
    )


def write(
    folder: Path, model: Path | Checkpoint, target: Target, calibration: Calibration = EMPTY
) -> Mapping[str, QuantizationScheme]:
    """Write `model` into `folder` as the target's backend does it; returns the scheme of each weight."""
    checkpoint = open_checkpoint(str(model)) if isinstance(model, Path) else model
    plan = make_plan(checkpoint.architecture, target)
    backend = backends.load(target.backend)
    backend.check(plan)
    folder.mkdir(parents=True)
    with backend.sink(plan, calibration, folder) as sink:
        consumer = Consumer(schemes=plan.schemes, put=sink.put, pre_quant_scales=calibration.pre_quant_scales)
        walk(checkpoint, [consumer], threads=2, progress=lambda done, total: None)
    origin = backends.Origin(config=checkpoint.config, generation=checkpoint.generation)
    backend.finish(plan, origin, folder)
    return plan.schemes


def blocks(llama: Llama) -> list[list[str]]:
    """The names of the weights that share scales, for every layer."""
    return [[f"model.layers.{i}.{part}.weight" for part in block] for i in range(llama.layers) for block in BLOCKS]


def made_up(llama: Llama, *, smooth: bool = False) -> Calibration:
    """Figures for every input and cache, different everywhere; with `smooth`, scales for the input channels too."""
    random = np.random.default_rng(11)
    shapes = llama.shapes()
    inputs: dict[str, float] = {"lm_head.weight": 30.0}
    scales: dict[str, Floats] = {}
    for block in blocks(llama):
        largest = float(np.float32(random.uniform(3, 50)))
        channels = random.uniform(0.4, 2.5, shapes[block[0]][1]).astype(np.float32)
        inputs |= dict.fromkeys(block, largest)
        scales |= dict.fromkeys(block, channels)
    keys, values = random.uniform(5, 20, (2, llama.layers))
    return Calibration(
        inputs=inputs,
        keys=tuple(float(np.float32(key)) for key in keys),
        values=tuple(float(np.float32(value)) for value in values),
        pre_quant_scales=scales if smooth else {},
        tokens=1,
    )


def expected(
    llama: Llama, schemes: Mapping[str, QuantizationScheme], calibration: Calibration, algorithm: Algorithm = "rtn"
) -> dict[str, QuantizedTensor]:
    """Every quantized weight, whole, straight from the quantizer."""
    original, found = as_floats(llama.tensors()), {}
    for block in blocks(llama):
        weights = {name: original[name] / calibration.pre_quant_scales.get(name, np.float32(1)) for name in block}
        amax = float(max(np.abs(rows).max() for rows in weights.values()))
        for name, rows in weights.items():
            needed = amax if schemes[name].needs_amax else None
            found[name] = quantize(rows, schemes[name], amax=needed, algorithm=algorithm)
    return found


def assert_weights(found: Mapping[str, Floats], llama: Llama, quantized: Mapping[str, QuantizedTensor]) -> None:
    """Linears are exactly what the quantizer's codes stand for; the rest is exactly the original."""
    original = as_floats(llama.tensors())
    assert set(found) == set(original)
    for name, values in original.items():
        meant = dequantize(quantized[name]) if name in quantized else values
        np.testing.assert_array_equal(found[name], meant, err_msg=name)

"""Tiny plans, codes made by hand, and a reader of safetensors files, for backends that write Hugging Face's layout."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeforge import backends
from edgeforge.hardware import load_target
from edgeforge.model.architecture import LlamaArchitecture, hf_config
from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.planning import BuildPlan, apply_overrides, draft_plan, fused_blocks
from edgeforge.quantization.calibration import Calibration
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor
from tests.planning.shapes import llama

Array = NDArray[np.generic]
DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "U8": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
}
TINY = llama(128, 256, 2, 4, 2, vocab=40)
TIED = llama(128, 256, 1, 4, 2, vocab=40, tied=True)
Q, K, V, OUT, GATE, UP, DOWN = (
    *(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"),
    *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
)


def plan_for(
    backend: str, scheme: str, architecture: LlamaArchitecture = TINY, *, target: str | None = None, **changes: object
) -> BuildPlan:
    """A plan for a GPU that has the scheme's arithmetic, with `changes` to its target. Unless they say otherwise, a
    group has 128 weights and the cache is not quantized.
    """
    chosen = apply_overrides(
        load_target(target or ("b200" if scheme == "nvfp4" else "h100")), backend=backend, scheme=scheme
    )
    flowing = changes.get("activations", chosen.activations)
    settings = {"group_size": 128, "kv_cache": flowing, "lm_head": flowing, "embedding": flowing, **changes}
    return draft_plan(architecture, replace(chosen, **settings))  # type: ignore[arg-type]


def made_up(architecture: LlamaArchitecture = TINY) -> Calibration:
    """Input figures that differ within a block, so that sharing one shows."""
    names = [linear.name for linear in architecture.linears()]
    layers = architecture.num_hidden_layers
    return Calibration(
        inputs={name: float(4 + i) for i, name in enumerate(names)},
        keys=tuple(float(8 + i) for i in range(layers)),
        values=tuple(float(2 + i) for i in range(layers)),
    )


def smooth(architecture: LlamaArchitecture = TINY) -> dict[str, NDArray[np.float32]]:
    """Pre-quant scales of every linear, one per block; powers of two, which no type rounds."""
    random, scales = np.random.default_rng(5), {}
    for block in fused_blocks(architecture):
        scale = np.exp2(random.integers(-2, 3, block[0].in_features)).astype(np.float32)
        scales |= dict.fromkeys((linear.name for linear in block), scale)
    return scales


def rounded(values: Array, word: str) -> NDArray[np.float32]:
    return values.astype({"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}[word]).astype(np.float32)


def codes_of(shape: tuple[int, int], scheme: QuantizationScheme, seed: int = 0) -> QuantizedTensor:
    """Any codes and scales that the scheme can have."""
    random, (n, k) = np.random.default_rng(seed), shape
    groups = scheme.groups(k)
    scales = rounded(random.uniform(0.01, 0.02, (n, groups)).astype(np.float32), scheme.scale_dtype)
    if scheme.granularity == "tensor":
        scales[:] = scales[0, 0]
    tensor_scale = np.float32(0.0125) if scheme.needs_amax and scheme.granularity == "group" else None
    zero_points = None if scheme.symmetric else random.integers(-8, 8, (n, groups)).astype(np.int8)
    if scheme.code_format == "int":
        codes: Array = random.integers(-8, 8, shape).astype(np.int8)
    elif scheme.code_format == "e2m1":
        codes = random.integers(0, 16, shape).astype(np.uint8).view(ml_dtypes.float4_e2m1fn)
        scales = (scales * 1000).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    else:
        magnitudes = random.integers(0, 0x7F, shape).astype(np.uint8)
        codes = (magnitudes | (random.integers(0, 2, shape) << 7).astype(np.uint8)).view(ml_dtypes.float8_e4m3fn)
    return QuantizedTensor(
        scheme=scheme, codes=codes, scales=scales, zero_points=zero_points, tensor_scale=tensor_scale
    )


def rows_of(tensor: QuantizedTensor, start: int, stop: int) -> QuantizedTensor:
    return QuantizedTensor(
        scheme=tensor.scheme,
        codes=tensor.codes[start:stop],
        scales=tensor.scales[start:stop],
        zero_points=None if tensor.zero_points is None else tensor.zero_points[start:stop],
        tensor_scale=tensor.tensor_scale,
    )


Contents = Mapping[str, QuantizedTensor | NDArray[np.float32]]


def contents_of(plan: BuildPlan) -> dict[str, QuantizedTensor | NDArray[np.float32]]:
    """Something for every tensor of the checkpoint."""
    random = np.random.default_rng(1)
    found: dict[str, QuantizedTensor | NDArray[np.float32]] = {}
    for i, (name, shape) in enumerate(plan.architecture.tensors()):
        scheme = plan.schemes.get(name)
        if scheme is None or scheme.is_float:
            found[name] = random.standard_normal(shape).astype(np.float32)
        else:
            found[name] = codes_of((shape[0], shape[1]), scheme, seed=i)
    return found


def write(
    plan: BuildPlan,
    folder: Path,
    calibration: Calibration | None = None,
    *,
    contents: Contents | None = None,
    step: int = 1 << 20,
    threads: int = 1,
) -> Contents:
    """Put everything, `step` rows at a time, in an order that is none, from several threads; then finish."""
    backend, contents = backends.load(plan.target.backend), contents or contents_of(plan)
    pieces = []
    for name, whole in contents.items():
        rows = len(whole.codes) if isinstance(whole, QuantizedTensor) else len(whole)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            part = rows_of(whole, start, stop) if isinstance(whole, QuantizedTensor) else whole[start:stop]
            pieces.append((name, start, part))
    order = np.random.default_rng(2).permutation(len(pieces))
    folder.mkdir(parents=True, exist_ok=True)
    with backend.sink(plan, calibration or made_up(plan.architecture), folder) as sink:

        def work(share: Sequence[int]) -> None:
            for i in share:
                sink.put(*pieces[i])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [order[i::threads] for i in range(threads)]))
    config = hf_config(plan.architecture, dtype="bfloat16")
    backend.finish(plan, backends.Origin(config=config, generation=GenerationDefaults()), folder)
    return contents


def read_file(path: Path) -> dict[str, Array]:
    """Every tensor of a safetensors file, in file order."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    assert header.pop("__metadata__") == {"format": "pt"}
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        found[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def read(folder: Path) -> dict[str, Array]:
    """Every tensor of a folder."""
    found: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= read_file(path)
    return found


def described(tensors: Mapping[str, Array], prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(type, shape) of the tensors whose names start with `prefix`, by the rest of the name."""
    return {
        name.removeprefix(prefix): (str(tensor.dtype), tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def json_of(path: Path) -> dict[str, object]:
    content = json.loads(path.read_text("utf-8"))
    assert isinstance(content, dict)
    return content

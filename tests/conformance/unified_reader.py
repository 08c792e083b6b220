"""Reads a ModelOpt unified checkpoint: made from the format's description alone, sharing no code with the writer.

Names are Hugging Face's, unchanged. Every tensor must be known, of the type and shape that the format gives; a config
that TensorRT-LLM or Edge-LLM would not take is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from raw_files import E2M1, Array, Floats, number, read_folder, read_json, scalar, spread, typed, unpack_rows

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
FOLDED = {"self_attn.o_proj", "mlp.down_proj"}
"""The linears that carry a pre_quant_scale of their own; the norm before the others holds theirs."""
AWQ = ("W4A16_AWQ", "W4A8_AWQ")
STATIC = ("FP8", "W4A8_AWQ", "NVFP4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One quantized linear. `codes` as numbers [N, K]; `scales` float32 [N, G]; `weights` = what they stand for."""

    codes: Floats
    scales: Floats
    weights: Floats
    tensor_scale: float | None = None
    input_scale: float | None = None
    pre_quant_scale: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """`plain`: the tensors that are not quantized, with `dtype` the type they are stored in. `kv`: per layer (k, v)."""

    algorithm: str
    linears: Mapping[str, Linear]
    plain: Mapping[str, Floats]
    dtype: str
    kv: tuple[tuple[float, float], ...]

    @property
    def weights(self) -> dict[str, Floats]:
        """Every tensor of the checkpoint under its Hugging Face name, as float32."""
        return {**self.plain, **{f"{name}.weight": linear.weights for name, linear in self.linears.items()}}


def read_unified(folder: Path) -> Loaded:
    config = read_json(folder / "config.json")
    described = quantization(folder, config)
    algorithm = described["quant_algo"]
    assert isinstance(algorithm, str)
    tensors = read_folder(folder)
    layers = [f"model.layers.{i}." for i in range(number(config, "num_hidden_layers"))]
    shapes = linear_shapes(config)
    group_size = described.get("group_size", 0)
    assert isinstance(group_size, int)
    linears = {}
    for layer in layers:
        for part, shape in shapes.items():
            linears[layer + part] = read_linear(tensors, layer + part, shape, algorithm, group_size)
        fused = [[layer + part for part in parts] for parts in (ATTENTION, MLP)]
        assert_fused(linears, fused)
    # FP8 without: TensorRT-LLM finds it while it runs, for all or for none.
    assert len({linear.input_scale is None for linear in linears.values()}) == 1
    kv: list[tuple[float, float]] = []
    if described["kv_cache_quant_algo"] is not None:
        kv = [
            (scalar(tensors, f"{layer}self_attn.k_proj.k_scale"), scalar(tensors, f"{layer}self_attn.v_proj.v_scale"))
            for layer in layers
        ]
    plain, dtype = read_plain(tensors, config, layers)
    assert not tensors, f"the format has no {sorted(tensors)}"
    return Loaded(algorithm=algorithm, linears=linears, plain=plain, dtype=dtype, kv=tuple(kv))


def linear_shapes(config: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """(out, in) of a layer's linears."""
    hidden, inner = number(config, "hidden_size"), number(config, "intermediate_size")
    heads, kv_heads = number(config, "num_attention_heads"), number(config, "num_key_value_heads")
    width = number(config, "head_dim") if config.get("head_dim") is not None else hidden // heads
    return {
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (kv_heads * width, hidden),
        "self_attn.v_proj": (kv_heads * width, hidden),
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def quantization(folder: Path, config: Mapping[str, object]) -> Mapping[str, object]:
    """hf_quant_config.json's block, which must agree with the one inside config.json."""
    stated = read_json(folder / "hf_quant_config.json")
    assert set(stated) == {"producer", "quantization"}
    producer, described = stated["producer"], stated["quantization"]
    assert isinstance(producer, dict) and set(producer) == {"name", "version"}
    assert isinstance(described, dict)
    algorithm = described["quant_algo"]
    assert described["kv_cache_quant_algo"] in (None, "FP8", "INT8")
    assert described["exclude_modules"][:1] == ["lm_head"]
    # Edge-LLM takes int() of a group size that is there: null would be a crash.
    assert all(value is not None for key, value in described.items() if key != "kv_cache_quant_algo")
    if algorithm in AWQ:
        assert (described["has_zero_point"], described["pre_quant_scale"]) == (False, True)
        assert described["group_size"] in (32, 64, 128)
    elif algorithm == "NVFP4":
        assert described["group_size"] == 16
    else:
        assert algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")
        assert "group_size" not in described
    embedded = config["quantization_config"]
    assert isinstance(embedded, dict)
    assert (embedded["quant_method"], embedded["quant_algo"]) == ("modelopt", algorithm)
    return described


def read_linear(
    tensors: dict[str, Array], name: str, shape: tuple[int, int], algorithm: str, group_size: int
) -> Linear:
    n, k = shape
    tensor_scale = input_scale = pre_quant_scale = None
    if algorithm in AWQ:
        codes = unpack_rows(typed(tensors, f"{name}.weight", "U8", (n // 2, k))).astype(np.float32)
        scales = typed(tensors, f"{name}.weight_scale", "F32", (n, k // group_size)).astype(np.float32)
        if name.split(".", 3)[3] in FOLDED:
            pre_quant_scale = tensors.pop(f"{name}.pre_quant_scale").astype(np.float32)
            assert pre_quant_scale.shape == (k,) and (pre_quant_scale > 0).all()
        weights = codes * spread(scales, k)
    elif algorithm == "NVFP4":
        codes = unpack_columns(typed(tensors, f"{name}.weight", "U8", (n, k // 2)))
        scales = typed(tensors, f"{name}.weight_scale", "F8_E4M3", (n, k // 16)).astype(np.float32)
        tensor_scale = scalar(tensors, f"{name}.weight_scale_2")
        weights = codes * spread(scales * np.float32(tensor_scale), k)
    else:
        codes = typed(tensors, f"{name}.weight", "F8_E4M3", (n, k)).astype(np.float32)
        assert np.isfinite(codes).all()
        of_rows = algorithm == "FP8_PER_CHANNEL_PER_TOKEN"
        stored = typed(tensors, f"{name}.weight_scale", "F32", (n,) if of_rows else ())
        scales = np.broadcast_to(stored.astype(np.float32).reshape(-1, 1), (n, 1))
        weights = codes * scales
    if algorithm == "W4A8_AWQ":
        tensor_scale = scalar(tensors, f"{name}.weight_scale_2")
    if algorithm in STATIC and (algorithm != "FP8" or f"{name}.input_scale" in tensors):
        input_scale = scalar(tensors, f"{name}.input_scale")
    assert (scales > 0).all()
    return Linear(
        codes=codes,
        scales=scales,
        weights=weights,
        tensor_scale=tensor_scale,
        input_scale=input_scale,
        pre_quant_scale=pre_quant_scale,
    )


def unpack_columns(packed: NDArray[np.generic]) -> Floats:
    """[N, K / 2] bytes -> the e2m1 numbers [N, K]: even k in the low nibble."""
    return E2M1[np.stack([packed.view(np.uint8) & 15, packed.view(np.uint8) >> 4], axis=-1).reshape(len(packed), -1)]


def assert_fused(linears: Mapping[str, Linear], blocks: list[list[str]]) -> None:
    """What TensorRT-LLM runs as one matmul has one scale of each kind that a matrix has only one of."""
    for names in blocks:
        assert len({linears[name].tensor_scale for name in names}) == 1, names
        assert len({linears[name].input_scale for name in names}) == 1, names


def read_plain(
    tensors: dict[str, Array], config: Mapping[str, object], layers: list[str]
) -> tuple[dict[str, Floats], str]:
    """Embedding, norms and lm_head, all of one 16-bit (or 32-bit) type: the one that config.json names."""
    hidden, vocab = number(config, "hidden_size"), number(config, "vocab_size")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in layers:
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    stated = config["torch_dtype"] if "torch_dtype" in config else config["dtype"]
    code = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[str(stated)]
    return {name: typed(tensors, name, code, shape).astype(np.float32) for name, shape in shapes.items()}, str(stated)

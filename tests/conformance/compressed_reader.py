"""Reads a compressed-tensors checkpoint (pack-quantized and float-quantized) from the format's description alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from raw_files import Array, Floats, number, read_folder, read_json, spread, typed
from unified_reader import linear_shapes, read_plain

Group = Mapping[str, Mapping[str, object] | None]
"""One of the config's config_groups: how its weights and its inputs are quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """codes, weights float32 [N, K]; scales float32 [N, G]; zero_points int8 [N, G] where there are any."""

    codes: Floats
    scales: Floats
    weights: Floats
    zero_points: NDArray[np.int8] | None = None
    input_scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    format: str
    linears: Mapping[str, Linear]
    plain: Mapping[str, Floats]
    dtype: str
    kv: tuple[tuple[float, float], ...]

    @property
    def weights(self) -> dict[str, Floats]:
        return {**self.plain, **{f"{name}.weight": linear.weights for name, linear in self.linears.items()}}


def read_compressed(folder: Path) -> Loaded:
    config = read_json(folder / "config.json")
    described = config["quantization_config"]
    assert isinstance(described, dict)
    assert (described["quant_method"], described["quantization_status"]) == ("compressed-tensors", "compressed")
    assert described["ignore"] == ["lm_head"]
    (group,) = described["config_groups"].values()
    assert group["targets"] == ["Linear"]
    tensors = read_folder(folder)
    layers = [f"model.layers.{i}." for i in range(number(config, "num_hidden_layers"))]
    read = {"pack-quantized": read_packed, "float-quantized": read_float}[described["format"]]
    linears = {
        layer + part: read(tensors, layer + part, shape, group)
        for layer in layers
        for part, shape in linear_shapes(config).items()
    }
    plain, dtype = read_plain(tensors, config, layers)
    kv = read_cache(tensors, layers, described["kv_cache_scheme"])
    assert not tensors, f"the format has no {sorted(tensors)}"
    return Loaded(format=described["format"], linears=linears, plain=plain, dtype=dtype, kv=kv)


def read_cache(
    tensors: dict[str, Array], layers: list[str], scheme: Mapping[str, object] | None
) -> tuple[tuple[float, float], ...]:
    """Each layer's scales of keys and values, by the names that the package gives them: the attention's own."""
    if scheme is None:
        return ()
    assert (scheme["num_bits"], scheme["type"], scheme["strategy"]) == (8, "float", "tensor")
    assert scheme["symmetric"] is True and scheme["dynamic"] is False
    stored = [[tensors.pop(f"{layer}self_attn.{part}_scale") for part in "kv"] for layer in layers]
    assert all(scale.shape == (1,) for pair in stored for scale in pair)
    return tuple((float(key.astype(np.float32)[0]), float(value.astype(np.float32)[0])) for key, value in stored)


def unpack_words(words: Array, count: int) -> NDArray[np.int8]:
    """int32 [N, W] -> int8 [N, count]: element k at bits 4 * (k % 8) of word k // 8, 8 more than it is."""
    shifted = words.view(np.uint32)[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)
    return ((shifted & 15).astype(np.int8) - 8).reshape(len(words), -1)[:, :count]


def read_packed(tensors: dict[str, Array], name: str, shape: tuple[int, int], group: Group) -> Linear:
    n, k = shape
    scheme = group["weights"]
    assert scheme is not None
    assert (scheme["num_bits"], scheme["type"], scheme["strategy"]) == (4, "int", "group")
    assert group["input_activations"] is None and scheme["dynamic"] is False
    size = scheme["group_size"]
    assert isinstance(size, int)
    groups = k // size
    assert typed(tensors, f"{name}.weight_shape", "I64", (2,)).tolist() == [n, k]
    codes = unpack_words(typed(tensors, f"{name}.weight_packed", "I32", (n, -(-k // 8))), k).astype(np.float32)
    scales = tensors.pop(f"{name}.weight_scale").astype(np.float32)
    assert scales.shape == (n, groups) and (scales > 0).all()
    if scheme["symmetric"]:
        return Linear(codes=codes, scales=scales, weights=codes * spread(scales, k))
    packed = typed(tensors, f"{name}.weight_zero_point", "I32", (-(-n // 8), groups))
    zero_points = np.ascontiguousarray(unpack_words(np.ascontiguousarray(packed.T), n).T)
    weights = (codes - spread(zero_points, k)) * spread(scales, k)
    return Linear(codes=codes, scales=scales, weights=weights, zero_points=zero_points)


def read_float(tensors: dict[str, Array], name: str, shape: tuple[int, int], group: Group) -> Linear:
    n, k = shape
    scheme, inputs = group["weights"], group["input_activations"]
    assert scheme is not None and inputs is not None
    assert (scheme["num_bits"], scheme["type"], inputs["num_bits"], inputs["type"]) == (8, "float", 8, "float")
    of_rows = scheme["strategy"] == "channel"
    assert of_rows or scheme["strategy"] == "tensor"
    assert (inputs["dynamic"], inputs["strategy"]) == ((True, "token") if of_rows else (False, "tensor"))
    codes = typed(tensors, f"{name}.weight", "F8_E4M3", (n, k)).astype(np.float32)
    assert np.isfinite(codes).all()
    stored = tensors.pop(f"{name}.weight_scale").astype(np.float32)
    assert stored.shape == ((n, 1) if of_rows else (1,)) and (stored > 0).all()
    input_scale = None
    if not of_rows:
        given = tensors.pop(f"{name}.input_scale").astype(np.float32)
        assert given.shape == (1,) and given[0] > 0
        input_scale = float(given[0])
    scales = np.broadcast_to(stored.reshape(-1, 1), (n, 1))
    return Linear(codes=codes, scales=scales, weights=codes * scales, input_scale=input_scale)

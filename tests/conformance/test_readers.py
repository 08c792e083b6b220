"""The readers that prove our checkpoints are right are themselves right: they read what other people's writers wrote,
and the weights that come out are the original's, to the bits that the format keeps.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_reader import Group, read_packed, unpack_words
from random_llama import LLAMA, as_floats
from raw_files import E2M1, Floats, unpack_rows
from trtllm_reader import read_trtllm
from unified_reader import read_unified, unpack_columns

ERRORS = {"fp8": 0.05, "fp8-dynamic": 0.05, "w4a16": 0.25, "w4a8": 0.25, "nvfp4": 0.12}
"""Root mean square of the rounding errors over that of the weights: what each format may lose."""
MAPPINGS = ("1x1", "4x1", "2x2")


@pytest.fixture(scope="module")
def original() -> dict[str, Floats]:
    return as_floats(LLAMA.tensors())


def lost(found: Floats, original: Floats) -> float:
    return float(np.sqrt(((found - original) ** 2).mean() / (original**2).mean()))


def assert_close(found: dict[str, Floats], original: dict[str, Floats], at_most: float) -> None:
    assert set(found) == set(original)
    for name, values in original.items():
        if values.ndim == 1 or name in ("model.embed_tokens.weight", "lm_head.weight"):
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        else:
            assert lost(found[name], values) < at_most, name


@pytest.mark.parametrize("scheme", ["fp8", "fp8-dynamic", "nvfp4"])
def test_modelopts_unified_checkpoints(modelopt_exports: Path, original: dict[str, Floats], scheme: str) -> None:
    loaded = read_unified(modelopt_exports / scheme / "unified")
    assert len(loaded.kv) == (LLAMA.layers if scheme == "fp8" else 0)
    assert_close(loaded.weights, original, ERRORS[scheme])


@pytest.mark.parametrize("scheme", ["w4a16", "w4a8"])
def test_modelopts_unified_awq_checkpoints(modelopt_exports: Path, original: dict[str, Floats], scheme: str) -> None:
    """The input's scales, folded into the norms or kept beside o and down, undo what was done to the weights."""
    loaded = read_unified(modelopt_exports / f"{scheme}-awq" / "unified")
    for name, linear in loaded.linears.items():
        scales = linear.pre_quant_scale
        if scales is None:
            layer, part = name.rsplit(".", 2)[0], name.rsplit(".", 2)[1]
            norm = f"{layer}.{'input' if part == 'self_attn' else 'post_attention'}_layernorm.weight"
            scales = loaded.plain[norm] / original[norm]
        assert lost(linear.weights * scales, original[f"{name}.weight"]) < ERRORS[scheme], name


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_modelopts_fp8_ranks(modelopt_exports: Path, original: dict[str, Floats], mapping: str) -> None:
    folder = modelopt_exports / "fp8" / f"trtllm-{mapping}"
    loaded = read_trtllm(folder, ignored=(".k_cache_scaling_factor", ".v_cache_scaling_factor"))
    assert_close(loaded.weights, original, ERRORS["fp8"])
    assert len(loaded.kv) == LLAMA.layers


@pytest.mark.parametrize(("scheme", "mapping"), [("w4a16", "4x1"), ("w4a8", "2x2")])
def test_modelopts_awq_ranks(modelopt_exports: Path, original: dict[str, Floats], scheme: str, mapping: str) -> None:
    """Nothing is folded here: every linear carries its input's scales."""
    loaded = read_trtllm(modelopt_exports / f"{scheme}-awq" / f"trtllm-{mapping}")
    for name, part in loaded.linears.items():
        assert part.pre_quant_scale is not None
        assert lost(part.weights * part.pre_quant_scale, original[f"{name}.weight"]) < ERRORS[scheme], name


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_compressed_tensors_packs(symmetric: bool) -> None:
    """Rows and groups that fill no whole word of zero points."""
    compressed_tensors = pytest.importorskip("compressed_tensors", reason="ci/setup installs it")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    random = torch.Generator().manual_seed(2)
    codes = torch.randint(-8, 8, (13, 96), generator=random, dtype=torch.int8)
    zero_points = torch.randint(-8, 8, (13, 3), generator=random, dtype=torch.int8) * (not symmetric)
    scales = torch.rand((13, 3), generator=random) + 0.1
    weights = (codes - zero_points.repeat_interleave(32, 1)) * scales.repeat_interleave(32, 1)
    arguments = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "dynamic": False}
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(**arguments, symmetric=symmetric)
    )
    state = {"weight": weights, "weight_scale": scales, "weight_zero_point": zero_points}
    compressor = compressed_tensors.BaseCompressor.get_value_from_registry("pack-quantized")
    packed = {f"x.{name}": tensor.numpy() for name, tensor in compressor.compress(state, scheme).items()}
    group: Group = {"weights": {**arguments, "symmetric": symmetric}, "input_activations": None}
    linear = read_packed(packed, "x", (13, 96), group)
    np.testing.assert_array_equal(linear.codes, codes)
    np.testing.assert_array_equal(linear.weights, weights)
    assert not packed


def test_packed_bytes_by_hand() -> None:
    """One byte of each layout, computed with a pencil."""
    np.testing.assert_array_equal(unpack_rows(np.array([[0x8F, 0x70]], np.uint8)), [[-1, 0], [-8, 7]])
    np.testing.assert_array_equal(unpack_columns(np.array([[0x72, 0x9F]], np.uint8)), [[1, 6, -6, -0.5]])
    words = np.array([[0x0F80_7190]], np.int64).astype(np.int32)
    np.testing.assert_array_equal(unpack_words(words, 7), [[-8, 1, -7, -1, -8, 0, 7]])
    assert E2M1[7] == 6 and E2M1[15] == -6

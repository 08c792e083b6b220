"""NVFP4's two levels of scales, and ModelOpt's bytes."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgeforge.quantization.minifloat import E2M1, round_to_minifloat
from edgeforge.quantization.nvfp4 import input_scale, quantize_nvfp4
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

Weights = NDArray[np.float32]
NVFP4 = QuantizationScheme(name="nvfp4", bits=4, code_format="e2m1", group_size=16, activations="static")
E2M1_NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def quantized(w: Weights) -> QuantizedTensor:
    return quantize_nvfp4(w, NVFP4, float(np.abs(w).max()))


def packed(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Two codes a byte, the even column in the low nibble."""
    codes = tensor.codes.view(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4


def test_modelopt_makes_the_same_bytes(hard: Weights, modelopt: Mapping[str, NDArray[np.generic]]) -> None:
    tensor = quantized(hard)
    np.testing.assert_array_equal(packed(tensor), modelopt["nvfp4"])
    block_scales = tensor.scales.astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(block_scales.view(np.uint8), modelopt["nvfp4_block_scales"])
    np.testing.assert_array_equal(block_scales.astype(np.float32), tensor.scales)
    assert tensor.tensor_scale == modelopt["nvfp4_scale"]
    assert tensor.tensor_scale.dtype == np.float32


def test_every_bfloat16_is_cast_as_ml_dtypes_casts_it() -> None:
    every = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    values = every[~np.isnan(every)][None]
    np.testing.assert_array_equal(
        round_to_minifloat(values, E2M1), np.clip(values, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    )


def test_ties_go_to_the_even_code_and_their_neighbours_to_the_nearest() -> None:
    ties = (E2M1_NUMBERS[1:] + E2M1_NUMBERS[:-1]) / 2
    below, above = np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(9))
    got = round_to_minifloat(np.stack([below, ties, above]), E2M1)
    assert got.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 2, 2, 4, 4, 6, 6], [1, 2, 3, 4, 5, 6, 7]]


weights = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.sampled_from([16, 32, 80])),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
    fill=st.sampled_from([0.0, 1.0, -0.3]) | st.floats(-1, 1, width=32),
)


@given(weights, st.data())
def test_pieces_of_rows_get_the_codes_of_the_whole(w: Weights, data: st.DataObject) -> None:
    amax, cut = float(np.abs(w).max()), data.draw(st.integers(1, len(w)))
    whole, piece = quantize_nvfp4(w, NVFP4, amax), quantize_nvfp4(w[:cut], NVFP4, amax)
    np.testing.assert_array_equal(piece.codes.view(np.uint8), whole.codes[:cut].view(np.uint8))
    np.testing.assert_array_equal(piece.scales, whole.scales[:cut])
    assert piece.tensor_scale == whole.tensor_scale


@given(weights)
def test_each_code_is_the_nearest_number_under_its_scales(w: Weights) -> None:
    tensor = quantized(w)
    assert tensor.tensor_scale is not None
    step = np.repeat(tensor.scales.astype(np.float64) * tensor.tensor_scale, 16, axis=1)
    numbers = np.concatenate([E2M1_NUMBERS, -E2M1_NUMBERS])
    best = np.abs(w[:, :, None] - step[:, :, None] * numbers).min(axis=2)
    moved = np.abs(w - step * tensor.codes.astype(np.float64))
    assert (moved <= best + step * 1e-6).all()
    np.testing.assert_allclose(dequantize(tensor), step * tensor.codes.astype(np.float64), rtol=3e-7, atol=1e-44)


@given(weights)
def test_block_scales_are_positive_e4m3_numbers(w: Weights) -> None:
    tensor = quantized(w)
    assert tensor.scales.shape == (len(w), w.shape[1] // 16)
    assert tensor.scales.dtype == np.float32
    assert (tensor.scales >= 2.0**-9).all()
    assert (tensor.scales <= 448).all()
    np.testing.assert_array_equal(tensor.scales, tensor.scales.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_the_largest_weight_has_the_largest_code_under_the_largest_scale() -> None:
    w = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    w[2, 17] = -7.25
    tensor = quantized(w)
    assert tensor.scales[2, 1] == 448
    assert tensor.codes[2, 17] == -6
    assert dequantize(tensor)[2, 17] == pytest.approx(-7.25, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-36])
def test_a_matrix_of_zeros_or_too_small_for_a_scale_is_exact_zeros(value: float) -> None:
    tensor = quantized(np.full((2, 32), value, np.float32))
    assert tensor.tensor_scale == 1
    assert not dequantize(tensor).any()


def test_a_block_of_zeros_has_scale_one_and_positive_zeros() -> None:
    w = np.ones((1, 48), np.float32)
    w[0, 16:32] = -0.0
    tensor = quantized(w)
    assert tensor.scales[0, 1] == 1
    assert not tensor.codes.view(np.uint8)[0, 16:32].any()


def test_weights_beyond_the_stated_magnitude_saturate() -> None:
    w = np.full((1, 16), 1, np.float32)
    w[0, 3] = -50
    tensor = quantize_nvfp4(w, NVFP4, 2.0)
    assert dequantize(tensor)[0, 3] == pytest.approx(-2, rel=1e-6)


@pytest.mark.parametrize("k", [1, 8, 24, 172])
def test_rows_that_are_not_whole_blocks_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="blocks of 16"):
        quantize_nvfp4(np.ones((2, k), np.float32), NVFP4, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    w = np.ones((3, 48), np.float32)
    w[2, 47] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_nvfp4(w, NVFP4, 1.0)


def test_the_scale_of_an_input_is_its_magnitude_over_2688() -> None:
    assert input_scale(float(np.float32(3.3))) == np.float32(3.3) / np.float32(2688)
    assert input_scale(0.0) == 1

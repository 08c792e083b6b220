"""W4A8's int4 groups under max / 7, with a positive scale that TensorRT-LLM can divide, and ModelOpt's bytes."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize
from edgeforge.quantization.w4a8 import quantize_w4a8

Weights = NDArray[np.float32]
GROUP = 64


def scheme(size: int = GROUP, scale_dtype: str = "f32") -> QuantizationScheme:
    return QuantizationScheme(name="w4a8", bits=4, group_size=size, activations="static", scale_dtype=scale_dtype)


def quantized(w: Weights, size: int = 16) -> QuantizedTensor:
    return quantize_w4a8(w, scheme(size), float(np.abs(w).max()))


def packed(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Two rows a byte, the even row in the low nibble."""
    codes = tensor.codes.view(np.uint8) & 15
    return codes[::2] | codes[1::2] << 4


def test_modelopt_makes_the_same_bytes(hard: Weights, modelopt: Mapping[str, NDArray[np.generic]]) -> None:
    """But the scales of groups of zeros, which it sets to one, whatever the matrix's own is."""
    tensor = quantized(hard, GROUP)
    np.testing.assert_array_equal(packed(tensor), modelopt["int4"])
    live = hard.reshape(*tensor.scales.shape, GROUP).any(axis=2)
    assert not live.all()
    np.testing.assert_array_equal(tensor.scales[live], modelopt["int4_scales"][live])
    assert (modelopt["int4_scales"][~live] == 1).all()
    assert tensor.tensor_scale == modelopt["fp8_scale"]


weights = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.sampled_from([16, 32, 80])),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
    fill=st.sampled_from([0.0, 1.0, -0.3]) | st.floats(-1, 1, width=32),
)


@given(weights)
def test_no_weight_moves_by_more_than_half_a_step(w: Weights) -> None:
    tensor = quantized(w)
    step = np.repeat(tensor.scales, 16, axis=1).astype(np.float64)
    assert (np.abs(tensor.codes * step - w) <= step * (0.5 + 2.0**-20)).all()
    assert tensor.codes.dtype == np.int8
    assert tensor.scales.dtype == np.float32
    np.testing.assert_allclose(dequantize(tensor), tensor.codes * step, rtol=1e-7)


@given(weights)
def test_scales_are_positive_and_at_most_64_of_the_matrixs(w: Weights) -> None:
    """So that code * scale / tensor_scale is within e4m3's 448, and nothing overflows float16."""
    tensor = quantized(w)
    assert tensor.tensor_scale is not None
    assert (tensor.scales > 0).all()
    assert (tensor.scales / tensor.tensor_scale <= 64.0001).all()
    assert (np.abs(tensor.codes) <= 7).all()


@given(weights, st.data())
def test_pieces_of_rows_get_the_codes_of_the_whole(w: Weights, data: st.DataObject) -> None:
    amax, cut = float(np.abs(w).max()), data.draw(st.integers(1, len(w)))
    whole, piece = quantize_w4a8(w, scheme(16), amax), quantize_w4a8(w[:cut], scheme(16), amax)
    np.testing.assert_array_equal(piece.codes, whole.codes[:cut])
    np.testing.assert_array_equal(piece.scales, whole.scales[:cut])
    assert piece.tensor_scale == whole.tensor_scale


def test_a_group_of_zeros_has_the_matrixs_scale() -> None:
    w = np.full((1, 32), 0.007, np.float32)
    w[0, :16] = 0
    tensor = quantized(w)
    assert tensor.scales[0, 0] == tensor.scales[0, 1]
    assert not dequantize(tensor)[0, :16].any()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45])
def test_a_matrix_of_zeros_is_exact_zeros_with_scales_of_one(value: float) -> None:
    tensor = quantized(np.full((2, 32), value, np.float32))
    assert (tensor.scales == 1).all()
    assert tensor.tensor_scale == 1
    assert not dequantize(tensor).any()


def test_codes_are_chosen_for_the_scale_that_is_stored() -> None:
    w = np.random.default_rng(0).standard_normal((5, 320)).astype(np.float32)
    tensor = quantize_w4a8(w, scheme(64, "f16"), float(np.abs(w).max()))
    np.testing.assert_array_equal(tensor.scales, tensor.scales.astype(np.float16).astype(np.float32))
    expected = np.clip(np.rint(w / np.repeat(tensor.scales, 64, axis=1)), -8, 7)
    np.testing.assert_array_equal(tensor.codes, expected)


def test_rows_that_are_not_whole_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 64"):
        quantize_w4a8(np.ones((2, 80), np.float32), scheme(), 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    w = np.ones((3, 128), np.float32)
    w[2, 127] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_w4a8(w, scheme(), 1.0)

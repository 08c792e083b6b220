"""e4m3 codes are everyone's (torch, ml_dtypes, ModelOpt), and scales are max / 448."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from edgeforge.quantization.fp8 import cast_e4m3, input_scale, kv_cache_scale, quantize_fp8
from edgeforge.quantization.minifloat import BLOCK
from edgeforge.quantization.scheme import QuantizationScheme, dequantize

Weights = NDArray[np.float32]
PER_TENSOR = QuantizationScheme(name="fp8", bits=8, code_format="e4m3", granularity="tensor", activations="static")
PER_CHANNEL = QuantizationScheme(
    name="fp8-dynamic", bits=8, code_format="e4m3", granularity="channel", activations="dynamic"
)


def codes_of_torch(values: Weights) -> NDArray[np.uint8]:
    torch = pytest.importorskip("torch")
    codes = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return np.asarray(codes.numpy())


def codes_of_ml_dtypes(values: Weights) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore"):
        return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def codes(values: Weights) -> NDArray[np.uint8]:
    return cast_e4m3(values).view(np.uint8)


def test_every_bfloat16_is_cast_as_torch_and_ml_dtypes_cast_it() -> None:
    """NaNs and infinities among them."""
    every = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(codes(every), codes_of_torch(every))
    np.testing.assert_array_equal(codes(every), codes_of_ml_dtypes(every))


def test_every_float32_near_a_number_or_a_tie_is_cast_as_torch_casts_it() -> None:
    numbers = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ties = (numbers[1:] + numbers[:-1]) / 2
    places = np.concatenate([numbers, ties, [464, 480]]).astype(np.float32).view(np.int32)
    near = (places[:, None] + np.arange(-3, 4)).reshape(-1)
    values = near[near >= 0].astype(np.int32).view(np.float32)
    values = np.concatenate([values, -values])
    np.testing.assert_array_equal(codes(values), codes_of_torch(values))


def test_random_float32_bits_are_cast_as_ml_dtypes_casts_them() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 3 * BLOCK // 2, np.uint32)
    binades = np.random.default_rng(1).integers(110, 137, bits.size, np.uint32) << 23  # 2^-17 to 2^9
    values = np.stack([bits, bits & np.uint32(0x807FFFFF) | binades]).view(np.float32)
    np.testing.assert_array_equal(codes(values), codes_of_ml_dtypes(values))


@given(arrays(np.float32, array_shapes(max_dims=3, min_side=0), elements=st.floats(width=32)), st.booleans())
def test_any_shape_and_memory_order_is_cast(values: Weights, transposed: bool) -> None:
    before = values.copy()
    given_values = values.T if transposed else values
    got = cast_e4m3(given_values)
    assert got.dtype == ml_dtypes.float8_e4m3fn
    assert got.shape == given_values.shape
    np.testing.assert_array_equal(got.view(np.uint8), codes_of_ml_dtypes(given_values))
    np.testing.assert_array_equal(values, before)


def test_modelopt_makes_the_same_bytes(hard: Weights, modelopt: Mapping[str, NDArray[np.generic]]) -> None:
    whole = quantize_fp8(hard, PER_TENSOR, float(np.abs(hard).max()))
    np.testing.assert_array_equal(whole.codes.view(np.uint8), modelopt["fp8"])
    assert (whole.scales == modelopt["fp8_scale"]).all()
    rows = quantize_fp8(hard, PER_CHANNEL)
    np.testing.assert_array_equal(rows.codes.view(np.uint8), modelopt["channel"])
    np.testing.assert_array_equal(rows.scales[:, 0], modelopt["channel_scales"])


weights = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
    fill=st.sampled_from([0.0, 1.0, -0.3]),
)


@given(weights, st.sampled_from([PER_TENSOR, PER_CHANNEL]), st.data())
def test_pieces_of_rows_get_the_codes_of_the_whole(w: Weights, scheme: QuantizationScheme, data: st.DataObject) -> None:
    amax = float(np.abs(w).max())
    cut = data.draw(st.integers(1, len(w)))
    whole, piece = quantize_fp8(w, scheme, amax), quantize_fp8(w[:cut], scheme, amax)
    np.testing.assert_array_equal(piece.codes.view(np.uint8), whole.codes[:cut].view(np.uint8))
    np.testing.assert_array_equal(piece.scales, whole.scales[:cut])
    assert whole.scales.shape == (len(w), 1)
    assert whole.scales.dtype == np.float32


@given(weights, st.sampled_from([PER_TENSOR, PER_CHANNEL]))
def test_no_weight_moves_by_more_than_a_sixteenth_or_half_the_smallest_step(
    w: Weights, scheme: QuantizationScheme
) -> None:
    tensor = quantize_fp8(w, scheme, float(np.abs(w).max()))
    exact = tensor.codes.astype(np.float64) * tensor.scales
    largest = np.abs(w).max(axis=1, keepdims=True) if scheme is PER_CHANNEL else np.abs(w).max()
    bound = np.maximum(np.abs(w) / 16, np.maximum(largest / 448, 2.0**-126) * 2.0**-10)
    assert (np.abs(exact - w) <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("scheme", [PER_TENSOR, PER_CHANNEL], ids=["tensor", "channel"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-38])
def test_what_is_zero_or_too_small_for_a_scale_is_exact_zeros_with_scale_one(
    scheme: QuantizationScheme, value: float
) -> None:
    w = np.full((2, 9), value, np.float32)
    tensor = quantize_fp8(w, scheme, abs(float(w[0, 0])))
    assert (tensor.scales == 1).all()
    assert not dequantize(tensor).any()


def test_a_row_of_zeros_beside_others_has_scale_one() -> None:
    tensor = quantize_fp8(np.array([[0, 0], [448, 1]], np.float32), PER_CHANNEL)
    assert tensor.scales.tolist() == [[1], [1]]
    np.testing.assert_array_equal(dequantize(tensor), [[0, 0], [448, 1]])


def test_an_outlier_costs_a_matrix_its_resolution_but_a_row_only_its_own() -> None:
    w = np.full((2, 4), 0.01, np.float32)
    w[0, 0] = 30_000
    amax = float(w.max())
    assert not dequantize(quantize_fp8(w, PER_TENSOR, amax))[1].any()
    np.testing.assert_allclose(dequantize(quantize_fp8(w, PER_CHANNEL))[1], 0.01, rtol=1e-6)


def test_weights_beyond_the_stated_magnitude_saturate() -> None:
    tensor = quantize_fp8(np.array([[-100, 1, 3, 1e30]], np.float32), PER_TENSOR, 2.0)
    np.testing.assert_allclose(dequantize(tensor), [[-2, 1, 2, 2]], rtol=1e-6)


@pytest.mark.parametrize("scale_dtype", ["f16", "bf16"])
@pytest.mark.parametrize("scheme", [PER_TENSOR, PER_CHANNEL], ids=["tensor", "channel"])
def test_codes_are_chosen_for_the_scale_that_is_stored(scheme: QuantizationScheme, scale_dtype: str) -> None:
    stored_type = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}[scale_dtype]
    stored = QuantizationScheme(
        name=scheme.name,
        bits=8,
        code_format="e4m3",
        granularity=scheme.granularity,
        activations=scheme.activations,
        scale_dtype=scale_dtype,
    )
    w = np.random.default_rng(0).standard_normal((5, 300)).astype(np.float32)
    tensor = quantize_fp8(w, stored, float(np.abs(w).max()))
    np.testing.assert_array_equal(tensor.scales, tensor.scales.astype(stored_type).astype(np.float32))
    np.testing.assert_array_equal(tensor.codes.view(np.uint8), codes_of_ml_dtypes(w / tensor.scales))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", [PER_TENSOR, PER_CHANNEL], ids=["tensor", "channel"])
def test_nan_and_infinity_are_refused(scheme: QuantizationScheme, bad: float) -> None:
    w = np.ones((3, 40), np.float32)
    w[2, 39] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_fp8(w, scheme, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e39])
def test_an_amax_that_is_no_magnitude_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="largest magnitude"):
        quantize_fp8(np.ones((1, 4), np.float32), PER_TENSOR, bad)


def test_a_scale_for_the_matrix_needs_its_magnitude() -> None:
    with pytest.raises(ValueError, match="largest magnitude"):
        quantize_fp8(np.ones((1, 4), np.float32), PER_TENSOR)


def test_scales_of_inputs_and_caches_are_float32_quotients_of_the_largest_code() -> None:
    amax = float(np.float32(3.3))
    assert input_scale(amax) == np.float32(3.3) / np.float32(448)
    assert kv_cache_scale(amax, "fp8") == np.float32(3.3) / np.float32(448)
    assert kv_cache_scale(amax, "int8") == np.float32(3.3) / np.float32(127)
    assert input_scale(0.0) == 1
    assert input_scale(amax).dtype == np.float32

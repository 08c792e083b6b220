"""The one door: each scheme of the tables gets its algorithm."""

import ml_dtypes
import numpy as np
import pytest

from edgeforge.quantization import search
from edgeforge.quantization.fp8 import quantize_fp8
from edgeforge.quantization.nvfp4 import quantize_nvfp4
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.rtn import quantize as round_to_nearest
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize
from edgeforge.quantization.w4a8 import quantize_w4a8

W4A16 = QuantizationScheme(name="w4a16", bits=4, group_size=32)
W8A16 = QuantizationScheme(name="w8a16", bits=8, group_size=32, symmetric=False)
W4A8 = QuantizationScheme(name="w4a8", bits=4, group_size=32, activations="static")
FP8 = QuantizationScheme(name="fp8", bits=8, code_format="e4m3", granularity="tensor", activations="static")
FP8_DYNAMIC = QuantizationScheme(
    name="fp8-dynamic", bits=8, code_format="e4m3", granularity="channel", activations="dynamic"
)
NVFP4 = QuantizationScheme(name="nvfp4", bits=4, code_format="e2m1", group_size=16, activations="static")
ALL = [W4A16, W8A16, W4A8, FP8, FP8_DYNAMIC, NVFP4]
WEIGHTS = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
AMAX = float(np.abs(WEIGHTS).max())


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (W4A16, round_to_nearest(WEIGHTS, W4A16)),
        (W8A16, round_to_nearest(WEIGHTS, W8A16)),
        (W4A8, quantize_w4a8(WEIGHTS, W4A8, AMAX)),
        (FP8, quantize_fp8(WEIGHTS, FP8, AMAX)),
        (FP8_DYNAMIC, quantize_fp8(WEIGHTS, FP8_DYNAMIC)),
        (NVFP4, quantize_nvfp4(WEIGHTS, NVFP4, AMAX)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_scheme_gets_its_algorithm(scheme: QuantizationScheme, expected: QuantizedTensor) -> None:
    got = quantize(WEIGHTS, scheme, amax=AMAX if scheme.needs_amax else None)
    np.testing.assert_equal(
        [got.codes.view(np.uint8), got.scales, got.zero_points, got.tensor_scale, got.scheme],
        [expected.codes.view(np.uint8), expected.scales, expected.zero_points, expected.tensor_scale, scheme],
    )


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_searched_scales_are_for_integers_alone(scheme: QuantizationScheme) -> None:
    got = quantize(WEIGHTS, scheme, amax=AMAX, algorithm="search")
    expected = search.quantize(WEIGHTS, scheme) if scheme.name.endswith("a16") else quantize(WEIGHTS, scheme, amax=AMAX)
    np.testing.assert_equal(
        [got.codes.view(np.uint8), got.scales, got.zero_points],
        [expected.codes.view(np.uint8), expected.scales, expected.zero_points],
    )


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_codes_and_scales_are_those_of_the_neutral_tensor(scheme: QuantizationScheme) -> None:
    tensor = quantize(WEIGHTS, scheme, amax=AMAX)
    formats = {"int": np.int8, "e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}
    assert tensor.codes.dtype == formats[scheme.code_format]
    assert tensor.codes.shape == WEIGHTS.shape
    assert tensor.codes.flags.c_contiguous
    assert tensor.codes.dtype.itemsize == 1
    assert tensor.scales.dtype == np.float32
    assert tensor.scales.shape == (6, scheme.groups(96))
    assert (tensor.tensor_scale is not None) == (scheme.name in ("w4a8", "nvfp4"))
    restored = dequantize(tensor)
    assert restored.dtype == np.float32
    assert np.abs(restored - WEIGHTS).max() < 0.3 * np.abs(WEIGHTS).max()


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_the_weights_are_only_read_and_their_memory_order_is_nothing(scheme: QuantizationScheme) -> None:
    given = np.asfortranarray(WEIGHTS)
    given.flags.writeable = False
    first, again = quantize(given, scheme, amax=AMAX), quantize(WEIGHTS, scheme, amax=AMAX)
    np.testing.assert_array_equal(first.codes.view(np.uint8), again.codes.view(np.uint8))
    np.testing.assert_array_equal(first.scales, again.scales)


@pytest.mark.parametrize("scheme", [W4A8, FP8, NVFP4], ids=lambda scheme: scheme.name)
def test_a_scale_for_the_whole_matrix_needs_its_magnitude(scheme: QuantizationScheme) -> None:
    with pytest.raises(ValueError, match=f"{scheme.name} needs the largest magnitude"):
        quantize(WEIGHTS, scheme)


def test_a_float_scheme_has_no_codes() -> None:
    with pytest.raises(ValueError, match="bf16"):
        quantize(WEIGHTS, QuantizationScheme(name="bf16", bits=16))

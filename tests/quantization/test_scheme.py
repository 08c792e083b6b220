"""Group sizes follow the stated rule; `dequantize` is the formula of its docstring."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeforge.quantization.scheme import (
    GROUP_SIZES,
    CodeFormat,
    Granularity,
    QuantizationScheme,
    QuantizedTensor,
    dequantize,
    effective_group_size,
)


@pytest.mark.parametrize(
    ("in_features", "asked", "expected"),
    [
        (4096, 128, 128),  # divides
        (576, 128, 64),  # SmolLM2's hidden size: the largest power of two below that divides
        (1536, 128, 128),
        (64, 128, 64),  # stories260k's hidden size
        (172, 32, 32),  # its feed-forward size: nothing from 32 down divides, short last group
        (172, 64, 64),
        (172, 128, 128),
        (176, 128, 16),
        (40, 128, 64),  # shorter than a group: the smallest power of two that holds the row
        (40, 32, 32),
        (24, 16, 16),
        (8, 128, 16),  # never below 16, the smallest block of ONNX Runtime
        (1, 16, 16),
        (100, 256, 128),
    ],
)
def test_the_group_size_of_known_shapes(in_features: int, asked: int, expected: int) -> None:
    assert effective_group_size(in_features, asked) == expected


@given(in_features=st.integers(1, 20_000), asked=st.sampled_from(GROUP_SIZES))
def test_a_dividing_group_is_the_largest_and_a_short_one_the_least_that_was_asked(in_features: int, asked: int) -> None:
    size = effective_group_size(in_features, asked)
    assert size in GROUP_SIZES
    dividing = [candidate for candidate in GROUP_SIZES if candidate <= asked and in_features % candidate == 0]
    if dividing:
        assert size == max(dividing)
    else:
        assert size == min(candidate for candidate in GROUP_SIZES if candidate >= min(asked, in_features))


@pytest.mark.parametrize("asked", [0, -32, 8, 17, 48, 512])
def test_a_group_size_that_no_kernel_has_is_refused(asked: int) -> None:
    with pytest.raises(ValueError, match=str(asked)):
        effective_group_size(4096, asked)


@given(in_features=st.integers(1, 2000), size=st.sampled_from(GROUP_SIZES))
def test_groups_cover_the_row_and_no_more(in_features: int, size: int) -> None:
    groups = QuantizationScheme(name="w4a16", bits=4, group_size=size).groups(in_features)
    assert groups * size >= in_features > (groups - 1) * size


def test_float_schemes_have_no_groups() -> None:
    scheme = QuantizationScheme(name="f32", bits=32)
    assert scheme.is_float
    assert scheme.groups(4096) == 0


@pytest.mark.parametrize("kind", ["symmetric", "zero points", "offsets"])
@pytest.mark.parametrize("in_features", [1, 16, 31, 32, 33, 172])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantize_is_its_formula_element_by_element(bits: int, in_features: int, kind: str) -> None:
    rng = np.random.default_rng(bits * in_features)
    n, size, half = 3, 32, 2 ** (bits - 1)
    groups = -(-in_features // size)
    codes = rng.integers(-half, half, (n, in_features)).astype(np.int8)
    scales = rng.random((n, groups), np.float32)
    zero_points = rng.integers(-half, half, (n, groups)).astype(np.int8) if kind == "zero points" else None
    offsets = rng.standard_normal((n, groups)).astype(np.float32) if kind == "offsets" else None
    scheme = QuantizationScheme(
        name="w", bits=bits, group_size=size, symmetric=kind == "symmetric", offset=kind == "offsets"
    )
    tensor = QuantizedTensor(scheme=scheme, codes=codes, scales=scales, zero_points=zero_points, offsets=offsets)
    got = dequantize(tensor)
    assert got.dtype == np.float32
    assert got.shape == (n, in_features)
    for row in range(n):
        for column in range(in_features):
            g = column // size
            zero = 0 if zero_points is None else int(zero_points[row, g])
            # Code minus zero point is exact; one float32 product, one float32 sum.
            expected = np.float32(int(codes[row, column]) - zero) * scales[row, g]
            if offsets is not None:
                expected = expected + offsets[row, g]
            assert got[row, column] == expected


@pytest.mark.parametrize(("granularity", "groups"), [("tensor", 1), ("channel", 1), ("group", 3)])
@pytest.mark.parametrize("code_format", ["e4m3", "e2m1"])
def test_dequantize_multiplies_the_numbers_that_float_codes_are(
    code_format: CodeFormat, granularity: Granularity, groups: int
) -> None:
    """A scale of the scales is multiplied into them first, as ModelOpt does (NVFP4QTensor.dequantize)."""
    rng = np.random.default_rng(0)
    numbers = {"e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}[code_format]
    codes = (rng.standard_normal((4, 48)) * 3).astype(numbers)
    scales = rng.random((4, groups), np.float32)
    tensor_scale = np.float32(0.37) if code_format == "e2m1" else None
    scheme = QuantizationScheme(
        name="f",
        bits=8,
        code_format=code_format,
        granularity=granularity,
        group_size=16 if granularity == "group" else None,
    )
    got = dequantize(QuantizedTensor(scheme=scheme, codes=codes, scales=scales, tensor_scale=tensor_scale))
    steps = np.repeat(scales if tensor_scale is None else scales * tensor_scale, 48 // groups, axis=1)
    np.testing.assert_array_equal(got, codes.astype(np.float32) * steps)


def test_the_tensor_scale_of_integer_codes_is_no_part_of_the_value() -> None:
    scheme = QuantizationScheme(name="w4a8", bits=4, group_size=16, activations="static")
    codes, scales = np.arange(-8, 8, dtype=np.int8)[None], np.array([[0.5]], np.float32)
    tensor = QuantizedTensor(scheme=scheme, codes=codes, scales=scales, tensor_scale=np.float32(3))
    np.testing.assert_array_equal(dequantize(tensor), codes * np.float32(0.5))


@pytest.mark.parametrize(
    ("scheme", "needs"),
    [
        (QuantizationScheme(name="w4a16", bits=4, group_size=32), False),
        (QuantizationScheme(name="w4a8", bits=4, group_size=32, activations="static"), True),
        (QuantizationScheme(name="fp8", bits=8, code_format="e4m3", granularity="tensor", activations="static"), True),
        (QuantizationScheme(name="fp8-dynamic", bits=8, code_format="e4m3", granularity="channel"), False),
        (QuantizationScheme(name="nvfp4", bits=4, code_format="e2m1", group_size=16), True),
        (QuantizationScheme(name="bf16", bits=16, granularity="tensor"), False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_schemes_with_a_scale_for_the_matrix_need_its_magnitude(scheme: QuantizationScheme, needs: bool) -> None:
    assert scheme.needs_amax == needs
    assert scheme.groups(96) == (0 if scheme.is_float else 1 if scheme.group_size is None else 96 // scheme.group_size)

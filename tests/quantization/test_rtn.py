"""Laws of round-to-nearest, and the same codes from rounders that someone else wrote (ggml's, ModelOpt's)."""

from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgeforge.quantization.rtn import quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

Weights = NDArray[np.float32]
SLACK = 2.0**-16
"""Of a step: a float32 quotient, of up to 255 steps, is half its last place off, so what is almost a tie may be one."""


def scheme(
    bits: int = 4, group_size: int = 32, *, symmetric: bool = True, scale_dtype: str = "f32"
) -> QuantizationScheme:
    return QuantizationScheme(
        name=f"w{bits}a16", bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype
    )


schemes = st.builds(
    scheme,
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64, 128]),
    symmetric=st.booleans(),
    scale_dtype=st.just("f32"),
)
f16_schemes = st.builds(
    scheme, st.sampled_from([4, 8]), st.sampled_from([16, 32]), symmetric=st.booleans(), scale_dtype=st.just("f16")
)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 140))


def weights(largest: float) -> st.SearchStrategy[Weights]:
    """Finite float32, subnormals included, rich in what breaks rounders: repeats, zeros, wild magnitudes."""
    bound = float(np.float32(largest))
    elements = st.floats(-bound, bound, width=32, allow_subnormal=True)
    return arrays(np.float32, shapes, elements=elements, fill=st.sampled_from([0.0, 1.0, -1.0, 0.3]) | elements)


def broadcast(per_group: NDArray[np.generic] | None, like: QuantizedTensor) -> NDArray[np.float64]:
    """[N, G] -> float64 [N, K], each group's value at each of its weights; None is zero."""
    n, k = like.codes.shape
    assert like.scheme.group_size is not None
    if per_group is None:
        return np.zeros((n, k))
    return np.repeat(per_group.astype(np.float64), like.scheme.group_size, axis=1)[:, :k]


def assert_each_weight_is_nearest(given_weights: Weights, tensor: QuantizedTensor, smallest_scale: float) -> None:
    """Within half a step of the weight, or of the end of the group's range where the weight lies outside."""
    half = 2 ** (tensor.scheme.bits - 1)
    scale, zero = broadcast(tensor.scales, tensor), broadcast(tensor.zero_points, tensor)
    exact = given_weights.astype(np.float64)
    reachable = np.clip(exact, (-half - zero) * scale, (half - 1 - zero) * scale)
    error = np.abs((tensor.codes - zero) * scale - reachable)
    assert (error <= (0.5 + SLACK) * scale).all()
    # What cannot be reached is less than half a step too: the zero point is rounded, the scale is not shrunk.
    levels = half if tensor.scheme.symmetric else 2 * half - 1
    lost = np.where(scale > 0, (0.5 + SLACK) * scale, levels * smallest_scale)
    assert (np.abs(exact - reachable) <= lost).all()


@given(weights(1e38), schemes)
def test_no_weight_moves_by_more_than_half_a_step(w: Weights, chosen: QuantizationScheme) -> None:
    assert_each_weight_is_nearest(w, quantize(w, chosen), smallest_scale=2.0**-126)


@given(weights(6e4), f16_schemes)
def test_codes_are_chosen_for_the_float16_scale_that_is_stored(w: Weights, chosen: QuantizationScheme) -> None:
    tensor = quantize(w, chosen)
    np.testing.assert_array_equal(tensor.scales, tensor.scales.astype(np.float16).astype(np.float32))
    # A float16 scale may be smaller than was wanted, so the ends of the range may clip; what is within is nearest.
    half = 2 ** (chosen.bits - 1)
    scale, zero = broadcast(tensor.scales, tensor), broadcast(tensor.zero_points, tensor)
    reachable = np.clip(w.astype(np.float64), (-half - zero) * scale, (half - 1 - zero) * scale)
    assert (np.abs((tensor.codes - zero) * scale - reachable) <= (0.5 + SLACK) * scale).all()
    normal = scale >= 2.0**-14  # 11 bits: the range is at most 1/2048 too short, of at most 255 steps
    assert (np.abs(w - reachable)[normal] <= (0.5 + 255 / 2048 + SLACK) * scale[normal]).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_chosen_for_the_bfloat16_scale_that_is_stored(bits: int, symmetric: bool) -> None:
    w = np.random.default_rng(bits).standard_normal((50, 100)).astype(np.float32) * np.float32(0.02)
    tensor = quantize(w, scheme(bits, symmetric=symmetric, scale_dtype="bf16"))
    np.testing.assert_array_equal(tensor.scales, tensor.scales.astype(ml_dtypes.bfloat16).astype(np.float32))
    half = 2 ** (bits - 1)
    scale, zero = broadcast(tensor.scales, tensor), broadcast(tensor.zero_points, tensor)
    reachable = np.clip(w.astype(np.float64), (-half - zero) * scale, (half - 1 - zero) * scale)
    assert (np.abs((tensor.codes - zero) * scale - reachable) <= (0.5 + SLACK) * scale).all()
    # A bfloat16 scale may be 1/256 smaller than was wanted, so of at most 2^bits steps the ends may clip.
    assert (np.abs(w - reachable) <= (0.5 + 2**bits / 256 + SLACK) * scale).all()


@given(weights(1e38), schemes)
def test_codes_and_shapes_are_those_of_the_neutral_tensor(w: Weights, chosen: QuantizationScheme) -> None:
    tensor = quantize(w, chosen)
    half, (n, k) = 2 ** (chosen.bits - 1), w.shape
    groups = chosen.groups(k)
    assert tensor.scheme == chosen
    assert tensor.codes.dtype == np.int8
    assert tensor.codes.shape == (n, k)
    assert tensor.scales.dtype == np.float32
    assert tensor.scales.shape == (n, groups)
    assert tensor.codes.flags.c_contiguous
    assert tensor.codes.min() >= -half
    assert tensor.codes.max() <= half - 1
    assert np.isfinite(tensor.scales).all()
    assert (tensor.scales >= 0).all()
    assert tensor.offsets is None
    if chosen.symmetric:
        assert tensor.zero_points is None
    else:
        assert tensor.zero_points is not None
        assert tensor.zero_points.dtype == np.int8
        assert tensor.zero_points.shape == (n, groups)
        assert -half <= tensor.zero_points.min()
        assert tensor.zero_points.max() <= half - 1


@given(weights(1e38), schemes)
def test_zero_stays_zero(w: Weights, chosen: QuantizationScheme) -> None:
    assert (dequantize(quantize(w, chosen))[w == 0] == 0).all()


@given(weights(1e38), schemes, st.data())
def test_rows_do_not_see_each_other(w: Weights, chosen: QuantizationScheme, data: st.DataObject) -> None:
    whole = quantize(w, chosen)
    cut = data.draw(st.integers(0, len(w) - 1))
    alone = quantize(w[cut : cut + 1], chosen)
    np.testing.assert_array_equal(alone.codes, whole.codes[cut : cut + 1])
    np.testing.assert_array_equal(alone.scales, whole.scales[cut : cut + 1])
    if whole.zero_points is not None and alone.zero_points is not None:
        np.testing.assert_array_equal(alone.zero_points, whole.zero_points[cut : cut + 1])


@given(weights(1e38), schemes)
def test_the_weights_are_only_read_and_their_memory_order_is_nothing(w: Weights, chosen: QuantizationScheme) -> None:
    before = w.copy()
    first, again = quantize(w, chosen), quantize(np.asfortranarray(w), chosen)
    np.testing.assert_array_equal(w, before)
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.scales, again.scales)


@given(weights(1e30), schemes, st.integers(-20, 20))
def test_a_power_of_two_scales_the_scales_alone(w: Weights, chosen: QuantizationScheme, power: int) -> None:
    assume(not w.any() or np.abs(w[w != 0]).min() > 1e-20)  # away from subnormal scales
    factor = np.float32(2.0**power)
    plain, scaled = quantize(w, chosen), quantize(w * factor, chosen)
    np.testing.assert_array_equal(scaled.codes, plain.codes)
    np.testing.assert_array_equal(scaled.scales, plain.scales * factor)


@given(schemes, st.integers(1, 300))
def test_groups_of_zeros_are_exact(chosen: QuantizationScheme, k: int) -> None:
    w = np.zeros((2, k), np.float32)
    w[1] = -0.0
    tensor = quantize(w, chosen)
    assert not tensor.scales.any()
    np.testing.assert_array_equal(dequantize(tensor), np.zeros((2, k), np.float32))


@given(schemes, st.floats(2.0**-100, 2.0**100, width=32), st.sampled_from([1, -1]), st.integers(1, 70))
def test_equal_weights_of_a_group_come_back(chosen: QuantizationScheme, value: float, sign: int, k: int) -> None:
    w = np.full((1, k), sign * value, np.float32)
    got = dequantize(quantize(w, chosen))
    np.testing.assert_allclose(got, w, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [1.7, -1.7])
def test_a_last_group_of_one_weight_keeps_it(bits: int, symmetric: bool, value: float) -> None:
    rng = np.random.default_rng(0)
    w = np.array([[*rng.standard_normal(32), value]], np.float32)
    tensor = quantize(w, scheme(bits, 32, symmetric=symmetric))
    assert tensor.scales.shape == (1, 2)
    assert dequantize(tensor)[0, -1] == pytest.approx(value, rel=1e-6)


@given(schemes, st.integers(1, 140))
def test_a_short_last_group_sees_its_own_weights_alone(chosen: QuantizationScheme, k: int) -> None:
    assert chosen.group_size is not None
    w = np.random.default_rng(k).standard_normal((2, k)).astype(np.float32)
    short = k % chosen.group_size
    assume(short)
    whole, tail = quantize(w, chosen), quantize(w[:, -short:], chosen)
    np.testing.assert_array_equal(whole.scales[:, -1:], tail.scales)
    np.testing.assert_array_equal(whole.codes[:, -short:], tail.codes)


@pytest.mark.parametrize("value", [1e-45, -1e-45, 1e-40, 1.1e-38, -1.1e-38])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_too_small_for_a_normal_scale_are_exact_zeros(bits: int, symmetric: bool, value: float) -> None:
    w = np.full((1, 32), value, np.float32)
    assert w.any()
    tensor = quantize(w, scheme(bits, symmetric=symmetric))
    assert not tensor.scales.any()
    assert not dequantize(tensor).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_floats_stay_finite(bits: int, symmetric: bool) -> None:
    largest = np.finfo(np.float32).max
    w = np.full((3, 32), 0, np.float32)
    w[0, 0], w[1, 0], w[2, :2] = largest, -largest, (largest, -largest)
    tensor = quantize(w, scheme(bits, symmetric=symmetric))
    with np.errstate(over="ignore"):
        got = dequantize(tensor).astype(np.float64)
    # The end of the range may round up to infinity in the very last binade; the codes are right all the same.
    exact = (tensor.codes - broadcast(tensor.zero_points, tensor)) * broadcast(tensor.scales, tensor)
    np.testing.assert_allclose(exact, w.astype(np.float64), atol=float(tensor.scales.max()) * 0.51)
    assert not np.isnan(got).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 31), (2, 32), (2, 39)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_nan_and_infinity_are_refused_wherever_they_are(
    bits: int, symmetric: bool, place: tuple[int, int], bad: float
) -> None:
    w = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    w[place] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(w, scheme(bits, symmetric=symmetric))


def test_a_scale_that_float16_cannot_hold_is_refused() -> None:
    w = np.full((1, 32), 1e6, np.float32)
    with pytest.raises(ValueError, match="float16"):
        quantize(w, scheme(scale_dtype="f16"))
    quantize(w, scheme(scale_dtype="f32"))


@pytest.mark.parametrize(
    "impossible",
    [QuantizationScheme(name="f32", bits=32), replace(scheme(), offset=True, symmetric=False)],
    ids=["float", "offset"],
)
def test_schemes_that_rounding_does_not_make_are_refused(impossible: QuantizationScheme) -> None:
    with pytest.raises(ValueError, match="round-to-nearest"):
        quantize(np.ones((1, 32), np.float32), impossible)


def test_modelopt_chooses_the_same_codes_for_our_scales(
    hard: Weights, modelopt: Mapping[str, NDArray[np.generic]]
) -> None:
    """Two rows a byte, the even row in the low nibble. A group of zeros has any scale there, and zero here."""
    codes = quantize(hard, scheme(group_size=64)).codes.view(np.uint8) & 15
    np.testing.assert_array_equal(codes[::2] | codes[1::2] << 4, modelopt["int4_of_given_scales"])


def test_ties_go_to_the_even_code() -> None:
    w = np.zeros((1, 32), np.float32)
    w[0, :9] = [7, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]  # 7 makes the scale one
    tensor = quantize(w, scheme())
    assert tensor.scales[0, 0] == 1
    assert tensor.codes[0, :9].tolist() == [7, 0, 2, 2, 4, 0, -2, -2, -4]


def test_the_extra_negative_code_is_used() -> None:
    w = np.zeros((2, 32), np.float32)
    w[0, 0], w[1, :2] = -8, (-8, 7)
    tensor = quantize(w, scheme())
    assert tensor.scales.tolist() == [[1], [1]]
    assert tensor.codes[:, 0].tolist() == [-8, -8]
    np.testing.assert_array_equal(dequantize(tensor), w)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.4, 3.0])
def test_asymmetric_groups_span_the_codes(bits: int, shift: float) -> None:
    """The smallest weight gets the lowest code and the largest the highest, to the one that rounding z may cost."""
    w = np.linspace(min(-1 + shift, 0), max(1 + shift, 0), 200, dtype=np.float32)[None]
    tensor = quantize(w, scheme(bits, 256, symmetric=False))
    half = 2 ** (bits - 1)
    assert tensor.codes[0, 0] in (-half, 1 - half)
    assert tensor.codes[0, -1] in (half - 2, half - 1)
    assert int(tensor.codes[0, -1]) - int(tensor.codes[0, 0]) >= 2**bits - 2
    assert (np.diff(tensor.codes[0].astype(int)) >= 0).all()


def docstring_codes(w: Weights, chosen: QuantizationScheme) -> tuple[NDArray[np.float64], ...]:
    """(scales [N, G], exact steps before rounding [N, K], zero points [N, G]) of rtn.py's docstring, in float64."""
    assert chosen.group_size is not None
    size, bits = chosen.group_size, chosen.bits
    parts = [w[:, i : i + size].astype(np.float64) for i in range(0, w.shape[1], size)]
    low = np.stack([np.minimum(part, 0).min(axis=1) for part in parts], axis=1)
    high = np.stack([np.maximum(part, 0).max(axis=1) for part in parts], axis=1)
    if chosen.symmetric:
        s = np.maximum(high / (2 ** (bits - 1) - 1), -low / 2 ** (bits - 1))
        z = np.zeros_like(s)
    else:
        s = (high - low) / (2**bits - 1)
        z = -low / s - 2 ** (bits - 1)
    return s, w / np.repeat(s, size, axis=1)[:, : w.shape[1]], z


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("k", "size"), [(128, 32), (172, 32), (172, 128), (64, 64), (33, 16)])
def test_codes_are_those_of_the_formulas_in_float64(bits: int, symmetric: bool, k: int, size: int) -> None:
    w = np.random.default_rng(k + bits).standard_normal((200, k)).astype(np.float32) * np.float32(0.02)
    chosen = scheme(bits, size, symmetric=symmetric)
    tensor = quantize(w, chosen)
    s, steps, z = docstring_codes(w, chosen)
    np.testing.assert_allclose(tensor.scales, s, rtol=3e-7)
    half = 2 ** (bits - 1)
    zero = np.zeros((200, chosen.groups(k)))
    if tensor.zero_points is not None:
        near_tie = np.abs(z - np.floor(z) - 0.5) < 1e-3
        np.testing.assert_array_equal(tensor.zero_points[~near_tie], np.rint(z)[~near_tie])
        zero = tensor.zero_points.astype(np.float64)
    expected = np.clip(np.rint(steps) + np.repeat(zero, size, axis=1)[:, :k], -half, half - 1)
    near_tie = np.abs(steps - np.floor(steps) - 0.5) < 1e-3
    assert near_tie.mean() < 0.02
    np.testing.assert_array_equal(tensor.codes[~near_tie], expected[~near_tie])


@pytest.mark.parametrize(("kind", "bits", "bytes_per_block"), [("Q8_0", 8, 34), ("Q4_0", 4, 18)])
def test_ggml_makes_the_same_codes_and_scales_where_its_grid_is_ours(
    kind: str, bits: int, bytes_per_block: int
) -> None:
    """Q8_0 divides the largest magnitude by 127, Q4_0 the largest-magnitude weight by -8: our scale when that weight is
    positive (8 bits), or negative (4 bits). Ties aside, ggml's reference implementation gives the same codes.
    """
    gguf = pytest.importorskip("gguf")
    w = np.random.default_rng(bits).standard_normal((500, 64)).astype(np.float32)
    extreme = np.float32(4.5 if bits == 8 else -5.5)  # beyond every other weight, and of the right sign
    w[:, ::32] = extreme * (1 + np.random.default_rng(1).random((500, 2), np.float32) * 0.1)
    tensor = quantize(w, scheme(bits))
    blocks = gguf.quants.quantize(w, gguf.GGMLQuantizationType[kind]).reshape(500, 2, bytes_per_block)
    their_scales = blocks[:, :, :2].copy().view(np.float16)[..., 0].astype(np.float32)
    if bits == 8:
        their_codes = blocks[:, :, 2:].view(np.int8).reshape(500, 64)
    else:
        nibbles = np.concatenate([blocks[:, :, 2:] & 15, blocks[:, :, 2:] >> 4], axis=2)
        their_codes = nibbles.reshape(500, 64).astype(np.int8) - 8
    np.testing.assert_array_equal(tensor.scales.astype(np.float16).astype(np.float32), their_scales)
    steps = w / np.repeat(tensor.scales, 32, axis=1)
    near_tie = np.abs(steps - np.floor(steps) - 0.5) < 1e-3
    assert near_tie.mean() < 0.02
    np.testing.assert_array_equal(tensor.codes[~near_tie], their_codes[~near_tie])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_falls_with_the_group_size_and_with_zero_points(bits: int, symmetric: bool) -> None:
    """On weights with outliers and a bias, smaller groups and zero points must both help."""
    rng = np.random.default_rng(3)
    w = (rng.standard_t(4, (64, 512)) + 0.7).astype(np.float32)

    def error(size: int, sym: bool) -> float:
        return float(np.square(dequantize(quantize(w, scheme(bits, size, symmetric=sym))) - w).mean())

    errors = [error(size, symmetric) for size in (16, 32, 64, 128)]
    assert errors == sorted(errors)
    assert error(32, False) < error(32, True)

"""Laws of the search for scales, and its choice against every scale there is, tried one by one in float64."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgeforge.quantization import rtn, search
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

Weights = NDArray[np.float32]


def scheme(
    bits: int = 4, group_size: int = 32, *, symmetric: bool = True, scale_dtype: str = "f32"
) -> QuantizationScheme:
    return QuantizationScheme(
        name=f"w{bits}a16", bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype
    )


SCHEMES = [
    scheme(bits, symmetric=symmetric, scale_dtype=scale_dtype)
    for bits, symmetric, scale_dtype in itertools.product((4, 8), (True, False), ("f32", "f16", "bf16"))
]
IDS = [f"{s.bits}-{'symmetric' if s.symmetric else 'asymmetric'}-{s.scale_dtype}" for s in SCHEMES]


def group_errors(w: Weights, tensor: QuantizedTensor, importance: Weights | None = None) -> NDArray[np.float64]:
    """Weighted squared error of every group, float64 [N, G]."""
    assert tensor.scheme.group_size is not None
    squares = np.square(w.astype(np.float64) - dequantize(tensor))
    if importance is not None:
        squares *= importance
    starts = np.arange(0, w.shape[1], tensor.scheme.group_size)
    return np.add.reduceat(squares, starts, axis=1)


def normal(n: int, k: int, seed: int = 0) -> Weights:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32) * np.float32(0.02)


@pytest.mark.parametrize("chosen", SCHEMES, ids=IDS)
@pytest.mark.parametrize("k", [64, 172, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_group_is_worse_than_rounded_to_nearest(chosen: QuantizationScheme, k: int, weighted: bool) -> None:
    w = normal(300, k)
    importance = np.random.default_rng(1).random(k, np.float32) ** 4 if weighted else None
    ours = group_errors(w, search.quantize(w, chosen, importance), importance)
    theirs = group_errors(w, rtn.quantize(w, chosen), importance)
    slack = 2e-5 * group_errors(w, QuantizedTensor(scheme=chosen, codes=0 * w, scales=np.ones_like(ours)), importance)
    assert (ours <= theirs * (1 + 1e-4) + slack * (chosen.scale_dtype == "bf16")).all()
    coarse = chosen.bits == 8 and chosen.scale_dtype == "bf16"  # the scale's own rounding is half a step there
    assert ours.sum() < (0.96 if chosen.bits == 4 else 1 if coarse else 0.99) * theirs.sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_best_of_the_candidates_is_chosen(symmetric: bool) -> None:
    """Every shrunk range, its codes and their least-squares scale in float64: nothing is better than what was found."""
    w, chosen, shrinks = normal(40, 64), scheme(symmetric=symmetric), (1.0, 0.97, 0.9, 0.83, 0.7)
    low = np.minimum(w.reshape(40, 2, 32).min(axis=2), 0).astype(np.float64)
    high = np.maximum(w.reshape(40, 2, 32).max(axis=2), 0).astype(np.float64)
    least = np.full((40, 2), np.inf)
    for p in shrinks:
        s = np.maximum(high / 7, low / -8) * p if symmetric else (high - low) * p / 15
        z = np.zeros_like(s) if symmetric else np.clip(np.rint(-low * p / s) - 8, -8, 7)
        grouped = w.reshape(40, 2, 32).astype(np.float64)
        c = np.clip(np.rint(grouped / s[:, :, None]), (-8 - z)[:, :, None], (7 - z)[:, :, None])
        fitted = (grouped * c).sum(axis=2) / (c * c).sum(axis=2)
        least = np.minimum(least, np.square(grouped - fitted[:, :, None] * c).sum(axis=2))
    ours = group_errors(w, search.quantize(w, chosen, shrinks=shrinks))
    assert (ours <= least * (1 + 1e-4)).all()  # and better, where a code moves under the fitted scale


@pytest.mark.parametrize("scale_dtype", ["f16", "bf16"])
def test_scales_are_as_their_type_stores_them(scale_dtype: str) -> None:
    import ml_dtypes

    kind = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}[scale_dtype]
    scales = search.quantize(normal(50, 96), scheme(scale_dtype=scale_dtype)).scales
    np.testing.assert_array_equal(scales, scales.astype(kind).astype(np.float32))


@pytest.mark.parametrize("chosen", SCHEMES[::3], ids=IDS[::3])
def test_weights_on_a_grid_stay_on_it(chosen: QuantizationScheme) -> None:
    """And with them the checkpoints that were quantized already."""
    half = 2 ** (chosen.bits - 1)
    codes = np.random.default_rng(2).integers(-half, half, (20, 64))
    codes[:, ::32], codes[:, 1::32] = -half, half - 1
    w = codes.astype(np.float32) * np.float32(0.0113)
    tensor = search.quantize(w, chosen)
    np.testing.assert_array_equal(tensor.codes, codes)
    np.testing.assert_array_equal(tensor.scales, rtn.quantize(w, chosen).scales)


def test_what_matters_more_is_rounded_better() -> None:
    w = normal(200, 64)
    importance = np.ones(64, np.float32)
    importance[::8] = 1000
    plain, weighted = (search.quantize(w, scheme(), h) for h in (None, importance))
    assert group_errors(w, weighted, importance).sum() < 0.9 * group_errors(w, plain, importance).sum()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_only_the_proportions_of_the_importance_count(scale: float) -> None:
    w, h = normal(10, 64), np.random.default_rng(3).random(64, np.float32)
    assert_same(search.quantize(w, scheme(), h * np.float32(scale)), search.quantize(w, scheme(), h))


def assert_same(a: QuantizedTensor, b: QuantizedTensor) -> None:
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_allclose(a.scales, b.scales, rtol=1e-5)


def test_a_group_without_importance_is_rounded_to_nearest() -> None:
    w = normal(10, 64)
    tensor = search.quantize(w, scheme(), np.zeros(64, np.float32))
    np.testing.assert_array_equal(tensor.codes, rtn.quantize(w, scheme()).codes)


def test_negative_scales_give_positive_extremes_the_extra_code() -> None:
    w = normal(400, 64)
    plain, signed = (search.quantize(w, scheme(), negative_scales=sign) for sign in (False, True))
    assert (plain.scales > 0).all()
    assert 0.3 < (signed.scales < 0).mean() < 0.7
    assert group_errors(w, signed).sum() < 0.9 * group_errors(w, plain).sum()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_pieces_of_rows_get_the_codes_of_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = normal(7, 172)
    whole = search.quantize(w, scheme(symmetric=False))
    monkeypatch.setattr(search, "BLOCK", 192 * rows)
    again = search.quantize(w, scheme(symmetric=False))
    np.testing.assert_array_equal(whole.codes, again.codes)
    np.testing.assert_array_equal(whole.scales, again.scales)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 80))
extremes = st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=True)


@given(
    arrays(np.float32, shapes, elements=extremes, fill=st.sampled_from([0.0, 1.0]) | extremes),
    st.sampled_from(SCHEMES[::3]),
)
def test_any_finite_weights_give_finite_scales(w: Weights, chosen: QuantizationScheme) -> None:
    tensor = search.quantize(w, chosen)
    assert np.isfinite(tensor.scales).all()
    assert tensor.codes.shape == w.shape
    assert (tensor.scales[rtn.quantize(w, chosen).scales == 0] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    w = normal(3, 40)
    w[1, 33] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        search.quantize(w, scheme())
    with pytest.raises(ValueError, match="importance"):
        search.quantize(normal(3, 40), scheme(), w[1])


def test_schemes_without_integer_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="search"):
        search.quantize(normal(2, 32), QuantizationScheme(name="f16", bits=16))

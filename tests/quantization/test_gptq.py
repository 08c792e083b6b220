"""GPTQ against a float64 transcription of the paper's algorithm 1, column by column, and its laws."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge.quantization import search
from edgeforge.quantization.quantize import quantize as rounded_to_nearest
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

torch = pytest.importorskip("torch", reason="calibration needs torch: pip install edgeforge[calibrate]")

from edgeforge.quantization import gptq  # noqa: E402
from edgeforge.quantization.loss import output_loss, row_losses, values  # noqa: E402

Weights = NDArray[np.float32]
Doubles = NDArray[np.float64]


def scheme(bits: int = 4, group_size: int | None = 32, *, symmetric: bool = True) -> QuantizationScheme:
    return QuantizationScheme(name=f"w{bits}a16", bits=bits, group_size=group_size, symmetric=symmetric)


FP8 = QuantizationScheme(name="fp8-dynamic", bits=8, code_format="e4m3", granularity="channel", activations="dynamic")
NVFP4 = QuantizationScheme(name="nvfp4", bits=4, group_size=16, code_format="e2m1", activations="static")


def layer(n: int, k: int, seed: int = 0, tokens: int = 2000) -> tuple[Weights, Weights]:
    """Weights, and the Gram matrix of correlated inputs some of whose channels are loud."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((k, k)) / np.sqrt(k) + np.eye(k)
    x = (rng.standard_normal((tokens, k)) @ mixing * np.exp(rng.standard_normal(k))).astype(np.float32)
    return (rng.standard_normal((n, k)) * 0.02).astype(np.float32), x.T @ x


def run(w: Weights, gram: Weights, chosen: QuantizationScheme, **options: object) -> QuantizedTensor:
    return gptq.quantize(torch.from_numpy(w), torch.from_numpy(gram), chosen, **options)  # type: ignore[arg-type]


def loss(w: Weights, tensor: QuantizedTensor, gram: Weights) -> float:
    change = w.astype(np.float64) - dequantize(tensor)
    return float(np.einsum("nk,kl,nl->", change, gram.astype(np.float64), change))


def algorithm_1(w: Weights, gram: Weights, grid: QuantizedTensor, columns: NDArray[np.int64]) -> Doubles:
    """Codes [N, K]: the paper's algorithm with B = 1, by the inverse Hessian itself, in float64."""
    size = grid.scheme.group_size
    assert size is not None
    s = np.repeat(grid.scales.astype(np.float64), size, axis=1)[:, columns]
    z = 0 * s if grid.zero_points is None else np.repeat(grid.zero_points.astype(np.float64), size, axis=1)[:, columns]
    h = gram.astype(np.float64)[np.ix_(columns, columns)]
    h += gptq.DAMPING * np.diag(h).mean() * np.eye(len(h))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    rest, half = w.astype(np.float64)[:, columns], 2 ** (grid.scheme.bits - 1)
    codes = np.empty_like(rest)
    for i in range(len(h)):
        codes[:, i] = np.clip(np.rint(rest[:, i] / s[:, i]) + z[:, i], -half, half - 1)
        error = (rest[:, i] - (codes[:, i] - z[:, i]) * s[:, i]) / u[i, i]
        rest[:, i:] -= error[:, None] * u[i, i:]
    in_place = np.empty_like(codes)
    in_place[:, columns] = codes
    return in_place


@pytest.mark.parametrize(("n", "k"), [(48, 64), (40, 320), (3, 172)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_codes_are_those_of_the_papers_algorithm_in_float64(
    n: int, k: int, bits: int, symmetric: bool, order: gptq.Order
) -> None:
    w, gram = layer(n, k, seed=bits)
    chosen = scheme(bits, symmetric=symmetric)
    ours = run(w, gram, chosen, order=order)
    columns = np.argsort(-gram.diagonal(), kind="stable") if order == "activation" else np.arange(k)
    theirs = algorithm_1(w, gram, ours, columns)
    assert loss(w, ours, gram) == pytest.approx(loss(w, replace(ours, codes=theirs), gram), rel=1e-4)
    # A code that float32 puts on the other side of a tie moves what follows in its row, and no other row.
    assert (ours.codes == theirs).all(axis=1).mean() > 0.9


@pytest.mark.parametrize(("bits", "symmetric"), itertools.product((4, 8), (True, False)))
@pytest.mark.parametrize("k", [256, 172])
def test_making_up_for_errors_beats_searched_scales(bits: int, symmetric: bool, k: int) -> None:
    w, gram = layer(64, k)
    chosen = scheme(bits, symmetric=symmetric)
    searched = loss(w, search.quantize(w, chosen, gram.diagonal()), gram)
    plain = loss(w, search.quantize(w, chosen), gram)
    assert searched < plain
    for order in ("natural", "activation", "groups"):
        assert loss(w, run(w, gram, chosen, order=order), gram) < 0.8 * searched


@pytest.mark.parametrize("order", ["natural", "groups"])
@pytest.mark.parametrize("group_size", [16, 64, 256])
@pytest.mark.parametrize("k", [256, 344])
def test_dynamic_groups_find_scales_for_the_weights_as_they_are(order: gptq.Order, group_size: int, k: int) -> None:
    w, gram = layer(32, k)
    dynamic = run(w, gram, scheme(group_size=group_size), order=order, dynamic_groups=True)
    static = run(w, gram, scheme(group_size=group_size), order=order)
    assert dynamic.scales.shape == static.scales.shape
    assert loss(w, dynamic, gram) < 1.05 * loss(w, static, gram)
    assert (dynamic.scales > 0).all()


@pytest.mark.parametrize("chosen", [FP8, NVFP4], ids=["fp8", "nvfp4"])
def test_float_codes_make_up_for_errors_too(chosen: QuantizationScheme) -> None:
    w, gram = layer(32, 128)
    start = rounded_to_nearest(w, chosen, amax=float(np.abs(w).max()) if chosen.needs_amax else None)
    ours = run(w, gram, chosen, start=start)
    assert ours.codes.dtype == start.codes.dtype
    np.testing.assert_array_equal(ours.scales, start.scales)
    assert loss(w, ours, gram) < 0.8 * loss(w, start, gram)


@pytest.mark.parametrize("chosen", [scheme(), scheme(8, symmetric=False), FP8, NVFP4], ids=["4", "8", "fp8", "nvfp4"])
def test_independent_inputs_leave_nothing_to_make_up_for(chosen: QuantizationScheme) -> None:
    """With a diagonal Hessian the codes are those of rounding, float codes' ties included."""
    w, _ = layer(20, 96)
    w[0, :40] = np.arange(40) / 16  # many ties
    start = rounded_to_nearest(w, chosen, amax=float(np.abs(w).max()) if chosen.needs_amax else None)
    gram = np.diag(np.random.default_rng(0).random(96, np.float32) + 0.1)
    np.testing.assert_array_equal(run(w, gram, chosen, start=start).codes, start.codes)


def test_channels_never_met_are_rounded_to_nearest() -> None:
    w, gram = layer(16, 128)
    dead = [0, 5, 64, 127]
    gram[dead] = 0
    gram[:, dead] = 0
    start = search.quantize(w, scheme())
    np.testing.assert_array_equal(run(w, gram, scheme(), start=start).codes[:, dead], start.codes[:, dead])
    np.testing.assert_array_equal(run(w, 0 * gram, scheme(), start=start).codes, start.codes)


def test_a_singular_hessian_asks_for_damping() -> None:
    w, gram = layer(4, 64, tokens=10)
    with pytest.raises(ValueError, match="raise the damping"):
        run(w, -gram, scheme())
    with pytest.raises(ValueError, match=r"singular with damping 0\.0"):
        run(w, np.ones_like(gram), scheme(), damping=0.0)
    run(w, gram, scheme())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gram_matrix_of_broken_activations_is_refused(bad: float) -> None:
    w, gram = layer(4, 64)
    gram[3, 7] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        run(w, gram, scheme())


def test_dynamic_groups_need_an_order_that_keeps_groups_together() -> None:
    w, gram = layer(4, 64)
    with pytest.raises(ValueError, match="activation order"):
        run(w, gram, scheme(), order="activation", dynamic_groups=True)


@pytest.mark.parametrize("order", ["activation", "groups"])
def test_one_thread_and_two_make_the_same_codes(order: gptq.Order) -> None:
    w, gram = layer(200, 576, tokens=600)
    made = []
    threads = torch.get_num_threads()
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        made.append(run(w, gram, scheme(symmetric=False), order=order, dynamic_groups=order == "groups"))
    torch.set_num_threads(threads)
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].codes, other.codes)
        np.testing.assert_array_equal(made[0].scales, other.scales)


def test_the_loss_is_the_squared_error_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 40)).astype(np.float32)
    w = rng.standard_normal((7, 40)).astype(np.float32)
    tensor = search.quantize(w, scheme())
    rounded = values(tensor, torch.device("cpu"))
    expected = np.square(x.astype(np.float64) @ (w.astype(np.float64) - dequantize(tensor)).T)
    given = torch.from_numpy(w), rounded, torch.from_numpy(x.T @ x)
    assert output_loss(*given) == pytest.approx(expected.sum(), rel=1e-5)
    np.testing.assert_allclose(row_losses(*given).numpy(), expected.sum(axis=0), rtol=1e-4)


def test_the_pivots_say_before_what_is_lost_after() -> None:
    """Rounding errors of a searched grid, weighed by them, against the loss of the codes that make up for errors."""
    w, gram = layer(200, 64)
    grid = search.quantize(w, scheme())
    rounding = np.square(w - dequantize(grid)).sum(axis=0)
    pivots = gptq.factorize(torch.from_numpy(gram), scheme()).pivots().numpy()
    assert float(rounding @ pivots) == pytest.approx(loss(w, run(w, gram, scheme(), start=grid), gram), rel=0.15)
    assert loss(w, grid, gram) > 1.3 * float(rounding @ pivots)

"""AWQ's scales against a search that runs the layer itself, candidate by candidate; and its clipping."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge.quantization import rtn, search
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

torch = pytest.importorskip("torch", reason="calibration needs torch: pip install edgeforge[calibrate]")

from edgeforge.quantization import awq  # noqa: E402

Weights = NDArray[np.float32]


def scheme(bits: int = 4, group_size: int = 32, *, symmetric: bool = True) -> QuantizationScheme:
    return QuantizationScheme(name=f"w{bits}a16", bits=bits, group_size=group_size, symmetric=symmetric)


def layer(n: int, k: int, seed: int = 0) -> tuple[Weights, Weights]:
    """Weights [n, k] and inputs [300, k], some of whose channels are loud."""
    rng = np.random.default_rng(seed)
    x = (
        rng.standard_normal((300, k))
        @ (rng.standard_normal((k, k)) / np.sqrt(k))
        * np.exp(1.2 * rng.standard_normal(k))
    )
    return (rng.standard_normal((n, k)) * 0.02).astype(np.float32), x.astype(np.float32)


def find(weights: list[Weights], x: Weights, chosen: QuantizationScheme, **options: object) -> Weights:
    tensors = [torch.from_numpy(w) for w in weights]
    magnitudes = torch.from_numpy(np.abs(x).mean(axis=0))
    return awq.search_scales(tensors, torch.from_numpy(x.T @ x), magnitudes, chosen, **options)  # type: ignore[arg-type]


def output_error(w: Weights, x: Weights, s: Weights, chosen: QuantizationScheme) -> float:
    """|| X W^T - (X / s) quant(W s)^T ||^2: the layer as it will run."""
    rounded = dequantize(rtn.quantize(w * s, chosen)).astype(np.float64)
    return float(np.square(x.astype(np.float64) @ w.T - (x / s).astype(np.float64) @ rounded.T).sum())


@pytest.mark.parametrize(("bits", "symmetric"), itertools.product((4, 8), (True, False)))
@pytest.mark.parametrize("k", [64, 172])
def test_the_scales_are_those_of_a_brute_force_search(bits: int, symmetric: bool, k: int) -> None:
    """Two linears of one input, every pair of exponents, the outputs compared: no Gram matrix in the oracle."""
    (w1, x), (w2, _) = layer(40, k), layer(24, k, seed=1)
    chosen = scheme(bits, symmetric=symmetric)
    loud, heavy = np.abs(x).mean(axis=0), np.abs(np.concatenate([w1, w2])).mean(axis=0)
    least, best = np.inf, np.ones(k, np.float32)
    for a, b in awq.EXPONENTS:
        s = (loud**a / heavy**b).astype(np.float32)
        s /= np.sqrt(s.max() * s.min())
        error = sum(output_error(w, x, s, chosen) for w in (w1, w2))
        if error < least:
            least, best = error, s
    ours = find([w1, w2], x, chosen)
    assert sum(output_error(w, x, ours, chosen) for w in (w1, w2)) == pytest.approx(least, rel=1e-3)
    np.testing.assert_allclose(ours, best, rtol=0.2)  # neighbours on the grid may tie, to float32
    assert (ours != 1).any()


def test_loud_channels_are_scaled_up_and_the_outputs_get_better() -> None:
    w, x = layer(64, 128)
    s = find([w], x, scheme())
    loud = np.argsort(np.abs(x).mean(axis=0))
    assert s[loud[-10:]].min() > 2 * s[loud[:10]].max()
    assert output_error(w, x, s, scheme()) < 0.8 * output_error(w, x, np.ones_like(s), scheme())


def test_channels_of_one_slot_share_their_scale() -> None:
    w, x = layer(64, 128)
    slots = np.tile(np.arange(32), 4)
    s = find([w], x, scheme(), slots=torch.from_numpy(slots))
    np.testing.assert_array_equal(s, s[:32][slots])
    assert len(np.unique(s)) == 32


def test_channels_never_met_keep_their_weights() -> None:
    w, x = layer(32, 64)
    x[:, 7], w[:, 9] = 0, 0
    s = find([w], x, scheme())
    assert np.isfinite(s).all()
    assert (s > 0).all()
    assert s[7] == 1
    assert (find([w], 0 * x, scheme()) == 1).all()


def test_a_sample_of_the_rows_decides_almost_as_well() -> None:
    w, x = layer(400, 64)
    sampled, whole = (output_error(w, x, find([w], x, scheme(), rows=rows), scheme()) for rows in (200, 400))
    assert sampled < 1.1 * whole


def group_errors(w: Weights, x: Weights, tensor: QuantizedTensor) -> NDArray[np.float64]:
    """Squared output error that each group of each row causes by itself, float64 [N, G]."""
    size = tensor.scheme.group_size
    assert size is not None
    change = w.astype(np.float64) - dequantize(tensor)
    parts = range(0, w.shape[1], size)
    return np.stack([np.square(x[:, i : i + size] @ change[:, i : i + size].T).sum(axis=0) for i in parts], axis=1)


@pytest.mark.parametrize(("bits", "symmetric"), itertools.product((4, 8), (True, False)))
@pytest.mark.parametrize("k", [64, 172])
def test_no_clipped_group_costs_more_than_an_unclipped_one(bits: int, symmetric: bool, k: int) -> None:
    w, x = layer(50, k)
    chosen, gram = scheme(bits, symmetric=symmetric), x.T @ x
    clipped = awq.clip(torch.from_numpy(w), torch.from_numpy(gram), chosen)
    ours, plain = (group_errors(w, x, tensor) for tensor in (clipped, rtn.quantize(w, chosen)))
    assert (ours <= plain * (1 + 1e-3)).all()
    weighed = group_errors(w, x, search.quantize(w, chosen, gram.diagonal()))
    assert ours.sum() < 0.95 * weighed.sum()  # which knows the diagonal alone


def test_what_is_no_number_is_refused() -> None:
    w, x = layer(4, 64)
    x[0, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        find([w], x, scheme())


def rounded_to_int8(x: Weights, block: int) -> NDArray[np.float64]:
    """Inputs [T, K] as onnxruntime's kernels multiply them: int8 by blocks of channels, a scale for each."""
    blocks = x.astype(np.float64).reshape(len(x), -1, block)
    steps = np.abs(blocks).max(axis=2, keepdims=True) / 127
    return (np.rint(blocks / steps) * steps).reshape(x.shape)


def test_the_loss_of_rounded_inputs_is_what_rounding_them_costs() -> None:
    w, x = layer(40, 128)
    for s in (np.ones(128, np.float32), np.sqrt(np.abs(x).mean(axis=0))):
        change = (rounded_to_int8(x / s, 32) - x / s) @ (w * s).T
        squares, magnitudes = np.square(w * s).sum(axis=0), np.abs(x / s).mean(axis=0)
        told = awq.RoundedInputs(block=32, tokens=len(x)).loss(torch.from_numpy(squares), torch.from_numpy(magnitudes))
        assert told == pytest.approx(float(np.square(change).sum()), rel=0.4)


def test_where_inputs_are_rounded_too_the_scales_make_them_alike() -> None:
    """Of eight bits' two errors that of the inputs is the larger; both are measured on the layer as it will run."""
    w, x = layer(40, 128)
    chosen = scheme(8)

    def error(s: Weights) -> float:
        rounded = dequantize(rtn.quantize(w * s, chosen)).astype(np.float64)
        return float(np.square(x.astype(np.float64) @ w.T - rounded_to_int8(x / s, 32) @ rounded.T).sum())

    weights_alone = find([w], x, chosen)
    both = find([w], x, chosen, rounded_inputs=awq.RoundedInputs(block=32, tokens=len(x)))
    assert error(both) < 0.8 * error(weights_alone)
    assert error(both) < 0.5 * error(np.ones_like(both))

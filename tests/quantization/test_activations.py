"""Activations are rounded as torch rounds them, and as NVFP4's two levels of scales say."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge.quantization.activations import (
    round_e4m3,
    round_e4m3_tensor,
    round_e4m3_tokens,
    round_int8,
    round_nvfp4,
)

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def x() -> Array:
    """[T, K] with outliers, a row of zeros, and values small enough to be subnormal in e4m3."""
    values = np.random.default_rng(0).standard_normal((40, 64), dtype=np.float32)
    values[3] = 0
    values[5] *= 1e-3
    values[7, 11] = -300
    return values


def torch_e4m3(x: Array, scale: Array | float) -> Array:
    torch = pytest.importorskip("torch")
    scaled = torch.from_numpy(x / np.asarray(scale, np.float32)).clamp(-448, 448)
    return np.asarray(scaled.to(torch.float8_e4m3fn).float().numpy() * np.asarray(scale, np.float32))


@pytest.mark.parametrize("scale", [0.5, 0.01, 0.37])
def test_static_e4m3_is_torchs(x: Array, scale: float) -> None:
    np.testing.assert_array_equal(round_e4m3(x, scale), torch_e4m3(x, scale))


def test_what_is_beyond_a_static_scale_saturates(x: Array) -> None:
    assert np.abs(round_e4m3(x, 1e-3)).max() == pytest.approx(0.448)
    assert round_int8(x, 1e-3).min() == pytest.approx(-0.128)
    assert round_int8(x, 1e-3).max() == pytest.approx(0.127)
    assert np.abs(round_nvfp4(x, 1e-3)).max() == pytest.approx(2.688)


def test_dynamic_e4m3_takes_the_scale_of_all_or_of_the_token(x: Array) -> None:
    np.testing.assert_array_equal(round_e4m3_tensor(x), torch_e4m3(x, np.float32(300) / np.float32(448)))
    amax = np.abs(x).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(round_e4m3_tokens(x), torch_e4m3(x, np.where(amax, amax / np.float32(448), 1)))


def test_int8_is_torchs(x: Array) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), 0.25, 0, -128, 127)
    np.testing.assert_array_equal(round_int8(x, 0.25), theirs.numpy())


def test_nvfp4_is_its_definition(x: Array) -> None:
    scale = np.float32(300 / 2688)
    for t in range(len(x)):
        for start in range(0, 64, 16):
            block = x[t, start : start + 16]
            level = np.float32(np.abs(block).max() / (6 * scale))
            level = np.float32(np.maximum(level, 2.0**-9).astype(ml_dtypes.float8_e4m3fn)) if level else np.float32(1)
            codes = np.clip(block / (level * scale), -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
            ours = round_nvfp4(x, float(scale))[t, start : start + 16]
            np.testing.assert_allclose(ours, codes * (level * scale), rtol=1e-6, err_msg=f"{t}, {start}")


def test_a_rounded_value_stays(x: Array) -> None:
    once = round_e4m3(x, 0.5)
    np.testing.assert_array_equal(round_e4m3(once, 0.5), once)
    np.testing.assert_array_equal(round_int8(round_int8(x, 0.25), 0.25), round_int8(x, 0.25))


def test_zeros_stay_zero() -> None:
    zeros = np.zeros((4, 16), np.float32)
    for rounded in (
        round_e4m3(zeros, 0.1),
        round_e4m3_tensor(zeros),
        round_e4m3_tokens(zeros),
        round_nvfp4(zeros, 1.0),
        round_int8(zeros, 0.1),
    ):
        np.testing.assert_array_equal(rounded, zeros)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden_by_a_dynamic_scale(x: Array, bad: float) -> None:
    x = x.copy()
    x[2, 2] = bad
    for rounded in (round_e4m3_tensor(x), round_e4m3_tokens(x), round_nvfp4(x, 0.1)):
        assert not np.isfinite(rounded[2, 2])
    assert np.isnan(round_e4m3(np.float32([[np.nan]]), 0.1)).all()

"""One matrix that breaks rounders, and what NVIDIA ModelOpt makes of it."""

import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from once import made_once

from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizationScheme

GROUP = 64


def hard_weights() -> NDArray[np.float32]:
    """float32 [80, 512] of bfloat16 values: long tails, ties by the hundred, zeros of both signs, an outlier."""
    w = (np.random.default_rng(7).standard_t(3, (80, 512)) * 0.02).astype(ml_dtypes.bfloat16).astype(np.float32)
    w[3] = 0
    w[5, :128] = 0
    w[6, 16:48] *= np.float32(2.0**-20)
    w[8, ::3] = -0.0
    w[9, 100] = 4.0
    w[10:14] = np.random.default_rng(8).integers(-64, 65, (4, 512)) * np.float32(1 / 64)
    w[14:40] = np.random.default_rng(9).integers(-14, 15, (26, 512)) * np.float32(2.0**-9)
    return w


@pytest.fixture(scope="session")
def hard() -> NDArray[np.float32]:
    w = hard_weights()
    w.flags.writeable = False
    return w


@pytest.fixture(scope="session")
def modelopt(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, NDArray[np.generic]]:
    """What `modelopt_codes` makes of the hard weights, and of rtn's scales for them."""
    if find_spec("modelopt") is None:
        pytest.skip("needs nvidia-modelopt, which ci/setup installs")
    return made_once(tmp_path_factory, "modelopt-codes", modelopt_codes)


def modelopt_codes(folder: Path) -> Mapping[str, NDArray[np.generic]]:
    here, w = Path(__file__).resolve().parent, hard_weights()
    rounded = quantize(w, QuantizationScheme(name="w4a16", bits=4, group_size=GROUP))
    scales = np.where(rounded.scales > 0, rounded.scales, np.float32(1))
    np.savez(folder / "in.npz", weights=w, amax=np.abs(w).max(), int4_scales=scales)
    command = [sys.executable, "-W", "ignore", str(here / "modelopt_codes.py"), "in.npz", "out.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "out.npz") as made:
        return dict(made)

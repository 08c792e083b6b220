"""Checkpoints that other people's programs made, once for all tests of a session."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from once import made_once
from random_llama import LLAMA, as_floats, write_checkpoint
from safetensors.numpy import save_file

from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizationScheme

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLAMA in one file, bfloat16. Read it, do not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("random") / "llama", LLAMA)


def w4a16_scales() -> dict[str, NDArray[np.float32]]:
    """EdgeForge's own int4 scales of the random checkpoint, in groups of 128."""
    scheme = QuantizationScheme(name="w4a16", bits=4, group_size=128)
    original = as_floats(LLAMA.tensors())
    return {name: quantize(rows, scheme).scales for name, rows in original.items() if "_proj" in name}


@pytest.fixture(scope="session")
def modelopt_exports(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `modelopt_process` makes of the random checkpoint."""
    if find_spec("modelopt") is None:
        pytest.skip("needs nvidia-modelopt, which ci/setup installs")

    def export(out: Path) -> Path:
        save_file(w4a16_scales(), out / "w4a16-scales.safetensors")
        schemes = ["fp8", "fp8-dynamic", "w4a16", "w4a8", "nvfp4", "w4a16-awq", "w4a8-awq"]
        command = [sys.executable, "-W", "ignore", str(HERE / "modelopt_process.py"), str(random_checkpoint), str(out)]
        done = subprocess.run([*command, *schemes], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return out

    return made_once(tmp_path_factory, "modelopt-exports", export)

"""NVIDIA ModelOpt's own exporters, run on the same weights and the same magnitudes, write the same tensors.

Whole checkpoints: names, types, shapes, bytes. The exceptions are ours to state: the int4 scales of w4a16 (its packer
gives the same bytes from ours), and tensors that TensorRT-LLM reads unconditionally and ModelOpt leaves out.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from random_llama import LLAMA
from raw_files import Array, read_file, read_folder, read_json
from written import chosen, write

from edgeforge.hardware import Target
from edgeforge.quantization.calibration import Calibration

CACHE_OF = {"fp8": "fp8"}
"""ModelOpt was asked for an FP8 cache with this scheme alone."""


@pytest.fixture(scope="module")
def calibration(modelopt_exports: Path) -> Calibration:
    """The magnitudes that ModelOpt found."""
    found = json.loads((modelopt_exports / "amax.json").read_text())
    return Calibration(inputs=found["inputs"], keys=tuple(found["keys"]), values=tuple(found["values"]), tokens=128)


def assert_same(ours: Mapping[str, Array], theirs: Mapping[str, Array], *, ignored: tuple[str, ...] = ()) -> None:
    """Every tensor of theirs is ours, byte for byte; what is not quantized is bfloat16 in ours.

    What we have beyond that is ones: scales of input channels.
    """
    for name, tensor in theirs.items():
        if name.endswith(ignored):
            continue
        found = ours[name]
        if found.dtype != tensor.dtype:
            assert str(found.dtype) == "bfloat16" and str(tensor.dtype) in ("float16", "float32"), name
            found = found.astype(tensor.dtype)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        differing = np.flatnonzero(found.reshape(-1).view(np.uint8) != tensor.reshape(-1).view(np.uint8))
        assert differing.size == 0, f"{name}: {differing.size} bytes differ, the first at {differing[0]}"
    for name in set(ours) - set(theirs):
        assert name.endswith(("pre_quant_scale", "prequant_scaling_factor")), name
        assert (ours[name].astype(np.float32) == 1).all()


def target(backend: str, scheme: str, tp: int = 1, pp: int = 1) -> Target:
    group_size = 128 if scheme.startswith("w4") else None
    return chosen(
        backend,
        scheme,
        group_size=group_size,
        kv_cache=CACHE_OF.get(scheme, "bf16"),
        tensor_parallel=tp,
        pipeline_parallel=pp,
    )


@pytest.mark.parametrize("scheme", ["fp8", "fp8-dynamic", "w4a8", "nvfp4"])
def test_unified_checkpoints(
    random_checkpoint: Path, modelopt_exports: Path, calibration: Calibration, tmp_path: Path, scheme: str
) -> None:
    write(tmp_path / "out", random_checkpoint, target("modelopt", scheme), calibration)
    theirs = read_folder(modelopt_exports / scheme / "unified")
    assert_same(read_folder(tmp_path / "out"), theirs)


def test_the_int4_packer(random_checkpoint: Path, modelopt_exports: Path, tmp_path: Path) -> None:
    """From the same scales."""
    write(tmp_path / "out", random_checkpoint, target("modelopt", "w4a16"))
    ours, theirs = read_folder(tmp_path / "out"), read_file(modelopt_exports / "w4a16" / "packed.safetensors")
    assert len(theirs) == 7 * LLAMA.layers
    for name, packed in theirs.items():
        np.testing.assert_array_equal(ours[name], packed, err_msg=name)


@pytest.mark.parametrize("scheme", ["fp8", "fp8-dynamic", "w4a16", "w4a8", "nvfp4"])
def test_unified_configs(
    random_checkpoint: Path, modelopt_exports: Path, calibration: Calibration, tmp_path: Path, scheme: str
) -> None:
    """Both files differ in who made them, and in one exclusion that newer releases spell out: the embedding."""
    write(tmp_path / "out", random_checkpoint, target("modelopt", scheme), calibration)
    for file, place, excluded in (
        ("hf_quant_config.json", "quantization", "exclude_modules"),
        ("config.json", "quantization_config", "ignore"),
    ):
        ours, theirs = (
            dict(read_json(folder / file)[place])  # type: ignore[call-overload]
            for folder in (tmp_path / "out", modelopt_exports / scheme / "unified")
        )
        for found in (ours, theirs):
            found.pop("producer", None)
            assert "lm_head" in found[excluded]
            assert set(found.pop(excluded)) <= {"lm_head", "model.embed_tokens"}
        assert ours == theirs, file


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("scheme", ["fp8", "w4a8"])
def test_tensorrt_llm_ranks(
    random_checkpoint: Path,
    modelopt_exports: Path,
    calibration: Calibration,
    tmp_path: Path,
    scheme: str,
    tp: int,
    pp: int,
) -> None:
    """But for the cache's scales, which ModelOpt raises to 1 here and nowhere else, and for the second scales of gate
    and up, which it keeps apart: ours are the larger.
    """
    write(tmp_path / "out", random_checkpoint, target("tensorrt-llm", scheme, tp, pp), calibration)
    for rank in range(tp * pp):
        theirs = read_file(modelopt_exports / scheme / f"trtllm-{tp}x{pp}" / f"rank{rank}.safetensors")
        ours = read_file(tmp_path / "out" / f"rank{rank}.safetensors")
        for name in [name for name in ours if name.endswith(".kv_cache_scaling_factor")]:
            assert theirs.pop(name) == np.maximum(ours.pop(name).astype(np.float32), 1)
        for name in [name for name in ours if name.endswith(".mlp.fc.weights_scaling_factor_2")]:
            names = name, name.replace(".fc.", ".gate.")
            largest = np.maximum(*(theirs[name].astype(np.float32) for name in names))
            theirs |= dict.fromkeys(names, largest)
        assert_same(ours, theirs, ignored=(".k_cache_scaling_factor", ".v_cache_scaling_factor"))


def test_tensorrt_llm_configs(
    random_checkpoint: Path, modelopt_exports: Path, calibration: Calibration, tmp_path: Path
) -> None:
    """What ModelOpt says, we say, where it is about the model and not about the exporter."""
    for scheme in ("fp8", "w4a16", "w4a8"):
        write(tmp_path / scheme, random_checkpoint, target("tensorrt-llm", scheme, 2, 2), calibration)
        ours = read_json(tmp_path / scheme / "config.json")
        theirs = read_json(modelopt_exports / scheme / "trtllm-2x2" / "config.json")
        told = set(ours) & set(theirs) - {"producer", "dtype", "logits_dtype", "quantization"}
        assert {key: ours[key] for key in told} == {key: theirs[key] for key in told}
        quantized, known = theirs["quantization"], ours["quantization"]
        assert isinstance(quantized, dict) and isinstance(known, dict)
        assert {key: known[key] for key in quantized} == quantized

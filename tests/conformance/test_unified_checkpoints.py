"""The unified checkpoints that we write, read from the format's description alone, hold the quantizer's weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from random_llama import LLAMA, Llama, as_floats, write_checkpoint
from unified_reader import Loaded, read_unified
from written import assert_weights, blocks, chosen, expected, made_up, write

from edgeforge.quantization.calibration import EMPTY
from edgeforge.quantization.scheme import dequantize

ALGORITHMS = {
    "fp8": "FP8",
    "fp8-dynamic": "FP8_PER_CHANNEL_PER_TOKEN",
    "w4a16": "W4A16_AWQ",
    "w4a8": "W4A8_AWQ",
    "nvfp4": "NVFP4",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    llama: Llama = LLAMA
    shards: int = 1


CASES = {
    "plain": Case(),
    "tied, two heads of keys": Case(llama=Llama(tied=True, kv_heads=2, layers=1)),
    "in three files, of float32": Case(llama=Llama(dtype="float32"), shards=3),
}


def assert_scales(loaded: Loaded, llama: Llama, scheme: str) -> None:
    """Static scales of inputs, and those of the cache, are the calibration's figures over the largest number."""
    calibration = made_up(llama)
    divisor = np.float32(2688 if scheme == "nvfp4" else 448)
    for name, linear in loaded.linears.items():
        if scheme in ("fp8", "w4a8", "nvfp4"):
            assert linear.input_scale == np.float32(calibration.inputs[f"{name}.weight"]) / divisor
    for found, *largest in zip(loaded.kv, calibration.keys, calibration.values, strict=True):
        assert found == tuple(np.array(largest, np.float32) / np.float32(448))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scheme", ALGORITHMS)
def test_every_format_holds_the_quantizers_weights(tmp_path: Path, scheme: str, case: str) -> None:
    llama = CASES[case].llama
    model = write_checkpoint(tmp_path / "model", llama, shards=CASES[case].shards)
    schemes = write(tmp_path / "out", model, chosen("modelopt", scheme, kv_cache="fp8"), made_up(llama))
    loaded, quantized = read_unified(tmp_path / "out"), expected(llama, schemes, made_up(llama))
    assert loaded.algorithm == ALGORITHMS[scheme]
    assert_scales(loaded, llama, scheme)
    for name, tensor in quantized.items():
        linear = loaded.linears[name.removesuffix(".weight")]
        np.testing.assert_array_equal(linear.codes, tensor.codes.astype(np.float32), err_msg=name)
        assert linear.tensor_scale == tensor.tensor_scale
        if linear.pre_quant_scale is not None:
            assert (linear.pre_quant_scale == 1).all()
    assert_plain(loaded, llama)
    for name, tensor in quantized.items():
        np.testing.assert_array_equal(loaded.weights[name], dequantize(tensor), err_msg=name)


def assert_plain(loaded: Loaded, llama: Llama) -> None:
    """Embedding, norms and head in the target's type, each rounded once."""
    original, kept = as_floats(llama.tensors()), np.dtype(getattr(ml_dtypes, loaded.dtype, loaded.dtype))
    linears = {name for block in blocks(llama) for name in block}
    assert set(loaded.plain) == set(original) - linears
    for name, values in loaded.plain.items():
        np.testing.assert_array_equal(values, original[name].astype(kept).astype(np.float32), err_msg=name)


@pytest.mark.parametrize("scheme", ["w4a16", "w4a8"])
def test_scales_of_input_channels_are_folded_into_the_norms_or_kept(
    random_checkpoint: Path, tmp_path: Path, scheme: str
) -> None:
    """Those that q, k, v (gate, up) share go into the norm before them; o and down carry theirs."""
    calibration = made_up(LLAMA, smooth=True)
    schemes = write(tmp_path / "out", random_checkpoint, chosen("modelopt", scheme), calibration)
    loaded, original = read_unified(tmp_path / "out"), as_floats(LLAMA.tensors())
    for name, tensor in expected(LLAMA, schemes, calibration).items():
        np.testing.assert_array_equal(loaded.weights[name], dequantize(tensor), err_msg=name)
    for i in range(LLAMA.layers):
        layer = f"model.layers.{i}."
        for norm, first in (("input_layernorm", "self_attn.q_proj"), ("post_attention_layernorm", "mlp.gate_proj")):
            folded = original[f"{layer}{norm}.weight"] * calibration.pre_quant_scales[f"{layer}{first}.weight"]
            kept = folded.astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(loaded.plain[f"{layer}{norm}.weight"], kept)
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            found, meant = (
                loaded.linears[layer + part].pre_quant_scale,
                calibration.pre_quant_scales[f"{layer}{part}.weight"],
            )
            np.testing.assert_array_equal(found, meant.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_fp8_without_calibration_has_no_input_scales(random_checkpoint: Path, tmp_path: Path) -> None:
    """TensorRT-LLM then finds them while it runs."""
    schemes = write(tmp_path / "out", random_checkpoint, chosen("modelopt", "fp8", kv_cache="bf16"))
    loaded = read_unified(tmp_path / "out")
    assert all(linear.input_scale is None for linear in loaded.linears.values())
    assert_weights(loaded.weights, LLAMA, expected(LLAMA, schemes, EMPTY))


def test_several_files_and_their_index(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeforge.backends.huggingface.layout.SHARD_BYTES", 1_000_000)
    schemes = write(tmp_path / "out", random_checkpoint, chosen("modelopt", "fp8"), made_up(LLAMA))
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 4
    assert_weights(read_unified(tmp_path / "out").weights, LLAMA, expected(LLAMA, schemes, made_up(LLAMA)))


def test_the_files_do_not_depend_on_the_number_of_cards(random_checkpoint: Path, tmp_path: Path) -> None:
    """The consumer splits them itself."""
    found: list[Mapping[str, bytes]] = []
    for cards in (1, 2, 4, 8):
        folder = tmp_path / str(cards)
        target = chosen("modelopt", "fp8", tensor_parallel=cards)
        write(folder, random_checkpoint, target, made_up(LLAMA))
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert all(other == found[0] for other in found)

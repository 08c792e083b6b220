"""TensorRT Edge-LLM loads our unified checkpoints: the numpy reader of its engine builder, and its ONNX exporter.

Neither needs CUDA or TensorRT until an engine is built. What the reader returns are the quantizer's codes.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from random_llama import LLAMA, Llama, as_floats, write_checkpoint
from written import chosen, expected, made_up, write

from edgeforge.errors import UsageError
from edgeforge.hardware import Target
from edgeforge.quantization.scheme import QuantizedTensor

REASON = "needs tensorrt-edgellm (Linux on x86-64, Python up to 3.12), which ci/setup installs"
pytest.importorskip("tensorrt_edgellm", reason=REASON)
from experimental.builder.core.config import DeviceConfig  # noqa: E402
from experimental.builder.core.weights import LinearWeights, Weights  # noqa: E402
from experimental.builder.models.registry import weight_conversion_for  # noqa: E402
from experimental.builder.weight_packing import int4  # noqa: E402

CALIBRATION = made_up(LLAMA)
SCHEMES = ("w4a16", "fp8", "nvfp4")
THEIR_NAMES = {"w4a16": "int4_awq_modelopt", "fp8": "fp8", "nvfp4": "nvfp4"}
BOARDS = {"w4a16": "jetson-agx-orin-64gb", "fp8": "jetson-thor", "nvfp4": "jetson-thor"}
CACHES = {"w4a16": "f16", "fp8": "fp8", "nvfp4": "fp8"}
"""Orin has no FP8; nor does the exporter take the scales of an FP8 cache beside int4 weights, so that is refused."""


class Checkpoint(NamedTuple):
    folder: Path
    quantized: Mapping[str, QuantizedTensor]


@contextmanager
def opened(folder: Path) -> Iterator[Weights]:
    """The folder's weights as Edge-LLM's builder opens them."""
    config = DeviceConfig.from_pretrained(str(folder))
    weights = Weights(
        str(folder),
        config.group_size,
        config.quant,
        conversion=weight_conversion_for("llama"),
        tie_word_embeddings=config.tie_word_embeddings,
        int4_gemm_plugin_version=1,
    )
    with closing(weights):
        yield weights


def board(scheme: str) -> Target:
    return chosen("modelopt", scheme, kv_cache=CACHES[scheme], hardware=BOARDS[scheme])


@pytest.fixture(scope="module")
def checkpoints(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Checkpoint]:
    """Ours, by scheme, with what the quantizer says of each weight."""
    folder, found = tmp_path_factory.mktemp("unified"), {}
    for scheme in SCHEMES:
        schemes = write(folder / scheme, random_checkpoint, board(scheme), CALIBRATION)
        found[scheme] = Checkpoint(folder / scheme, expected(LLAMA, schemes, CALIBRATION))
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_config_is_understood(checkpoints: Mapping[str, Checkpoint], scheme: str) -> None:
    config = DeviceConfig.from_pretrained(str(checkpoints[scheme].folder))
    group_sizes = {"w4a16": 128, "nvfp4": 16}
    assert config.quant.quant_type == THEIR_NAMES[scheme]
    assert scheme not in group_sizes or config.quant.group_size == group_sizes[scheme]
    assert config.kv_cache_dtype == {"f16": "fp16"}.get(CACHES[scheme], CACHES[scheme])
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (512, 1024, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 128)
    assert (config.vocab_size, config.rope_theta, config.rms_norm_eps) == (512, 500000.0, 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_its_codes_are_the_quantizers(checkpoints: Mapping[str, Checkpoint], scheme: str) -> None:
    folder, quantized = checkpoints[scheme]
    with opened(folder) as weights:
        for name, tensor in quantized.items():
            module = name.removesuffix(".weight")
            linear = weights.linear(module, weights.module_quant_type(module))
            assert linear.quant_type == THEIR_NAMES[scheme]
            assert (linear.out_features, linear.in_features) == tensor.codes.shape
            {"w4a16": assert_int4, "fp8": assert_fp8, "nvfp4": assert_nvfp4}[scheme](linear, tensor)
            if tensor.scheme.activations == "static":
                divisor = 448 if scheme == "fp8" else 2688
                assert linear.input_scale == np.float32(CALIBRATION.inputs[name]) / np.float32(divisor)


def assert_int4(linear: LinearWeights, tensor: QuantizedTensor) -> None:
    """Edge-LLM shuffles the nibbles for its kernel, so ours are shuffled by the same function of its own."""
    biased = tensor.codes.astype(np.int16) + 8
    np.testing.assert_array_equal(linear.weight, int4.pack_intweights(biased))
    np.testing.assert_array_equal(linear.weight_scale, tensor.scales.T.astype(np.float16))
    np.testing.assert_array_equal(linear.pre_quant_scale, np.ones(tensor.codes.shape[1], np.float16))


def assert_fp8(linear: LinearWeights, tensor: QuantizedTensor) -> None:
    np.testing.assert_array_equal(linear.weight, tensor.codes.view(np.uint8))
    assert linear.weight_scale == np.float16(tensor.scales[0, 0])


def assert_nvfp4(linear: LinearWeights, tensor: QuantizedTensor) -> None:
    nibbles: NDArray[np.uint8] = tensor.codes.view(np.uint8)
    np.testing.assert_array_equal(linear.weight, nibbles[:, 0::2] | nibbles[:, 1::2] << 4)
    np.testing.assert_array_equal(linear.weight_scale, tensor.scales.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert linear.weight_scale_2 == tensor.tensor_scale


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_rest_is_the_original(checkpoints: Mapping[str, Checkpoint], scheme: str) -> None:
    """lm_head, embedding and norms in float16, as Edge-LLM computes; the cache's scales of every layer."""
    original = as_floats(LLAMA.tensors())
    with opened(checkpoints[scheme].folder) as weights:
        for name, values in original.items():
            if values.ndim == 1 or "layers" not in name:
                np.testing.assert_array_equal(weights.f16(name), values.astype(np.float16), err_msg=name)
        assert weights.module_quant_type("lm_head") == "fp16"
        for i in range(LLAMA.layers):
            largest = np.array([CALIBRATION.keys[i], CALIBRATION.values[i]], np.float32)
            meant = (largest / np.float32(448)).tolist() if CACHES[scheme] == "fp8" else [1, 1]
            _, *scales = weights.qkv_scales(f"model.layers.{i}.self_attn")
            assert scales == meant


@pytest.mark.parametrize("scheme", SCHEMES)
def test_its_exporter_takes_every_tensor(
    checkpoints: Mapping[str, Checkpoint], scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The model that becomes its ONNX graph: no tensor of the files is left over."""
    from tensorrt_edgellm.model import AutoModel

    with caplog.at_level(logging.INFO, "tensorrt_edgellm"):
        AutoModel.from_pretrained(str(checkpoints[scheme].folder))
    (told,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("Loaded"))
    assert ", skipped 0 from" in told


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    """There is no lm_head in the files, and both of Edge-LLM's readers know where to look."""
    llama = Llama(tied=True, layers=1)
    model = write_checkpoint(tmp_path / "model", llama)
    write(tmp_path / "out", model, board("w4a16"), made_up(llama))
    table = as_floats(llama.tensors())["model.embed_tokens.weight"].astype(np.float16)
    with opened(tmp_path / "out") as weights:
        assert weights.tie_word_embeddings and not weights.store.has("lm_head.weight")
        np.testing.assert_array_equal(weights.linear("lm_head", "fp16").weight, table)


def test_several_files(random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeforge.backends.huggingface.layout.SHARD_BYTES", 1_000_000)
    schemes = write(tmp_path / "out", random_checkpoint, board("fp8"), CALIBRATION)
    with opened(tmp_path / "out") as weights:
        for name, tensor in expected(LLAMA, schemes, CALIBRATION).items():
            assert_fp8(weights.linear(name.removesuffix(".weight"), "fp8"), tensor)


def test_a_cache_whose_scales_its_exporter_would_leave_out_is_refused(random_checkpoint: Path, tmp_path: Path) -> None:
    target = chosen("modelopt", "w4a16", kv_cache="fp8", hardware="jetson-thor")
    with pytest.raises(UsageError, match="TensorRT Edge-LLM") as refused:
        write(tmp_path / "out", random_checkpoint, target, CALIBRATION)
    assert refused.value.hint == "use --kv-cache f16, or --scheme fp8"

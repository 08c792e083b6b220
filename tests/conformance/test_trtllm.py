"""The ranks of our TensorRT-LLM (<= 1.2.1) checkpoints, put together again from the format's description alone."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from random_llama import LLAMA, Llama, write_checkpoint
from trtllm_reader import Loaded, read_trtllm
from written import assert_weights, chosen, expected, made_up, write

from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor

WIDE = Llama(hidden=1024, heads=16, kv_heads=8, width=64, layers=1)
ALGORITHMS = {"fp8": "FP8", "w4a16": "W4A16_AWQ", "w4a8": "W4A8_AWQ"}
# Not w4a8 among 16: its kernels take groups of 128 only, and 1024 does not divide into 16 of them.
SPLITS = [(scheme, tp) for scheme in ALGORITHMS for tp in (1, 2, 4, 8, 16) if (scheme, tp) != ("w4a8", 16)]


def assert_scales(loaded: Loaded, llama: Llama, scheme: str) -> None:
    """The last of a linear's single numbers is the scale of its input; the cache has one scale for keys and values."""
    calibration = made_up(llama)
    for name, part in loaded.linears.items():
        if scheme != "w4a16":
            assert part.single[-1] == np.float32(calibration.inputs[f"{name}.weight"]) / np.float32(448)
        if scheme != "fp8":
            assert part.pre_quant_scale is not None and (part.pre_quant_scale == 1).all()
    for found, *largest in zip(loaded.kv, calibration.keys, calibration.values, strict=True):
        assert found == np.float32(max(largest)) / np.float32(448)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "llama", WIDE)


@pytest.fixture(scope="module")
def meant() -> Callable[[str, Mapping[str, QuantizationScheme]], Mapping[str, QuantizedTensor]]:
    """What the quantizer makes of the wide model, worked out once for each scheme."""
    known: dict[str, Mapping[str, QuantizedTensor]] = {}

    def of(scheme: str, schemes: Mapping[str, QuantizationScheme]) -> Mapping[str, QuantizedTensor]:
        if scheme not in known:
            known[scheme] = expected(WIDE, schemes, made_up(WIDE))
        return known[scheme]

    return of


@pytest.mark.parametrize(("scheme", "tp"), SPLITS)
def test_any_number_of_ranks_holds_the_quantizers_weights(
    wide: Path, meant: Callable[..., Mapping[str, QuantizedTensor]], tmp_path: Path, scheme: str, tp: int
) -> None:
    """At 16 ranks every two share a head of keys."""
    size = {"w4a16": 64, "w4a8": 128, "fp8": None}[scheme]
    target = chosen("tensorrt-llm", scheme, group_size=size, kv_cache="fp8", tensor_parallel=tp)
    schemes = write(tmp_path / "out", wide, target, made_up(WIDE))
    loaded = read_trtllm(tmp_path / "out")
    quantized = loaded.config["quantization"]
    assert isinstance(quantized, dict) and quantized["quant_algo"] == ALGORITHMS[scheme]
    assert_scales(loaded, WIDE, scheme)
    assert_weights(loaded.weights, WIDE, meant(scheme, schemes))


@pytest.mark.parametrize("scheme", ALGORITHMS)
def test_pipeline_groups(tmp_path: Path, scheme: str) -> None:
    """Three layers in two groups, and a vocabulary that does not divide by the ranks."""
    llama = Llama(layers=3, vocab=509)
    model = write_checkpoint(tmp_path / "model", llama)
    target = chosen("tensorrt-llm", scheme, kv_cache="fp8", tensor_parallel=4, pipeline_parallel=2)
    schemes = write(tmp_path / "out", model, target, made_up(llama))
    loaded = read_trtllm(tmp_path / "out")
    assert_scales(loaded, llama, scheme)
    assert_weights(loaded.weights, llama, expected(llama, schemes, made_up(llama)))


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("scheme", ["fp8", "w4a16"])
def test_two_heads_of_keys_and_a_tied_head(tmp_path: Path, scheme: str, tp: int) -> None:
    llama = Llama(tied=True, kv_heads=2, layers=1)
    model = write_checkpoint(tmp_path / "model", llama, shards=2)
    target = chosen("tensorrt-llm", scheme, tensor_parallel=tp)
    schemes = write(tmp_path / "out", model, target, made_up(llama))
    found = read_trtllm(tmp_path / "out").weights
    if "lm_head.weight" in found:  # a copy, or left out and said so
        np.testing.assert_array_equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    assert_weights(found, llama, expected(llama, schemes, made_up(llama)))


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("scheme", ["w4a16", "w4a8"])
def test_every_linear_carries_the_scales_of_its_input_channels(
    random_checkpoint: Path, tmp_path: Path, scheme: str, tp: int
) -> None:
    """Nothing is folded into a norm here."""
    calibration = made_up(LLAMA, smooth=True)
    target = chosen("tensorrt-llm", scheme, tensor_parallel=tp)
    schemes = write(tmp_path / "out", random_checkpoint, target, calibration)
    loaded = read_trtllm(tmp_path / "out")
    assert_weights(loaded.weights, LLAMA, expected(LLAMA, schemes, calibration))
    for name, part in loaded.linears.items():
        meant = calibration.pre_quant_scales[f"{name}.weight"]
        assert part.pre_quant_scale is not None
        np.testing.assert_allclose(part.pre_quant_scale, meant, rtol=2**-8)  # in the model's type


def test_an_int8_cache(random_checkpoint: Path, tmp_path: Path) -> None:
    target = chosen("tensorrt-llm", "w4a16", kv_cache="int8", tensor_parallel=2)
    write(tmp_path / "out", random_checkpoint, target, made_up(LLAMA))
    loaded, calibration = read_trtllm(tmp_path / "out"), made_up(LLAMA)
    quantized = loaded.config["quantization"]
    assert isinstance(quantized, dict) and quantized["kv_cache_quant_algo"] == "INT8"
    largest = np.maximum(calibration.keys, calibration.values).astype(np.float32)
    np.testing.assert_array_equal(np.array(loaded.kv, np.float32), largest / np.float32(127))


def test_the_config_says_what_trtllm_build_asks(random_checkpoint: Path, tmp_path: Path) -> None:
    target = chosen("tensorrt-llm", "fp8", kv_cache="fp8", tensor_parallel=4, pipeline_parallel=2)
    write(tmp_path / "out", random_checkpoint, target, made_up(LLAMA))
    config = dict(read_trtllm(tmp_path / "out").config)
    config.pop("producer", None)
    assert config == {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "logits_dtype": config["logits_dtype"],
        "vocab_size": 512,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_size": 128,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 500000.0,
        "rotary_scaling": None,
        "mlp_bias": False,
        "attn_bias": False,
        "residual_mlp": False,
        "use_parallel_embedding": config["use_parallel_embedding"],
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "mapping": {"world_size": 8, "tp_size": 4, "pp_size": 2},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            **{
                key: value
                for key, value in dict(config["quantization"]).items()  # type: ignore[call-overload]
                if key in ("group_size", "has_zero_point", "pre_quant_scale")
            },
            "exclude_modules": ["lm_head"],
        },
    }

"""compressed-tensors checkpoints: names, types, bytes and config as vLLM and transformers read them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edgeforge.backends import load, load_readable
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.planning import BuildPlan
from edgeforge.quantization.calibration import EMPTY
from edgeforge.quantization.scheme import QuantizedTensor, dequantize
from tests.backends.handmade import (
    DOWN,
    GATE,
    OUT,
    TIED,
    TINY,
    UP,
    K,
    Q,
    V,
    contents_of,
    described,
    json_of,
    made_up,
    plan_for,
    read,
    rows_of,
    smooth,
    write,
)

compressed = load_readable("compressed-tensors")


def plan_of(kind: str, **changes: object) -> BuildPlan:
    scheme, _, asymmetric = kind.partition(" ")
    settings = {"group_size": 32, **({"symmetric": not asymmetric} if scheme == "w4a16" else {}), **changes}
    return plan_for("compressed-tensors", scheme, **settings)


# What stands in the place of o_proj, [128, 128].
TENSORS: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "w4a16": {
        "weight_packed": ("int32", (128, 16)),
        "weight_scale": ("bfloat16", (128, 4)),
        "weight_shape": ("int64", (2,)),
    },
    "w4a16 asymmetric": {
        "weight_packed": ("int32", (128, 16)),
        "weight_scale": ("bfloat16", (128, 4)),
        "weight_shape": ("int64", (2,)),
        "weight_zero_point": ("int32", (16, 4)),
    },
    "fp8": {
        "weight": ("float8_e4m3fn", (128, 128)),
        "weight_scale": ("bfloat16", (1,)),
        "input_scale": ("bfloat16", (1,)),
    },
    "fp8-dynamic": {"weight": ("float8_e4m3fn", (128, 128)), "weight_scale": ("bfloat16", (128, 1))},
    "bf16": {"weight": ("bfloat16", (128, 128))},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_linear_is_stored_as_its_format_says(tmp_path: Path, kind: str) -> None:
    write(plan_of(kind), tmp_path)
    tensors = read(tmp_path)
    for name in (OUT, Q):
        assert described(tensors, name.removesuffix("weight")) == TENSORS[kind]
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight"):
        assert tensors[name].dtype == ml_dtypes.bfloat16
    if kind.startswith("w4a16"):
        shapes = dict(TINY.tensors())
        for name in (Q, K, DOWN):
            assert tensors[name.replace(".weight", ".weight_shape")].tolist() == list(shapes[name])


def test_scales_are_in_the_type_of_the_model(tmp_path: Path) -> None:
    write(plan_of("w4a16", activations="f16"), tmp_path)
    assert read(tmp_path)[OUT.replace(".weight", ".weight_scale")].dtype == np.float16


def test_int4_words_hold_eight_columns_and_zero_points_eight_rows(tmp_path: Path) -> None:
    plan = plan_of("w4a16 asymmetric")
    contents = dict(contents_of(plan))
    codes, zero_points = np.zeros((128, 128), np.int8), np.zeros((128, 4), np.int8)
    codes[0, :9] = (-8, -7, -6, -5, -4, -3, -2, -1, 7)
    zero_points[:8, 1] = (7, 6, 5, 4, 3, 2, 1, 0)
    zero_points[127, 3] = -8
    scales = np.full((128, 4), 0.5, np.float32)
    contents[OUT] = QuantizedTensor(scheme=plan.schemes[OUT], codes=codes, scales=scales, zero_points=zero_points)
    write(plan, tmp_path, contents=contents, step=8)
    tensors = read(tmp_path)
    packed = tensors[OUT.replace(".weight", ".weight_packed")].view(np.uint32)
    assert packed[0, :3].tolist() == [0x76543210, 0x8888888F, 0x88888888]
    words = tensors[OUT.replace(".weight", ".weight_zero_point")].view(np.uint32)
    assert words[0].tolist() == [0x88888888, 0x89ABCDEF, 0x88888888, 0x88888888]
    assert words[15].tolist() == [0x88888888, 0x88888888, 0x88888888, 0x08888888]
    found = compressed.read_back(plan, tmp_path).tensor(OUT)
    assert found.rows(0, 1)[0, :9].tolist() == [-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 3.5]
    assert found.rows(1, 2)[0, 32:34].tolist() == [-3, -3]


def test_a_word_of_zero_points_may_be_short(tmp_path: Path) -> None:
    """As the package packs them: what is beyond the last row is zero bits. Rows of k and v here: 2 heads of 6."""
    narrow = replace(TINY, num_attention_heads=16, head_dim=6, hidden_size=96, intermediate_size=96)
    plan = plan_for("compressed-tensors", "w4a16", narrow, group_size=32, symmetric=False)
    contents = write(plan, tmp_path, step=8)
    words = read(tmp_path)[K.replace(".weight", ".weight_zero_point")].view(np.uint32)
    assert words.shape == (2, 3) and (words[1] >> 16 == 0).all()
    meant = contents[K]
    assert isinstance(meant, QuantizedTensor)
    np.testing.assert_array_equal(compressed.read_back(plan, tmp_path).tensor(K).rows(0, 12), dequantize(meant))


def test_pieces_that_split_a_word_are_refused(tmp_path: Path) -> None:
    plan = plan_of("w4a16 asymmetric")
    whole = contents_of(plan)[OUT]
    assert isinstance(whole, QuantizedTensor)
    with pytest.raises(ValueError, match="middle of a word"), compressed.sink(plan, EMPTY, tmp_path) as sink:
        sink.put(OUT, 4, rows_of(whole, 4, 12))


GROUPS: Mapping[str, Mapping[str, object]] = {
    "w4a16": {
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": 32,
            "dynamic": False,
        },
        "input_activations": None,
    },
    "fp8": {
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False},
        "input_activations": {
            "num_bits": 8,
            "type": "float",
            "symmetric": True,
            "strategy": "tensor",
            "dynamic": False,
        },
    },
    "fp8-dynamic": {
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True},
    },
}


@pytest.mark.parametrize("architecture", [TINY, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("scheme", GROUPS)
def test_config_says_how_it_is_quantized(tmp_path: Path, scheme: str, architecture) -> None:  # type: ignore[no-untyped-def]
    write(plan_for("compressed-tensors", scheme, architecture, group_size=32), tmp_path)
    assert json_of(tmp_path / "config.json")["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if scheme == "w4a16" else "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], **GROUPS[scheme]}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": "0.20.0",
    }


def test_zero_points_are_announced(tmp_path: Path) -> None:
    write(plan_of("w4a16 asymmetric"), tmp_path)
    config = json_of(tmp_path / "config.json")["quantization_config"]
    assert isinstance(config, dict)
    assert config["config_groups"]["group_0"]["weights"]["symmetric"] is False


def test_what_is_not_quantized_says_nothing_of_it(tmp_path: Path) -> None:
    write(plan_of("bf16"), tmp_path)
    assert "quantization_config" not in json_of(tmp_path / "config.json")


def test_input_scales_are_shared_by_linears_that_share_their_input(tmp_path: Path) -> None:
    plan, calibration = plan_of("fp8"), made_up()
    write(plan, tmp_path, calibration)
    tensors, inputs = read(tmp_path), compressed.read_inputs(plan, tmp_path).inputs
    for block in ((Q, K, V), (OUT,), (GATE, UP), (DOWN,)):
        largest = np.float32(max(calibration.inputs[name] for name in block))
        expected = (largest / np.float32(448)).astype(ml_dtypes.bfloat16)
        for name in block:
            assert tensors[name.replace(".weight", ".input_scale")].tolist() == [expected]
            assert inputs[name] == float(expected)


def test_static_scales_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the largest input of") as told:
        write(plan_of("fp8"), tmp_path, replace(made_up(), inputs={Q: 1.0}))
    assert "--calibration FILE" in str(told.value.hint) and "--scheme fp8-dynamic" in str(told.value.hint)
    write(plan_of("fp8-dynamic"), tmp_path, EMPTY)


def test_an_fp8_cache_has_scales_on_the_attention_and_in_the_config(tmp_path: Path) -> None:
    plan, calibration = plan_of("w4a16", kv_cache="fp8"), made_up()
    write(plan, tmp_path, calibration)
    tensors, inputs = read(tmp_path), compressed.read_inputs(plan, tmp_path)
    for i in range(TINY.num_hidden_layers):
        for which, figures, found in (
            ("k", calibration.keys, inputs.keys),
            ("v", calibration.values, inputs.values),
        ):
            scale = (np.float32(figures[i]) / np.float32(448)).astype(ml_dtypes.bfloat16)
            stored = tensors[f"model.layers.{i}.self_attn.{which}_scale"]
            assert (stored.dtype, stored.tolist(), found[i]) == (ml_dtypes.bfloat16, [scale], float(scale))
    config = json_of(tmp_path / "config.json")["quantization_config"]
    assert isinstance(config, dict)
    cache = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    assert config["kv_cache_scheme"] == cache


def test_shared_pre_quant_scales_go_into_the_norms_and_own_ones_have_no_place(tmp_path: Path) -> None:
    plan, scales = plan_of("w4a16"), smooth()
    shared = {name: scale for name, scale in scales.items() if "o_proj" not in name and "down_proj" not in name}
    contents = write(plan, tmp_path / "shared", replace(made_up(), pre_quant_scales=shared))
    name = "model.layers.1.post_attention_layernorm.weight"
    weights = contents[name]
    assert isinstance(weights, np.ndarray)
    folded = (weights * scales["model.layers.1.mlp.up_proj.weight"]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(read(tmp_path / "shared")[name], folded)
    with pytest.raises(UsageError, match="cannot store one"):
        write(plan, tmp_path / "all", replace(made_up(), pre_quant_scales=scales))


@pytest.mark.parametrize("kind", ["w4a16", "w4a16 asymmetric", "fp8", "fp8-dynamic"])
def test_the_weights_read_back_are_the_quantizers(tmp_path: Path, kind: str) -> None:
    plan = plan_of(kind)
    contents = write(plan, tmp_path, step=24)
    weights = compressed.read_back(plan, tmp_path)
    for name, meant in contents.items():
        expected = (
            dequantize(meant)
            if isinstance(meant, QuantizedTensor)
            else meant.astype(ml_dtypes.bfloat16).astype(np.float32)
        )
        tensor = weights.tensor(name)
        assert tensor.shape == expected.shape
        for start, stop in ((0, len(expected)), (3, 21), (5, 5)):
            np.testing.assert_array_equal(tensor.rows(start, stop), expected[start:stop], err_msg=name)
    with pytest.raises(ValueError, match="rows 0:129"):
        weights.tensor(OUT).rows(0, 129)


def test_the_package_unpacks_what_is_packed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    plan = plan_of("w4a16 asymmetric")
    contents, tensors = write(plan, tmp_path), read(tmp_path)
    for name, meant in contents.items():
        if isinstance(meant, QuantizedTensor) and meant.zero_points is not None:
            words = torch.from_numpy(tensors[name.replace(".weight", ".weight_packed")].copy())
            found = helpers.unpack_from_int32(words, 4, torch.Size(meant.codes.shape))
            np.testing.assert_array_equal(found.numpy(), meant.codes)
            packed = helpers.pack_to_int32(torch.from_numpy(meant.zero_points), 4, packed_dim=0)
            np.testing.assert_array_equal(packed.numpy(), tensors[name.replace(".weight", ".weight_zero_point")])


def test_files_that_are_not_the_plans_are_refused(tmp_path: Path) -> None:
    write(plan_of("w4a16"), tmp_path)
    with pytest.raises(UnusableInput, match=r"has no model.layers.0.self_attn.q_proj.weight_zero_point"):
        compressed.read_back(plan_of("w4a16 asymmetric"), tmp_path)


def test_what_vllm_has_no_kernel_for_is_refused_before_work() -> None:
    compressed.check(plan_of("w4a16"))
    with pytest.raises(UsageError, match="vllm for scheme w4a16 take groups of 32 or 64 or 128") as told:
        compressed.check(plan_of("w4a16", group_size=16))
    assert told.value.hint == "use --group-size 128"
    with pytest.raises(UsageError, match="beside weights in bf16 is not something that vLLM reads scales for"):
        compressed.check(plan_of("bf16", kv_cache="fp8"))
    with pytest.raises(UnusableInput, match="8 cards cannot split into whole groups of 32"):
        compressed.check(plan_of("w4a16", tensor_parallel=8))


def test_the_engine_is_named_with_what_it_needs() -> None:
    needs = load("compressed-tensors").requirements(plan_of("fp8", pipeline_parallel=2))
    assert (needs.packages, needs.provider) == ({"vllm": ">=0.16"}, None)
    assert needs.engine is not None
    assert (needs.engine.name, needs.engine.pipeline_parallel, needs.engine.script) == ("vllm", 2, None)

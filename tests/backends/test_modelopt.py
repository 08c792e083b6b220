"""ModelOpt's unified checkpoint: names, types, bytes and both config files as its consumers read them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edgeforge import __version__
from edgeforge.backends import load, load_readable
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.model.safetensors_writer import write_safetensors
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
    read_file,
    rows_of,
    smooth,
    write,
)

STATIC = ("fp8", "w4a8", "nvfp4")
SCHEMES = ("fp8", "fp8-dynamic", "w4a16", "w4a8", "nvfp4")
modelopt = load_readable("modelopt")


def jetson(scheme: str, **changes: object) -> BuildPlan:
    """For Edge-LLM, on Thor."""
    return plan_for("modelopt", scheme, target="jetson-thor", **changes)


def on_vllm(scheme: str, **changes: object) -> BuildPlan:
    return plan_for("modelopt", scheme, engine="vllm", **changes)


def side(name: str, what: str) -> str:
    return name.replace(".weight", f".{what}")


# What stands beside the weight of o_proj, [128, 128]: by scheme, what a linear with a row per output has.
TENSORS = {
    "fp8": {"weight": ("float8_e4m3fn", (128, 128)), "weight_scale": ("float32", ()), "input_scale": ("float32", ())},
    "fp8-dynamic": {"weight": ("float8_e4m3fn", (128, 128)), "weight_scale": ("float32", (128,))},
    "w4a16": {
        "weight": ("uint8", (64, 128)),
        "weight_scale": ("float32", (128, 1)),
        "pre_quant_scale": ("bfloat16", (128,)),
    },
    "w4a8": {
        "weight": ("uint8", (64, 128)),
        "weight_scale": ("float32", (128, 1)),
        "weight_scale_2": ("float32", ()),
        "input_scale": ("float32", ()),
        "pre_quant_scale": ("bfloat16", (128,)),
    },
    "nvfp4": {
        "weight": ("uint8", (128, 64)),
        "weight_scale": ("float8_e4m3fn", (128, 8)),
        "weight_scale_2": ("float32", ()),
        "input_scale": ("float32", ()),
    },
    "bf16": {"weight": ("bfloat16", (128, 128))},
}


@pytest.mark.parametrize("scheme", TENSORS)
def test_a_linear_is_stored_as_its_format_says(tmp_path: Path, scheme: str) -> None:
    plan = plan_for("modelopt", scheme)
    write(plan, tmp_path)
    tensors = read(tmp_path)
    assert described(tensors, OUT.removesuffix("weight")) == TENSORS[scheme]
    # q and gate have no pre-quant scale of their own: it is in the norm before them.
    others = {key: value for key, value in TENSORS[scheme].items() if key != "pre_quant_scale"}
    assert described(tensors, Q.removesuffix("weight")) == others
    assert set(described(tensors, DOWN.removesuffix("weight"))) == set(TENSORS[scheme])
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert tensors[name].dtype == ml_dtypes.bfloat16
    assert not any("scale" in name for name in tensors if "layers" not in name)


def test_int4_bytes_are_pairs_of_rows(tmp_path: Path) -> None:
    plan = plan_for("modelopt", "w4a16")
    contents = dict(contents_of(plan))
    codes = np.zeros((128, 128), np.int8)
    codes[0, :3], codes[1, :3] = (1, -8, 7), (-1, 0, 2)
    codes[126, 5], codes[127, 5] = -3, 6
    scales = np.full((128, 1), 0.25, np.float32)
    contents[OUT] = QuantizedTensor(scheme=plan.schemes[OUT], codes=codes, scales=scales)
    write(plan, tmp_path, contents=contents)
    tensors = read(tmp_path)
    packed = tensors[OUT].astype(np.uint8)
    assert packed[0, :4].tolist() == [0xF1, 0x08, 0x27, 0x00]
    assert packed[63, 5] == 0x6D
    assert np.count_nonzero(packed) == 4
    assert (tensors[side(OUT, "weight_scale")] == 0.25).all()


def test_nvfp4_bytes_are_pairs_of_columns(tmp_path: Path) -> None:
    plan = plan_for("modelopt", "nvfp4")
    contents = dict(contents_of(plan))
    codes = np.zeros((128, 128), np.float32)
    codes[0, :4], codes[127, 126:] = (0.5, -6, 6, 1), (-0.5, 3)
    contents[OUT] = QuantizedTensor(
        scheme=plan.schemes[OUT],
        codes=codes.astype(ml_dtypes.float4_e2m1fn),
        scales=np.full((128, 8), 0.4375, np.float32),
        tensor_scale=np.float32(0.001),
    )
    write(plan, tmp_path, contents=contents)
    tensors = read(tmp_path)
    packed = tensors[OUT].astype(np.uint8)
    assert packed[0, :3].tolist() == [0xF1, 0x27, 0x00]
    assert packed[127, 62:].tolist() == [0x00, 0x59]
    assert set(tensors[side(OUT, "weight_scale")].view(np.uint8).reshape(-1).tolist()) == {0x2E}
    assert tensors[side(OUT, "weight_scale_2")] == np.float32(0.001)


def test_fp8_bytes_are_the_codes(tmp_path: Path) -> None:
    for scheme in ("fp8", "fp8-dynamic"):
        plan = plan_for("modelopt", scheme)
        contents, tensors = write(plan, tmp_path / scheme), read(tmp_path / scheme)
        for name, tensor in contents.items():
            if isinstance(tensor, QuantizedTensor):
                assert tensors[name].tobytes() == tensor.codes.tobytes()
                stored = tensors[side(name, "weight_scale")]
                np.testing.assert_array_equal(stored, tensor.scales[:, 0] if stored.shape else tensor.scales[0, 0])


def test_pieces_that_split_a_pair_of_rows_are_refused(tmp_path: Path) -> None:
    plan = plan_for("modelopt", "w4a16")
    whole = contents_of(plan)[OUT]
    assert isinstance(whole, QuantizedTensor)
    for start, stop in ((1, 3), (2, 5)):
        with pytest.raises(ValueError, match="not pairs"), modelopt.sink(plan, EMPTY, tmp_path) as sink:
            sink.put(OUT, start, rows_of(whole, start, stop))


@pytest.mark.parametrize("scheme", STATIC)
def test_input_scales_are_shared_by_linears_that_share_their_input(tmp_path: Path, scheme: str) -> None:
    plan, calibration = plan_for("modelopt", scheme), made_up()
    write(plan, tmp_path, calibration)
    tensors = read(tmp_path)
    for block in ((Q, K, V), (OUT,), (GATE, UP), (DOWN,)):
        largest = np.float32(max(calibration.inputs[name] for name in block))
        for name in block:
            expected = largest / np.float32(2688 if scheme == "nvfp4" else 448)
            assert tensors[side(name, "input_scale")] == expected


def test_an_unknown_input_is_left_to_tensorrt_llm_and_refused_elsewhere(tmp_path: Path) -> None:
    """TensorRT-LLM scales it as it comes; vLLM would take the parameter's fill value, Edge-LLM does not load."""
    plan = plan_for("modelopt", "fp8")
    some = replace(made_up(), inputs=dict.fromkeys((K, DOWN), 4.0))
    write(plan, tmp_path / "some", some)
    write(plan, tmp_path / "none", EMPTY)
    found = {name for name in read(tmp_path / "some") if name.endswith("input_scale")}
    assert found == {side(name, "input_scale") for name in (Q, K, V, DOWN)}
    assert not any(name.endswith("input_scale") for name in read(tmp_path / "none"))
    assert set(modelopt.read_inputs(plan, tmp_path / "some").inputs) == {Q, K, V, DOWN}
    for other in (jetson("fp8"), on_vllm("fp8"), plan_for("modelopt", "nvfp4"), plan_for("modelopt", "w4a8")):
        with pytest.raises(UsageError, match="largest input of") as told:
            write(other, tmp_path / "other", some)
        assert "--calibration" in str(told.value.hint)


def test_an_fp8_cache_has_a_scale_for_keys_and_one_for_values(tmp_path: Path) -> None:
    plan, calibration = plan_for("modelopt", "fp8", kv_cache="fp8"), made_up()
    write(plan, tmp_path, calibration)
    tensors = read(tmp_path)
    for i in range(TINY.num_hidden_layers):
        prefix = f"model.layers.{i}.self_attn."
        for name, largest in (("k_proj.k_scale", calibration.keys[i]), ("v_proj.v_scale", calibration.values[i])):
            assert tensors[prefix + name].shape == ()
            assert tensors[prefix + name] == np.float32(largest) / np.float32(448)
    inputs = modelopt.read_inputs(plan, tmp_path)
    assert inputs.keys == tuple(float(np.float32(key) / np.float32(448)) for key in calibration.keys)
    assert inputs.values == tuple(float(np.float32(value) / np.float32(448)) for value in calibration.values)
    with pytest.raises(UsageError, match="largest keys and values of 2 layers"):
        write(plan, tmp_path / "short", replace(calibration, keys=(1.0,)))


@pytest.mark.parametrize("scheme", ["w4a16", "w4a8"])
def test_shared_pre_quant_scales_go_into_the_norms_and_own_ones_stay(tmp_path: Path, scheme: str) -> None:
    plan = plan_for("modelopt", scheme)
    calibration = replace(made_up(), pre_quant_scales=smooth())
    contents = write(plan, tmp_path, calibration, step=8)
    tensors = read(tmp_path)
    for norm, behind in (("input_layernorm", Q), ("post_attention_layernorm", GATE)):
        name = f"model.layers.0.{norm}.weight"
        weights = contents[name]
        assert isinstance(weights, np.ndarray)
        folded = weights * calibration.pre_quant_scales[behind]
        np.testing.assert_array_equal(tensors[name], folded.astype(ml_dtypes.bfloat16))
    final = contents["model.norm.weight"]
    assert isinstance(final, np.ndarray)
    np.testing.assert_array_equal(tensors["model.norm.weight"], final.astype(ml_dtypes.bfloat16))
    for name in (OUT, DOWN):
        stored = tensors[side(name, "pre_quant_scale")].astype(np.float32)
        np.testing.assert_array_equal(stored, calibration.pre_quant_scales[name])
    assert set(modelopt.read_inputs(plan, tmp_path).pre_quant_scales) == {
        name for name in calibration.pre_quant_scales if name.endswith(("o_proj.weight", "down_proj.weight"))
    }


def test_without_pre_quant_scales_o_and_down_carry_ones(tmp_path: Path) -> None:
    """TensorRT-LLM reads them unconditionally."""
    write(plan_for("modelopt", "w4a16"), tmp_path, EMPTY)
    tensors = read(tmp_path)
    names = [name for name in tensors if name.endswith("pre_quant_scale")]
    assert len(names) == 2 * TINY.num_hidden_layers
    assert all((tensors[name].astype(np.float32) == 1).all() for name in names)
    assert modelopt.read_inputs(plan_for("modelopt", "w4a16"), tmp_path).pre_quant_scales == {}


def test_pre_quant_scales_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    scales = smooth()
    unlike = replace(made_up(), pre_quant_scales=scales | {K: 2 * scales[K]})
    with pytest.raises(UsageError, match="differ, and they share an input"):
        write(plan_for("modelopt", "w4a16"), tmp_path, unlike)
    missing = replace(made_up(), pre_quant_scales={name: scale for name, scale in scales.items() if name != UP})
    with pytest.raises(UsageError, match="differ, and they share an input"):
        write(plan_for("modelopt", "w4a16"), tmp_path, missing)
    with pytest.raises(UsageError, match=r"o_proj.weight, and scheme fp8 of backend modelopt cannot store one"):
        write(plan_for("modelopt", "fp8"), tmp_path, replace(made_up(), pre_quant_scales=scales))


QUANTIZATION: Mapping[str, Mapping[str, object]] = {
    "fp8": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]},
    "fp8-dynamic": {
        "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head"],
    },
    "w4a16": {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "exclude_modules": ["lm_head"],
    },
    "w4a8": {
        "quant_algo": "W4A8_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "has_zero_point": False,
        "pre_quant_scale": True,
        "exclude_modules": ["lm_head"],
    },
    "nvfp4": {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": ["lm_head"]},
}


@pytest.mark.parametrize("architecture", [TINY, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_files_say_how_it_is_quantized(tmp_path: Path, scheme: str, architecture) -> None:  # type: ignore[no-untyped-def]
    write(plan_for("modelopt", scheme, architecture), tmp_path)
    producer = {"name": "edgeforge", "version": __version__}
    assert json_of(tmp_path / "hf_quant_config.json") == {"producer": producer, "quantization": QUANTIZATION[scheme]}
    embedded = json_of(tmp_path / "config.json")["quantization_config"]
    numbers: dict[str, object] | None = {
        "fp8": {"dynamic": False, "num_bits": 8, "type": "float"},
        "nvfp4": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
    }.get(scheme)
    groups = {"group_0": {"input_activations": numbers, "weights": numbers, "targets": ["Linear"]}}
    assert embedded == {
        **({"config_groups": groups} if numbers else {}),
        "ignore": ["lm_head"],
        "quant_algo": QUANTIZATION[scheme]["quant_algo"],
        "producer": producer,
        "quant_method": "modelopt",
    }


def test_an_fp8_cache_is_said_in_both_files(tmp_path: Path) -> None:
    for scheme in ("w4a16", "bf16"):
        write(plan_for("modelopt", scheme, kv_cache="fp8"), tmp_path / scheme)
        quantization = json_of(tmp_path / scheme / "hf_quant_config.json")["quantization"]
        assert isinstance(quantization, dict)
        assert quantization["kv_cache_quant_algo"] == "FP8"
        embedded = json_of(tmp_path / scheme / "config.json")["quantization_config"]
        assert isinstance(embedded, dict)
        assert embedded["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert quantization["quant_algo"] is None and "quant_algo" not in embedded


def test_what_is_not_quantized_is_plain_hugging_face(tmp_path: Path) -> None:
    for scheme in ("bf16", "f16"):
        write(plan_for("modelopt", scheme), tmp_path / scheme)
        names = sorted(path.name for path in (tmp_path / scheme).iterdir())
        assert names == ["config.json", "generation_config.json", "model.safetensors"]
        assert "quantization_config" not in json_of(tmp_path / scheme / "config.json")


@pytest.mark.parametrize("scheme", ["fp8", "fp8-dynamic", "nvfp4"])
def test_the_weights_read_back_are_the_quantizers(tmp_path: Path, scheme: str) -> None:
    plan = plan_for("modelopt", scheme)
    contents = write(plan, tmp_path, step=24)
    weights = modelopt.read_back(plan, tmp_path)
    assert weights.architecture == TINY
    for name, meant in contents.items():
        expected = dequantize(meant) if isinstance(meant, QuantizedTensor) else bfloat16(meant)
        tensor = weights.tensor(name)
        assert tensor.shape == expected.shape
        np.testing.assert_array_equal(tensor.rows(0, len(expected)), expected, err_msg=name)
        np.testing.assert_array_equal(tensor.rows(3, 20), expected[3:20], err_msg=name)


def bfloat16(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_int4_scales_are_read_back_in_the_type_that_the_engine_holds_them_in(tmp_path: Path) -> None:
    for i, (plan, held) in enumerate(
        (
            (plan_for("modelopt", "w4a16"), ml_dtypes.bfloat16),
            (plan_for("modelopt", "w4a16", activations="f16"), np.float16),
            (jetson("w4a16"), np.float16),
        )
    ):
        contents = write(plan, tmp_path / str(i), EMPTY)
        meant = contents[Q]
        assert isinstance(meant, QuantizedTensor)
        rounded = replace(meant, scales=meant.scales.astype(held).astype(np.float32))
        found = modelopt.read_back(plan, tmp_path / str(i)).tensor(Q).rows(1, 64)
        np.testing.assert_array_equal(found, dequantize(rounded)[1:64])


def test_w4a8_weights_are_read_back_as_the_e4m3_numbers_that_its_kernel_multiplies(tmp_path: Path) -> None:
    plan = plan_for("modelopt", "w4a8")
    meant = write(plan, tmp_path)[Q]
    assert isinstance(meant, QuantizedTensor) and meant.tensor_scale is not None
    loaded = meant.scales.astype(np.float16).astype(np.float32)
    held = (loaded / meant.tensor_scale).astype(np.float16).astype(np.float32)
    numbers = (meant.codes.astype(np.float32) * held).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    found = modelopt.read_back(plan, tmp_path).tensor(Q).rows(0, 128)
    np.testing.assert_array_equal(found, numbers * meant.tensor_scale)
    np.testing.assert_allclose(found, dequantize(meant), rtol=2**-4 + 2**-10)


def test_edge_llm_rounds_fp8_scales_and_must_not_lose_one(tmp_path: Path) -> None:
    plan = jetson("fp8")
    contents = dict(contents_of(plan))
    meant = contents[Q]
    assert isinstance(meant, QuantizedTensor)
    small = replace(meant, scales=np.full_like(meant.scales, 1.23e-6))
    write(plan, tmp_path / "small", contents=contents | {Q: small})
    found = modelopt.read_back(plan, tmp_path / "small").tensor(Q).rows(0, 8)
    np.testing.assert_array_equal(found, meant.codes[:8].astype(np.float32) * np.float32(np.float16(1.23e-6)))
    lost = replace(meant, scales=np.full_like(meant.scales, 2e-8))
    with pytest.raises(UnusableInput, match=r"q_proj.weight is 9e-06, and Edge-LLM's float16 scale of it is zero"):
        write(plan, tmp_path / "lost", contents=contents | {Q: lost})
    write(plan_for("modelopt", "fp8"), tmp_path / "elsewhere", contents=dict(contents_of(plan_for("modelopt", "fp8"))))


def test_files_that_are_not_the_plans_are_refused(tmp_path: Path) -> None:
    plan = plan_for("modelopt", "fp8")
    write(plan_for("modelopt", "fp8-dynamic"), tmp_path / "other")
    with pytest.raises(UnusableInput, match=r"has no model.layers.0.self_attn.q_proj.weight_scale of type F32"):
        modelopt.read_back(plan, tmp_path / "other")
    write(plan, tmp_path / "ours")
    tensors = read_file(tmp_path / "ours" / "model.safetensors")
    rows = [(name, "F32", tensor.shape) for name, tensor in tensors.items()]
    with write_safetensors(tmp_path / "model.safetensors", rows) as file:
        for name, tensor in tensors.items():
            file.write(name, 0, tensor.astype(np.float32))
    with pytest.raises(UnusableInput, match=r"has no model\.embed_tokens\.weight of type BF16"):
        modelopt.read_inputs(plan, tmp_path)


def test_a_value_beyond_float16_is_an_error(tmp_path: Path) -> None:
    plan = plan_for("modelopt", "f16")
    contents = dict(contents_of(plan))
    contents["model.norm.weight"] = np.full(128, 7e4, np.float32)
    with pytest.raises(FloatingPointError, match="too large for float16"):
        write(plan, tmp_path, contents=contents)


@pytest.mark.parametrize(
    ("plan", "message", "cure"),
    [
        pytest.param(
            plan_for("modelopt", "w4a16", replace(TINY, intermediate_size=384), group_size=32),
            "tensorrt-llm for scheme w4a16 take groups of 64 or 128",
            "--group-size 128",
            id="a group that TensorRT-LLM has no kernel for",
        ),
        pytest.param(
            plan_for("modelopt", "w4a8", group_size=64), "take groups of 128", "--group-size 128", id="W4A8 by 64"
        ),
        pytest.param(
            plan_for("modelopt", "w4a8", replace(TINY, intermediate_size=192)),
            "this model would get groups of 64",
            "--scheme fp8",
            id="rows that do not divide into the kernel's groups",
        ),
        pytest.param(
            plan_for("modelopt", "w4a16", target="jetson-thor", group_size=64),
            "edge-llm for scheme w4a16 take groups of 128",
            "--group-size 128",
            id="a group that Edge-LLM has no kernel for",
        ),
        pytest.param(
            on_vllm("bf16", kv_cache="fp8"),
            "beside weights in bf16 is not something that vLLM reads scales for",
            "--kv-cache bf16",
            id="an FP8 cache alone, on vLLM",
        ),
        pytest.param(
            jetson("w4a16", kv_cache="fp8"),
            "beside weights in w4a16 is not something that TensorRT Edge-LLM reads scales for",
            "--kv-cache f16",
            id="an FP8 cache beside int4, on Edge-LLM",
        ),
        pytest.param(
            plan_for("modelopt", "w4a16", replace(TINY, intermediate_size=192), target="jetson-agx-orin-64gb"),
            "this model would get groups of 64",
            "do not divide into them; use --backend onnx",
            id="rows that do not divide, where there is no FP8",
        ),
    ],
)
def test_what_no_kernel_takes_is_refused_before_work(plan: BuildPlan, message: str, cure: str) -> None:
    with pytest.raises(UsageError, match=message) as told:
        modelopt.check(plan)
    assert cure in str(told.value.hint)


def test_cards_that_would_split_a_group_are_refused_before_work() -> None:
    odd = replace(TINY, intermediate_size=128 * 3)
    modelopt.check(plan_for("modelopt", "w4a16", odd))
    with pytest.raises(UnusableInput, match="2 cards cannot split into whole groups of 128"):
        modelopt.check(plan_for("modelopt", "w4a16", odd, tensor_parallel=2))


def test_rows_that_edge_llm_has_no_tile_for_are_refused_before_work() -> None:
    narrow = replace(TINY, hidden_size=128, num_attention_heads=8, num_key_value_heads=2, head_dim=16)
    with pytest.raises(
        UnusableInput, match=r"k_proj\.weight has 32 rows, and Edge-LLM's int4 kernels take multiples of 64"
    ):
        modelopt.check(plan_for("modelopt", "w4a16", narrow, target="jetson-agx-orin-64gb"))


def test_the_engine_is_named_with_what_it_needs() -> None:
    needs = load("modelopt").requirements(plan_for("modelopt", "fp8", tensor_parallel=2))
    assert (needs.packages, needs.provider) == ({"tensorrt-llm": ">=1.0"}, None)
    assert needs.engine is not None
    assert (needs.engine.name, needs.engine.tensor_parallel, needs.engine.state) == ("tensorrt-llm", 2, "ready")
    board = load("modelopt").requirements(jetson("nvfp4"))
    assert board.packages == {} and board.engine is not None
    assert (board.engine.name, board.engine.state, board.engine.script) == (
        "edge-llm",
        "to-be-built",
        "build-on-device.sh",
    )
    assert load("modelopt").requirements(on_vllm("fp8")).packages == {"vllm": ">=0.16"}

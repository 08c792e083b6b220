"""Every row and column of the checkpoint is in the ranks' files, where TensorRT-LLM looks for it."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge import backends
from edgeforge.backends import tensorrt_llm
from edgeforge.backends.nibbles import unpack_rows
from edgeforge.backends.tensorrt_llm.sharding import make_layout, pipeline_layers
from edgeforge.errors import UnusableInput, UsageError
from edgeforge.hardware import BACKENDS, load_target
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.model.safetensors_header import read_header
from edgeforge.planning import BuildPlan, apply_overrides, draft_plan, fused_blocks
from edgeforge.quantization.calibration import EMPTY, Calibration
from edgeforge.quantization.quantize import quantize
from edgeforge.quantization.scheme import QuantizedTensor, dequantize
from tests.planning.shapes import LLAMA_8B, LLAMA_70B, LLAMA_405B, SMOLLM2, llama

Floats = NDArray[np.float32]
TINY = llama(64, 96, 3, 8, 4, vocab=50)
"""For schemes without kernels' multiples. 50 rows of vocabulary divide among no more than two ranks."""
WHOLE = replace(llama(512, 512, 2, 8, 4, vocab=128), head_dim=64)
"""Divides among two ranks in groups of 128."""


def planned(shape: LlamaArchitecture, scheme: str, **changes: object) -> BuildPlan:
    target = apply_overrides(load_target("h100"), backend="tensorrt-llm", scheme=scheme, **changes)  # type: ignore[arg-type]
    return draft_plan(shape, target)


def weights_of(shape: LlamaArchitecture) -> dict[str, Floats]:
    """Random weights that bfloat16 holds."""
    random = np.random.default_rng(3)
    return {
        name: (random.standard_normal(size) / 8).astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, size in shape.tensors()
    }


def stored(plan: BuildPlan, weights: Mapping[str, Floats]) -> dict[str, QuantizedTensor | Floats]:
    """What the pipeline hands to the sink, whole tensors."""
    result: dict[str, QuantizedTensor | Floats] = dict(weights)
    for block in fused_blocks(plan.architecture):
        scheme = plan.schemes[block[0].name]
        if scheme.is_float:
            continue
        amax = max(float(np.abs(weights[linear.name]).max()) for linear in block)
        for linear in block:
            result[linear.name] = quantize(weights[linear.name], scheme, amax=amax if scheme.needs_amax else None)
    return result


def cut(rows: QuantizedTensor | Floats, start: int, stop: int) -> QuantizedTensor | Floats:
    if isinstance(rows, QuantizedTensor):
        return replace(rows, codes=rows.codes[start:stop], scales=rows.scales[start:stop])
    return rows[start:stop]


def calibrated(shape: LlamaArchitecture) -> Calibration:
    """Another number for every linear; gate's and up's differ, though they read the same."""
    return Calibration(
        inputs={linear.name: 2.0 + i for i, linear in enumerate(shape.linears())},
        keys=tuple(3.0 + layer for layer in range(shape.num_hidden_layers)),
        values=tuple(4.0 - layer for layer in range(shape.num_hidden_layers)),
    )


def write(
    plan: BuildPlan, tensors: Mapping[str, QuantizedTensor | Floats], folder: Path, calibration: Calibration
) -> None:
    """As the pipeline does: pieces of an even number of rows, from several threads, out of order."""
    with tensorrt_llm.sink(plan, calibration, folder) as sink:
        pieces = []
        for name, rows in tensors.items():
            n = len(rows.codes) if isinstance(rows, QuantizedTensor) else len(rows)
            pieces += [(name, start, cut(rows, start, start + 6)) for start in range(0, n, 6)]
        pieces = pieces[1::2] + pieces[0::2]

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda piece: sink.put(*piece), pieces))


def loaded(folder: Path, rank: int) -> dict[str, NDArray[np.generic]]:
    """A rank's tensors through the safetensors package's own words for types, e4m3 and bfloat16 included."""
    types: dict[str, np.dtype[np.generic]] = {
        "F32": np.dtype(np.float32),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F16": np.dtype(np.float16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "I8": np.dtype(np.int8),
    }
    path = folder / f"rank{rank}.safetensors"
    content = path.read_bytes()
    return {
        entry.name: np.frombuffer(
            content, types[entry.dtype], offset=entry.start, count=int(np.prod(entry.shape))
        ).reshape(entry.shape)
        for entry in read_header(path).entries
    }


def test_gate_is_fc_and_up_is_gate(tmp_path: Path) -> None:
    plan, weights = planned(TINY, "bf16"), weights_of(TINY)
    write(plan, weights, tmp_path, EMPTY)
    rank = loaded(tmp_path, 0)
    prefix, layer = "model.layers.1.mlp", "transformer.layers.1.mlp"
    np.testing.assert_array_equal(rank[f"{layer}.fc.weight"].astype(np.float32), weights[f"{prefix}.gate_proj.weight"])
    np.testing.assert_array_equal(rank[f"{layer}.gate.weight"].astype(np.float32), weights[f"{prefix}.up_proj.weight"])
    np.testing.assert_array_equal(
        rank[f"{layer}.proj.weight"].astype(np.float32), weights[f"{prefix}.down_proj.weight"]
    )


def test_the_names_of_a_rank_are_those_that_tensorrt_llm_asks_for(tmp_path: Path) -> None:
    write(
        planned(TINY, "fp8", kv_cache="fp8"), stored(planned(TINY, "fp8"), weights_of(TINY)), tmp_path, calibrated(TINY)
    )
    linears = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")
    scalars = ("weight", "weights_scaling_factor", "activation_scaling_factor")
    layer = {f"{linear}.{part}" for linear in linears for part in scalars}
    layer |= {"input_layernorm.weight", "post_layernorm.weight", "attention.kv_cache_scaling_factor"}
    ends = {"transformer.vocab_embedding.weight", "transformer.ln_f.weight", "lm_head.weight"}
    assert set(loaded(tmp_path, 0)) == ends | {f"transformer.layers.{i}.{name}" for i in range(3) for name in layer}


def test_a_ranks_queries_keys_and_values_lie_under_each_other(tmp_path: Path) -> None:
    plan, weights = planned(TINY, "bf16", tensor_parallel=2), weights_of(TINY)
    write(plan, weights, tmp_path, EMPTY)
    q, k, v = (weights[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv")
    found = loaded(tmp_path, 1)["transformer.layers.0.attention.qkv.weight"]
    np.testing.assert_array_equal(found.astype(np.float32), np.concatenate([q[32:], k[16:], v[16:]]))


def test_key_and_value_heads_are_copied_to_neighbours_past_their_number(tmp_path: Path) -> None:
    plan, weights = planned(TINY, "bf16", tensor_parallel=8), weights_of(TINY)
    write(plan, weights, tmp_path, EMPTY)
    k = weights["model.layers.0.self_attn.k_proj.weight"]
    for rank in range(8):
        found = loaded(tmp_path, rank)["transformer.layers.0.attention.qkv.weight"].astype(np.float32)
        head = rank // 2
        np.testing.assert_array_equal(found[8:16], k[8 * head : 8 * (head + 1)])


def test_o_and_down_are_split_by_columns_and_their_scales_with_them(tmp_path: Path) -> None:
    plan = planned(WHOLE, "w4a16", tensor_parallel=2)
    tensors = stored(plan, weights_of(WHOLE))
    write(plan, tensors, tmp_path, EMPTY)
    down = tensors["model.layers.0.mlp.down_proj.weight"]
    assert isinstance(down, QuantizedTensor)
    for rank in range(2):
        found = loaded(tmp_path, rank)
        columns, groups = slice(256 * rank, 256 * (rank + 1)), slice(2 * rank, 2 * (rank + 1))
        name = "transformer.layers.0.mlp.proj"
        np.testing.assert_array_equal(unpack_rows(found[f"{name}.weight"].view(np.uint8)), down.codes[:, columns])
        np.testing.assert_array_equal(found[f"{name}.weights_scaling_factor"], down.scales[:, groups])
        assert found[f"{name}.prequant_scaling_factor"].shape == (256,)


def test_int4_bytes_are_pairs_of_rows_of_the_fused_matrix(tmp_path: Path) -> None:
    plan = planned(WHOLE, "w4a16")
    tensors = stored(plan, weights_of(WHOLE))
    write(plan, tensors, tmp_path, EMPTY)
    byte = loaded(tmp_path, 0)["transformer.layers.0.attention.qkv.weight"]
    parts = [tensors[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    codes = np.concatenate([part.codes.view(np.int8) for part in parts if isinstance(part, QuantizedTensor)])
    assert byte.dtype == np.int8 and byte.shape == (len(codes) // 2, 512)
    for row, column in ((0, 0), (512, 7), (700, 511)):
        value = int(byte.view(np.uint8)[row // 2, column])
        low, high = value & 15, value >> 4
        assert (low, high) == (codes[row, column] % 16, codes[row + 1, column] % 16)


def test_every_awq_linear_has_a_pre_quant_scale_of_its_own_columns(tmp_path: Path) -> None:
    plan = planned(WHOLE, "w4a16", tensor_parallel=2)
    scales = {
        name: np.linspace(0.5, 2, size[1], dtype=np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, size in WHOLE.tensors()
        if len(size) == 2 and "layers" in name
    }
    write(plan, stored(plan, weights_of(WHOLE)), tmp_path, Calibration(pre_quant_scales=scales))
    rank = loaded(tmp_path, 1)
    found = {
        name: rank[f"transformer.layers.0.{name}.prequant_scaling_factor"] for name in ("attention.qkv", "mlp.proj")
    }
    whole = scales["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_array_equal(found["attention.qkv"].astype(np.float32), whole)
    np.testing.assert_array_equal(found["mlp.proj"].astype(np.float32), whole[256:])
    assert all(scale.dtype == ml_dtypes.bfloat16 for scale in found.values())  # the model's type, as its reader wants
    read = tensorrt_llm.read_inputs(plan, tmp_path).pre_quant_scales
    np.testing.assert_array_equal(read["model.layers.0.mlp.down_proj.weight"], whole)


def test_input_scales_are_shared_by_what_reads_the_same(tmp_path: Path) -> None:
    plan, calibration = planned(TINY, "fp8", kv_cache="fp8"), calibrated(TINY)
    write(plan, stored(plan, weights_of(TINY)), tmp_path, calibration)
    rank = loaded(tmp_path, 0)
    gate, up = (rank[f"transformer.layers.0.mlp.{name}.activation_scaling_factor"] for name in ("fc", "gate"))
    largest = calibration.inputs["model.layers.0.mlp.up_proj.weight"]
    assert gate == up == np.float32(largest) / np.float32(448)
    assert gate.shape == (1,)


@pytest.mark.parametrize(("cache", "largest"), [("fp8", 448), ("int8", 127)])
def test_keys_and_values_share_the_larger_scale(tmp_path: Path, cache: str, largest: int) -> None:
    plan = planned(TINY, "bf16", kv_cache=cache, tensor_parallel=2)
    write(plan, weights_of(TINY), tmp_path, calibrated(TINY))
    for rank in range(2):
        found = [loaded(tmp_path, rank)[f"transformer.layers.{i}.attention.kv_cache_scaling_factor"] for i in range(3)]
        np.testing.assert_array_equal(np.concatenate(found), np.array([4, 4, 5], np.float32) / np.float32(largest))
    assert tensorrt_llm.read_inputs(plan, tmp_path).keys == tuple(float(scale[0]) for scale in found)


def test_a_pipeline_group_numbers_its_own_layers_and_has_its_own_ends(tmp_path: Path) -> None:
    plan, weights = planned(TINY, "bf16", tensor_parallel=2, pipeline_parallel=2), weights_of(TINY)
    write(plan, weights, tmp_path, EMPTY)
    first, last = loaded(tmp_path, 1), loaded(tmp_path, 2)
    assert "transformer.layers.1.mlp.fc.weight" in first and "transformer.layers.1.mlp.fc.weight" not in last
    norm = last["transformer.layers.0.input_layernorm.weight"].astype(np.float32)
    np.testing.assert_array_equal(norm, weights["model.layers.2.input_layernorm.weight"])
    assert "transformer.vocab_embedding.weight" in first and "transformer.vocab_embedding.weight" not in last
    assert {"lm_head.weight", "transformer.ln_f.weight"} <= set(last) - set(first)


def test_the_first_pipeline_groups_take_one_layer_more() -> None:
    assert [len(layers) for layers in pipeline_layers(126, 4)] == [32, 32, 31, 31]
    assert list(pipeline_layers(126, 4)[2]) == list(range(64, 95))


def test_the_vocabulary_is_padded_with_zeros_to_a_multiple_of_the_ranks(tmp_path: Path) -> None:
    plan, weights = planned(TINY, "bf16", tensor_parallel=4), weights_of(TINY)
    write(plan, weights, tmp_path, EMPTY)
    for name, source in (("transformer.vocab_embedding", "model.embed_tokens"), ("lm_head", "lm_head")):
        parts = [loaded(tmp_path, rank)[f"{name}.weight"].astype(np.float32) for rank in range(4)]
        assert [part.shape for part in parts] == [(13, 64)] * 4
        whole = np.concatenate(parts)
        np.testing.assert_array_equal(whole[:50], weights[f"{source}.weight"])
        assert not whole[50:].any()


def test_a_tied_head_is_written_out(tmp_path: Path) -> None:
    shape = replace(TINY, tie_word_embeddings=True)
    plan, weights = planned(shape, "bf16", pipeline_parallel=3), weights_of(shape)
    write(plan, weights, tmp_path, EMPTY)
    head = loaded(tmp_path, 2)["lm_head.weight"]
    np.testing.assert_array_equal(head.astype(np.float32), weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("scheme", ["fp8", "w4a16", "w4a8", "bf16", "f16"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (2, 2)])
def test_reading_back_gives_what_was_put_in_any_rows(tmp_path: Path, scheme: str, tp: int, pp: int) -> None:
    plan = planned(WHOLE, scheme, kv_cache="fp8", tensor_parallel=tp, pipeline_parallel=pp)
    tensors, calibration = stored(plan, weights_of(WHOLE)), calibrated(WHOLE)
    write(plan, tensors, tmp_path, calibration)
    read = tensorrt_llm.read_back(plan, tmp_path)
    for name, rows in tensors.items():
        tensor = read.tensor(name)
        found = tensor.rows(0, tensor.shape[0])
        meant = dequantize(rows) if isinstance(rows, QuantizedTensor) else rows
        if scheme in ("w4a16", "w4a8"):  # whose kernels have 16 bits for scales
            np.testing.assert_allclose(found, meant, rtol=2**-7, atol=0, err_msg=name)
        else:
            np.testing.assert_array_equal(found, meant.astype(np.float16) if scheme == "f16" else meant, err_msg=name)
        np.testing.assert_array_equal(tensor.rows(17, 90), found[17:90], err_msg=name)


def test_tied_and_copied_tensors_are_read_once(tmp_path: Path) -> None:
    shape = replace(TINY, tie_word_embeddings=True)
    plan, weights = planned(shape, "bf16", tensor_parallel=8), weights_of(shape)
    write(plan, weights, tmp_path, EMPTY)
    read = tensorrt_llm.read_back(plan, tmp_path)
    for name, meant in weights.items():
        np.testing.assert_array_equal(read.tensor(name).rows(0, len(meant)), meant, err_msg=name)


def test_files_of_another_plan_are_refused_by_name(tmp_path: Path) -> None:
    write(planned(TINY, "bf16"), weights_of(TINY), tmp_path, EMPTY)
    with pytest.raises(UnusableInput, match=r"rank0.safetensors: transformer.vocab_embedding.weight should be F16"):
        tensorrt_llm.read_back(planned(TINY, "f16"), tmp_path)


def test_config_has_the_keys_of_the_format_and_no_others(tmp_path: Path) -> None:
    plan = planned(LLAMA_8B, "w4a16", kv_cache="fp8", tensor_parallel=4, pipeline_parallel=2)
    scaling = {"rope_type": "llama3", "factor": 8.0}
    origin = backends.Origin(config={"rope_scaling": scaling}, generation=GenerationDefaults())
    rotary = replace(LLAMA_8B.rotary, kind="llama3", factor=8.0)
    tensorrt_llm.finish(replace(plan, architecture=replace(LLAMA_8B, rotary=rotary)), origin, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_size": 128,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 500000.0,
        "rotary_scaling": scaling,
        "mlp_bias": False,
        "attn_bias": False,
        "residual_mlp": False,
        "use_parallel_embedding": True,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "mapping": {"world_size": 8, "tp_size": 4, "pp_size": 2},
        "quantization": {
            "quant_algo": "W4A16_AWQ",
            "kv_cache_quant_algo": "FP8",
            "group_size": 128,
            "has_zero_point": False,
            "pre_quant_scale": True,
            "exclude_modules": ["lm_head"],
        },
    }


@pytest.mark.parametrize(
    ("scheme", "cache", "algorithms"),
    [("fp8", "int8", ("FP8", "INT8")), ("w4a8", "bf16", ("W4A8_AWQ", None)), ("bf16", "bf16", (None, None))],
)
def test_config_names_the_algorithms(
    tmp_path: Path, scheme: str, cache: str, algorithms: tuple[str | None, str | None]
) -> None:
    origin = backends.Origin(config={}, generation=GenerationDefaults())
    tensorrt_llm.finish(planned(LLAMA_8B, scheme, kv_cache=cache), origin, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["quantization"]["quant_algo"], config["quantization"]["kv_cache_quant_algo"]) == algorithms
    assert config["rotary_scaling"] is None and config["use_parallel_embedding"] is False


@pytest.mark.parametrize("tp", BACKENDS["tensorrt-llm"].tensor_parallel)
@pytest.mark.parametrize("scheme", ["fp8", "w4a16", "w4a8", "bf16"])
@pytest.mark.parametrize("shape", [LLAMA_8B, LLAMA_70B, LLAMA_405B])
def test_llama_31_divides_among_all_ranks_in_every_scheme(shape: LlamaArchitecture, scheme: str, tp: int) -> None:
    plan = planned(replace(shape, num_hidden_layers=2), scheme, tensor_parallel=tp)
    tensorrt_llm.check(plan)
    for matrices in make_layout(plan).ranks:
        assert all(matrix.shape[0] % 2 == 0 for matrix in matrices)


@pytest.mark.parametrize(
    ("shape", "scheme", "changes", "sentence"),
    [
        (SMOLLM2, "fp8", {"tensor_parallel": 2}, "9 attention heads cannot be split over 2 ranks"),
        (llama(64, 100, 1, 8), "fp8", {"tensor_parallel": 8}, "100 rows of the MLP cannot be split over 8 ranks"),
        (llama(96, 96, 1, 12, 3), "fp8", {"tensor_parallel": 2}, "3 key and value heads can neither be split"),
        (TINY, "fp8", {"pipeline_parallel": 4}, "3 layers cannot be split over 4 pipeline groups"),
        (TINY, "w4a16", {"group_size": 32}, "runs scheme w4a16 in groups of 64 or 128, not 32"),
        (SMOLLM2, "w4a8", {}, "runs scheme w4a8 in groups of 128, not 64"),
        (WHOLE, "w4a16", {"tensor_parallel": 8}, "multiples of 1024 on 8 ranks, which do not divide the 512"),
    ],
)
def test_what_does_not_divide_is_refused_before_any_work(
    shape: LlamaArchitecture, scheme: str, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        tensorrt_llm.check(planned(shape, scheme, **changes))
    assert refused.value.hint


def test_a_group_size_that_would_do_is_named() -> None:
    with pytest.raises(UsageError) as refused:
        tensorrt_llm.check(planned(WHOLE, "w4a16", group_size=32))
    assert refused.value.hint == "use --group-size 128"


def test_an_int8_cache_is_refused_where_tensorrt_llm_has_none() -> None:
    target = apply_overrides(load_target("b200"), backend="tensorrt-llm", scheme="fp8", kv_cache="int8")
    with pytest.raises(UsageError, match=r"no int8 cache on GPUs of compute capability 10.0"):
        tensorrt_llm.check(draft_plan(LLAMA_8B, target))


def test_missing_scales_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"nothing of the input of model.layers.0.self_attn.q_proj.weight"):
        write(planned(TINY, "fp8", kv_cache="bf16"), {}, tmp_path, EMPTY)
    with pytest.raises(UnusableInput, match="an int8 cache needs their scales"):
        write(planned(TINY, "bf16", kv_cache="int8"), {}, tmp_path, EMPTY)


def test_rows_of_another_scale_are_a_mistake_not_a_file(tmp_path: Path) -> None:
    plan = planned(TINY, "fp8", kv_cache="bf16")
    tensors = stored(plan, weights_of(TINY))
    k = tensors["model.layers.0.self_attn.k_proj.weight"]
    assert isinstance(k, QuantizedTensor)
    tensors["model.layers.0.self_attn.k_proj.weight"] = replace(k, scales=2 * k.scales)
    with pytest.raises(ValueError, match=r"attention.qkv.weights_scaling_factor is .* for some rows"):
        write(plan, tensors, tmp_path, calibrated(TINY))


def test_a_weight_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    plan = planned(TINY, "f16")
    with pytest.raises(FloatingPointError, match="float16"), tensorrt_llm.sink(plan, EMPTY, tmp_path) as sink:
        sink.put("model.norm.weight", 0, np.full(64, 65520, np.float32))

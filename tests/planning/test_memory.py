"""Predicted bytes against figures worked out another way."""

from dataclasses import replace

import numpy as np
import pytest

from edgeforge.backends.onnx.layout import ALIGNMENT, weight_layout
from edgeforge.hardware import load_target
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.planning import apply_overrides, draft_plan, matrix_bytes, weight_rows
from edgeforge.planning.memory import PREFILL_TOKENS, kv_cache_bytes, weight_bytes
from edgeforge.planning.overrides import with_scheme
from edgeforge.quantization.scheme import QuantizationScheme
from edgeforge.runtime.session import PREFILL_CHUNK
from tests.planning.shapes import LLAMA_8B, LLAMA_70B, LLAMA_405B, SMOLLM2, STORIES


def test_parameter_counts_are_the_published_ones() -> None:
    # Llama 3.1 model card: 8B, 70B, 405B; the shards' own totals are 8,030,261,248, 70,553,706,496 and 405,853,388,800.
    assert [shape.parameter_count for shape in (LLAMA_8B, LLAMA_70B, LLAMA_405B)] == [
        8_030_261_248,
        70_553_706_496,
        405_853_388_800,
    ]
    assert SMOLLM2.parameter_count == 134_515_008
    assert STORIES.parameter_count == 260_032


def test_f16_weights_take_two_bytes_each_and_the_rotary_tables() -> None:
    plan = draft_plan(LLAMA_8B, with_scheme(load_target("rtx4090"), "f16"))
    tables = 2 * 8192 * 64 * 2
    assert plan.memory.weights_bytes == 2 * LLAMA_8B.parameter_count + tables


def test_the_kv_cache_of_llama_8b_at_8192_tokens_in_f16_is_one_gib() -> None:
    assert draft_plan(LLAMA_8B, load_target("rtx4090")).memory.kv_cache_bytes == 2**30


def test_the_rotary_limit_caps_the_context() -> None:
    short = replace(LLAMA_8B, max_position_embeddings=2048)
    assert draft_plan(short, load_target("rtx4090")).target.context == 2048


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns", "group"), [(64, 172, 32), (3, 16, 16), (5, 100, 64), (1, 1, 16)])
@pytest.mark.parametrize("kind", ["symmetric", "zero points", "offsets"])
def test_matrix_bytes_are_those_of_the_arrays(bits: int, rows: int, columns: int, group: int, kind: str) -> None:
    scheme = QuantizationScheme(
        name="x", bits=bits, group_size=group, symmetric=kind == "symmetric", offset=kind == "offsets"
    )
    groups = -(-columns // group)
    arrays = [np.zeros((rows, groups, group * bits // 8), np.uint8), np.zeros((rows, groups), np.float32)]
    if kind == "zero points":
        arrays.append(np.zeros((rows, -(-groups * bits // 8)), np.uint8))
    if kind == "offsets":
        arrays.append(np.zeros((rows, groups), np.float32))
    assert matrix_bytes(scheme, rows, columns) == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("shape", [LLAMA_8B, SMOLLM2, STORIES])
@pytest.mark.parametrize("target", ["cpu", "rtx4090"])
def test_the_rows_of_the_summary_are_the_weights(shape: LlamaArchitecture, target: str) -> None:
    plan = draft_plan(shape, load_target(target))
    rows = weight_rows(plan)
    a = plan.architecture
    norms = (2 * a.num_hidden_layers + 1) * a.hidden_size
    assert sum(row.parameters for row in rows) + norms == a.parameter_count
    assert sum(row.stored_bytes for row in rows) < plan.disk_bytes


def test_decode_speed_is_bandwidth_over_bytes_read() -> None:
    target = replace(with_scheme(load_target("rtx4090"), "f16"), context=2)
    plan = draft_plan(LLAMA_8B, target)
    read = 2 * (LLAMA_8B.parameter_count - 128_256 * 4096) + 2 * 2 * 64 * 2 + kv_cache_bytes(LLAMA_8B, target, 1)
    assert plan.decode_tokens_per_s == pytest.approx(1.008e12 / read)


def test_a_tied_embedding_is_stored_once_and_read_as_the_head() -> None:
    tied = draft_plan(replace(LLAMA_8B, tie_word_embeddings=True), load_target("rtx4090"))
    untied = draft_plan(LLAMA_8B, replace(load_target("rtx4090"), lm_head="w8a16"))
    head = weight_rows(untied)[-1]
    assert head.role == "lm_head"
    assert untied.memory.weights_bytes - tied.memory.weights_bytes == head.stored_bytes
    assert tied.decode_tokens_per_s == pytest.approx(untied.decode_tokens_per_s)


def test_cards_share_the_weights_and_the_cache() -> None:
    one = draft_plan(LLAMA_405B, load_target("rtx4090"))
    four = draft_plan(LLAMA_405B, replace(load_target("rtx4090"), tensor_parallel=4))
    assert four.memory.kv_cache_bytes * 4 == one.memory.kv_cache_bytes
    assert four.memory.weights_bytes * 4 == pytest.approx(one.memory.weights_bytes, rel=0.001)
    # 8 KV heads on 16 cards: each holds one, none holds half of one.
    sixteen = draft_plan(LLAMA_405B, replace(load_target("rtx4090"), tensor_parallel=16))
    assert sixteen.memory.kv_cache_bytes * 8 == one.memory.kv_cache_bytes


def test_prompts_are_planned_in_the_pieces_that_the_runtime_reads() -> None:
    assert PREFILL_TOKENS == PREFILL_CHUNK


@pytest.mark.parametrize("shape", [LLAMA_8B, SMOLLM2, STORIES])
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "f16", "f32"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_predicted_weights_are_the_backends_file(shape: LlamaArchitecture, scheme: str, symmetric: bool) -> None:
    plan = draft_plan(shape, apply_overrides(load_target("cpu"), scheme=scheme, symmetric=symmetric))
    size = weight_layout(plan).size
    arrays = 4 * 9 * plan.architecture.num_hidden_layers + 16  # the file aligns each array to ALIGNMENT bytes
    assert 0 <= size - weight_bytes(shape, plan.target, plan.schemes).file < arrays * ALIGNMENT
    if shape is not STORIES:
        assert size == weight_bytes(shape, plan.target, plan.schemes).file

"""Which scheme a weight gets: the target's, a group size that divides, or the checkpoint's own integers."""

from dataclasses import replace

import pytest

from edgeforge.hardware import Target, load_target
from edgeforge.model.checkpoint import StoredGrid
from edgeforge.planning import EMBEDDING, choose_schemes, fused_blocks
from edgeforge.planning.overrides import with_scheme
from edgeforge.quantization.scheme import QuantizationScheme
from tests.planning.shapes import LLAMA_8B, SMOLLM2, STORIES

Q4_0 = StoredGrid(bits=4, group_size=32, offset=False)
Q4_1 = StoredGrid(bits=4, group_size=32, offset=True)
Q8_0 = StoredGrid(bits=8, group_size=32, offset=False)
LAYER = "model.layers.0."


@pytest.fixture
def target() -> Target:
    return replace(load_target("cpu"), group_size=128, lm_head="w8a16", embedding="w8a16")


def test_every_linear_and_the_embedding_have_a_scheme_in_order(target: Target) -> None:
    schemes = choose_schemes(LLAMA_8B, target, {})
    assert list(schemes) == [EMBEDDING, *(linear.name for linear in LLAMA_8B.linears())]
    assert {scheme.name for name, scheme in schemes.items() if name.startswith("model.layers.")} == {"w4a16"}
    assert schemes["lm_head.weight"].name == schemes[EMBEDDING].name == "w8a16"


def test_a_tied_head_has_no_scheme_of_its_own(target: Target) -> None:
    assert "lm_head.weight" not in choose_schemes(SMOLLM2, target, {})


def test_groups_divide_the_rows_where_they_can(target: Target) -> None:
    schemes = choose_schemes(SMOLLM2, target, {})
    assert schemes[LAYER + "self_attn.q_proj.weight"].group_size == 64  # 576 = 9 x 64
    assert schemes[LAYER + "mlp.down_proj.weight"].group_size == 128
    stories = choose_schemes(STORIES, replace(target, group_size=32), {})
    assert stories[LAYER + "mlp.down_proj.weight"].group_size == 32  # 172 leaves a short last group
    assert stories[EMBEDDING].group_size == 32


def test_an_embedding_that_no_group_divides_stays_float(target: Target) -> None:
    odd = replace(STORIES, hidden_size=24 * 8 + 8, head_dim=26)
    assert choose_schemes(odd, target, {})[EMBEDDING] == QuantizationScheme(name="f32", bits=32)


@pytest.mark.parametrize("scheme", ["f16", "f32"])
def test_a_float_target_is_float_throughout(target: Target, scheme: str) -> None:
    stored = {linear.name: Q4_0 for linear in SMOLLM2.linears()}
    schemes = choose_schemes(SMOLLM2, with_scheme(target, scheme), stored)
    assert {item.name for item in schemes.values()} == {scheme}


def carried(grid: StoredGrid) -> QuantizationScheme:
    name = {4: "w4a16", 8: "w8a16"}[grid.bits]
    return QuantizationScheme(name=name, bits=grid.bits, group_size=32, symmetric=not grid.offset, offset=grid.offset)


@pytest.mark.parametrize("grid", [Q4_0, Q4_1])
def test_stored_integers_are_carried_over(target: Target, grid: StoredGrid) -> None:
    stored = {linear.name: grid for linear in SMOLLM2.linears()}
    schemes = choose_schemes(SMOLLM2, target, stored)
    assert {schemes[linear.name] for linear in SMOLLM2.linears()} == {carried(grid)}


def test_stored_integers_with_more_bits_than_asked_for_are_not(target: Target) -> None:
    name = LAYER + "mlp.down_proj.weight"
    assert choose_schemes(SMOLLM2, target, {name: Q8_0})[name].bits == 4
    assert choose_schemes(SMOLLM2, replace(target, scheme="w8a16"), {name: Q8_0})[name] == carried(Q8_0)


@pytest.mark.parametrize("odd_one", ["q", "k", "v", "gate", "up"])
@pytest.mark.parametrize("other", [None, Q4_0])
def test_fused_linears_share_a_scheme(target: Target, odd_one: str, other: StoredGrid | None) -> None:
    stored = {linear.name: Q4_1 for linear in SMOLLM2.linears()}
    name = LAYER + {"gate": "mlp.gate_proj", "up": "mlp.up_proj"}.get(odd_one, f"self_attn.{odd_one}_proj") + ".weight"
    del stored[name]
    if other is not None:
        stored[name] = other
    schemes = choose_schemes(SMOLLM2, target, stored)
    for block in fused_blocks(SMOLLM2):
        assert len({schemes[linear.name] for linear in block}) == 1
    assert not schemes[name].offset
    assert schemes["model.layers.1.mlp.gate_proj.weight"].offset  # only that block is quantized anew


def test_blocks_are_the_matrices_of_the_graph() -> None:
    roles = [[linear.role for linear in block] for block in fused_blocks(LLAMA_8B)]
    assert roles == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]] * 32 + [["lm_head"]]


def test_a_stored_embedding_is_carried_over_unless_it_has_offsets(target: Target) -> None:
    assert choose_schemes(SMOLLM2, target, {EMBEDDING: Q8_0})[EMBEDDING] == carried(Q8_0)
    assert choose_schemes(SMOLLM2, target, {EMBEDDING: Q4_0})[EMBEDDING] == carried(Q4_0)
    assert choose_schemes(SMOLLM2, target, {EMBEDDING: Q4_1})[EMBEDDING].bits == 8


def test_rows_that_the_stored_groups_do_not_divide_are_quantized_anew(target: Target) -> None:
    name = LAYER + "mlp.down_proj.weight"
    assert not choose_schemes(STORIES, target, {name: Q4_1})[name].offset

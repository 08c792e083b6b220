"""Every byte of the data file belongs to one array, and every row of the checkpoint has one place in it."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from edgeforge.backends.onnx.layout import ALIGNMENT, Slot, WeightLayout, weight_layout
from edgeforge.backends.onnx.weights import DATA_FILE, weight_file
from edgeforge.hardware import Target, load_target
from edgeforge.model.architecture import LlamaArchitecture
from edgeforge.planning import apply_overrides, draft_plan
from edgeforge.quantization.rtn import quantize
from tests.planning.shapes import LLAMA_405B, SMOLLM2, STORIES, architectures, targets


def slots(layout: WeightLayout) -> list[Slot]:
    """Every distinct array."""
    found: dict[str, Slot] = {layout.cos.name: layout.cos, layout.sin.name: layout.sin}
    for matrix in layout.matrices.values():
        low = (None, None) if matrix.low is None else (matrix.low.weight, matrix.low.zero_points)
        for slot in (matrix.weight, matrix.scales, matrix.zero_points, matrix.offsets, *low):
            if slot is not None:
                found[slot.name] = slot
    return sorted(found.values(), key=lambda slot: slot.offset)


# Two layers are laid out like two hundred, only faster.
shapes = architectures().map(lambda shape: replace(shape, num_hidden_layers=min(shape.num_hidden_layers, 2)))


@given(shapes, targets())
def test_arrays_are_aligned_and_follow_each_other(architecture: LlamaArchitecture, target: Target) -> None:
    layout, end = weight_layout(draft_plan(architecture, target)), 0
    for slot in slots(layout):
        assert slot.offset % ALIGNMENT == 0
        assert end <= slot.offset < end + ALIGNMENT  # no overlap, no hole
        end = slot.offset + slot.size
    assert layout.size == end


@given(shapes, targets())
def test_every_tensor_has_a_place_and_fills_its_matrix_with_the_others(
    architecture: LlamaArchitecture, target: Target
) -> None:
    plan = draft_plan(architecture, target)
    layout = weight_layout(plan)
    expected = dict(architecture.tensors())
    assert set(layout.placements) == set(expected)
    filled: dict[str, list[tuple[int, int]]] = {}
    for name, placement in layout.placements.items():
        matrix, shape = placement.matrix, expected[name]
        if len(shape) == 2:
            assert matrix.in_features == shape[1]
            assert matrix.scheme == plan.schemes[name]
        filled.setdefault(matrix.weight.name, []).append((placement.first_row, placement.first_row + shape[0]))
    rows = {matrix.weight.name: matrix.out_features for matrix in layout.matrices.values()}
    assert set(filled) == set(rows)
    for name, ranges in filled.items():
        ranges.sort()
        assert [0, *(stop for _, stop in ranges)] == [*(start for start, _ in ranges), rows[name]]


@given(shapes, targets())
def test_blocks_hold_their_rows(architecture: LlamaArchitecture, target: Target) -> None:
    for matrix in weight_layout(draft_plan(architecture, target)).matrices.values():
        if matrix.scheme.group_size is None:
            continue
        assert matrix.scales is not None
        n, blocks, block_bytes = matrix.weight.shape
        assert (n, blocks) == matrix.scales.shape
        assert blocks * matrix.block_size >= matrix.in_features > (blocks - 1) * matrix.block_size
        low_bytes = 0 if matrix.low is None else matrix.low.weight.shape[2]
        assert (block_bytes + low_bytes) * 8 == matrix.block_size * matrix.scheme.bits
        assert matrix.block_size & (matrix.block_size - 1) == 0
        assert matrix.block_size >= 16  # what onnxruntime's kernels take
        assert (matrix.zero_points is None) == (matrix.scheme.symmetric or matrix.scheme.offset)


def test_tied_weights_are_stored_once() -> None:
    tied = draft_plan(SMOLLM2, load_target("cpu"))
    untied = draft_plan(replace(SMOLLM2, tie_word_embeddings=False), load_target("cpu"))
    layout = weight_layout(tied)
    assert layout.matrices["lm_head"] is layout.matrices["embedding"]
    assert weight_layout(untied).size > layout.size + SMOLLM2.vocab_size * SMOLLM2.hidden_size // 2


def test_the_largest_model_is_laid_out_without_touching_a_weight() -> None:
    target = load_target("cpu")
    assert weight_layout(draft_plan(LLAMA_405B, target)).size > 200e9


def test_rows_may_come_in_any_order_and_from_any_thread(tmp_path: Path) -> None:
    target = apply_overrides(load_target("cpu"), group_size=32, symmetric=False)
    plan = draft_plan(STORIES, target)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in STORIES.tensors()}

    def rows(name: str, start: int, stop: int):  # type: ignore[no-untyped-def]
        part, scheme = weights[name][start:stop], plan.schemes.get(name)
        return part if scheme is None or scheme.is_float else quantize(part, scheme)

    def pieces(step: int) -> list[tuple[str, int, int]]:
        return [
            (name, start, min(start + step, len(array)))
            for name, array in weights.items()
            for start in range(0, len(array), step)
        ]

    contents = []
    for step in (10_000, 7):
        order = pieces(step)
        rng.shuffle(order)
        folder = tmp_path / str(step)
        folder.mkdir()
        with weight_file(plan, folder) as file:

            def work(part: list[tuple[str, int, int]], put=file.put) -> None:  # type: ignore[no-untyped-def]
                for name, start, stop in part:
                    put(name, start, rows(name, start, stop))

            threads = [threading.Thread(target=work, args=(order[i::3],)) for i in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        contents.append((folder / DATA_FILE).read_bytes())
    assert contents[0] == contents[1]
    assert len(contents[0]) == weight_layout(plan).size


def test_rows_of_another_scheme_or_beyond_the_end_are_refused(tmp_path: Path) -> None:
    plan = draft_plan(STORIES, apply_overrides(load_target("cpu"), group_size=32))
    name = "model.layers.0.self_attn.o_proj.weight"
    scheme = plan.schemes[name]
    good = quantize(np.ones((64, 64), np.float32), scheme)

    def refusals() -> None:
        with weight_file(plan, tmp_path) as file:
            file.put(name, 0, good)
            with pytest.raises(ValueError, match="does not fit"):
                file.put(name, 1, good)
            with pytest.raises(ValueError, match="the plan stores"):
                file.put(name, 0, quantize(np.ones((64, 64), np.float32), replace(scheme, bits=8)))
            with pytest.raises(ValueError, match="does not fit"):
                file.put("model.norm.weight", 0, np.ones(65, np.float32))
            with pytest.raises(KeyError):
                file.put("model.layers.99.mlp.up_proj.weight", 0, good)

    with pytest.raises(ValueError, match="rows missing"):  # of all the others
        refusals()

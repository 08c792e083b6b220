"""What was computed once is found again, in slots and in the tree, within its budget; no answer changes by it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_generate import collect, greedy_reference
from tiny_bundle import Shape

from edgeforge import runtime
from edgeforge.runtime.engine import OnnxEngine
from edgeforge.runtime.model import Model
from edgeforge.runtime.prefix import KeysValues, PrefixTree
from edgeforge.runtime.slots import one_context_bytes

BYTES_PER_TOKEN = 4 * 2 * 3 * 4  # 2 layers with keys and values, KV 2, head_dim 3, float32


def values(ids: Sequence[int], start: int, stop: int) -> KeysValues:
    """Keys and values that tell which tokens led to them."""
    sums = np.cumsum(np.asarray(ids, np.float32))[start:stop]
    return np.broadcast_to(sums[None, None, :, None], (4, 2, stop - start, 3)).copy()


def found(tree: PrefixTree, ids: Sequence[int]) -> tuple[list[int], KeysValues]:
    pieces = tree.find(ids)
    known = [token for piece, _ in pieces for token in piece]
    return known, np.concatenate([np.empty((4, 2, 0, 3), np.float32), *(part for _, part in pieces)], axis=2)


def keep(tree: PrefixTree, ids: Sequence[int]) -> None:
    tree.insert(ids, lambda start, stop: values(ids, start, stop))


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12)


@given(texts, st.lists(st.integers(0, 2), max_size=8))
def test_the_longest_known_beginning_is_found_with_its_values(kept: list[list[int]], asked: list[int]) -> None:
    tree = PrefixTree(1 << 20)
    for ids in kept:
        keep(tree, ids)
    longest = max((sum(1 for n in range(1, len(asked) + 1) if ids[:n] == asked[:n]) for ids in kept), default=0)
    known, parts = found(tree, asked)
    assert known == asked[:longest]
    assert np.array_equal(parts, values(asked, 0, longest))


@given(texts, st.integers(0, 20))
def test_the_budget_holds_and_what_is_kept_stays_right(kept: list[list[int]], tokens: int) -> None:
    tree = PrefixTree(tokens * BYTES_PER_TOKEN)
    for ids in kept:
        keep(tree, ids)
        assert tree.bytes <= tokens * BYTES_PER_TOKEN
        assert tree.bytes == sum(node.values.nbytes for node in nodes(tree))
    for ids in kept:
        known, parts = found(tree, ids)
        assert np.array_equal(parts, values(ids, 0, len(known)))


def nodes(tree: PrefixTree) -> list:
    pending, seen = [tree._root], []
    while pending:
        node = pending.pop()
        seen.append(node)
        pending += node.children.values()
    return seen


def test_a_beginning_that_two_texts_share_is_kept_once() -> None:
    tree = PrefixTree(1 << 20)
    keep(tree, [1, 2, 3, 4, 5])
    keep(tree, [1, 2, 3, 9])
    assert tree.bytes == 6 * BYTES_PER_TOKEN


def test_what_was_not_needed_for_longest_goes_first() -> None:
    tree = PrefixTree(6 * BYTES_PER_TOKEN)
    for ids in ([1, 2, 3], [4, 5, 6]):
        keep(tree, ids)
    tree.find([1, 2])
    keep(tree, [7, 8, 9])
    assert [found(tree, ids)[0] for ids in ([1, 2, 3], [4, 5, 6], [7, 8, 9])] == [[1, 2, 3], [], [7, 8, 9]]


def fed(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each run computes from now on."""
    assert isinstance(model._engine, OnnxEngine)
    counts: list[int] = []
    caches = model._engine.batch._caches
    feed = caches.feed
    monkeypatch.setattr(
        caches, "feed", lambda first, rows, *a, **k: counts.append(sum(map(len, rows))) or feed(first, rows, *a, **k)
    )
    return counts


def ask(model: Model, prompt: list[int], count: int = 8) -> list[int]:
    ids, _ = collect(model.generate(prompt, max_new_tokens=count, ignore_eos=True))
    assert ids == greedy_reference(prompt, count)
    return ids


def test_two_chats_that_alternate_pay_for_their_new_turns_only(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1)
    counts = fed(model, monkeypatch)
    one, two = [1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9]
    for turn in range(3):
        for chat in (one, two):
            counts.clear()
            new = 4 if turn else 6
            chat += [*ask(model, chat), 20 + turn, 21, 22]
            assert sum(counts) <= new + 8


def test_answers_to_one_prompt_share_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1, batch=4)
    counts = fed(model, monkeypatch)
    prompt = list(range(30))
    streams = [
        model.generate(prompt, max_new_tokens=6, temperature=1.0, seed=seed, ignore_eos=True) for seed in range(4)
    ]
    answers = [collect(stream) for stream in streams]
    assert len({tuple(ids) for ids, _ in answers}) > 1
    assert [last.usage.reused_tokens for _, last in answers if last.usage] == [0, 28, 28, 28]
    assert sum(counts) <= 30 + 3 * 2 + 4 * 6


def test_answers_that_are_asked_for_at_the_same_time_read_their_prompt_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runtime.load(tiny, threads=1, batch=4)
    counts = fed(model, monkeypatch)
    prompt = list(range(30))
    streams = [model.generate(prompt, max_new_tokens=6, ignore_eos=True) for _ in range(4)]
    assert isinstance(model._engine, OnnxEngine)
    for stream in streams:
        model._engine.batch._arrived.append(stream._generation)  # type: ignore[arg-type]
        stream._generation.is_enlisted = True  # type: ignore[attr-defined]
    assert [collect(stream)[0] for stream in streams] == 4 * [greedy_reference(prompt, 6)]
    assert sum(counts) <= 30 + 3 * 2 + 4 * 6


def test_without_a_budget_only_the_slot_remembers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1, prefix_cache_bytes=0)
    counts = fed(model, monkeypatch)
    ask(model, [1, 2, 3, 4, 5, 6])
    ask(model, [7, 8, 9])
    counts.clear()
    ask(model, [1, 2, 3, 4, 5, 6])
    assert sum(counts) == 6 + 7


def test_a_context_is_as_many_bytes_as_its_keys_and_values(model: Model) -> None:
    shape = Shape()
    expected = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.context * 4
    assert one_context_bytes(model.manifest.model) == expected

"""Greedy answers of a trained model are identical however they come about: float32 always, int4 with `exact`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built import Build, prompts, tiny_stories
from test_batch import read_in_turns
from test_generate import collect

from edgeforge import runtime
from edgeforge.runtime import Speculation
from edgeforge.runtime.graph import open_graph
from edgeforge.runtime.model import Model
from edgeforge.runtime.slots import Slots
from edgeforge.runtime.stream import Stream

COUNT = 60


class Everything:
    """A constraint that does not constrain."""

    finished = False

    def __init__(self, vocab_size: int) -> None:
        self._mask = np.ones(vocab_size, np.bool_)

    def mask(self) -> np.ndarray:
        return self._mask

    def accept(self, token: int) -> None: ...


@pytest.fixture(params=["stories_f32", "stories_int4"])
def load(request: pytest.FixtureRequest) -> Callable[[], Model]:
    build: Build = request.getfixturevalue(request.param)
    exact = request.param == "stories_int4"
    return lambda: runtime.load(build.bundle, threads=1, exact=exact, batch=4)


def ask(model: Model, prompt: list[int], **options: object) -> Stream:
    return model.generate(prompt, max_new_tokens=COUNT, temperature=0, ignore_eos=True, **options)  # type: ignore[arg-type]


@pytest.fixture
def texts(load: Callable[[], Model], test_data: Path) -> list[list[int]]:
    """Six prompts of unequal length."""
    return [ids[: 20 + 17 * at] for at, ids in enumerate(prompts(load(), tiny_stories(test_data), count=6, length=120))]


@pytest.fixture
def plain(load: Callable[[], Model], texts: list[list[int]]) -> list[list[int]]:
    """Each answered by a model that has seen nothing else."""
    return [collect(ask(load(), prompt))[0] for prompt in texts]


def test_batching(load: Callable[[], Model], texts: list[list[int]], plain: list[list[int]]) -> None:
    model = load()
    assert read_in_turns([ask(model, prompt) for prompt in texts]) == plain


def test_speculation(load: Callable[[], Model], texts: list[list[int]], plain: list[list[int]]) -> None:
    model = load()
    for speculation in (Speculation(), Speculation(tokens=15), Speculation(draft=load(), tokens=3)):
        assert [collect(ask(model, prompt, speculate=speculation))[0] for prompt in texts] == plain


def test_prefix_reuse(load: Callable[[], Model], texts: list[list[int]], plain: list[list[int]]) -> None:
    model = load()
    for prompt, answer in zip(texts, plain, strict=True):
        longer = [*prompt, *answer[:30], 7, 8, 9]
        fresh, _ = collect(ask(load(), longer))
        assert collect(ask(model, prompt))[0] == answer
        reused, last = collect(ask(model, longer))
        assert reused == fresh
        assert last.usage is not None
        assert last.usage.reused_tokens == len(prompt) + 30
        assert collect(ask(model, prompt))[0] == answer


def test_a_constraint_that_does_not_constrain(
    load: Callable[[], Model], texts: list[list[int]], plain: list[list[int]]
) -> None:
    model = load()
    everything = Everything(model.manifest.model.vocab_size)
    assert [collect(ask(model, prompt, constraint=everything))[0] for prompt in texts] == plain


TEXT = """The quick brown fox jumps over the lazy dog near the river bank. Many people enjoy walking along the river in
the summer, when the weather is warm and the water is clear. Fishermen sit on the bank and wait for the fish to bite."""


@pytest.mark.slow
def test_a_text_that_repeats_its_prompt_takes_less_than_half_the_runs_and_is_the_same(
    demo_int4: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.8 times the speed of plain decoding was asked for; a run of 9 tokens takes 2.5 times as long as one of one."""
    model = runtime.load(demo_int4.bundle, threads=1, exact=True)
    prompt = model.chat_ids([{"role": "user", "content": f"Repeat the following text exactly, word for word:\n{TEXT}"}])
    runs: list[int] = []
    feed = Slots.feed
    monkeypatch.setattr(Slots, "feed", lambda *a, **k: runs.append(1) or feed(*a, **k))
    plain, _ = collect(model.generate(prompt, max_new_tokens=50, temperature=0))
    plain_runs = len(runs)
    runs.clear()
    guessed, _ = collect(model.generate(prompt, max_new_tokens=50, temperature=0, speculate=Speculation()))
    assert guessed == plain
    assert len(plain) >= 40
    assert len(runs) * 2.5 * 1.8 < plain_runs


def test_logits_of_a_batch_are_those_of_single_runs(stories_f32: Build, test_data: Path) -> None:
    """To 1e-4 of float32, for a model whose rotary embedding is outside of attention."""
    model = runtime.load(stories_f32.bundle, threads=1)
    record = model.manifest.model
    assert record.runtime_graph is not None
    caches = Slots(
        open_graph(stories_f32.bundle / record.runtime_graph, device="cpu", threads=1), record, "cpu", slots=4
    )
    found = prompts(model, tiny_stories(test_data), count=4, length=90)
    lengths = (89, 5, 40, 1)
    for slot, length in enumerate(lengths):
        caches.feed(slot, [found[slot][:length]])
    together = caches.feed(0, [[ids[length]] for ids, length in zip(found, lengths, strict=True)]).copy()
    for slot, length in enumerate(lengths):
        alone = model.score(found[slot][: length + 1])[-1]
        assert np.abs(together[slot, 0] - alone).max() < 1e-4 * np.abs(alone).max()

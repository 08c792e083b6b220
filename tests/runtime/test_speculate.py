"""Speculation changes the time, never the text: greedy answers are the same, drawn ones have the same distribution."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_generate import collect, greedy_reference
from tiny_bundle import Shape, make_bundle

from edgeforge import runtime
from edgeforge.runtime import Speculation
from edgeforge.runtime.engine import OnnxEngine
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.model import Model
from edgeforge.runtime.speculate import PromptLookup

REPEATING = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]


class Guesses:
    """A draft that knows the answer, or not."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer = list(answer)
        self.asked = 0

    def guess(self, ids: Sequence[int], count: int) -> list[int]:
        self.asked += 1
        return self._answer[len(ids) : len(ids) + count]


def guessing(model: Model, monkeypatch: pytest.MonkeyPatch, guesses: Guesses) -> list[int]:
    """Have `guesses` guess; how many tokens each run computes from now on."""
    monkeypatch.setattr(Speculation, "guesser", lambda _: guesses)
    assert isinstance(model._engine, OnnxEngine)
    runs: list[int] = []
    caches = model._engine.batch._caches
    feed = caches.feed
    monkeypatch.setattr(caches, "feed", lambda first, rows, *a: runs.append(len(rows[0])) or feed(first, rows, *a))
    return runs


@pytest.mark.parametrize("draft", ["lookup", "itself", "another"])
@pytest.mark.parametrize("tokens", [1, 4, 15])
def test_greedy_answers_are_the_same(tiny: Path, tmp_path: Path, draft: str, tokens: int) -> None:
    model = runtime.load(tiny, threads=1)
    drafts = {
        "lookup": None,
        "itself": model,
        "another": runtime.load(make_bundle(tmp_path / "draft", Shape(layers=1), seed=1), threads=1),
    }
    speculation = Speculation(draft=drafts[draft], tokens=tokens)
    for prompt in ([10, 200, 31, 4, 55], REPEATING, [1]):
        ids, last = collect(model.generate(prompt, max_new_tokens=40, ignore_eos=True, speculate=speculation))
        assert (ids, last.finish_reason) == (greedy_reference(prompt, 40), "length")


def test_guesses_that_come_true_save_runs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1)
    answer = greedy_reference(REPEATING, 40)
    runs = guessing(model, monkeypatch, Guesses([*REPEATING, *answer]))
    ids, _ = collect(model.generate(REPEATING, max_new_tokens=40, ignore_eos=True, speculate=Speculation(tokens=4)))
    assert ids == answer
    assert len(runs) <= 1 + 8 + 1


def test_guesses_that_never_come_true_cost_little(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runtime.load(tiny, threads=1)
    answer = greedy_reference(REPEATING, 30)
    wrong = [(token + 1) % 256 for token in answer]
    runs = guessing(model, monkeypatch, Guesses([*REPEATING, *wrong, 1, 1]))
    ids, _ = collect(model.generate(REPEATING, max_new_tokens=30, ignore_eos=True, speculate=Speculation(tokens=8)))
    assert ids == answer
    assert sum(runs) <= len(REPEATING) + 8 + 2 * 30


def test_drawn_tokens_have_the_same_distribution(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-squared of the second and third token, drawn with and without a guess that comes true in part."""
    model = runtime.load(tiny, threads=1)
    options = {"max_new_tokens": 3, "temperature": 1.0, "top_k": 4, "ignore_eos": True}

    def draw(count: int, first_seed: int, speculation: Speculation | None) -> Counter[tuple[int, ...]]:
        return Counter(
            tuple(collect(model.generate(REPEATING, seed=seed, speculate=speculation, **options))[0][1:])
            for seed in range(first_seed, first_seed + count)
        )

    plain = draw(1500, 0, None)
    likeliest = max(plain, key=lambda pair: plain[pair])
    first = Counter(collect(model.generate(REPEATING, seed=seed, **options))[0][0] for seed in range(50))
    guessing(model, monkeypatch, Guesses([*REPEATING, first.most_common(1)[0][0], *likeliest]))
    guessed = draw(1500, 10_000, Speculation(tokens=2))
    assert chi_squared_is_ordinary(plain, guessed)
    assert not chi_squared_is_ordinary(plain, Counter({likeliest: 1500})), "the test tells distributions apart"


def chi_squared_is_ordinary(one: Counter[tuple[int, ...]], two: Counter[tuple[int, ...]]) -> bool:
    """Two samples of equal size, rare outcomes in one bin: below the 99.9% quantile (Wilson and Hilferty, 1931)."""
    bins = [(one[key], two[key]) for key in one.keys() | two.keys() if one[key] + two[key] >= 10]
    rest = (sum(one.values()) - sum(a for a, _ in bins), sum(two.values()) - sum(b for _, b in bins))
    statistic = sum((a - b) ** 2 / (a + b) for a, b in [*bins, rest] if a + b)
    degrees = len(bins)
    return bool(statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * np.sqrt(2 / (9 * degrees))) ** 3)


def test_a_seed_draws_the_same_answer_with_speculation(model: Model) -> None:
    def answer(speculation: Speculation | None) -> list[int]:
        chunks = model.generate(REPEATING, max_new_tokens=30, temperature=0.8, seed=3, speculate=speculation)
        return collect(chunks)[0]

    assert answer(Speculation()) == answer(None)


def test_log_probabilities_and_the_penalty_are_those_of_plain_decoding(model: Model) -> None:
    def answer(speculation: Speculation | None) -> list[tuple[int, float]]:
        chunks = model.generate(
            REPEATING, max_new_tokens=30, repetition_penalty=1.3, logprobs=2, ignore_eos=True, speculate=speculation
        )
        return [(known.token_id, known.logprob) for chunk in chunks for known in chunk.logprobs or ()]

    plain, guessed = answer(None), answer(Speculation())
    assert [token for token, _ in plain] == [token for token, _ in guessed]
    assert [p for _, p in plain] == pytest.approx([p for _, p in guessed], abs=1e-4)


def test_several_sequences_may_speculate_at_once(tiny: Path) -> None:
    model = runtime.load(tiny, threads=1, batch=3)
    prompts = [REPEATING, [*REPEATING, 9, 8], [5] * 6, [1, 2, 1, 2, 1]]
    streams = [
        model.generate(prompt, max_new_tokens=20, ignore_eos=True, speculate=Speculation()) for prompt in prompts
    ]
    streams.append(model.generate(REPEATING, max_new_tokens=20, ignore_eos=True))
    for prompt, stream in zip([*prompts, REPEATING], streams, strict=True):
        assert collect(stream)[0] == greedy_reference(prompt, 20)


def test_speculation_ends_where_the_context_does(model: Model) -> None:
    prompt = [1, 2, 3] * 19
    ids, last = collect(model.generate(prompt, ignore_eos=True, speculate=Speculation()))
    assert (ids, last.finish_reason) == (greedy_reference(prompt, 7), "length")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 9))
def test_prompt_lookup_guesses_what_followed_the_longest_ending_that_stood_before(ids: list[int], count: int) -> None:
    lookup = PromptLookup()
    for length in range(1, len(ids) + 1):
        text = ids[:length]
        expected: list[int] = []
        for size in (2, 3, 4):
            places = [at for at in range(size, length) if text[at - size : at] == text[length - size :]]
            if places and length >= size:
                expected = text[places[-1] : places[-1] + count]
        assert lookup.guess(text, count) == expected


def test_an_older_bundle_says_that_it_has_no_graph_for_it(tmp_path: Path) -> None:
    older = runtime.load(make_bundle(tmp_path / "older", runtime_graph=False), threads=1)
    with pytest.raises(UnusableBundle, match="no graph that checks several guessed tokens"):
        older.generate(REPEATING, speculate=Speculation())
    assert collect(older.generate(REPEATING, max_new_tokens=9, ignore_eos=True))[0] == greedy_reference(REPEATING, 9)


def test_a_draft_of_another_vocabulary_is_refused(model: Model, tmp_path: Path) -> None:
    other = runtime.load(make_bundle(tmp_path / "other", Shape(vocab=300)), threads=1)
    with pytest.raises(UnusableBundle, match="vocabulary of 300 tokens"):
        model.generate(REPEATING, speculate=Speculation(draft=other))


@pytest.mark.parametrize("tokens", [0, 16])
def test_too_many_guesses_are_refused(tokens: int) -> None:
    with pytest.raises(UnusableBundle, match="1 to 15 tokens"):
        Speculation(tokens=tokens)

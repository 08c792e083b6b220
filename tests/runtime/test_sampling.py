"""The samplers against transformers' logits processors, and the laws of drawing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from edgeforge.runtime import sampling
from edgeforge.runtime.errors import UnusableBundle
from edgeforge.runtime.sampling import Sampler, Sampling

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(2, 400)


def random_logits(seed: int, size: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(size) * random.choice([0.1, 1, 5, 20])).astype(np.float32)


def processed(processor: object, logits: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
    ids = np.zeros(1, np.int64) if ids is None else ids
    return processor(torch.from_numpy(ids)[None], torch.from_numpy(logits.copy())[None])[0].numpy()  # type: ignore[operator]


@settings(deadline=None)
@given(SEEDS, SIZES, st.floats(0.1, 3))
def test_temperature_is_transformers(seed: int, size: int, value: float) -> None:
    logits = random_logits(seed, size)
    expected = processed(theirs.TemperatureLogitsWarper(value), logits)
    np.testing.assert_allclose(sampling.temperature(logits, value), expected, rtol=1e-6)


@settings(deadline=None)
@given(SEEDS, SIZES, st.integers(1, 500))
def test_top_k_is_transformers(seed: int, size: int, k: int) -> None:
    logits = np.round(random_logits(seed, size), 1)  # rounded: ties happen
    np.testing.assert_array_equal(sampling.top_k(logits, k), processed(theirs.TopKLogitsWarper(k), logits))


@settings(deadline=None)
@given(SEEDS, SIZES, st.floats(0.05, 0.99))
def test_top_p_is_transformers(seed: int, size: int, p: float) -> None:
    logits = random_logits(seed, size)
    ours, expected = sampling.top_p(logits, p), processed(theirs.TopPLogitsWarper(p), logits)
    for token in np.flatnonzero(ours != expected):
        # float32 sums in another order may put one token on the other side of p
        before = np.sort(logits[logits <= logits[token]]).astype(np.float64)
        mass = np.exp(before - logits.max()).sum() / np.exp(logits.astype(np.float64) - logits.max()).sum()
        assert abs(mass - (1 - p)) < 1e-5


@pytest.mark.parametrize("p", [1e-12, 0.3])
def test_top_p_keeps_at_least_one_token_even_of_equals(p: float) -> None:
    kept = np.flatnonzero(sampling.top_p(np.zeros(1000, np.float32), p) > -np.inf)
    assert kept.size == pytest.approx(max(1, 1000 * p), abs=1)


@settings(deadline=None)
@given(SEEDS, SIZES, st.floats(0.01, 1))
def test_min_p_is_transformers(seed: int, size: int, p: float) -> None:
    logits = random_logits(seed, size)
    ours, expected = sampling.min_p(logits, p), processed(theirs.MinPLogitsWarper(p), logits)
    for token in np.flatnonzero(ours != expected):
        assert np.exp(float(logits[token]) - float(logits.max())) == pytest.approx(p, rel=1e-5)


@settings(deadline=None)
@given(SEEDS, SIZES, st.floats(0.5, 2), st.integers(1, 60))
def test_repetition_penalty_is_transformers(seed: int, size: int, penalty: float, seen: int) -> None:
    logits = random_logits(seed, size)
    ids = np.random.default_rng(seed).integers(0, size, seen)
    expected = processed(theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    np.testing.assert_allclose(sampling.repetition_penalty(logits, np.unique(ids), penalty), expected, rtol=1e-6)


@settings(deadline=None)
@given(SEEDS, st.integers(8, 200))
def test_filters_compose_as_in_transformers(seed: int, size: int) -> None:
    logits = random_logits(seed, size)
    expected = logits
    for processor in (theirs.TemperatureLogitsWarper(0.7), theirs.TopKLogitsWarper(7), theirs.MinPLogitsWarper(0.1)):
        expected = processed(processor, expected)
    ours = sampling.min_p(sampling.top_k(sampling.temperature(logits, 0.7), 7), 0.1)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_no_filter_changes_its_argument() -> None:
    logits = random_logits(3, 50)
    kept = logits.copy()
    for result in (
        sampling.temperature(logits, 0.5),
        sampling.top_k(logits, 3),
        sampling.top_p(logits, 0.5),
        sampling.min_p(logits, 0.5),
        sampling.repetition_penalty(logits, np.arange(50), 1.3),
    ):
        assert result.dtype == np.float32
    np.testing.assert_array_equal(logits, kept)


def test_draws_follow_the_softmax() -> None:
    logits = np.array([0.0, 1.0, 2.0, -np.inf], np.float32)
    random = np.random.default_rng(0)
    counts = np.bincount([sampling.sample(logits, random) for _ in range(20_000)], minlength=4)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert counts[3] == 0
    np.testing.assert_allclose(counts / 20_000, expected, atol=0.012)


def test_a_seed_fixes_the_draws_and_another_changes_them() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), [1], 300)
        return [sampler.choose(random_logits(step, 300)) for step in range(40)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_greedy_takes_the_first_of_equals() -> None:
    assert sampling.greedy(np.array([0, 3, 3], np.float32)) == 1


def test_a_tiny_temperature_is_greedy() -> None:
    sampler = Sampler(Sampling(temperature=1e-30, seed=0), [1], 300)
    for step in range(20):
        logits = random_logits(step, 300)
        assert sampler.choose(logits) == logits.argmax()


def test_the_penalty_counts_the_prompt_and_what_was_chosen() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), [0], 3)
    logits = np.array([3.0, 2.0, 1.8], np.float32)
    assert [sampler.choose(logits) for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error_not_a_token(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=0), [0], 4)
    with pytest.raises(UnusableBundle, match="NaN"):
        sampler.choose(np.full(4, np.nan, np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(UnusableBundle, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


SAMPLINGS = [
    Sampling(),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.8, top_k=5, top_p=0.7, min_p=0.05, repetition_penalty=1.2, seed=1),
]


@pytest.mark.parametrize("chosen", SAMPLINGS)
def test_what_a_mask_rules_out_is_never_chosen_and_one_of_all_changes_nothing(chosen: Sampling) -> None:
    everything = np.ones(300, np.bool_)
    few = np.zeros(300, np.bool_)
    few[[7, 70, 170]] = True
    free, masked, constrained = (Sampler(chosen, [1], 300) for _ in range(3))
    for step in range(50):
        logits = random_logits(step, 300)
        assert free.choose(logits) == masked.choose(logits, everything)
        assert constrained.choose(logits, few) in (7, 70, 170)


def test_a_mask_is_applied_before_the_filters_so_that_they_count_what_is_left() -> None:
    logits = np.array([9.0, 8.0, 3.0, 2.0, 1.0], np.float32)
    allowed = np.array([False, False, True, True, True])
    sampler = Sampler(Sampling(temperature=1.0, top_k=2), [0], 5)
    np.testing.assert_array_equal(np.flatnonzero(sampler.processed(logits, allowed) > -np.inf), [2, 3])


@pytest.mark.parametrize("chosen", SAMPLINGS)
def test_a_mask_of_nothing_is_an_error_not_a_token(chosen: Sampling) -> None:
    with pytest.raises(UnusableBundle, match="allows no token"):
        Sampler(chosen, [0], 4).choose(np.zeros(4, np.float32), np.zeros(4, np.bool_))


@settings(deadline=None)
@given(SEEDS, SIZES, st.integers(0, 30))
def test_logprobs_are_torchs_log_softmax(seed: int, size: int, count: int) -> None:
    logits = np.round(random_logits(seed, size), 1)  # rounded: ties happen
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), dim=0)
    found = sampling.logprobs(logits, size - 1, count)
    assert found.chosen.token == size - 1
    assert found.chosen.logprob == pytest.approx(float(expected[-1]))
    order = torch.argsort(expected, descending=True, stable=True)[:count]
    assert [each.token for each in found.likeliest] == order.tolist()
    assert [each.logprob for each in found.likeliest] == pytest.approx(expected[order].tolist())

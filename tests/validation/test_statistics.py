"""Per-token values against torch's own formulas, averages against closed forms, intervals against simulation."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeforge.validation import statistics
from edgeforge.validation.statistics import (
    NonFiniteLogitsError,
    TokenValues,
    compare_logits,
    mean,
    student_t_quantile,
    summarize,
)

Logits = NDArray[np.float32]


def random_pair(rows: int, vocabulary: int, *, noise: float, seed: int = 0) -> tuple[Logits, Logits, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    reference = (3 * rng.standard_normal((rows, vocabulary)) - 7).astype(np.float32)
    candidate = (reference + noise * rng.standard_normal((rows, vocabulary)) + 2).astype(np.float32)
    return reference, candidate, rng.integers(0, vocabulary, rows)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.1, 3.0])
def test_divergence_and_likelihoods_are_torchs_in_float64(noise: float) -> None:
    reference, candidate, targets = random_pair(37, 1000, noise=noise)
    values = compare_logits(reference, candidate, targets)
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (reference, candidate))
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).numpy()
    np.testing.assert_allclose(values.kl_divergence, np.maximum(expected, 0), rtol=1e-9, atol=1e-13)
    for nll, log_probabilities in ((values.reference_nll, p), (values.candidate_nll, q)):
        theirs = torch.nn.functional.nll_loss(log_probabilities, torch.from_numpy(targets), reduction="none")
        np.testing.assert_allclose(nll, theirs.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(values.same_top, reference.argmax(1) == candidate.argmax(1))


def test_a_model_does_not_diverge_from_itself() -> None:
    reference, _, targets = random_pair(5, 49152, noise=0.0)
    values = compare_logits(reference, reference.copy(), targets)
    assert values.kl_divergence.max() < 1e-12
    assert values.kl_divergence.min() >= 0
    assert values.same_top.all()
    summary = summarize(values)
    assert summary.perplexity_ratio.value == 1.0
    assert summary.perplexity_ratio.standard_error == 0.0


def test_confident_models_that_disagree_stay_exact() -> None:
    """Probabilities far below float64's smallest number must not become log 0."""
    reference = np.array([[900.0, 0.0, -900.0]], np.float32)
    candidate = np.array([[0.0, 900.0, -900.0]], np.float32)
    values = compare_logits(reference, candidate, np.array([2]))
    assert values.kl_divergence[0] == pytest.approx(900.0, rel=1e-12)
    assert values.reference_nll[0] == pytest.approx(1800.0, rel=1e-12)


def test_blocks_give_the_same_values_as_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate, targets = random_pair(33, 257, noise=0.5)
    whole = compare_logits(reference, candidate, targets)
    monkeypatch.setattr(statistics, "BLOCK_ELEMENTS", 4 * 257)
    parts = compare_logits(reference, candidate, targets)
    for name in ("reference_nll", "candidate_nll", "kl_divergence", "same_top"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_the_lowest_id_wins_a_tie() -> None:
    reference = np.array([[1.0, 5.0, 5.0]], np.float32)
    assert compare_logits(reference, np.array([[0, 9, 1]], np.float32), np.array([0])).same_top[0]
    assert not compare_logits(reference, np.array([[0, 1, 9]], np.float32), np.array([0])).same_top[0]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("who", ["reference", "candidate"])
def test_logits_that_are_not_finite_are_named(poison: float, who: str) -> None:
    reference, candidate, targets = random_pair(9, 50, noise=0.1)
    (reference if who == "reference" else candidate)[6, 13] = poison
    with pytest.raises(NonFiniteLogitsError) as caught:
        compare_logits(reference, candidate, targets)
    assert (caught.value.who, caught.value.row) == (who, 6)


def test_shapes_that_differ_are_refused() -> None:
    reference, candidate, targets = random_pair(4, 10, noise=0.1)
    with pytest.raises(ValueError, match="logits"):
        compare_logits(reference, candidate[:, :-1], targets)
    with pytest.raises(ValueError, match="logits"):
        compare_logits(reference, candidate, targets[:-1])


def llama_cpp_token(base: Logits, logits: Logits, token: int) -> tuple[float, float, float]:
    """tools/perplexity/perplexity.cpp for one token: (nll, nll_base, kld), its 16-bit log-probabilities included."""
    low = np.float32(max(base.min(), base.max() - np.float32(16)))
    log_sum_base = np.float32(math.log(np.exp(base - base.max()).sum(dtype=np.float64)))
    scale = np.float32((base.max() - low) / np.float32(65535))
    stored = np.where(base > low, np.rint((base - low) / scale), 0).astype(np.uint16)
    p_log_base = scale * stored.astype(np.float32) + np.float32(low - base.max() - log_sum_base)
    log_sum = np.float32(math.log(np.exp(logits - logits.max()).sum(dtype=np.float64)))
    kept = p_log_base > -16
    terms = np.exp(p_log_base[kept]) * (p_log_base[kept] - logits[kept] + logits.max() + log_sum)
    return float(logits.max() + log_sum - logits[token]), float(-p_log_base[token]), float(terms.sum(dtype=np.float64))


def test_figures_agree_with_llama_cpps_arithmetic() -> None:
    """A transcription of its per-token code: it stores the base's log-probabilities in 16 bits over a range of 16."""
    reference, candidate, _ = random_pair(200, 8192, noise=0.3, seed=3)
    targets = reference.argmax(1).astype(np.int64)
    values = compare_logits(reference, candidate, targets)
    theirs = [llama_cpp_token(reference[i], candidate[i], int(targets[i])) for i in range(len(targets))]
    nll, nll_base, divergence = (np.array(column) for column in zip(*theirs, strict=True))
    np.testing.assert_allclose(values.candidate_nll, nll, atol=2e-5)
    np.testing.assert_allclose(values.reference_nll, nll_base, atol=3e-4)
    assert abs(values.kl_divergence.mean() - divergence.mean()) < 2e-4


def test_standard_errors_are_llama_cpps_closed_forms() -> None:
    rng = np.random.default_rng(5)
    n = 731
    base = rng.gamma(2.0, 1.2, n)
    nll = base + rng.normal(0.05, 0.2, n)
    same = rng.random(n) < 0.9
    summary = summarize(
        TokenValues(reference_nll=base, candidate_nll=nll, kl_divergence=rng.gamma(0.5, 0.1, n), same_top=same)
    )

    def uncertainty(x: NDArray[np.float64]) -> float:
        return math.sqrt((np.mean(x * x) - np.mean(x) ** 2) / (n - 1))

    covariance = (np.mean(nll * base) - np.mean(nll) * np.mean(base)) / (n - 1)
    log_ratio_error = math.sqrt(uncertainty(nll) ** 2 + uncertainty(base) ** 2 - 2 * covariance)
    ratio = math.exp(np.mean(nll) - np.mean(base))
    assert summary.perplexity.value == pytest.approx(math.exp(np.mean(nll)))
    assert summary.perplexity.standard_error == pytest.approx(math.exp(np.mean(nll)) * uncertainty(nll))
    assert summary.perplexity_ratio.value == pytest.approx(ratio)
    assert summary.perplexity_ratio.standard_error == pytest.approx(ratio * log_ratio_error)
    p = same.mean()
    assert summary.same_top_token.standard_error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_pairing_takes_the_texts_difficulty_out_of_the_ratio() -> None:
    rng = np.random.default_rng(6)
    base = rng.gamma(1.0, 3.0, 4000)
    nll = base + rng.normal(0.02, 0.05, 4000)
    values = TokenValues(reference_nll=base, candidate_nll=nll, kl_divergence=base, same_top=base > 0)
    summary = summarize(values)
    assert summary.perplexity_ratio.standard_error < 0.05 * summary.perplexity.standard_error / summary.perplexity.value


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """4,000 simulated validations of 2,040 tokens: skewed divergences, and paired likelihoods."""
    rng = np.random.default_rng(7)
    covered_kl = covered_ratio = 0
    trials, n = 4000, 2040
    for _ in range(trials):
        divergence = rng.gamma(0.3, 0.05 / 0.3, n)  # mean 0.05, heavily skewed as real ones are
        base = rng.gamma(1.0, 3.0, n)
        nll = base + rng.normal(0.04, 0.3, n)
        summary = summarize(
            TokenValues(reference_nll=base, candidate_nll=nll, kl_divergence=divergence, same_top=base > 0)
        )
        kl, ratio = summary.mean_kl_divergence, summary.perplexity_ratio
        covered_kl += abs(kl.value - 0.05) < 1.96 * kl.standard_error
        covered_ratio += abs(ratio.value - math.exp(0.04)) < 1.96 * ratio.standard_error
    assert 0.935 < covered_kl / trials < 0.965
    assert 0.935 < covered_ratio / trials < 0.965


def test_one_observation_has_no_spread() -> None:
    assert mean(np.array([2.5])).standard_error == 0.0


def test_a_hopeless_model_still_has_finite_figures() -> None:
    terrible = np.full(200, 5000.0)
    summary = summarize(
        TokenValues(reference_nll=np.ones(200), candidate_nll=terrible, kl_divergence=terrible, same_top=terrible < 0)
    )
    assert math.isfinite(summary.perplexity.value)
    assert math.isfinite(summary.perplexity_ratio.standard_error)


@pytest.mark.parametrize(
    ("degrees", "at_95", "at_999"),
    [
        (1, 6.313752, 318.308839),
        (2, 2.919986, 22.327125),
        (3, 2.353363, 10.214532),
        (4, 2.131847, 7.173182),
        (7, 1.894579, 4.785290),
        (10, 1.812461, 4.143700),
        (100, 1.660234, 3.173739),
        (1001, 1.646379, 3.098392),
    ],
)
def test_students_t_is_the_printed_tables(degrees: int, at_95: float, at_999: float) -> None:
    assert student_t_quantile(0.95, degrees) == pytest.approx(at_95, abs=2e-6)
    assert student_t_quantile(0.999, degrees) == pytest.approx(at_999, rel=1e-6)
    assert student_t_quantile(0.5, degrees) == pytest.approx(0, abs=1e-12)

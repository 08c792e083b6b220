"""The gate fails only what is surely too bad, passes only what is surely good enough, and says so otherwise."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.hardware import Gate
from edgeforge.validation.gate import Check, Verdict, combine, judge
from edgeforge.validation.statistics import TokenValues

LIMITS = Gate(max_mean_kl_divergence=0.10, max_perplexity_ratio=1.05, confidence=0.95)
SIZE = 255
Values = NDArray[np.float64]


def values(divergence: Values, log_ratio: Values | None = None) -> TokenValues:
    base = np.full(len(divergence), 3.0)
    ratio = np.zeros(len(divergence)) if log_ratio is None else log_ratio
    return TokenValues(reference_nll=base, candidate_nll=base + ratio, kl_divergence=divergence, same_top=base > 0)


def spread(mean: float, error: float, chunks: int = 8) -> Values:
    """Alike chunks of tokens with exactly this mean and this standard error over tokens."""
    n = chunks * SIZE
    rng = np.random.default_rng(0)
    pattern = np.tile(rng.permutation(np.linspace(-1, 1, SIZE)), chunks)
    return mean + error * math.sqrt(n - 1) * pattern / pattern.std()


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.05, 0.01, "pass"),
        (0.09, 0.01, "undecided"),  # 0.09 + 1.645 * 0.01 = 0.1064
        (0.11, 0.01, "undecided"),  # 0.11 - 1.645 * 0.01 = 0.0935
        (0.15, 0.01, "fail"),
        (0.0999, 0.0, "pass"),
        (0.1001, 0.0, "fail"),
    ],
)
def test_the_one_sided_bounds_decide(value: float, error: float, verdict: Verdict) -> None:
    result = judge(values(spread(value, error)), SIZE, LIMITS)
    check = result.checks[0]
    assert check.figure == "mean_kl_divergence"
    assert check.lower_bound == pytest.approx(value - 1.6448536 * error)
    assert check.upper_bound == pytest.approx(value + 1.6448536 * error)
    assert check.verdict == result.verdict == verdict


def test_the_ratio_is_judged_on_the_log_scale() -> None:
    result = judge(values(spread(0.01, 0.001), spread(0.2, 0.1)), SIZE, LIMITS)
    check = result.checks[1]
    assert check.value == pytest.approx(math.exp(0.2))
    assert check.lower_bound == pytest.approx(math.exp(0.2 - 1.6448536 * 0.1))
    assert check.upper_bound == pytest.approx(math.exp(0.2 + 1.6448536 * 0.1))
    assert check.verdict == "undecided"


def test_chunks_that_differ_widen_the_bounds() -> None:
    """Four chunks with means 0.07, 0.09, 0.11, 0.13 and no spread inside: Student's t with 3 degrees of freedom."""
    divergence = np.repeat([0.07, 0.09, 0.11, 0.13], SIZE)
    check = judge(values(divergence), SIZE, LIMITS).checks[0]
    error = np.std([0.07, 0.09, 0.11, 0.13], ddof=1) / 2
    assert check.upper_bound == pytest.approx(0.10 + 2.353363 * error)
    assert check.lower_bound == pytest.approx(0.10 - 2.353363 * error)


def test_the_worst_check_is_the_verdict() -> None:
    fine, bad, unsure = spread(0.01, 0.001), spread(0.5, 0.001), spread(0.05, 0.1)
    assert judge(values(bad, unsure), SIZE, LIMITS).verdict == "fail"
    assert judge(values(fine, unsure), SIZE, LIMITS).verdict == "undecided"
    assert judge(values(fine, fine), SIZE, LIMITS).verdict == "pass"


def test_a_handful_of_tokens_or_a_single_chunk_decides_nothing() -> None:
    awful = np.full(98, 9.0)
    assert judge(values(awful), 49, LIMITS).verdict == "undecided"
    assert judge(values(np.full(SIZE, 9.0)), SIZE, LIMITS).verdict == "undecided"
    assert judge(values(np.full(2 * SIZE, 9.0)), SIZE, LIMITS).verdict == "fail"


def test_more_confidence_widens_the_bounds() -> None:
    kl = values(spread(0.05, 0.02))
    sure = Gate(max_mean_kl_divergence=0.1, max_perplexity_ratio=1.05, confidence=0.999)
    assert judge(kl, SIZE, LIMITS).checks[0].verdict == "pass"
    assert judge(kl, SIZE, sure).checks[0].verdict == "undecided"


@pytest.mark.parametrize("confidence", [0.0, 0.49, 1.0, 95.0])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    limits = Gate(max_mean_kl_divergence=1, max_perplexity_ratio=2, confidence=confidence)
    with pytest.raises(UnusableInput, match="confidence"):
        judge(values(spread(0.01, 0.001)), SIZE, limits)


def test_too_few_tokens_say_how_many_would_do() -> None:
    """0.09 +- 0.01 of 2,040 tokens in alike chunks, 0.01 below the limit: (1.68 + 0.84)^2 times as many tell."""
    check = judge(values(spread(0.09, 0.01)), SIZE, LIMITS).checks[0]
    assert check.items_needed == pytest.approx(2040 * (1.68 + 0.8416) ** 2, rel=0.1)
    assert judge(values(spread(0.05, 0.01)), SIZE, LIMITS).checks[0].items_needed is None


def test_a_figure_on_its_limit_is_never_told() -> None:
    check = judge(values(spread(0.1 - 1e-6, 0.01)), SIZE, LIMITS).checks[0]
    assert (check.verdict, check.items_needed) == ("undecided", None)


def test_one_chunk_asks_for_at_least_two() -> None:
    check = judge(values(np.full(SIZE, 9.0)), SIZE, LIMITS).checks[0]
    assert check.items_needed is not None and check.items_needed >= 2 * SIZE


def test_tasks_join_the_gate_and_the_worst_verdict_stands() -> None:
    gate = judge(values(spread(0.01, 0.001)), SIZE, LIMITS)
    task = Check(figure="acc", value=0.05, limit=0.03, lower_bound=0.0, upper_bound=0.1, verdict="undecided")
    joined = combine(gate, [task])
    assert (gate.verdict, joined.verdict) == ("pass", "undecided")
    assert joined.checks == (*gate.checks, task)
    assert joined.confidence == gate.confidence
    assert combine(joined, [replace(task, verdict="fail")]).verdict == "fail"
    assert combine(gate, []) == gate

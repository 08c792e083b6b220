"""The gate fails only what is surely too bad, passes only what is surely good enough, and says so otherwise."""

import numpy as np
import pytest

from edgeforge.errors import UnusableInput
from edgeforge.hardware import Gate
from edgeforge.validation.gate import Verdict, judge
from edgeforge.validation.statistics import Estimate, Summary, TokenValues, summarize

LIMITS = Gate(max_mean_kl_divergence=0.10, max_perplexity_ratio=1.05, confidence=0.95)


def summary(kl: Estimate, log_ratio: Estimate, tokens: int = 2040) -> Summary:
    one = Estimate(value=1.0, standard_error=0.0)
    return Summary(
        scored_tokens=tokens,
        perplexity=one,
        reference_perplexity=one,
        perplexity_ratio=one,
        log_perplexity_ratio=log_ratio,
        mean_kl_divergence=kl,
        same_top_token=one,
    )


FINE = Estimate(value=0.01, standard_error=0.001)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.05, 0.01, "pass"),
        (0.09, 0.01, "undecided"),  # 0.09 + 1.645 * 0.01 = 0.1064
        (0.11, 0.01, "undecided"),  # 0.11 - 1.645 * 0.01 = 0.0935
        (0.15, 0.01, "fail"),
        (0.10, 0.0, "pass"),  # at the limit, and certain
        (0.1000001, 0.0, "fail"),
    ],
)
def test_the_one_sided_bounds_decide(value: float, error: float, verdict: Verdict) -> None:
    result = judge(summary(Estimate(value=value, standard_error=error), FINE), LIMITS)
    assert result.checks[0].figure == "mean_kl_divergence"
    assert result.checks[0].verdict == verdict
    assert result.verdict == verdict


def test_the_ratio_is_judged_on_the_log_scale() -> None:
    result = judge(summary(FINE, Estimate(value=0.2, standard_error=0.1)), LIMITS)
    check = result.checks[1]
    assert check.lower_bound == pytest.approx(np.exp(0.2 - 1.6448536 * 0.1))
    assert check.upper_bound == pytest.approx(np.exp(0.2 + 1.6448536 * 0.1))
    assert check.verdict == "undecided"


def test_the_worst_check_is_the_verdict() -> None:
    bad = Estimate(value=0.5, standard_error=0.001)
    unsure = Estimate(value=0.05, standard_error=0.1)
    assert judge(summary(bad, unsure), LIMITS).verdict == "fail"
    assert judge(summary(FINE, unsure), LIMITS).verdict == "undecided"
    assert judge(summary(FINE, FINE), LIMITS).verdict == "pass"


def test_a_handful_of_tokens_decides_nothing() -> None:
    assert judge(summary(Estimate(value=9.0, standard_error=0.0), FINE, tokens=99), LIMITS).verdict == "undecided"


def test_more_confidence_widens_the_bounds() -> None:
    kl = Estimate(value=0.05, standard_error=0.02)
    sure = Gate(max_mean_kl_divergence=0.1, max_perplexity_ratio=1.05, confidence=0.999)
    assert judge(summary(kl, FINE), LIMITS).checks[0].verdict == "pass"
    assert judge(summary(kl, FINE), sure).checks[0].verdict == "undecided"


@pytest.mark.parametrize("confidence", [0.0, 0.49, 1.0, 95.0])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(UnusableInput, match="confidence"):
        judge(summary(FINE, FINE), Gate(max_mean_kl_divergence=1, max_perplexity_ratio=2, confidence=confidence))


def test_a_candidate_exactly_at_its_limit_is_failed_or_passed_as_rarely_as_promised() -> None:
    """Simulated validations whose true divergence is the limit: each wrong verdict comes in at most about 5 %."""
    rng = np.random.default_rng(11)
    trials, n = 3000, 2040
    verdicts: list[Verdict] = []
    for _ in range(trials):
        divergence = rng.gamma(0.3, 0.10 / 0.3, n)
        nll = rng.gamma(1.0, 3.0, n)
        values = TokenValues(reference_nll=nll, candidate_nll=nll, kl_divergence=divergence, same_top=nll > 0)
        verdicts.append(judge(summarize(values), LIMITS).checks[0].verdict)
    assert verdicts.count("fail") / trials < 0.06
    assert verdicts.count("pass") / trials < 0.075  # skewed draws make the upper bound a little short
    assert verdicts.count("undecided") / trials > 0.85

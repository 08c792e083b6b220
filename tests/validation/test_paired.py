"""Paired figures against scipy's, intervals against exact probabilities, and forecasts against what then happens."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, special, stats

from edgeforge.errors import UnusableInput
from edgeforge.validation import proportions, resampling
from edgeforge.validation.paired import difference, judge_loss, judge_ratio, mcnemar, ratio

Values = NDArray[np.float64]


def answers(kept: int, lost: int, gained: int, wrong: int) -> tuple[Values, Values]:
    """0/1 scores of both models with these counts."""
    reference = np.repeat([1.0, 1.0, 0.0, 0.0], [kept, lost, gained, wrong])
    candidate = np.repeat([1.0, 0.0, 1.0, 0.0], [kept, lost, gained, wrong])
    return reference, candidate


@pytest.mark.parametrize("lost", [0, 1, 2, 9, 40, 700])
@pytest.mark.parametrize("gained", [0, 1, 2, 8, 55, 650])
def test_mcnemars_p_value_is_the_binomial_tests(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)


def likeliest_spread(lost: int, gained: int, items: int, loss: float) -> float:
    """The spread of lost - gained under the likeliest P(gained) for a given loss, by numerical search."""

    def surprise(gains: float) -> float:
        return -float(
            special.xlogy(lost, gains + loss)
            + special.xlogy(gained, gains)
            + special.xlogy(items - lost - gained, 1 - 2 * gains - loss)
        )

    room = (max(0.0, -loss), (1 - loss) / 2)
    gains = optimize.minimize_scalar(surprise, bounds=room, method="bounded", options={"xatol": 1e-12}).x
    return math.sqrt(items * (2 * gains + loss - loss * loss))


@pytest.mark.parametrize(("lost", "gained", "items"), [(12, 2, 50), (3, 5, 100), (1, 0, 30), (0, 0, 30), (60, 41, 900)])
@pytest.mark.parametrize("confidence", [0.95, 0.975])
def test_score_bounds_are_where_the_score_test_of_the_likeliest_hypothesis_turns(
    lost: int, gained: int, items: int, confidence: float
) -> None:
    low, high = proportions.score_bounds(lost, gained, items, confidence=confidence)
    z = stats.norm.ppf(confidence)
    assert (lost - gained - 0.5 - items * low) / likeliest_spread(lost, gained, items, low) == pytest.approx(
        z, rel=1e-4
    )
    assert (lost - gained + 0.5 - items * high) / likeliest_spread(lost, gained, items, high) == pytest.approx(
        -z, rel=1e-4
    )


def test_swapping_the_models_mirrors_the_interval() -> None:
    reference, candidate = answers(60, 9, 4, 27)
    change, there = difference(reference, candidate, confidence=0.95)
    back, mirrored = difference(candidate, reference, confidence=0.95)
    assert change == -back == pytest.approx(-0.05)
    assert (there.low, there.high) == pytest.approx((-mirrored.high, -mirrored.low))
    assert there.low < change < there.high


@pytest.mark.parametrize("items", [20, 30, 100, 400])
def test_no_flips_at_all_are_no_certainty(items: int) -> None:
    """Three in `items` (the rule of three) may well be lost and not have been drawn."""
    change, interval = difference(*answers(items, 0, 0, 0), confidence=0.95)
    assert change == 0
    assert interval.high == pytest.approx(-interval.low)
    assert interval.high > 1 - 0.05 ** (1 / items)


def every_table(items: int) -> tuple[Values, Values]:
    lost, gained = np.meshgrid(np.arange(items + 1), np.arange(items + 1), indexing="ij")
    possible = lost + gained <= items
    return lost[possible].astype(float), gained[possible].astype(float)


@pytest.mark.parametrize(("items", "limit"), [(30, 0.03), (60, 0.015), (100, 0.03), (150, 0.03)])
def test_flips_are_judged_wrongly_no_more_often_than_stated(items: int, limit: float) -> None:
    """The exact probability, over every possible outcome, where the true loss is the limit itself."""
    lost, gained = every_table(items)
    reasonable = lost + gained <= 45  # more are improbable below; they count as wrong
    lost, gained = lost[reasonable], gained[reasonable]
    verdicts = np.array(
        [
            judge_loss("acc", *answers(items - int(b + c), int(b), int(c), 0), limit=limit, confidence=0.95).verdict
            for b, c in zip(lost, gained, strict=True)
        ]
    )
    for gains in (0.001, 0.02, 0.05):
        losses = gains + limit
        logs = (
            special.gammaln(items + 1) - special.gammaln(lost + 1) - special.gammaln(gained + 1)
            - special.gammaln(items - lost - gained + 1)
            + lost * math.log(losses) + gained * math.log(gains)
            + (items - lost - gained) * math.log(1 - losses - gains)
        )  # fmt: skip
        p = np.exp(logs)
        unlikely = 1 - p.sum()
        assert unlikely < 1e-3
        assert p[verdicts == "fail"].sum() + unlikely < 0.0525
        assert p[verdicts == "pass"].sum() + unlikely < 0.0525


def test_flips_decide_by_their_bounds() -> None:
    few = judge_loss("acc", *answers(25, 1, 0, 4), limit=0.03, confidence=0.95)
    assert few.verdict == "undecided"
    assert few.items_needed is not None and few.items_needed > 30
    good = judge_loss("acc", *answers(1400, 30, 28, 542), limit=0.03, confidence=0.95)
    assert (good.verdict, good.items_needed) == ("pass", None)
    bad = judge_loss("acc", *answers(1000, 220, 40, 740), limit=0.03, confidence=0.95)
    assert (bad.verdict, bad.items_needed) == ("fail", None)
    assert bad.figure == "acc"
    assert bad.value == pytest.approx(0.09)
    assert bad.lower_bound < bad.value < bad.upper_bound
    assert bad.limit == 0.03


@pytest.mark.parametrize(("losses", "gains"), [(0.045, 0.035), (0.09, 0.03), (0.01, 0.01)])
def test_the_items_asked_for_tell_four_times_in_five(losses: float, gains: float) -> None:
    """Observed on 200 items; the same rates on as many items as were asked for decide with a probability of 0.8."""
    check = judge_loss("acc", *answers(100, round(200 * losses), round(200 * gains), 50), limit=0.03, confidence=0.95)
    assert check.verdict == "undecided"
    items = proportions.items_to_tell(losses * 200, gains * 200, 200, limit=0.03, confidence=0.95, power=0.8)
    rng = np.random.default_rng(3)
    draws = rng.multinomial(round(items), [losses, gains, 1 - losses - gains], size=400)
    bounds = [proportions.score_bounds(b, c, round(items), confidence=0.95) for b, c, _ in draws.tolist()]
    decided = sum(low > 0.03 or high <= 0.03 for low, high in bounds)
    assert 0.74 < decided / 400 < 0.88


def test_a_loss_that_sits_on_the_limit_is_never_told() -> None:
    check = judge_loss("acc", *answers(900, 80, 50, 0), limit=30 / 1030, confidence=0.95)
    assert (check.verdict, check.items_needed) == ("undecided", None)
    close = judge_loss("acc", *answers(900, 80, 50, 0), limit=0.0295, confidence=0.95)
    assert (close.verdict, close.items_needed) == ("undecided", None)


def skewed(n: int, seed: int) -> tuple[Values, Values, Values]:
    rng = np.random.default_rng(seed)
    weights = rng.integers(5, 300, n).astype(float)
    reference = weights * rng.gamma(4.0, 0.6, n)
    return reference, reference + weights * (rng.gamma(0.5, 0.08, n) - 0.01), weights


def test_the_ratio_of_perplexities_is_weighed_by_tokens_and_exact() -> None:
    reference, candidate, weights = skewed(80, 0)
    change, interval = ratio(reference, candidate, weights, confidence=0.95)
    theirs = math.exp(candidate.sum() / weights.sum()) / math.exp(reference.sum() / weights.sum())
    assert change == pytest.approx(theirs)
    assert interval.low < change < interval.high


def test_bounds_agree_with_scipys_where_there_are_many_items() -> None:
    """BCa, from another library: methods differ by far less than the interval is wide."""
    reference, candidate, weights = skewed(1500, 1)
    delta = candidate - reference
    theirs = stats.bootstrap(
        (delta, weights),
        lambda d, w, axis: d.sum(axis) / w.sum(axis),
        paired=True, vectorized=True, n_resamples=2000, confidence_level=0.9, method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    low, high = resampling.bounds(delta, weights, confidence=0.95)
    assert abs(low - theirs.low) < 0.12 * (theirs.high - theirs.low)
    assert abs(high - theirs.high) < 0.12 * (theirs.high - theirs.low)


def test_the_same_scores_and_seed_give_the_same_interval() -> None:
    reference, candidate, weights = skewed(120, 2)
    assert ratio(reference, candidate, weights, confidence=0.95) == ratio(
        reference, candidate, weights, confidence=0.95
    )
    one, other = (difference(reference, candidate, confidence=0.9, seed=seed) for seed in (1, 2))
    assert one != other
    assert one[1].low == pytest.approx(other[1].low, rel=0.05)


def test_equal_weights_make_a_ratio_of_a_difference() -> None:
    reference, candidate, _ = skewed(60, 3)
    change, interval = difference(reference, candidate, confidence=0.95)
    log, whole = ratio(reference, candidate, np.ones(60), confidence=0.95)
    assert math.log(log) == pytest.approx(change)
    assert (math.log(whole.low), math.log(whole.high)) == pytest.approx((interval.low, interval.high))


def test_bounds_of_skewed_figures_hold_nearly_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    trials, n = 300, 60
    above = below = 0
    for _ in range(trials):
        values = rng.gamma(0.3, 1 / 0.3, n) - 1  # mean 0, skewness 3.7
        low, high = resampling.bounds(values, np.ones(n), confidence=0.95)
        above += low > 0
        below += high < 0
    assert above / trials < 0.08
    assert below / trials < 0.105  # Student's t: 0.08 to 0.11 even in the long run


def test_scores_between_right_and_wrong_that_hardly_differ_are_no_certainty_either() -> None:
    rng = np.random.default_rng(5)
    reference = rng.random(100)
    check = judge_loss("f1", reference, reference.copy(), limit=0.02, confidence=0.95)
    assert check.verdict == "undecided"
    assert check.upper_bound == pytest.approx(2.7055 / 102.7055, rel=0.05)


def test_the_ratio_is_a_test_on_the_log_scale() -> None:
    reference, candidate, weights = skewed(200, 6)
    change, _ = ratio(reference, candidate, weights, confidence=0.95)
    verdicts = [
        judge_ratio("perplexity", reference, candidate, weights, limit=limit, confidence=0.95)
        for limit in (1.0001, change * 1.0005, 1.2)
    ]
    assert [check.verdict for check in verdicts] == ["fail", "undecided", "pass"]
    assert verdicts[1].items_needed is None
    assert all(check.value == pytest.approx(change) for check in verdicts)


def test_few_items_of_a_perplexity_tell_nothing_but_how_many_would() -> None:
    reference, candidate, weights = skewed(12, 7)
    check = judge_ratio("perplexity", reference, candidate, weights, limit=3.0, confidence=0.95)
    assert (check.verdict, check.items_needed) == ("undecided", 30)


def test_more_confidence_widens() -> None:
    intervals = [difference(*answers(60, 9, 4, 27), confidence=confidence)[1] for confidence in (0.8, 0.9, 0.95, 0.99)]
    assert all(a.low > b.low and a.high < b.high for a, b in pairwise(intervals))


def test_scores_that_are_no_pairs_are_refused() -> None:
    ones = np.ones(3)
    with pytest.raises(ValueError, match="pairs"):
        difference(ones, np.ones(4), confidence=0.95)
    with pytest.raises(ValueError, match="pairs"):
        judge_loss("acc", np.ones(0), np.ones(0), limit=0.03, confidence=0.95)
    with pytest.raises(ValueError, match="finite"):
        ratio(ones, np.array([1.0, np.nan, 1.0]), ones, confidence=0.95)
    with pytest.raises(ValueError, match="positive"):
        ratio(ones, ones, np.zeros(3), confidence=0.95)
    with pytest.raises(UnusableInput, match="confidence"):
        judge_loss("acc", ones, ones, limit=0.03, confidence=95)

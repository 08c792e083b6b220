"""A task's figures, item by item, out of the samples that lm-eval logs, and compared in pairs.

lm-eval's own aggregations say what a figure is: a mean over items (acc, exact_match, pass@1), a perplexity over items
(LAMBADA), or one over words or bytes (WikiText). Figures of other kinds, such as BLEU of a whole corpus, are no mean
of the items' and are left out; a task that has no others is refused.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.validation import paired
from edgeforge.validation.findings import Interval, Metric
from edgeforge.validation.gate import Check, Limits

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

Values = NDArray[np.float64]
Sample = Mapping[str, Any]
Kind = Literal["mean", "perplexity", "bits"]

KINDS: dict[str, Kind] = {
    "mean": "mean",
    "nanmean": "mean",
    "perplexity": "perplexity",
    "weighted_perplexity": "perplexity",
    "bits_per_byte": "bits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One figure of one model: of a mean the scores [n]; else the items' negative log-likelihoods [n] in nats, and how
    many tokens, words or bytes they are of.
    """

    name: str
    kind: Kind
    higher_is_better: bool
    values: Values
    weights: Values

    @property
    def figure(self) -> float:
        """As lm-eval aggregates it."""
        average = float(self.values.sum() / self.weights.sum())
        if self.kind == "mean":
            return average
        return math.exp(min(average, 700.0)) if self.kind == "perplexity" else average / math.log(2)

    @property
    def by_item(self) -> tuple[float, ...]:
        """The scores; of perplexities, nats per word or byte."""
        return tuple(float(value) for value in self.values / self.weights)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Of perplexities: how many words or bytes each item has."""
        return () if self.kind == "mean" else tuple(float(weight) for weight in self.weights)


def check_figures(name: str, task: "ConfigurableTask") -> None:
    """UnusableInput where none of the task's figures can be compared item by item."""
    aggregations = task.aggregation()
    if not any(_kind(aggregations.get(metric)) for metric in aggregations):
        raise UnusableInput(
            f"{name} has no figure that is an average over its items, so two models cannot be compared on it",
            hint=f"its figures are {', '.join(map(str, aggregations))}",
        )


def read_scores(task: "ConfigurableTask", samples: Sequence[Sample]) -> list[Scores]:
    """Every comparable figure of one part's samples, in lm-eval's order; means stand before perplexities."""
    filters = list(dict.fromkeys(str(sample["filter"]) for sample in samples))
    found = []
    for chosen in filters:
        items = [sample for sample in samples if sample["filter"] == chosen]
        for metric in items[0]["metrics"]:
            kind = _kind(task.aggregation().get(metric, "mean"))
            if kind is None or not all(metric in item for item in items):
                continue
            name = metric if len(filters) == 1 else f"{metric},{chosen}"
            values, weights = _values(kind, [item[metric] for item in items])
            better = bool(task.higher_is_better().get(metric, True))
            found.append(Scores(name=name, kind=kind, higher_is_better=better, values=values, weights=weights))
    return sorted(found, key=lambda scores: scores.kind != "mean")


def join(parts: Sequence[Sequence[Scores]]) -> list[Scores]:
    """A group's figures: over all items of its parts, each item counting once (as lm-eval weights MMLU by size)."""
    common = [scores.name for scores in parts[0] if all(any(s.name == scores.name for s in part) for part in parts)]
    joined = []
    for name in common:
        same = [next(scores for scores in part if scores.name == name) for part in parts]
        joined.append(
            Scores(
                name=name,
                kind=same[0].kind,
                higher_is_better=same[0].higher_is_better,
                values=np.concatenate([scores.values for scores in same]),
                weights=np.concatenate([scores.weights for scores in same]),
            )
        )
    return joined


def compare(reference: Scores, candidate: Scores, *, confidence: float, seed: int) -> Metric:
    """The figure of both models and what changed."""
    if reference.kind == "mean":
        change, interval = paired.difference(reference.values, candidate.values, confidence=confidence, seed=seed)
    else:
        change, interval = paired.ratio(
            reference.values, candidate.values, reference.weights, confidence=confidence, seed=seed
        )
    if reference.kind == "bits":  # the logarithm of a ratio is a difference of bits
        change = math.log2(change)
        interval = Interval(low=math.log2(interval.low), high=math.log2(interval.high))
    return Metric(
        name=reference.name,
        higher_is_better=reference.higher_is_better,
        reference=reference.figure,
        candidate=candidate.figure,
        comparison="ratio" if reference.kind == "perplexity" else "difference",
        change=change,
        interval=interval,
    )


def judge(task: str, reference: Scores, candidate: Scores, limits: Limits) -> Check:
    """The gate's check: of a mean the loss against `max_accuracy_loss`, else the perplexities' ratio."""
    figure = f"{task} {reference.name}"
    if reference.kind != "mean":
        return paired.judge_ratio(
            figure,
            reference.values,
            candidate.values,
            reference.weights,
            limit=limits.max_perplexity_ratio,
            confidence=limits.confidence,
        )
    sign = 1.0 if reference.higher_is_better else -1.0
    return paired.judge_loss(
        figure,
        sign * reference.values,
        sign * candidate.values,
        limit=limits.max_accuracy_loss,
        confidence=limits.confidence,
    )


def _kind(aggregation: object) -> Kind | None:
    """By the name of lm-eval's aggregation function."""
    name = aggregation if isinstance(aggregation, str) else getattr(aggregation, "__name__", "")
    return KINDS.get(name)


def _values(kind: Kind, items: Sequence[Any]) -> tuple[Values, Values]:
    if kind == "mean":
        return np.array([float(item) for item in items]), np.ones(len(items))
    pairs = [item if isinstance(item, tuple) else (item, 1) for item in items]
    return np.array([-float(value) for value, _ in pairs]), np.array([float(weight) for _, weight in pairs])

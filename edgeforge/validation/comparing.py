"""Two bundles' reports side by side: what B does that A does not, on the same text and on the same items.

Changes are B less A, or B over A for perplexities, and are paired: chunk by chunk on text (the mean over equally long
chunks, with Student's t), item by item on tasks (as `paired` does). Intervals are two-sided, at the stricter of both
gates' confidences. What was not measured on the same ground is left out, with a note that says so.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.validation import paired
from edgeforge.validation.comparison import (
    Better,
    CheckPair,
    ComparisonDocument,
    FigurePair,
    ProbePair,
    Side,
    TaskPair,
    ValuePair,
    comparison_to_json,
)
from edgeforge.validation.findings import Comparison, Interval, TaskFindings
from edgeforge.validation.page.comparison import render_comparison_page
from edgeforge.validation.report import ValidationReport
from edgeforge.validation.statistics import mean, student_t_quantile
from edgeforge.validation.wording import judged, task_title

__all__ = ["compare_reports", "comparison_to_json", "figure_pair", "render_comparison_page"]

Values = NDArray[np.float64]


def compare_reports(a: ValidationReport, b: ValidationReport, names: tuple[str, str]) -> ComparisonDocument:
    """`names`: what to call the bundles. UnusableInput where neither a text nor a task's items are the same."""
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    confidence = max(a.gate.confidence, b.gate.confidence)
    reasons = (*_text_differs(a, b), *_tasks_differ(a, b))
    figures = () if any(_text_differs(a, b)) else _figures(a, b, confidence)
    tasks = tuple(_task_pairs(a, b, confidence))
    if not figures and not tasks:
        raise UnusableInput(
            f"{names[0]} and {names[1]} were not validated on the same ground: {'; '.join(reasons)}",
            hint="validate both with the same --reference, --data and --tasks, then compare again",
        )
    return ComparisonDocument(
        a=_side(a, names[0]),
        b=_side(b, names[1]),
        confidence=confidence,
        figures=figures,
        checks=_checks(a, b),
        tasks=tasks,
        languages=() if a.reference.fingerprint != b.reference.fingerprint else _languages(a, b),
        probes=_probes(a, b),
        costs=_costs(a, b),
        notes=tuple(f"Left out: {reason}." for reason in reasons),
    )


def _side(report: ValidationReport, name: str) -> Side:
    return Side(
        name=name,
        target=report.target,
        manifest_sha256=report.manifest_sha256,
        edgeforge_version=report.edgeforge_version,
        verdict=report.verdict,
    )


def _text_differs(a: ValidationReport, b: ValidationReport) -> Iterator[str]:
    """What keeps figures on text from being compared."""
    if a.reference.fingerprint != b.reference.fingerprint:
        yield "figures on text, whose originals are different checkpoints"
    elif a.text.sha256 != b.text.sha256:
        yield f"figures on text, which is another one ({a.text.name} and {b.text.name})"
    elif _scored(a) != _scored(b):
        yield "figures on text, of which other tokens were scored (protocol, context or number of chunks)"


def _scored(report: ValidationReport) -> tuple[str, int, int, int]:
    return report.protocol, report.context, len(report.chunks), report.scored_tokens


def _figures(a: ValidationReport, b: ValidationReport, confidence: float) -> tuple[FigurePair, ...]:
    pairs = tuple(zip(a.chunks, b.chunks, strict=True))
    logs = np.array([math.log(y.perplexity / x.perplexity) for x, y in pairs])
    divergence = np.array([y.mean_kl_divergence - x.mean_kl_divergence for x, y in pairs])
    same = np.array([y.same_top_token - x.same_top_token for x, y in pairs])
    ratio = _over_chunks(logs, confidence)
    return (
        figure_pair("perplexity", a.perplexity, b.perplexity, _exponential(ratio), comparison="ratio"),
        figure_pair(
            "mean_kl_divergence", a.mean_kl_divergence, b.mean_kl_divergence, _over_chunks(divergence, confidence)
        ),
        figure_pair("median_kl_divergence", a.median_kl_divergence, b.median_kl_divergence, None),
        figure_pair("p99_kl_divergence", a.p99_kl_divergence, b.p99_kl_divergence, None),
        figure_pair(
            "same_top_token", a.same_top_token, b.same_top_token, _over_chunks(same, confidence), higher_is_better=True
        ),
    )


def figure_pair(
    name: str,
    a: float,
    b: float,
    interval: Interval | None,
    *,
    comparison: Comparison = "difference",
    higher_is_better: bool = False,
) -> FigurePair:
    """The change from A to B, and whose figure is better where the interval lies on one side of no change."""
    neutral = 1.0 if comparison == "ratio" else 0.0
    better: Better | None = None
    if interval is not None and (interval.low > neutral or interval.high < neutral):
        better = "b" if (interval.low > neutral) == higher_is_better else "a"
    return FigurePair(
        name=name,
        a=a,
        b=b,
        comparison=comparison,
        higher_is_better=higher_is_better,
        change=b / a if comparison == "ratio" else b - a,
        interval=interval,
        better=better,
    )


def _over_chunks(values: Values, confidence: float) -> Interval | None:
    """Student's interval of the mean of values [n]; None for one chunk, whose spread is unknown."""
    if len(values) < 2:
        return None
    estimate = mean(values)
    margin = student_t_quantile((1 + confidence) / 2, len(values) - 1) * estimate.standard_error
    return Interval(low=estimate.value - margin, high=estimate.value + margin)


def _exponential(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(low=math.exp(interval.low), high=math.exp(interval.high))


def _common(a: ValidationReport, b: ValidationReport) -> Iterator[tuple[TaskFindings, TaskFindings]]:
    of_b = {task.task: task for task in b.findings.tasks}
    for task in a.findings.tasks:
        if task.task in of_b:
            yield task, of_b[task.task]


def _tasks_differ(a: ValidationReport, b: ValidationReport) -> Iterator[str]:
    """What keeps tasks from being compared, task by task."""
    asked = [{task.task for task in report.findings.tasks} for report in (a, b)]
    for name in sorted(asked[0] ^ asked[1]):
        yield f"{task_title(name)}, which only {'A' if name in asked[0] else 'B'} was asked"
    for x, y in _common(a, b):
        reason = _asked_differently(x, y)
        if reason is not None:
            yield f"{task_title(x.task)}, {reason}"


def _asked_differently(x: TaskFindings, y: TaskFindings) -> str | None:
    if x.subset.sha256 != y.subset.sha256 or len(x.candidate_scores) != len(y.candidate_scores):
        return f"whose items are others ({x.subset.items:,} and {y.subset.items:,})"
    if (x.num_fewshot, x.chat_template) != (y.num_fewshot, y.chat_template):
        return "which was asked with other examples or another template"
    if x.metrics[0].name != y.metrics[0].name:
        return f"which is told by {x.metrics[0].name} and by {y.metrics[0].name}"
    return None


def _task_pairs(a: ValidationReport, b: ValidationReport, confidence: float) -> Iterator[TaskPair]:
    for x, y in _common(a, b):
        if _asked_differently(x, y) is None:
            yield _task_pair(x, y, confidence)


def _task_pair(x: TaskFindings, y: TaskFindings, confidence: float) -> TaskPair:
    metric, other = x.metrics[0], y.metrics[0]
    first, second = np.array(x.candidate_scores), np.array(y.candidate_scores)
    right_or_wrong = bool(np.isin(np.concatenate([first, second]), (0.0, 1.0)).all())
    lost, gained = int((first > second).sum()), int((second > first).sum())
    if metric.comparison == "ratio":
        interval = _ratio_interval(x, y, confidence)
    else:
        _, interval = paired.difference(first, second, confidence=confidence)
    return TaskPair(
        task=x.task,
        subset_sha256=x.subset.sha256,
        items=x.subset.items,
        reference=metric.reference,
        figure=figure_pair(
            metric.name,
            metric.candidate,
            other.candidate,
            interval,
            comparison=metric.comparison,
            higher_is_better=metric.higher_is_better,
        ),
        lost=lost if right_or_wrong else None,
        gained=gained if right_or_wrong else None,
        p_value=paired.mcnemar(lost, gained) if right_or_wrong else None,
    )


def _ratio_interval(x: TaskFindings, y: TaskFindings, confidence: float) -> Interval | None:
    """The interval of the perplexities' ratio; None of reports that do not know how long the items are."""
    if not x.item_lengths or x.item_lengths != y.item_lengths:
        return None
    lengths = np.array(x.item_lengths)
    first, second = (lengths * np.array(each.candidate_scores) for each in (x, y))
    _, interval = paired.ratio(first, second, lengths, confidence=confidence)
    return interval


def _checks(a: ValidationReport, b: ValidationReport) -> tuple[CheckPair, ...]:
    first, second = ({each.key: each for each in judged(report)} for report in (a, b))
    keys = dict.fromkeys([*first, *second])
    return tuple(
        CheckPair(
            key=key,
            name=(first.get(key) or second[key]).name,
            a=first[key].check.verdict if key in first else None,
            b=second[key].check.verdict if key in second else None,
        )
        for key in keys
    )


def _probes(a: ValidationReport, b: ValidationReport) -> tuple[ProbePair, ...]:
    first, second = ({probe.name: probe for probe in report.findings.probes} for report in (a, b))
    return tuple(
        ProbePair(
            name=name,
            title=(first.get(name) or second[name]).title,
            a=first[name].verdict if name in first else None,
            b=second[name].verdict if name in second else None,
        )
        for name in dict.fromkeys([*first, *second])
    )


def _languages(a: ValidationReport, b: ValidationReport) -> tuple[ValuePair, ...]:
    of_b = {row.code: row for row in b.findings.languages}
    return tuple(
        ValuePair(name=row.name, a=row.mean_kl_divergence, b=of_b[row.code].mean_kl_divergence)
        for row in a.findings.languages
        if row.code in of_b and row.tokens == of_b[row.code].tokens
    )


def _costs(a: ValidationReport, b: ValidationReport) -> tuple[ValuePair, ...]:
    x, y = a.findings.size_and_speed, b.findings.size_and_speed
    if x is None or y is None:
        return ()
    return (
        ValuePair(name="weight_bytes", a=x.candidate.weight_bytes, b=y.candidate.weight_bytes),
        ValuePair(name="prefill_tokens_per_s", a=x.candidate.prefill_tokens_per_s, b=y.candidate.prefill_tokens_per_s),
        ValuePair(name="decode_tokens_per_s", a=x.candidate.decode_tokens_per_s, b=y.candidate.decode_tokens_per_s),
    )

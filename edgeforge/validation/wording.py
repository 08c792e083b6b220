"""What a report says in words: names, figures with their units, and the sentence of every check.

The page, the JUnit file and the comparison share them, so that a figure has one name and one spelling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgeforge.validation.findings import Group, Metric, TaskFindings
from edgeforge.validation.gate import Check
from edgeforge.validation.numerals import MINUS, decimals, percent, signed
from edgeforge.validation.report import ValidationReport

VERDICTS = {"pass": "pass", "undecided": "too few items to tell", "fail": "fail"}
BRIEF_VERDICTS = {**VERDICTS, "undecided": "too few items"}
TEXT_FIGURES = {"mean_kl_divergence": "mean KL divergence", "perplexity_ratio": "perplexity ratio"}
TASKS = {
    "arc_challenge": "ARC Challenge",
    "arc_easy": "ARC Easy",
    "gsm8k": "GSM8K",
    "hellaswag": "HellaSwag",
    "humaneval": "HumanEval",
    "lambada_openai": "LAMBADA",
    "mmlu": "MMLU",
    "wikitext": "WikiText-2",
}
METRICS = {
    "acc": "accuracy",
    "acc_norm": "normalized accuracy",
    "bits_per_byte": "bits per byte",
    "byte_perplexity": "perplexity per byte",
    "exact_match": "exact match",
    "flexible-extract": "flexible",
    "pass@1": "pass at 1",
    "strict-match": "strict",
    "word_perplexity": "perplexity per word",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A check as people read it. `asked`: how many `items` (tokens of the text, items of a task) were scored.

    `sentence` says it whole; `brief` names the figure, its value and its limit.
    """

    group: Literal["text", "task"]
    key: str
    name: str
    check: Check
    asked: int
    items: str
    value: str
    limit: str
    bounds: str
    brief: str
    sentence: str


def judged(report: ValidationReport) -> tuple[Judged, ...]:
    """Every check of the gate: those on text, then each task's."""
    of_tasks = [task.check for task in report.findings.tasks]
    on_text = [check for check in report.gate.checks if check not in of_tasks]
    return (
        *(_judged_text(check, report.scored_tokens) for check in on_text),
        *(judged_task(task) for task in report.findings.tasks),
    )


def _judged_text(check: Check, tokens: int) -> Judged:
    name = TEXT_FIGURES.get(check.figure, check.figure.replace("_", " "))
    unit = " nats" if check.figure == "mean_kl_divergence" else ""

    def figure(value: float) -> str:
        return f"{decimals(value, 5)}{unit}"

    return _judge("text", check.figure, name, check, tokens, "tokens", figure, f"{check.limit:g}{unit}")


def judged_task(task: TaskFindings) -> Judged:
    """The task's check; a loss of a share is told in percentage points."""
    metric = task.metrics[0]
    title, name = task_title(task.task), metric_title(metric.name)
    named = f"ratio of {title}'s {name}" if metric.comparison == "ratio" else f"loss of {name} on {title}"
    figure = _points if is_share(metric) else _plain
    key = f"{task.task} {metric.name}"
    return _judge("task", key, named, task.check, task.subset.items, "items", figure, figure(task.check.limit))


def _judge(
    group: Literal["text", "task"],
    key: str,
    name: str,
    check: Check,
    asked: int,
    items: str,
    figure: Callable[[float], str],
    limit: str,
) -> Judged:
    value, low, high = figure(check.value), figure(check.lower_bound), figure(check.upper_bound)
    return Judged(
        group=group,
        key=key,
        name=name,
        check=check,
        asked=asked,
        items=items,
        value=value,
        limit=limit,
        bounds=f"{low.split()[0]} to {high.split()[0]}",
        brief=f"{name} {value}, limit {limit}",
        sentence=_sentence(check, name, value, limit, (low, high), (asked, items)),
    )


def _sentence(check: Check, name: str, value: str, limit: str, bounds: tuple[str, str], asked: tuple[int, str]) -> str:
    low, high = bounds
    subject = f"The {name} is {value}"
    if check.verdict == "pass":
        return f"{subject}, and even its upper bound of {high} keeps the limit of {limit}."
    if check.verdict == "fail":
        return f"{subject}, and even its lower bound of {low} exceeds the limit of {limit}."
    return f"{subject} (bounds {low} to {high}, limit {limit}): {too_few(check, *asked)}."


def too_few(check: Check, asked: int, items: str) -> str:
    """`60 items are too few to tell; about 1,200 would do`"""
    need = "" if check.items_needed is None else f"; about {check.items_needed:,} would do"
    return f"{asked:,} {items} are too few to tell{need}"


def verdict_sentence(report: ValidationReport) -> str:
    """The whole report in one sentence, for somebody who reads no other."""
    checks, verdict = judged(report), report.verdict
    decisive = [each for each in checks if each.check.verdict == verdict]
    if verdict == "pass":
        sure = f"with {100 * report.gate.confidence:g}\N{NO-BREAK SPACE}% confidence"
        return f"Yes: it keeps {_all(len(checks))} of its target's limits, {sure}."
    if verdict == "fail":
        share = f" on {len(decisive)} of {len(checks)} figures" if 0 < len(decisive) < len(checks) else ""
        detail = f": {'; '.join(each.brief for each in decisive)}" if decisive else ""
        return f"No: it lost more than its target allows{share}{detail}."
    kept = len(checks) - len(decisive)
    others = f"it keeps {kept} of {len(checks)} limits, but for the others " if 0 < kept < len(checks) else ""
    detail = "; ".join(f"{each.name} ({_short_of(each)})" for each in decisive)
    return f"Not proven yet: {others}there were too few items to tell" + (f": {detail}." if detail else ".")


def probe_warning(report: ValidationReport) -> str | None:
    """`2 of 8 probes failed: Needles, JSON answers`; None where none did. The gate does not count them."""
    probes = report.findings.probes
    failed = [probe.title for probe in probes if probe.verdict == "fail"]
    return f"{len(failed)} of {len(probes)} probes failed: {', '.join(failed)}" if failed else None


def counted(number: int, noun: str) -> str:
    """`1 chunk`, `1,200 chunks`"""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _all(checks: int) -> str:
    return {1: "the one", 2: "both"}.get(checks, f"all {checks}")


def _short_of(each: Judged) -> str:
    need = each.check.items_needed
    return f"{each.asked:,} {each.items}" + ("" if need is None else f", about {need:,} would do")


def task_title(task: str) -> str:
    """How papers spell it."""
    return TASKS.get(task, task)


def metric_title(name: str) -> str:
    """`exact_match,strict-match` -> `exact match (strict)`; lm-eval's own word where there is no better."""
    first, *filters = (METRICS.get(part, part.replace("_", " ")) for part in name.split(",") if part != "none")
    return first + "".join(f" ({each})" for each in filters)


def is_share(metric: Metric) -> bool:
    """Whether it counts right answers, so that percent is its unit."""
    within = 0.0 <= metric.reference <= 1.0 and 0.0 <= metric.candidate <= 1.0
    return metric.comparison == "difference" and metric.higher_is_better and within


def value_text(metric: Metric, value: float) -> str:
    """`31.4 %`, or the figure as it is."""
    return percent(value) if is_share(metric) else f"{value:#.4g}".rstrip(".")


def change_text(metric: Metric, change: float) -> str:
    """`−1.2 points`; of a ratio `× 1.0043`."""
    if metric.comparison == "ratio":
        return f"\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{decimals(change, 4)}"
    return f"{signed(100 * change, 1)}\N{NO-BREAK SPACE}points" if is_share(metric) else signed(change, 4)


def interval_text(metric: Metric) -> str:
    """`−3.1 to +0.7`, in the change's unit."""
    low, high = metric.interval.low, metric.interval.high
    if metric.comparison == "ratio":
        return f"{decimals(low, 4)} to {decimals(high, 4)}"
    digits, factor = (1, 100.0) if is_share(metric) else (4, 1.0)
    return f"{signed(factor * low, digits)} to {signed(factor * high, digits)}"


def _points(loss: float) -> str:
    text = f"{100 * loss:.1f}"
    text = text.lstrip("-") if float(text) == 0.0 else text.replace("-", MINUS)
    return f"{text} points"


def _plain(value: float) -> str:
    return decimals(value, 4).replace("-", MINUS)


def task_facts(task: TaskFindings) -> str:
    """`285 of 14,042 items, 5-shot, with the chat template`"""
    subset = task.subset
    drawn = f"all {subset.items:,}" if subset.items == subset.available else f"{subset.items:,} of {subset.available:,}"
    return f"{drawn} items, {task.num_fewshot}-shot" + (", with the chat template" if task.chat_template else "")


def group_change(metric: Metric, group: Group) -> str:
    """The change of a part's average, in the metric's unit."""
    if metric.comparison == "ratio":
        return change_text(metric, group.candidate / group.reference) if group.reference else "\N{EN DASH}"
    return change_text(metric, group.candidate - group.reference)

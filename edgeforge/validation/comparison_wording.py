"""How a comparison of two bundles is told: its sentence, and rows that a page and a terminal can both show."""

from dataclasses import dataclass

from edgeforge.validation.comparison import Better, ComparisonDocument, FigurePair, TaskPair
from edgeforge.validation.findings import Interval
from edgeforge.validation.numerals import (
    decimals,
    p_text,
    percent,
    perplexity_text,
    rate_text,
    signed,
    size_text,
    times,
)
from edgeforge.validation.wording import metric_title, task_title

FIGURES = {
    "perplexity": "Perplexity",
    "mean_kl_divergence": "Mean KL divergence",
    "median_kl_divergence": "Median KL divergence",
    "p99_kl_divergence": "99th percentile of KL divergence",
    "same_top_token": "Same top token",
}
COSTS = {
    "weight_bytes": ("Weights", "smaller", "larger"),
    "prefill_tokens_per_s": ("Reading a prompt, tokens/s", "faster", "slower"),
    "decode_tokens_per_s": ("Writing an answer, tokens/s", "faster", "slower"),
}
DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure of both as text. `remark`: what its change means, or how many answers changed."""

    name: str
    a: str
    b: str
    change: str
    interval: str
    better: str
    remark: str = ""


def headline(document: ComparisonDocument) -> str:
    """One sentence: which bundle is closer to the original, as far as the figures tell."""
    a, b = document.a.name, document.b.name
    parts = []
    divergence = next((each for each in document.figures if each.name == "mean_kl_divergence"), None)
    if divergence is not None and divergence.better is None:
        parts.append(f"on the text, {a} and {b} cannot be told apart by their divergence from the original")
    elif divergence is not None:
        closer, other = (a, b) if divergence.better == "a" else (b, a)
        values = sorted((divergence.a, divergence.b))
        parts.append(
            f"on the text, {closer} is closer to the original than {other} (mean KL divergence {values[0]:.5f} "
            f"instead of {values[1]:.5f} nats)"
        )
    if document.tasks:
        parts.append(_on_tasks(document))
    sentence = "; ".join(parts)
    return sentence[:1].upper() + sentence[1:] + "."


def _on_tasks(document: ComparisonDocument) -> str:
    a, b = document.a.name, document.b.name
    count = len(document.tasks)
    won = [sum(task.figure.better == side for task in document.tasks) for side in ("a", "b")]
    if not any(won):
        return f"on {_tasks(count)} in common, neither is better beyond doubt"
    told = ", ".join(f"{name} is better on {number}" for name, number in zip((a, b), won, strict=True) if number)
    return f"of {_tasks(count)} in common, {told}"


def _tasks(count: int) -> str:
    return "the one task" if count == 1 else f"the {count} tasks"


def figure_rows(document: ComparisonDocument) -> tuple[Row, ...]:
    """The figures on text."""
    return tuple(_row(FIGURES[each.name], each) for each in document.figures)


def task_rows(document: ComparisonDocument) -> tuple[Row, ...]:
    """The tasks on the same items."""
    return tuple(_task_row(task) for task in document.tasks)


def cost_rows(document: ComparisonDocument) -> tuple[Row, ...]:
    """Size and speed."""
    rows = []
    for each in document.costs:
        name, word, opposite = COSTS[each.name]
        weight = each.name == "weight_bytes"
        text = (size_text(int(each.a)), size_text(int(each.b))) if weight else (rate_text(each.a), rate_text(each.b))
        change = times(each.a, each.b, word, opposite) if weight else times(each.b, each.a, word, opposite)
        rows.append(Row(name=name, a=text[0], b=text[1], change=change, interval="", better=""))
    return tuple(rows)


def better_text(better: Better | None) -> str:
    """Whose is better, or that nobody can say."""
    return "cannot be told" if better is None else f"{better.upper()} is better"


def _task_row(task: TaskPair) -> Row:
    flips = "" if task.lost is None else f"{task.lost:,} lost, {task.gained:,} gained, p {p_text(task.p_value)}"
    name = f"{task_title(task.task)}, {metric_title(task.figure.name)}"
    return _row(name, task.figure, remark=f"{task.items:,} items" + (f"; {flips}" if flips else ""))


def _row(name: str, pair: FigurePair, remark: str = "") -> Row:
    return Row(
        name=name,
        a=_value(pair, pair.a),
        b=_value(pair, pair.b),
        change=change_of(pair),
        interval=_interval(pair, pair.interval),
        better=DASH if pair.interval is None else better_text(pair.better),
        remark=remark,
    )


def is_share(pair: FigurePair) -> bool:
    """Whether percent is its unit."""
    within = 0.0 <= pair.a <= 1.0 and 0.0 <= pair.b <= 1.0
    return pair.comparison == "difference" and pair.higher_is_better and within


def _value(pair: FigurePair, value: float) -> str:
    if is_share(pair):
        return percent(value)
    return perplexity_text(value) if pair.comparison == "ratio" else f"{value:.5f}"


def change_of(pair: FigurePair) -> str:
    """`+1.2 points`, `× 1.0043`, `−0.00120`"""
    if pair.comparison == "ratio":
        return f"\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{decimals(pair.change, 4)}"
    return f"{signed(100 * pair.change, 1)}\N{NO-BREAK SPACE}points" if is_share(pair) else signed(pair.change, 5)


def _interval(pair: FigurePair, interval: Interval | None) -> str:
    if interval is None:
        return ""
    if pair.comparison == "ratio":
        return f"{decimals(interval.low, 4)} to {decimals(interval.high, 4)}"
    digits, factor = (1, 100.0) if is_share(pair) else (5, 1.0)
    return f"{signed(factor * interval.low, digits)} to {signed(factor * interval.high, digits)}"

"""The tasks' part of the page: forest plots of what changed, one for each unit."""

from collections.abc import Sequence
from typing import Literal

from edgeforge.validation.findings import TaskFindings
from edgeforge.validation.page.charts import Estimate, forest
from edgeforge.validation.page.shapes import Chart
from edgeforge.validation.wording import BRIEF_VERDICTS, change_text, is_share, metric_title, task_title

Kind = Literal["points", "ratio", "plain"]
TITLES: dict[Kind, tuple[str, str]] = {
    "points": ("Change of the share of right answers, in percentage points", "percentage points"),
    "ratio": ("Ratio of the bundle's perplexity to the original's", "times the original's"),
    "plain": ("Change of the figure", "the figure's own unit"),
}


def forests(tasks: Sequence[TaskFindings]) -> tuple[Chart, ...]:
    """A plot of every unit that occurs, tasks in their order."""
    charts = []
    for kind, (title, unit) in TITLES.items():
        rows = [_estimate(task, kind) for task in tasks if _kind(task) == kind]
        if rows:
            charts.append(forest(f"changes-{kind}", title, rows, neutral=1.0 if kind == "ratio" else 0.0, unit=unit))
    return tuple(charts)


def _kind(task: TaskFindings) -> Kind:
    metric = task.metrics[0]
    return "ratio" if metric.comparison == "ratio" else "points" if is_share(metric) else "plain"


def _estimate(task: TaskFindings, kind: Kind) -> Estimate:
    """A loss turned into a change: the check's bounds and limit change places and signs where higher is better."""
    metric, check = task.metrics[0], task.check
    factor = 100.0 if kind == "points" else 1.0
    loses_down = kind != "ratio" and metric.higher_is_better
    sign = -factor if loses_down else factor
    return Estimate(
        label=task_title(task.task),
        more=f", {metric_title(metric.name)}",
        value=factor * metric.change,
        value_text=change_text(metric, metric.change),
        interval=(factor * metric.interval.low, factor * metric.interval.high),
        bounds=(sign * check.lower_bound, sign * check.upper_bound),
        limit=sign * check.limit,
        verdict=check.verdict,
        verdict_text=BRIEF_VERDICTS[check.verdict],
    )

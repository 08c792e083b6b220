"""Two bundles side by side, as a page that looks like the report's."""

from edgeforge.validation import comparison_wording as told
from edgeforge.validation.comparison import ComparisonDocument, TaskPair
from edgeforge.validation.page.charts import Estimate, forest
from edgeforge.validation.page.environment import environment
from edgeforge.validation.page.shapes import Chart
from edgeforge.validation.wording import metric_title, task_title

STYLES = {"a": "fail", "b": "pass", None: "undecided"}


def render_comparison_page(document: ComparisonDocument) -> str:
    """The page; the same document gives the same bytes."""
    template = environment().get_template("comparison.html.jinja")
    return template.render(document=document, told=told, chart=_chart(document))


def _chart(document: ComparisonDocument) -> Chart | None:
    """What changes from A to B on every task that counts right answers."""
    rows = [_estimate(task) for task in document.tasks if told.is_share(task.figure)]
    if not rows:
        return None
    title = "Change of the share of right answers from A to B, in percentage points"
    return forest("changes", title, rows, neutral=0.0, unit="percentage points")


def _estimate(task: TaskPair) -> Estimate:
    pair = task.figure
    interval = pair.interval
    ends = (100 * pair.change,) * 2 if interval is None else (100 * interval.low, 100 * interval.high)
    return Estimate(
        label=task_title(task.task),
        more=f", {metric_title(pair.name)}",
        value=100 * pair.change,
        value_text=told.change_of(pair),
        interval=ends,
        bounds=None,
        limit=None,
        verdict=STYLES[pair.better],
        verdict_text=told.better_text(pair.better),
    )

"""The page's charts: where every bar, dot and label of each goes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeforge.validation.findings import Language, Layer, PositionRange
from edgeforge.validation.page.shapes import (
    AXIS,
    PLOT,
    ROW,
    Chart,
    Dot,
    Label,
    Line,
    Rect,
    UprightScale,
    steps,
    thinned,
    tick_label,
)
from edgeforge.validation.report import Histogram

SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A row of a forest plot: the figure and its two-sided interval; where it is judged, its bounds and the limit."""

    label: str
    more: str
    value: float
    value_text: str
    interval: tuple[float, float]
    bounds: tuple[float, float] | None
    limit: float | None
    verdict: str
    verdict_text: str


def histogram(counts: Histogram) -> Chart:
    """Tokens by divergence: equally wide bars (the edges are even on a logarithmic scale), the highest filling it."""
    tallest = max(max(counts.counts), 1)
    step = 100 / len(counts.counts)
    rects = []
    for index, count in enumerate(counts.counts):
        height = round((PLOT - 10) * count / tallest, 2)
        low, high = counts.edges[index], counts.edges[index + 1]
        tip = f"{low:.2g} to {high:.2g} nats: {count:,} tokens"
        x, width = round(index * step + 0.15, 3), round(step - 0.3, 3)
        rects.append(Rect(x=x, y=round(PLOT - height, 2), width=width, height=height, style="bar", tip=tip))
    peak = counts.counts.index(max(counts.counts))
    return Chart(
        name="histogram",
        title="Histogram of the KL divergence per token",
        description=f"{sum(counts.counts):,} tokens on a logarithmic scale; the fullest of {len(rects)} bars is from "
        f"{counts.edges[peak]:.2g} to {counts.edges[peak + 1]:.2g} nats, with {counts.counts[peak]:,} tokens.",
        height=PLOT + AXIS,
        rects=tuple(rects),
        lines=(Line(x1=0, y1=PLOT, x2=100, y2=PLOT, style="axis"),),
        labels=_decades(counts.edges),
    )


def _decades(edges: tuple[float, ...]) -> tuple[Label, ...]:
    """A label at each power of ten among the edges."""
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    labels = []
    for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
        text = f"{10.0**power:g}" if -3 <= power <= 3 else "10" + str(power).translate(SUPERSCRIPTS)
        labels.append(tick_label(round(100 * (power - low) / (high - low), 3), PLOT, text))
    return tuple(labels)


def forest(name: str, title: str, rows: Sequence[Estimate], *, neutral: float, unit: str) -> Chart:
    """A dot and its interval per row against the row's limit; `neutral` is where nothing changed.

    An interval that reaches far beyond the rest ends at the edge.
    """
    low, high = _domain(rows, neutral)

    def place(value: float) -> float:
        return round(min(max(100 * (value - low) / (high - low), 0.0), 100.0), 3)

    base = ROW * len(rows) + 6
    lines, dots, labels = [], [], []
    for index, row in enumerate(rows):
        top = ROW * index
        y = top + 33
        lines.append(Line(x1=place(neutral), y1=y - 11, x2=place(neutral), y2=y + 11, style="neutral"))
        if row.limit is not None:
            lines.append(Line(x1=place(row.limit), y1=y - 11, x2=place(row.limit), y2=y + 11, style="limit"))
        lines.append(Line(x1=place(row.interval[0]), y1=y, x2=place(row.interval[1]), y2=y, style="thin"))
        if row.bounds is not None:
            lines.append(Line(x1=place(row.bounds[0]), y1=y, x2=place(row.bounds[1]), y2=y, style="thick"))
        tip = f"{row.label}: {row.value_text}, {row.verdict_text}"
        dots.append(Dot(x=place(row.value), y=y, style=row.verdict, tip=tip))
        labels += [
            Label(x=0, y=top + 16, anchor="start", text=row.label, more=row.more, style="name"),
            Label(x=100, y=top + 16, anchor="end", text=row.value_text, more=f", {row.verdict_text}", style="name"),
        ]
    lines.append(Line(x1=0, y1=base, x2=100, y2=base, style="axis"))
    labels += [tick_label(place(tick), base, f"{tick:g}".replace("-", "\u2212")) for tick in steps(low, high, 7)]
    sentence = "; ".join(f"{row.label} {row.value_text}, {row.verdict_text}" for row in rows)
    return Chart(
        name=name,
        title=title,
        description=f"In {unit}: {sentence}.",
        height=base + AXIS,
        lines=tuple(lines),
        dots=tuple(dots),
        labels=tuple(labels),
    )


def _domain(rows: Sequence[Estimate], neutral: float) -> tuple[float, float]:
    """What a forest plot spans: all intervals, but for those that would press what matters into a corner."""
    core = [neutral, *(row.value for row in rows), *(row.limit for row in rows if row.limit is not None)]
    least, most = min(core), max(core)
    room = 8 * max(most - least, 1e-9)
    ends = [end for row in rows for end in (*row.interval, *(row.bounds or ()))]
    low, high = max(min([least, *ends]), least - room), min(max([most, *ends]), most + room)
    margin = 0.06 * max(high - low, 1e-9)
    return low - margin, high + margin


def languages(rows: Sequence[Language]) -> Chart:
    """A bar per language, with one standard error to either side of its end."""
    most = max((row.mean_kl_divergence + row.mean_kl_divergence_standard_error for row in rows), default=0.0) or 1.0
    base = ROW * len(rows) + 6
    axes = (Line(x1=0, y1=0, x2=0, y2=base, style="axis"), Line(x1=0, y1=base, x2=100, y2=base, style="axis"))
    rects, errors, labels = [], [], []
    for index, row in enumerate(rows):
        top, value, error = ROW * index, row.mean_kl_divergence, row.mean_kl_divergence_standard_error
        text = f"{value:#.4g}"
        width = round(100 * value / most, 3)
        rects.append(Rect(x=0, y=top + 23, width=width, height=16, style="bar", tip=f"{row.name}: {text} nats"))
        ends = (round(100 * max(value - error, 0.0) / most, 3), round(100 * (value + error) / most, 3))
        errors.append(Line(x1=ends[0], y1=top + 31, x2=ends[1], y2=top + 31, style="error"))
        labels.append(Label(x=0, y=top + 16, anchor="start", text=row.name, style="name", dx=4))
        labels.append(Label(x=100, y=top + 16, anchor="end", text=text, more=f" \u00b1 {error:.2g}", style="name"))
    labels += [tick_label(round(100 * tick / most, 3), base, f"{tick:g}") for tick in steps(0.0, most, 4)]
    told = "; ".join(f"{row.name} {row.mean_kl_divergence:.4g}" for row in rows)
    return Chart(
        name="languages",
        title="Mean KL divergence by language",
        description=f"In nats: {told}.",
        height=base + AXIS,
        rects=tuple(rects),
        lines=axes,
        over=tuple(errors),
        labels=tuple(labels),
    )


def layers(rows: Sequence[Layer]) -> Chart:
    """A bar per decoder layer."""
    values = [row.relative_error for row in rows]
    scale = UprightScale(values)
    step = 100 / len(rows)
    rects = tuple(
        Rect(
            x=round(index * step + 0.1 * step, 3),
            y=scale.place(row.relative_error),
            width=round(0.8 * step, 3),
            height=round(PLOT - scale.place(row.relative_error), 2),
            style="bar",
            tip=f"layer {row.index}: {row.relative_error:.4g}",
        )
        for index, row in enumerate(rows)
    )
    worst = max(rows, key=lambda row: row.relative_error)
    named = thinned([(str(row.index), (index + 0.5) * step) for index, row in enumerate(rows)])
    return Chart(
        name="layers",
        title="Relative error of the residual stream by decoder layer",
        description=f"{len(rows)} layers, from {values[0]:.3g} after the first to {values[-1]:.3g} after the last; "
        f"the largest is {worst.relative_error:.3g} after layer {worst.index}.",
        height=PLOT + AXIS,
        gutter=True,
        rects=rects,
        lines=scale.lines,
        labels=(*scale.labels, *named),
    )


def positions(rows: Sequence[PositionRange]) -> Chart:
    """A dot per range of positions, joined by lines; the ranges stand side by side, whatever their lengths."""
    values = [row.mean_kl_divergence for row in rows]
    scale = UprightScale(values)
    step = 100 / len(rows)
    points = [(round((index + 0.5) * step, 3), scale.place(value)) for index, value in enumerate(values)]
    joints = tuple(Line(x1=a[0], y1=a[1], x2=b[0], y2=b[1], style="thin") for a, b in pairwise(points))
    tips = [f"tokens {row.start:,} to {row.stop - 1:,}: {row.mean_kl_divergence:.4g} nats" for row in rows]
    worst = max(rows, key=lambda row: row.mean_kl_divergence)
    named = thinned([(f"{row.start:,}", x) for row, (x, _) in zip(rows, points, strict=True)], most=8)
    return Chart(
        name="positions",
        title="Mean KL divergence by position",
        description=f"From {values[0]:.3g} nats at the start to {values[-1]:.3g} for tokens {rows[-1].start:,} to "
        f"{rows[-1].stop - 1:,}; the largest, {worst.mean_kl_divergence:.3g}, from token {worst.start:,} on.",
        height=PLOT + AXIS,
        gutter=True,
        lines=(*scale.lines, *joints),
        dots=tuple(Dot(x=x, y=y, style="plain", tip=tip) for (x, y), tip in zip(points, tips, strict=True)),
        labels=(*scale.labels, *named),
    )

"""The report as one self-contained HTML page: no script, no network, light and dark, readable on a phone."""

import math
from dataclasses import dataclass
from importlib import resources

from edgeforge.validation.report import Histogram, ValidationReport

WORDS = {"pass": "pass", "undecided": "too few tokens to tell", "fail": "fail"}
SENTENCES = {
    "pass": "It does, within the limits of its target.",
    "undecided": "Nothing speaks against it, but too few tokens were scored to be sure.",
    "fail": "It does not: it lost more than its target allows.",
}
NAMES = {"mean_kl_divergence": "Mean KL divergence", "perplexity_ratio": "Perplexity ratio"}
PROTOCOLS = {
    "llama.cpp": "the second half of each scored, as llama.cpp's perplexity does",
    "windows": "every token after the first scored",
}
WIDTH, BASE, HEIGHT = 720, 180, 208


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of the chart, in its own units (720 wide)."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One label under the chart."""

    x: float
    anchor: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """The histogram's geometry."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    width: int = WIDTH
    base: int = BASE
    height: int = HEIGHT


def render_page(report: ValidationReport) -> str:
    """The page; the same report gives the same bytes."""
    from jinja2 import Environment, StrictUndefined

    template = (resources.files("edgeforge.validation") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(
        report=report,
        chart=draw(report.kl_divergence_histogram),
        words=WORDS,
        sentences=SENTENCES,
        names=NAMES,
        protocols=PROTOCOLS,
    )


def draw(histogram: Histogram) -> Chart:
    """Equally wide bars (the edges are even on a logarithmic scale), the highest filling the chart."""
    tallest = max(max(histogram.counts), 1)
    step = WIDTH / len(histogram.counts)
    bars = []
    for index, count in enumerate(histogram.counts):
        height = round((BASE - 10) * count / tallest, 2)
        low, high = histogram.edges[index], histogram.edges[index + 1]
        label = f"{low:.2g} to {high:.2g} nats: {count:,} tokens"
        bars.append(
            Bar(x=round(index * step + 1, 2), y=BASE - height, width=round(step - 2, 2), height=height, label=label)
        )
    return Chart(bars=tuple(bars), ticks=_ticks(histogram.edges))


def _ticks(edges: tuple[float, ...]) -> tuple[Tick, ...]:
    """A label at each power of ten among the edges."""
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    ticks = []
    for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
        x = round(WIDTH * (power - low) / (high - low), 2)
        anchor = "start" if x < 1 else "end" if x > WIDTH - 1 else "middle"
        ticks.append(Tick(x=x, anchor=anchor, label=f"{10.0**power:g}"))
    return tuple(ticks)

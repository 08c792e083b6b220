"""Charts as plain shapes, which the templates write as inline SVG.

Across the page a shape's place is in percent of the drawing's width, down it in CSS pixels: so a chart is as wide as
its box while its text, dots and bars keep their size, on a phone as on a desk. What a shape is told by (`style`) is a
class in style.css.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Anchor = Literal["start", "middle", "end"]
PLOT = 180  # the height of upright charts, in pixels
ROW, AXIS = 46, 26  # of a chart of rows: each row, and the scale below them


@dataclass(frozen=True, slots=True, kw_only=True)
class Rect:
    """A bar: x and width in percent, y and height in pixels. `tip` is what a pointer that rests on it reads."""

    x: float
    y: float
    width: float
    height: float
    style: str
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """From (x1, y1) to (x2, y2), percent and pixels."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A mark: `fail` is drawn square, `undecided` hollow, so that colour is not needed to tell them apart."""

    x: float
    y: float
    style: str
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Text beside (x, y), `dx` pixels further. A narrow page leaves out `more`, and labels of style `minor`."""

    x: float
    y: float
    anchor: Anchor
    text: str
    more: str = ""
    style: str = "tick"
    dx: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What to draw, and what to say instead. `gutter`: room for an upright scale; `over`: lines above the bars."""

    name: str
    title: str
    description: str
    height: int
    gutter: bool = False
    rects: tuple[Rect, ...] = ()
    lines: tuple[Line, ...] = ()
    over: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    labels: tuple[Label, ...] = ()


def tick_label(x: float, base: float, text: str, style: str = "tick") -> Label:
    """A label under an axis at `base`, kept inside the drawing at either end."""
    anchor: Anchor = "start" if x < 2 else "end" if x > 98 else "middle"
    return Label(x=x, y=base + 18, anchor=anchor, text=text, style=style)


def steps(low: float, high: float, about: int) -> tuple[float, ...]:
    """Round numbers from `low` to `high` inclusive, about so many: multiples of 1, 2 or 5 times a power of ten."""
    rough = max(high - low, 1e-12) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(float(f"{index * step:.10g}") for index in range(first, last + 1))


class UprightScale:
    """A scale from 0 to a little above the largest value, with its lines and labels."""

    def __init__(self, values: Sequence[float]) -> None:
        self._most = max(max(values), 0.0) * 1.08 or 1.0
        ticks = steps(0.0, self._most, 4)
        self.lines = tuple(
            Line(x1=0, y1=self.place(tick), x2=100, y2=self.place(tick), style="grid" if tick else "axis")
            for tick in ticks
        )
        self.labels = tuple(Label(x=0, y=self.place(tick) + 4, anchor="end", text=f"{tick:g}", dx=-8) for tick in ticks)

    def place(self, value: float) -> float:
        return round(PLOT - (PLOT - 8) * value / self._most, 2)


def thinned(named: Sequence[tuple[str, float]], most: int = 12) -> tuple[Label, ...]:
    """Labels under an upright chart, at most so many; every other one is left out where there is no room."""
    every = -(-len(named) // most)
    kept = named[::every]
    return tuple(
        Label(x=round(x, 3), y=PLOT + 18, anchor="middle", text=text, style="tick minor" if index % 2 else "tick")
        for index, (text, x) in enumerate(kept)
    )

"""Divergence against size as an SVG file: no program to draw it, no script in it, readable on light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 64, 60
LETTER, LINE = 6.4, 14  # of a label, about
LIGHT = ("#c2410c", "#2563a8", "#6b7280", "#178048")
DARK = ("#fb923c", "#7fa8e6", "#a0a6b1", "#5fce90")


def _style(background: str, ink: str, soft: str, grid: str, colours: Sequence[str]) -> str:
    """Plain colours by class, which every viewer knows."""
    rules = [f".page {{ fill: {background} }} text {{ fill: {ink} }} .soft {{ fill: {soft} }}"]
    rules.append(f".grid {{ stroke: {grid} }} .goal {{ stroke: {ink}; stroke-width: 2 }}")
    for number, colour in enumerate(colours):
        rules.append(f".dot{number}, .name{number} {{ fill: {colour} }} .line{number} {{ stroke: {colour} }}")
    return "\n".join(rules)


STYLE = "\n".join(
    [
        "text { font: 12px system-ui, sans-serif }",
        _style("#ffffff", "#1b1d21", "#5d636e", "#e1e3e8", LIGHT),
        "@media (prefers-color-scheme: dark) {",
        _style("#1b1d21", "#e8e9ec", "#a0a6b1", "#31343b", DARK),
        "}",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Size in bytes, mean KL divergence in nats."""

    size: int
    divergence: float
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one kind; `joined` draws a line through them by size."""

    label: str
    points: Sequence[Point]
    joined: bool = True


@dataclass(slots=True)
class _Scale:
    """Bytes and nats to the drawing's units: x even, y logarithmic."""

    points: Sequence[Point]
    x_range: tuple[float, float] = field(init=False)
    y_range: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [point.size / 1e6 for point in self.points]
        logs = [math.log10(point.divergence) for point in self.points]
        self.x_range = (min(sizes) - 3, max(sizes) + 9)
        self.y_range = (min(logs) - 0.12, max(logs) + 0.12)

    def x(self, megabytes: float) -> float:
        low, high = self.x_range
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (megabytes - low) / (high - low), 1)

    def y(self, divergence: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(divergence) - low) / (high - low), 1)

    def place(self, point: Point) -> tuple[float, float]:
        return self.x(point.size / 1e6), self.y(point.divergence)


def draw(series: Sequence[Series], goals: Sequence[Point], title: str) -> str:
    """The SVG document. Goals are crosses."""
    shown = [one for one in series if one.points]
    scale = _Scale([*(point for one in shown for point in one.points), *goals])
    taken = [_around(*scale.place(point)) for one in shown for point in one.points]
    taken += [_around(*scale.place(goal)) for goal in goals]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        *_axes(scale),
        *_legend(shown, bool(goals)),
    ]
    for goal in goals:
        x, y = scale.place(goal)
        parts.append(f'<path class="goal" d="M{x - 6} {y}h12M{x} {y - 6}v12"/>')
    for number, one in enumerate(shown):
        parts += _drawn(one, number, scale, taken)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(scale: _Scale) -> list[str]:
    parts = []
    low, high = scale.x_range
    for megabytes in range(10 * math.ceil(low / 10), math.floor(high) + 1, 10):
        x = scale.x(megabytes)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="soft" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{megabytes}</text>')
    low, high = scale.y_range
    for power in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if low <= math.log10(value) <= high:
                y = scale.y(value)
                parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
                parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.4g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 16}" text-anchor="middle">size of the weights, MB</text>'
    )
    turned = f'transform="rotate(-90 22 {middle})"'
    parts.append(f'<text x="22" y="{middle}" {turned} text-anchor="middle">mean KL divergence, nats</text>')
    return parts


def _legend(shown: Sequence[Series], goals: bool) -> list[str]:
    parts, x = [], float(LEFT)
    for number, one in enumerate(shown):
        parts.append(f'<path class="dot{number}" d="{_dot(x + 5, 30)}"/>')
        parts.append(f'<text x="{x + 16}" y="34">{escape(one.label)}</text>')
        x += 40 + LETTER * len(one.label)
    if goals:
        parts.append(f'<path class="goal" d="M{x} 30h12M{x + 6} 24v12"/>')
        parts.append(f'<text x="{x + 18}" y="34">goal</text>')
    return parts


def _drawn(one: Series, number: int, scale: _Scale, taken: list[tuple[float, float, float, float]]) -> list[str]:
    points = sorted(one.points, key=lambda point: point.size)
    parts = []
    if one.joined and len(points) > 1:
        path = "L".join("{} {}".format(*scale.place(point)) for point in points)
        parts.append(f'<path class="line{number}" fill="none" stroke-width="1.6" d="M{path}"/>')
    for point in points:
        x, y = scale.place(point)
        tip = f"{one.label} {point.label}: {point.size / 1e6:.1f} MB, {point.divergence:.4f}"
        parts.append(f'<path class="dot{number}" d="{_dot(x, y)}"><title>{escape(tip)}</title></path>')
        if point.label:
            left, base = _free_place(x, y, LETTER * len(point.label), taken)
            parts.append(f'<text class="name{number}" x="{left:.1f}" y="{base:.1f}">{escape(point.label)}</text>')
    return parts


def _dot(x: float, y: float) -> str:
    return f"M{x - 4.5} {y}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0"


def _around(x: float, y: float) -> tuple[float, float, float, float]:
    return x - 6, y - 6, x + 6, y + 6


def _free_place(
    x: float, y: float, width: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Where a label of a point begins: the first place around it that nothing else has; its box is taken then."""
    corners = [(9.0, 4.0), (9.0, -8.0), (9.0, 16.0), (-9 - width, 4.0), (-9 - width, -8.0), (-9 - width, 16.0)]
    corners += [(-width / 2, -11.0), (-width / 2, 20.0), (9.0, -20.0), (9.0, 28.0)]
    boxes = [(x + dx, y + dy - LINE + 3, x + dx + width, y + dy + 3) for dx, dy in corners]
    for (dx, dy), box in zip(corners, boxes, strict=True):
        inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= TOP - 16
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return x + dx, y + dy
    return x + corners[0][0], y + corners[0][1]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

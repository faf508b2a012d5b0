"""One small SVG chart: its scales, its ticks, and what is drawn on it. Colours are the page's; `sheet` brings its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 280, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 18, 36
_STYLE = (Path(__file__).parent / "chart.css").read_text(encoding="utf-8")
Point = tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """A chart with the words that stand around it."""

    title: str
    svg: str
    says: str  # for those who cannot see it


def sheet(pictures: Sequence[Picture], columns: int = 3) -> str:
    """Charts side by side as an SVG file of its own: with its style, their titles and a white ground."""
    wide, high, columns = WIDTH + 16, HEIGHT + 30, max(1, min(columns, len(pictures)))
    width, height = wide * columns, high * -(-len(pictures) // columns)
    parts = [f'<style>{_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>']
    for number, picture in enumerate(pictures):
        body = picture.svg[picture.svg.index(">") + 1 : picture.svg.rindex("</svg>")]
        title = f'<text x="10" y="18" class="title">{escape(picture.title)}</text>'
        place = f"translate({number % columns * wide} {number // columns * high})"
        parts.append(f'<g transform="{place}">{title}<g transform="translate(0 22)">{body}</g></g>')
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    found = []
    while (tick := first * step) <= high + 1e-9 * step:
        found.append(0.0 if abs(tick) < 1e-12 else tick)
        first += 1
    return found


def number(value: float) -> str:
    """A tick's label."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


@dataclass
class Panel:
    """A chart that is filled step by step."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str = ""
    percent: bool = False  # y values are shares
    _parts: list[str] = field(default_factory=list)

    @property
    def across(self) -> Scale:
        """x → pixels."""
        return Scale(*self.x, _LEFT, WIDTH - _RIGHT)

    @property
    def up(self) -> Scale:
        """y → pixels."""
        return Scale(*self.y, HEIGHT - _BOTTOM, _TOP)

    def add(self, part: str) -> None:
        """SVG of one's own."""
        self._parts.append(part)

    def grid(self, x_ticks: Sequence[tuple[float, str]] | None = None) -> None:
        """Horizontal rules with their numbers, and numbers along x."""
        for tick in ticks(*self.y):
            y, label = self.up.at(tick), f"{tick * 100:.3g}%".replace("-", "−") if self.percent else number(tick)
            self.add(f'<path class="rule{" zero" if not tick else ""}" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            self.add(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
        for tick, label in x_ticks if x_ticks is not None else [(tick, number(tick)) for tick in ticks(*self.x)]:
            self.text(self.across.at(tick), HEIGHT - _BOTTOM + 15, label, "tick", "middle")
        if self.x_label:
            self.text(WIDTH - _RIGHT, HEIGHT - 3, self.x_label, "tick", "end")

    def legend(self, names: Sequence[tuple[str, str]]) -> None:
        """Names with the classes of their lines, below the chart."""
        apart = ("", ' dx="10"')
        spans = [f'<tspan class="on-{kind}"{apart[place > 0]}>{escape(name)}</tspan>' for place, (name, kind) in enumerate(names)]
        self.add(f'<text x="{_LEFT}" y="{HEIGHT - 3}">{"".join(spans)}</text>')

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        """Words at pixels."""
        self.add(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A line through values."""
        if points:
            self.add(f'<path class="line {kind}" d="M{"L".join(self._at(point) for point in points)}"/>')

    def band(self, low: Sequence[Point], high: Sequence[Point], kind: str) -> None:
        """The area between two lines."""
        if low:
            self.add(f'<path class="band {kind}" d="M{"L".join(self._at(point) for point in (*low, *reversed(high)))}Z"/>')

    def dot(self, point: Point, kind: str, title: str = "") -> None:
        """A value; `title` is read out and shown under the pointer."""
        x, y = self.across.at(point[0]), self.up.at(point[1])
        told = f"<title>{escape(title)}</title>" if title else ""
        self.add(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4">{told}</circle>')

    def _at(self, point: Point) -> str:
        return f"{self.across.at(point[0]):.1f} {self.up.at(point[1]):.1f}"

    def picture(self, title: str, says: str) -> Picture:
        """The chart as it is now."""
        head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(says)}">'
        return Picture(title, f"{head}{''.join(self._parts)}</svg>", says)


def around(values: Sequence[float], *, zero: bool = False, room: float = 0.08) -> tuple[float, float]:
    """A range that holds all values, with some room; with `zero` it begins or ends there if they are all on one side of it."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    more = room * (high - low) or abs(high) * 0.1 or 1.0
    return (low if zero and not low else low - more, high if zero and not high else high + more)

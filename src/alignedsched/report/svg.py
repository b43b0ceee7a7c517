"""Small charts as inline SVG: three kinds of axes, lines with gaps, bands, dots. Colours are classes of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from attrs import define, field, frozen

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 26, 8, 26  # margins
Point = tuple[float, float]


@frozen
class Axis:
    """Where a value lies between the ends of an axis, as 0 to 1, and the values that are marked, with their words."""

    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Values beyond an end lie on it."""
        return min(1.0, max(0.0, self.place(value)))


def linear(high: float, show: Callable[[float], str]) -> Axis:
    """From 0 to a round number of at least ``high``, marked at 4 to 6 round numbers."""
    high = high if math.isfinite(high) and high > 0 else 1.0
    raw = high / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    count = math.ceil(high / step - 1e-9)
    return Axis(lambda value: value / (step * count), tuple((step * n, show(step * n)) for n in range(count + 1)))


def time(high: float, show: Callable[[float], str]) -> Axis:
    """From 0 to ``high`` itself, marked at 3 to 6 round numbers."""
    marks = linear(high, show).ticks
    high = high if high > 0 else 1.0
    return Axis(lambda value: value / high, tuple(mark for mark in marks if mark[0] <= high))


def log(low: float, high: float, show: Callable[[float], str]) -> Axis:
    """Logarithmic over the decades of ``low`` to ``high``, both above 0; marked at powers of ten, finer if few."""
    low, high = math.log10(low), math.log10(max(high, low * 1.01))
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    if last - first <= 2:  # few decades: end where the values do
        marks = [factor * 10.0**n for n in range(first, last + 1) for factor in (1, 2, 5)]
        begin = max(math.log10(mark) for mark in marks if math.log10(mark) <= low + 1e-9)
        end = min((math.log10(mark) for mark in marks if math.log10(mark) >= high - 1e-9), default=float(last))
        marks = [mark for mark in marks if begin - 1e-9 <= math.log10(mark) <= end + 1e-9]
    else:
        begin, end = float(first), float(last)
        marks = [10.0**n for n in range(first, last + 1, -(-(last - first) // 5))]
    span = max(end - begin, 1e-9)
    return Axis(
        lambda value: (math.log10(value) - begin) / span if value > 0 else 0.0,
        tuple((mark, show(mark)) for mark in marks),
    )


def odds(least: float, marks: Sequence[float], show: Callable[[float], str]) -> Axis:
    """Quantiles from ``least`` to 1 - ``least`` by their log odds: both tails get as much room as the middle."""
    end = math.log((1 - least) / least)

    def place(quantile: float) -> float:
        if not 0 < quantile < 1:
            return float(quantile >= 1)
        return 0.5 + math.log(quantile / (1 - quantile)) / (2 * end)

    return Axis(place, tuple((mark, show(mark)) for mark in marks))


@define
class Chart:
    """One chart: add lines, bands and dots, back to front, then ``svg``. Points are in the axes' own units."""

    x: Axis
    y: Axis
    _parts: list[str] = field(factory=list)

    def _place(self, point: Point) -> str:
        x = LEFT + self.x.at(point[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - self.y.at(point[1]) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f} {y:.1f}"

    def line(self, points: Iterable[Point], style: str) -> None:
        """A line through points; it has a gap where a value is nan."""
        for run in _runs(points):
            path = "L".join(map(self._place, run))
            self._parts.append(f'<path class="{style}" d="M{path}{"h0.1" if len(run) == 1 else ""}"/>')

    def band(self, xs: Sequence[float], lower: Sequence[float], upper: Sequence[float], style: str) -> None:
        """The area between two lines over the same x; it has a gap where one of them is nan."""
        both = [(x, y) if not math.isnan(z) else (x, z) for x, y, z in zip(xs, lower, upper, strict=True)]
        above = [(x, z) if not math.isnan(y) else (x, y) for x, y, z in zip(xs, lower, upper, strict=True)]
        for run, back in zip(_runs(both), _runs(above), strict=True):
            path = "L".join(map(self._place, (*run, *reversed(back))))
            self._parts.append(f'<path class="{style}" d="M{path}Z"/>')

    def dot(self, point: Point, style: str, words: str) -> None:
        """A point that says ``words`` when pointed at."""
        x, y = self._place(point).split()
        self._parts.append(
            f'<circle class="{style}" cx="{x}" cy="{y}" r="3"><title>{escape(words)}</title></circle>'
        )  # fmt: skip

    def svg(self, words: str) -> str:
        """The chart; ``words`` say what it shows to whoever cannot see it."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words)}">'
            f"{self._grid()}{''.join(self._parts)}</svg>"
        )

    def _grid(self) -> str:
        left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for value, word in self.y.ticks:
            y = float(self._place((0.0, value)).split()[1])
            parts.append(f'<path class="rule" d="M{left} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(word)}</text>')
        for value, word in self.x.ticks:
            x = left + self.x.at(value) * (right - left)
            parts.append(f'<path class="rule" d="M{x:.1f} {TOP}V{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 9}" text-anchor="middle">{escape(word)}</text>')
        return "".join(parts)


def _runs(points: Iterable[Point]) -> list[list[Point]]:
    """The points, cut where a value is nan."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if not math.isnan(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]

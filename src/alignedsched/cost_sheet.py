"""Measured decode steps of one member count, and how to read between and beyond them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

import numpy as np
import numpy.typing as npt
from attrs import frozen

from .arrays import FloatArray
from .errors import ConfigError
from .outside import is_number, show

FAR = 1e9  # a length, or a stretch, beyond all there are
SAME = 0.03  # measured lengths this close (relative) are one grid line
Grid = tuple[float, ...]


@frozen
class Sheet:
    """Measured steps of ``n`` members: ``seconds[i][j]`` at mean length ``means[i]``, longest / mean ``stretches[j]``.

    Both axes ascend; ``stretches`` begins at 1.
    """

    n: int
    means: Grid
    stretches: Grid
    seconds: tuple[Grid, ...]


@frozen
class Curve:
    """Seconds by rows of a step, which do not fall: linear between measured ones, straight on above, level below."""

    rows: Grid
    seconds: Grid

    def at(self, rows: float) -> float:
        """Seconds of so many rows. O(log points)."""
        at, seconds = self.rows, self.seconds
        if rows <= at[0] or len(at) == 1:
            return seconds[0]
        i = cell(at, rows)
        return seconds[i] + (seconds[i + 1] - seconds[i]) * (rows - at[i]) / (at[i + 1] - at[i])


def check_curve(curve: Curve, where: str) -> None:
    """Raise ConfigError unless this is a sound curve; ``where`` begins the message."""
    _check_grid(curve.rows, f"{where}.rows", 1)
    if len(curve.seconds) != len(curve.rows):
        raise ConfigError(f"{where}.seconds must have {len(curve.rows)} numbers, got {len(curve.seconds)}")
    for value in curve.seconds:
        if not is_number(value, 0):
            raise ConfigError(f"{where}.seconds must be finite and at least 0, got {show(value)}")
    fall = next(((a, b) for a, b in pairwise(curve.seconds) if a > b), None)
    if fall is not None:
        raise ConfigError(f"{where}.seconds must not fall, got {show(fall[1])} behind {show(fall[0])}")


def check_sheets(sheets: Sequence[Sheet], where: str) -> None:
    """Raise ConfigError unless these sheets are a sound table; ``where`` begins the message."""
    if not sheets:
        raise ConfigError(f"{where}: sheets must hold at least one sheet")
    _check_grid([sheet.n for sheet in sheets], f"{where}: n of the sheets", 1)
    for index, sheet in enumerate(sheets):
        at = f"{where}: sheets[{index}]"
        _check_grid(sheet.means, f"{at}.means", 1)
        _check_grid(sheet.stretches, f"{at}.stretches", 1)
        if sheet.stretches[0] > 1 + SAME:
            raise ConfigError(f"{at}.stretches must begin at 1 (all members of one length), got {sheet.stretches[0]}")
        if len(sheet.seconds) != len(sheet.means) or {len(row) for row in sheet.seconds} != {len(sheet.stretches)}:
            raise ConfigError(f"{at}.seconds must have {len(sheet.means)} rows of {len(sheet.stretches)} numbers")
        for row in sheet.seconds:
            for value in row:
                if not is_number(value, 0) or not value:
                    raise ConfigError(f"{at}.seconds must be positive and finite, got {show(value)}")


def _check_grid(grid: Sequence[float], what: str, least: float) -> None:
    if not grid:
        raise ConfigError(f"{what} must not be empty")
    wrong = [value for value in grid if not is_number(value, least)]
    if wrong:
        raise ConfigError(f"{what} must be finite and at least {least:g}, got {show(wrong[0])}")
    fall = next(((a, b) for a, b in pairwise(grid) if a >= b), None)
    if fall is not None:
        raise ConfigError(f"{what} must ascend, got {show(fall[0])} before {show(fall[1])}")


class Interpolated:
    """A sheet ready to be read: bilinear inside, level below, and above a straight line that does not fall.

    A line far above and one at zero are put around the measured ones, so that reading needs no cases.
    """

    def __init__(self, sheet: Sheet) -> None:
        self.limits = (sheet.means[0], sheet.means[-1], sheet.stretches[-1] * (1 + SAME))
        columns = [extended(sheet.stretches, row) for row in sheet.seconds]
        self.means, self.stretches = (0.0, *sheet.means, FAR), (0.0, *sheet.stretches, FAR)
        self.rows: tuple[Grid, ...] = tuple(
            zip(*(extended(sheet.means, column) for column in zip(*columns, strict=True)), strict=True)
        )
        self.flat = np.array(self.rows).ravel()
        self.mean_lines, self.stretch_lines = np.array(self.means), np.array(self.stretches)
        self.mean_widths, self.stretch_widths = np.diff(self.mean_lines), np.diff(self.stretch_lines)

    def outside(self, mean: float, stretch: float) -> bool:
        """Whether this point lies outside the measured ones."""
        low, high, widest = self.limits
        return mean < low or mean > high or stretch > widest

    def outside_along(self, means: FloatArray, stretches: FloatArray) -> npt.NDArray[np.bool_]:
        """As ``outside`` for arrays of one shape."""
        low, high, widest = self.limits
        return (means < low) | (means > high) | (stretches > widest)

    def at(self, mean: float, stretch: float) -> float:
        """Seconds at one point."""
        i, j = cell(self.means, mean), cell(self.stretches, stretch)
        across = (stretch - self.stretches[j]) / (self.stretches[j + 1] - self.stretches[j])
        along = (mean - self.means[i]) / (self.means[i + 1] - self.means[i])
        (a, b), (c, d) = self.rows[i][j : j + 2], self.rows[i + 1][j : j + 2]
        low = a + (b - a) * across
        return low + (c + (d - c) * across - low) * along

    def along(self, means: FloatArray, stretches: FloatArray) -> FloatArray:
        """Seconds at many points, as arrays of one shape."""
        # Indices among the inner lines run from 0 to the last cell: nothing to clip.
        i = self.mean_lines[1:-1].searchsorted(means, "right")
        j = self.stretch_lines[1:-1].searchsorted(stretches, "right")
        across = (stretches - self.stretch_lines.take(j)) / self.stretch_widths.take(j)
        along = (means - self.mean_lines.take(i)) / self.mean_widths.take(i)
        i *= len(self.stretches)
        i += j
        low, high = self.flat.take(i), self.flat.take(i + len(self.stretches))
        low += (self.flat.take(i + 1) - low) * across
        high += (self.flat.take(i + len(self.stretches) + 1) - high) * across
        low += (high - low) * along
        return low


def extended(grid: Sequence[float], values: Sequence[float]) -> Grid:
    """Values with one more at each end: the first again, and a straight line that does not fall taken to ``FAR``."""
    slope = max((values[-1] - values[-2]) / (grid[-1] - grid[-2]), 0.0) if len(grid) > 1 else 0.0
    return (values[0], *values, values[-1] + slope * (FAR - grid[-1]))


def cell(grid: Sequence[float], value: float) -> int:
    """Index of the pair of neighbouring lines that ``value`` lies between. O(log lines)."""
    return bisect_right(grid, value, 1, len(grid) - 1) - 1


def _lines(values: Iterable[float]) -> list[float]:
    """Grid lines of measured values: the first of each run of nearly equal ones."""
    lines: list[float] = []
    for value in sorted(values):
        if not lines or value > lines[-1] * (1 + SAME):
            lines.append(value)
    return lines


def sheet_of(n: int, points: Sequence[tuple[float, float, float]]) -> Sheet:
    """The sheet of measured (mean, stretch, seconds) points. Raises ConfigError naming a point that is missing."""
    means, stretches = _lines(mean for mean, _, _ in points), _lines(stretch for _, stretch, _ in points)
    cells: dict[tuple[int, int], list[float]] = {}
    for mean, stretch, seconds in points:
        cells.setdefault((bisect_right(means, mean) - 1, bisect_right(stretches, stretch) - 1), []).append(seconds)
    for i, mean in enumerate(means):
        for j, stretch in enumerate(stretches):
            if (i, j) not in cells:
                raise ConfigError(f"points: n={n} was not measured at mean length {mean:g}, longest/mean {stretch:g}")
    rows = tuple(tuple(median(cells[i, j]) for j in range(len(stretches))) for i in range(len(means)))
    return Sheet(n, tuple(means), tuple(stretches), rows)

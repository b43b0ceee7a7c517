"""Costs read from measurements: interpolated between them, extrapolated and counted outside."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import asdict, define, field, frozen

from .arrays import FloatArray
from .cost_sheet import Curve, Grid, Interpolated, Sheet, check_curve, check_sheets, sheet_of
from .errors import ConfigError
from .load import Load, check_uniform
from .outside import is_count, is_number, read_json, show

FORMAT, VERSION = "alignedsched-cost-table", 2  # 1: of prefill only t0, per_token and per_pair


@frozen
class Prefill:
    """What prefill chunks add to a step, in seconds: ``t0`` when nothing decodes, ``per_chunk``, and by what they do.

    ``per_token`` new; ``per_pair`` of a query and a key it sees; ``per_cell`` of the rectangle of new tokens and whole
    context, which a masked kernel works through; ``per_context`` token that is read. ``rows``: seconds of the layers
    without attention by rows of the step, decode and prefill together: a chunk adds what its rows add to those of the
    members, which on a GPU is little until the arithmetic binds.
    """

    t0: float = 0.0
    per_token: float = 0.0
    per_pair: float = 0.0
    per_chunk: float = 0.0
    per_cell: float = 0.0
    per_context: float = 0.0
    rows: Curve | None = None

    def seconds(self, load: Load) -> float:
        """What the chunks of a load add to its decode members. O(chunks)."""
        if not load.chunks:
            return 0.0
        extra, tokens = self.t0 if not load.n else 0.0, 0
        for start, end in load.chunks:
            size = end - start
            tokens += size
            extra += size * (self.per_token + self.per_pair * (start + end + 1) / 2 + self.per_cell * end)
            extra += self.per_chunk + self.per_context * end
        if self.rows is not None:
            extra += self.rows.at(load.n + tokens) - (self.rows.at(load.n) if load.n else 0.0)
        return extra


TERMS = ("t0", "per_token", "per_pair", "per_chunk", "per_cell", "per_context")


@define(eq=False)
class TableCosts:
    """Costs by linear interpolation in members, mean length, and longest / mean.

    Above the measured points the last two of an axis are extended as a straight line that does not fall, below them the
    first one holds; `extrapolated` counts such steps. A step with chunks adds the terms of ``prefill``.

    Raises ConfigError when the sheets are not a sound table.
    """

    sheets: tuple[Sheet, ...]
    prefill: Prefill = Prefill()
    source: str = ""
    surface: str = "table"
    _ns: list[int] = field(init=False)
    _surfaces: tuple[Interpolated, ...] = field(init=False)
    _extrapolated: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        check_sheets(self.sheets, "TableCosts")
        self._ns = [sheet.n for sheet in self.sheets]
        self._surfaces = tuple(map(Interpolated, self.sheets))

    @property
    def extrapolated(self) -> int:
        """How many steps asked for so far lay outside the measured points."""
        return self._extrapolated

    def step_seconds(self, load: Load) -> float:
        """See Costs. O(log points + chunks)."""
        if not load.n:
            return self.prefill.seconds(load)
        mean, stretch = load.total / load.n, load.longest * load.n / load.total
        self._extrapolated += self._outside(load.n, mean, stretch)
        return self._decode(load.n, mean, stretch) + self.prefill.seconds(load)

    def balanced_seconds(self, load: Load) -> float:
        """See Costs: the same step with all members at the mean length; not counted. O(log points + chunks)."""
        if not load.n:
            return self.prefill.seconds(load)
        mean, stretch = load.total / load.n, load.longest * load.n / load.total
        aligned = min(self._decode(load.n, mean, 1.0), self._decode(load.n, mean, stretch))
        return aligned + self.prefill.seconds(load)

    def _between(self, n: int) -> tuple[Interpolated, Interpolated, float]:
        """The sheets below and above ``n`` and the weight of the upper one, which may exceed 1."""
        last = len(self.sheets) - 1
        k = min(max(bisect_right(self._ns, n) - 1, 0), max(last - 1, 0))
        low, high = self._surfaces[k], self._surfaces[min(k + 1, last)]
        first, width = self.sheets[k].n, self.sheets[min(k + 1, last)].n - self.sheets[k].n
        return low, high, max((n - first) / width, 0.0) if width else 0.0

    def _outside(self, n: int, mean: float, stretch: float) -> bool:
        if n < self.sheets[0].n or n > self.sheets[-1].n:
            return True
        low, high, weight = self._between(n)
        return (weight < 1 and low.outside(mean, stretch)) or (weight > 0 and high.outside(mean, stretch))

    def _decode(self, n: int, mean: float, stretch: float) -> float:
        low, high, weight = self._between(n)
        if not weight:
            return low.at(mean, stretch)
        first, second = low.at(mean, stretch), high.at(mean, stretch)
        mixed = first + (second - first) * weight
        return mixed if weight <= 1 else max(mixed, second)

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """See Costs. O(steps · log points)."""
        check_uniform(steps, load)
        n = load.n
        if not n:
            return np.zeros(steps)
        means = load.total / n + np.arange(steps, dtype=np.float64)
        longest = load.longest + np.arange(steps, dtype=np.float64)
        stretches = longest / means
        low, high, weight = self._between(n)
        times = low.along(means, stretches)
        if weight:
            second = high.along(means, stretches)
            times += (second - times) * weight
            if weight > 1:
                np.maximum(times, second, out=times)
        # Means rise and stretches fall along the way: with both ends inside, all of it is.
        if self._outside(n, float(means[0]), float(stretches[0])) or self._outside(n, float(means[-1]), 1.0):
            self._extrapolated += self._count_outside(n, means, stretches)
        return times.cumsum(out=times)

    def _count_outside(self, n: int, means: FloatArray, stretches: FloatArray) -> int:
        if n < self.sheets[0].n or n > self.sheets[-1].n:
            return len(means)
        low, high, weight = self._between(n)
        outside = np.zeros(len(means), dtype=np.bool_)
        if weight < 1:
            outside |= low.outside_along(means, stretches)
        if weight > 0:
            outside |= high.outside_along(means, stretches)
        return int(outside.sum())

    @classmethod
    def from_points(
        cls,
        points: Iterable[tuple[int, int, int, float]],
        prefill: Prefill = Prefill(),
        source: str = "",
    ) -> TableCosts:
        """Build a table from measured steps (n, total, longest, seconds); repeated points count by their median.

        For each n every measured mean length needs every measured longest / mean (values within 3 % are one line).
        Raises ConfigError naming the points that are unsound or missing.
        """
        by_n: dict[int, list[tuple[float, float, float]]] = {}
        for index, point in enumerate(points):
            n, total, longest, seconds = _read_point(point, f"points[{index}]")
            by_n.setdefault(n, []).append((total / n, longest * n / total, seconds))
        return cls(tuple(sheet_of(n, by_n[n]) for n in sorted(by_n)), prefill, source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as a versioned JSON file."""
        Path(path).write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")

    def content(self) -> dict[str, Any]:
        """The table as plain data, for JSON."""
        content = {"format": FORMAT, "version": VERSION, "source": self.source, "prefill": asdict(self.prefill)}
        return content | {"sheets": [asdict(sheet) for sheet in self.sheets]}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TableCosts:
        """Read what ``save`` wrote. Raises ConfigError naming the file and the field that is wrong."""
        return cls.read(read_json(path), os.fspath(path))

    @classmethod
    def read(cls, content: object, where: str) -> TableCosts:
        """The table that ``content`` gave. Raises ConfigError naming the field that is wrong, behind ``where``."""
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ConfigError(f"{where}: format must be {FORMAT!r}")
        if not is_count(content.get("version"), 1, VERSION):
            raise ConfigError(f"{where}: version must be 1 to {VERSION}, got {show(content.get('version'))}")
        sheets = content.get("sheets")
        if not isinstance(sheets, list):
            raise ConfigError(f"{where}: sheets must be a list")
        prefill = content.get("prefill", {})
        terms = {name: _float(prefill, name, f"{where}: prefill", 0.0) for name in TERMS}
        rows = _read_curve(prefill.get("rows"), f"{where}: prefill.rows")
        read = tuple(_read_sheet(sheet, f"{where}: sheets[{index}]") for index, sheet in enumerate(sheets))
        check_sheets(read, where)
        return cls(read, Prefill(**terms, rows=rows), str(content.get("source", "")))


def _read_point(point: object, where: str) -> tuple[int, int, int, float]:
    """A measured step (n, total, longest, seconds), checked."""
    if not isinstance(point, Sequence) or isinstance(point, str) or len(point) != 4:
        raise ConfigError(f"{where}: must be (n, total, longest, seconds), got {show(point)}")
    n, total, longest, seconds = point
    counts = all(is_count(value, 1, 2**53) for value in (n, total, longest))
    if not counts or not n <= total <= n * longest or not is_number(seconds, 0) or not seconds:
        raise ConfigError(
            f"{where}: needs n >= 1, n <= total <= n·longest and positive seconds, got n={show(n)}, "
            f"total={show(total)}, longest={show(longest)}, seconds={show(seconds)}"
        )
    return n, total, longest, seconds


def _read_sheet(content: object, where: str) -> Sheet:
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must be an object with n, means, stretches and seconds")
    n, seconds = content.get("n"), content.get("seconds")
    if not is_count(n, 0, 2**53):
        raise ConfigError(f"{where}.n must be an integer, got {show(n)}")
    if not isinstance(seconds, list):
        raise ConfigError(f"{where}.seconds must be a list of lists of numbers")
    rows = tuple(_numbers(row, f"{where}.seconds[{index}]") for index, row in enumerate(seconds))
    means, stretches = (_numbers(content.get(name), f"{where}.{name}") for name in ("means", "stretches"))
    return Sheet(n, means, stretches, rows)


def _read_curve(content: object, where: str) -> Curve | None:
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} must be an object with rows and seconds, got {show(content)}")
    curve = Curve(*(_numbers(content.get(name), f"{where}.{name}") for name in ("rows", "seconds")))
    check_curve(curve, where)
    return curve


def _numbers(content: object, where: str) -> Grid:
    if not isinstance(content, list) or not all(map(is_number, content)):
        raise ConfigError(f"{where} must be a list of finite numbers, got {show(content)}")
    return tuple(map(float, content))


def _float(content: object, name: str, where: str, default: float) -> float:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where} must be an object, got {show(content)}")
    value = content.get(name, default)
    if not is_number(value, 0):
        raise ConfigError(f"{where}.{name} must be a finite number of at least 0, got {show(value)}")
    return float(value)

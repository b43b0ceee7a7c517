"""The charts of the HTML page: which curves stand in which, with what axes and what words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from . import curves as drawn
from . import svg, text
from .curves import Curves
from .series import BINS

Result = Mapping[str, Any]
LATENCIES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "tpot_decoding": "TPOT decoding",
    "e2e": "E2E",
    "itl": "gap between tokens (ITL)",
    "pool_wait": "pool wait",
}
SHARES = {
    "rest": "busy (in the bars: or no work)",
    "iteration": "iteration bubble",
    "batch": "batch bubble",
    "copy_stall": "copy stall",
    "no_work": "no work",
}
LATENCY_NOTE = (
    "Up: the share of requests (of gaps, for ITL) at or below a value, with the tails stretched. Across: seconds, "
    "logarithmic. Dots are the p50, p90 and p99 of the JSON. Further left is better. TPOT counts waiting in the pool, "
    "TPOT decoding does not: read them together."
)
TIME_NOTE = f"Means over at most {BINS} stretches of time of equal length; across: simulated seconds."
LENGTHS_NOTE = (
    "Of the requests that decode together: from the shortest to the longest, and their mean, logarithmic. A narrow "
    "band is an aligned batch. Means over time and lanes: groups that take turns within one stretch blur into one."
)
SHARES_NOTE = (
    "Iteration bubble: parts of a step wait for the longest member. Batch bubble: idle or under-filled though the pool "
    "has work. Copy stall: idle because KV is not there yet. Two bubbles add up: one may grow for the other to shrink."
)
COLOURS = 8  # p0 to p7 of the style
_MARKED = (0.5, 0.9, 0.99)


@frozen
class Panel:
    """One chart with its caption; ``policy`` is a run's number where the chart is about that one alone."""

    title: str
    unit: str
    svg: str
    policy: int | None = None


def style(number: int) -> str:
    """The classes of a run's colour; runs beyond the colours are dashed."""
    return f"p{number % COLOURS}{' dashed' if number // COLOURS % 2 else ''}"


def _short(value: float) -> str:
    """A tick: 0.5, 20, 1.5k."""
    size = abs(value)
    for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= (10_000 if word == "k" else unit):
            return f"{value / unit:g}{word}"
    return f"{value:,.10g}"


def _seconds(value: float) -> str:
    """A tick of a logarithmic axis: 10 ms, 1 s."""
    for unit, word in ((1.0, " s"), (1e-3, " ms"), (1e-6, " µs")):
        if value >= unit * 0.999:
            return f"{value / unit:,.10g}{word}"
    return f"{value:g} s"


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def latencies(runs: Sequence[Result], curves: Sequence[Curves]) -> Iterator[Panel]:
    """Cumulative distributions, one chart a figure, one line a policy."""
    marks = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
    for kind, words in LATENCIES.items():
        values = [value for curve in curves for value in curve.quantiles.get(kind) or () if value > 0]
        if not values:
            continue
        low = max(min(values), max(values) * 1e-8)
        x = svg.log(low, max(values), _seconds)
        chart = svg.Chart(x, svg.odds(0.001, marks, _percent))
        for n, curve in enumerate(curves):
            points = zip(curve.quantiles.get(kind) or (), drawn.QUANTILES, strict=False)
            chart.line(points, f"line {style(n)}")
        for n, run in enumerate(runs):
            latency = run["latency_s"][kind]
            for quantile in _MARKED:
                value = latency[f"p{100 * quantile:.0f}"]
                if value is not None:
                    name = text.printable(run["policy"], 40)
                    said = f"{name}: {words} p{100 * quantile:.0f} {text.seconds(value)}"
                    chart.dot((value, quantile), f"dot {style(n)}", said)
        yield Panel(words, "share at or below", chart.svg(f"Distribution of {words} by policy"))


def over_time(curves: Sequence[Curves]) -> Iterator[Panel]:
    """One chart a figure, one line a policy."""
    figures: tuple[tuple[str, str, Callable[[Curves], Any], str, Callable[[float], str]], ...] = (
        ("throughput", "tokens / s", Curves.rate, "lanes", _short),
        ("batch size", "members of a decode step", lambda c: c.length("members"), "lanes", _short),
        ("spread of context lengths", "longest − shortest, tokens", Curves.spread, "lanes", _short),
        ("pool", "requests", lambda c: c.level("pool"), "state", _short),
        ("queue", "requests", lambda c: c.level("queue"), "state", _short),
        ("KV blocks in use", "of the devices that decode", lambda c: c.level("used"), "state", _percent),
    )
    last = _last(curves)
    for title, unit, values_of, series, show in figures:
        drawn_lines = [(getattr(c, series).ends(), values_of(c)) for c in curves]
        most = max((float(v) for _, values in drawn_lines for v in values if not math.isnan(v)), default=0.0)
        chart = svg.Chart(svg.time(last, _seconds_of_run), svg.linear(1.0 if show is _percent else most, show))
        for n, (ends, values) in enumerate(drawn_lines):
            chart.line(zip(ends.tolist(), values.tolist(), strict=True), f"line {style(n)}")
        yield Panel(title, unit, chart.svg(f"{title} over time by policy"))


def lengths(curves: Sequence[Curves]) -> Iterator[Panel]:
    """One chart a policy: the shortest, mean and longest context length among those that decode together."""
    tables = [{column: c.length(column).tolist() for column in ("shortest", "mean", "longest")} for c in curves]
    seen = [v for table in tables for column in table.values() for v in column if v > 0] or [1.0]
    y, x = svg.log(min(seen), max(seen), _short), svg.time(_last(curves), _seconds_of_run)
    for n, (curve, table) in enumerate(zip(curves, tables, strict=True)):
        chart, ends = svg.Chart(x, y), curve.lanes.ends().tolist()
        chart.band(ends, table["shortest"], table["longest"], f"band {style(n)}")
        chart.line(zip(ends, table["mean"], strict=True), f"line {style(n)}")
        name = text.printable(curve.policy, 40)
        yield Panel(name, "tokens", chart.svg(f"Context lengths over time under {name}"), n)


def shares(curves: Sequence[Curves]) -> Iterator[Panel]:
    """One chart a policy: where the time of the lanes that decode went, stacked to 100 %."""
    x, y = svg.time(_last(curves), _seconds_of_run), svg.linear(1.0, _percent)
    for n, curve in enumerate(curves):
        chart, ends = svg.Chart(x, y), curve.lanes.ends()
        below = [0.0] * len(ends)
        for kind in drawn.SHARES:
            above = [low + part for low, part in zip(below, curve.share(kind).tolist(), strict=True)]
            chart.band(ends.tolist(), below, above, f"area {'rest' if kind == 'busy' else kind}")
            below = above
        name = text.printable(curve.policy, 40)
        yield Panel(name, "share of lane time", chart.svg(f"Lane time over time under {name}"), n)


def _last(curves: Sequence[Curves]) -> float:
    return max((float(c.state.ends()[-1]) for c in curves), default=1.0)


def _seconds_of_run(value: float) -> str:
    return f"{value:,.6g} s"

"""A comparison as one HTML page that needs nothing else: figures with ratios, distributions, what happened when.

No script, no network, no font of its own; what is drawn is inline SVG. Every name from outside is escaped.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ..version import VERSION
from . import charts, text
from .curves import Curves
from .style import STYLE
from .terminal import Result, footing, heading, table

_MARKS = {"better": "▲", "worse": "▼", "same": "", "": ""}


def page(result: Result, curves: Sequence[Curves] = ()) -> str:
    """The page of a result in the form of docs/json.md; ``curves`` has an entry for each of its runs, or none.

    Without curves it has the figures alone. O(size of both).
    """
    runs = result["runs"]
    title = text.printable(result["workload"]["name"], 60)
    sections = [_header(result), _legend(runs), _figures(result), _bound(runs), _lanes(runs, curves)]
    if curves:
        sections += [
            _section("Latency", charts.LATENCY_NOTE, _grid(charts.latencies(runs, curves)) + _percentiles(runs)),
            _section("Over time", charts.TIME_NOTE, _grid(charts.over_time(curves))),
            _section("Context lengths", charts.LENGTHS_NOTE, _grid(charts.lengths(curves))),
        ]
    sections.append(_data(result))
    return _PAGE.format(title=escape(title), style=STYLE, body="\n".join(filter(None, sections)))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}: policies compared</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _section(title: str, note: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n<p class='note'>{escape(note)}</p>\n{body}\n</section>"


def _grid(panels: Iterable[charts.Panel]) -> str:
    drawn = "".join(
        f"<figure><figcaption>{_chip(panel.policy) if panel.policy is not None else ''}{escape(panel.title)}"
        f"<small>{escape(panel.unit)}</small></figcaption>{panel.svg}</figure>\n"
        for panel in panels
    )
    return f"<div class='grid'>\n{drawn}</div>"


def _chip(number: int) -> str:
    return f"<i class='chip {charts.style(number)}'></i>"


def _header(result: Result) -> str:
    first, second = heading(result)
    versions = (
        f"alignedsched {VERSION}, Python {platform.python_version()}, numpy {np.__version__}; "
        "simulated on a modelled cluster"
    )
    name, _, work = first.rpartition(": ")
    return (
        f"<header>\n<h1>{escape(name)}</h1>\n<p>{escape(work)}</p>\n<p>{escape(second)}</p>\n"
        f"<p class='note'>{escape(versions)}</p>\n</header>"
    )


def _legend(runs: Sequence[Result]) -> str:
    names = "".join(f"<span>{_chip(n)}{_name(run)}</span>" for n, run in enumerate(runs))
    return f"<nav class='legend' aria-label='policies'>{names}</nav>"


def _name(run: Result) -> str:
    return escape(text.printable(run["policy"], 40))


def _figures(result: Result) -> str:
    """The table of the terminal; a loss is marked as strongly as a win."""
    header, *rows = table(result["runs"])
    lines = ["<tr>" + "".join(f"<th>{escape(cell.text)}</th>" for cell in header) + "</tr>"]
    for row in rows:
        cells = [f"<th>{escape(row[0].text)}</th>"]
        for n, cell in enumerate(row[1:]):
            ratio = n > 0 and n % 2 == 0
            style = f" class='ratio {cell.verdict}'" if ratio else ""
            cells.append(
                f"<td{style}>{_MARKS[cell.verdict]} {escape(cell.text)}</td>"
                if ratio
                else f"<td>{escape(cell.text)}</td>"
            )
        lines.append("<tr>" + "".join(cells) + "</tr>")
    note = " ".join(footing(result)) or "One policy alone: there is nothing to compare it with."
    return _section(
        "Figures", note, f"<div class='wide'><table class='figures'>\n{chr(10).join(lines)}\n</table></div>"
    )


def _bound(runs: Sequence[Result]) -> str:
    known = [(n, run) for n, run in enumerate(runs) if run.get("bound_ratio") is not None]
    if not known:
        return ""
    most = max(run["simulated_s"] for run in runs)
    bars = []
    for n, run in known:
        least, took = 100 * run["bound_s"] / most, 100 * run["simulated_s"] / most
        words = f"{text.seconds(run['simulated_s'])}; no schedule below {text.seconds(run['bound_s'])}: "
        bars.append(
            f"<div class='bar'><label>{_name(run)}</label><div><b class='{charts.style(n)}' style='width:{took:.2f}%'>"
            f"</b><s style='left:{least:.2f}%'></s></div><span>{escape(words)}"
            f"<strong>{text.percent(run['bound_ratio'])}</strong></span></div>"
        )
    note = (
        "Bars: simulated time. Marks: a time that no scheduler, however clairvoyant, gets below with these requests. "
        "At a load below 1 the last arrival sets both."
    )
    return _section("Distance to the bound", note, "\n".join(bars))


def _lanes(runs: Sequence[Result], curves: Sequence[Curves]) -> str:
    """Shares of the time of the lanes that decode: of each run as bars, of each run over time if that is known."""
    legend = "".join(f"<span><i class='chip {kind}'></i>{words}</span>" for kind, words in charts.SHARES.items())
    bars = []
    for run in runs:
        bubbles = run.get("bubbles")
        if bubbles is None:
            return ""
        parts = {**bubbles, "rest": max(0.0, 1 - sum(bubbles.values()))}
        drawn = "".join(
            f"<b class='{kind}' style='width:{100 * part:.2f}%' title='{text.percent(part)}'></b>"
            for kind, part in parts.items()
        )
        words = ", ".join(f"{charts.SHARES[kind]} {text.percent(bubbles[kind])}" for kind in bubbles)
        bars.append(f"<div class='bar stack'><label>{_name(run)}</label><div>{drawn}</div><span>{words}</span></div>")
    body = f"<p class='legend'>{legend}</p>" + "\n".join(bars) + (_grid(charts.shares(curves)) if curves else "")
    return _section("Where the time of the decoding lanes went", charts.SHARES_NOTE, body)


def _percentiles(runs: Sequence[Result]) -> str:
    parts = ("mean", "p50", "p90", "p99", "max")
    lines = ["<tr><th></th><th></th>" + "".join(f"<th>{part}</th>" for part in parts) + "</tr>"]
    for kind, words in charts.LATENCIES.items():
        for n, run in enumerate(runs):
            latency: Mapping[str, Any] = run["latency_s"][kind]
            cells = "".join(f"<td>{text.seconds(latency[part])}</td>" for part in parts)
            label = f"<th rowspan='{len(runs)}'>{escape(words)}</th>" if n == 0 else ""
            lines.append(f"<tr>{label}<th>{_chip(n)}{_name(run)}</th>{cells}</tr>")
    return (
        "<details><summary>All percentiles</summary><div class='wide'><table>\n"
        + "\n".join(lines)
        + "\n</table></div></details>"
    )


def _data(result: Result) -> str:
    shown = escape(json.dumps(result, indent=2, ensure_ascii=True))
    return f"<details><summary>The result as JSON (docs/json.md)</summary><pre>{shown}</pre></details>"

"""The table of a comparison: metrics down, policies across, and each win and each loss said in the same words.

Beside every policy but the first stands the ratio of its figure to the first policy's, with "better", "worse" or
"same" by the direction of that row. With `rich` installed and a terminal to write to, the words have colours.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TextIO

from attrs import frozen

from . import text

Result = Mapping[str, Any]
Verdict = Literal["better", "worse", "same", ""]

_LONGEST_NAME = 28
_GAP = "  "
_COLOURS = {"better": "green", "worse": "red", "same": "", "": ""}


@frozen
class Metric:
    """One row: where the figure stands in a run, how it is printed, and which direction is a win (None: neither)."""

    label: str
    path: tuple[str, ...]
    show: Callable[[Any], str]
    win: Literal["higher", "lower"] | None = None

    def value(self, run: Result) -> Any:
        value: Any = run
        for key in self.path:
            value = value[key]
        return value

    def known(self, run: Result) -> bool:
        """Whether a run has the figure at all: a real one has no simulated time, and no bound without a cost model."""
        value: Any = run
        for key in self.path:
            if key not in value:
                return False
            value = value[key]
        return True


@frozen
class Cell:
    """One printed figure and, for a ratio, which way it goes."""

    text: str
    verdict: Verdict = ""


def _latency(label: str, kind: str, part: str) -> Metric:
    return Metric(f"{label} {part}", ("latency_s", kind, part), text.seconds, "lower")


METRICS: tuple[Metric, ...] = (
    Metric("requests finished", ("requests", "finished"), text.count),
    Metric("throughput", ("throughput_tok_s",), text.rate, "higher"),
    _latency("TTFT", "ttft", "p50"),
    _latency("TTFT", "ttft", "p99"),
    _latency("TPOT", "tpot", "mean"),
    _latency("TPOT", "tpot", "p99"),
    _latency("TPOT decoding", "tpot_decoding", "p99"),
    _latency("ITL", "itl", "p99"),
    _latency("E2E", "e2e", "mean"),
    _latency("E2E", "e2e", "p99"),
    _latency("pool wait", "pool_wait", "p99"),
    Metric("iteration bubble", ("bubbles", "iteration"), text.percent),
    Metric("batch bubble", ("bubbles", "batch"), text.percent),
    Metric("copy stall", ("bubbles", "copy_stall"), text.percent),
    Metric("host to device", ("copies", "host_to_device_bytes"), text.data),
    Metric("device to host", ("copies", "device_to_host_bytes"), text.data),
    Metric("peer link", ("copies", "peer_bytes"), text.data),
    Metric("staged", ("copies", "staged_bytes"), text.data),
    Metric("preemptions", ("preemptions",), text.count),
    Metric("simulated time", ("simulated_s",), text.seconds),
    Metric("of the lower bound", ("bound_ratio",), text.percent),
    Metric("steps", ("steps",), text.count),
    Metric("wall time", ("wall_s",), text.seconds),
)
_ONLY_IF_ANY = tuple(
    Metric(f"requests {how}", ("requests", how), text.count) for how in ("cancelled", "rejected", "failed")
)


def _word(metric: Metric, more: bool) -> Verdict:
    return "better" if more == (metric.win == "higher") else "worse"


def compared(metric: Metric, run: Result, base: Result) -> Cell:
    """The ratio of a run's figure to the base run's, and whether that is better, worse or the same to two digits.

    Where one of them is 0 no ratio says anything: the word stands alone.
    """
    value, against = metric.value(run), metric.value(base)
    if metric.win is None or value is None or against is None:
        return Cell("")
    if not value or not against:
        verdict: Verdict = "same" if value == against else _word(metric, value > against)
        return Cell(verdict, verdict)
    ratio = value / against
    shown = text.factor(ratio)
    if shown == text.factor(1.0):
        return Cell(f"{shown} same", "same")
    verdict = _word(metric, value > against)
    return Cell(f"{shown} {verdict}", verdict)


def table(runs: Sequence[Result]) -> list[list[Cell]]:
    """Rows of cells, the header first: label, the first policy, then two columns for each further policy."""
    base, others = runs[0], runs[1:]
    first = text.printable(base["policy"], _LONGEST_NAME)
    header = [Cell(""), Cell(first)]
    for run in others:
        header += [Cell(text.printable(run["policy"], _LONGEST_NAME)), Cell(f"/ {first}")]
    rows = [header]
    extra = [metric for metric in _ONLY_IF_ANY if any(metric.value(run) for run in runs)]
    for metric in (METRICS[0], *extra, *METRICS[1:]):
        if not all(metric.known(run) for run in runs):
            continue
        row = [Cell(metric.label), Cell(metric.show(metric.value(base)))]
        for run in others:
            row += [Cell(metric.show(metric.value(run))), compared(metric, run, base)]
        rows.append(row)
    return rows


def _widths(rows: list[list[Cell]]) -> list[int]:
    return [max(text.columns(row[column].text) for row in rows) for column in range(len(rows[0]))]


def fitting(rows: list[list[Cell]], width: int) -> Iterator[list[list[Cell]]]:
    """The table cut into tables of at most ``width`` columns (but one policy at least), each with the first policy."""
    widths = [len(_GAP) + w for w in _widths(rows)]
    start = 2
    while True:
        end, used = start, sum(widths[:2])
        while end < len(widths) and (end == start or used + sum(widths[end : end + 2]) <= width):
            used += sum(widths[end : end + 2])
            end += 2
        yield [row[:2] + row[start:end] for row in rows]
        if end >= len(widths):
            return
        start = end


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def heading(result: Result) -> list[str]:
    """Two lines: the workload, and what it ran on."""
    workload = result["workload"]
    if result.get("offline"):
        arrivals = "all requests at once"
    elif result.get("rate_scale") is not None:
        arrivals = f"arrivals {text.factor(result['rate_scale'])} as fast"
    else:
        arrivals = "arrivals as recorded" if result["load"] is None else f"load {result['load']:g}"
    parts = [result["hardware"], result["model"], result["topology"]]
    if result.get("lanes") is not None:
        parts.append(_count(result["lanes"], "lane"))
    if result.get("ranks", 1) > 1:
        parts.append(f"{result['ranks']} ranks each")
    parts += [f"surface {result['surface']}"] if "surface" in result else []
    parts += [arrivals, f"seed {result['seed']}"]
    work = (
        f"{text.printable(workload['name'], 60)}: {_count(workload['requests'], 'request')}, "
        f"{text.quantity(workload['prompt_tokens'])} prompt tokens, "
        f"{text.quantity(workload['output_tokens'])} output tokens"
    )
    return [work, ", ".join(text.printable(part, 60) for part in parts)]


def footing(result: Result) -> list[str]:
    """What the ratios and the two kinds of TPOT are; empty for a single run."""
    runs = result["runs"]
    if len(runs) < 2:
        return []
    base = text.printable(runs[0]["policy"], _LONGEST_NAME)
    return [f"Ratios are to {base}. TPOT counts waiting in the pool; TPOT decoding does not."]


def plain(result: Result, width: int = 120) -> str:
    """The whole report as plain text, columns aligned, numbers to the right, a newline at the end."""
    lines = [*heading(result), ""]
    for rows in fitting(table(result["runs"]), width):
        widths = _widths(rows)
        for position, row in enumerate(rows):
            padding = [" " * (w - text.columns(cell.text)) for w, cell in zip(widths, row, strict=True)]
            cells = [pad + cell.text for pad, cell in zip(padding, row, strict=True)]
            cells[0] = row[0].text + padding[0]
            for column in range(3, len(cells), 2):  # ratios to the left, so that their words stand under each other
                cells[column] = row[column].text + padding[column]
            lines.append(_GAP.join(cells).rstrip())
            if position == 0:
                lines.append(_GAP.join("-" * w for w in widths))
        lines.append("")
    lines += footing(result)
    while not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n"


def _print_rich(result: Result, stream: TextIO, width: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text objects are never read as markup; names were made printable before they got here.
    console = Console(file=stream, width=width, highlight=False)
    for line in heading(result):
        console.print(Text(line, style="bold"))
    for rows in fitting(table(result["runs"]), width):
        grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column, cell in enumerate(rows[0]):
            ratio = column == 0 or (column > 1 and column % 2 == 1)
            grid.add_column(Text(cell.text), justify="left" if ratio else "right", no_wrap=True)
        for row in rows[1:]:
            grid.add_row(*(Text(cell.text, style=_COLOURS[cell.verdict]) for cell in row))
        console.print(grid)
    for line in footing(result):
        console.print(Text(line, style="dim"))


def print_report(result: Result, stream: TextIO) -> None:
    """Write the report to ``stream``: with `rich` if it is installed and the stream a terminal, plain otherwise."""
    terminal = stream.isatty()
    width = shutil.get_terminal_size((120, 24)).columns if terminal else 120
    utf = text.encodable("×", stream) == "×"
    if terminal and utf and importlib.util.find_spec("rich") is not None:
        _print_rich(result, stream, width)
    else:
        stream.write(text.encodable(plain(result, width), stream))
    stream.flush()

"""What ``advise`` found, for a person: the fit and its evidence, two policies and the bound, the verdict, what next."""

from __future__ import annotations

import importlib.util
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from . import text
from .terminal import METRICS, Cell, compared

_ROWS = ("throughput", "TTFT p50", "TTFT p99", "TPOT mean", "TPOT p99", "ITL p99", "E2E mean", "E2E p99",
         "iteration bubble", "preemptions", "simulated time")  # fmt: skip
WIDTH = 118  # of plain lines
_COLOURS = {"better": "green", "worse": "red", "same": "", "": ""}
Result = Mapping[str, Any]


def surface_lines(result: Result) -> list[str]:
    """The surface and its coefficients, how well it fits, and what speaks against the other kinds."""
    log, surface = result["log"], result["surface"]
    chunk = surface["per_row"] + surface["per_prompt"]
    parts = [f"{text.seconds(surface['t0'])} + {text.seconds(surface['per_row'])} a member"]
    unit = "tokens of members times the longest" if surface["surface"] == "padded" else "tokens of context"
    parts.append(f"{text.seconds(1e3 * surface['per_token'])} a thousand {unit}")
    parts.append(f"{text.seconds(1e3 * chunk)} a thousand prefill tokens")
    if surface["surface"] in ("unsplit", "gated"):
        since = f" from {surface['gate']:.0f} members on" if surface["surface"] == "gated" else ""
        longest = text.seconds(1e3 * surface["longest_per_token"])
        parts.append(f"at least {longest} a thousand tokens of the longest{since}")
    lines = [
        f"surface: {surface['surface']}, from {log['steps']:,} steps ({log['decode_only']:,} without prefill)",
        f"  a step: {', '.join(parts)}",
        f"  error: {text.percent(log['median_error'])} median, {text.percent(log['p90_error'])} at the 90th percentile",
    ]
    for kind in result["kinds"]:
        if kind["kind"] != surface["surface"]:
            lines.append(f"  {kind['kind']}: {_evidence(kind, log)}")
    return lines


def _evidence(kind: Result, log: Result) -> str:
    """What the log says about a kind that was not chosen."""
    if kind["excluded"]:
        return f"excluded, {text.percent(kind['off'])} of the steps are off by more than {text.percent(log['far'])}"
    if kind["imbalance"] is None:
        return "explains the log no better"
    return f"not excluded; imbalance in batches of the trace would cost {text.percent(kind['imbalance'])} at most"


def engine_line(result: Result) -> str:
    """What was simulated on."""
    engine = result["engine"]
    guessed = engine["read_off_the_log"]
    told = f" ({', '.join(guessed)}: the most the log had)" if guessed else ""
    return (
        f"engine: {engine['kv_blocks']:,} KV blocks of {engine['block_size']} tokens, "
        f"{engine['max_members']:,} members, {engine['max_tokens']:,} tokens a step{told}"
    )


def work_line(result: Result) -> str:
    """What was simulated."""
    work, load = result["workload"], result["load"]
    arrivals = "all at once" if load is None else f"load {load:.2f}"
    return (
        f"trace: {text.printable(work['name'], 60)}, {work['requests']:,} requests, "
        f"{text.quantity(work['prompt_tokens'])} prompt tokens, {text.quantity(work['output_tokens'])} output tokens, "
        f"{arrivals}"
    )


def table(result: Result) -> list[list[Cell]]:
    """Rows of cells, the header first: label, both policies, their ratio, the bound."""
    plain, aligned = result["runs"]
    rows = [[Cell(""), Cell(plain["policy"]), Cell(aligned["policy"]), Cell(f"/ {plain['policy']}"), Cell("bound")]]
    least = plain["bound_s"]
    known = {"simulated time": text.seconds(least)}
    if least:
        known["throughput"] = text.rate(plain["output_tokens"] / least)
    for metric in METRICS:
        if metric.label in _ROWS:
            shown = [Cell(metric.show(metric.value(run))) for run in (plain, aligned)]
            rows.append(
                [Cell(metric.label), *shown, compared(metric, aligned, plain), Cell(known.get(metric.label, ""))]
            )
    return rows


def alternative_lines(result: Result) -> list[str]:
    """What the other surfaces that the log allows would give."""
    lines = []
    for other in result["alternatives"]:
        share = text.percent(other["imbalance"])
        lines.append(
            f"were it {other['costs']['surface']} (not excluded; imbalance would cost {share} of such steps): "
            f"throughput {text.factor(other['throughput'])}, {text.factor(other['e2e_mean'])} as fast to the end"
        )
    return lines


def plain(result: Result) -> str:
    """The whole report as plain text."""
    rows = table(result)
    widths = [max(text.columns(row[at].text) for row in rows) for at in range(5)]
    lines = [*_wrapped([*surface_lines(result), engine_line(result), work_line(result)]), ""]
    for number, row in enumerate(rows):
        pads = [" " * (width - text.columns(cell.text)) for width, cell in zip(widths, row, strict=True)]
        cells = [pad + cell.text for pad, cell in zip(pads, row, strict=True)]
        cells[0], cells[3] = row[0].text + pads[0], row[3].text + pads[3]
        lines.append("  ".join(cells).rstrip())
        if not number:
            lines.append("  ".join("-" * width for width in widths))
    lines += ["", *_wrapped(closing(result))]
    return "\n".join(lines) + "\n"


def _wrapped(lines: Sequence[str]) -> list[str]:
    """Long lines broken between words, what follows indented."""
    broken: list[str] = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        broken += textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return broken


def closing(result: Result) -> list[str]:
    """Alternatives, the verdict, what to measure next."""
    lines = alternative_lines(result)
    lines.append(f"verdict: {result['verdict']['sentence']}.")
    lines += [f"next: {advice}." for advice in result["measure_next"]]
    return lines


def print_advice(result: Result, stream: TextIO) -> None:
    """Write the report: with `rich` if it is installed and the stream a terminal, plain otherwise."""
    terminal = stream.isatty() and text.encodable("×", stream) == "×"
    if terminal and importlib.util.find_spec("rich") is not None:
        _print_rich(result, stream)
    else:
        stream.write(text.encodable(plain(result), stream))
    stream.flush()


def _print_rich(result: Result, stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, width=shutil.get_terminal_size((120, 24)).columns, highlight=False)
    _print_lines(console, [*surface_lines(result), engine_line(result), work_line(result)], "")
    rows = table(result)
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for at, cell in enumerate(rows[0]):
        grid.add_column(Text(cell.text), justify="left" if at in (0, 3) else "right", no_wrap=True)
    for row in rows[1:]:
        grid.add_row(*(Text(cell.text, style=_COLOURS[cell.verdict]) for cell in row))
    console.print(grid)
    *before, _ = closing(result)[: len(result["alternatives"]) + 1]
    _print_lines(console, before, "")
    _print_lines(console, [f"verdict: {result['verdict']['sentence']}."], "bold")
    _print_lines(console, [f"next: {advice}." for advice in result["measure_next"]], "dim")


def _print_lines(console: Any, lines: Sequence[str], style: str) -> None:
    from rich.text import Text

    for line in lines:
        console.print(Text(line, style=style))

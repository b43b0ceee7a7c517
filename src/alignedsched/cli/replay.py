"""`alignedsched replay`: make the decisions of recorded runs again, and report the first that comes out differently."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..report.text import columns, count, encodable, printable
from ..story.log import SUFFIX
from ..story.replay import Replayed, replay
from .arguments import Parser, UsageError, add_timeline, check_timeline
from .reports import Reports

if TYPE_CHECKING:
    from ..report.lookout import Lookout
    from ..scheduler import Scheduler

DESCRIPTION = """\
Make the decisions of recorded runs again, call by call, and hold each plan against the recorded one, byte by byte.
LOG is a log that `compare --record` or a RecordedScheduler wrote, or a folder of them.
"""
EPILOG = """\
exit codes: 0 every plan is the same, 1 a plan differs, 2 wrong use, or a log that is not as it was written.
docs/story.md says what a log holds, and how to send one.
"""
_GAP = "  "
_RIGHT = (2, 3)  # columns of numbers


def run_replay(argv: Sequence[str]) -> int:
    """Replay, print a table and the first difference of each log; returns the exit code.

    Raises UsageError for wrong options, LogError for a log that is not as it was written.
    """
    given = _parser().parse_args(list(argv))
    check_timeline(given.timeline, given.timeline_until)
    timeline = None if given.timeline is None else Path(given.timeline)
    logs = logs_of(given.logs)
    if timeline is not None and any(os.path.realpath(timeline) == os.path.realpath(log) for log in logs):
        raise UsageError(f"--timeline and a log name the same file, {given.timeline!r}")
    with Reports(None, timeline, given.timeline_until) as reports:
        results = [_replay(path, reports.watch) for path in logs]
        reports.write([f"replay of {printable(path.name, 60)}" for path in logs])
    print_replayed(results, sys.stdout)
    reports.say()
    return 1 if any(result.difference is not None for result in results) else 0


def _replay(path: Path, watch: Lookout | None) -> Replayed:
    """Replay one log, looked on by ``watch``: each process that wrote it is a run of its own."""
    if watch is None:
        return replay(path)
    starts = 0

    def begin(scheduler: Scheduler) -> None:
        nonlocal starts
        if starts:
            watch.end()
        starts += 1
        watch.begin(scheduler.policy.name if starts == 1 else f"{scheduler.policy.name} ({starts})", scheduler)

    result = replay(path, begin=begin, observe=watch.after)
    watch.end()
    return result


def _parser() -> Parser:
    parser = Parser(
        prog="alignedsched replay",
        usage="alignedsched replay LOG [LOG ...] [--timeline FILE [--timeline-until SECONDS]]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("logs", metavar="LOG", nargs="+", help="a log, or a folder of logs")
    add_timeline(parser)
    parser.add_argument("-h", "--help", action="help", help="show this and leave")
    return parser


def logs_of(names: Sequence[str]) -> list[Path]:
    """The logs of these names, those of folders in order. Raises UsageError where there are none."""
    logs: list[Path] = []
    for path in map(Path, names):
        found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"folder {str(path)!r} has no logs (*{SUFFIX})")
        if not path.exists():
            raise UsageError(f"log {str(path)!r} does not exist")
        logs += found
    return logs


def table(results: Sequence[Replayed]) -> list[list[str]]:
    """Rows of texts, the header first."""
    rows = [["log", "policy", "calls", "events", "result"]]
    for result in results:
        said = "every plan the same" if result.difference is None else f"call {result.difference.call.number} differs"
        said += "; cut off at its end" if result.torn else ""
        said += f"; {result.starts} processes" if result.starts > 1 else ""
        name = Path(result.path).name
        rows.append(
            [printable(name, 60), printable(result.policy, 28), count(result.calls), count(result.events), said]
        )
    return rows


def print_replayed(results: Sequence[Replayed], stream: TextIO) -> None:
    """The table, with `rich` if it is installed and the stream a terminal, and below it what differs first."""
    rows = table(results)
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        _print_rich(rows, stream)
    else:
        widths = [max(columns(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            cells = [
                " " * (width - columns(cell)) + cell if i in _RIGHT else cell + " " * (width - columns(cell))
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            stream.write(encodable(_GAP.join(cells).rstrip() + "\n", stream))
    for result in results:
        if result.difference is not None:
            stream.write("\n")
            heading = f"{result.path}, written by version {result.library}, first differs in"
            lines = (heading, *result.difference.lines())
            stream.writelines(encodable(f"{printable(line)}\n", stream) for line in lines)
    stream.flush()


def _print_rich(rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(rows[0]):
        grid.add_column(Text(name), justify="right" if i in _RIGHT else "left")
    for row in rows[1:]:
        colour = "red" if "differs" in row[-1] else "green"
        grid.add_row(*map(Text, row[:-1]), Text(row[-1], style=colour))
    Console(file=stream, highlight=False).print(grid)

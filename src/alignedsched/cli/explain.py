"""`alignedsched explain`: the story of a request, of a batch or of a moment, out of the logs of recorded runs."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ..outside import is_number
from ..report.text import encodable, printable
from ..story.explain import LogFile, explain_batch, explain_request, explain_time
from ..story.sentences import Sentence, moment
from .arguments import Parser, UsageError
from .replay import logs_of

DESCRIPTION = """\
Tell why: the recorded calls are made again, and every decision says its rule and its figures.
LOG is a log that `compare --record` or a RecordedScheduler wrote, or a folder of them.
"""
EPILOG = """\
examples:
  Why did a request wait?
    alignedsched explain runs --request r17

  Who decoded together, from the 40th order of a lane on?
    alignedsched explain runs/1-fcfs.alog --batch lane-d0/40

  What was where two minutes into the run?
    alignedsched explain runs --time 120

exit codes: 0 told, 2 wrong use, nothing of that name, or a log that is not as it was written.
docs/explain.md says how to read the sentences.
"""
_TIME = 14  # columns


def run_explain(argv: Sequence[str]) -> int:
    """Tell the story that is asked for, of each log; returns the exit code.

    Raises UsageError for wrong options, CallerError for what is not in a log, LogError for a log that is not as it
    was written.
    """
    given = _parser().parse_args(list(argv))
    asked = [option for option in ("request", "batch", "time") if getattr(given, option) is not None]
    if len(asked) != 1:
        raise UsageError(f"say what to explain: one of --request ID, --batch LANE/ORDER, --time T; {len(asked)} given")
    logs = logs_of([given.log])
    for number, path in enumerate(logs):
        told = _tell(path, given)
        if len(logs) > 1:
            _print_heading(path, sys.stdout, first=number == 0)
        print_story(told, sys.stdout)
    return 0


def _tell(path: Path, given: argparse.Namespace) -> list[Sentence]:
    log = LogFile(path)
    if given.request is not None:
        return explain_request(log, given.request)
    if given.batch is not None:
        return explain_batch(log, given.batch)
    return explain_time(log, given.time)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not is_number(value):
        raise argparse.ArgumentTypeError(f"must be seconds on the log's clock, got {text!r}")
    return value


def _parser() -> Parser:
    parser = Parser(
        prog="alignedsched explain",
        usage="alignedsched explain LOG (--request ID | --batch LANE/ORDER | --time T)",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("log", metavar="LOG", help="a log, or a folder of logs")
    parser.add_argument("--request", metavar="ID", help="a request, from its arrival to its end")
    parser.add_argument("--batch", metavar="LANE/ORDER", help="the batch that an order of a lane stands for")
    parser.add_argument("--time", metavar="T", type=_seconds, help="what was where at so many seconds")
    parser.add_argument("-h", "--help", action="help", help="show this and leave")
    return parser


def _print_heading(path: Path, stream: TextIO, *, first: bool) -> None:
    stream.write(encodable(f"{'' if first else chr(10)}{printable(path.name)}\n", stream))


def print_story(told: Sequence[Sentence], stream: TextIO) -> None:
    """Sentences behind their times, wrapped to the terminal; with `rich` if it is there and the stream a terminal."""
    terminal = stream.isatty()
    width = max(40, shutil.get_terminal_size((120, 24)).columns if terminal else 120)
    if terminal and importlib.util.find_spec("rich") is not None:
        _print_rich(told, stream)
        return
    stream.writelines(encodable(plain(sentence, width), stream) for sentence in told)
    stream.flush()


def plain(sentence: Sentence, width: int) -> str:
    """One sentence as lines of at most ``width`` columns, its time in front, a newline at the end."""
    lines = textwrap.wrap(printable(sentence.text), max(20, width - _TIME - 2), break_on_hyphens=False)
    head = f"{moment(sentence.at):>{_TIME}}  "
    return "".join(f"{head if number == 0 else ' ' * len(head)}{line}\n" for number, line in enumerate(lines))


def _print_rich(told: Sequence[Sentence], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for sentence in told:
        grid.add_row(Text(moment(sentence.at)), Text(printable(sentence.text)))  # Text is never read as markup
    Console(file=stream, highlight=False).print(grid)

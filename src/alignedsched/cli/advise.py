"""`alignedsched advise`: does the default policy pay on my machine? From a step log of the engine and a trace."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..outside import printable
from ..report.progress import ProgressLine
from ..report.text import encodable
from .arguments import POSITIVE, SOME, Parser, UsageError
from .distinct import check_distinct, files_read
from .files import JsonFile

DESCRIPTION = """\
Does it pay on my machine? Fits a cost surface to a log of your engine's steps, then runs your trace with it in
simulated time: continuous batching, the default policy and the lower bound side by side, with a verdict.
"""
EPILOG = """\
examples:
  Requests as they arrived, on the engine as the log shows it:
    alignedsched advise --trace requests.csv --steps steps.jsonl

  The busy hour, with the KV memory your engine prints when it starts:
    alignedsched advise --trace requests.csv --steps steps.csv --load 0.9 --kv-blocks 27000

step log:
  one line a step: n decode members, total and longest of their context lengths, prefill tokens, ms. As CSV with the
  header n,total,longest,prefill,ms or as JSONL with these keys. docs/advise.md says how to get it.

exit codes: 0 advised, 2 wrong use or bad input, 130 interrupted, 1 any other failure.
"""


def run_advise(argv: Sequence[str]) -> int:
    """Check options and files, fit, simulate, print; returns the exit code.

    Raises UsageError for wrong options, TraceError for a bad trace or log, ConfigError for what does not fit together.
    """
    given = vars(_parser().parse_args(list(argv)))
    outputs = {"--json": given.pop("json"), "--costs": given.pop("costs")}
    options = {name: value for name, value in given.items() if value is not None}
    for option in ("trace", "steps"):
        if option not in options:
            raise UsageError(f"--{option} FILE is missing (see `alignedsched advise --help`)")
        if not Path(str(options[option])).is_file():
            raise UsageError(f"--{option} {str(options[option])!r} is no file")
    read = {f"--{name}": Path(str(options[name])) for name in ("trace", "steps")}
    written = {option: Path(str(path)) for option, path in outputs.items() if path is not None}
    check_distinct({**files_read(options), **read, **written})
    # Imported late: help and wrong options are answered before numpy and the simulator are loaded.
    from ..costs import AffineCosts
    from ..report.advice import print_advice
    from ..sim.advise import AdviseSettings, advise

    settings = AdviseSettings(**options)
    json_file, costs_file = (JsonFile(written.get(option), option) for option in outputs)
    with json_file, costs_file:
        progress = ProgressLine(sys.stderr)
        try:
            result = advise(settings, progress)
        finally:
            progress.clear()
        json_file.write(result)
        costs_file.write(AffineCosts(**result["surface"]).content())
    print_advice(result, sys.stdout)
    for option, path in written.items():
        what = "result" if option == "--json" else "costs"
        sys.stderr.write(encodable(f"{what} written to {printable(str(path))}\n", sys.stderr))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="alignedsched advise",
        usage="alignedsched advise --trace FILE --steps LOG [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    group = parser.add_argument_group("what happened")
    group.add_argument("--trace", metavar="FILE", help="your requests, as for compare: CSV or JSONL, plain or gzip")
    group.add_argument("--steps", metavar="LOG", help="a log of your engine's steps")
    group.add_argument("--format", metavar="F", help="the trace's form, where it is not recognised by itself")
    group.add_argument("--limit", metavar="N", type=SOME, help="take only the first N requests")
    group = parser.add_argument_group("how requests arrive (at most one; default: as recorded)")
    group.add_argument("--load", metavar="F", type=POSITIVE, help="scale arrivals to this load")
    group.add_argument("--rate-scale", metavar="X", type=POSITIVE, help="arrivals X times as fast as recorded")
    group.add_argument("--offline", action="store_true", default=None, help="every request is there at the start")
    group = parser.add_argument_group("your engine (default: the most that the log shows)")
    group.add_argument("--kv-blocks", metavar="N", type=SOME, help="blocks of KV memory, as the engine prints them")
    group.add_argument("--max-members", metavar="N", type=SOME, help="requests that may decode together")
    group.add_argument("--max-tokens", metavar="N", type=SOME, help="tokens a step, prefill included")
    group.add_argument("--block-size", metavar="N", type=SOME, help="tokens a block (default: 16)")
    group.add_argument(
        "--hardware", metavar="H", help="a GPU by name, as for compare: its KV blocks, members and tokens"
    )
    group.add_argument("--model", metavar="M", help="the model on it: a name, or the path of its config.json")
    group = parser.add_argument_group("result")
    group.add_argument("--json", metavar="FILE", help="also write everything as JSON (docs/advise.md)")
    group.add_argument("--costs", metavar="FILE", help="write the fitted costs, for an adapter or Hooks")
    group.add_argument("-h", "--help", action="help", help="show this and leave")
    return parser

"""What the command understands: options, their help, and one clear sentence for each wrong one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from ..errors import CallerError
from ..load import SURFACES
from ..outside import is_number
from ..sim.settings import DEFAULT_LOAD, DEFAULT_POLICIES, TOPOLOGIES

COMMANDS = ("compare", "advise", "replay", "explain")
DESCRIPTION = """\
Decide which LLM requests decode together, and see what it costs and wins.

Commands:
  compare   run scheduling policies on the same workload over a modelled cluster
  advise    tell whether it pays on your machine, from a log of your engine's steps and a trace
  replay    make the recorded decisions of a run again, and report the first that differs
  explain   tell why a request waited, what a batch was, what was where at a time

`alignedsched COMMAND --help` has the options and examples.
"""

COMPARE_DESCRIPTION = """\
Run scheduling policies on the same workload over a modelled GPU cluster, in simulated time, and print one table:
throughput, latencies, idle time, copies, and each policy's ratio to the first one, wins and losses alike.
"""

COMPARE_EXAMPLES = f"""\
examples:
  The baseline, the default and the paper's policy on synthesised long-context conversations:
    alignedsched compare --workload mooncake

  A trace of your own, at the rate it was recorded, result kept as JSON:
    alignedsched compare --trace requests.csv.gz --rate-scale 1 --json result.json

  Deep queue, separate prefill GPUs, four decoding lanes:
    alignedsched compare --workload mooncake --topology disaggregated --lanes 4 --offline

traces:
  CSV or JSONL, plain or gzip: Azure's LLM inference traces, Mooncake's, or a file with arrival_s, prompt_tokens and
  output_tokens. The form is recognised from the first line.

load:
  F is a lower bound on the time of the work, divided by the span of the arrivals: above 1, no schedule keeps up.
  Arrival times are stretched or squeezed to reach it. Without --load, --rate-scale or --offline it is {DEFAULT_LOAD}.

exit codes: 0 done, 2 wrong use or bad input, 130 interrupted, 1 any other failure.
A name that is not known is answered with the list of those that are.
"""


class UsageError(CallerError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError with one sentence instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')} (see `{self.prog} --help`)")


def _number(convert: Callable[[str], float], least: float, words: str, above: bool) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not is_number(value, least) or (above and value == least):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")
        return value

    return read


SOME = _number(int, 1, "a whole number of at least 1", above=False)
_SEED = _number(int, 0, "a whole number of at least 0", above=False)
POSITIVE = _number(float, 0, "a finite number above 0", above=True)


def _version() -> str:
    try:
        return version("alignedsched")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to run (one of the first two)")
    group.add_argument("--workload", metavar="NAME", help="a built-in workload, synthesised: needs no file")
    group.add_argument("--trace", metavar="FILE", help="a trace file, plain or gzip")
    group.add_argument("--format", metavar="F", help="the trace's form, where it is not recognised by itself")
    group.add_argument("--requests", metavar="N", type=SOME, help="how many requests to synthesise for --workload")
    group.add_argument("--limit", metavar="N", type=SOME, help="take only the first N requests")
    group.add_argument("--seed", metavar="N", type=_SEED, help="seed of everything that is drawn (default: 0)")
    group.add_argument(
        "--skip-bad-rows", metavar="FILE", help="put a trace's bad rows into FILE and go on, instead of stopping"
    )
    group.add_argument(
        "--any-length", action="store_true", default=None, help="ignore how many positions the model was made for"
    )
    group = parser.add_argument_group("how requests arrive (at most one)")
    group.add_argument(
        "--load", metavar="F", type=POSITIVE, help=f"scale arrivals to this load, see below (default: {DEFAULT_LOAD})"
    )
    group.add_argument(
        "--rate-scale", metavar="X", type=POSITIVE, help="arrivals X times as fast as recorded (1: as recorded)"
    )
    group.add_argument("--offline", action="store_true", default=None, help="every request is there at the start")


def _add_system(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who decides")
    group.add_argument(
        "--policy",
        metavar="P",
        dest="policies",
        action="append",
        help=f"a policy; repeat to compare several (default: {', '.join(DEFAULT_POLICIES)})",
    )
    group = parser.add_argument_group("on what")
    group.add_argument(
        "--hardware",
        metavar="H",
        help="the GPU that is modelled (default: h100), or a .json file that `alignedsched-torch calibrate` wrote: "
        "that machine with its own model (FILE:KERNEL: under another kernel than its engine's)",
    )
    group.add_argument(
        "--model", metavar="M", help="a known model, or the path of its config.json (default: llama-3.1-8b)"
    )
    group.add_argument(
        "--topology",
        metavar="{" + ",".join(TOPOLOGIES) + "}",
        help="prefill and decode on the same GPUs, or on separate ones (default: colocated)",
    )
    group.add_argument("--lanes", metavar="N", type=SOME, help="GPUs or groups that decode (default: 1)")
    group.add_argument(
        "--ranks",
        metavar="N",
        type=SOME,
        help="GPUs or groups of each decoding lane that step together: data-parallel attention (default: 1)",
    )
    group.add_argument(
        "--surface",
        metavar="{" + ",".join(SURFACES) + "}",
        help="what a decode step costs; gated is as measured for FlashAttention-type kernels (default: gated)",
    )
    group.add_argument(
        "--no-staging",
        dest="staging",
        action="store_false",
        default=None,
        help="hold no KV on helper GPUs ahead of a switch",
    )


def add_timeline(group: argparse._ActionsContainer) -> None:
    """The options of commands that can write a timeline."""
    group.add_argument(
        "--timeline", metavar="FILE", help="also write what happened when, for Perfetto; .gz is packed (docs/report.md)"
    )
    group.add_argument(
        "--timeline-until", metavar="SECONDS", type=POSITIVE, help="only the first so many simulated seconds of it"
    )


def check_timeline(timeline: object, until: object) -> None:
    """Raise UsageError for the end of a timeline that was not asked for."""
    if until is not None and timeline is None:
        raise UsageError("--timeline-until is where a timeline ends: it goes with --timeline FILE")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument("--json", metavar="FILE", help="also write everything as JSON (docs/json.md)")
    group.add_argument("--html", metavar="FILE", help="also write a page with tables and plots (docs/report.md)")
    add_timeline(group)
    group.add_argument("--record", metavar="DIR", help="keep a log of each policy's run in DIR (docs/story.md)")
    group.add_argument("-h", "--help", action="help", help="show this and leave")


def _parsers() -> tuple[Parser, Parser]:
    """The command's own parser, and the one of `compare`."""
    shape = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog="alignedsched",
        usage="alignedsched COMMAND [options]",
        description=DESCRIPTION,
        formatter_class=shape,
        allow_abbrev=False,
        add_help=False,
    )
    top.add_argument("-h", "--help", action="help", help="show this and leave")
    top.add_argument("--version", action="version", version=f"alignedsched {_version()}", help="show the version")
    compare = Parser(
        prog="alignedsched compare",
        usage="alignedsched compare (--workload NAME | --trace FILE) [--policy P ...] [options]",
        description=COMPARE_DESCRIPTION,
        epilog=COMPARE_EXAMPLES,
        formatter_class=shape,
        allow_abbrev=False,
        add_help=False,
    )
    _add_workload(compare)
    _add_system(compare)
    _add_output(compare)
    return top, compare


def parse(argv: Sequence[str]) -> dict[str, object]:
    """The options of `compare` that were given, by name. Help and version print and raise SystemExit.

    Raises UsageError with one sentence naming what is wrong.
    """
    top, compare = _parsers()
    if not argv or argv[0].startswith("-"):
        _, rest = top.parse_known_args(argv)
        what = f"unknown option {rest[0]!r}" if rest else "say what to do"
        raise UsageError(f"{what}; commands: {', '.join(COMMANDS)} (see `alignedsched --help`)")
    if argv[0] != "compare":
        raise UsageError(f"unknown command {argv[0]!r}; known: {', '.join(COMMANDS)}")
    given, rest = compare.parse_known_args(argv[1:])
    if rest and rest[0].startswith("-"):
        known = sorted(option for action in compare._actions for option in action.option_strings if len(option) > 2)
        raise UsageError(f"unknown option {rest[0]!r}; known: {', '.join(known)}")
    if rest:
        raise UsageError(
            f"{rest[0]!r} is not expected here: every value follows its option (see `{compare.prog} --help`)"
        )
    options = {name: value for name, value in vars(given).items() if value is not None}
    _check_together(options)
    return options


def _check_together(options: dict[str, object]) -> None:
    """Options that exclude each other, in the command's own words."""
    sources = [name for name in ("workload", "trace") if name in options]
    if len(sources) != 1:
        given = "not both" if sources else "neither was given"
        raise UsageError(f"say what to run: --workload NAME or --trace FILE, {given}")
    arrivals = [f"--{name.replace('_', '-')}" for name in ("load", "rate_scale", "offline") if name in options]
    if len(arrivals) > 1:
        raise UsageError(f"{' and '.join(arrivals)} exclude each other: both say how requests arrive")
    for name, why in (("format", "describes"), ("skip_bad_rows", "is about")):
        if name in options and "trace" not in options:
            raise UsageError(f"--{name.replace('_', '-')} {why} a file: it goes with --trace, not with --workload")
    check_timeline(options.get("timeline"), options.get("timeline_until"))
    if "requests" in options and "trace" in options:
        raise UsageError("--requests is the size of a --workload; with --trace, --limit N takes the first N requests")

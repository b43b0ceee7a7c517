"""`alignedsched-torch calibrate`: options, progress on stderr, and the file that appears whole or not at all."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from alignedsched.cli.files import JsonFile
from alignedsched.report.text import encodable, printable

if TYPE_CHECKING:
    from alignedsched.measured import Measured

EXAMPLES = """\
examples:
  alignedsched-torch calibrate -o this-machine.json --model DIR --device cuda --minutes 5
  alignedsched compare --workload mooncake --offline --hardware this-machine.json
  alignedsched-torch generate --model DIR --costs this-machine.json --policy cost_aligned --prompts prompts.jsonl
"""
_REDRAW_S = 0.2
_PLAIN_S = 20.0  # between lines where nothing can be redrawn


def add(commands: Any) -> None:
    """Add the subcommand to an argument parser's subcommands."""
    parser = commands.add_parser(
        "calibrate", help="measure this machine", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="where the measurements go")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--model", metavar="DIR", help="a model folder (default: random weights, see docs/calibrate.md)")
    what.add_argument("--device", metavar="D", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    what.add_argument("--dtype", metavar="T", help="float64, float32, bfloat16 or float16 (default: the model's own)")
    what.add_argument("--attention", metavar="A", action="append", help="attention kernel; repeat to measure several, "
                      "the first is the engine's (default: auto)")  # fmt: skip
    what.add_argument("--minutes", metavar="M", type=float, default=2.0, help="about how long it takes (default: 2)")
    size = parser.add_argument_group("the engine it is for")
    size.add_argument("--kv-tokens", metavar="N", type=int, help="KV memory of the device (default: what is there)")
    size.add_argument("--host-tokens", metavar="N", type=int, default=65536, help="of the host (default: 65536)")
    size.add_argument("--page-size", metavar="N", type=int, default=16, help="tokens a KV page (default: 16)")
    size.add_argument("--max-members", metavar="N", type=int, default=256, help="requests a step (default: 256)")
    size.add_argument("--max-tokens", metavar="N", type=int, default=2048, help="tokens a step (default: 2048)")


def run(given: argparse.Namespace) -> None:
    """Measure, write, and say how good it is. Raises ConfigError for options that are wrong."""
    from ..clusters import Sizes
    from .run import Wanted, calibrate

    sizes = Sizes(given.kv_tokens, given.host_tokens, given.page_size, given.max_members, given.max_tokens)
    attention = tuple(given.attention or ("auto",))
    wanted = Wanted(given.model, given.device, given.dtype, attention, given.minutes, sizes)
    progress = ProgressLine(sys.stderr)
    with JsonFile(given.output, "--output") as file:
        try:
            measured = calibrate(wanted, progress.tell)
        finally:
            progress.close()
        file.write(measured.content())
    sys.stderr.write(encodable(summary(measured, str(given.output)), sys.stderr))


def summary(measured: Measured, path: str) -> str:
    """A few lines: how far predictions were off, what links do, where it stands."""
    lines = []
    for name, kernel in measured.kernels.items():
        for kind, errors in kernel.held_out.items():
            lines.append(
                f"{name}, {kind} steps not seen: off by {errors.p50:.1%} at the median, {errors.p90:.1%} at 90 % "
                f"(bias {errors.bias:+.1%}, {errors.cases} cases)"
            )
    for name, link in measured.links.items():
        lines.append(f"{name}: {link.bytes_per_s / 1e9:.1f} GB/s + {link.latency_s * 1e6:.0f} us")
    return "".join(f"{printable(line)}\n" for line in [*lines, f"written to {path}"])


class ProgressLine:
    """What is being measured: rewritten in place on a terminal, now and then a line elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._began = time.monotonic()
        self._drawn = -_PLAIN_S
        self._width = 0

    def tell(self, what: str, done: int, of: int) -> None:
        """So much of this is done."""
        spent = time.monotonic() - self._began
        if spent - self._drawn < (_REDRAW_S if self._terminal else _PLAIN_S):
            return
        self._drawn = spent
        line = printable(f"{what}: {done} of {of}, {spent:.0f} s")
        ends = ("\r", "") if self._terminal else ("", "\n")
        self._stream.write(encodable(ends[0] + line.ljust(self._width) + ends[1], self._stream))
        self._stream.flush()
        self._width = len(line) if self._terminal else 0

    def close(self) -> None:
        """Leave a clean line."""
        if self._terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()

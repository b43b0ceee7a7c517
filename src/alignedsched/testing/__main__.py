"""``python -m alignedsched.testing``: conformance suites from the command line, with as many seeds as one likes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import AlignedSchedError
from .policy_suite import check_policy, digests
from .subjects import imported


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m alignedsched.testing", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, subject in (("policy", "a registered name"), ("executor", "sim")):
        command = commands.add_parser(name, help=f"check {subject}, or what 'module:attribute' makes")
        command.add_argument("subject")
        command.add_argument("--seeds", type=int, default=100, help="how many lives (default: %(default)s)")
        command.add_argument("--first", type=int, default=0, help="seed of the first life")
        command.add_argument("--events", type=int, default=150, help="length of one life (default: %(default)s)")
    command = commands.add_parser("digest", help="one digest of all plans for each life, to compare processes")
    command.add_argument("subject")
    command.add_argument("--events", type=int, required=True)
    command.add_argument("--seeds", type=int, nargs="+", required=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if everything passed, 1 if a check failed, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "digest":
            sys.stdout.write("\n".join(digests(options.subject, options.seeds, options.events)) + "\n")
            return 0
        seeds = range(options.first, options.first + options.seeds)
        if options.command == "policy":
            report = check_policy(options.subject, seeds=seeds, events=options.events)
        else:
            from .executor_suite import check_executor, simulated

            factory = simulated if options.subject == "sim" else imported(options.subject)
            report = check_executor(factory, seeds=seeds, requests=options.events)
    except AlignedSchedError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{report}\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())

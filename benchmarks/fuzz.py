"""Fuzzing of everything that reads what others wrote: only documented errors, bounded work, bounded memory.

    python -m benchmarks.fuzz --inputs 1e6 [--target NAME ...] [--seed S] [--json FILE]

Inputs are made by changing sound ones (``fuzz_values``); what they are fed to is a table (``fuzz_targets``). An input
is known by target, seed and number, and made again from these. Work is bounded by counting function calls in every
fourth input, not by a clock: a fixed number and some per byte; a watchdog stops what hangs, by CPU time, and the
command limits its own memory. FILE is added to, so that a long run may be done in
parts (``--first`` says where to go on).
"""

from __future__ import annotations

import argparse
import collections
import json
import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from attrs import define, evolve, field

from alignedsched import __version__
from alignedsched.errors import AlignedSchedError, InvariantError, PolicyError
from benchmarks.fuzz_targets import Target, targets

CALLS, CALLS_PER_BYTE = 60_000, 150
COUNTED_EVERY = 4  # counting doubles the time of an input
LONGEST_MESSAGE = 3000  # characters an error may take to say what is wrong
MEMORY = 3 * 2**30
HANG_S = 20


class WorkError(Exception):
    """One input cost more calls than its size allows, or the watchdog rang."""


@contextmanager
def counted(most: int) -> Iterator[None]:
    """At most so many function calls inside, or WorkError."""
    left = most

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if not event.endswith("call"):
            return
        left -= 1
        if left < 0:
            sys.setprofile(None)
            raise WorkError(f"more than {most} calls")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


@define
class Finding:
    """An input that did what no input may do: how to make it again, and where it went wrong."""

    target: str
    seed: int
    number: int
    error: str
    place: str
    times: int = 1


@define
class Tally:
    """What came of the inputs of one target."""

    inputs: int = 0
    accepted: int = 0
    refused: collections.Counter[str] = field(factory=collections.Counter)
    longest_input: int = 0
    seconds: float = 0.0
    findings: dict[tuple[str, str], Finding] = field(factory=dict)


def rng_of(target: str, seed: int, number: int) -> Random:
    """The chance an input is made of."""
    return Random(f"{target}/{seed}/{number}")


def place_of(error: BaseException) -> str:
    """The innermost line of the library that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/alignedsched/" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def feed(target: Target, seed: int, number: int, tally: Tally) -> None:
    """Make one input and feed it; whatever must not happen becomes a finding."""
    payload, size = target.make(rng_of(target.name, seed, number))
    tally.inputs += 1
    tally.longest_input = max(tally.longest_input, size)
    try:
        with nullcontext() if number % COUNTED_EVERY else counted(CALLS + CALLS_PER_BYTE * size):
            target.feed(payload)
        tally.accepted += 1
        return
    except AlignedSchedError as error:
        caught: BaseException = error
        documented = not isinstance(error, InvariantError | PolicyError)
        if documented and len(str(error)) <= LONGEST_MESSAGE:
            tally.refused[type(error).__name__] += 1
            return
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        caught = error
    try:
        said = str(caught)
    except Exception as error:  # noqa: BLE001
        said = f"(its message fails: {error!r})"
    name = f"{type(caught).__name__}: {said[:120]!r}" + (f" ({len(said)} characters)" if len(said) > 120 else "")
    key = type(caught).__name__, place_of(caught)
    if key in tally.findings:
        tally.findings[key].times += 1
    else:
        tally.findings[key] = Finding(target.name, seed, number, name, key[1])


def fuzz(chosen: Sequence[Target], inputs: int, seed: int, first: int = 0) -> dict[str, Tally]:
    """Feed each target its share of ``inputs`` (by weight), numbered from ``first`` on. Deterministic."""
    tallies = {}
    weights = sum(target.weight for target in chosen)
    for target in chosen:
        tally = tallies[target.name] = Tally()
        began = time.perf_counter()
        for number in range(first, first + max(1, round(inputs * target.weight / weights))):
            feed(target, seed, number, tally)
        tally.seconds = time.perf_counter() - began
    return tallies


def _ring(number: int, frame: FrameType | None) -> None:
    raise WorkError(f"no end after {HANG_S} s of CPU")


def _report(tallies: dict[str, Tally], seed: int) -> dict[str, Any]:
    return {
        name: {
            "inputs": tally.inputs,
            "accepted": tally.accepted,
            "refused": dict(sorted(tally.refused.items())),
            "findings": sum(finding.times for finding in tally.findings.values()),
            "longest_input_bytes": tally.longest_input,
            "seconds": round(tally.seconds, 1),
            "seed": seed,
        }
        for name, tally in tallies.items()
    }


def main() -> int:
    """Fuzz and tell; 1 if an input did what none may do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=float, default=1e5, help="in all, shared out by the targets' weights")
    parser.add_argument("--target", action="append", help="only these; repeat for several")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each target")
    parser.add_argument("--json", type=Path, help="file that takes (or is brought up to date with) the result")
    options = parser.parse_args()
    signal.signal(signal.SIGVTALRM, _ring)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with targets() as table:
        if options.target and not table.keys() >= set(options.target):
            parser.error(f"unknown target; known: {', '.join(table)}")
        chosen = [target for name, target in table.items() if not options.target or name in options.target]
        tallies: dict[str, Tally] = {}
        weights = sum(target.weight for target in chosen)
        for target in chosen:
            share = round(options.inputs * target.weight / weights)
            tallies |= fuzz([_watched(target)], share, options.seed, options.first)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            tally = tallies[target.name]
            print(
                f"{target.name:14s} {tally.inputs:8,d} inputs, {tally.accepted:8,d} accepted, "
                f"{sum(tally.refused.values()):8,d} refused, {tally.inputs / tally.seconds:7,.0f} inputs/s",
                flush=True,
            )
            for finding in tally.findings.values():
                print(f"  FOUND {finding.times} times, first --seed {finding.seed} number {finding.number}:")
                print(f"  {finding.place} {finding.error}")
            if options.json is not None:
                _add(options.json, _report({target.name: tally}, options.seed))
    return 1 if any(tally.findings for tally in tallies.values()) else 0


def _watched(target: Target) -> Target:
    """A target whose every input winds the watchdog up again."""

    def feed(payload: Any) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
        target.feed(payload)

    return evolve(target, feed=feed)


def _add(path: Path, fresh: dict[str, Any]) -> None:
    """Add figures to those a file has; where a target is in both, its numbers are summed."""
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["targets"] if path.exists() else {}
    for name, entry in fresh.items():
        before = known.get(name)
        if before is not None:
            for key in ("inputs", "accepted", "findings", "seconds"):
                entry[key] += before[key]
            counts = collections.Counter(before["refused"]) + collections.Counter(entry["refused"])
            entry["refused"] = dict(sorted(counts.items()))
            entry["longest_input_bytes"] = max(entry["longest_input_bytes"], before["longest_input_bytes"])
        known[name] = entry
    content = {
        "alignedsched": __version__,
        "python": platform.python_version(),
        "inputs": sum(entry["inputs"] for entry in known.values()),
        "findings": sum(entry["findings"] for entry in known.values()),
        "memory_limit_bytes": MEMORY,
        "targets": known,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

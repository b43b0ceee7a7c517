"""The swarm: random lives under every policy, topology and fault, as many as one likes.

``python -m alignedsched.testing.swarm --events 1e7 --seed 1 --jobs 2 --json FILE`` lives until so many events have been
handled, with ``check()`` after every call, and says what never happened although it should sometimes. A failure prints
the seed of its life and writes the life, cut down, to a file that ``--replay FILE`` plays again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from ..errors import TraceError
from .life import Life
from .shrink import Failure, shrink
from .sometimes import GOALS, Sometimes

GOALS_FROM = 100_000  # events from which on every goal must have been reached
BATCH = 25  # lives handed to a process at once


@frozen
class Stretch:
    """Lives with consecutive seeds, and what came of them."""

    lives: int
    events: int
    calls: int
    reached: Counter[str]
    subjects: Counter[str]
    failures: tuple[Failure, ...]


def live(first: int, lives: int, calls: int) -> Stretch:
    """Live some lives of so many calls each."""
    sometimes, subjects = Sometimes(), Counter[str]()
    events = made = 0
    failures = []
    for seed in range(first, first + lives):
        life = Life(seed, sometimes)
        try:
            life.lead(calls)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            failures.append(Failure(seed, tuple(life.acts), _tell(error)))
        events += life.events
        made += life.calls
        subjects[life.subject.strip()] += 1
    return Stretch(lives, events, made, sometimes.counts, subjects, tuple(failures))


def _tell(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({Path(frame.filename).name}:{frame.lineno})"


@define
class Swarm:
    """What all lives came to."""

    seed: int
    calls_a_life: int
    lives: int = 0
    events: int = 0
    calls: int = 0
    reached: Counter[str] = field(factory=Counter)
    subjects: Counter[str] = field(factory=Counter)
    failures: list[Failure] = field(factory=list)
    seconds: float = 0.0

    def add(self, stretch: Stretch) -> None:
        """Take the lives of a stretch in."""
        self.lives += stretch.lives
        self.events += stretch.events
        self.calls += stretch.calls
        self.reached += stretch.reached
        self.subjects += stretch.subjects
        self.failures += stretch.failures

    def missing(self) -> list[str]:
        """Goals never reached."""
        return [goal for goal in GOALS if not self.reached[goal]]

    def plain(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "seed": self.seed,
            "calls_a_life": self.calls_a_life,
            "lives": self.lives,
            "events": self.events,
            "calls": self.calls,
            "seconds": round(self.seconds, 1),
            "events_per_s": round(self.events / self.seconds) if self.seconds else None,
            "violations": len(self.failures),
            "failed_seeds": [failure.seed for failure in self.failures],
            "policies": dict(sorted(self.subjects.items())),
            "sometimes": {goal: self.reached[goal] for goal in GOALS},
            "missing": self.missing(),
        }


def run(seed: int, events: float, calls: int, jobs: int = 1, minutes: float | None = None) -> Swarm:
    """Live until so many events have been handled, somebody failed, or the time is up. Any seed, any number of jobs.

    With one job and without ``minutes`` what is lived depends on the arguments alone.
    """
    began = time.perf_counter()
    swarm = Swarm(seed, calls)
    tasks = ((first, BATCH, calls) for first in _firsts(seed))
    for stretch in _stretches(tasks, jobs):
        swarm.add(stretch)
        swarm.seconds = time.perf_counter() - began
        if swarm.events >= events or swarm.failures or (minutes is not None and swarm.seconds > 60 * minutes):
            break
    return swarm


def _firsts(seed: int) -> Iterator[int]:
    first = seed
    while True:
        yield first
        first += BATCH


def _stretches(tasks: Iterator[tuple[int, int, int]], jobs: int) -> Iterator[Stretch]:
    if jobs < 2:
        yield from (live(*task) for task in tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        while True:  # rounds, so that the endless tasks are not all handed out at once
            yield from pool.starmap(live, [next(tasks) for _ in range(jobs * 4)], chunksize=1)


# -- the command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m alignedsched.testing.swarm", description=__doc__)
    parser.add_argument("--events", type=float, default=1e5, help="handle at least so many (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the first life (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=200, help="of the scheduler in one life (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="stop when this time is up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play the event file of a failure again")
    parser.add_argument("--failures", type=Path, default=Path(), metavar="DIR", help="where event files go")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 if a life failed or a goal was missed, 2 if a file cannot be read."""
    options = _parser().parse_args(arguments)
    if options.replay is not None:
        return _replay(options.replay)
    swarm = run(options.seed, options.events, options.calls, options.jobs, options.minutes)
    if options.json is not None:
        options.json.write_text(json.dumps(swarm.plain(), indent=1) + "\n", encoding="utf-8")
    report(swarm)
    for failure in swarm.failures[:3]:
        small = shrink(failure)
        path = options.failures / f"life-{failure.seed}.json"
        small.write(path)
        print(f"seed {failure.seed}: {failure.error}\n  {len(small.acts)} acts: {path}")  # noqa: T201
    return 1 if swarm.failures or (swarm.missing() and swarm.events >= GOALS_FROM) else 0


def _replay(path: Path) -> int:
    try:
        failure = Failure.read(path)
    except (TraceError, OSError) as error:
        print(error)  # noqa: T201
        return 2
    try:
        failure.play()
    except Exception:  # noqa: BLE001 - this is what the file is for
        traceback.print_exc()
        return 1
    print(f"{len(failure.acts)} acts of seed {failure.seed}: nothing is wrong any more")  # noqa: T201
    return 0


def report(swarm: Swarm) -> None:
    """Print how often each rare situation occurred, and what never did."""
    for goal in GOALS:
        print(f"{swarm.reached[goal]:>10,}  {goal}")  # noqa: T201
    led = ", ".join(f"{name} {count:,}" for name, count in sorted(swarm.subjects.items()))
    rate = swarm.events / swarm.seconds if swarm.seconds else 0.0
    print(f"{swarm.lives:,} lives ({led})")  # noqa: T201
    print(f"{swarm.events:,} events in {swarm.calls:,} calls, {swarm.seconds:.0f} s, {rate:,.0f} events/s")  # noqa: T201
    print(f"{len(swarm.failures)} violations; never happened: {', '.join(swarm.missing()) or 'nothing'}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())

"""What a decision costs an engine through ``Hooks.decide``: processor time per running request.

    python -m benchmarks.hooks_cost [--smoke] [--json FILE]

Two situations at 64, 256 and 1,024 running: *steady*, every member makes one token and nobody comes or goes; *churn*,
in every step one member has ended and one new one can decode (at 256 running about what answers of 256 tokens give).
Columns are built outside the timing, as an engine has them. The engine reports the seconds of every step, so what the
policy learns is in it. Prints a table and writes the figures as JSON; ``--smoke`` is small and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from attrs import asdict, frozen

import alignedsched
from alignedsched.adapters.hooks import Hooks, Resident
from alignedsched.sim.build import build

from .decision_cost import cpu
from .taking_turns import Spent, spent

RESULTS = Path(__file__).resolve().parent / "results" / "hooks_cost.json"
SIZES, SMOKE_SIZES = (64, 256, 1024), (16, 64)
POLICIES = ("fcfs", "cost_aligned")
AIM_US = 1.0  # a running request


@frozen
class Row:
    """One situation: microseconds of the processor, of a call and of a running request."""

    situation: str
    policy: str
    running: int
    steps: int
    cpu_mean_us: float
    wall_median_us: float
    cpu_per_request_us: float


def row(situation: str, policy: str, running: int, seconds: list[Spent]) -> Row:
    """The figures of so many timed calls."""
    mean = 1e6 * sum(call.cpu for call in seconds) / len(seconds)
    median = 1e6 * sorted(call.wall for call in seconds)[len(seconds) // 2]
    return Row(situation, policy, running, len(seconds), mean, median, mean / running)


def columns(running: int, churn: bool, draw: random.Random) -> Iterator[Resident]:
    """A batch that runs for ever; lengths as in a chat, prefill is the engine's affair."""
    ids = [f"r{i}" for i in range(running)]
    lengths = [draw.randint(50, 4000) for _ in ids]
    new = running
    while True:
        yield Resident(list(ids), list(lengths))
        lengths = [length + 1 for length in lengths]
        if churn:
            gone = draw.randrange(running)
            del ids[gone], lengths[gone]
            ids.append(f"r{new}")
            lengths.append(draw.randint(50, 4000))
            new += 1


def measure(policy: str, running: int, steps: int) -> list[Row]:
    """Steady, then churn, of one size."""
    costs = build(
        "h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=False, any_length=True
    ).costs
    rows = []
    for situation in ("steady", "churn"):
        hooks = Hooks(policy, block_size=16, capacity_blocks=10**6, max_members=2 * running, costs=costs)
        taken = columns(running, situation == "churn", random.Random(0))
        first = hooks.decide(0.0, next(taken), free_blocks=800_000)
        assert len(first.decode) == running
        times = [spent(step(hooks, next(taken), 0.02 * (i + 1))) for i in range(steps)]
        rows.append(row(situation, policy, running, times))
    return rows


def step(hooks: Hooks, resident: Resident, now: float) -> Callable[[], None]:
    """One call as an engine makes it."""

    def call() -> None:
        hooks.decide(now, resident, free_blocks=800_000, seconds=0.02)

    return call


def table(rows: list[Row]) -> str:
    """The figures as lines of text."""
    lines = [f"{'':8} {'policy':14} {'running':>8} {'cpu, mean':>10} {'median':>8} {'a request':>10}   microseconds"]
    for r in rows:
        over = "" if r.cpu_per_request_us <= AIM_US else f"  above {AIM_US:g}"
        lines.append(
            f"{r.situation:8} {r.policy:14} {r.running:8,} {r.cpu_mean_us:10.1f} {r.wall_median_us:8.1f} "
            f"{r.cpu_per_request_us:10.3f}{over}"
        )
    return "\n".join(lines)


def report(rows: list[Row]) -> dict[str, object]:
    """What the JSON holds."""
    packages = {name: metadata.version(name) for name in ("attrs", "numpy", "sortedcontainers")}
    return {
        "benchmark": "hooks_cost",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"alignedsched": alignedsched.__version__, "python": platform.python_version(), **packages},
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "system": platform.system(), "arch": platform.machine()},
        "aim_us_per_request": AIM_US,
        "rows": [asdict(r) for r in rows],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hooks_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes, a second, no result file")
    parser.add_argument("--json", type=Path, help=f"where the result goes (default: {RESULTS}; --smoke: nowhere)")
    options = parser.parse_args(arguments)
    sizes, steps = (SMOKE_SIZES, 50) if options.smoke else (SIZES, 2000)
    rows = [row for policy in POLICIES for running in sizes for row in measure(policy, running, steps)]
    print(table(rows))
    target = options.json or (None if options.smoke else RESULTS)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report(rows), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

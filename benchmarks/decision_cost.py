"""What a decision costs: time of ``Scheduler.handle`` by situation, beside a naive O(batch) scheduler.

    python -m benchmarks.decision_cost [--smoke] [--json FILE]

Prints a table and writes the figures as JSON. ``--smoke`` runs everything small, in seconds, and writes nothing unless
``--json`` says where. Times are wall time per call; ``cpu/event`` is mean processor time per event, which counts rare
long calls but not what else the machine ran meanwhile. Aims are per event. The last column is the naive scheduler's
median over ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from attrs import asdict, frozen

import alignedsched
from alignedsched import policy

from .decision_cases import aligned, churn, plain_steps
from .deep_cases import Depth, deep, deep_naive
from .taking_turns import Figure

RESULTS = Path(__file__).resolve().parent / "results" / "decision_cost.json"


@frozen
class Scale:
    """How much is measured."""

    sizes: tuple[int, ...]
    steps: int
    members: int
    churn_pool: int
    churn_steps: int
    pooled: int
    queued: int
    events: int


FULL = Scale((64, 1024, 16_384), 5000, 1024, 10_000, 500, 100_000, 1_000_000, 3000)
SMOKE = Scale((16, 64, 256), 200, 64, 300, 20, 500, 2000, 50)


def measure(scale: Scale) -> tuple[list[Figure], list[Depth]]:
    """Everything, one situation after the other; each frees what it built before the next begins."""
    figures: list[Figure] = []
    depths: list[Depth] = []
    for more, depth in _deep(scale):  # first, while the process's memory is small and its growth is the queue's
        figures += more
        depths.append(depth)
        gc.collect()
    figures += plain_steps(lambda: policy("fcfs"), scale.sizes, scale.steps)
    gc.collect()
    for name in ("fcfs", "density_first"):
        figures += churn(name, lambda name=name: policy(name), scale.members, scale.churn_pool, scale.churn_steps)  # type: ignore[misc]
        gc.collect()
    figures += aligned(scale.members, scale.pooled, scale.churn_steps)
    return figures, depths


def _deep(scale: Scale) -> Iterator[tuple[list[Figure], Depth]]:
    yield deep(policy("fcfs"), scale.pooled, scale.queued, scale.events)
    yield deep_naive(scale.pooled, scale.queued, scale.events)


def ratios(figures: list[Figure]) -> dict[str, float]:
    """Naive over ours, by case, of medians."""
    naive = {figure.case: figure.median_us for figure in figures if figure.scheduler == "naive"}
    ours = {figure.case: figure.median_us for figure in figures if figure.scheduler == "alignedsched"}
    return {case: naive[case] / ours[case] for case in ours if case in naive}


def table(figures: list[Figure], depths: list[Depth]) -> str:
    """The figures as lines of text."""
    ratio = ratios(figures)
    head = f"{'median':>8} {'p99.9':>8} {'longest':>9} {'cpu/event':>9} {'aim':>5} {'naive':>8}"
    lines = [f"{'microseconds per call':88} {head}"]
    for f in (f for f in figures if f.scheduler != "naive"):
        aim = "" if f.aim_us is None else f"{f.aim_us:.0f}"
        times = f"{ratio[f.case]:7.2f}x" if f.case in ratio else ""
        numbers = f"{f.median_us:8.1f} {f.p999_us:8.1f} {f.longest_us:9.1f} {f.cpu_per_event_us:9.1f}"
        lines.append(f"{f.case:88} {numbers} {aim:>5} {times:>8}")
    for d in depths:
        lines.append(
            f"{d.scheduler}: {d.queued:,} queued at {d.bytes_per_queued:.0f} bytes each; a full garbage collection"
            f" over them and {d.pooled:,} pooled takes {1e3 * d.collect_s:.0f} ms"
        )
    return "\n".join(lines)


def report(figures: list[Figure], depths: list[Depth]) -> dict[str, object]:
    """What the JSON holds."""
    packages = {name: metadata.version(name) for name in ("attrs", "numpy", "sortedcontainers")}
    return {
        "benchmark": "decision_cost",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"alignedsched": alignedsched.__version__, "python": platform.python_version(), **packages},
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "system": platform.system(), "arch": platform.machine()},
        "figures": [asdict(figure) for figure in figures],
        "ratios_of_medians_naive_over_ours": ratios(figures),
        "queue": [asdict(depth) for depth in depths],
    }


def cpu() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes, a few seconds, no result file")
    parser.add_argument("--json", type=Path, help=f"where the result goes (default: {RESULTS}; --smoke: nowhere)")
    options = parser.parse_args(arguments)
    figures, depths = measure(SMOKE if options.smoke else FULL)
    print(table(figures, depths))
    target = options.json or (None if options.smoke else RESULTS)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report(figures, depths), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

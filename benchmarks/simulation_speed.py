"""How fast the simulator is: requests, steps, sequence-steps and events a second, and the memory it takes.

    python -m benchmarks.simulation_speed [--smoke] [--million] [--json FILE]

The Azure 2023 conversation trace (``../shared/traces`` beside the repository; without it as many synthesised requests)
runs whole under ``fcfs`` on one modelled GPU, and under ``density_first`` colocated and disaggregated. Then 100,000
synthesised requests run, with ``--million`` 1,000,000 as well, at the trace's rate, for their peak memory. Each run has
a process of its own; metrics are on, reading and set-up are not counted. Published figures of other simulators stand
below: measured elsewhere, on this kind of machine (two shared cores), so they say the order of magnitude only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from attrs import asdict, frozen

import alignedsched
from alignedsched.registry import policy
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload, read_trace, workload

ROOT = Path(__file__).resolve().parents[1]
TRACE = ROOT.parent / "shared" / "traces" / "azure_llm_2023_conv.csv.gz"
TRACE_REQUESTS = 19_366
RESULTS = ROOT / "benchmarks" / "results" / "simulation_speed.json"
AIMS_S = {"fcfs": 10.0, "density_first": 20.0}  # wall time of the whole trace
AIM_BYTES = 3_000_000_000  # peak memory of a million requests
MIB = 1 << 20


@frozen
class Case:
    """One run: the trace (``synthesised`` false) or requests drawn from its shape."""

    policy: str
    topology: str
    requests: int
    synthesised: bool


@frozen
class Speed:
    """What one run took; the rates are per CPU second."""

    policy: str
    topology: str
    workload: str
    requests: int
    steps: int
    sequence_steps: int  # tokens decoded: all but the first of each request
    events: int
    wall_s: float
    cpu_s: float
    requests_per_s: float
    steps_per_s: float
    sequence_steps_per_s: float
    events_per_s: float
    peak_bytes: int  # of the whole process, imports and workload included
    start_bytes: int  # before the run began


@frozen
class Peer:
    """Published figures of another simulator, per CPU second: least and most."""

    name: str
    steps_per_s: tuple[int, int]
    sequence_steps_per_s: tuple[int, int]


# Measured for this project on 4,096 requests of Azure conversation lengths: Vidur (microsoft/vidur at 7d47513363ec;
# schedulers sarathi and vllm, one replica) and sched-sim 0.2.1 (PyPI; fcfs and chunked), event loop only, by process
# time, on a machine of this kind.
PEERS = (
    Peer("Vidur", (1_640, 2_590), (67_000, 105_000)),
    Peer("sched-sim", (34_800, 36_400), (274_000, 274_000)),
)


def requests_of(case: Case) -> Workload:
    """The requests of a case; without the trace's file, requests of its shape."""
    if case.synthesised or not TRACE.exists():
        return workload("azure-conv", n=case.requests)
    with read_trace(str(TRACE), limit=case.requests) as rows:
        return Workload.from_rows(TRACE.name, rows)


def measure(case: Case) -> Speed:
    """Run a case in this process."""
    built = build("h100", "llama-3.1-8b", topology=case.topology, lanes=1, surface="gated", staging=True)
    work = requests_of(case)
    gc.freeze()  # as the command does
    gc.set_threshold(20_000, 20, 20)
    start, wall, cpu = _peak_bytes(), time.perf_counter(), time.process_time()
    figures = run(work, built.cluster, built.costs, policy(case.policy)).figures
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if figures["requests"]["finished"] != len(work):
        raise SystemExit(f"{case}: not every request finished: {figures['requests']}")
    decoded = figures["output_tokens"] - len(work)
    return Speed(
        case.policy, case.topology, work.name, len(work), figures["steps"], decoded, figures["events"], wall, cpu,
        len(work) / cpu, figures["steps"] / cpu, decoded / cpu, figures["events"] / cpu, _peak_bytes(), start,
    )  # fmt: skip


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def apart(case: Case) -> Speed:
    """Run a case in a process of its own, so that its memory is its own."""
    command = [sys.executable, "-m", "benchmarks.simulation_speed", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Speed(**json.loads(done.stdout))


def cases(smoke: bool, million: bool) -> list[Case]:
    """What is measured, one after the other."""
    whole, many = (300, 500) if smoke else (TRACE_REQUESTS, 100_000)
    chosen = [
        Case("fcfs", "colocated", whole, False),
        Case("density_first", "colocated", whole, False),
        Case("density_first", "disaggregated", whole, False),
        Case("fcfs", "colocated", many, True),
    ]
    return [*chosen, Case("fcfs", "colocated", 1_000_000, True)] if million else chosen


def table(speeds: list[Speed]) -> str:
    """The figures as lines of text, the peers' below."""
    head = f"{'policy, topology, workload':58} {'requests':>9} {'wall s':>7} {'CPU s':>7} {'requests/s':>10}"
    lines = [f"{head} {'steps/s':>9} {'seq-steps/s':>11} {'events/s':>9} {'peak MiB':>8}"]
    for s in speeds:
        lines.append(
            f"{f'{s.policy}, {s.topology}, {s.workload}':58} {s.requests:9,} {s.wall_s:7.1f} {s.cpu_s:7.1f}"
            f" {s.requests_per_s:10,.0f} {s.steps_per_s:9,.0f} {s.sequence_steps_per_s:11,.0f} {s.events_per_s:9,.0f}"
            f" {s.peak_bytes / MIB:8,.0f}"
        )
    lines.append("")
    for peer in PEERS:
        steps, sequence = map(_span, (peer.steps_per_s, peer.sequence_steps_per_s))
        lines.append(f"{peer.name}: {steps} steps/s, {sequence} seq-steps/s (measured elsewhere, same kind of machine)")
    lines += _verdicts(speeds)
    return "\n".join(lines)


def _span(figures: tuple[int, int]) -> str:
    return " to ".join(f"{figure:,}" for figure in sorted(set(figures)))


def _verdicts(speeds: list[Speed]) -> list[str]:
    """Aims beside what was reached, met or not."""
    lines = []
    for s in speeds:
        aim = AIMS_S[s.policy]
        if s.requests == TRACE_REQUESTS:
            word = "met" if s.wall_s <= aim else "NOT met"
            lines.append(f"aim: {s.policy}, {s.topology}: the whole trace in {aim:.0f} s: {s.wall_s:.1f} s, {word}")
        if s.requests == 1_000_000:
            word = "met" if s.peak_bytes <= AIM_BYTES else "NOT met"
            lines.append(f"aim: a million requests in 3 GB: {s.peak_bytes / 1e9:.2f} GB, {word}")
    return lines


def report(speeds: list[Speed]) -> dict[str, object]:
    """What the JSON holds."""
    packages = {name: metadata.version(name) for name in ("attrs", "numpy", "sortedcontainers")}
    return {
        "benchmark": "simulation_speed",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"alignedsched": alignedsched.__version__, "python": platform.python_version(), **packages},
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "arch": platform.machine()},
        "trace": TRACE.name if TRACE.exists() else "synthesised azure-conv",
        "aims": {"wall_s": AIMS_S, "peak_bytes_of_a_million": AIM_BYTES},
        "runs": [asdict(speed) for speed in speeds],
        "peers_measured_elsewhere": [asdict(peer) for peer in PEERS],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few hundred requests, no result file")
    parser.add_argument("--million", action="store_true", help="also 1,000,000 synthesised requests (a quarter hour)")
    parser.add_argument("--json", type=Path, help=f"where the result goes (default: {RESULTS}; --smoke: nowhere)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(asdict(measure(Case(**json.loads(options.case))))))
        return 0
    speeds = []
    for case in cases(options.smoke, options.million):
        print(f"{case.policy}, {case.topology}, {case.requests:,} requests ...", file=sys.stderr, flush=True)
        speeds.append(apart(case))
    print(table(speeds))
    target = options.json or (None if options.smoke else RESULTS)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report(speeds), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Random runs of ``cost_aligned`` seen from outside: who sits out, for how long, and whether anything was in vain.

    python -m benchmarks.sitting [--runs 100000] [--jobs 2] [--out benchmarks/results/sitting.json]

A run has 12, 24 or 50 requests, some of them far longer than the others, at any rate, on one lane or on a device each
for prefill and decode, with any room, seats and length of turns, on a surface on which requests sit out; every fifth
hundred has few seats for much room, so that more sit out than run. Every request has to end. Measured is the time from
leaving a batch unfinished to being a member of one again (or to the end of the request), for those who sat out in their
device, and apart from it for those who were preempted for want of blocks: the bound is on the former. With ``--out``
the file is brought up to date every 1,000 runs, and a later call goes on from there while the code that runs is the
same.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import alignedsched
from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts, Costs
from alignedsched.driver import drive
from alignedsched.events import Arrived, Event
from alignedsched.plan import Plan
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.protocols import Policy
from alignedsched.policies.rounds import RoundSettings
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.workloads import Workload
from benchmarks.digest import code_digest, loaded

A_PART = 1000  # runs between two lines of progress
WAIT_S = 3.0  # a step of these clusters takes up to half a second
GATED = AffineCosts(0.005, 1e-5, 1e-5, 4e-4, "gated", 8.0, 1e-10)
SURFACES = {
    "padded": AffineCosts(0.005, 1e-5, 1e-5, 0.0, "padded", 0.0, 1e-10),
    "gated": GATED,
    "unsplit": AffineCosts(0.005, 1e-5, 1e-5, 4e-4, "unsplit", 0.0, 1e-10),
    "unsplit, mild": AffineCosts(0.005, 1e-5, 1e-5, 1e-4, "unsplit", 0.0, 1e-10),  # on which the longest are set aside
    "balanced": AffineCosts(0.005, 1e-5, 1e-5, 0.0, "balanced", 0.0, 1e-10),
}


def small_cluster(blocks: int, *, seats: int = 32, tokens: int = 512, apart: bool = False) -> Cluster:
    """One lane that does both, or one device that prefills and one that decodes."""
    layout = KVLayout(16, 1000)
    if not apart:
        return Cluster(
            (Device("d", Role.BOTH, blocks),), (Lane("l", ("d",), 1, seats, tokens),), 0, (), layout, 1 << 20
        )
    devices = (Device("p", Role.PREFILL, blocks), Device("d", Role.DECODE, blocks))
    lanes = (Lane("lp", ("p",), 1, seats, tokens), Lane("ld", ("d",), 1, seats, tokens))
    links = (Link("p", "d", 1e9), Link("d", "p", 1e9))
    return Cluster(devices, lanes, 0, links, layout, 1 << 20)


def random_workload(seed: int, n: int, longest: int, rate: float, long_share: float = 0.15) -> Workload:
    """Short requests, some of them far longer, arriving at random."""
    rng = Random(seed)
    prompts = [rng.randint(1, longest) if rng.random() < long_share else rng.randint(1, 200) for _ in range(n)]
    outputs = [rng.randint(1, 400) if rng.random() < 0.1 else rng.randint(1, 60) for _ in range(n)]
    gaps = np.array([rng.expovariate(rate) for _ in range(n)])
    return Workload(
        name="random",
        arrival_s=np.cumsum(gaps),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
    )


class Sitting:
    """Watches a run: who is out of a batch with tokens made, since when, and whether each stay followed a token.

    ``longest`` is the longest that anybody sat out (seconds), ``preempted`` the longest that anybody who was preempted
    was without a batch, ``outs`` how often anybody sat out, and ``ends`` how requests ended.
    """

    def __init__(self, cluster: Cluster, costs: Costs, policy: Policy) -> None:
        self.scheduler = Scheduler(cluster, policy, costs)
        self.longest = self.preempted = 0.0
        self.outs = 0
        self.ends: Counter[str] = Counter()
        self._out: dict[str, float] = {}  # since when
        self._again: set[str] = set()  # of these, who is prefilled again: it had been preempted
        self._stays: dict[str, tuple[float, int]] = {}

    def look(self, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        for step in plan.steps:
            self._out |= dict.fromkeys(step.leaves, now)
            self._again.update(chunk.request for chunk in step.chunks if chunk.request in self._out)
            for join in step.joins:
                if join.request in self._out:
                    self._joins(join.request, now)
        for release in plan.releases:  # in what was under way when it was told to leave
            self._out.pop(release.request, None)
            self.ends[release.outcome.value] += 1
        for lane in self.scheduler.cluster.lanes:
            view = self.scheduler.view(lane.id)
            if view.role.decodes:
                for request in view.resident:
                    self._sits(request, view.entry(request).since, view.entry(request).produced, now)

    def _joins(self, request: str, now: float) -> None:
        waited = now - self._out.pop(request)
        if request in self._again:
            self._again.remove(request)
            self.preempted = max(self.preempted, waited)
        else:
            self.outs += 1
            self.longest = max(self.longest, waited)

    def _sits(self, request: str, since: float, produced: int, now: float) -> None:
        self.longest = max(self.longest, now - since)
        before, made = self._stays.get(request, (-1.0, 0))
        if since > before:
            assert produced > made, f"{request} sat out twice without a token between"
            self._stays[request] = (since, produced)


def lived(
    seed: int, surface: str, wait_s: float | None, n: int = 50, long_share: float = 0.15, deep: float = 4.0
) -> Sitting:
    """One random run: any room, rate and cut of the cluster."""
    rng = Random(seed)
    blocks = rng.randint(90, 400)
    cluster = small_cluster(
        blocks, seats=rng.choice((4, 16, 64)), tokens=rng.choice((64, 512)), apart=rng.random() < 0.4
    )
    load = random_workload(seed, n, rng.choice((400, 1200)), rng.choice((3.0, 30.0, 1e6)), long_share)
    load, _ = load.clamped(16 * (blocks - 1))  # who does not fit even alone would fail
    rounds = RoundSettings(round_s=rng.choice((0.05, 1.0, 20.0)), most=rng.choice((8, 64, 512)), deep=deep)
    policy = cost_aligned(wait_s=wait_s, rounds=rounds)
    return watched(load, cluster, SURFACES[surface], policy)


def crowded(seed: int, surface: str, wait_s: float | None) -> tuple[Sitting, int]:
    """One random run with few seats and much room on the device that decodes, and how many requests it has."""
    rng = Random(seed)
    blocks = rng.randint(200, 1500)
    cluster = small_cluster(blocks, seats=rng.choice((1, 2, 4, 8, 16)), tokens=rng.choice((64, 512)), apart=True)
    n = rng.choice((12, 24, 50))
    load = random_workload(seed, n, rng.choice((60, 400, 1200)), rng.choice((3.0, 30.0, 1e6)), rng.choice((0.15, 0.4)))
    load, _ = load.clamped(16 * (blocks - 1))
    rounds = RoundSettings(
        round_s=rng.choice((0.05, 1.0, 20.0)), most=rng.choice((8, 64, 512)), deep=rng.choice((2.0, 4.0, 8.0))
    )
    return watched(load, cluster, SURFACES[surface], cost_aligned(wait_s=wait_s, rounds=rounds)), n


def watched(load: Workload, cluster: Cluster, costs: Costs, policy: Policy) -> Sitting:
    """A run of this load. Raises AssertionError if anything was in vain."""
    sitting, executor = Sitting(cluster, costs, policy), SimulatedExecutor(cluster, costs)
    arrivals = []
    for request, output in load.requests():
        executor.expect(request.id, output)
        arrivals.append((request.arrival, Arrived(request)))
    drive(sitting.scheduler, executor, arrivals, observe=sitting.look)
    return sitting


def one(seed: int) -> Sitting:
    """The run of this seed. Raises AssertionError if a request did not end or sat out for too long."""
    if seed // 100 % 5 == 1:
        sitting, n = crowded(seed, ("gated", "padded")[seed % 2], WAIT_S)
    else:
        n = (12, 12, 12, 12, 12, 12, 24, 24, 24, 50)[seed % 10]
        surface = ("gated", "padded", "gated", "padded", "unsplit, mild" if seed % 2 else "unsplit")[seed // 10 % 5]
        sitting = lived(seed, surface, WAIT_S, n, (0.15, 0.4)[seed // 50 % 2])
    assert sitting.ends["finished"] == n, f"not all ended: {sitting.ends}"
    assert sitting.longest <= WAIT_S, f"somebody sat out for {sitting.longest:.3f} s of {WAIT_S}"
    return sitting


def fresh() -> dict[str, Any]:
    versions = {
        "alignedsched": alignedsched.__version__, "python": platform.python_version(), "numpy": np.__version__,
    }  # fmt: skip
    return {
        "what": "random runs: the longest that anybody who has begun sat out, as a share of what is allowed",
        "code_sha256": code_digest(files=loaded()),
        "versions": versions,
        "first_seed": 0,
        "runs": 0,
        "requests": 0,
        "runs_in_which_anybody_sat_out": 0,
        "times_sat_out": 0,
        "longest_share": 0.0,
        "longest_seed": 0,
        "violations": [],
        "longest_preempted_share": 0.0,
        "cpu_seconds": 0.0,
    }


def runs(seeds: range) -> dict[str, Any]:
    """What is found in the runs of these seeds."""
    began, found = time.process_time(), fresh()
    for seed in seeds:
        found["runs"] += 1
        try:
            sitting = one(seed)
        except AssertionError as error:
            found["violations"].append(f"seed {seed}: {error}")
            continue
        found["requests"] += sitting.ends.total()
        found["times_sat_out"] += sitting.outs
        found["runs_in_which_anybody_sat_out"] += sitting.outs > 0
        if (share := round(sitting.longest / WAIT_S, 4)) > found["longest_share"]:
            found["longest_share"], found["longest_seed"] = share, seed
        found["longest_preempted_share"] = max(found["longest_preempted_share"], round(sitting.preempted / WAIT_S, 4))
    found["cpu_seconds"] = time.process_time() - began
    return found


def add(found: dict[str, Any], more: dict[str, Any]) -> None:
    """Take in what was found in the seeds that follow."""
    for name in ("runs", "requests", "runs_in_which_anybody_sat_out", "times_sat_out", "violations"):
        found[name] += more[name]
    if more["longest_share"] > found["longest_share"]:
        found["longest_share"], found["longest_seed"] = more["longest_share"], more["longest_seed"]
    found["longest_preempted_share"] = max(found["longest_preempted_share"], more["longest_preempted_share"])
    found["cpu_seconds"] = round(found["cpu_seconds"] + more["cpu_seconds"], 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sitting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    found = fresh()
    if options.out is not None and options.out.exists():
        kept = json.loads(options.out.read_text())
        found = kept if kept.get("code_sha256") == found["code_sha256"] else found
    parts = [range(first, min(options.runs, first + A_PART)) for first in range(found["runs"], options.runs, A_PART)]
    with ProcessPoolExecutor(options.jobs) as processes:
        for more in processes.map(runs, parts):
            add(found, more)
            if options.out is not None:
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            sys.stdout.write(
                f"{found['runs']} runs; the longest wait was {found['longest_share']:.0%} of what is allowed; "
                f"violations: {len(found['violations'])}\n"
            )
            sys.stdout.flush()
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())

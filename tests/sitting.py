"""Random runs of ``cost_aligned`` seen from outside: who sits out, for how long, and whether anything was in vain.

    python -m tests.sitting [--first SEED] [--seeds N]

looks at so many runs and prints the longest wait relative to what is allowed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest

from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts, Costs
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.protocols import Policy
from alignedsched.policies.rounds import RoundSettings
from alignedsched.scheduler import Scheduler
from alignedsched.sim import run as simulation
from alignedsched.workloads import Workload

WAIT_S = 3.0  # a step of these clusters takes up to half a second
GATED = AffineCosts(0.005, 1e-5, 1e-5, 4e-4, "gated", 8.0, 1e-10)
SURFACES = {
    "padded": AffineCosts(0.005, 1e-5, 1e-5, 0.0, "padded", 0.0, 1e-10),
    "gated": GATED,
    "unsplit": AffineCosts(0.005, 1e-5, 1e-5, 4e-4, "unsplit", 0.0, 1e-10),
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


def random_workload(seed: int, n: int, longest: int, rate: float) -> Workload:
    """Short requests, some of them far longer, arriving at random."""
    rng = Random(seed)
    prompts = [rng.randint(1, longest) if rng.random() < 0.15 else rng.randint(1, 200) for _ in range(n)]
    outputs = [rng.randint(1, 400) if rng.random() < 0.1 else rng.randint(1, 60) for _ in range(n)]
    gaps = np.array([rng.expovariate(rate) for _ in range(n)])
    return Workload(
        name="random",
        arrival_s=np.cumsum(gaps),
        prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs),
    )


class Sitting:
    """Watches a run: how long who has begun sits out, and whether every stay in the pool followed a token."""

    def __init__(self, cluster: Cluster, costs: Costs, policy: Policy) -> None:
        self.longest = 0.0
        self._stays: dict[str, tuple[float, int]] = {}
        self.scheduler = Scheduler(cluster, policy, costs)

    def look(self, now: float) -> None:
        for lane in self.scheduler.cluster.lanes:
            view = self.scheduler.view(lane.id)
            if not view.role.decodes:
                continue
            for request in view.resident:
                entry = view.entry(request)
                self.longest = max(self.longest, now - entry.since)
                since, produced = self._stays.get(request, (-1.0, 0))
                if entry.since > since:
                    assert entry.produced > produced, f"{request} sat out twice without a token between"
                    self._stays[request] = (entry.since, entry.produced)


def lived(seed: int, surface: str, wait_s: float | None, n: int = 50) -> tuple[Sitting, dict[str, Any]]:
    """One random run: any room, rate and cut of the cluster; returns what was seen and the figures."""
    rng = Random(seed)
    cluster = small_cluster(
        rng.randint(90, 400), seats=rng.choice((4, 16, 64)), tokens=rng.choice((64, 512)), apart=rng.random() < 0.4
    )
    load = random_workload(seed, n, rng.choice((400, 1200)), rng.choice((3.0, 30.0, 1e6)))
    policy = cost_aligned(
        wait_s=wait_s, rounds=RoundSettings(round_s=rng.choice((0.05, 1.0, 20.0)), most=rng.choice((8, 64, 512)))
    )
    return watched(load, cluster, SURFACES[surface], policy)


def watched(load: Workload, cluster: Cluster, costs: Costs, policy: Policy) -> tuple[Sitting, dict[str, Any]]:
    made: list[Sitting] = []

    def scheduler(cluster: Cluster, policy: Policy, costs: Costs) -> Scheduler:
        made.append(Sitting(cluster, costs, policy))
        return made[0].scheduler

    patch = pytest.MonkeyPatch()
    patch.setattr(simulation, "Scheduler", scheduler)
    try:
        result = simulation.run(load, cluster, costs, policy, observe=lambda now, events, plan: made[0].look(now))
    finally:
        patch.undo()
    return made[0], result.figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sitting", description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1000)
    options = parser.parse_args(arguments)
    longest = 0.0
    for seed in range(options.first, options.first + options.seeds):
        sitting, figures = lived(seed, ("gated", "padded", "unsplit")[seed % 3], WAIT_S)
        assert figures["requests"]["finished"] == figures["requests"]["arrived"], seed
        assert sitting.longest <= WAIT_S, seed
        longest = max(longest, sitting.longest)
    sys.stdout.write(f"{options.seeds} runs; the longest wait was {longest / WAIT_S:.0%} of what is allowed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

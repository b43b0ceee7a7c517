"""Tokens computed again per policy when KV does not fit: ``python -m benchmarks.recompute_tax [--requests N]``.

Who is preempted by recompute is prefilled again with all it has made. The tax is those tokens over all prompt and
output tokens served. First without host memory, then with some. Nobody is told output lengths here, so ``sjf_oracle``
does what ``fcfs`` does.
"""

from __future__ import annotations

import argparse
from random import Random

from alignedsched import registry
from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts
from alignedsched.driver import drive
from alignedsched.events import Arrived, Event
from alignedsched.plan import Plan
from alignedsched.policies.protocols import Policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor

COSTS = AffineCosts(0.01, 1e-4, 1e-6, 3e-5, "gated", 4.0, 1e-9)


def cluster(host_blocks: int) -> Cluster:
    links = (Link("g0", HOST, 2e10), Link(HOST, "g0", 2e10)) if host_blocks else ()
    lane = Lane("l0", ("g0",), 1, 128, 2048)
    return Cluster((Device("g0", Role.BOTH, 1500),), (lane,), host_blocks, links, KVLayout(16, 131_072), 8192)


def tax(policy: Policy, host_blocks: int, count: int, seed: int = 0) -> tuple[int, int, int]:
    """Prefill tokens computed a second time, all tokens served, and preemptions."""
    rng = Random(seed)
    place = cluster(host_blocks)
    executor = SimulatedExecutor(place, COSTS)
    scheduler = Scheduler(place, policy, COSTS)
    requests, served = [], 0
    for number in range(count):
        request = Request(f"r{number}", rng.randint(20, 800), None, number * 0.02)
        output = int(rng.lognormvariate(5.0, 0.8)) + 1
        executor.expect(request.id, output)
        requests.append((request.arrival, Arrived(request)))
        served += request.prompt_tokens + output
    prefilled = 0

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        nonlocal prefilled
        prefilled += sum(chunk.end - chunk.start for step in plan.steps for chunk in step.chunks)

    drive(scheduler, executor, requests, observe=observe)
    once = sum(event.request.prompt_tokens for _, event in requests)
    return prefilled - once, served, scheduler.counts["preemptions"]


def main() -> None:
    """Print a table for a cluster without and one with host memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    for host_blocks in (0, 6000):
        print(f"host blocks {host_blocks}, {options.requests} requests")
        subjects = {name: registry.policy(name) for name in registry.policy_names()}
        subjects["fcfs, swapping"] = registry.policy("fcfs", swap=True)
        for name, policy in subjects.items():
            again, served, preemptions = tax(policy, host_blocks, options.requests)
            print(f"  {name:16} {again:>9,} tokens again, {again / served:6.1%} of all, {preemptions:>5} preemptions")


if __name__ == "__main__":
    main()

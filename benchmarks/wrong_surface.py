"""A policy told the wrong cost surface: what it still reaches of what it reaches when told the truth.

    python -m benchmarks.wrong_surface [--policy cost_aligned] [--workload mooncake] [--requests 700] [--seeds 3]

The simulated executor keeps the true surface; the policy is shown one whose decode attention (c), or whose longest
member's time (s), is four times too much or too little, or another kind of surface. Throughput is decode tokens per
second of steps, over steps 200 to 2,200 (the aim: 0.97 of the policy told the truth in every row), and beside it over
the whole run. In so few steps it matters whose turn came first: means over several seeds, with the least of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import mean

from attrs import define, evolve

from alignedsched.cluster import Cluster
from alignedsched.load import SURFACES, Costs
from alignedsched.policies.believed import BelievedCosts, published_correction
from alignedsched.policies.protocols import PlainData, Policy, Stepped
from alignedsched.registry import policy as policy_named
from alignedsched.request import Request
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload, workload

FIRST, LAST = 200, 2200
AIM = 0.97


@define
class Pace:
    """A watch that counts decode tokens and seconds of the steps from FIRST to LAST."""

    steps: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    def stepped(self, facts: Stepped) -> None:
        begin, end = self.steps, self.steps + facts.steps
        self.steps = end
        share = max(0, min(end, LAST) - max(begin, FIRST)) / facts.steps
        self.tokens += share * facts.steps * sum(load.n for load in facts.loads)
        self.seconds += share * facts.seconds

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Not counted."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""


def pace(policy: Policy, traffic: Workload, cluster: Cluster, true: Costs, told: Costs) -> tuple[float, float]:
    """Decode tokens per second of steps FIRST to LAST; output tokens per second of the whole run."""
    meter = Pace()
    made = run(traffic, cluster, true, evolve(policy, watches=(*policy.watches, meter)), published=told).figures
    if meter.steps < LAST:
        raise SystemExit(f"the run has only {meter.steps} steps; ask for more requests")
    return meter.tokens / meter.seconds, made["throughput_tok_s"]


def wrong(true: Costs, others: dict[str, Costs]) -> Iterator[tuple[str, Costs]]:
    """What a policy may be told instead of the truth."""
    right = published_correction(true)
    for factor in (4.0, 0.25):
        yield f"c x {factor:g}", BelievedCosts(true, evolve(right, even=factor))
        if right.longest > 0:
            yield f"s x {factor:g}", BelievedCosts(true, evolve(right, longest=factor * right.longest))
    for name, costs in others.items():
        if name != true.surface:
            yield f"told {name}", costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="cost_aligned")
    parser.add_argument("--workload", default="mooncake")
    parser.add_argument("--requests", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--surface", choices=SURFACES, action="append")
    given = parser.parse_args()
    traffics = [workload(given.workload, seed=seed, n=given.requests).offline() for seed in range(given.seeds)]
    built = {
        surface: build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface=surface, staging=False)
        for surface in SURFACES
    }
    costs: dict[str, Costs] = {surface: made.costs for surface, made in built.items()}
    for surface in given.surface or SURFACES:
        cluster, true = built[surface].cluster, costs[surface]
        best = [pace(policy_named(given.policy), traffic, cluster, true, true) for traffic in traffics]
        for what, told in wrong(true, costs):
            paces = [pace(policy_named(given.policy), traffic, cluster, true, told) for traffic in traffics]
            window = [got[0] / right[0] for got, right in zip(paces, best, strict=True)]
            whole = [got[1] / right[1] for got, right in zip(paces, best, strict=True)]
            verdict = "" if mean(window) >= AIM else "  below the aim"
            print(
                f"{surface:8}  {what:13}  steps {FIRST}-{LAST}: {mean(window):.3f} (least {min(window):.3f})"
                f"  whole run: {mean(whole):.3f} (least {min(whole):.3f}){verdict}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""A policy told the wrong cost surface: what it still reaches of what it reaches when told the truth.

    python -m benchmarks.wrong_surface [--workload mooncake] [--surface gated] [--seeds 4] [--out FILE]

The simulated executor keeps the true surface; ``cost_aligned`` is shown one whose decode attention (c), longest
member's time (s) or gate is four times too much or too little, or another kind of surface. Measured over steps 200 to
2,200, relative to the same policy told the truth, in three settings:

* *load*: requests arrive at 1.2 times the rate at which it serves them when told the truth;
* *backlog*: all of them are there at 0 s;
* *rounds*: short requests arrive and end while three long ones decode all along, so that groups are run for as long as
  they pay. Here what it is told may also be true until step 700 only (``then``). The workload is always the same.

``tokens`` are decode tokens per second of steps. They depend on which requests are served: sorted waves begin with the
short ones, so that in a backlog whoever is ahead serves longer ones in the same steps, and fewer tokens a second.
``work`` weighs them by what they would cost if nobody paid for imbalance: a decode token its share of a full batch's
step and its context's attention, a chunk what it adds to a step. ``settled`` is what a policy reaches that is told the
wrong surface up to step 200 and the truth from there on: what no refit can give back from there, because of who has
begun until then; ``soon`` the same with the truth from step 10 on, in a backlog, where hardly a step has told anything
by then. ``whole`` is tokens per second over the whole run. The aim is 0.97.

How far the comparison itself is chaotic is told by ``c x 1.1`` and ``c x 0.9``: nearly right, which hardly matters to
any step, but who begins one step later meets others.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from attrs import define, evolve, field, frozen

from alignedsched import __version__
from alignedsched.arrays import FloatArray
from alignedsched.cluster import Cluster
from alignedsched.load import SURFACES, Costs, Load
from alignedsched.policies.believed import BelievedCosts, published_correction
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.protocols import PlainData, Stepped
from alignedsched.request import Request
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload, workload

FIRST, LAST, DRIFT = 200, 2200, 700  # steps
SOON = 10
WRONG, NEARLY = (4.0, 0.25), (1.1, 0.9)
AIM = 0.97
LOAD = 1.2
FULL = 256  # members of a full batch


@frozen
class Worth:
    """Seconds that work takes where nobody pays for imbalance."""

    costs: Costs
    row: float = field(init=False)
    token: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        empty, long = (self.costs.balanced_seconds(Load(FULL, FULL * length, length)) for length in (1, 4001))
        object.__setattr__(self, "row", empty / FULL)
        object.__setattr__(self, "token", (long - empty) / (FULL * 4000))

    def of(self, load: Load, steps: int) -> float:
        decode = steps * (self.row * load.n + self.token * (load.total + load.n * (steps - 1) / 2))
        if not load.chunks:
            return decode
        return decode + self.costs.balanced_seconds(load) - self.costs.balanced_seconds(evolve(load, chunks=()))


@define
class Pace:
    """A watch that counts decode tokens, work and seconds of the steps from FIRST to LAST."""

    worth: Worth
    steps: int = 0
    tokens: float = 0.0
    work: float = 0.0
    seconds: float = 0.0

    def stepped(self, facts: Stepped) -> None:
        begin, end = self.steps, self.steps + facts.steps
        self.steps = end
        share = max(0, min(end, LAST) - max(begin, FIRST)) / facts.steps
        if share:
            self.tokens += share * facts.steps * sum(load.n for load in facts.loads)
            self.work += share * sum(self.worth.of(load, facts.steps) for load in facts.loads)
            self.seconds += share * facts.seconds

    def ended(self, request: Request, produced: int, finished: bool) -> None:
        """Not counted."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""


@define(eq=False)
class Until:
    """Costs that are ``first`` until a run has done so many steps, and ``then`` from there on."""

    step: int
    first: Costs
    then: Costs
    pace: Pace | None = None

    @property
    def now(self) -> Costs:
        return self.first if self.pace is None or self.pace.steps < self.step else self.then

    @property
    def surface(self) -> str:
        return self.now.surface

    def step_seconds(self, load: Load) -> float:
        return self.now.step_seconds(load)

    def balanced_seconds(self, load: Load) -> float:
        return self.now.balanced_seconds(load)

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        return self.now.finishing_times(load, steps)


@frozen
class Reached:
    """Of the window: tokens and work per second; ``whole``: tokens per second of the run."""

    tokens: float
    work: float
    whole: float


def reached(traffic: Workload, cluster: Cluster, true: Costs, told: Costs, refit: bool = True) -> Reached:
    """One run."""
    policy = cost_aligned(refit=refit)
    pace = Pace(Worth(true.first if isinstance(true, Until) else true))
    for costs in (true, told):
        if isinstance(costs, Until):
            costs.pace = pace
    by_lane = {lane.id: true for lane in cluster.lanes}
    made = run(traffic, cluster, by_lane, evolve(policy, watches=(*policy.watches, pace)), published=told).figures
    if pace.steps < LAST:
        raise SystemExit(f"the run has only {pace.steps} steps; ask for more requests")
    return Reached(pace.tokens / pace.seconds, pace.work / pace.seconds, made["throughput_tok_s"])


def steady(seed: int, shorts: int = 450) -> Workload:
    """Three long requests, and short ones at 8 a second."""
    draw = np.random.default_rng(seed)
    return Workload(
        name="steady",
        arrival_s=np.concatenate([np.zeros(3), np.cumsum(draw.exponential(1 / 8, shorts))]),
        prompt_tokens=np.concatenate([[70_000, 60_000, 50_000], draw.integers(200, 1000, shorts)]),
        output_tokens=np.concatenate([[5000, 5000, 5000], draw.integers(200, 400, shorts)]),
    )


def wrong(true: Costs, others: dict[str, Costs], drift: bool) -> Iterator[tuple[str, Costs, Costs]]:
    """What the policy may be told instead of the truth: a name, what is true, and what it is told."""
    right = published_correction(true)
    for factor in WRONG:
        yield f"c x {factor:g}", true, BelievedCosts(true, evolve(right, even=factor))
        if right.longest > 0:
            yield f"s x {factor:g}", true, BelievedCosts(true, evolve(right, longest=factor * right.longest))
        if right.surface == "gated":
            yield f"gate x {factor:g}", true, BelievedCosts(true, evolve(right, gate=round(factor * right.gate)))
    for factor in NEARLY:
        yield f"c x {factor:g}", true, BelievedCosts(true, evolve(right, even=factor))
    for name, costs in others.items():
        if name != true.surface:
            yield f"told {name}", true, costs
    for name, costs in others.items() if drift else ():
        if name != true.surface:
            yield f"then {name}", Until(DRIFT, true, costs), true


@frozen
class Setting:
    """Traffic on a cluster, and what the policy reaches there when told the truth; one for each seed."""

    name: str
    traffics: Sequence[Workload]
    cluster: Cluster

    def told(self, true: Costs, told: Costs, refit: bool = True) -> list[Reached]:
        return [reached(traffic, self.cluster, true, told, refit) for traffic in self.traffics]


def row(setting: Setting, best: Sequence[Reached], true: Costs, told: Costs) -> dict[str, list[float]]:
    """Figures relative to the best, which was told the truth."""
    figures: dict[str, list[float]] = {}

    def add(name: str, found: Sequence[Reached]) -> None:
        pairs = list(zip(found, best, strict=True))
        figures[f"{name}tokens"] = [a.tokens / b.tokens for a, b in pairs]
        figures[f"{name}work"] = [a.work / b.work for a, b in pairs]
        if setting.name == "backlog":
            figures[f"{name}whole"] = [a.whole / b.whole for a, b in pairs]

    add("", setting.told(true, told))
    if not isinstance(true, Until):
        add("settled ", setting.told(true, Until(FIRST, told, true), refit=False))
        if setting.name == "backlog":
            add("soon ", setting.told(true, Until(SOON, told, true), refit=False))
    return {name: [round(value, 4) for value in values] for name, values in figures.items()}


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    built = {
        surface: build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface=surface, staging=False)
        for surface in SURFACES
    }
    costs: dict[str, Costs] = {surface: made.costs for surface, made in built.items()}
    requests = [workload(given.workload, seed=seed, n=given.requests) for seed in range(given.seeds)]
    backlogs = [each.offline() for each in requests]
    for surface in given.surface or SURFACES:
        cluster, plain = built[surface].cluster, costs[surface]
        took = run(backlogs[0], cluster, plain, cost_aligned()).figures["simulated_s"]
        rate = LOAD * len(backlogs[0]) / took
        arriving = [each.scaled(rate / each.rate_per_s) for each in requests]
        traffics = {"load": arriving, "backlog": backlogs, "rounds": [steady(seed) for seed in range(given.seeds)]}
        for setting in (Setting(name, traffics[name], cluster) for name in given.setting or traffics):
            name = "steady" if setting.name == "rounds" else given.workload
            about = {"workload": name, "surface": surface, "setting": setting.name}
            best = setting.told(plain, plain)
            for what, true, told in wrong(plain, costs, setting.name == "rounds"):
                mark = best if true is plain else setting.told(true, true, refit=False)
                yield about | {"told": what} | row(setting, mark, true, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="mooncake")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--surface", choices=SURFACES, action="append")
    parser.add_argument("--setting", choices=("load", "backlog", "rounds"), action="append")
    parser.add_argument("--out", type=Path, help="a JSON file; rows of other workloads and settings in it are kept")
    given = parser.parse_args()
    found = []
    for figures in rows(given):
        found.append(figures)
        shown = "  ".join(
            f"{name} {mean(values):.3f} (least {min(values):.3f})"
            for name, values in figures.items()
            if isinstance(values, list)
        )
        low = [name for name in ("tokens", "work") if mean(figures[name]) < AIM]
        verdict = f"  below the aim in {' and '.join(low)}" if low else ""
        print(f"{figures['surface']:8}  {figures['told']:13}  {figures['setting']:7}  {shown}{verdict}", flush=True)
    if given.out is not None:
        kept = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
        new = {(each["workload"], each["setting"]) for each in found}
        kept = [each for each in kept if (each["workload"], each["setting"]) not in new]
        versions = {"alignedsched": __version__, "python": platform.python_version(), "numpy": np.__version__}
        about = {"steps": [FIRST, LAST], "drift_at": DRIFT, "soon": SOON, "load": LOAD, "aim": AIM}
        text = json.dumps({"about": about, "versions": versions, "rows": kept + found}, indent=1)
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

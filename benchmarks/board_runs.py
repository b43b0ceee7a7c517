"""One run of a scoreboard cell: the cluster, the arrivals at the asked-for load, the policy, and the figures kept.

Loads are shares of what `fcfs` sustains offline with the same requests: nine tenths of them over the time until that
many have ended, so that the last stragglers do not count. A policy that is not there is not run.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from alignedsched.arrays import FloatArray
from alignedsched.costs import AffineCosts, Costs
from alignedsched.errors import ConfigError
from alignedsched.load import Load
from alignedsched.metrics import Lanes, goodput, longest_prompts, met, summarize
from alignedsched.policies.protocols import Policy
from alignedsched.registry import policy
from alignedsched.sim.build import Built, build
from alignedsched.sim.run import RunResult, run
from alignedsched.workloads import Workload
from benchmarks.board_cells import LOCKSTEP_RANKS, SYSTEMS, Cell, requests_of
from benchmarks.fluid import fluid_bound
from benchmarks.round_robin import round_robin

SUSTAINED = 0.9  # of the requests
NO_PREFILL = AffineCosts(1e-3, 0.0, 0.0, per_pair=0.0)  # a millisecond a step of 8,192 tokens
BOUNDLESS = 1 << 40  # host blocks
EVEN = "fcfs at zero imbalance cost"
SLOWEST_S = 1200.0  # of wall time: a run that takes longer is given up, as one that goes round in circles would be

# By the board's name: the registry's name (None: the board's own) and options. Who is not there is skipped.
POLICIES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "fcfs": ("fcfs", {}),
    "density_first": ("density_first", {}),
    "cost_aligned": ("cost_aligned", {}),
    "cost_aligned:remaining": ("cost_aligned", {"order": "remaining"}),
    "cost_aligned:tpot": ("cost_aligned", {"tpot_target_s": SYSTEMS["8B"].promised.tpot_s}),
    "waves": ("waves", {}),
    "buckets": ("buckets", {}),
    "sjf": ("sjf", {}),
    "sjf_oracle": ("sjf_oracle", {}),
    "round_robin": (None, {}),
}


def make(name: str) -> Policy:
    """A policy of the board. Raises ConfigError where it is not there or does not take its options."""
    registered, options = POLICIES[name]
    return round_robin() if registered is None else policy(registered, **options)


def available(name: str) -> bool:
    """Whether a policy of the board is there, and takes the options that the board gives it."""
    try:
        make(name)
    except ConfigError:
        return False
    return True


@frozen(eq=False)
class FreePrefill:
    """Costs: those of decode as given, and chunks as ``NO_PREFILL`` has them."""

    decode: Costs

    @property
    def surface(self) -> str:
        """See Costs."""
        return self.decode.surface

    def step_seconds(self, load: Load) -> float:
        """See Costs."""
        return self.decode.step_seconds(attrs.evolve(load, chunks=())) + self._chunks(load)

    def balanced_seconds(self, load: Load) -> float:
        """See Costs."""
        return self.decode.balanced_seconds(attrs.evolve(load, chunks=())) + self._chunks(load)

    @staticmethod
    def _chunks(load: Load) -> float:
        return NO_PREFILL.step_seconds(Load(0, 0, 0, load.chunks)) if load.chunks else 0.0

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """See Costs."""
        return self.decode.finishing_times(load, steps)


@frozen
class Place:
    """A cell's cluster, what its steps cost, what of that is published, and for the bound its lanes."""

    built: Built
    costs: Costs | dict[str, Costs]
    published: Costs
    lanes: Lanes


def place_of(cell: Cell, even: bool = False) -> Place:
    """The modelled cluster of a cell; ``even``: at zero imbalance cost (a lane's ranks then need not meet either)."""
    system = SYSTEMS[cell.system]
    lockstep = cell.surface == "lockstep"
    ranks = LOCKSTEP_RANKS if lockstep else 1
    built = build(
        system.hardware,
        system.model,
        topology="colocated" if cell.topology == "colocated" else "disaggregated",
        lanes=ranks if even else 1,
        ranks=1 if even else ranks,
        surface="balanced" if even or lockstep else cell.surface,
        staging=cell.topology != "unstaged",
        any_length=True,  # workloads are cut to the model's positions already
    )
    if cell.topology != "pool":
        return Place(built, built.costs, built.costs, Lanes.of(built.cluster))
    built = attrs.evolve(built, cluster=attrs.evolve(built.cluster, host_blocks=BOUNDLESS))
    costs: dict[str, Costs] = {
        lane.id: built.costs if built.cluster.role(lane).decodes else NO_PREFILL for lane in built.cluster.lanes
    }
    return Place(built, costs, FreePrefill(built.costs), Lanes.of(built.cluster))


def simulate(place: Place, requests: Workload, name: str) -> RunResult:
    """The requests under a policy of the board. Raises TimeoutError for a run without an end in sight."""
    until = time.monotonic() + SLOWEST_S

    def tick(ended: int, now: float) -> None:
        if time.monotonic() > until:
            raise TimeoutError(f"given up after {SLOWEST_S:.0f} s: {ended} of {len(requests)} ended, at {now:.0f} s")

    return run(requests, place.built.cluster, place.costs, make(name), tick=tick, published=place.published)


@lru_cache(maxsize=64)
def sustained_rate(cell: Cell, seed: int, n: int, folder: Path) -> float:
    """Requests a second that `fcfs` sustains with all of the cell's online requests there at once."""
    requests = requests_of(cell, seed, n, folder).offline()
    even = cell.even_load or cell.surface == "balanced"
    ended = np.sort(simulate(place_of(cell, even), requests, "fcfs").latency.finished_columns()["last"])
    count = max(1, int(SUSTAINED * len(ended)))
    return count / float(ended[count - 1])


def arrange(cell: Cell, seed: int, n: int, folder: Path) -> Workload:
    """The cell's requests, arriving as its load says."""
    requests = requests_of(cell, seed, n, folder)
    if cell.offline:
        return requests
    # Of cells that differ in their load only, the rate is the same.
    like = attrs.evolve(cell, load="1 even" if cell.even_load else "1")
    rate = cell.share * sustained_rate(like, seed, n, folder)
    return requests.scaled(rate / requests.rate_per_s)


def run_cell(cell: Cell, seed: int, name: str, n: int, folder: Path) -> dict[str, Any]:
    """One run as a row of the board: what identifies it, and its figures."""
    requests = arrange(cell, seed, n, folder)
    even = name == EVEN
    place = place_of(cell, even)
    result = simulate(place, requests, "fcfs" if even else name)
    row = {**attrs.asdict(cell), "seed": seed, "policy": name, "n": n, **figures(cell, result)}
    if cell.offline and name == "fcfs":
        least = fluid_bound(
            requests.arrival_s, requests.prompt_tokens, requests.output_tokens, place.built.costs, place.lanes,
            prefilled=cell.topology == "pool",
        )  # fmt: skip
        row["bound_tok_s"] = row["tokens"] / least.bound_s
        row["bound_by"] = "programme" if least.programme_s >= least.other_s else "sums, or the longest alone"
    return row


def figures(cell: Cell, result: RunResult) -> dict[str, Any]:
    """What a row keeps of a run. Seconds, tokens a second, gigabytes; quantiles are nearest-rank."""
    all_figures, latency = result.figures, result.latency
    each, columns = latency.figures(), latency.finished_columns()
    promised = SYSTEMS[cell.system].promised
    kept = met(latency, promised)
    unserved = all_figures["requests"]["arrived"] - all_figures["requests"]["finished"]
    copies = all_figures["copies"]
    return {
        "throughput": all_figures["throughput_tok_s"],
        "tokens": all_figures["output_tokens"],
        "unserved": unserved,
        **{name: _spread(each[name]) for name in ("ttft", "tpot", "tpot_decoding", "e2e", "pool_wait")},
        "e2e_long": _spread(each["e2e"][longest_prompts(latency)]),
        "gap_p99": all_figures["latency_s"]["itl"]["p99"],
        "gap_max": all_figures["latency_s"]["itl"]["max"],
        "slo_share": float(kept.mean()) if len(kept) else 0.0,
        "goodput": goodput(latency, promised, all_figures["simulated_s"]),
        "preemptions": all_figures["preemptions"],
        "copied_gb": sum(copies[key] for key in copies if key != "staged_bytes") / 1e9,
        "staged_gb": copies["staged_bytes"] / 1e9,
        "bubbles": all_figures["bubbles"],
        "schedule": _digest(columns),
        "simulated_s": all_figures["simulated_s"],
        "wall_s": all_figures["wall_s"],
        "steps": all_figures["steps"],
    }


def _spread(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | None]:
    whole = summarize(values)
    return {key: whole[key] for key in ("mean", "p50", "p99")}


def _digest(columns: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Equal for two runs that gave every request its first and last token at the same moments."""
    times = hashlib.sha256()
    for name in ("arrival", "first", "last", "tokens"):
        times.update(np.ascontiguousarray(columns[name]).tobytes())
    return times.hexdigest()[:16]

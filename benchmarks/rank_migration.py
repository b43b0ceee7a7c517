"""Lanes of eight ranks: what even placing of joiners gains, what moving members from rank to rank gains, and over what.

    python -m benchmarks.rank_migration [--seeds 3] [--requests 4000] [--trace r1] [--out FILE]

The scoreboard's lockstep cells, several windows of each trace, the same arrivals for all. Throughput over placement in
turn (`round_robin`), and mean and p99 of E2E over those of `direct`:

* `direct`: joining requests go to the rank with most free blocks, and nobody moves (no links between ranks);
* `placed`: they go to the rank that stays the fastest with them;
* `moved`: and members move, over links between the ranks as fast as those from prefill devices; `moved:tenth`: over
  links a tenth as fast;
* `even`: ranks need not meet and imbalance costs nothing (`fcfs`); whoever is moved may even end sooner than that.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from attrs import evolve

from alignedsched import __version__
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.protocols import Policy
from alignedsched.policies.residency import DirectResidency
from alignedsched.sim.run import run
from alignedsched.workloads import Workload
from benchmarks.board_cells import ROOT, TRACES, Cell, is_real
from benchmarks.board_runs import Place, arrange, place_of
from benchmarks.round_robin import round_robin

OUT = ROOT / "benchmarks" / "results" / "rank_migration.json"
TOPOLOGIES, CELL_TRACES = ("colocated", "pool"), ("r1", "mooncake")
SPEEDS = {"moved": 1.0, "moved:tenth": 0.1}


def linked(place: Place, speed: float) -> Place:
    """The place with links between the ranks of a lane that many times as fast; 0: none."""
    cluster = place.built.cluster
    lane_of = {rank: lane.id for lane in cluster.lanes for rank in lane.ranks}
    links = []
    for link in cluster.links:
        inside = lane_of.get(link.source, link.source) == lane_of.get(link.target, link.target)
        if not inside:
            links.append(link)
        elif speed:
            links.append(evolve(link, bytes_per_s=speed * link.bytes_per_s))
    return evolve(place, built=evolve(place.built, cluster=evolve(cluster, links=tuple(links))))


def variants(cell: Cell) -> dict[str, tuple[Place, Policy]]:
    """What is compared: where it runs, and under which policy."""
    place = place_of(cell)
    apart = linked(place, 0.0)
    direct = evolve(cost_aligned(), residency=DirectResidency(to_host="never"))
    return {
        "round_robin": (apart, round_robin()),
        "direct": (apart, direct),
        "placed": (apart, cost_aligned()),
        **{name: (linked(place, speed), cost_aligned()) for name, speed in SPEEDS.items()},
        "even": (place_of(cell, even=True), fcfs()),
    }


def served(place: Place, which: Policy, requests: Workload) -> dict[str, float]:
    """What is kept of a run."""
    figures = run(requests, place.built.cluster, place.costs, which, published=place.published).figures
    assert figures["requests"]["finished"] == len(requests)
    latency = figures["latency_s"]
    return {
        "throughput": figures["throughput_tok_s"], "e2e_mean": latency["e2e"]["mean"], "e2e_p99": latency["e2e"]["p99"],
        "tpot_p99": latency["tpot"]["p99"], "gap_p99": latency["itl"]["p99"],
        "preemptions": figures["preemptions"], "peer_gb": figures["copies"]["peer_bytes"] / 1e9,
    }  # fmt: skip


def rows_of(cell: Cell, seeds: int, requests: int) -> list[dict[str, Any]]:
    """One row for each variant: every seed's figures, and means of their ratios."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        arrivals = arrange(cell, seed, requests, TRACES)
        for name, (place, which) in variants(cell).items():
            found.setdefault(name, []).append(served(place, which, arrivals))
    rows = []
    for name, runs in found.items():
        ratio = [a["throughput"] / b["throughput"] for a, b in zip(runs, found["round_robin"], strict=True)]
        row: dict[str, Any] = {"topology": cell.topology, "trace": cell.trace, "variant": name}
        row |= {"throughput": fmean(ratio), "least": min(ratio), "most": max(ratio)}
        for key in ("e2e_mean", "e2e_p99", "tpot_p99", "gap_p99"):
            row[key] = fmean(a[key] / b[key] for a, b in zip(runs, found["direct"], strict=True))
        rows.append({**row, "seeds": runs})
        print(
            f"{cell.topology:9} {cell.trace:8} {name:11} throughput {row['throughput']:.3f} ({row['least']:.3f} to "
            f"{row['most']:.3f}), E2E mean x {row['e2e_mean']:.3f}, p99 x {row['e2e_p99']:.3f}, TPOT p99 x "
            f"{row['tpot_p99']:.3f}",
            flush=True,
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--trace", action="append", choices=CELL_TRACES)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    about = {"version": __version__, "python": platform.python_version(), "requests": given.requests,
             "seeds": given.seeds}  # fmt: skip
    rows: list[dict[str, Any]] = []
    for trace in given.trace or CELL_TRACES:
        if not is_real(trace):
            print(f"not at hand: trace {trace!r}; what was fitted to it is drawn instead")
        for topology in TOPOLOGIES:
            rows += rows_of(Cell("8B", "lockstep", topology, trace, "1.3"), given.seeds, given.requests)
            given.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

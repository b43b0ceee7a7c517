"""Real traces run to the end: both policies, every surface, both topologies; every request accounted for.

    python -m benchmarks.real_traces [--traces DIR] [--limit N] [--check-every N] [--out FILE]

Takes the published Azure 2023 and Mooncake conversation traces from a folder (default: ``../shared/traces``), runs
each cell with ``alignedsched compare``'s own code as the trace was recorded (rate 1), verifies that every request
ended, calls ``check()`` on a sample of calls, and writes the figures. Arrivals as recorded are a light load for one
H100 on Azure and an overload on Mooncake, so the two show both regimes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from alignedsched import __version__
from alignedsched.load import SURFACES
from alignedsched.registry import policy
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload, read_trace

ROOT = Path(__file__).resolve().parent.parent
TRACES = {
    "azure-2023-conv": "azure_llm_2023_conv.csv.gz",
    "mooncake-conversation": "mooncake_conversation.jsonl.gz",
}
TOPOLOGIES = ("colocated", "disaggregated")
POLICIES = ("fcfs", "density_first")


def cell(workload: Workload, surface: str, topology: str, name: str, check_every: int | None) -> dict[str, Any]:
    """Run one cell and verify that nothing was lost. Returns the figures of docs/json.md plus what was verified."""
    built = build("h100", "llama-3.1-8b", topology=topology, lanes=1, surface=surface, staging=True)
    result = run(workload, built.cluster, built.costs, policy(name), check_every=check_every)
    requests = result.figures["requests"]
    ended = requests["finished"] + requests["cancelled"] + requests["rejected"] + requests["failed"]
    assert requests["arrived"] == ended == len(workload), f"{requests} of {len(workload)} requests"
    result.scheduler.check()
    assert result.scheduler.idle()
    return {"workload": workload.name, "surface": surface, "topology": topology, **result.figures}


def load(folder: Path, limit: int | None) -> list[Workload]:
    """The traces that are there."""
    found = []
    for name, file in TRACES.items():
        path = folder / file
        if path.exists():
            with read_trace(path, limit=limit) as reader:
                workload = Workload.from_rows(name, reader)
            found.append(attrs.evolve(workload, name=name))
    return found


def show(row: dict[str, Any]) -> None:
    latency = row["latency_s"]
    print(
        f"{row['workload']:22} {row['surface']:9} {row['topology']:14} {row['policy']:14} "
        f"{row['requests']['finished']:6,} of {row['requests']['arrived']:6,}  {row['throughput_tok_s']:8.0f} tok/s  "
        f"TTFT p50 {latency['ttft']['p50']:9.3f} s  TPOT p99 {latency['tpot']['p99']:9.4f} s  "
        f"E2E mean {latency['e2e']['mean']:9.2f} s  bound {row['bound_ratio']:6.1%}  wall {row['wall_s']:6.1f} s",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_traces", description=__doc__)
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--check-every", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "real_traces.json")
    options = parser.parse_args(argv)
    workloads = load(options.traces, options.limit)
    if not workloads:
        print(f"skipped: none of {', '.join(TRACES.values())} is in {options.traces}", file=sys.stderr)
        return 0
    rows = []
    for workload in workloads:
        for topology in TOPOLOGIES:
            for surface in SURFACES:
                for name in POLICIES:
                    rows.append(cell(workload, surface, topology, name, options.check_every))
                    show(rows[-1])
    versions = {
        "alignedsched": __version__, "python": platform.python_version(), "numpy": np.__version__,
        "attrs": version("attrs"), "sortedcontainers": version("sortedcontainers"), "machine": platform.machine(),
    }  # fmt: skip
    about = {"hardware": "h100 (modelled)", "model": "llama-3.1-8b", "lanes": 1, "check_every": options.check_every}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "versions": versions, "cells": rows}, indent=1) + "\n")
    print(f"{len(rows)} cells, every request accounted for; written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

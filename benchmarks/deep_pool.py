"""Where alignment pays: one decoding H100 with a deep pool, every surface, `density_first` against `fcfs`.

    python -m benchmarks.deep_pool [--requests N] [--out FILE]

All requests are there at once and are prefilled almost at once, so that only decoding decides. Prints a table in
Markdown: throughput relative to ``fcfs`` and, behind it, mean end-to-end latency relative to ``fcfs``; for
``density_first`` with its published settings and with larger batches.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from alignedsched import __version__
from alignedsched.costs import AffineCosts, Costs
from alignedsched.load import SURFACES
from alignedsched.registry import policy
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import workload

OUT = Path(__file__).resolve().parent / "results" / "deep_pool.json"
WORKLOADS = ("azure-conv", "mooncake", "reasoning", "m-large", "bimodal")
VARIANTS: dict[str, dict[str, Any]] = {"published": {}, "larger batches": {"batch_share": 0.7, "mix_share": 0.9}}
FAST_PREFILL = AffineCosts(1e-3, 0.0, 1e-7)


def figures(name: str, surface: str, n: int, policy_name: str, **options: Any) -> dict[str, Any]:
    """One run: figures of docs/json.md without a bound."""
    built = build("h100", "llama-3.1-8b", topology="disaggregated", lanes=1, surface=surface, staging=True)
    costs: dict[str, Costs] = {"lane-p0": FAST_PREFILL, "lane-d0": built.costs}
    drawn = workload(name, seed=0, n=n).offline()
    return run(drawn, built.cluster, costs, policy(policy_name, **options)).figures


def row(name: str, surface: str, n: int) -> dict[str, Any]:
    """Ratios of every variant to fcfs in one cell."""
    plain = figures(name, surface, n, "fcfs")
    cells = {}
    for variant, options in VARIANTS.items():
        aligned = figures(name, surface, n, "density_first", **options)
        assert aligned["requests"]["finished"] == plain["requests"]["finished"] == n
        cells[variant] = {
            "throughput": aligned["throughput_tok_s"] / plain["throughput_tok_s"],
            "e2e_mean": aligned["latency_s"]["e2e"]["mean"] / plain["latency_s"]["e2e"]["mean"],
            "e2e_p99": aligned["latency_s"]["e2e"]["p99"] / plain["latency_s"]["e2e"]["p99"],
            "tpot_decoding_p99": aligned["latency_s"]["tpot_decoding"]["p99"]
            / plain["latency_s"]["tpot_decoding"]["p99"],
        }
    return {
        "workload": name, "surface": surface, "fcfs_tok_s": plain["throughput_tok_s"],
        "fcfs_iteration_bubble": plain["bubbles"]["iteration"], **cells,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per workload, a column per surface; throughput / mean E2E relative to fcfs."""
    lines = []
    for variant in VARIANTS:
        lines += [f"| {variant} | " + " | ".join(SURFACES) + " |", "| --- " * (len(SURFACES) + 1) + "|"]
        for name in WORKLOADS:
            cells = [next(r for r in rows if r["workload"] == name and r["surface"] == s)[variant] for s in SURFACES]
            shown = " | ".join(f"{c['throughput']:.2f} / {c['e2e_mean']:.2f}" for c in cells)
            lines.append(f"| {name} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deep_pool", description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    rows = []
    for name in WORKLOADS:
        for surface in SURFACES:
            rows.append(row(name, surface, options.requests))
            print(f"{name}, {surface}: done", file=sys.stderr, flush=True)
    print(table(rows))
    about = {"hardware": "h100 (modelled)", "model": "llama-3.1-8b", "requests": options.requests, "seed": 0}
    versions = {"alignedsched": __version__, "python": platform.python_version(), "numpy": np.__version__}
    options.out.write_text(json.dumps({"about": about, "versions": versions, "cells": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Order `remaining`, mean against tail: what shortest-remaining-first gains in mean E2E, and what it costs at the p99.

    python -m benchmarks.order_frontier [--requests 6000] [--windows 3] [--out FILE]

The deep pool of the scoreboard (Llama-3.1-8B on an H100, `balanced`, 1.3 times what `fcfs` sustains), several windows
of each trace. `cost_aligned` with ``order="remaining"``, one setting for all traces but the patience that is varied,
with the history of outputs and with an oracle that knows them. Above capacity somebody has to wait: who is let by
shortens the mean and who lets by lengthens the tail, so there is a frontier, and no patience at all is `fcfs`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from alignedsched import __version__
from alignedsched.policies.protocols import Policy
from alignedsched.registry import policy
from alignedsched.sim.run import run
from benchmarks.board_cells import REAL, ROOT, TRACES, Cell, is_real
from benchmarks.board_runs import Place, arrange, place_of

OUT = ROOT / "benchmarks" / "results" / "order_frontier.json"
PATIENCE = (5.0, 15.0, 60.0, 240.0)


def mean_and_tail(place: Place, requests: Any, which: Policy) -> tuple[float, float]:
    """Mean and p99 of E2E, seconds."""
    e2e = run(requests, place.built.cluster, place.costs, which, published=place.published).figures["latency_s"]["e2e"]
    return e2e["mean"], e2e["p99"]


def frontier(trace: str, requests: int, windows: int) -> list[dict[str, Any]]:
    """For each predictor and patience: how many times shorter the mean is, and the p99 relative to `fcfs`."""
    cell = Cell("8B", "balanced", "pool", trace, "1.3")
    place = place_of(cell)
    loads = [arrange(cell, seed, requests, TRACES) for seed in range(windows)]
    plain = [mean_and_tail(place, load, policy("fcfs")) for load in loads]
    rows = []
    for predictor in ("history", "oracle"):
        for patience in PATIENCE:
            chosen = {"order": "remaining", "predictor": predictor, "patience_s": patience}
            found = [mean_and_tail(place, load, policy("cost_aligned", **chosen)) for load in loads]
            mean = [base[0] / got[0] for base, got in zip(plain, found, strict=True)]
            tail = [got[1] / base[1] for base, got in zip(plain, found, strict=True)]
            rows.append(
                {
                    "trace": trace, "predictor": predictor, "patience_s": patience,
                    "mean_times_shorter": fmean(mean), "least": min(mean), "p99_ratio": fmean(tail),
                    "fcfs_mean_s": fmean(base[0] for base in plain),
                }
            )  # fmt: skip
            row = rows[-1]
            print(
                f"{trace:9} {predictor:8} patience {patience:5.0f} s: mean {row['mean_times_shorter']:.2f} times"
                f" shorter (least {row['least']:.2f}), p99 x {row['p99_ratio']:.2f}",
                flush=True,
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--trace", action="append", choices=tuple(REAL))
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for trace in given.trace or REAL:
        if not is_real(trace):
            print(f"not at hand: trace {trace!r}; what was fitted to it is drawn instead")
        rows += frontier(trace, given.requests, given.windows)
    assert all(math.isfinite(row["p99_ratio"]) for row in rows)
    about = {"version": __version__, "python": platform.python_version(), "requests": given.requests,
             "windows": given.windows}  # fmt: skip
    given.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

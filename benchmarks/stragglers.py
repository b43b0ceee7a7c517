"""What the last few requests of an offline run cost: when which share of requests has ended, over `fcfs`.

    python -m benchmarks.stragglers [--seeds 5] [--out benchmarks/results/stragglers.json]

The scoreboard's offline cells on `unsplit` whose aim is missed. The throughput of a run counts until its last request
has ended; here is how many times sooner than under `fcfs` shares of them have, and who is left for the last part.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from alignedsched import __version__
from benchmarks.board_cells import TRACES, Cell
from benchmarks.board_runs import arrange, place_of, simulate

CELLS = tuple(Cell(system, "unsplit", "pool", "mix", "offline") for system in ("8B", "70B"))
POLICIES = ("fcfs", "cost_aligned")
SHARES = (0.5, 0.9, 0.99, 0.995, 0.999, 1.0)


def ends(cell: Cell, seed: int, name: str, requests: int) -> dict[str, Any]:
    """When shares of the requests have ended (seconds), and of the last one: begin, end, prompt, tokens made."""
    done = simulate(place_of(cell), arrange(cell, seed, requests, TRACES), name).latency.finished_columns()
    order = np.argsort(done["last"], kind="stable")
    at = [float(done["last"][order[max(0, int(np.ceil(share * len(order))) - 1)]]) for share in SHARES]
    final = order[-1]
    last = {key: float(done[key][final]) for key in ("first", "last", "prompt", "tokens")}
    return {"ended_s": at, "last": last}


def row_of(cell: Cell, seeds: int, requests: int) -> dict[str, Any]:
    """All seeds of a cell: both policies' ends, and the means of their ratios."""
    runs = [{name: ends(cell, seed, name, requests) for name in POLICIES} for seed in range(seeds)]
    sooner = [
        fmean(run["fcfs"]["ended_s"][place] / run["cost_aligned"]["ended_s"][place] for run in runs)
        for place in range(len(SHARES))
    ]
    return {"cell": cell.name, "shares": SHARES, "sooner": sooner, "runs": runs}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=CELLS[0].requests)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    rows = []
    for cell in CELLS:
        row = row_of(cell, options.seeds, options.requests)
        rows.append(row)
        told = "  ".join(f"{share:.1%} {ratio:.2f}" for share, ratio in zip(SHARES, row["sooner"], strict=True))
        print(f"{cell.name}: so many times sooner than fcfs have ended  {told}", flush=True)
        for seed, run in enumerate(row["runs"]):
            last = run["cost_aligned"]["last"]
            print(
                f"  seed {seed}: the last of cost_aligned has {last['prompt']:.0f} tokens of prompt, makes "
                f"{last['tokens']:.0f}, first at {last['first']:.0f} s, last at {last['last']:.0f} s",
                flush=True,
            )
    if options.out is not None:
        about = {"version": __version__, "python": platform.python_version(), "numpy": np.__version__}
        about |= {"requests": options.requests, "seeds": options.seeds}
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs become figures: means over seeds, and ratios to `fcfs` on the same seed with their confidence half-widths.

A ratio is paired: the policy's figure over `fcfs`'s on the very same requests and arrivals, then averaged over seeds.
Its half-width is that of a 95 % interval by Student's t over the seeds. A cell is *settled* where half-widths are
within 1 % (of the ratio) for throughput and 3 % for p99 figures; an unsettled cell counts as not met, whatever it says.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import attrs
import numpy as np

from alignedsched import __version__
from alignedsched.errors import ConfigError
from benchmarks.board_cells import SEEDS, Cell, design, even_twin, is_real
from benchmarks.board_runs import EVEN

Row = Mapping[str, Any]
Runs = Mapping[str, dict[int, Row]]  # by policy, by seed
LIMITS = {"throughput": 0.01, "e2e_p99": 0.03, "tpot_p99": 0.03, "tpot_decoding_p99": 0.03}
SPREADS = ("ttft", "tpot", "tpot_decoding", "e2e", "pool_wait", "e2e_long")
PLAIN = ("throughput", "gap_p99", "gap_max", "slo_share", "goodput", "preemptions", "copied_gb", "staged_gb",
         "simulated_s", "wall_s")  # fmt: skip
RATIOS = (
    "throughput", "e2e_mean", "e2e_p50", "e2e_p99", "e2e_long_mean", "e2e_long_p99", "ttft_mean", "ttft_p99",
    "tpot_mean", "tpot_p99", "tpot_decoding_p99", "pool_wait_mean", "gap_max", "goodput",
)  # fmt: skip


def flat(row: Row) -> dict[str, float]:
    """A row's figures by one name each."""
    figures: dict[str, float] = {}
    for name in PLAIN:
        if row.get(name) is not None:
            figures[name] = float(row[name])
    for name in SPREADS:
        for key, value in (row.get(name) or {}).items():
            if value is not None:
                figures[f"{name}_{key}"] = float(value)
    for name, value in (row.get("bubbles") or {}).items():
        figures[f"bubble_{name}"] = float(value)
    return figures


def half_width(values: list[float]) -> float | None:
    """Of the 95 % interval of the mean; None for fewer than two values. Needs scipy."""
    from scipy.special import stdtrit  # the pages are made without it

    count = len(values)
    return None if count < 2 else float(stdtrit(count - 1, 0.975)) * stdev(values) / math.sqrt(count)


def merge(rows: list[dict[str, Any]], about: Mapping[str, Any], traces: Path) -> dict[str, Any]:
    """The board as data: what it says of itself, and its cells in order of the design."""
    cells: dict[Cell, dict[str, dict[int, Row]]] = {}
    for row in rows:
        cell = Cell(*(row[field.name] for field in attrs.fields(Cell)))
        cells.setdefault(cell, {}).setdefault(row["policy"], {})[row["seed"]] = row
    order = {cell: at for at, cell in enumerate(design())}
    chosen = sorted(cells, key=lambda cell: (order.get(cell, len(order)), cell.name))
    return {
        "version": 1,
        "about": {
            **about,
            "alignedsched": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "seeds": SEEDS,
            "real_traces": sorted({cell.trace for cell in cells if is_real(cell.trace, traces)}),
        },
        "cells": [_cell(cell, cells[cell], cells.get(even_twin(cell), {})) for cell in chosen if "fcfs" in cells[cell]],
    }


def updated(board: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A board with the policies that ran anew in place of their old figures; what did not run stays as it was.

    That holds only where `fcfs` still does the same: raises ConfigError naming a cell in which it does not, unless all
    of the cell's policies ran anew.
    """
    cells = {_key(cell): cell for cell in board["cells"]}
    for cell in new["cells"]:
        old = cells.get(_key(cell))
        if old is None or old["policies"].keys() <= cell["policies"].keys():
            cells[_key(cell)] = {**{name: old[name] for name in ("b",) if old and name in old}, **cell}
            continue
        before, now = (_lasting(of["policies"]["fcfs"]["figures"]) for of in (old, cell))
        if before != now or old["n"] != cell["n"]:
            name = Cell(*_key(cell)).name
            raise ConfigError(f"{name}: `fcfs` does something else than before; run all of the cell's policies")
        cells[_key(cell)] = {**old, **cell, "policies": {**old["policies"], **cell["policies"]}}
    about = {**new["about"], "code": sorted({*board["about"]["code"], *new["about"]["code"]})}
    about["real_traces"] = sorted({*board["about"]["real_traces"], *new["about"]["real_traces"]})
    return {"version": board["version"], "about": about, "cells": list(cells.values())}


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[field.name] for field in attrs.fields(Cell))


def _lasting(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures without what depends on the machine."""
    return {name: value for name, value in figures.items() if name != "wall_s"}


def _good(runs: Runs, policy: str) -> dict[int, Row]:
    return {seed: row for seed, row in runs.get(policy, {}).items() if "error" not in row}


def _cell(cell: Cell, runs: Runs, twin: Runs) -> dict[str, Any]:
    """One cell; ``twin``: the runs of its yardstick, `fcfs` where imbalance costs nothing."""
    plain = _good(runs, "fcfs")
    merged: dict[str, Any] = {
        **attrs.asdict(cell),
        "n": max(row["n"] for row in runs["fcfs"].values()),
        "policies": {name: _policy(by_seed, plain) for name, by_seed in runs.items() if name != EVEN},
    }
    bounded = [row for row in plain.values() if "bound_tok_s" in row]
    if bounded:
        merged["bound_tok_s"] = _short(fmean(row["bound_tok_s"] for row in bounded))
        merged["bound_by"] = sorted({row["bound_by"] for row in bounded})
    even = _good(runs, EVEN) if cell.surface == "lockstep" else _good(twin, "fcfs")
    shared = [seed for seed in plain if seed in even and even[seed]["n"] == plain[seed]["n"]]
    if shared and (cell.offline or cell.even_load or cell.surface == "lockstep"):
        merged["b"] = _short(fmean(even[seed]["throughput"] / plain[seed]["throughput"] for seed in shared))
    return merged


def _policy(by_seed: dict[int, Row], plain: dict[int, Row]) -> dict[str, Any]:
    """Means over seeds; [mean, half-width] of paired ratios; on how many seeds the schedule is `fcfs`'s own."""
    good = {seed: row for seed, row in by_seed.items() if "error" not in row}
    errors = sorted({row["error"] for row in by_seed.values() if "error" in row})
    if not good:
        return {"seeds": 0, "errors": errors}
    figures = [flat(row) for row in good.values()]
    names = [name for name in figures[0] if all(name in each for each in figures)]
    paired = [(flat(row), flat(plain[seed])) for seed, row in good.items() if seed in plain]
    ratios: dict[str, list[float | None]] = {}
    for name in RATIOS:
        values = [ours[name] / theirs[name] for ours, theirs in paired if name in ours and theirs.get(name)]
        if values and len(values) == len(paired):
            half = half_width(values)
            ratios[name] = [_short(fmean(values)), None if half is None else _short(half)]
    shares = [
        row["throughput"] / plain[seed]["bound_tok_s"]
        for seed, row in good.items()
        if seed in plain and "bound_tok_s" in plain[seed]
    ]
    merged: dict[str, Any] = {
        "seeds": len(good),
        "unserved": sum(row["unserved"] for row in good.values()),
        "same_schedule": sum(row["schedule"] == plain[seed]["schedule"] for seed, row in good.items() if seed in plain),
        "figures": {name: _short(fmean(each[name] for each in figures)) for name in names},
        "ratios": ratios,
    }
    if shares:
        merged["bound_share"] = _short(fmean(shares))
    if errors:
        merged["errors"] = errors
    return merged


def settled(policy: Mapping[str, Any], name: str, seeds: int = SEEDS) -> bool:
    """Whether a ratio rests on enough seeds and its half-width is within its limit (none for plain means)."""
    ratio = policy.get("ratios", {}).get(name)
    if ratio is None or policy["seeds"] < seeds:
        return False
    limit = LIMITS.get(name)
    return limit is None or (ratio[1] is not None and ratio[1] <= limit * ratio[0])


def _short(value: float) -> float:
    """Five significant digits: the file is committed."""
    return float(f"{value:.5g}")

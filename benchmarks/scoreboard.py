"""The scoreboard: policies x surfaces x models x traces x loads x topologies, each beside `fcfs` on the same requests.

    python -m benchmarks.scoreboard --minutes 35 --jobs 2      the most telling cells first
    python -m benchmarks.scoreboard --resume --jobs 2          go on where it stopped, to the end (about two hours)
    python -m benchmarks.scoreboard --smoke                    a few cells, everything small, seconds
    python -m benchmarks.scoreboard --only '8B/gated/.*' --resume
    python -m benchmarks.scoreboard --policies cost_aligned --resume    its rows only
    python -m benchmarks.scoreboard --only '70B/gated/pool/r1/0.9' --seeds 20 --update    more seeds for one cell
    python -m benchmarks.scoreboard --merge                    only write results and page from the rows that are there
    python -m benchmarks.scoreboard --policies 'fcfs|cost_aligned' --update    other policies' figures stay

Every run is one row of ``.benchmarks/scoreboard/rows.jsonl`` (not committed): what was done survives an interruption.
At the end rows are merged to ``benchmarks/results/scoreboard.json`` and ``docs/scoreboard.md`` is made from that.
`board_cells` says which cells there are, `board_runs` what a run is, `board_merge` how runs become figures,
`board_targets` what is asked of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from benchmarks.board_cells import ROOT, SEEDS, TRACES, Cell, design, is_real
from benchmarks.board_merge import merge, updated
from benchmarks.board_runs import EVEN, POLICIES, available, run_cell
from benchmarks.digest import code_digest
from benchmarks.scoreboard_page import PAGE, write_page

SCRATCH = ROOT / ".benchmarks" / "scoreboard"
RESULTS = ROOT / "benchmarks" / "results" / "scoreboard.json"
SMOKE_REQUESTS, SMOKE_SEEDS = 60, 2
SMOKE = (
    Cell("8B", "gated", "pool", "mooncake", "offline"),
    Cell("8B", "balanced", "pool", "azure", "1.3"),
    Cell("8B", "lockstep", "pool", "r1", "offline"),
    Cell("70B", "unsplit", "pool", "bimodal", "offline"),
    Cell("13B", "gated", "unstaged", "azure", "0.6"),
    Cell("8B", "padded", "colocated", "bursts", "0.9"),
)
Row = dict[str, Any]


@frozen
class Job:
    """The runs of one cell and seed that are still to be made, until a moment (of ``time.time``)."""

    cell: Cell
    seed: int
    policies: tuple[str, ...]
    requests: int
    traces: Path
    until: float

    def rows(self) -> list[Row]:
        """Run them. A run that fails is a row too, so that the others are not lost with it."""
        rows: list[Row] = []
        for name in self.policies:
            if time.time() >= self.until:
                break
            try:
                rows.append(run_cell(self.cell, self.seed, name, self.requests, self.traces))
            except Exception as error:  # noqa: BLE001 - whatever a policy does, the board goes on and shows it
                what = {"error": f"{type(error).__name__}: {error}"[:300], "policy": name, "seed": self.seed}
                rows.append({**attrs.asdict(self.cell), **what, "n": self.requests})
            gc.collect()
        return rows


def jobs_of(
    cells: dict[Cell, tuple[str, ...]],
    done: Iterable[Row],
    seeds: int,
    requests: int | None,
    traces: Path,
    until: float,
) -> Iterator[Job]:
    """What is still to be run, in order; rows that failed are run again."""
    known = {key_of(row) for row in done if "error" not in row}
    for cell, names in cells.items():
        # Ranks in lockstep have no twin on another surface: their yardstick is a run of its own.
        wanted = (*names, EVEN) if names and cell.surface == "lockstep" else names
        for seed in range(seeds):
            missing = tuple(name for name in wanted if (cell, seed, name) not in known)
            if missing:
                yield Job(cell, seed, missing, requests or cell.requests, traces, until)


def key_of(row: Row) -> tuple[Cell, int, str]:
    """What identifies a row: cell, seed, policy."""
    fields = (field.name for field in attrs.fields(Cell))
    return Cell(**{name: row[name] for name in fields}), row["seed"], row["policy"]


def read_rows(path: Path) -> list[Row]:
    """Rows of an earlier run; a last line that was cut off is left out. The newest row of a key counts."""
    rows: dict[tuple[Cell, int, str], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[key_of(row)] = row
    return list(rows.values())


def run_jobs(jobs: list[Job], workers: int, path: Path) -> None:
    """Run jobs and append their rows as they come."""
    if not jobs:
        return
    began, cells = time.time(), len({job.cell for job in jobs})
    print(f"{len(jobs)} jobs in {cells} cells", flush=True)
    with path.open("a", encoding="utf-8") as out:
        for number, rows in enumerate(_each(jobs, workers), 1):
            for row in rows:
                out.write(json.dumps(row) + "\n")
            out.flush()
            if rows:
                told = ", ".join(f"{row['policy']} {row.get('throughput', 0):.0f}" for row in rows)
                cell = key_of(rows[0])[0].name
                at = time.time() - began
                print(f"{at:6.0f} s  {number}/{len(jobs)}  {cell} #{rows[0]['seed']}: {told}", flush=True)


def _each(jobs: list[Job], workers: int) -> Iterator[list[Row]]:
    if workers == 1:
        yield from map(Job.rows, jobs)
        return
    with multiprocessing.get_context("fork").Pool(workers, initializer=_settle) as pool:
        yield from pool.imap_unordered(Job.rows, jobs)


def _settle() -> None:
    """As `alignedsched compare`: what is loaded stays, and a run makes records that die young."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def wanted_cells(options: argparse.Namespace) -> dict[Cell, tuple[str, ...]]:
    """Cells that match, with the policies that are there; says which are not."""
    cells = dict.fromkeys(SMOKE, ("fcfs", "density_first", "cost_aligned")) if options.smoke else design()
    chosen = {cell: names for cell, names in cells.items() if re.search(options.only, cell.name)}
    asked = sorted({name for names in chosen.values() for name in names})
    there = {name for name in asked if available(name)}
    for name in asked:
        if name not in there:
            print(f"skipped: policy {name!r}: the registry does not know it, or it does not take {POLICIES[name][1]}")
    for trace in sorted({cell.trace for cell in chosen}):
        if not options.smoke and trace in ("mooncake", "azure", "r1", "m-large") and not is_real(trace, options.traces):
            print(f"not at hand: trace {trace!r} at {options.traces}; what was fitted to it is drawn instead")
    wanted = {name for name in there if re.fullmatch(options.policies, name)}
    return {cell: tuple(name for name in names if name in wanted) for cell, names in chosen.items()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoreboard", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a few small cells; touches no committed file")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no further run after so many")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--merge", action="store_true", help="run nothing: merge rows, write results and page")
    parser.add_argument("--page", action="store_true", help="run nothing: write the page from the results")
    parser.add_argument("--update", action="store_true", help="keep results of what does not run, if fcfs is the same")
    parser.add_argument("--only", default="", metavar="REGEX", help="cells whose name it matches")
    parser.add_argument("--policies", default=".*", metavar="REGEX", help="policies whose name it matches, whole")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each cell (default: %(default)s)")
    parser.add_argument("--requests", type=int, help="in place of a cell's own number of them; keep such rows apart")
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=PAGE, help="where the page goes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.page:
        write_page(json.loads(options.out.read_text(encoding="utf-8")), options.docs)
        return 0
    began = time.time()
    options.scratch.mkdir(parents=True, exist_ok=True)
    path = options.scratch / ("smoke.jsonl" if options.smoke else "rows.jsonl")
    if path.exists() and not options.resume and not options.merge:
        path.replace(path.with_suffix(".old"))  # hours of work are not deleted at a slip
    if not options.merge:
        seeds, requests = (SMOKE_SEEDS, SMOKE_REQUESTS) if options.smoke else (options.seeds, options.requests)
        until = began + 60 * options.minutes
        jobs = list(jobs_of(wanted_cells(options), read_rows(path), seeds, requests, options.traces, until))
        code = code_digest()[:12]
        run_jobs(jobs, options.jobs, path)
        with (options.scratch / "codes.txt").open("a", encoding="utf-8") as codes:
            codes.write(f"{code}\n")
    rows = read_rows(path)
    about = {"code": _codes(options.scratch)}
    merged = merge(rows, about, options.traces)
    failed = sum("error" in row for row in rows)
    print(
        f"{len(rows)} runs in {len(merged['cells'])} cells, {failed} failed, {(time.time() - began) / 60:.1f} minutes"
    )
    if not options.smoke:
        if options.update:
            merged = updated(json.loads(options.out.read_text(encoding="utf-8")), merged)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(merged, separators=(",", ":")) + "\n", encoding="utf-8")
        write_page(merged, options.docs)
    return 1 if failed and options.smoke else 0


def _codes(scratch: Path) -> list[str]:
    path = scratch / "codes.txt"
    return sorted(set(path.read_text(encoding="utf-8").split())) if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())

"""The scoreboard on a few small cells, and how its rows become figures, verdicts and a page."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from alignedsched.errors import ConfigError
from alignedsched.policies.protocols import Composition
from alignedsched.registry import policy
from alignedsched.sim.run import run
from alignedsched.views import LaneView
from benchmarks import board_cells, board_runs, scoreboard
from benchmarks.board_cells import SEEDS, Cell, design, requests_of
from benchmarks.board_merge import half_width, merge, settled, updated
from benchmarks.board_runs import EVEN, POLICIES, arrange, available, place_of, run_cell
from benchmarks.board_targets import MEET, MISS, UNSETTLED, WIDE, checks
from benchmarks.round_robin import InTurn, round_robin
from benchmarks.scoreboard_page import listed_checks, text_of, write_page

pytest.importorskip("scipy", reason="the scoreboard's bound needs scipy")
NOWHERE = Path("/nonexistent")
Row = dict[str, Any]


def made_up(cell: Cell, policy: str, seed: int, better: float = 1.0, **other: Any) -> Row:
    """A row whose throughput is ``better`` times, and whose latencies are one over so many times, `fcfs`'s."""
    spread = {"mean": 2.0 / better, "p50": 1.0 / better, "p99": 9.0 / better}
    names = ("ttft", "tpot", "tpot_decoding", "e2e", "pool_wait", "e2e_long")
    row: Row = {
        **attrs.asdict(cell), "policy": policy, "seed": seed, "n": 100, "throughput": 1000.0 * better * (1 + seed),
        "tokens": 5000, "unserved": 0, **dict.fromkeys(names, spread), "gap_p99": 0.1, "gap_max": 1.0,
        "slo_share": 0.5, "goodput": 2.0 * better, "preemptions": 3, "copied_gb": 1.5, "staged_gb": 0.0,
        "bubbles": {"iteration": 0.1, "batch": 0.0, "copy_stall": 0.0}, "schedule": f"{policy}{seed}",
        "simulated_s": 5.0, "wall_s": 0.1, "steps": 10,
    }  # fmt: skip
    if cell.offline and policy == "fcfs":
        row |= {"bound_tok_s": 2000.0 * (1 + seed), "bound_by": "programme"}
    return row | other


def board_of(rows: list[Row]) -> dict[str, Any]:
    return merge(rows, {"minutes": 0.1, "code": []}, NOWHERE)


UNSPLIT = Cell("8B", "unsplit", "pool", "mooncake", "offline")


def test_what_ran_anew_replaces_its_old_figures_only() -> None:
    others = [made_up(UNSPLIT, name, seed) for seed in range(SEEDS) for name in ("fcfs", "density_first")]
    mine = [made_up(UNSPLIT, "cost_aligned", seed, 1.5) for seed in range(SEEDS)]
    again = [made_up(UNSPLIT, "cost_aligned", seed, 2.0) for seed in range(SEEDS)]
    plain = [row for row in others if row["policy"] == "fcfs"]
    board = updated(board_of([*others, *mine]), board_of([*plain, *again]))
    assert board == board_of([*others, *again])
    elsewhere = attrs.evolve(UNSPLIT, trace="azure")
    more = updated(board, board_of([made_up(elsewhere, "fcfs", seed) for seed in range(SEEDS)]))
    assert [cell["trace"] for cell in more["cells"]] == ["mooncake", "azure"]
    slower = [made_up(UNSPLIT, "fcfs", seed, 0.9) for seed in range(SEEDS)]
    with pytest.raises(ConfigError, match="8B/unsplit/pool/mooncake/offline: `fcfs` does something else"):
        updated(board, board_of([*slower, *again]))
    whole = board_of([*slower, *again, *(made_up(UNSPLIT, "density_first", seed) for seed in range(SEEDS))])
    assert updated(board, whole) == whole


def test_the_smoke_board_runs_resumes_and_leaves_committed_files_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    kept = [root / "benchmarks" / "results" / "scoreboard.json", root / "docs" / "scoreboard.md"]
    before = [path.read_bytes() if path.exists() else b"" for path in kept]
    options = ["--smoke", "--jobs", "1", "--scratch", str(tmp_path), "--traces", str(NOWHERE)]
    assert scoreboard.main(options) == 0
    path = tmp_path / "smoke.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["policy"] for row in rows} >= {"fcfs", "density_first", EVEN}
    assert {Cell(*(row[f.name] for f in attrs.fields(Cell))) for row in rows} == set(scoreboard.SMOKE)
    for row in rows:
        assert "error" not in row
        assert row["unserved"] == 0
        assert row["throughput"] > 0
        if "bound_tok_s" in row:
            assert row["throughput"] <= row["bound_tok_s"]
    # A line that was cut off is run again, and nothing else.
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + '\n{"cut')
    assert scoreboard.main([*options, "--resume"]) == 0
    assert "1 jobs in 1 cells" in capsys.readouterr().out
    assert [path.read_bytes() if path.exists() else b"" for path in kept] == before


def test_the_design_names_what_is_there_once() -> None:
    cells = design()
    assert {policy for names in cells.values() for policy in names} == set(POLICIES)
    assert all(list(cells).index(board_cells.even_twin(c)) <= at for at, c in enumerate(cells) if c.offline
               and c.surface != "lockstep")  # fmt: skip
    assert all(names[0] == "fcfs" and len(set(names)) == len(names) for names in cells.values())
    for cell in cells:
        assert cell.system in board_cells.SYSTEMS
        assert cell.surface in board_cells.SURFACES
        assert cell.topology in board_cells.TOPOLOGIES
        assert cell.trace in board_cells.TRACE_NAMES
        assert cell.offline or cell.share > 0
        assert not cell.offline or cell.requests >= 10_000
    assert available("fcfs")


def test_policies_that_are_not_there_are_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(POLICIES, "waves", ("no_such_policy", {}))
    monkeypatch.setitem(POLICIES, "density_first", ("density_first", {"no_such_option": 1}))
    options = scoreboard.parse(["--only", "8B/gated/pool/azure/1.3$", "--traces", str(tmp_path)])
    (names,) = scoreboard.wanted_cells(options).values()
    assert "fcfs" in names
    assert not {"waves", "density_first"} & set(names)
    said = capsys.readouterr().out
    assert "skipped: policy 'waves'" in said
    assert "not at hand: trace 'azure'" in said


def test_a_run_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_runs, "SLOWEST_S", 0.0)
    with pytest.raises(TimeoutError, match="given up after 0 s"):
        run_cell(Cell("8B", "gated", "pool", "azure", "offline"), 0, "fcfs", 600, NOWHERE)


def test_requests_are_cut_to_the_model_and_differ_by_seed() -> None:
    for trace in board_cells.TRACE_NAMES:
        cell = Cell("13B", "gated", "pool", trace, "0.6")
        one, two = (requests_of(cell, seed, 50, NOWHERE) for seed in (0, 1))
        assert len(one) == 50
        assert int((one.prompt_tokens + one.output_tokens).max()) <= 2048
        assert one.arrival_s.tolist() != two.arrival_s.tolist()


def test_windows_of_a_real_trace_do_not_overlap_and_offline_draws_from_all_of_it(shared_traces: Path) -> None:
    online, offline = (Cell("8B", "gated", "pool", "azure", load) for load in ("0.6", "offline"))
    windows = [requests_of(online, seed, 2400, shared_traces) for seed in range(SEEDS)]
    firsts = {tuple(w.prompt_tokens[:50].tolist()) for w in windows}
    assert len(firsts) == SEEDS
    assert all((np.diff(w.arrival_s) >= 0).all() for w in windows)
    more = [requests_of(online, seed, 1200, shared_traces) for seed in range(SEEDS, 3 * SEEDS)]
    assert len(firsts | {tuple(w.prompt_tokens[:50].tolist()) for w in more}) == 3 * SEEDS
    assert windows[0].prompt_tokens[1936:1946].tolist() == more[0].prompt_tokens[:10].tolist()  # half way to the next
    drawn = requests_of(offline, 0, 10_000, shared_traces)
    assert drawn.span_s == 0.0
    assert float(drawn.prompt_tokens.mean()) == pytest.approx(1155, rel=0.05)  # the trace's own mean


@pytest.mark.parametrize("load", ["0.6", "1.3 even"])
def test_a_load_is_a_share_of_what_fcfs_sustains(load: str) -> None:
    cell = Cell("8B", "unsplit", "pool", "mix", load)
    arranged = [arrange(attrs.evolve(cell, load=each), 0, 60, NOWHERE) for each in (load, "2" + load[1:])]
    shares = [float(each.split()[0]) for each in (load, "2" + load[1:])]
    assert arranged[1].rate_per_s / arranged[0].rate_per_s == pytest.approx(shares[1] / shares[0])


def test_at_zero_imbalance_cost_ranks_are_lanes_of_their_own() -> None:
    cell = Cell("8B", "lockstep", "pool", "mix", "offline")
    together, apart = place_of(cell), place_of(cell, even=True)
    decoding = [
        [lane for lane in p.built.cluster.lanes if p.built.cluster.role(lane).decodes] for p in (together, apart)
    ]
    assert [len(lanes) for lanes in decoding] == [1, 8]
    assert len(decoding[0][0].ranks) == 8
    assert together.lanes.decode == apart.lanes.decode == 8


def test_a_policy_that_fails_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        if name == "waves":
            raise RuntimeError("a policy of mine")
        return policy(name)

    monkeypatch.setattr(board_runs, "make", broken)
    cell = Cell("8B", "gated", "pool", "azure", "offline")
    rows = scoreboard.Job(cell, 0, ("waves", "fcfs"), 20, NOWHERE, 1e12).rows()
    assert rows[0]["error"] == "RuntimeError: a policy of mine"
    assert rows[1]["throughput"] > 0
    merged = board_of(rows)["cells"][0]["policies"]
    assert merged["waves"] == {"seeds": 0, "errors": ["RuntimeError: a policy of mine"]}
    assert "**failed:** `waves`" in text_of(board_of(rows), {})
    assert scoreboard.Job(cell, 0, ("fcfs",), 20, NOWHERE, 0.0).rows() == []  # its time is over


@pytest.mark.parametrize("topology", ["pool", "colocated"])
def test_round_robin_takes_ranks_in_turn_and_serves_everybody(topology: str) -> None:
    """A request is a member of the rank of its turn, and of no other; once it was any rank with seats."""
    seen: set[tuple[int, int]] = set()  # arrival numbers, and ranks of which they were members

    class Seen(InTurn):
        def compose(self, view: LaneView) -> Composition:
            for rank in view.ranks if view.role.decodes else ():
                seen.update((view.entry(member).order, rank.rank) for member in rank.batch)
            return super().compose(view)

    cell = Cell("8B", "lockstep", topology, "bimodal", "offline")
    place, requests = place_of(cell), requests_of(cell, 0, 80, NOWHERE)
    watched = attrs.evolve(round_robin(), batching=Seen())
    result = run(requests, place.built.cluster, place.costs, watched, published=place.published)
    assert result.figures["requests"]["finished"] == 80
    assert {rank for _, rank in seen} == set(range(8))
    assert all(order % 8 == rank for order, rank in seen)


def test_ratios_are_paired_by_seed_and_carry_students_half_width() -> None:
    rows = [made_up(UNSPLIT, "fcfs", seed) for seed in range(SEEDS)]
    factors = [1.4, 1.5, 1.6, 1.5, 1.5]
    rows += [made_up(UNSPLIT, "cost_aligned", seed, factors[seed]) for seed in range(SEEDS)]
    rows += [made_up(board_cells.even_twin(UNSPLIT), "fcfs", seed, 1.8) for seed in range(SEEDS)]
    twin, cell = board_of(rows)["cells"]
    assert (twin["surface"], twin["b"]) == ("balanced", 1.0)
    mean, half = cell["policies"]["cost_aligned"]["ratios"]["throughput"]
    assert mean == pytest.approx(1.5)
    assert half == pytest.approx(2.776 * np.std(factors, ddof=1) / np.sqrt(5), rel=1e-3)
    assert half_width([1.0]) is None
    assert half_width([1.0, 2.0] * 10) == pytest.approx(2.093 * np.std([1.0, 2.0] * 10, ddof=1) / np.sqrt(20), rel=1e-3)
    assert cell["b"] == pytest.approx(1.8)
    assert cell["policies"]["fcfs"]["bound_share"] == pytest.approx(0.5)
    assert cell["policies"]["cost_aligned"]["bound_share"] == pytest.approx(0.75)
    assert not settled(cell["policies"]["cost_aligned"], "throughput")
    assert settled(cell["policies"]["cost_aligned"], "e2e_mean")


@pytest.mark.parametrize(
    ("cell", "factors", "verdict"),
    [
        (UNSPLIT, [1.5] * 5, MEET),
        (UNSPLIT, [1.3] * 5, MISS),
        (UNSPLIT, [1.4, 1.6, 1.5, 1.5, 1.5], WIDE),
        (UNSPLIT, [1.2, 1.6, 1.5, 1.5, 1.5], UNSETTLED),
        (UNSPLIT, [1.5] * 4, UNSETTLED),
        (attrs.evolve(UNSPLIT, system="70B"), [1.5] * 5, MISS),
    ],
)
def test_a_demand_is_met_only_where_the_cell_is_settled(cell: Cell, factors: list[float], verdict: str) -> None:
    rows = [made_up(cell, "fcfs", seed) for seed in range(SEEDS)]
    rows += [made_up(cell, "cost_aligned", seed, factor) for seed, factor in enumerate(factors)]
    (check,) = (check for check in checks(board_of(rows)) if check.demand.startswith("Wins where sequences"))
    assert check.verdict == verdict


def test_what_is_not_met_says_what_could_be_had() -> None:
    cell = Cell("8B", "lockstep", "pool", "r1", "offline")
    factors = {"fcfs": 1.0, "round_robin": 0.8, "cost_aligned": 0.96, EVEN: 1.04}
    rows = [made_up(cell, name, seed, factor) for name, factor in factors.items() for seed in range(SEEDS)]
    (check,) = (check for check in checks(board_of(rows)) if check.demand.startswith("Lanes of 8 ranks"))
    assert check.verdict == MISS
    assert [value for _, value, _ in check.figures] == pytest.approx([0.96 / 0.8, 1.04 / 0.8, 2.0 / 0.8])


def test_what_no_ratio_says_is_checked_too() -> None:
    cell = Cell("8B", "balanced", "pool", "azure", "1.3")
    rows = [made_up(cell, "fcfs", seed, schedule="same") for seed in range(SEEDS)]
    rows += [made_up(cell, "cost_aligned", seed, schedule="same" if seed else "other") for seed in range(SEEDS)]
    rows += [made_up(cell, "density_first", seed, 1.1) for seed in range(SEEDS)]
    verdicts = {check.demand: check.verdict for check in checks(board_of(rows))}
    assert verdicts["Where the surface is balanced, the very schedule of `fcfs`"] == MISS
    assert verdicts["Nowhere dominated by `density_first`"] == MISS
    rows = [row for row in rows if row["policy"] != "density_first"]
    rows += [made_up(cell, "density_first", seed, 1.1, e2e={"mean": 9, "p50": 9, "p99": 9}) for seed in range(SEEDS)]
    assert {c.demand: c.verdict for c in checks(board_of(rows))}["Nowhere dominated by `density_first`"] == MEET


def test_the_page_shows_losses_and_draws_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rng = random.Random(1)
    rows = [
        made_up(cell, name, seed, 1.0 if name == "fcfs" else rng.uniform(0.7, 1.6))
        for cell, names in list(design().items())[:64]
        for name in names
        for seed in range(2)
    ]
    board = board_of(rows)
    page = tmp_path / "scoreboard.md"
    write_page(board, page)
    text = page.read_text(encoding="utf-8")
    for line in ("## What must hold, and what does not", "where it does worst", "## Offline: what could be had"):
        assert line in text
    every = (tmp_path / "scoreboard-cells.md").read_text(encoding="utf-8")
    assert every.count("| `fcfs` |") == len(board["cells"])
    for picture in (tmp_path / "img").iterdir():
        assert f"img/{picture.name}" in text
    assert len(list(listed_checks(board))) > 40
    assert "No cell has been run yet" in text_of(board_of([]), {})

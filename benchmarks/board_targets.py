"""What must hold on the scoreboard, cell by cell: the demand, the figures, met or not.

A demand on a ratio is met only where the cell is settled (enough seeds, half-widths within their limits). Where it is
not, "clear but wide" says that the whole interval lies on the right side of the limit, "not settled" that it does not.
Figures are ratios to `fcfs` on the same requests unless a demand says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import field, frozen

from benchmarks.board_merge import settled

OURS = "cost_aligned"
MEET, WIDE, UNSETTLED, MISS = "met", "clear but wide", "not settled", "NOT MET"
VERDICTS = (MEET, WIDE, UNSETTLED, MISS)  # the worst last
HEAVY = ("mooncake", "r1")
PADDED_WIN = {"mooncake": 3.0, "r1": 2.5, "azure": 1.4, "m-large": 1.1}
CellData = Mapping[str, Any]


@frozen
class Check:
    """One demand on one cell: ``figures`` are (name, value, limit as text)."""

    demand: str
    cell: str
    verdict: str
    figures: tuple[tuple[str, float, str], ...]

    @property
    def text(self) -> str:
        return ", ".join(f"{name} {value:.2f} ({limit})" for name, value, limit in self.figures)


@frozen
class Limit:
    """A ratio and what it must be: at least, or at most."""

    name: str
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def text(self) -> str:
        return f"≥ {self.least:.3g}" if self.least is not None else f"≤ {self.most:.3g}"


@frozen
class Demand:
    """Something that must hold: on which cells, and which limits a cell has. ``over``: the policy compared with."""

    title: str
    limits: Callable[[CellData], tuple[Limit, ...]]  # none: the demand does not concern the cell
    policy: str = OURS
    over: str = field(default="fcfs")


def name_of(cell: CellData) -> str:
    return "/".join(str(cell[part]) for part in ("system", "surface", "topology", "trace", "load"))


def _never_worse(cell: CellData) -> tuple[Limit, ...]:
    limits = (Limit("throughput", least=0.99), Limit("e2e_mean", most=1.05))
    return limits if cell["load"] == "offline" else (*limits, Limit("e2e_p99", most=1.05))


def _unsplit(cell: CellData) -> tuple[Limit, ...]:
    latencies = (Limit("e2e_mean", most=0.7), Limit("e2e_p99", most=0.9))
    if cell["surface"] != "unsplit" or cell["topology"] != "pool" or cell["system"] == "13B":
        return ()
    if cell["load"] == "offline" and cell["trace"] in ("mooncake", "mix"):
        return (Limit("throughput", least=1.35 if cell["system"] == "8B" else 1.9), *latencies)
    if cell["load"] == "1.3 even" and cell["trace"] == "mooncake":
        return (Limit("throughput", least=1.4), *latencies)
    return ()


def _padded(cell: CellData) -> tuple[Limit, ...]:
    least = PADDED_WIN.get(cell["trace"])
    if cell["surface"] != "padded" or cell["topology"] != "pool" or least is None or cell["system"] == "13B":
        return ()
    if cell["load"] not in ("1.3 even", "offline"):
        return ()
    return Limit("throughput", least=least), Limit("e2e_mean", most=0.65)


def _gated(cell: CellData) -> tuple[Limit, ...]:
    b = cell.get("b")
    if cell["surface"] != "gated" or cell["load"] != "offline" or b is None or b <= 1.1:
        return ()
    return (Limit("throughput", least=1 + 0.6 * (b - 1)),)


def _lockstep(cell: CellData) -> tuple[Limit, ...]:
    wanted = cell["surface"] == "lockstep" and cell["trace"] in HEAVY and cell["load"] in ("1.3", "offline")
    return (Limit("throughput", least=1.25),) if wanted else ()


def _remaining(cell: CellData) -> tuple[Limit, ...]:
    where = (cell["surface"], cell["topology"], cell["trace"], cell["load"])
    wanted = where == ("balanced", "pool", "azure", "1.3")
    return (Limit("e2e_mean", most=1 / 1.5), Limit("e2e_p99", most=1.1)) if wanted else ()


def _tpot(cell: CellData) -> tuple[Limit, ...]:
    return (Limit("tpot_p99", most=1.05),)


DEMANDS = (
    Demand("Never worse than `fcfs`: throughput, mean E2E, and online p99 E2E", _never_worse),
    Demand("Wins where sequences are not split (`unsplit`)", _unsplit),
    Demand("Wins where shapes are padded (`padded`)", _padded),
    Demand("At least 0.6 of what imbalance costs `fcfs` (`gated`, b > 1.1, offline)", _gated),
    Demand("Time per token no worse where a target for it is given: p99", _tpot, policy="cost_aligned:tpot"),
    Demand("Lanes of 8 ranks: over round-robin placement", _lockstep, over="round_robin"),
    Demand("`order=remaining`: mean E2E 1.5 times better on azure under `balanced`", _remaining,
           policy="cost_aligned:remaining"),
)  # fmt: skip


def checks(board: Mapping[str, Any]) -> Iterator[Check]:
    """Every demand on every cell that it concerns and where its policies ran."""
    seeds = board["about"]["seeds"]
    for demand in DEMANDS:
        for cell in board["cells"]:
            limits = demand.limits(cell)
            ran = cell["policies"].get(demand.policy)
            if limits and ran is not None:
                yield _check(demand, cell, ran, limits, seeds)
    for cell in board["cells"]:
        ran = cell["policies"].get(OURS)
        if ran is not None and ran["seeds"]:
            yield from _others(cell, ran, seeds)


def _check(demand: Demand, cell: CellData, ran: CellData, limits: tuple[Limit, ...], seeds: int) -> Check:
    name = name_of(cell)
    if ran.get("errors") or not ran["seeds"] or ran["unserved"]:
        return Check(demand.title, name, MISS, (("failed runs or requests not served", 1.0, "≤ 0"),))
    figures, verdicts = [], [MEET]
    rival = cell["policies"].get(demand.over)
    for limit in limits:
        if rival is None or limit.name not in ran["ratios"] or limit.name not in rival["ratios"]:
            return Check(demand.title, name, UNSETTLED, ())
        value = ran["ratios"][limit.name][0] / rival["ratios"][limit.name][0]
        figures.append((limit.name, value, limit.text))
        verdicts.append(_verdict(limit, value, ran, seeds))
    worst = max(verdicts, key=VERDICTS.index)
    if worst == MISS and rival is not None:
        figures += _possible(cell, rival)
    return Check(demand.title, name, worst, tuple(figures))


def _possible(cell: CellData, rival: CellData) -> list[tuple[str, float, str]]:
    """What throughput could be had, over the same rival: the yardsticks of the cell."""
    plain, over = cell["policies"]["fcfs"]["figures"]["throughput"], rival["ratios"]["throughput"][0]
    found = []
    if "b" in cell:
        found.append(("throughput of fcfs at zero imbalance cost", cell["b"] / over, "for comparison"))
    if "bound_tok_s" in cell:
        found.append(("no schedule beyond", cell["bound_tok_s"] / plain / over, "the bound"))
    return found


def _verdict(limit: Limit, value: float, ran: CellData, seeds: int) -> str:
    if not limit.holds(value):
        return MISS
    if settled(ran, limit.name, seeds):
        return MEET
    half = ran["ratios"][limit.name][1]
    clear = half is not None and ran["seeds"] >= seeds and limit.holds(value - half) and limit.holds(value + half)
    return WIDE if clear else UNSETTLED


def _others(cell: CellData, ran: CellData, seeds: int) -> Iterator[Check]:
    """Demands that are no ratio to `fcfs`: equal schedules, domination, the share of the bound."""
    name = name_of(cell)
    if cell["surface"] == "balanced":
        same = ran["same_schedule"]
        verdict = MEET if same == ran["seeds"] >= seeds else MISS if same < ran["seeds"] else UNSETTLED
        yield Check("Where the surface is balanced, the very schedule of `fcfs`", name, verdict,
                    (("seeds with equal schedules", float(same), f"= {ran['seeds']}"),))  # fmt: skip
    rival = cell["policies"].get("density_first")
    if rival is not None and rival["seeds"] and not rival["unserved"]:
        ours, theirs = ran["ratios"], rival["ratios"]
        signs = (("throughput", 1), ("e2e_mean", -1), ("e2e_p99", -1))
        gaps = [(n, sign * (theirs[n][0] / ours[n][0] - 1)) for n, sign in signs if n in ours and n in theirs]
        # In rounding and noise nobody dominates: better in all by 1 % is meant.
        dominated = len(gaps) == 3 and all(gap >= 0.0 for _, gap in gaps) and max(gap for _, gap in gaps) > 0.01
        figures = tuple((f"density_first better in {n} by", gap, "not in all") for n, gap in gaps)
        yield Check("Nowhere dominated by `density_first`", name, MISS if dominated else MEET, figures)
    if "bound_share" in ran and cell["surface"] in ("padded", "unsplit", "gated"):
        least = (0.5 if cell["trace"] == "r1" else 0.65) if cell["surface"] == "padded" else 0.5
        plain = cell["policies"]["fcfs"]["bound_share"]
        shares = (("share of the bound", ran["bound_share"], f"≥ {least}"), ("that of fcfs", plain, "no more"))
        enough = ran["bound_share"] >= least and ran["bound_share"] >= 0.99 * plain
        verdict = (MEET if ran["seeds"] >= seeds else UNSETTLED) if enough else MISS
        yield Check("Share of the fluid bound, offline", name, verdict, shares)

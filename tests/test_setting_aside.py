"""Who is far too long sits out while a wave of shorter requests goes by: when, who, and for how long."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.costs import AffineCosts, Costs
from alignedsched.load import Load
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.rounds import ANY, RoundSettings, Turn
from alignedsched.policies.setting_aside import FASTER, FEW, without_the_longest
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.workloads import Workload
from benchmarks.sitting import small_cluster, watched

COSTS = AffineCosts(0.005, 1e-5, 1e-7, 4e-6, "unsplit")
lengths_of = st.lists(st.integers(1, 60_000), min_size=1, max_size=40).map(sorted)


def turn_of(costs: Costs, lengths: list[int], room: int, overdue: bool = False) -> Turn | None:
    return without_the_longest(costs, lengths, 7, 1.0, room, overdue, RoundSettings())


def work(costs: Costs, lengths: list[int]) -> float:
    """The share of a step that is not imbalance."""
    load = Load(len(lengths), sum(lengths), lengths[-1])
    return costs.balanced_seconds(load) / costs.step_seconds(load)


@given(lengths=lengths_of, room=st.integers(0, 200_000))
def test_the_cut_is_the_best_of_all_that_are_allowed(lengths: list[int], room: int) -> None:
    allowed = {
        cut: work(COSTS, rest)
        for cut in set(lengths)
        if (rest := [length for length in lengths if length < cut])
        and FEW * (len(lengths) - len(rest)) <= len(lengths)
        and sum(lengths) - sum(rest) <= room
    }
    best = max(allowed.values(), default=0.0)
    turn = turn_of(COSTS, lengths, room)
    if turn is None:
        assert best <= FASTER * work(COSTS, lengths) * (1 + 1e-9)
    else:
        assert allowed[turn.high] == best > FASTER * work(COSTS, lengths)
        assert turn.sets_aside
        assert turn.low == 1


@given(lengths=lengths_of, room=st.integers(0, 200_000))
def test_where_imbalance_costs_nothing_nobody_is_set_aside(lengths: list[int], room: int) -> None:
    assert turn_of(AffineCosts(1e-3, 1e-5, 1e-7), lengths, room) is None


def test_who_has_sat_out_for_long_comes_back_for_a_few_steps() -> None:
    lengths = [100] * 20 + [50_000]
    turn, back = turn_of(COSTS, lengths, 100_000), turn_of(COSTS, lengths, 100_000, overdue=True)
    assert turn is not None
    assert back is not None
    assert turn.high == 50_000
    assert back.high == ANY
    assert back.sets_aside
    assert back.until - back.first == RoundSettings().least


def test_a_wait_too_short_to_come_back_in_sets_nobody_aside() -> None:
    assert without_the_longest(COSTS, [100] * 20 + [50_000], 0, 0.0, 100_000, False, RoundSettings(wait_s=0.5)) is None


def flood() -> Workload:
    """Two very long requests are served already when many more short ones come than there are seats, and ten others
    that are very long.
    """
    prompts = np.array([90_000] * 2 + [500] * 900 + [80_000] * 10)
    outputs = np.array([1500] * 2 + [200] * 900 + [1500] * 10)
    return Workload("flood", np.array([0.0] * 2 + [20.0 + 0.01 * k for k in range(910)]), prompts, outputs)


def test_a_flood_does_not_wait_for_the_few_that_are_far_too_long() -> None:
    built = build("h200:4", "llama-3.1-70b", topology="disaggregated", lanes=1, surface="unsplit", staging=False)
    costs: dict[str, Costs] = {"lane-p0": AffineCosts(1e-3, 0.0, 0.0), "lane-d0": built.costs}
    mine, plain = (
        run(flood(), built.cluster, costs, policy, published=built.costs) for policy in (cost_aligned(), fcfs())
    )
    assert mine.figures["throughput_tok_s"] > 1.1 * plain.figures["throughput_tok_s"]
    assert mine.figures["latency_s"]["e2e"]["mean"] < 0.6 * plain.figures["latency_s"]["e2e"]["mean"]
    assert mine.figures["preemptions"] == plain.figures["preemptions"] == 0


def test_nobody_set_aside_waits_for_longer_than_allowed() -> None:
    cluster = small_cluster(4000, seats=16, tokens=100_000)
    prompts = np.array([9000] * 2 + [50] * 190 + [8000] * 10)
    load = Workload("flood", np.array([0.0] * 2 + [0.5] * 200), prompts, np.array([900] * 2 + [120] * 200))
    assert 0.5 < watched(load, cluster, COSTS, cost_aligned(wait_s=2.0)).longest <= 2.0

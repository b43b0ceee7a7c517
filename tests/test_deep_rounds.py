"""Deep rounds: a lane that only decodes holds more requests than it has seats for, each group with all the seats."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import Role
from alignedsched.costs import AffineCosts, Costs
from alignedsched.policies.aligned_batching import CostAligned
from alignedsched.policies.aligned_memory import LaneMemory, Memory
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.rounds import ANY, RoundSettings, Turn, next_turn, partition
from alignedsched.sim.build import build
from alignedsched.sim.run import RunResult, run
from alignedsched.views import from_columns
from alignedsched.views.columns import ColumnView
from alignedsched.workloads import workload
from benchmarks.sitting import WAIT_S, crowded

PADDED = AffineCosts(5e-3, 1e-5, 1e-7, 1e-6, "padded")
lengths_of = st.lists(st.integers(1, 9000), min_size=2, max_size=60).map(sorted)
TURN = Turn(1, 500, 10, 20, 10, 0.0, 0.01, 2, 1000, 30.0, deep=True)


def groups_of(edges: tuple[int, ...], lengths: list[int]) -> list[list[int]]:
    """The lengths between the edges."""
    bounds = (1, *edges, ANY)
    return [[n for n in lengths if low <= n < high] for low, high in pairwise(bounds)]


@given(lengths=lengths_of, seats=st.integers(1, 70), must=st.booleans())
def test_no_group_has_more_than_the_seats_but_of_one_length(lengths: list[int], seats: int, must: bool) -> None:
    found = partition(PADDED, lengths, RoundSettings(bubble=0.0, saving=0.0), seats, must)
    if found is None:
        assert not must
        return
    most = max(seats, max(Counter(lengths).values())) + seats // 4
    for group in groups_of(found.edges, lengths):
        assert group
        assert len(group) <= most or len(set(group)) == 1


@given(lengths=lengths_of, seats=st.integers(1, 70))
def test_who_cannot_all_run_together_takes_turns_whatever_that_costs(lengths: list[int], seats: int) -> None:
    balanced, must = AffineCosts(5e-3, 1e-5, 1e-7), len(lengths) > seats
    turn = next_turn(balanced, lengths, None, 5, 1.0, RoundSettings(wait_s=0.01), seats=seats, must=must)
    assert (turn is not None) == must
    assert turn is None or (not turn.deep and turn.until > turn.first), "it does not pay: nobody more comes"


def test_more_than_the_seats_are_held_only_where_it_pays_and_nobody_waits_for_long() -> None:
    settings = RoundSettings(deep=4.0)
    assert settings.residents(64, TURN) == 256
    assert settings.residents(64, None) == settings.residents(64, evolve(TURN, deep=False)) == 64
    assert RoundSettings(tpot_target_s=0.05).residents(64, TURN) == 64
    assert RoundSettings(deep=1.0).residents(64, TURN) == 64


def test_a_round_that_comes_near_the_longest_wait_is_not_deep() -> None:
    lengths = [400] * 8 + [6000] * 8
    turns = [next_turn(PADDED, lengths, None, 5, 1.0, RoundSettings(wait_s=wait), seats=8) for wait in (30.0, 0.5)]
    assert [turn is not None and turn.deep for turn in turns] == [True, False]


def test_as_many_lengths_as_seats_are_compared_with_a_step_of_that_many() -> None:
    """One more than the seats is not two half-empty steps: a round would look as if it paid."""
    lengths = sorted([1000 + at for at in range(256)] + [1500])
    assert partition(PADDED, lengths, RoundSettings(), 256) is None
    assert partition(PADDED, [400] * 128 + [6000] * 129, RoundSettings(), 256) is not None


@pytest.mark.parametrize("fresh", [True, False])
def test_who_ran_before_makes_room_at_the_beginning_of_a_turn_that_has_more_than_the_seats(fresh: bool) -> None:
    view = from_columns(
        running=["a", "b", "c", "long"], running_lengths=[100, 110, 120, 800], pooled=["d", "e"],
        pooled_lengths=[105, 115], free_blocks=500, capacity_blocks=1000, role=Role.DECODE, max_members=4, step=10,
    )  # fmt: skip
    parks = CostAligned._parks(view, TURN, fresh)
    assert parks == (["long", "a"] if fresh else ["long"])


@pytest.mark.parametrize("seed", [1318])
def test_nobody_sits_out_for_too_long_where_more_sit_out_than_run(seed: int) -> None:
    """Each of these once did: groups were made without those who were about to leave, or a round outlasted the wait."""
    sitting, n = crowded(seed, ("gated", "padded")[seed % 2], WAIT_S)
    assert sitting.ends["finished"] == n
    assert sitting.longest <= WAIT_S


@pytest.mark.parametrize("leaving", [0, 3])
def test_groups_are_not_made_without_those_who_are_about_to_leave(leaving: int) -> None:
    """Their lengths are not told until they have left: the next turn's group had them, and no seats for them."""
    policy = cost_aligned(costs=PADDED, refit=False)
    lane = LaneMemory(evolve(TURN, until=11), 0.0)
    policy.batching.load(Memory(lanes={"lane": lane}).plain())
    view = from_columns(
        now=5.0, running=["a", "b", "c"], running_lengths=[100, 110, 4000], pooled=["d", "e"],
        pooled_lengths=[105, 5000], free_blocks=5000, capacity_blocks=9000, role=Role.DECODE, max_members=4, step=30,
    )  # fmt: skip
    assert isinstance(view, ColumnView)
    composition = policy.batching.compose(evolve(view, leaving=leaving))
    after = lane if composition.memory is None else Memory.from_plain(composition.memory).lane("lane")
    assert (after == lane) == (leaving > 0)


def served(policy_deep: float, surface: str, kind: str = "azure-conv") -> RunResult:
    """A flood over four GPUs whose seats are fewer than their room would hold."""
    built = build("h200:4", "llama-3.1-70b", topology="disaggregated", lanes=1, surface=surface, staging=False)
    costs: dict[str, Costs] = {"lane-p0": AffineCosts(1e-3, 0.0, 0.0), "lane-d0": built.costs}
    load = workload(kind, seed=3, n=1500).offline()
    policy = cost_aligned(rounds=RoundSettings(deep=policy_deep)) if policy_deep else fcfs()
    return run(load, built.cluster, costs, policy, published=built.costs)


def test_where_seats_are_short_deep_rounds_are_faster() -> None:
    deep, flat = (served(times, "padded").figures for times in (4.0, 1.0))
    assert deep["throughput_tok_s"] > 1.05 * flat["throughput_tok_s"]
    assert deep["latency_s"]["e2e"]["mean"] < flat["latency_s"]["e2e"]["mean"]
    assert deep["preemptions"] <= flat["preemptions"]


def test_where_imbalance_costs_nothing_there_are_none() -> None:
    deep, plain = (served(times, "balanced").latency.finished_columns() for times in (4.0, 0.0))
    assert all((deep[name] == plain[name]).all() for name in ("first", "last"))

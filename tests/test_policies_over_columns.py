"""The same tests for every shipped policy, over views made from arrays: legal, deterministic, free of side effects."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignedsched.cluster import Role
from alignedsched.policies.buckets import buckets
from alignedsched.policies.density_first import density_first
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.protocols import Composition, Evict, Policy, Sacrifice, Take, Transfer
from alignedsched.policies.sjf import sjf
from alignedsched.policies.waves import waves
from alignedsched.views import LaneView, from_columns

Make = Callable[[], Policy]
POLICIES: dict[str, Make] = {
    "fcfs": fcfs,
    "fcfs swap by priority": lambda: fcfs(swap=True, by_priority=True, token_budget=512),
    "sjf": sjf,
    "waves": waves,
    "buckets": lambda: buckets(bounds=(50, 300)),
    "density_first": density_first,
    "density_first never mixed": lambda: density_first(
        mix_share=0.0, k_min=3, guard_s=1.0, patience_s=1.0, dwell_s=0.0
    ),
    "density_first direct": lambda: density_first(staging=False, to_host="short", pool_batches=None, guard_s=None),
}
LENGTHS = st.one_of(st.integers(1, 200), st.integers(1, 9000))


@st.composite
def columns(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of ``from_columns``: any mixture of members, pooled, claimed and queued requests."""
    room = {"host": draw(st.sampled_from([0, 50, 10_000])), "helper+staging": draw(st.sampled_from([0, 300, 5000]))}
    places = ["gpu", *(tier for tier, blocks in room.items() if blocks)]
    running = draw(st.lists(LENGTHS, max_size=12))
    pooled = draw(st.lists(st.tuples(LENGTHS, st.sampled_from(places)), max_size=30))
    queued = draw(st.lists(LENGTHS, max_size=6))
    names = [f"p{i}" for i in range(len(pooled))]
    claimed = draw(st.lists(st.sampled_from(names), unique=True, max_size=8)) if names else []
    cut = draw(st.integers(0, len(claimed)))
    joining = [p for p in claimed[:cut] if pooled[int(p[1:])][1] != "gpu"]  # there they would have joined
    return {
        "running": [f"r{i}" for i in range(len(running))],
        "running_lengths": running,
        "pooled": names,
        "pooled_lengths": [length for length, _ in pooled],
        "pooled_on": [where for _, where in pooled],
        "queued": [f"q{i}" for i in range(len(queued))],
        "queued_prompts": queued,
        "joining": joining,
        "candidates": claimed[cut:],
        "free_blocks": draw(st.integers(0, 3000)),
        "capacity_blocks": draw(st.integers(3000, 8000)),
        "host_free_blocks": room["host"],
        "staging_free_blocks": room["helper+staging"],
        "block_size": draw(st.sampled_from([1, 16, 128])),
        "max_members": draw(st.integers(1, 64)),
        "max_tokens": draw(st.integers(1, 4096)),
        "role": draw(st.sampled_from([Role.BOTH, Role.BOTH, Role.DECODE, Role.PREFILL])),
        "now": float(draw(st.integers(0, 40))),
    }


def everything(policy: Policy, view: LaneView) -> tuple[Composition, list[Any], list[Transfer | Evict], list[Take]]:
    """All a policy proposes for a view. Nothing is taken."""
    composition = policy.batching.compose(view)
    victims = (
        [v for rank in view.ranks for v in policy.batching.victims(view, rank.rank, 4)] if view.role.decodes else []
    )
    return composition, victims, list(policy.residency.place(view)), list(policy.admission.admit(view))


def plainly(composition: Composition) -> dict[str, Any]:
    return {
        "joins": list(composition.joins),
        "candidates": list(composition.candidates),
        "parks": list(composition.parks),
        "unclaims": list(composition.unclaims),
        "wake_at": composition.wake_at,
        "memory": composition.memory,
    }


PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
each = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())


@each
@PROPERTY
@given(arguments=columns())
def test_proposals_name_known_requests_once_and_in_the_right_state(make: Make, arguments: dict[str, Any]) -> None:
    view = from_columns(**arguments)
    composition, victims, placed, takes = everything(make(), view)
    members, claimed = set(arguments["running"]), {*arguments["candidates"], *arguments["joining"]}
    pooled = set(arguments["pooled"]) - claimed
    for ids in (composition.joins, composition.candidates, composition.parks, composition.unclaims):
        assert len(set(ids)) == len(ids)
    assert not {*composition.joins} & {*composition.candidates}
    assert {*composition.joins} <= pooled | set(arguments["candidates"])
    assert {*composition.candidates} <= pooled
    assert {*composition.parks} <= members
    assert {*composition.unclaims} <= claimed
    assert len({v for v, _ in victims}) == len(victims)
    chosen = {v for v, _ in victims}
    if view.role.decodes:
        assert members <= chosen <= members | set(view.resident)
    else:
        assert chosen <= set(view.resident)
    assert all(isinstance(how, Sacrifice) for _, how in victims)
    assert {p.request for p in placed} <= set(arguments["pooled"])
    transfers = [p for p in placed if isinstance(p, Transfer)]
    assert len({p.request for p in transfers}) == len(transfers)
    assert {t.target for t in transfers} <= set(view.cluster.tiers)
    assert len({t.request for t in takes}) == len(takes)
    assert {t.request for t in takes} <= set(arguments["queued"])
    assert composition.wake_at is None or composition.wake_at > view.now


@each
@PROPERTY
@given(arguments=columns())
def test_proposals_keep_seats_blocks_and_tokens(make: Make, arguments: dict[str, Any]) -> None:
    view = from_columns(**arguments)
    composition, _, placed, takes = everything(make(), view)
    rank, blocks = view.ranks[0], view.layout.blocks
    if composition.joins:
        seats = len(rank.batch) + len(composition.joins) + len(view.joining) - len(composition.parks)
        assert seats <= view.lane.max_members
    need = 0
    for request in composition.joins:
        entry = view.entry(request)
        need += blocks(entry.context_length) - blocks(entry.tiers.get(rank.tier, 0))
    assert need <= rank.free
    assert sum(take.tokens for take in takes) + len(rank.batch) <= max(view.lane.max_tokens, len(rank.batch))
    prompts = dict(zip(arguments["queued"], arguments["queued_prompts"], strict=True))
    assert all(0 < take.tokens <= prompts[take.request] for take in takes)
    assert sum(blocks(prompts[take.request] + 1) for take in takes) <= rank.free
    room: dict[str, int] = {}
    for proposal in placed:
        if isinstance(proposal, Transfer) and proposal.target != rank.tier:
            room[proposal.target] = room.get(proposal.target, 0) + blocks(view.entry(proposal.request).stored)
    assert all(total <= view.free(tier) for tier, total in room.items())


@each
@PROPERTY
@given(arguments=columns())
def test_proposals_are_deterministic_and_change_nothing_until_taken(make: Make, arguments: dict[str, Any]) -> None:
    first, second, before = make(), make(), copy.deepcopy(arguments)
    state = json.dumps(first.batching.state(), sort_keys=True)
    once, twice = everything(first, from_columns(**arguments)), everything(first, from_columns(**arguments))
    other = everything(second, from_columns(**arguments))
    assert plainly(once[0]) == plainly(twice[0]) == plainly(other[0])
    assert once[1:] == twice[1:] == other[1:]
    assert json.dumps(first.batching.state(), sort_keys=True) == state
    assert arguments == before


@each
@PROPERTY
@given(history=st.lists(columns(), min_size=1, max_size=4), last=columns())
def test_a_restored_policy_goes_on_as_the_first_would(
    make: Make, history: list[dict[str, Any]], last: dict[str, Any]
) -> None:
    first, second = make(), make()
    for arguments in sorted(history, key=lambda a: float(a["now"])):
        view = from_columns(**arguments)
        first.batching.taken(view, first.batching.compose(view))
    second.batching.load(json.loads(json.dumps(first.batching.state(), allow_nan=False)))
    assert second.batching.state() == first.batching.state()
    view = from_columns(**{**last, "now": 50.0})
    assert plainly(second.batching.compose(view)) == plainly(first.batching.compose(view))


@each
@PROPERTY
@given(arguments=columns())
def test_an_idle_lane_runs_something_if_anything_fits(make: Make, arguments: dict[str, Any]) -> None:
    """Nothing runs and nothing is on its way: if one pooled request the lane can get fits, something joins."""
    arguments |= {"running": [], "running_lengths": [], "joining": [], "candidates": []}
    view = from_columns(**arguments)
    blocks = view.layout.blocks

    def fits(request: str) -> bool:
        entry = view.entry(request)
        (tier,) = entry.tiers
        if tier != "gpu" and (tier not in view.cluster.tiers or view.route(tier, "gpu") is None):
            return False
        need = blocks(entry.context_length)
        return need <= view.ranks[0].capacity and need - blocks(entry.tiers.get("gpu", 0)) <= view.ranks[0].free

    possible = [request for request in arguments["pooled"] if fits(request)]
    if not POLICIES_BY_MAKE[make].startswith("density_first"):
        possible = possible if possible == arguments["pooled"] else []  # the first that does not fit holds the others
    composition = make().batching.compose(view)
    assert bool(composition.joins) or not (possible and view.role.decodes)


@each
def test_thousands_wait_for_their_turn_without_harm(make: Make) -> None:
    """A deep pool: joins and candidates stay within seats and blocks, and nobody is proposed twice."""
    count = 3000
    view = from_columns(
        running=["r"], running_lengths=[300], pooled=[f"p{i}" for i in range(count)],
        pooled_lengths=[1 + (i * 7919) % 30_000 for i in range(count)], pooled_on=["host"] * count,
        free_blocks=4000, capacity_blocks=5000, host_free_blocks=10**6, max_members=128,
    )  # fmt: skip
    composition = make().batching.compose(view)
    assert composition.joins or composition.candidates
    assert len(composition.joins) <= 127
    assert len(composition.candidates) <= 128
    assert sum(map(view.pool.blocks, composition.joins)) <= 4000


POLICIES_BY_MAKE = {make: name for name, make in POLICIES.items()}

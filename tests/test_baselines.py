"""The baselines ``waves`` and ``buckets``: who is admitted when, and who is never overtaken."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Role
from alignedsched.errors import CallerError, ConfigError
from alignedsched.events import Arrived
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.buckets import BOUNDS, BucketOrder, buckets
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.protocols import Policy
from alignedsched.policies.waves import WaveMemory, WaveOrder, waves
from alignedsched.registry import policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.views import from_columns
from alignedsched.workloads import workload

PROMPTS = st.lists(st.integers(1, 20_000), min_size=1, max_size=30)
ROUNDS = st.lists(PROMPTS, min_size=1, max_size=4)


def begun(order: ArrivalOrder, queue: list[tuple[str, int]], seats: int) -> list[str]:
    """Who begins, of those that queue, while so many seats are free."""
    view = from_columns(
        queued=[name for name, _ in queue],
        queued_prompts=[prompt for _, prompt in queue],
        free_blocks=1_000_000,
        capacity_blocks=1_000_000,
        max_members=seats,
        max_tokens=1_000_000,
    )
    return [take.request for take in order.admit(view)]


def serve(order: ArrivalOrder, rounds: list[list[int]], seats: int) -> tuple[list[str], dict[str, int], dict[str, int]]:
    """New ones come every round, and so many begin; then the queue empties. (order, prompts, round of coming)."""
    queue: list[tuple[str, int]] = []
    prompts: dict[str, int] = {}
    came: dict[str, int] = {}
    turns: list[str] = []
    number = 0
    while queue or number < len(rounds):
        for prompt in rounds[number] if number < len(rounds) else ():
            name = f"r{len(prompts):03d}"
            prompts[name], came[name] = prompt, number
            queue.append((name, prompt))
        taken = begun(order, queue, seats)
        turns += taken
        queue = [row for row in queue if row[0] not in taken]
        number += 1
    assert sorted(turns) == sorted(prompts)
    return turns, prompts, came


@given(ROUNDS, st.integers(1, 12))
def test_a_wave_rises_and_nobody_is_overtaken_by_a_later_wave(rounds: list[list[int]], seats: int) -> None:
    turns, prompts, came = serve(WaveOrder(), rounds, seats)
    if len(rounds) == 1:
        assert [prompts[name] for name in turns] == sorted(prompts.values())
    wave: list[str] = []  # what queued when it began, as a model that knows only the order of beginning
    left = dict.fromkeys(sorted(prompts))
    number = begin = 0
    while begin < len(turns):
        if not wave:
            wave = sorted((n for n in left if came[n] <= number), key=lambda n: (prompts[n], n))
        taken, room = [], seats
        while room and wave:
            taken.append(wave.pop(0))
            room -= 1
        assert turns[begin : begin + len(taken)] == taken
        for name in taken:
            del left[name]
        begin += len(taken)
        number += 1


@given(ROUNDS, st.integers(1, 12))
def test_a_turn_is_one_bucket_in_order_of_arrival(rounds: list[list[int]], seats: int) -> None:
    turns, prompts, _ = serve(BucketOrder(), rounds, seats)
    bucket = {name: bisect_left(BOUNDS, prompt) for name, prompt in prompts.items()}
    for b in set(bucket.values()):
        mine = [name for name in turns if bucket[name] == b]
        assert mine == sorted(mine), "inside a bucket nobody is overtaken"
    if len(rounds) == 1:
        changes = sum(bucket[a] != bucket[b] for a, b in pairwise(turns))
        assert changes == len(set(bucket.values())) - 1
        assert turns[0] == "r000", "the turn is the longest-waiting one's"


def test_a_snapshot_goes_on_with_the_turn() -> None:
    memory, other = WaveMemory(), WaveMemory()
    queue = [("a", 900), ("b", 10), ("c", 500)]
    assert begun(WaveOrder(memory=memory), queue, 1) == ["b"]
    other.load(json.loads(json.dumps(memory.state())))
    queue = [("a", 900), ("c", 500), ("d", 1)]
    assert begun(WaveOrder(memory=other), queue, 2) == begun(WaveOrder(memory=memory), queue, 2) == ["c", "a"]
    with pytest.raises(CallerError):
        other.load({"a": 1})


@pytest.mark.parametrize("bounds", [(1, 1), (5, 2), (0,), ("x",)])
def test_bounds_must_rise(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="bounds must be rising"):
        buckets(bounds=bounds)


def test_baselines_are_known_by_name() -> None:
    for name in ("waves", "buckets", "sjf", "sjf_oracle"):
        assert isinstance(policy(name), Policy)


@pytest.mark.parametrize("make", [waves, buckets])
def test_when_nothing_queues_for_long_it_is_plain_continuous_batching(make: object) -> None:
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=False)
    traffic = workload("azure-conv", seed=5, n=200).scaled(0.3)

    def figures(made: Policy) -> dict[str, object]:
        return {**run(traffic, built.cluster, built.costs, made).figures, "wall_s": 0, "policy": ""}

    assert figures(make()) == figures(fcfs())  # type: ignore[operator]


@pytest.mark.parametrize("made", [waves, buckets, cost_aligned])
def test_who_is_held_back_by_the_caller_holds_up_nobody_who_comes_later(made: Callable[[], Policy]) -> None:
    cluster = Cluster((Device("g", Role.BOTH, 40),), (Lane("l", ("g",)),), layout=KVLayout(4, 10))
    scheduler = Scheduler(cluster, made(), eligible=lambda request: request.id != "held")
    scheduler.handle(1.0, Arrived(Request("held", 8, 9)))
    plan = scheduler.handle(2.0, Arrived(Request("later", 8, 9)))
    assert [chunk.request for step in plan.steps for chunk in step.chunks] == ["later"]
    assert scheduler.counts["overruled"] == 0

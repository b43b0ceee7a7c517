"""Anything legal may happen to a scheduler at any moment, and every invariant holds, and everything ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.batch import RunningBatch
from alignedsched.testing.machine import SchedulerMachine
from alignedsched.testing.world import walk

TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_lives_end_well(first: int) -> None:
    for seed in range(first, first + 20):
        walk(seed, 80)


@pytest.mark.parametrize("seed", range(900, 906))
def test_long_random_lives_end_well(seed: int) -> None:
    walk(seed, 500)


@pytest.mark.parametrize("seed", range(700, 710))
def test_without_trouble_nobody_fails(seed: int) -> None:
    world = walk(seed, 120, trouble=False)
    for name, outcome in world.adversary.released.items():
        if world.adversary.requests[name].output_limit is not None and outcome.value == "failed":
            assert world.cluster.devices[0].role.decodes is False, "only a smaller prefill device can be outgrown"


@given(
    block=st.integers(1, 8),
    members=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(1, 12)), min_size=1, max_size=8),
    horizon=st.integers(1, 30),
)
def test_the_running_batch_equals_a_count_token_by_token(
    block: int, members: list[tuple[int, int, int]], horizon: int
) -> None:
    """Members (context length, step of joining, steps of staying) against lists of tokens grown one by one."""
    batch = RunningBatch(block)
    naive: dict[str, int] = {}
    for step in range(25):
        for index, (length, joins, stays) in enumerate(members):
            name = f"m{index}"
            if step == joins:
                batch.add(name, length - step, step + stays - 1)
                naive[name] = length
            if step == joins + stays:
                assert batch.base(name) + step == naive.pop(name)
                batch.remove(name)
        lengths = list(naive.values())
        assert batch.total(step) == sum(lengths)
        assert batch.longest(step) == max(lengths, default=0)
        assert batch.shortest(step) == min(lengths, default=0)
        assert batch.blocks(step) == sum(-(-length // block) for length in lengths)
        assert set(batch) == set(naive)
        room = batch.blocks(step) + len(naive)
        fits = [s for s in range(horizon) if sum(-(-(length + s) // block) for length in lengths) <= room]
        assert batch.last_step_within(room, step, horizon) == step + max(fits, default=-1)
        limit = batch.next_limit()
        ends = [joins + stays - 1 for n, (_, joins, stays) in enumerate(members) if f"m{n}" in naive]
        assert (limit[0] if limit is not None else None) == min(ends, default=None)
        for name in naive:
            naive[name] += 1


@pytest.mark.parametrize(
    ("seed", "events"),
    [
        (90222, 200),  # a member taken out by the second order of a plan still makes the first order's step
        (2000200, 250),  # a stop the lane holds bounds what it may still launch
        (3000058, 400),  # two stops in one plan: both let their members go at once
        (910098, 300),  # KV that blocks an idle lane starts over, also when another lane is planned after it
        (900033, 250),  # a lone member waits for copies of its own device only
        (5000933, 300),  # a policy names a victim that holds nothing on this device
        (5003539, 300),  # a stop behind a chunk order bounds what may still be launched
        (5003615, 300),  # KV of pooled requests alone can block a device that only decodes
        (5003899, 300),  # a fence beyond the last step that can come has fallen when that step is done
    ],
)
def test_lives_that_once_failed_end_well(seed: int, events: int) -> None:
    walk(seed, events, trouble=True)

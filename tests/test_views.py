"""Views show what the structures behind them hold, hide their mutators, and can be built from plain columns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched import HOST, Request, Role, Scheduler, policy
from alignedsched.batch import RunningBatch
from alignedsched.errors import CallerError
from alignedsched.events import Arrived
from alignedsched.pool import Pool
from alignedsched.queue import Queue, Waiting
from alignedsched.views import BatchReader, PoolReader, QueueReader, from_columns
from benchmarks.step_by_step import StepByStep, decoding, one_lane

MUTATORS = ("add", "remove", "pop")
lengths = st.lists(st.integers(1, 5000), max_size=12)


def columns(prefix: str, values: list[int]) -> list[str]:
    return [f"{prefix}{i}" for i in range(len(values))]


@given(lengths, lengths, lengths, st.integers(1, 32))
def test_from_columns_shows_the_columns(running: list[int], pooled: list[int], queued: list[int], size: int) -> None:
    names = columns("r", running), columns("p", pooled), columns("q", queued)
    view = from_columns(
        running=names[0], running_lengths=running, pooled=names[1], pooled_lengths=pooled, queued=names[2],
        queued_prompts=queued, free_blocks=70, capacity_blocks=100, block_size=size, now=3.0,
    )  # fmt: skip
    (rank,) = view.ranks
    assert (len(rank.batch), rank.batch.total) == (len(running), sum(running))
    assert rank.batch.longest == max(running, default=0)
    assert rank.batch.shortest == min(running, default=0)
    assert rank.batch.blocks == sum(math.ceil(length / size) for length in running)
    for name, length in zip(names[0], running, strict=True):
        assert name in rank.batch
        assert rank.batch.context_length(name) == view.entry(name).context_length == length
    assert list(view.pool.by_order()) == names[1]
    for name, length in zip(names[1], pooled, strict=True):
        entry = view.entry(name)
        assert view.pool.length(name) == entry.context_length == length
        assert view.pool.blocks(name) == math.ceil(length / size)
        assert (dict(entry.tiers), entry.stored) == ({"gpu": length - 1}, length - 1)
    assert [(w.request.id, w.prefill_tokens) for w in view.queue] == list(zip(names[2], queued, strict=True))
    assert (rank.free, rank.capacity, view.free("gpu"), view.now) == (70, 100, 70, 3.0)
    orders = [view.entry(name).order for name in (*names[0], *names[1])]
    assert orders == sorted(set(orders)), "what is named first came first"


def test_candidates_and_joining_are_out_of_the_pool_but_have_entries() -> None:
    view = from_columns(
        pooled=["a", "b", "c"], pooled_lengths=[5, 6, 7], pooled_on=["gpu", HOST, "helper+staging"],
        candidates=["b"], joining=["c"], free_blocks=9, capacity_blocks=9, host_free_blocks=4, staging_free_blocks=2,
    )  # fmt: skip
    assert list(view.pool.by_order()) == ["a"]
    assert (list(view.candidates), list(view.joining), list(view.resident)) == (["b"], ["c"], ["a"])
    assert [dict(view.entry(name).tiers) for name in "abc"] == [{"gpu": 4}, {HOST: 5}, {"helper+staging": 6}]
    assert (view.free(HOST), view.free("helper+staging")) == (4, 2)
    assert view.route("helper+staging", "gpu") is not None
    assert view.route("gpu", "helper+staging") is not None
    assert view.ranks[0].waiting == 1


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE, Role.BOTH])
def test_a_lane_of_any_role_has_a_legal_cluster(role: Role) -> None:
    view = from_columns(free_blocks=1, capacity_blocks=1, role=role, host_free_blocks=1)
    assert view.role is role
    assert view.cluster.role(view.lane) is role


@pytest.mark.parametrize("name", ["running", "pooled", "queued"])
def test_columns_of_different_lengths_are_refused(name: str) -> None:
    values = {"queued": "queued_prompts"}.get(name, f"{name}_lengths")
    with pytest.raises(CallerError, match=rf"the {name} columns have 2 and 1 rows"):
        from_columns(**{name: ["a", "b"], values: [3]}, free_blocks=1, capacity_blocks=1)  # type: ignore[arg-type]


def test_an_id_in_two_columns_is_refused() -> None:
    with pytest.raises(CallerError, match="an id stands twice"):
        from_columns(
            running=["a"], running_lengths=[3], queued=["a"], queued_prompts=[3], free_blocks=1, capacity_blocks=1
        )


def test_readers_hide_the_mutators() -> None:
    batch, pool, queue = RunningBatch(16), Pool(), Queue()
    for reader in (PoolReader(pool), QueueReader(queue), BatchReader(batch, lambda: 0)):
        for mutator in MUTATORS:
            assert not hasattr(reader, mutator)


def test_readers_are_windows_not_copies() -> None:
    batch, pool, queue = RunningBatch(16), Pool(), Queue()
    step = 0
    seen_pool, seen_queue, seen_batch = PoolReader(pool), QueueReader(queue), BatchReader(batch, lambda: step)
    pool.add("p", 40, 0, 3)
    queue.add(Waiting(Request("q", 7), 1))
    batch.add("b", 33)
    assert ("p" in seen_pool, len(seen_pool), seen_pool.class_blocks(0, 0)) == (True, 1, 3)
    assert [waiting.request.id for waiting in seen_queue] == ["q"]
    assert (seen_batch.longest, seen_batch.blocks) == (33, 3)
    step = 16
    assert (seen_batch.longest, seen_batch.blocks, seen_batch.context_length("b")) == (49, 4, 49)
    assert list(seen_batch.longest_first()) == list(seen_batch) == ["b"]


def test_the_scheduler_s_own_view_follows_its_members() -> None:
    rig = decoding(5, policy("fcfs"), [10, 20, 30, 40, 50])
    view = rig.scheduler.view("gpu-lane")
    (rank,) = view.ranks
    before = {member: rank.batch.context_length(member) for member in rank.batch}
    assert list(rank.batch) == [f"r{i}" for i in range(5)]
    for _ in range(7):
        rig.round()
    for member in rank.batch:
        entry = view.entry(member)
        assert entry.context_length == rank.batch.context_length(member) == before[member] + 7
        assert entry.produced == entry.context_length - rig_prompt(member)
        assert view.loads == {"gpu-lane": 5}


def rig_prompt(member: str) -> int:
    return 10 * (int(member[1:]) + 1)


def test_the_scheduler_s_own_view_shows_what_queues_and_what_is_free() -> None:
    rig = StepByStep(Scheduler(one_lane(2, blocks=100), policy("fcfs")))
    rig.call(*(Arrived(Request(f"r{i}", 16 * 30)) for i in range(5)))
    rig.round()
    rig.round()
    view = rig.scheduler.view("gpu-lane")
    assert [waiting.request.id for waiting in view.queue] == ["r2", "r3", "r4"]
    assert len(view.ranks[0].batch) == 2
    assert 100 - 2 * 31 >= view.free("gpu") == view.ranks[0].free
    assert view.free("nowhere") == 0
    with pytest.raises(KeyError):
        view.entry("r4")

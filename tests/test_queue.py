"""The queue keeps its order, and every field of a request survives being packed away."""

from __future__ import annotations

import gc
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched import Request
from alignedsched.errors import InvariantError
from alignedsched.queue import Queue, Waiting

seconds = st.floats(0, 1e9, allow_nan=False)
names = st.text(min_size=1, max_size=5)
requests = st.builds(
    Request,
    id=names,
    prompt_tokens=st.integers(1, 10**6),
    output_limit=st.none() | st.integers(1, 10**6),
    arrival=seconds,
    priority=st.integers(-3, 3),
    tenant=st.none() | names,
    deadline=st.none() | seconds,
    ttft_target=st.none() | seconds,
    tpot_target=st.none() | seconds,
    block_hashes=st.lists(st.integers(0, 2**63), max_size=3).map(tuple),
    session=st.none() | names,
    kind=st.none() | names,
)
waits = st.builds(
    Waiting,
    request=requests,
    order=st.integers(0, 10**9),
    produced=st.integers(0, 100),
    preemptions=st.integers(0, 5),
    since=seconds,
)


@given(waits)
def test_every_field_comes_back(waiting: Waiting) -> None:
    queue = Queue()
    queue.add(waiting)
    assert queue.get(waiting.request.id) == waiting
    assert list(queue) == [waiting]
    assert queue.get(waiting.request.id) == waiting
    queue.remove(waiting.request.id)
    assert not len(queue)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Request)])
def test_each_single_unusual_field_comes_back(name: str) -> None:
    """One field at a time away from its default: a field that packing forgets shows here by its name."""
    unusual: dict[str, Any] = {
        "id": "other", "prompt_tokens": 7, "output_limit": 9, "arrival": 1.5, "priority": -2, "tenant": "t",
        "deadline": 2.5, "ttft_target": 0.5, "tpot_target": 0.25, "block_hashes": (1, 2), "session": "s", "kind": "k",
    }  # fmt: skip
    request = attrs.evolve(Request("r", 1), **{name: unusual[name]})
    queue = Queue()
    queue.add(Waiting(request, 3, since=4.0))
    assert queue.get(request.id) == Waiting(request, 3, since=4.0)


@given(st.lists(st.tuples(st.sampled_from((-1.0, 0.0, 2.0)), st.integers(0, 1)), max_size=30))
def test_order_is_by_rank_then_by_arrival(moves: list[tuple[float, int]]) -> None:
    queue = Queue()
    kept: dict[str, tuple[float, int]] = {}
    for order, (rank, remove) in enumerate(moves):
        if remove and kept:
            gone = sorted(kept)[order % len(kept)]
            assert queue.get(gone).order == kept.pop(gone)[1]
            queue.remove(gone)
        queue.add(Waiting(Request(f"r{order}", 1), order), rank)
        kept[f"r{order}"] = (rank, order)
        assert [waiting.request.id for waiting in queue] == sorted(kept, key=lambda name: kept[name])
        assert list(queue.rows()) == sorted(((key, name) for name, key in kept.items()))
        assert len(queue) == len(kept)
        assert all(name in queue for name in kept)
    assert "nobody" not in queue


def test_prefill_tokens_count_what_was_produced_before_a_preemption() -> None:
    assert Waiting(Request("r", 10), 0, produced=4).prefill_tokens == 14


def test_a_request_queues_once() -> None:
    queue = Queue()
    queue.add(Waiting(Request("a", 1), 0))
    with pytest.raises(InvariantError, match=r"single_owner.*'a'"):
        queue.add(Waiting(Request("a", 1), 1))
    with pytest.raises(InvariantError, match=r"single_owner.*'b'"):
        queue.add(Waiting(Request("b", 1), 0))
    for lookup in (queue.get, queue.remove):
        with pytest.raises(KeyError):
            lookup("b")
    assert [waiting.request.id for waiting in queue] == ["a"]


def test_what_queues_is_not_walked_by_the_garbage_collector() -> None:
    queue = Queue()
    for i in range(2000):
        queue.add(Waiting(Request(f"r{i}", 1, arrival=float(i)), i, since=float(i)))
    gc.collect()
    tracked = sum(gc.is_tracked(row) for row in queue._rows.values())
    tracked += sum(gc.is_tracked(key) for key in queue._keys.values())
    assert tracked == 0

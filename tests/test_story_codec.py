"""Records to bytes and back: exact, canonical, and strict about what they take."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.cost_model import ModelCosts
from alignedsched.costs import AffineCosts, Curve, Prefill, TableCosts
from alignedsched.events import Arrived, DeviceBack, Event, Paused, StepsDone, StepsFailed
from alignedsched.hardware import gpu_named
from alignedsched.models import model_named
from alignedsched.plan import Abort, Chunk, Copy, Drop, Join, Outcome, Plan, Release, Step
from alignedsched.request import Request
from alignedsched.story import codec
from alignedsched.story.codec import EVENTS, MisfitError, decode, encode, plan_bytes
from alignedsched.story.origin import describe, make_costs

TEXT = st.text(max_size=6)
NUMBERS = st.integers(0, 10**19)
FLOATS = st.floats()
NAMES = st.tuples(TEXT, st.integers(-5, 10**9))


def records(kind: type, **known: Any) -> st.SearchStrategy[Any]:
    """Any record of a type, whatever its fields are: as the fuzz of a caller would make it."""
    by_type = {
        "str": TEXT, "RequestId": TEXT, "TierId": TEXT, "int": st.integers(), "float": FLOATS,
        "int | None": st.none() | NUMBERS, "float | None": st.none() | FLOATS, "bool": st.booleans(),
        "str | None": st.none() | TEXT, "tuple[RequestId, ...]": st.lists(TEXT, max_size=3).map(tuple),
        "tuple[str, ...]": st.lists(TEXT, max_size=3).map(tuple), "Request": REQUESTS,
        "tuple[tuple[RequestId, int], ...]": st.lists(NAMES, max_size=3).map(tuple),
        "Outcome": st.sampled_from(Outcome),
        "tuple[Step, ...]": st.deferred(lambda: many(Step)), "tuple[Copy, ...]": st.deferred(lambda: many(Copy)),
        "tuple[Abort, ...]": st.deferred(lambda: many(Abort)), "tuple[Drop, ...]": st.deferred(lambda: many(Drop)),
        "tuple[Release, ...]": st.deferred(lambda: many(Release)), "tuple[Join, ...]": st.deferred(lambda: many(Join)),
        "tuple[Chunk, ...]": st.deferred(lambda: many(Chunk)),
    }  # fmt: skip
    return st.builds(kind, **{field.name: by_type[str(field.type)] for field in attrs.fields(kind)})


def many(kind: type) -> st.SearchStrategy[Any]:
    return st.lists(records(kind), max_size=3).map(tuple)


TIMES = st.floats(0, 1e12)
REQUESTS = st.builds(
    Request, st.text(min_size=1, max_size=6), st.integers(1, 10**9), st.none() | st.integers(1, 9), TIMES,
    st.integers(), st.none() | TEXT, st.none() | TIMES, st.none() | TIMES, st.none() | TIMES,
    st.lists(st.integers(0, 2**64), max_size=3).map(tuple), st.none() | TEXT, st.none() | TEXT,
)  # fmt: skip
ANY_EVENT = st.one_of([records(kind) for kind in EVENTS])


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types, to the last bit of a float."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one.hex() == other.hex() or (math.isnan(one) and math.isnan(other))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if attrs.has(type(one)) and attrs.fields(type(one)):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in attrs.fields(type(one)))
    return bool(one == other)


@given(ANY_EVENT)
def test_events_come_back_as_they_were(event: Event) -> None:
    again = decode(Event, encode(event))
    assert same(again, event)
    assert encode(again) == encode(event)


@given(records(Plan))
def test_plans_come_back_as_they_were_and_have_one_form(plan: Plan) -> None:
    again = decode(Plan, plan_bytes(plan))
    assert same(again, plan)
    assert plan_bytes(again) == plan_bytes(plan)


@given(records(Plan), records(Plan))
def test_plans_have_the_same_bytes_only_if_they_are_the_same(one: Plan, other: Plan) -> None:
    assert (plan_bytes(one) == plan_bytes(other)) == same(one, other)
    whole, real = Plan(wake_at=1), Plan(wake_at=1.0)
    assert plan_bytes(whole) != plan_bytes(real)


def test_a_cluster_comes_back() -> None:
    cluster = Cluster(
        (Device("p", Role.PREFILL, 9, 3), Device("d", Role.DECODE, 9)), (Lane("a", ("p",), 1), Lane("b", ("d",))), 5,
        (Link("p", "d", 1e9, 1e-5, ("switch",)),), KVLayout(8, 77), 4096,
    )  # fmt: skip
    assert decode(Cluster, encode(cluster)) == cluster


@pytest.mark.parametrize(
    "costs",
    [
        AffineCosts(0.1, 1e-5, 1e-9, 3e-8, "gated", 22.4, 1e-12),
        ModelCosts(gpu_named("h100"), model_named("llama-3.1-70b"), 4, "padded", False),
        TableCosts.from_points(
            [(1, 5, 5, 0.1), (2, 10, 5, 0.2)], Prefill(1.0, 2.0, 3.0, rows=Curve((1.0, 2.0), (0.0, 0.5))), "somewhere"
        ),
        None,
    ],
    ids=["affine", "model", "table", "none"],
)
def test_costs_are_made_again_from_what_describes_them(costs: Any) -> None:
    from alignedsched.load import Load

    again = make_costs(describe(costs), None)
    assert describe(again) == describe(costs)
    if costs is not None and again is not None:
        loads = (Load(3, 300, 200), Load(40, 9000, 800), Load(2, 10, 5, ((0, 64),)))
        assert [again.step_seconds(load) for load in loads] == [costs.step_seconds(load) for load in loads]


class OwnCosts(AffineCosts):
    """Costs of somebody's own kind."""


def test_costs_of_another_kind_have_to_be_given() -> None:
    from alignedsched.errors import LogError

    own = OwnCosts(0.1, 0.0, 0.0)
    with pytest.raises(LogError, match="only its owner can make: give `costs`"):
        make_costs(describe(own), None)
    assert make_costs(describe(own), own) is own


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'["StepsDone","l",0,0]', "list of 9 values, got 3"),
        (b'["StepsDone","l",0,0,0,[],[],0.0,null,null,1]', "got 10"),
        (b'["StepsDone","l",0,0,true]', r"through: must be an integer, got True"),
        (b'["StepsDone","l",0,0,0,[["r",1],["s"]]]', r"finished\[1\]: must be a list of 2, got \['s'\]"),
        (b'["StepsDone","l",0,0,0,[],[],"soon"]', "seconds: must be a number, got 'soon'"),
        (b'["Arrived",["r",0]]', "request: Request.prompt_tokens must be an integer of at least 1"),
        (b'["Arrived",["",1]]', "request: Request.id must be a non-empty string"),
        (b'["__import__","os"]', "must begin with one of StepsDone"),
        (b'["Plan"]', "must begin with one of"),
        (b"[{}]", "must begin with one of"),
        (b'{"StepsDone":1}', "must begin with one of"),
        (b'["Cancelled","r"', "is not JSON"),
        (b'["Cancelled","\xff"]', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_event_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(MisfitError, match=message):
        decode(Event, data)


def test_only_what_stands_in_the_table_is_written() -> None:
    for thing in (object(), {1, 2}, b"bytes", 1j, AffineCosts, OwnCosts(0.1, 0.0, 0.0)):
        with pytest.raises(TypeError, match="is no plain data and no record"):
            encode(thing)


def test_a_file_from_before_a_field_was_added_is_read() -> None:
    assert decode(Event, b'["StepsDone","l",0,0,0]') == StepsDone("l", 0, 0, 0)
    assert decode(Event, b'["DeviceBack","d"]') == DeviceBack("d")
    assert decode(Event, b'["Paused"]') == Paused()


def test_the_order_of_fields_is_part_of_format_version_1() -> None:
    """Fields may be added at the end, with a default. Anything else needs another version in ``frames``."""
    first = {
        Request: "id prompt_tokens output_limit arrival priority tenant deadline ttft_target tpot_target block_hashes "
        "session kind",
        Arrived: "request",
        StepsDone: "lane order first through finished prefilled seconds launched ended",
        StepsFailed: "lane order first through reason poisoned finished",
        Chunk: "request start end rank last",
        Join: "request context_length rank",
        Step: "lane order horizon joins leaves chunks why",
        Copy: "copy request source target start end deadline why",
        Drop: "request tier keep",
        Release: "request outcome why",
        Plan: "steps copies aborts drops releases wake_at given_up",
    }
    for kind, names in first.items():
        assert [field.name for field in codec.fields(kind)][: len(names.split())] == names.split()

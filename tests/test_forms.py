"""An event that is not of its form is refused by the name of the field, the whole call with it, and nothing changes."""

from __future__ import annotations

import math
import typing
from typing import Any

import attrs
import pytest
from attrs import evolve

from alignedsched import policies
from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.errors import AlignedSchedError, CallerError, ExecutorError
from alignedsched.events import (
    Arrived,
    Cancelled,
    CapacityChanged,
    CopyDone,
    CopyFailed,
    DeviceBack,
    DeviceLost,
    Event,
    LaneBack,
    LaneLost,
    LinkChanged,
    StagedLost,
    StepsDone,
    StepsFailed,
)
from alignedsched.forms import _FORMS, check_form, check_steps
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler

DONE = StepsDone("l0", 1, 1, 4, (("a", 4),), (), 0.1)
FAILED = StepsFailed("l0", 1, 1, 0, "out of luck")


@pytest.fixture
def scheduler() -> Scheduler:
    """``a`` and ``b`` decode by order 1, from step 1 on; ``DONE`` is true, and ``a`` ends by it."""
    whole = Cluster(
        (Device("g0", Role.BOTH, 100, staging_blocks=10),),
        (Lane("l0", ("g0",), max_members=4, max_tokens=64),),
        10,
        (Link("g0", HOST, 1e9), Link(HOST, "g0", 1e9)),
        KVLayout(4, 10),
    )
    scheduler = Scheduler(whole, policies.fcfs())
    scheduler.handle(0.0, Arrived(Request("a", 10, 5)), Arrived(Request("b", 10, 50)))
    scheduler.handle(0.1, StepsDone("l0", 0, 0, 0, (), ("a", "b"), 0.1))
    return scheduler


def _facts(scheduler: Scheduler) -> tuple[object, ...]:
    view, lane = scheduler.view("l0"), scheduler._books.lanes["l0"].state
    batch = list(view.ranks[0].batch)
    return scheduler.now, dict(scheduler.counts), scheduler.live, scheduler.queued, lane.reported, batch


BAD: list[tuple[Event, dict[str, Any]]] = [
    (DONE, {"lane": ["l0"]}),
    (DONE, {"order": "1"}),
    (DONE, {"order": 1.0}),
    (DONE, {"first": True}),
    (DONE, {"through": 4.0}),
    (DONE, {"through": None}),
    (DONE, {"launched": "x"}),
    (DONE, {"launched": math.nan}),
    (DONE, {"seconds": "x"}),
    (DONE, {"seconds": math.nan}),
    (DONE, {"seconds": -0.1}),
    (DONE, {"ended": math.inf}),
    (DONE, {"ended": "now"}),
    (DONE, {"finished": None}),
    (DONE, {"finished": (("a", 4.0),)}),
    (DONE, {"finished": (("a", 2), ("a", 4))}),
    (DONE, {"finished": (("a", "b", "c"),)}),
    (DONE, {"finished": ((["a"], 4),)}),
    (DONE, {"prefilled": None}),
    (DONE, {"prefilled": "ab"}),
    (DONE, {"prefilled": ([],)}),
    (FAILED, {"reason": None}),
    (FAILED, {"poisoned": ([],)}),
    (FAILED, {"through": 0.0}),
    (CopyDone(0), {"copy": "0"}),
    (CopyFailed(0), {"copy": 0.0}),
    (CopyFailed(0), {"reason": 3}),
    (CapacityChanged("g0", 50), {"tier": []}),
    (CapacityChanged("g0", 50), {"blocks": 2.5}),
    (CapacityChanged("g0", 50), {"blocks": -1}),
    (LinkChanged("g0", HOST, 1.0), {"source": []}),
    (LinkChanged("g0", HOST, 1.0), {"bytes_per_s": "fast"}),
    (LinkChanged("g0", HOST, 1.0), {"bytes_per_s": math.nan}),
    (LinkChanged("g0", HOST, 1.0), {"bytes_per_s": -1.0}),
    (LaneLost("l0"), {"lane": []}),
    (LaneBack("l0", 9), {"next_step": "9"}),
    (DeviceLost("g0"), {"device": []}),
    (DeviceBack("g0", 9), {"next_step": 9.0}),
    (StagedLost("g0"), {"device": []}),
    (StagedLost("g0"), {"requests": "ab"}),
    (StagedLost("g0"), {"requests": ("a", [])}),
    (Cancelled("a"), {"request": []}),
    (Arrived(Request("c", 1)), {"request": "c"}),
]


@pytest.mark.parametrize(("event", "change"), BAD, ids=lambda value: value if isinstance(value, str) else None)
def test_a_field_of_the_wrong_kind_is_named_and_nothing_changes(
    scheduler: Scheduler, event: Event, change: dict[str, Any]
) -> None:
    before, (field,) = _facts(scheduler), change
    wrong = evolve(event, **change)
    error: type[AlignedSchedError] = CallerError if isinstance(event, Arrived | Cancelled) else ExecutorError
    for others in ((), (Arrived(Request("c", 5)),)):  # alone, and behind one that is as it should be
        with pytest.raises(error, match=rf"\b{field} must be"):
            scheduler.handle(5.0, *others, wrong)
        assert _facts(scheduler) == before
    scheduler.check()
    plan = scheduler.handle(0.3, DONE)  # and the truth is still taken
    assert [release.request for release in plan.releases] == ["a"]
    assert scheduler.counts["ignored"] == 0


def test_what_is_no_event_takes_the_whole_call_with_it(scheduler: Scheduler) -> None:
    before = _facts(scheduler)
    with pytest.raises(CallerError, match="'junk' is no event; known: Arrived"):
        scheduler.handle(5.0, Arrived(Request("c", 5)), "junk")  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="'a' is here already"):
        scheduler.handle(5.0, Arrived(Request("a", 5)))
    assert _facts(scheduler) == before


@pytest.mark.parametrize("now", ["soon", None, True, [0.0]])
def test_time_is_a_number(scheduler: Scheduler, now: Any) -> None:
    before = _facts(scheduler)
    with pytest.raises(CallerError, match="now must be a finite number of seconds"):
        scheduler.handle(now, Arrived(Request("c", 5)))
    assert _facts(scheduler) == before


def test_every_field_of_every_event_has_a_form() -> None:
    known = {kind: {field.name for field in attrs.fields(kind)} for kind in typing.get_args(Event)}
    assert {kind: set(form) for kind, form in _FORMS.items()} == known


def test_the_short_way_for_plain_steps_refuses_the_same() -> None:
    for event in (DONE, evolve(DONE, finished=()), evolve(DONE, launched=9, ended=3, seconds=1)):
        check_steps(event)
        check_form(event)
    for report, change in BAD:
        for others in ({}, {"finished": ()}) if isinstance(report, StepsDone) else ():
            wrong: Any = evolve(report, **{**others, **change})
            with pytest.raises(ExecutorError) as short:
                check_steps(wrong)
            with pytest.raises(ExecutorError) as long:
                check_form(wrong)
            assert str(short.value) == str(long.value)


@pytest.mark.parametrize("field", ["tenant", "session", "kind"])
def test_what_a_request_is_sorted_by_is_text(field: str) -> None:
    wrong: dict[str, Any] = {field: ["x"]}
    with pytest.raises(CallerError, match=f"Request.{field} must be a string or None, got a list of 1"):
        Request("a", 5, **wrong)

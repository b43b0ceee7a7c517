"""What the strategies draw is valid by construction, and what is drawn as invalid is refused by name."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched import Cluster, Request
from alignedsched.errors import AlignedSchedError, CallerError, ConfigError
from alignedsched.load import Load
from alignedsched.policies import fcfs
from alignedsched.policies.protocols import Policy
from alignedsched.scheduler import Scheduler
from alignedsched.testing import strategies as draw
from alignedsched.testing.machine import SchedulerMachine
from alignedsched.testing.world import World
from alignedsched.workloads import Workload

SOME = settings(max_examples=30, deadline=None)


@SOME
@given(draw.clusters(), st.data())
def test_drawn_clusters_are_accepted_and_so_is_what_is_drawn_for_them(cluster: Cluster, data: st.DataObject) -> None:
    scheduler = Scheduler(cluster, fcfs())
    plan = data.draw(draw.plans(cluster))
    assert {step.lane for step in plan.steps} <= set(cluster.lane)
    assert all(step.horizon == 1 for step in plan.steps if step.chunks)
    wish = data.draw(draw.wishes(cluster))
    assert {getattr(wish, "target", None), getattr(wish, "tier", None)} & set(cluster.tiers)
    event = data.draw(draw.executor_events(cluster))
    with contextlib.suppress(AlignedSchedError):  # it may be untrue; then nothing has changed
        scheduler.handle(0.0, event)
    scheduler.check()


@given(draw.requests(), draw.takes(), draw.costs())
def test_drawn_records_make_sense(request_: Request, take: Any, costs: Any) -> None:
    assert request_.prompt_tokens >= 1
    assert take.tokens >= 1
    assert costs.step_seconds(Load(2, 10, 8)) > 0


@given(draw.invalid_requests())
def test_invalid_requests_are_refused_by_the_name_of_the_field(drawn: tuple[str, dict[str, Any]]) -> None:
    field, arguments = drawn
    with pytest.raises(CallerError, match=f"Request.{field}"):
        Request(**arguments)


@given(draw.invalid_clusters())
def test_invalid_clusters_are_refused_and_told_why(drawn: tuple[str, dict[str, Any]]) -> None:
    word, arguments = drawn
    with pytest.raises(ConfigError, match=word):
        Cluster(**arguments)


@settings(max_examples=20, deadline=None)
@given(draw.event_sequences())
def test_event_sequences_can_be_handed_to_a_scheduler(told: list[tuple[float, Any]]) -> None:
    cluster = draw_cluster()
    scheduler = Scheduler(cluster, fcfs())
    for now, event in told:
        scheduler.handle(now, event)
        scheduler.check()
    assert scheduler.counts["late_now"] == 0


def draw_cluster() -> Cluster:
    return World(0).cluster


@given(st.lists(draw.IDS, unique=True, max_size=6), st.data())
def test_compositions_name_nobody_twice(ids: list[str], data: st.DataObject) -> None:
    composition = data.draw(draw.compositions(ids))
    for named in (composition.joins, composition.candidates, composition.parks, composition.unclaims):
        assert len(set(named)) == len(named)
        assert set(named) <= set(ids)
    assert not set(composition.joins) & set(composition.candidates)


@given(draw.workloads())
def test_drawn_workloads_are_whole(workload: Workload) -> None:
    assert len(list(workload.requests())) == len(workload)


@settings(max_examples=15, deadline=None)
@given(draw.worlds(), st.integers(1, 20))
def test_drawn_worlds_live_and_end(world: World, acts: int) -> None:
    rng = Random(acts)
    for _ in range(acts):
        world.act(rng)
    world.finish(rng)


class FcfsMachine(SchedulerMachine):
    """A subclass fixes what it overrides, and nothing else."""

    def policy(self) -> Policy:
        return fcfs(swap=True)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            assert self.world.policy.name == "fcfs"
            assert self.world.erratic is None
        super().teardown()


TestFcfsMachine = FcfsMachine.TestCase
TestFcfsMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)

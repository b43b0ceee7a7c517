"""Small stories, one per mistake the scheduler once made; each names what must hold instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from alignedsched import policies
from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.errors import ExecutorError, HookError, PolicyError
from alignedsched.events import (
    Arrived,
    Cancelled,
    CapacityChanged,
    CopyDone,
    DeviceBack,
    DeviceLost,
    Event,
    LaneBack,
    LaneLost,
    Paused,
    Resumed,
    StepsDone,
    StepsFailed,
    WeightsChanged,
)
from alignedsched.plan import Outcome, Plan
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.policies.protocols import Composition, Policy, Take
from alignedsched.policies.residency import DirectResidency
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.views import LaneView


def both(
    blocks: int = 20, size: int = 4, run_ahead: int = 0, lanes: int = 1, members: int = 8, max_tokens: int = 64
) -> Cluster:
    """Lanes ``l0``, ``l1``, ... that prefill and decode, without a host pool."""
    return Cluster(
        tuple(Device(f"g{i}", Role.BOTH, blocks) for i in range(lanes)),
        tuple(Lane(f"l{i}", (f"g{i}",), run_ahead, members, max_tokens) for i in range(lanes)),
        layout=KVLayout(size, 10),
    )


def split(prefill: int, decode: int, size: int = 4, host: int = 0, positions: int = 400) -> Cluster:
    """Lane ``p`` prefills on ``p0``, lane ``l0`` decodes on ``g0``."""
    ends = [("p0", "g0"), ("g0", "p0"), *([("p0", HOST), (HOST, "g0"), ("g0", HOST)] if host else [])]
    return Cluster(
        (Device("p0", Role.PREFILL, prefill), Device("g0", Role.DECODE, decode)),
        (Lane("p", ("p0",), max_members=8, max_tokens=64), Lane("l0", ("g0",), max_members=8, max_tokens=64)),
        host,
        tuple(Link(a, b, 1e9) for a, b in ends),
        KVLayout(size, 10),
        positions,
    )


class Story:
    """A scheduler that is told events and verified after each call."""

    def __init__(self, cluster: Cluster, policy: Policy | None = None, max_kinds: int | None = None) -> None:
        self.scheduler = Scheduler(cluster, policy or policies.fcfs(), max_horizon=8, max_kinds=max_kinds)
        self.now = 0.0

    def tell(self, *events: Event) -> Plan:
        self.now += 1.0
        plan = self.scheduler.handle(self.now, *events)
        self.scheduler.check()
        return plan

    def arrive(self, name: str, prompt: int = 4, limit: int | None = 9, kind: str | None = None) -> Plan:
        return self.tell(Arrived(Request(name, prompt, limit, kind=kind)))

    def done(self, order: int, first: int, through: int, lane: str = "l0", **more: object) -> Plan:
        return self.tell(StepsDone(lane, order, first, through, **more))  # type: ignore[arg-type]

    def running(self, name: str = "a", prompt: int = 4, limit: int | None = 9) -> None:
        """One request is prefilled by order 0, and decodes by order 1 from step 1 on."""
        assert self.arrive(name, prompt, limit).steps[0].chunks
        plan = self.done(0, 0, 0, prefilled=(name,))
        assert [join.request for join in plan.steps[0].joins] == [name]


def made_of(
    admit: Callable[[LaneView], Iterable[Take]] | None = None,
    compose: Callable[[LaneView], Composition] | None = None,
    may_idle_s: float = 0.0,
) -> Policy:
    """``fcfs`` with another admission or composition."""

    class Admission(ArrivalOrder):
        def admit(self, view: LaneView) -> Iterable[Take]:  # type: ignore[override]
            return admit(view) if admit is not None else super().admit(view)

    class Batching(ContinuousBatching):
        def compose(self, view: LaneView) -> Composition:
            return compose(view) if compose is not None else super().compose(view)

    return Policy("made", Admission(), Batching(), DirectResidency(to_host="never"), may_idle_s)


# -- orders and reports


def test_an_order_that_took_effect_may_run_while_a_chunk_order_waits_behind_it() -> None:
    story = Story(both(run_ahead=1))
    story.running()
    story.done(1, 1, 0)  # in effect, nothing run yet
    assert story.arrive("b").steps[0].chunks
    story.done(1, 1, 1)  # and now it has run a step: no chunk order was skipped
    story.done(2, 2, 2, prefilled=("b",))


def test_an_order_has_one_chunk_of_a_request() -> None:
    story = Story(both(), made_of(admit=lambda view: [Take(w.request.id, 2) for w in view.queue for _ in range(2)]))
    chunks = story.arrive("a").steps[0].chunks
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(0, 2)]


def test_reports_that_came_too_early_are_all_kept_even_if_they_start_at_one_step() -> None:
    story = Story(both(run_ahead=1))
    story.running(limit=4)
    b = story.arrive("b", limit=2).steps[0]  # order 2: b's prefill
    assert b.order == 2
    assert b.chunks
    story.done(1, 1, 1, launched=2)
    joins = story.tell(Resumed()).steps
    assert [join.request for step in joins for join in step.joins] == ["b"]  # order 3
    story.done(3, 3, 2)  # in effect at 3, before order 2's report
    plan = story.done(3, 3, 3, finished=(("a", 3), ("b", 3)))
    assert not plan.releases, "a report is missing"
    plan = story.done(2, 2, 2, prefilled=("b",))
    released = [*plan.releases, *story.tell().releases]
    for step in plan.steps:
        released += story.done(step.order, 4, 3).releases
    assert {release.request for release in released} == {"a", "b"}


def test_what_an_early_report_says_counts_for_what_may_be_launched() -> None:
    story = Story(both(run_ahead=0))
    story.running(limit=None)
    orders = story.scheduler.view("l0")
    story.arrive("b", limit=None)  # order 2
    state = story.scheduler._books.lanes["l0"].state
    before = state.exposed()
    story.done(2, 2, 2, prefilled=("b",))  # overtakes the report of order 1, step 1
    assert state.reported == 0
    assert state.exposed() >= 2 > before, "step 2 is done, whatever is known of step 1"
    assert orders.ranks[0].free >= 0


def test_a_lane_that_is_empty_takes_back_what_its_last_order_allows() -> None:
    """Room for steps that nobody can run must not keep a request from joining."""
    story = Story(split(prefill=20, decode=8))
    story.arrive("a", 4, 9)
    plan = story.done(0, 0, 0, lane="p", prefilled=("a",))
    plan = story.tell(CopyDone(plan.copies[0].copy))
    assert plan.steps[0].horizon == 8
    story.arrive("b", 28, None)
    story.done(1, 1, 1, lane="p", prefilled=("b",))
    story.done(0, 0, 1, finished=(("a", 1),), launched=1)
    copies = list(story.scheduler._books.flights)
    plan = story.tell(*(CopyDone(copy) for copy in copies)) if copies else story.tell()
    for _ in range(4):  # stop, copy, join: whatever it takes, b decodes in the end
        events: list[Event] = [CopyDone(copy.copy) for copy in plan.copies]
        events += [StepsDone("l0", s.order, 2, 1) for s in plan.steps if s.lane == "l0" and not s.horizon]
        if "b" in story.scheduler.view("l0").ranks[0].batch:
            break
        plan = story.tell(*events)
    assert "b" in story.scheduler.view("l0").ranks[0].batch


# -- ends


def test_a_request_whose_last_token_came_with_its_chunk_is_finished_whatever_else_happened() -> None:
    story = Story(both())
    story.arrive("a", 4, 1)
    story.tell(WeightsChanged())
    plan = story.done(0, 0, 0, prefilled=("a",), finished=(("a", 0),))
    assert [release.outcome for release in plan.releases] == [Outcome.FINISHED]
    assert story.scheduler.idle()


def test_a_step_that_fails_after_the_weights_changed_brings_no_old_kv_back() -> None:
    story = Story(both(run_ahead=1))
    story.running(limit=None)
    story.done(1, 1, 1)
    books = story.scheduler._books
    books.lanes["l0"].going["a"] = next(s for s in type(books.live["a"].state) if s.value == "queued")
    plan = story.tell(StepsFailed("l0", 1, 1, 1, "out of luck"))
    assert [drop.request for drop in plan.drops] == ["a"]
    assert plan.steps[0].chunks[0].start == 0, "prefilled again, with the tokens it has"


def test_a_member_is_not_parked_before_it_has_made_a_token_since_it_joined() -> None:
    parks: list[str] = []
    story = Story(
        both(run_ahead=2), made_of(compose=lambda view: Composition(joins=list(view.expected), parks=list(parks)))
    )
    story.arrive("a")
    assert story.tell(Resumed()).steps[0].joins, "it joins behind its chunk"
    parks.append("a")
    assert not any(step.leaves for step in story.arrive("b").steps)
    story.done(0, 0, 0, prefilled=("a",))
    assert not any(step.leaves for step in story.arrive("c").steps), "its chunk's token is not one it made as a member"
    story.done(1, 1, 1)
    assert story.arrive("d").steps[0].leaves == ("a",)


def test_who_left_a_batch_is_out_since_it_was_told_to_leave() -> None:
    """The report that it has left comes later; whoever bounds how long somebody sits out counts from the order."""
    parks: list[str] = []

    def compose(view: LaneView) -> Composition:
        return Composition(joins=[r for r in view.pool.by_order() if r not in parks], parks=list(parks))

    story = Story(both(run_ahead=2), made_of(compose=compose))
    story.arrive("a")
    story.done(0, 0, 0, prefilled=("a",))
    story.done(1, 1, 2)
    parks.append("a")
    plan = story.arrive("b")
    assert plan.steps[0].leaves == ("a",)
    told, view = story.now, story.scheduler.view("l0")
    assert view.leaving == 1
    story.done(plan.steps[0].order, 3, 3, prefilled=("b",))
    assert view.leaving == 0
    assert "a" in view.resident
    assert view.entry("a").since == told < story.now


def never(may_idle_s: float = 0.0) -> Policy:
    """A policy that never lets anybody decode."""
    return made_of(compose=lambda view: Composition(), may_idle_s=may_idle_s)


def test_a_policy_that_chooses_nothing_is_overruled_first_come_first_served_and_named() -> None:
    story = Story(both(), never())
    story.arrive("a")
    plan = story.done(0, 0, 0, prefilled=("a",))
    assert [join.request for join in plan.steps[0].joins] == ["a"]
    assert plan.steps[0].why == "overruled 'made', which chose nothing"
    assert story.scheduler.counts["overruled"] == 1


def test_a_policy_is_overruled_no_sooner_than_it_declares() -> None:
    story = Story(both(), never(may_idle_s=5.0))
    story.arrive("a")
    plan = story.done(0, 0, 0, prefilled=("a",))
    assert not plan.steps
    assert plan.wake_at == story.now + 5.0
    for _ in range(4):
        plan = story.tell()
        assert not plan
    assert [join.request for join in story.tell().steps[0].joins] == ["a"]


def test_a_policy_that_raises_whenever_it_is_asked_does_not_stop_the_work() -> None:
    def raising(view: LaneView) -> Composition:
        raise RuntimeError("a bug")

    story = Story(both(), made_of(compose=raising))
    with pytest.raises(PolicyError, match="a bug"):
        story.arrive("a")
    plan = story.tell()
    assert plan.steps[0].chunks, "its prefill goes on, first come first served"
    with pytest.raises(PolicyError, match="a bug"):
        story.done(0, 0, 0, prefilled=("a",))
    assert [join.request for join in story.tell().steps[0].joins] == ["a"]


def test_nobody_is_overruled_while_the_caller_holds_everything_back() -> None:
    story = Story(both())
    story.tell(Paused())
    story.arrive("a")
    assert story.tell().wake_at is None
    assert story.scheduler.counts["overruled"] == 0
    assert story.tell(Resumed()).steps[0].chunks


def test_who_is_cancelled_while_paused_goes_at_once() -> None:
    story = Story(both())
    story.running()
    assert story.tell(Paused()).steps[0].horizon == 0
    story.done(2, 1, 0)
    plan = story.tell(Cancelled("a"))
    assert plan.steps[0].leaves == ("a",)
    assert plan.steps[0].horizon == 0
    releases = [*plan.releases, *story.done(3, 1, 0).releases]
    assert [release.outcome for release in releases] == [Outcome.CANCELLED]
    assert story.scheduler.idle()


def test_finished_members_of_a_paused_lane_are_charged_once() -> None:
    story = Story(both(blocks=8))
    story.running(prompt=12, limit=10)
    story.tell(Paused())
    story.done(1, 1, 1, finished=(("a", 1),), launched=1)
    assert story.scheduler.view("l0").free("g0") >= 0


def test_a_prompt_that_admission_would_never_take_is_refused() -> None:
    story = Story(split(prefill=8, decode=20, size=1))
    plan = story.arrive("a", 8, 2)
    assert plan.releases[0].outcome is Outcome.REJECTED
    assert "8 tokens" in plan.releases[0].why
    assert story.arrive("b", 7, 2).steps, "one token less is taken"


def test_nobody_waits_for_a_device_that_is_too_small_for_him() -> None:
    """A lane cannot claim what it could never hold."""
    cluster = Cluster(
        (Device("p0", Role.PREFILL, 40), Device("g0", Role.DECODE, 4), Device("g1", Role.DECODE, 40)),
        (Lane("p", ("p0",)), Lane("l0", ("g0",)), Lane("l1", ("g1",))),
        links=(Link("p0", "g0", 1e9), Link("p0", "g1", 1e9)),
        layout=KVLayout(4, 10),
    )
    greedy = made_of(
        compose=lambda view: Composition(
            joins=list(view.pool.by_order()) if view.lane.id == "l0" else (), candidates=list(view.pool.by_order())
        ),
        may_idle_s=99.0,
    )
    story = Story(cluster, greedy)
    story.arrive("a", 30, 9)
    story.done(0, 0, 0, lane="p", prefilled=("a",))
    assert not story.scheduler.view("l0").joining
    assert not story.scheduler.view("l0").candidates
    assert list(story.scheduler.view("l1").candidates) == ["a"]
    story.tell(CapacityChanged("g1", 2))
    assert not story.scheduler.view("l1").candidates, "the device is too small for it now"


def test_who_has_outgrown_every_decode_device_fails_instead_of_waiting() -> None:
    story = Story(split(prefill=40, decode=4))  # 16 tokens
    story.arrive("a", 14, None)
    plan = story.done(0, 0, 0, lane="p", prefilled=("a",))
    plan = story.tell(CopyDone(plan.copies[0].copy))
    story.done(0, 0, 0)
    plan = story.tell(WeightsChanged())
    for step in plan.steps:
        plan = story.done(step.order, 1, 0, lane=step.lane)
    outcomes = [release.outcome for release in plan.releases]
    assert outcomes == [Outcome.FAILED]
    assert story.scheduler.idle()


# -- policies


def test_orders_decided_before_a_policy_raised_reach_the_executor() -> None:
    raising = [False]

    def compose(view: LaneView) -> Composition:
        if raising[0]:
            raise RuntimeError("a bug in a policy")
        return Composition(joins=[*view.expected, *view.pool.by_order()])

    story = Story(both(), made_of(compose=compose))
    story.running()
    story.arrive("b")
    raising[0] = True
    with pytest.raises(PolicyError, match="a bug in a policy"):
        story.tell(Cancelled("a"), StepsDone("l0", 1, 1, 1), StepsDone("l0", 2, 2, 2, prefilled=("b",)))
    story.scheduler.check()
    raising[0] = False
    plan = story.tell()
    assert any("a" in step.leaves for step in plan.steps)


def test_a_rank_that_is_no_number_is_taken_as_arrival_order() -> None:
    class Odd(ArrivalOrder):
        def rank(self, request: Request) -> float:
            return float("nan")

    odd = Policy("odd", Odd(), ContinuousBatching(), DirectResidency())
    story = Story(both(), odd)
    assert story.arrive("a").steps
    assert story.scheduler.counts["refused"] == 1


def test_swapping_without_a_host_pool_computes_again() -> None:
    story = Story(both(blocks=6), policies.fcfs(swap=True))
    story.running(prompt=8, limit=15)
    story.arrive("b", 8, 15)
    story.done(1, 1, 1)
    story.done(2, 2, 2, prefilled=("b",))
    orders = story.scheduler._books.lanes["l0"].state
    for step in range(3, 9):  # until the room is gone
        newest = orders.issued[-1] if orders.issued else orders.standing
        assert newest is not None
        if "b" not in story.scheduler.view("l0").ranks[0].batch and step > 4:
            break
        first = newest.first if newest.first >= 0 else step
        story.done(newest.step.order, first, step)
    assert "b" not in story.scheduler.view("l0").ranks[0].batch


def test_a_begun_prefill_waits_until_its_kind_fits() -> None:
    taken: list[list[Take]] = []

    def admit(view: LaneView) -> list[Take]:
        takes = [Take(begun.request, 2) for begun in view.prefilling] + [Take(w.request.id, 2) for w in view.queue]
        taken.append(takes)
        return takes

    story = Story(both(), made_of(admit=admit), max_kinds=1)
    story.arrive("a", 8, kind="red")
    plan = story.arrive("b", 8, kind="blue")
    plan = story.done(0, 0, 0, prefilled=("a",))
    for _ in range(6):
        step = plan.steps[-1] if plan.steps else None
        if step is None:
            break
        assert len({chunk.request for chunk in step.chunks}) <= 1
        plan = story.done(step.order, step.order, step.order, prefilled=tuple(c.request for c in step.chunks))


def test_what_is_pooled_is_charged_for_what_is_stored() -> None:
    """The room kept for the first decode step goes back when a request is pooled instead."""
    story = Story(both(), never(may_idle_s=99.0))
    story.arrive("a", 8)
    story.done(0, 0, 0, prefilled=("a",))
    assert story.scheduler.pooled == 1
    assert story.scheduler.view("l0").free("g0") == 18


def test_a_lane_that_let_the_pool_go_first_begins_when_it_is_empty() -> None:
    """Lane l1 takes the last pooled request; lane l0, which waited for that, is asked again."""
    hold = [True]

    def compose(view: LaneView) -> Composition:
        if hold[0]:
            return Composition()
        return Composition(joins=list(view.pool.by_order()) if view.lane.id == "l1" else ())

    story = Story(both(lanes=2, max_tokens=8), made_of(compose=compose, may_idle_s=99.0))
    story.arrive("a", 8)
    lane = "l0" if story.scheduler.view("l0").expected else "l1"
    plan = story.done(0, 0, 0, lane=lane, prefilled=("a",))
    assert story.scheduler.pooled == 1
    assert not story.arrive("b", 8).steps, "the pool goes first"
    hold[0] = False
    plan = story.tell(Resumed())
    if lane == "l1":
        assert any(chunk.request == "b" for step in plan.steps for chunk in step.chunks)


# -- devices


def ranks() -> Cluster:
    return Cluster(
        (Device("g0", Role.BOTH, 20), Device("g1", Role.BOTH, 20)),
        (Lane("l0", ("g0", "g1")),),
        layout=KVLayout(4, 10),
    )


def test_a_lane_is_back_when_all_its_devices_are() -> None:
    story = Story(ranks())
    story.tell(DeviceLost("g0"), DeviceLost("g1"))
    story.tell(DeviceBack("g0", 5))
    assert not story.arrive("a").steps, "half a lane runs no step"
    with pytest.raises(ExecutorError, match="device 'g1' is lost"):
        story.tell(LaneBack("l0", 6))
    plan = story.tell(DeviceBack("g1", 6))
    assert plan.steps[0].chunks
    story.done(0, 6, 6, prefilled=("a",))


def test_a_device_that_was_never_lost_keeps_its_capacity_when_it_is_back() -> None:
    story = Story(both(blocks=20))
    story.tell(CapacityChanged("g0", 10))
    story.tell(DeviceBack("g0", 3))
    assert story.scheduler.view("l0").free("g0") == 10
    assert story.scheduler.counts["ignored"] == 1


def test_a_lost_device_has_no_capacity_until_it_is_back() -> None:
    story = Story(both(blocks=20))
    story.tell(DeviceLost("g0"))
    story.tell(CapacityChanged("g0", 10))
    assert story.scheduler.view("l0").free("g0") == 0
    story.tell(DeviceBack("g0", 1))
    assert story.scheduler.view("l0").free("g0") == 20


def test_a_tier_may_be_over_full_only_after_it_became_smaller() -> None:
    story = Story(both(blocks=20))
    story.tell(CapacityChanged("g0", 40))
    story.arrive("a", 40, 9)
    story.tell(CapacityChanged("g0", 4))
    assert story.scheduler.view("l0").free("g0") < 0


def test_a_request_whose_copy_was_not_wanted_any_more_is_copied_again_when_that_has_ended() -> None:
    """The lane that waits for it is asked again, though the copy went elsewhere."""
    cluster = Cluster(
        (Device("p0", Role.PREFILL, 40), Device("g0", Role.DECODE, 40), Device("g1", Role.DECODE, 40)),
        (Lane("p", ("p0",)), Lane("l0", ("g0",)), Lane("l1", ("g1",))),
        links=(Link("p0", "g0", 1e9), Link("p0", "g1", 1e9)),
        layout=KVLayout(4, 10),
    )
    story = Story(cluster)
    story.arrive("a")
    first = story.done(0, 0, 0, lane="p", prefilled=("a",)).copies[0]
    other = "l1" if first.target == "g0" else "l0"
    assert not story.tell(LaneLost("l0" if other == "l1" else "l1")).copies, "the first copy has not ended"
    again = story.tell(CopyDone(first.copy)).copies
    assert [copy.target for copy in again] == ["g1" if other == "l1" else "g0"]


def test_who_joins_and_leaves_in_one_plan_is_kept_until_the_executor_has_seen_both() -> None:
    """A second order of a plan may come after steps under the first: its leaver is fenced, not dropped."""
    story = Story(both(run_ahead=1))
    story.running()
    story.done(1, 1, 1)
    state = story.scheduler._books.lanes["l0"].state
    state.fresh, state.launched = True, state.reported
    assert state.exposed() == state.reported
    story.scheduler._books.lanes["l0"].dirty = True
    from alignedsched.plan import Step

    state.issue(Step("l0", state.next_order, 4))
    assert state.exposed() > state.reported


def test_a_policy_that_could_do_nothing_before_is_asked_before_it_is_overruled() -> None:
    story = Story(both(lanes=2))
    story.arrive("a")
    for lane in ("l0", "l1"):
        story.tell(LaneLost(lane))
    story.now += 100.0
    assert story.tell(LaneBack("l1", 9)).steps[0].why == "prefill"
    assert story.scheduler.counts["overruled"] == 0


def test_who_is_parked_for_room_is_copied_out_and_not_computed_again() -> None:
    cluster = Cluster(
        (Device("g0", Role.BOTH, 6),),
        (Lane("l0", ("g0",), max_members=8, max_tokens=64),),
        40,
        (Link("g0", HOST, 1e9), Link(HOST, "g0", 1e9)),
        KVLayout(4, 10),
    )
    story = Story(cluster, policies.fcfs(swap=True))
    plan = story.tell(*(Arrived(Request(name, 8, 13)) for name in "ab"))
    plan = story.done(0, 0, 0, prefilled=("a", "b"))
    step = 0
    while not plan.copies:
        step += 1
        plan = story.done(1, 1, step)
    assert [(copy.request, copy.target) for copy in plan.copies] == [("b", HOST)]
    assert story.scheduler.counts["preemptions"] == 0


def test_a_hook_that_raises_costs_no_chunk_that_was_taken_before() -> None:
    def eligible(request: Request) -> bool:
        if request.id == "b":
            raise RuntimeError("a bug in the hook")
        return True

    scheduler = Scheduler(both(), made_of(admit=lambda view: [Take("a", 4), Take("b", 4)]), eligible=eligible)
    with pytest.raises(HookError, match=r"`eligible` hook raised RuntimeError: a bug .* about request 'b'"):
        scheduler.handle(1.0, *(Arrived(Request(name, 4, 9)) for name in "ab"))
    scheduler.check()
    assert [chunk.request for step in scheduler.handle(2.0).steps for chunk in step.chunks] == ["a"]


def test_who_fits_only_a_larger_lane_blocks_nobody_on_a_smaller_one() -> None:
    cluster = Cluster(
        (Device("g0", Role.BOTH, 40), Device("g1", Role.BOTH, 4)),
        (Lane("l0", ("g0",)), Lane("l1", ("g1",))),
        layout=KVLayout(4, 10),
    )
    story = Story(cluster)
    story.tell(LaneLost("l0"))
    plan = story.tell(Arrived(Request("large", 30, 9)), Arrived(Request("small", 4, 9)))
    assert [(step.lane, [chunk.request for chunk in step.chunks]) for step in plan.steps] == [("l1", ["small"])]
    assert story.scheduler.counts["overruled"] == 0


def test_who_has_outgrown_the_smaller_of_two_ranks_starts_over_for_the_larger() -> None:
    ends = [("p0", "g0"), ("p0", "g1")]
    cluster = Cluster(
        (Device("p0", Role.PREFILL, 20), Device("g0", Role.DECODE, 5), Device("g1", Role.DECODE, 4)),
        (Lane("p", ("p0",)), Lane("l0", ("g0", "g1"))),
        links=tuple(Link(a, b, 1e9) for a, b in ends),
        layout=KVLayout(4, 10),
    )
    story = Story(cluster)
    story.tell(Arrived(Request("a", 11, None)), Arrived(Request("b", 8, None)))
    plan = story.done(0, 0, 0, lane="p", prefilled=("a", "b"))
    assert [(copy.request, copy.target) for copy in plan.copies] == [("a", "g0"), ("b", "g1")]
    first = story.tell(CopyDone(0), CopyDone(1)).steps[-1].order
    failed = StepsFailed("l0", first, 0, 3, "out of luck", finished=(("a", 0),))
    plan = story.tell(failed, CapacityChanged("g1", 3))
    assert not story.scheduler.pooled, "b has 12 tokens on a device of 12, and needs room for one more"
    chunks = [chunk for step in plan.steps if step.lane == "p" for chunk in step.chunks]
    assert [(chunk.request, chunk.end) for chunk in chunks] == [("b", 13)]

"""A lane's bookkeeping of orders against a literal executor: its bounds always cover what really is under way."""

from __future__ import annotations

from collections import deque

import pytest
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from alignedsched import Lane, Role
from alignedsched.batch import RunningBatch
from alignedsched.errors import ExecutorError
from alignedsched.events import StepsDone, StepsFailed
from alignedsched.lanes import LaneState
from alignedsched.plan import Chunk, Step
from alignedsched.states import OrderState

CHUNKS = (Chunk("r", 0, 1, 0, True),)


def lane_state(run_ahead: int = 0) -> LaneState:
    return LaneState(Lane("l", ("g",), run_ahead), Role.BOTH, (RunningBatch(16),))


def order(number: int, horizon: int, chunks: bool = False) -> Step:
    return Step("l", number, 1 if chunks else horizon, chunks=CHUNKS if chunks else ())


@define
class Taken:
    """An order that took effect in the literal executor."""

    step: Step
    first: int
    told: bool = False


@define
class Executor:
    """Launches and ends steps one by one, as the contract says and not sooner."""

    run_ahead: int
    launched: int = -1
    done: int = -1
    answered: int = -1  # the last step whose report was answered
    pending: deque[Step] = field(factory=deque)
    taken: list[Taken] = field(factory=list)

    def may_launch(self) -> bool:
        if self.launched >= self.answered + self.run_ahead + 1:
            return False
        if self.pending:
            return any(step.chunks for step in self.pending) or self.pending[-1].horizon > 0
        return bool(self.taken) and self.launched < self.taken[-1].first + self.taken[-1].step.horizon - 1

    def launch(self) -> None:
        while self.pending:
            step = self.pending.popleft()
            self.taken.append(Taken(step, self.launched + 1))
            if step.chunks:
                break
        self.launched += 1

    def stop(self) -> None:
        """An order of no steps takes effect as soon as nothing stands before it."""
        if self.pending and self.pending[0].horizon == 0:
            self.taken.append(Taken(self.pending.popleft(), self.launched + 1))
            self.stop()

    def reports(self) -> list[StepsDone]:
        """Everything that can be told now, oldest order first."""
        events = []
        for at, taken in enumerate(self.taken):
            spent = not taken.step.chunks and (at + 1 < len(self.taken) or taken.step.horizon == 0)
            end = self.taken[at + 1].first - 1 if at + 1 < len(self.taken) else self.launched
            through = min(self.done, end)
            if taken.first > self.done + 1 or (through < taken.first and not spent):
                continue
            if through >= taken.first and taken.told and through <= self.answered:
                continue
            if through < taken.first and taken.told:
                continue
            taken.told = True
            events.append(StepsDone("l", taken.step.order, taken.first, through, launched=self.launched))
        return events


class LaneMachine(RuleBasedStateMachine):
    """Any orders, launches and reports that the contract allows."""

    @initialize(run_ahead=st.integers(0, 2))
    def begin(self, run_ahead: int) -> None:
        self.state = lane_state(run_ahead)
        self.executor = Executor(run_ahead)
        self.bounds: dict[int, tuple[int, int]] = {}
        self.told: list[StepsDone] = []

    @rule(horizon=st.integers(0, 5), chunks=st.booleans())
    def issue(self, horizon: int, chunks: bool) -> None:
        if not self.state.may_order():
            return
        step = order(self.state.next_order, horizon, chunks)
        self.bounds[step.order] = self.state.earliest_first(), self.state.latest_first()
        issued = self.state.issue(step)
        assert issued.latest_first == self.bounds[step.order][1]
        self.executor.pending.append(step)
        self.executor.stop()

    @rule(times=st.integers(1, 3))
    def launch(self, times: int) -> None:
        for _ in range(times):
            if self.executor.may_launch():
                self.executor.launch()
                self.executor.stop()

    @rule(ended=st.integers(0, 3), answer=st.booleans(), horizon=st.integers(0, 5), chunks=st.booleans())
    def report(self, ended: int, answer: bool, horizon: int, chunks: bool) -> None:
        executor, state = self.executor, self.state
        executor.done = min(executor.launched, executor.done + ended)
        events = executor.reports()
        for event in events:
            self.take(event)
        if events:
            assert state.exposed() == executor.launched, "a report says exactly what is launched"
            executor.answered = executor.done
            assert state.reported == executor.done
            if answer:
                self.issue(horizon, chunks)
            state.fresh = False

    def take(self, event: StepsDone) -> None:
        state = self.state
        before = state.reported
        assert state.check_report(event)
        assert not state.must_wait(event)
        progress = state.accept(event)
        assert (progress.start, progress.through) == (before + 1, event.through)
        for issued in progress.taken:
            earliest, latest = self.bounds[issued.step.order]
            assert earliest <= event.first <= latest
        assert progress.order.step.order == event.order
        assert state.standing is not None
        assert state.standing.step.order == event.order
        self.told.append(event)
        if event.through >= event.first:
            assert not state.check_report(event), "the same report again is known to be a duplicate"

    @rule()
    def repeat(self) -> None:
        for event in self.told[-4:]:
            if event.through < self.state.reported:
                assert not self.state.check_report(event)

    @invariant()
    def bounds_cover_what_is_under_way(self) -> None:
        if not hasattr(self, "state"):
            return
        state, executor = self.state, self.executor
        assert state.reported == executor.answered
        assert state.reported <= executor.launched <= state.exposed() <= state.reported + executor.run_ahead + 1
        waiting = [step for step in executor.pending if step.chunks]
        unheard = [t for t in executor.taken if t.step.chunks and t.first > state.reported]
        assert state.chunk_orders() == len(waiting) + len(unheard)
        assert state.chunk_orders() <= executor.run_ahead + 1
        following = executor.launched + 1 + len(waiting)  # where a new order would take effect
        assert state.earliest_first() <= following <= state.latest_first()
        if executor.launched == state.reported:
            assert state.earliest_first() == following, "nothing is under way: the bound is met"
        newest = executor.pending[-1] if executor.pending else executor.taken[-1].step if executor.taken else None
        if newest is None or newest.horizon == 0:
            assert not state.may_run()
        elif executor.may_launch():
            assert state.may_run()


LaneMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
TestLane = LaneMachine.TestCase


# -- reports that cannot be true


def standing_lane() -> LaneState:
    """Order 0 stands since step 0 for 10 steps, done through step 3; order 1 (20 steps) is issued; run-ahead 1."""
    state = lane_state(1)
    state.issue(order(0, 10))
    state.accept(StepsDone("l", 0, 0, 3, launched=4))
    state.fresh = False
    state.issue(order(1, 20))
    return state


WRONG: dict[str, tuple[StepsDone | StepsFailed, str]] = {
    "of no order": (StepsDone("l", 2, 4, 4), r"no such order was issued \(the last is 1\)"),
    "of a negative order": (StepsDone("l", -1, 4, 4), "no such order"),
    "of no range": (StepsDone("l", 1, 6, 4), "steps 6 to 4 are no range"),
    "before the first step": (StepsDone("l", 1, -1, 4), "no range"),
    "with another beginning": (StepsDone("l", 0, 1, 5), "took effect at step 0, now at 1"),
    "of an effect in the past": (StepsDone("l", 1, 3, 4), "step 3, but step 3 is done"),
    "of an effect too late": (StepsDone("l", 1, 7, 7), r"later than run_ahead 1 allows \(6\)"),
    "beyond its horizon": (StepsDone("l", 1, 4, 24), "step 24 lies beyond its horizon of 20 steps"),
    "of a failure beyond its horizon": (StepsFailed("l", 1, 4, 24, "x"), "step 25 lies beyond its horizon"),
    "of steps that a later order replaced": (StepsDone("l", 0, 0, 6), "order 1 had to replace it by step 6"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_report_that_cannot_be_true_is_refused_and_changes_nothing(name: str) -> None:
    event, words = WRONG[name]
    state = standing_lane()
    before = repr(state)
    with pytest.raises(ExecutorError, match=words):
        state.check_report(event)
    assert repr(state) == before


def test_a_chunk_order_runs_one_step_and_is_not_skipped() -> None:
    state = lane_state(1)
    state.issue(order(0, 5))
    state.accept(StepsDone("l", 0, 0, 0, launched=1))
    state.issue(order(1, 1, chunks=True))
    state.issue(order(2, 5))
    with pytest.raises(ExecutorError, match=r"order 2: took effect before order 1, which carries prefill chunks"):
        state.check_report(StepsDone("l", 2, 1, 1))
    with pytest.raises(ExecutorError, match=r"order 1 carries prefill chunks and runs exactly one step"):
        state.check_report(StepsDone("l", 1, 2, 1))
    assert state.check_report(StepsDone("l", 1, 1, 1))


def test_a_report_of_a_replaced_order_is_late_unless_it_tells_of_new_steps() -> None:
    state = standing_lane()
    state.accept(StepsDone("l", 1, 5, 6, launched=7))
    assert not state.check_report(StepsDone("l", 0, 0, 4))
    with pytest.raises(ExecutorError, match=r"order 0 was replaced, yet reports step 7 \(done: 6\)"):
        state.check_report(StepsDone("l", 0, 0, 7))


def test_a_report_that_comes_before_its_predecessor_waits() -> None:
    state = standing_lane()
    early = StepsDone("l", 1, 6, 6, launched=7)
    assert state.check_report(early)
    assert state.must_wait(early)
    state.accept(StepsDone("l", 0, 0, 5, launched=7))
    assert not state.must_wait(early)
    assert state.accept(early).through == 6


def test_halting_forgets_every_order() -> None:
    state = standing_lane()
    standing = state.standing
    state.halt()
    assert not state.issued
    assert standing is not None
    assert standing.state is OrderState.REPLACED
    assert (state.standing, state.reported, state.exposed(), state.may_run()) == (None, 3, 3, False)
    state.halt(next_step=40)
    assert (state.reported, state.earliest_first(), state.next_order) == (39, 40, 2)
    assert state.issue(evolve(order(2, 5))).latest_first == 40

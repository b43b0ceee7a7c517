"""The latency collector against a naive model that writes down the time of every single token."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.cluster import Cluster, Device, Lane, Role
from alignedsched.errors import CallerError
from alignedsched.events import Arrived, DeviceBack, DeviceLost, Event, LaneBack, LaneLost, StepsDone, StepsFailed
from alignedsched.metrics import LatencyCollector
from alignedsched.plan import Chunk, Join, Outcome, Plan, Release, Step
from alignedsched.request import Request


@define
class Told:
    """One request as the naive model knows it."""

    arrival: float
    tokens: list[float] = field(factory=list)
    ready: float = 0.0  # prefilled, or since its last step as a member
    pool_wait: float = 0.0


class Play:
    """Random lanes doing random legal things; every token's time is kept, and the collector is told in reports."""

    def __init__(self, rng: random.Random, with_durations: bool) -> None:
        self.rng = rng
        self.with_durations = with_durations
        self.now = 0.0
        self.collector = LatencyCollector()
        self.live: dict[str, Told] = {}
        self.ended: dict[str, tuple[Told, Outcome]] = {}
        self.members: dict[str, set[str]] = {"a": set(), "b": set()}
        self.next_step = {"a": 0, "b": 7}
        self.order = 0
        self.arrived = 0
        self.done: set[str] = set()  # finished, not reported yet
        # By lane, who is in orders that no report has named yet: nobody may use them elsewhere until one does.
        self.held: dict[str, set[str]] = {"a": set(), "b": set()}

    def tell(self, events: list[Event], plan: Plan, durations: dict[str, list[float]] | None = None) -> None:
        arrays = {lane: np.array(each) for lane, each in (durations or {}).items()} if self.with_durations else None
        self.collector.observe(self.now, events, plan, arrays)

    def arrive(self) -> None:
        name = f"r{self.arrived}"
        self.arrived += 1
        self.now += self.rng.random()
        self.live[name] = Told(self.now)
        self.tell([Arrived(Request(name, 10, arrival=self.now))], Plan())

    def idle(self) -> None:
        self.now += self.rng.random() * 3

    def orders(self, lane: str) -> Step:
        """A random order for the lane; the naive membership follows at once (it takes effect at the next step)."""
        rng, mine = self.rng, self.members[lane]
        self.order += 1
        everywhere = self.members["a"] | self.members["b"] | self.done | self.held["b" if lane == "a" else "a"]
        leaves = [name for name in sorted(mine) if rng.random() < 0.2]
        ready = [name for name, told in self.live.items() if told.tokens and name not in everywhere]
        joins = [name for name in ready if rng.random() < 0.5]
        # Whoever is in no batch may be prefilled: for the first time, or again after losing its KV.
        chunks = [name for name in self.live if name not in everywhere and name not in joins and rng.random() < 0.4]
        self.held[lane].update(leaves, joins)
        mine.difference_update(leaves)
        mine.update(joins)
        return Step(
            lane,
            self.order,
            horizon=1 if chunks else 99,
            joins=tuple(Join(name, 11) for name in joins),
            leaves=tuple(leaves),
            chunks=tuple(Chunk(name, 0, 10, last=rng.random() < 0.7) for name in chunks),
        )

    def run(self, step: Step, count: int) -> tuple[StepsDone, list[float]]:
        """Run ``count`` steps of the order now, and make its report; finishes only on the way."""
        rng, lane = self.rng, step.lane
        first = self.next_step[lane]
        share = rng.random() + 0.01
        durations, finished = [], []
        for number in range(first, first + count):
            seconds = rng.random() + 0.01 if self.with_durations else share
            begin, self.now = self.now, self.now + seconds
            durations.append(seconds)
            for name in sorted(self.members[lane]):
                told = self.live[name]
                if told.ready >= 0.0:
                    told.pool_wait += begin - told.ready
                told.ready = -1.0
                told.tokens.append(self.now)
                if rng.random() < 0.1:
                    finished.append((name, number))
                    self.done.add(name)
                    self.members[lane].discard(name)
        self.next_step[lane] += count
        prefilled = tuple(chunk.request for chunk in step.chunks) if count else ()
        for chunk in step.chunks if count else ():
            if chunk.last:
                told = self.live[chunk.request]
                if not told.tokens:
                    told.ready = self.now
                told.tokens.append(self.now)
                if rng.random() < 0.2:
                    finished.append((chunk.request, first))
                    self.done.add(chunk.request)
        rng.shuffle(finished)
        through = first + count - 1
        return StepsDone(lane, step.order, first, through, tuple(finished), prefilled, sum(durations)), durations

    def turn(self) -> None:
        """One or two orders in a row, reported in one call or several, some of them replaced before they ran."""
        rng = self.rng
        lane = rng.choice(["a", "b"])
        reports: list[Event] = []
        spent: list[float] = []
        for _ in range(rng.choice([1, 1, 2])):
            before = set(self.members[lane])
            step = self.orders(lane)
            self.tell([], Plan(steps=(step,)))
            for name in before - self.members[lane]:
                told = self.live[name]
                if told.ready < 0.0:
                    told.ready = told.tokens[-1]
            if not reports:
                self.idle()
            count = 1 if step.chunks else rng.choice([0, 0, 1, 2, 5])
            if count == 0 and rng.random() < 0.5:
                continue  # never named: it takes effect with the next order that is
            report, durations = self.run(step, count)
            spent += durations
            reports.append(report)
            if rng.random() < 0.3:
                self.flush(lane, reports, spent)
                reports, spent = [], []
                self.idle()
        self.flush(lane, reports, spent)

    def flush(self, lane: str, reports: list[Event], spent: list[float]) -> None:
        # Unless the lane's last order is one that no report named.
        if any(isinstance(event, StepsDone) and event.order == self.order for event in reports):
            self.held[lane].clear()
        done = [name for event in reports if isinstance(event, StepsDone) for name, _ in event.finished]
        outcomes = dict.fromkeys(done, Outcome.FINISHED)
        waiting = [name for name in self.live if name not in self.members["a"] | self.members["b"]]
        if waiting and self.rng.random() < 0.1:
            outcomes.setdefault(self.rng.choice(waiting), Outcome.CANCELLED)
        releases = tuple(Release(name, outcome) for name, outcome in outcomes.items())
        self.tell(reports, Plan(releases=releases), {lane: spent})
        if self.rng.random() < 0.2:
            self.tell(reports, Plan())  # a duplicate report
        self.done.clear()
        for name, outcome in outcomes.items():
            self.ended[name] = (self.live.pop(name), outcome)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), turns=st.integers(1, 40), with_durations=st.booleans())
def test_every_figure_equals_that_of_a_per_token_model(seed: int, turns: int, with_durations: bool) -> None:
    play = Play(random.Random(seed), with_durations)
    for _ in range(turns):
        for _ in range(play.rng.choice([0, 1, 3])):
            play.arrive()
        play.turn()
    finished = [told for told, outcome in play.ended.values() if outcome is Outcome.FINISHED]
    columns, figures = play.collector.finished_columns(), play.collector.figures()
    several = [told for told in finished if len(told.tokens) > 1]
    assert columns["tokens"].tolist() == [len(told.tokens) for told in finished]
    assert figures["ttft"] == pytest.approx([told.tokens[0] - told.arrival for told in finished], rel=1e-9, abs=1e-9)
    assert figures["e2e"] == pytest.approx([told.tokens[-1] - told.arrival for told in finished], rel=1e-9, abs=1e-9)
    assert figures["pool_wait"] == pytest.approx([told.pool_wait for told in finished], rel=1e-9, abs=1e-9)
    spans = [(told.tokens[-1] - told.tokens[0], told.pool_wait, len(told.tokens) - 1) for told in several]
    assert figures["tpot"] == pytest.approx([span / n for span, _, n in spans], rel=1e-9, abs=1e-9)
    assert figures["tpot_decoding"] == pytest.approx([(span - wait) / n for span, wait, n in spans], rel=1e-9, abs=1e-9)
    told_all = [*play.live.values(), *(told for told, _ in play.ended.values())]
    gaps = np.concatenate([np.diff(told.tokens) for told in told_all] or [np.zeros(0)])
    summary = play.collector.summary()["itl"]
    assert play.collector._gaps.count == len(gaps)
    if len(gaps):
        assert summary["mean"] == pytest.approx(gaps.mean(), rel=1e-9)
        assert summary["max"] == pytest.approx(gaps.max(), rel=1e-9)
        assert summary["p50"] == pytest.approx(np.quantile(gaps, 0.5, method="inverted_cdf"), rel=2e-3)
    assert play.collector.output_tokens == sum(len(told.tokens) for told, _ in play.ended.values())
    counts: dict[str, int] = defaultdict(int, arrived=play.arrived)
    for _, outcome in play.ended.values():
        counts[outcome.value] += 1
    assert play.collector.requests == {name: counts[name] for name in play.collector.requests}


def prefilled(*names: str, lane: str = "a") -> LatencyCollector:
    """A collector whose requests arrived at 0 and got their first token at 1, in step 0 of the lane."""
    cluster = Cluster((Device("g", Role.BOTH, 100),), (Lane("a", ("g",)),))
    collector = LatencyCollector(cluster)
    chunks = tuple(Chunk(name, 0, 10, last=True) for name in names)
    arrivals = [Arrived(Request(name, 10)) for name in names]
    collector.observe(0.0, arrivals, Plan(steps=(Step(lane, 0, 1, chunks=chunks),)))
    joins = tuple(Join(name, 11) for name in names)
    report = StepsDone(lane, 0, 0, 0, prefilled=names, seconds=1.0)
    collector.observe(1.0, [report], Plan(steps=(Step(lane, 1, 9, joins=joins),)))
    return collector


def test_steps_under_the_old_order_count_for_the_old_members() -> None:
    collector = prefilled("x", "y")
    collector.observe(2.0, [StepsDone("a", 1, 1, 1, seconds=1.0)], Plan(steps=(Step("a", 2, 9, leaves=("x",)),)))
    # Order 2 took effect at step 3 only: step 2 ran with x too.
    report = StepsDone("a", 2, 3, 4, finished=(("y", 4),), seconds=3.0)
    ends = (Release("x", Outcome.FINISHED), Release("y", Outcome.FINISHED))
    collector.observe(5.0, [report], Plan(releases=ends))
    columns = collector.finished_columns()
    assert columns["tokens"].tolist() == [3, 5]
    assert columns["last"].tolist() == [3.0, 5.0]


@pytest.mark.parametrize("device", [False, True])
def test_a_lost_lane_sends_its_members_to_the_pool(device: bool) -> None:
    collector = prefilled("x")
    collector.observe(2.0, [StepsDone("a", 1, 1, 1, seconds=1.0)], Plan())
    collector.observe(3.0, [DeviceLost("g") if device else LaneLost("a")], Plan())
    back = DeviceBack("g", 40) if device else LaneBack("a", 40)
    collector.observe(7.0, [back], Plan(steps=(Step("a", 5, 9, joins=(Join("x", 12),)),)))
    report = StepsDone("a", 5, 40, 41, finished=(("x", 41),), seconds=2.0)
    collector.observe(10.0, [report], Plan(releases=(Release("x", Outcome.FINISHED),)))
    figures = collector.figures()
    assert figures["pool_wait"].tolist() == [6.0]  # from 2 (its last step) to 8 (the start of step 40)
    assert collector.finished_columns()["tokens"].tolist() == [4]
    assert collector.summary()["itl"]["max"] == 7.0


def test_a_failed_step_counts_what_was_done_before_it() -> None:
    collector = prefilled("x")
    failed = StepsFailed("a", 1, 1, 2, reason="out of memory", poisoned=("x",))
    collector.observe(5.0, [failed], Plan(releases=(Release("x", Outcome.FAILED),)))
    assert collector.requests["failed"] == 1
    assert collector.output_tokens == 3
    assert collector.summary()["itl"]["mean"] == 2.0  # no seconds reported: what passed since the last step, shared


def test_nothing_finished_gives_null_and_never_nan() -> None:
    summary = LatencyCollector().summary()
    assert {value for figure in summary.values() for value in figure.values()} == {None}


def test_one_token_has_no_tpot() -> None:
    collector = prefilled("x")
    collector.observe(1.0, [], Plan(releases=(Release("x", Outcome.FINISHED),)))
    summary = collector.summary()
    assert summary["tpot"]["mean"] is None
    assert summary["ttft"]["max"] == summary["e2e"]["max"] == 1.0
    assert summary["pool_wait"]["max"] == 0.0


def test_too_few_durations_are_refused() -> None:
    collector = prefilled("x")
    with pytest.raises(CallerError, match="newly reports 2 steps"):
        collector.observe(3.0, [StepsDone("a", 1, 1, 2, seconds=2.0)], Plan(), {"a": np.array([1.0])})

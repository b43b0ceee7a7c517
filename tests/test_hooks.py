"""Hooks: every policy in an engine that keeps its own books, whatever the engine does with what it is told."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignedsched.adapters.hooks import DEVICE, HOST, TO_DEVICE, Decision, Hooks, Queued, Resident, Sacrifice
from alignedsched.adapters.step_log import StepLog, read_step_log
from alignedsched.cluster import Cluster, Device, Lane, Role
from alignedsched.costs import AffineCosts
from alignedsched.errors import CallerError, ConfigError, PolicyError
from alignedsched.policies import Composition, Policy, Transfer, fcfs
from alignedsched.registry import policy as policy_named
from alignedsched.request import Request
from alignedsched.sim.run import run as simulate
from alignedsched.views import LaneView
from alignedsched.workloads import Workload
from benchmarks import hooks_cost
from tests.notes import Notes
from tests.toy_engine import ToyEngine

POLICIES = ("fcfs", "cost_aligned", "density_first", "waves", "buckets", "sjf")
BALANCED = AffineCosts(5e-3, 1e-5, 1e-7)
PADDED = AffineCosts(2e-3, 1e-5, 5e-7, surface="padded")
GATED = AffineCosts(2e-3, 1e-5, 1e-7, 4e-6, surface="gated", gate=8.0)
COSTS = (None, BALANCED, PADDED, GATED)


def hooks_of(policy: str | Policy, blocks: int = 4000, **options: Any) -> Hooks:
    given: dict[str, Any] = {"block_size": 16, "capacity_blocks": blocks, "max_members": 64, **options}
    return Hooks(policy, **given)


def mixed(n: int, seed: int = 0, longest: int = 3000) -> dict[str, tuple[int, int]]:
    draw = random.Random(seed)
    return {f"r{i}": (draw.choice([20, 50, 120, 700, longest]), draw.randint(1, 80)) for i in range(n)}


def check_step(engine: ToyEngine, resident: Resident, queued: Queued, decision: Decision) -> None:
    """What holds of every decision."""
    assert resident.left is not None
    assert resident.places is not None
    gone = {request for request, _ in decision.victims}
    ready = {
        r
        for r, left, place in zip(resident.ids, resident.left, resident.places, strict=True)
        if not left and place == DEVICE and r not in gone
    }
    assert set(decision.decode) <= ready
    assert set(decision.parked) <= ready
    assert not set(decision.decode) & set(decision.parked)
    assert ready == {*decision.decode, *decision.parked, *decision.to_host}
    lengths = dict(zip(resident.ids, resident.lengths, strict=True))
    ordered = [lengths[r] for r in decision.decode]
    assert ordered == sorted(ordered, reverse=True)
    assert {take.request for take in decision.prefill} <= {*resident.ids, *queued.ids} - gone
    moving = any(place not in (DEVICE, HOST) for place in resident.places)
    if resident.ids or queued.ids:
        under_way = decision.prefill or decision.to_device or decision.to_host or moving
        assert decision.decode or under_way, "an empty step although work waits"
    _check_books(engine.hooks, resident, queued, gone)


def _check_books(hooks: Hooks, resident: Resident, queued: Queued, gone: Iterable[str]) -> None:
    """The board is what the columns say, however it came there."""
    board = hooks._board
    assert board.rows.keys() | set(gone) == {*resident.ids, *gone}
    for request, length in zip(resident.ids, resident.lengths, strict=True):
        if request not in gone:
            assert board.length(board.rows[request]) == length
    waiting = {request for _, request in board.queue.rows()}
    assert waiting == {*queued.ids, *(r for r in gone if r in board.queue)}
    assert len(board.batch) + len(board.pool) + len(board.prefilling) + len(board.joining) + len(
        board.candidates
    ) == len(board.rows)


@pytest.mark.parametrize("policy", POLICIES)
@given(
    seed=st.integers(0, 10**6),
    requests=st.integers(1, 25),
    blocks=st.sampled_from([220, 400, 5000]),
    host=st.sampled_from([0, 100, 3000]),
    copy_steps=st.sampled_from([0, 3]),
    every=st.sampled_from([0, 1, 7]),
    unwilling=st.sampled_from([0.0, 0.0, 0.2]),
    costs=st.sampled_from(COSTS),
)
@settings(max_examples=25)
def test_any_policy_serves_everybody_in_any_engine(
    policy: str, seed: int, requests: int, blocks: int, host: int, copy_steps: int, every: int, unwilling: float,
    costs: AffineCosts | None,
) -> None:  # fmt: skip
    made = hooks_of(policy, blocks, host_blocks=host, max_members=1 + seed % 40, max_tokens=700, costs=costs)
    engine = ToyEngine(
        made, mixed(requests, seed), blocks, host_blocks=host, copy_steps=copy_steps, every=every,
        unwilling=unwilling, costs=costs or BALANCED, seed=seed, watch=check_step,
    )  # fmt: skip
    engine.run()
    assert {r: engine.made[r] for r in engine.asks} == {r: output for r, (_, output) in engine.asks.items()}


@given(
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 10**6),
    requests=st.integers(1, 60),
    blocks=st.sampled_from([220, 500, 20_000]),
    members=st.integers(1, 40),
    costs=st.sampled_from([BALANCED, PADDED, GATED]),
)
@example(policy="sjf", seed=97_406, requests=66, blocks=200, members=5, costs=GATED)  # who made room came back at once
@example(
    policy="cost_aligned", seed=181_635, requests=65, blocks=260, members=33, costs=PADDED
)  # ends in their prefill
def test_an_engine_with_hooks_does_step_for_step_what_the_scheduler_does(
    policy: str, seed: int, requests: int, blocks: int, members: int, costs: AffineCosts
) -> None:
    """The other way to use a policy, through a Scheduler, is the model: the same steps, ends and preemptions."""
    asks = {f"r{i}": ask for i, ask in enumerate(mixed(requests, seed).values())}
    hooks = hooks_of(policy, blocks, costs=costs, max_members=members, max_tokens=700)
    engine = ToyEngine(hooks, asks, blocks, costs=costs).run()
    lane = Lane("lane", ("gpu",), max_members=members, max_tokens=700)
    cluster = Cluster((Device("gpu", Role.BOTH, blocks),), (lane,))
    prompts, outputs = (np.array(column) for column in zip(*asks.values(), strict=True))
    figures = simulate(
        Workload("offline", np.zeros(requests), prompts, outputs), cluster, costs, policy_named(policy)
    ).figures
    assert engine.steps == figures["steps"]
    assert engine.now == pytest.approx(figures["simulated_s"], rel=1e-9)
    assert engine.counts.get("recompute", 0) == figures["preemptions"]
    mean = figures["latency_s"]["e2e"]["mean"]
    assert sum(engine.ended.values()) / requests == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("policy", POLICIES)
def test_redundant_ranks_decide_the_same(policy: str) -> None:
    second = hooks_of(policy, 400, host_blocks=500, costs=PADDED)

    def same(engine: ToyEngine, resident: Resident, queued: Queued, decision: Decision) -> None:
        copies = evolve(resident, ids=tuple(resident.ids), lengths=tuple(resident.lengths))
        again = second.decide(
            engine.now, copies, queued, free_blocks=engine.free, free_host_blocks=engine.host_free,
            seconds=engine.seconds,
        )  # fmt: skip
        assert again == decision

    engine = ToyEngine(
        hooks_of(policy, 400, host_blocks=500, costs=PADDED), mixed(40, 3), 400, host_blocks=500, costs=PADDED,
        copy_steps=2, every=2, watch=same,
    )  # fmt: skip
    engine.run()


def test_fcfs_is_continuous_batching() -> None:
    """Whoever can decode does, and who queues begins in order as soon as there are seats and blocks."""

    def naive(engine: ToyEngine, resident: Resident, queued: Queued, decision: Decision) -> None:
        assert resident.left is not None
        ready = [r for r, left in zip(resident.ids, resident.left, strict=True) if not left]
        assert set(ready) == set(decision.decode)
        free, seats = engine.free, 8 - len(resident.ids)
        free -= sum(engine.size(engine.held[r].stored + 1) - engine.size(engine.held[r].stored) for r in ready)
        free -= sum(
            engine.size(h.target + 1) - engine.size(h.stored) for h in engine.held.values() if h.target > h.stored
        )
        tokens = 600 - len(ready) - sum(left for left in resident.left)
        begun = []
        for request, prompt in zip(queued.ids, queued.tokens, strict=True):
            need = engine.size(prompt + 1)
            if tokens <= 0 or seats <= 0 or need > free:
                break
            begun.append(request)
            tokens, seats, free = tokens - prompt, seats - 1, free - need
        assert [t.request for t in decision.prefill if t.request in engine.queue] == begun

    made = hooks_of("fcfs", 3000, max_members=8, max_tokens=600)
    engine = ToyEngine(made, mixed(40, 1, longest=900), 3000, watch=naive).run()
    assert not engine.counts


def served(policy: str, costs: AffineCosts) -> ToyEngine:
    # Long answers after few long and many short prompts: what groups are for.
    asks = {f"r{i}": (4000 if i % 8 == 0 else 60 + i, 300) for i in range(64)}
    hooks = hooks_of(policy, 20_000, costs=costs, max_members=48)
    return ToyEngine(hooks, asks, 20_000, costs=costs, every=2, watch=check_step).run()


def test_rounds_gain_where_padding_costs_and_are_absent_where_attention_is_balanced() -> None:
    plain, aligned = served("fcfs", PADDED), served("cost_aligned", PADDED)
    assert aligned.now < 0.8 * plain.now
    assert aligned.counts["soft parks"] > 50
    same = served("cost_aligned", BALANCED)
    assert same.ended == served("fcfs", BALANCED).ended
    assert not same.counts


def test_what_is_learned_corrects_published_costs() -> None:
    """Published as balanced, padded in truth: the policy finds out from the seconds it is told and begins rounds."""
    asks = {f"r{i}": (4000 if i % 8 == 0 else 60 + i, 400) for i in range(64)}
    published = AffineCosts(2e-3, 1e-5, 5e-7)
    engine = ToyEngine(hooks_of("cost_aligned", 20_000, costs=published), asks, 20_000, costs=PADDED, every=3).run()
    assert engine.counts.get("soft parks", 0) > 20


def test_a_plain_step_returns_the_very_same_decision() -> None:
    hooks = hooks_of("cost_aligned", costs=GATED)
    first = hooks.decide(0.0, Resident(["a", "b"], [40, 900]), free_blocks=1000)
    assert first.decode == ("b", "a")
    second = hooks.decide(0.1, Resident(["a", "b"], [41, 901]), free_blocks=999)
    assert second is first
    third = hooks.decide(0.2, Resident(["a"], [42]), free_blocks=1100)
    assert third.decode == ("a",)


def test_speculation_several_tokens_at_a_time() -> None:
    hooks = hooks_of("fcfs")
    lengths = {"a": 40, "b": 900, "c": 300}
    for step in range(30):
        decision = hooks.decide(step / 10, Resident([*lengths], [*lengths.values()]), free_blocks=1000)
        assert sorted(decision.decode) == ["a", "b", "c"]
        lengths = {r: length + 1 + (step + i) % 3 for i, (r, length) in enumerate(lengths.items())}
        assert [hooks._board.length(hooks._board.rows[r]) for r in decision.decode] == sorted(
            (hooks._board.length(row) for row in hooks._board.rows.values()), reverse=True
        )


def test_a_request_told_by_enqueue_keeps_what_was_told() -> None:
    hooks = hooks_of(fcfs(by_priority=True), max_tokens=100)
    hooks.enqueue(Request("late", 90, priority=5))
    hooks.enqueue(Request("early", 80))
    with pytest.raises(CallerError, match="'late' queues already"):
        hooks.enqueue(Request("late", 90))
    decision = hooks.decide(0.0, Resident(), free_blocks=100)
    assert [(t.request, t.tokens) for t in decision.prefill] == [("late", 90), ("early", 10)]
    begun = Resident(["late", "early"], [91, 81], left=[0, 70])
    decision = hooks.decide(0.1, begun, free_blocks=90)
    assert decision.decode == ("late",)
    assert [(t.request, t.tokens) for t in decision.prefill] == [("early", 70)]
    assert hooks._view.entry("late").priority == 5
    assert hooks._view.entry("late").produced == 1


def test_a_preempted_request_comes_before_newer_ones() -> None:
    hooks = hooks_of("fcfs", max_tokens=1000)
    hooks.decide(0.0, Resident(["old"], [40]), Queued(["new"], [20]), free_blocks=100)
    # The engine preempts on its own account, and says so by where the request now stands.
    decision = hooks.decide(0.1, Resident(), Queued(["new", "old"], [20, 40], produced=[0, 1]), free_blocks=100)
    assert [t.request for t in decision.prefill] == ["old", "new"]


def test_whoever_is_gone_has_ended_and_history_hears_of_it() -> None:
    listener = Notes()
    hooks = hooks_of(evolve(fcfs(), watches=(listener,)))
    hooks.decide(0.0, Resident(["a", "b", "c"], [40, 50, 60], produced=[3, 1, 1]), free_blocks=99)
    hooks.decide(0.1, Resident(["b", "c"], [51, 61]), free_blocks=99)
    assert listener.ends == [("a", 4, True)]  # with the token of its last step
    hooks.end("b", produced=7, finished=False)
    hooks.end("nobody")
    hooks.decide(0.2, Resident(["c"], [62]), free_blocks=99)
    assert listener.ends[1:] == [("b", 7, False)]


def test_steps_are_told_with_their_loads_and_seconds(tmp_path: Any) -> None:
    listener = Notes()
    path = tmp_path / "steps.csv"
    with StepLog(path) as log:
        hooks = hooks_of(evolve(fcfs(), watches=(listener,)), log=log)
        hooks.decide(0.0, Resident(["a", "b"], [40, 50]), free_blocks=99)
        for step in range(1, 4):
            hooks.decide(step / 10, Resident(["a", "b"], [40 + step, 50 + step]), free_blocks=99, seconds=0.1)
        hooks.decide(0.4, Resident(["b"], [54]), Queued(["c"], [30]), free_blocks=99, seconds=0.2)
        hooks.decide(0.5, Resident(["b", "c"], [55, 31]), free_blocks=99, seconds=0.3)
    assert [(f.loads[0].n, f.loads[0].total, f.loads[0].longest, f.steps) for f in listener.steps] == [
        (2, 90, 50, 4),
        (1, 54, 54, 1),
    ]
    assert listener.steps[0].seconds == pytest.approx(0.5)
    assert listener.steps[1].loads[0].chunks == ((0, 30),)
    lines = [(line.n, line.total, line.longest, line.prefill, line.ms) for line in read_step_log(path)]
    assert lines == [
        (2, 90, 50, 0, 100),
        (2, 92, 51, 0, 100),
        (2, 94, 52, 0, 100),
        (2, 96, 53, 0, 200),
        (1, 54, 54, 30, 300),
    ]


def test_victims_are_named_before_the_step_and_free_enough() -> None:
    hooks = hooks_of("fcfs", 12)
    hooks.decide(0.0, Resident(["a", "b", "c"], [64, 64, 64]), free_blocks=0)
    decision = hooks.decide(0.1, Resident(["a", "b", "c"], [65, 65, 65]), free_blocks=0)
    assert decision.victims == (("c", Sacrifice.RECOMPUTE),)
    assert decision.decode == ("b", "a")
    assert "3 blocks short" in decision.reasons["c"]
    # The engine keeps it: the columns are the truth, and it is named again.
    again = hooks.decide(0.2, Resident(["a", "b", "c"], [65, 65, 65]), free_blocks=0)
    assert again.victims == decision.victims


def test_victims_are_told_once_and_do_not_come_back_in_the_next_breath() -> None:
    hooks = hooks_of("fcfs", 12)
    hooks.decide(0.0, Resident(["a", "b", "c"], [64, 64, 64]), free_blocks=0)
    assert hooks.decide(0.1, Resident(["a", "b", "c"], [65, 65, 65]), free_blocks=0).victims
    after = hooks.decide(0.2, Resident(["a", "b"], [66, 66]), Queued(["c"], [64], produced=[1]), free_blocks=2)
    assert (after.decode, after.victims, after.prefill) == (("b", "a"), (), ())
    room = hooks.decide(0.3, Resident(["a"], [67]), free_blocks=7)
    assert [take.request for take in room.prefill] == ["c"]


def test_who_ends_in_its_own_prefill_has_ended() -> None:
    listener = Notes()
    hooks = hooks_of(evolve(fcfs(), watches=(listener,)), max_tokens=100)
    hooks.decide(0.0, Resident(), Queued(["done", "gone"], [60, 50]), free_blocks=50)
    hooks.decide(0.1, Resident(), Queued(), free_blocks=50)  # the second was begun only in part, and cancelled
    assert listener.ends == [("done", 1, True)]


def test_a_lone_request_that_outgrew_the_device_goes_on_and_says_what_is_short() -> None:
    hooks = hooks_of("fcfs", 4)
    hooks.decide(0.0, Resident(["a"], [64]), free_blocks=0)
    decision = hooks.decide(0.1, Resident(["a"], [65]), free_blocks=0)
    assert (decision.decode, decision.short, decision.victims) == (("a",), 1, ())


class Nothing:
    """A batching policy that chooses nothing."""

    def compose(self, view: LaneView) -> Composition:
        return Composition()

    def victims(self, view: LaneView, rank: int, blocks: int) -> tuple[()]:
        return ()

    def taken(self, view: LaneView, composition: Composition) -> None: ...
    def state(self) -> None: ...
    def load(self, state: object) -> None: ...


def test_a_policy_that_chooses_nothing_is_overruled_when_its_time_is_over() -> None:
    resident = Resident(["a", "b"], [40, 50])
    at_once = hooks_of(evolve(fcfs(), name="nothing", batching=Nothing()))
    decision = at_once.decide(0.0, resident, free_blocks=9)
    assert decision.overruled
    assert decision.decode == ("b", "a")
    patient = hooks_of(evolve(fcfs(), name="nothing", batching=Nothing(), may_idle_s=2.0))
    decision = patient.decide(10.0, resident, free_blocks=9)
    assert (decision.decode, decision.wake_at, decision.overruled) == ((), 12.0, False)
    assert patient.decide(11.0, resident, free_blocks=9).decode == ()
    assert patient.decide(12.0, resident, free_blocks=9).decode == ("b", "a")


def test_kv_on_the_host_comes_back_and_joins_when_it_is_there() -> None:
    hooks = hooks_of("fcfs", host_blocks=100)

    def decide(places: list[str], length: int) -> Decision:
        return hooks.decide(
            0.0, Resident(["a", "b"], [40 + length, 50], places=places), free_blocks=90, free_host_blocks=90
        )

    decision = decide([DEVICE, HOST], 0)
    assert (decision.decode, decision.to_device) == (("a",), ("b",))
    assert decide([DEVICE, TO_DEVICE], 1).to_device == ()
    arrived = decide([DEVICE, DEVICE], 2)
    assert arrived.decode == ("b", "a")
    assert arrived.reasons["b"] == "its KV has arrived"


def test_a_policy_that_raises_is_named_and_the_next_call_decides_afresh() -> None:
    class Raising(Nothing):
        calls = 0

        def compose(self, view: LaneView) -> Composition:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("broken")
            return Composition(joins=list(view.pool.by_order()))

    hooks = hooks_of(evolve(fcfs(), name="raising", batching=Raising()))
    with pytest.raises(PolicyError, match="policy 'raising': raised RuntimeError: broken"):
        hooks.decide(0.0, Resident(["a"], [40]), free_blocks=9)
    assert hooks.decide(0.0, Resident(["a"], [40]), free_blocks=9).decode == ("a",)


def test_whatever_a_policy_does_before_it_raises_the_columns_are_the_truth() -> None:
    class Raising(Nothing):
        calls = 0

        def compose(self, view: LaneView) -> Composition:
            self.calls += 1
            members = list(view.ranks[0].batch)
            return Composition(joins=list(view.pool.by_order()), parks=members[:1], wake_at=0.2)

        def taken(self, view: LaneView, composition: Composition) -> None:
            if self.calls == 2:
                raise RuntimeError("broken")

    hooks = hooks_of(evolve(fcfs(), batching=Raising()))
    first = hooks.decide(0.0, Resident(["a", "b"], [40, 50]), free_blocks=9)
    assert first.decode == ("b", "a")
    with pytest.raises(PolicyError):  # after it was parked
        hooks.decide(0.3, Resident(["a", "b"], [41, 51]), Queued(["c"], [300]), free_blocks=9)
    # The engine has gone on with both, as it was told before.
    after = hooks.decide(0.4, Resident(["a", "b"], [42, 52]), free_blocks=9)
    assert {*after.decode, *after.parked} == {"a", "b"}
    lengths = {request: hooks._board.length(row) for request, row in hooks._board.rows.items()}
    assert lengths == {"a": 42, "b": 52}


def test_a_queue_told_again_is_no_news() -> None:
    hooks = hooks_of("fcfs", max_members=1)
    queue = Queued(["q"], [30])
    first = hooks.decide(0.0, Resident(["a"], [40]), queue, free_blocks=9)
    assert hooks.decide(0.1, Resident(["a"], [41]), Queued(["q"], [30]), free_blocks=9) is first
    assert hooks.decide(0.2, Resident(["a"], [42]), free_blocks=9) is first
    assert hooks.decide(0.3, Resident(["a"], [43]), Queued(), free_blocks=9) is not first


def test_proposals_that_make_no_sense_are_passed_over() -> None:
    class Wild(Nothing):
        def compose(self, view: LaneView) -> Composition:
            return Composition(joins=["nobody", "a", "a", "b"], parks=["b", "ghost"], unclaims=["x"], candidates=["y"])

    class Carrying:
        def place(self, view: LaneView) -> list[Transfer]:
            return [Transfer("ghost", "gpu"), Transfer("a", "host"), Transfer("b", "moon"), Transfer("b", "gpu")]

    hooks = hooks_of(evolve(fcfs(), batching=Wild(), residency=Carrying()), host_blocks=100)
    decision = hooks.decide(0.0, Resident(["a", "b"], [40, 50]), free_blocks=9, free_host_blocks=99)
    assert (decision.decode, decision.to_host, decision.to_device) == (("b", "a"), (), ())


ROWS = {"ids": ["a", "b"], "lengths": [40, 50]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"lengths": [40]}, r"Resident.lengths has 1 rows, ids has 2"),
        ({"ids": ["a", "a"]}, r"Resident.ids\[1\] \(request 'a'\): must be an id that stands once; row 0 has it too"),
        ({"ids": ["a", ""]}, r"Resident.ids\[1\].*must be a non-empty string, got ''"),
        ({"ids": ["a", 7]}, r"Resident.ids\[1\].*must be a non-empty string, got 7"),
        ({"ids": ["a", []]}, r"Resident.ids\[1\].*must be a non-empty string, got an empty list"),
        ({"lengths": [40, 1]}, r"Resident.lengths\[1\] \(request 'b'\): must be an integer of at least 2.*, got 1"),
        ({"lengths": [40, 5.5]}, r"Resident.lengths\[1\] \(request 'b'\).*got 5.5"),
        ({"left": [0, -1]}, r"Resident.left\[1\] \(request 'b'\): must be an integer of at least 0, got -1"),
        ({"left": [0, 50]}, r"Resident.left\[1\] .*: must be less than the context length 50, got 50"),
        ({"places": [DEVICE, "moon"]}, r"Resident.places\[1\] .*: must be one of device, host.*got 'moon'"),
        ({"produced": [1, 50]}, r"Resident.produced\[1\] .*: must be less than the 50 tokens the request has, got 50"),
        ({"limits": [None, 0]}, r"Resident.limits\[1\] .*: must be an integer of at least 1, or None, got 0"),
        ({"since": [0.0, float("nan")]}, r"Resident.since\[1\] .*: must be finite seconds"),
        ({"priorities": [0, None]}, r"Resident.priorities\[1\] .*: must be an integer, got None"),
    ],
)
def test_a_bad_column_is_named_with_its_row_and_nothing_changes(columns: dict[str, Any], message: str) -> None:
    fresh, known = hooks_of("fcfs"), hooks_of("fcfs")
    with pytest.raises(CallerError, match=message):
        fresh.decide(5.0, Resident(**{**ROWS, **columns}), free_blocks=9)
    assert fresh._board.now == 0.0
    assert not fresh._board.rows
    assert fresh.decide(0.0, Resident(**ROWS), free_blocks=9).decode == ("b", "a")  # type: ignore[arg-type]
    known.decide(0.0, Resident(["c"], [20]), free_blocks=9)
    with pytest.raises(CallerError, match=message):
        known.decide(0.1, Resident(**{**ROWS, **columns}), free_blocks=9)
    assert [*known._board.rows] == ["c"]
    assert known.decide(0.1, Resident(["c"], [21]), free_blocks=9).decode == ("c",)


@pytest.mark.parametrize(
    ("queued", "message"),
    [
        (Queued(["a"], [5]), r"Queued.ids\[0\] .*: must be no request that Resident has too, got 'a'"),
        (Queued(["q"], [0]), r"Queued.tokens\[0\] \(request 'q'\): must be an integer of at least 1, got 0"),
        (Queued(["q"], [5], produced=[5]), r"Queued.produced\[0\] .*: must be less than the 5 tokens"),
        (Queued(["q", "q"], [5, 5]), r"Queued.ids\[1\] .*stands once"),
    ],
)
def test_a_bad_queue_is_named_and_nothing_changes(queued: Queued, message: str) -> None:
    hooks = hooks_of("fcfs")
    with pytest.raises(CallerError, match=message):
        hooks.decide(0.0, Resident(**ROWS), queued, free_blocks=9)  # type: ignore[arg-type]
    assert not hooks._board.rows
    assert not len(hooks._board.queue)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"now": float("inf")}, "now must be finite seconds"),
        ({"seconds": -1.0}, "seconds must be finite seconds"),
        ({"free_blocks": -1}, "free_blocks must be an integer of at least 0, got -1"),
        ({"free_host_blocks": 0.5}, "free_host_blocks must be an integer"),
    ],
)
def test_bad_numbers_are_named(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"now": 0.0, "free_blocks": 9, **options}
    with pytest.raises(CallerError, match=message):
        hooks_of("fcfs").decide(given.pop("now"), Resident(), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be an integer of at least 1"),
        ({"capacity_blocks": 1.5}, "capacity_blocks must be"),
        ({"max_members": True}, "max_members must be"),
        ({"host_blocks": -1}, "host_blocks must be|host_blocks: 0"),
        ({"policy": 3}, "policy must be a Policy or the name of one"),
        ({"policy": "fastest"}, "unknown policy 'fastest'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"policy": "fcfs", "block_size": 16, "capacity_blocks": 9, "max_members": 4, **options}
    with pytest.raises(ConfigError, match=message):
        Hooks(given.pop("policy"), **given)


def test_numpy_columns_are_columns() -> None:
    hooks = hooks_of(policy_named("cost_aligned"), costs=GATED)
    lengths: Any = np.array([40, 900])
    first = hooks.decide(0.0, Resident(["a", "b"], lengths), free_blocks=1000)
    lengths += 1  # the engine's own array, changed in place
    assert hooks.decide(0.1, Resident(["a", "b"], lengths), free_blocks=1000) is first


@pytest.mark.parametrize("since", [np.array([0.5]), [np.float64(0.5)], [0.5]])
def test_whatever_kind_of_number_the_queue_waits_since_the_step_counts_once(since: Any) -> None:
    hooks = hooks_of("fcfs")
    hooks.decide(0.0, Resident(["a"], [10]), free_blocks=99)
    columns: dict[str, Any] = {"produced": np.array([1]), "limits": np.array([9]), "priorities": np.array([2])}
    waiting = Queued(["q"], np.array([5]), since=since, **columns)  # type: ignore[arg-type]
    twice: Any = since.repeat(2) if isinstance(since, np.ndarray) else since * 2
    made: Any = np.array([1, 2])
    hooks.decide(1.0, Resident(["a", "b"], [11, 20], produced=made, since=twice), waiting, free_blocks=90)
    assert hooks._board.step == 1
    assert {r: hooks._board.length(row) for r, row in hooks._board.rows.items()} == {"a": 11, "b": 20}
    queued = hooks._board.queue.get("q")
    request = queued.request
    assert (request.prompt_tokens, request.output_limit, request.priority, queued.produced) == (4, 9, 2, 1)
    for arrival in (request.arrival, hooks._board.rows["b"].request.arrival):
        assert (type(arrival), arrival) == (float, 0.5)


def test_what_is_refused_of_the_queue_changes_nothing_of_the_rows() -> None:
    hooks, plain = hooks_of("fcfs"), hooks_of("fcfs")
    first, second = Resident(["a"], [10]), Resident(["a", "b"], [11, 20])
    for each in (hooks, plain):
        each.decide(0.0, first, free_blocks=99)
    bad: Any = np.array(["soon"])
    with pytest.raises(CallerError, match=r"Queued.since\[0\] \(request 'q'\): must be finite seconds"):
        hooks.decide(1.0, second, Queued(["q"], [5], since=bad), free_blocks=90)
    assert (hooks._board.step, [*hooks._board.rows], len(hooks._board.queue)) == (0, ["a"], 0)
    right = Queued(["q"], [5], since=[0.5])
    assert hooks.decide(1.0, second, right, free_blocks=90) == plain.decide(1.0, second, right, free_blocks=90)
    assert hooks._board.step == plain._board.step == 1


def test_what_is_no_table_and_no_request_is_named() -> None:
    hooks, none = hooks_of("fcfs"), None
    with pytest.raises(CallerError, match=r"Hooks\.enqueue: request must be a Request, got 'r1'"):
        hooks.enqueue("r1")  # type: ignore[arg-type]
    with pytest.raises(CallerError, match=r"Hooks\.decide: resident must be a Resident, got None"):
        hooks.decide(0.0, none, free_blocks=3)  # type: ignore[arg-type]
    with pytest.raises(CallerError, match=r"Hooks\.decide: queued must be a Queued or None, got an empty list"):
        hooks.decide(0.0, Resident(), [], free_blocks=3)  # type: ignore[arg-type]


def test_a_plain_step_makes_as_many_calls_whatever_is_running() -> None:
    def calls(running: int) -> int:
        hooks, count = hooks_of("cost_aligned", 10**6, costs=GATED, max_members=4096), 0

        def counting(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event == "call"

        ids, lengths = [f"r{i}" for i in range(running)], list(range(20, 20 + running))
        for step in range(4):
            resident = Resident(ids, [length + step for length in lengths])
            sys.setprofile(counting if step == 3 else None)
            hooks.decide(0.01 * step, resident, free_blocks=10_000, seconds=0.01)
            sys.setprofile(None)
        return count

    assert calls(8) == calls(2000) < 30


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert hooks_cost.main(["--smoke"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9

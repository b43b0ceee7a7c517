"""In which order a wave goes, when waves begin and end, and the mean output that those who still run are part of."""

from __future__ import annotations

import json
from random import Random

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import HOST, Role
from alignedsched.costs import AffineCosts
from alignedsched.errors import CallerError
from alignedsched.load import Load
from alignedsched.policies.aligned_memory import Backlog, Memory
from alignedsched.policies.backlog_order import BacklogOrder, GateSettings
from alignedsched.policies.cost_aligned import cost_aligned
from alignedsched.policies.fcfs import fcfs
from alignedsched.policies.gate import Gain
from alignedsched.policies.mean_output import Expected, MeanOutput
from alignedsched.policies.predict import History
from alignedsched.policies.protocols import Stepped
from alignedsched.policies.rounds import RoundSettings
from alignedsched.policies.sorted_waves import Wave
from alignedsched.queue import Queue, Waiting
from alignedsched.request import Request
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.views import LaneView, QueueReader, from_columns
from alignedsched.views.columns import ColumnView
from alignedsched.workloads import workload

UNSPLIT = AffineCosts(1e-3, 1e-5, 1e-7, 1e-6, "unsplit")


def queue_of(prompts: list[int]) -> QueueReader:
    queue = Queue()
    for number, tokens in enumerate(prompts):
        queue.add(Waiting(Request(f"r{number}", tokens), number))
    return QueueReader(queue)


@given(prompts=st.lists(st.integers(1, 5000), min_size=1, max_size=30), more=st.integers(0, 9000))
def test_a_wave_ascends_in_prompt_and_half_of_what_is_expected(prompts: list[int], more: int) -> None:
    def expects(tokens: int) -> float:
        return more if tokens.bit_length() < 8 else 0.0

    wave = Wave().now(queue_of(prompts), expects)
    at = [int(request[1:]) for request in wave.ids]
    lengths = [prompts[number] + int(expects(prompts[number]) / 2) for number in at]
    assert sorted(at) == list(range(len(prompts)))
    assert lengths == sorted(lengths)


def test_sorted_anew_a_wave_keeps_to_its_own() -> None:
    queue = queue_of([10, 300, 20, 400])
    wave = Wave(["r1", "r0", "r3"], 1)  # r1 is through, and r2 came later
    assert list(wave.anew(queue, lambda tokens: 2000.0 if tokens < 64 else 0.0).ids) == ["r3", "r0"]


# -- the gate's word


def test_waves_have_to_be_faster_and_never_keep_waiting_longer() -> None:
    gate = GateSettings()
    assert gate.pays(Gain(1.06, 1.1), True)
    assert not gate.pays(Gain(1.06, 0.99), True)
    assert not gate.pays(Gain(1.02, 1.9), True)
    assert gate.pays(Gain(1.02, 2.1), True)


def test_while_outputs_are_unknown_waves_have_to_be_much_kinder() -> None:
    gate = GateSettings()
    assert not gate.pays(Gain(1.2, 1.8), False)
    assert gate.pays(Gain(1.2, 2.2), False)


def test_where_prompts_say_little_of_lengths_waves_have_to_be_much_faster() -> None:
    gate = GateSettings()
    assert not gate.pays(Gain(1.2, 3.0, told=0.4), True)
    assert gate.pays(Gain(1.4, 1.2, told=0.4), True)


def test_waves_go_on_until_they_are_clearly_worse() -> None:
    gate = GateSettings()
    assert gate.still_pays(Gain(0.97, 2.0))
    assert not gate.still_pays(Gain(0.94, 2.0))
    assert not gate.still_pays(Gain(1.2, 0.9))


def test_the_gate_is_asked_again_whenever_waves_have_lasted_twice_as_long() -> None:
    gate, asked = GateSettings(every_s=5.0), []
    backlog = Backlog(Wave(["a"]), 100.0, 100.0)
    for now in range(100, 200):
        if gate.due(backlog, float(now)):
            asked.append(now)
            backlog = Backlog(backlog.wave, float(now), 100.0)
    assert asked == [105, 110, 120, 140, 180]


def following_pool() -> tuple[BacklogOrder, LaneView, Memory]:
    """A pool, its twenty requests handed over in descending order of arrival, that goes in waves as its queue does."""
    order = BacklogOrder(RoundSettings(), GateSettings(), Expected(History(), MeanOutput()))
    view = from_columns(
        now=50.0, pooled=[f"r{n}" for n in range(20)], pooled_lengths=[1000 + (7 * n) % 20 for n in range(20)],
        pooled_on=[HOST] * 20, pooled_since=[40.0 - n for n in range(20)],
        free_blocks=100, capacity_blocks=1000, host_free_blocks=10, role=Role.DECODE,
    )  # fmt: skip
    return order, view, order.after(view, UNSPLIT, Memory({"queue": Backlog(Wave(["a"]), 0.0, 0.0)}), 0)


def in_pool(memory: Memory, view: LaneView) -> list[str]:
    wave = memory.backlog("pool").wave
    assert wave is not None
    return list(wave.pooled(view.pool))


def test_a_pool_goes_in_waves_only_as_long_as_the_queue_that_it_follows() -> None:
    """It once went on until the pool was empty: too small to be asked about, and room kept free for it all the time."""
    order, view, follows = following_pool()
    assert follows.backlog("pool").follows
    assert follows.waves
    assert in_pool(follows, view) == list(view.pool.by_length())
    alone = order.after(view, UNSPLIT, follows.with_backlog("queue", Backlog()), 0)
    assert not alone.waves


def test_who_is_left_in_the_pool_when_waves_stop_goes_first_as_it_came() -> None:
    """By arrival, older requests that were prefilled later overtook them for minutes."""
    order, view, follows = following_pool()
    left = order.after(view, UNSPLIT, follows.with_backlog("queue", Backlog()), 0)
    assert in_pool(left, view) == [f"r{n}" for n in reversed(range(20))]
    assert Memory.from_plain(left.plain()) == left
    assert order.after(view, UNSPLIT, left, 0) is left, "nothing has changed"
    others = from_columns(
        now=51.0, pooled=["r30", "r0"], pooled_lengths=[9000, 1000], pooled_on=[HOST] * 2,
        free_blocks=100, capacity_blocks=1000, host_free_blocks=10, role=Role.DECODE,
    )  # fmt: skip
    still = order.after(others, UNSPLIT, left, 0)
    assert in_pool(still, others) == ["r0"], "who came since waits"
    later = from_columns(
        now=52.0, pooled=["r30", "r31"], pooled_lengths=[9000, 1000], pooled_on=[HOST] * 2,
        free_blocks=100, capacity_blocks=1000, host_free_blocks=10, role=Role.DECODE,
    )  # fmt: skip
    assert order.after(later, UNSPLIT, still, 0).backlog("pool").wave is None, "by arrival again"


def test_waves_that_begin_again_go_on_with_who_is_left_of_the_last() -> None:
    order, view, follows = following_pool()
    left = order.after(view, UNSPLIT, follows.with_backlog("queue", Backlog()), 0)
    again = order.after(view, UNSPLIT, left.with_backlog("queue", Backlog(Wave(["a"]), 50.0, 50.0)), 0)
    assert again.waves
    assert again.backlog("pool").wave == left.backlog("pool").wave


@pytest.mark.parametrize("overtook", [False, True])
def test_after_waves_who_was_preempted_begins_first(overtook: bool) -> None:
    """Begun before its time, it would start over behind all that it had overtaken; without waves nobody has."""
    policy = cost_aligned()
    policy.batching.load(Memory({"queue": Backlog(None, 1.0, None, 0, False, overtook)}).plain())
    queue = Queue()
    for number, preemptions in enumerate((0, 0, 1, 0, 2)):
        queue.add(Waiting(Request(f"r{number}", 100), number, 3 * preemptions, preemptions))
    plain = from_columns(free_blocks=1000, capacity_blocks=1000)
    assert isinstance(plain, ColumnView)
    view = evolve(plain, queue=QueueReader(queue))
    taken = [take.request for take in policy.admission.admit(view)]
    assert taken == (["r2", "r4", "r0", "r1", "r3"] if overtook else ["r0", "r1", "r2", "r3", "r4"])


def test_nobody_waits_long_between_tokens_because_waves_stopped() -> None:
    """Who had been prefilled for a wave, and who had begun in one and was preempted, once waited behind the backlog."""
    built = build("a100", "opt-13b", topology="disaggregated", lanes=1, surface="padded", staging=True, any_length=True)
    load = workload("mooncake", seed=1, n=800).clamped(2048)[0]
    load = load.scaled(3.0 / load.rate_per_s)
    aligned, plain = (
        run(load, built.cluster, built.costs, policy, published=built.costs).figures
        for policy in (cost_aligned(), fcfs())
    )
    assert aligned["simulated_s"] != plain["simulated_s"], "waves came and went"
    assert aligned["latency_s"]["itl"]["max"] < 1.1 * plain["latency_s"]["itl"]["max"]
    assert aligned["throughput_tok_s"] > 0.99 * plain["throughput_tok_s"]


# -- the mean output


def test_whoever_still_runs_makes_the_mean_longer() -> None:
    outputs = MeanOutput()
    assert outputs.tokens == 0
    outputs.stepped(Stepped("l", (Load(10, 1000, 100),), 50, 1.0))
    outputs.ended(Request("a", 10), 50, True)
    assert outputs.tokens == pytest.approx(500.0, rel=1e-3)
    assert not outputs.known


def test_in_the_long_run_it_is_the_mean_of_all() -> None:
    rng, outputs = Random(0), MeanOutput()
    lives: list[int] = []
    for _ in range(20_000):
        lives = [left - 1 for left in lives if left > 1]
        while len(lives) < 8:
            lives.append(max(1, round(rng.expovariate(1 / 120))))
        outputs.stepped(Stepped("l", (Load(8, 800, 100),), 1, 0.1))
        for _ in range(sum(left == 1 for left in lives)):
            outputs.ended(Request("x", 10), 1, True)
    assert outputs.known
    assert outputs.tokens == pytest.approx(120.0, rel=0.1)


def test_its_memory_is_plain_and_checked() -> None:
    outputs, other = MeanOutput(12.0, 3.0), MeanOutput()
    other.load(json.loads(json.dumps(outputs.state())))
    assert other == outputs
    for bad in (None, [1.0], [1.0, -1.0], ["a", 1.0]):
        with pytest.raises(CallerError, match="MeanOutput"):
            other.load(bad)  # type: ignore[arg-type]
    assert other == outputs

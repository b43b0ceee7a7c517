"""Explain: stories are whole and add up, listening changes nothing, and small runs are told in exactly these words."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched import policies
from alignedsched.cli import main
from alignedsched.cli.explain import print_story
from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts
from alignedsched.errors import CallerError, PolicyError
from alignedsched.events import (
    Arrived,
    Cancelled,
    CopyDone,
    CopyFailed,
    Draining,
    Event,
    LaneBack,
    LaneLost,
    Paused,
    Resumed,
    StepsDone,
    StepsFailed,
    WeightsChanged,
)
from alignedsched.metrics import LatencyCollector
from alignedsched.narrator import Rule
from alignedsched.outside import printable
from alignedsched.plan import Outcome, Plan
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.policies.protocols import Composition, Policy, Take
from alignedsched.policies.residency import DirectResidency
from alignedsched.registry import policy, policy_names
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.build import build
from alignedsched.sim.run import run
from alignedsched.story import RecordedScheduler
from alignedsched.story.explain import LogFile, Recording, Source, explain_batch, explain_request, explain_time
from alignedsched.story.request_watch import RequestWatch
from alignedsched.story.sentences import Sentence, name
from alignedsched.testing.world import World
from alignedsched.views import LaneView
from alignedsched.workloads import workload
from benchmarks.decision_cases import lengths
from benchmarks.step_by_step import decoding
from tests.test_decision_cost import HORIZON, calls_of_handle

ENDS = ("finished", "refused", "cancelled", "failed")


class Chorus:
    """Watches every request at once, and keeps the plans."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.watches = {request: RequestWatch(request) for request in ids}
        self.plans: list[Plan] = []

    def begin(self, scheduler: Scheduler) -> None:
        for watch in self.watches.values():
            watch.begin(scheduler)

    def wants(self, now: float) -> bool:
        return True

    def before(self, now: float, events: Sequence[Event]) -> None:
        for watch in self.watches.values():
            watch.before(now, events)

    def after(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        self.plans.append(plan)
        for watch in self.watches.values():
            watch.after(now, events, plan)

    def note(self, rule: Rule, lane: str, request: str, figure: int) -> None:
        for watch in self.watches.values():
            watch.note(rule, lane, request, figure)


def ids_of(source: Source) -> list[str]:
    events = (event for _, events in source.calls() for event in events)
    return list(dict.fromkeys(event.request.id for event in events if isinstance(event, Arrived)))


def lives(told: Sequence[Sentence]) -> list[list[Sentence]]:
    """The stories of an id that came again after it had ended, one by one."""
    found: list[list[Sentence]] = []
    for sentence in told:
        if sentence.text.startswith("arrived"):
            found.append([])
        found[-1].append(sentence)
    return found


def check_life(told: Sequence[Sentence]) -> None:
    """From arrival to outcome, without gap or overlap, and fit for a terminal."""
    assert told[0].text.startswith("arrived with ")
    assert told[-1].text.startswith(ENDS)
    assert not any(sentence.text.startswith(ENDS) for sentence in told[:-1])
    assert [s.at for s in told] == sorted(s.at for s in told)
    at = told[0].at
    for sentence in told:
        assert sentence.text.isprintable()
        if sentence.seconds:
            assert math.isclose(sentence.at, at, abs_tol=1e-9), sentence
            at = sentence.at + sentence.seconds
    assert math.isclose(at, told[-1].at, abs_tol=1e-9)


def troubled(seed: int, rule: str, trouble: bool) -> tuple[Recording, list[Plan]]:
    """A random life of a random cluster, with all its plans."""
    world = World(seed, trouble, policy=policy(rule))
    calls: list[tuple[float, tuple[Event, ...]]] = []
    plans: list[Plan] = []
    handle = world.scheduler.handle

    def recorded(now: float, *events: Event) -> Plan:
        calls.append((now, events))
        plans.append(handle(now, *events))
        return plans[-1]

    world.scheduler.handle = recorded  # type: ignore[method-assign]
    rng = Random(seed)
    for _ in range(80):
        world.act(rng)
    world.finish(rng)
    options: dict[str, Any] = dict(world.scheduler.settings)
    return Recording(calls, lambda: Scheduler(world.cluster, policy(rule), **options)), plans


@settings(max_examples=14)
@given(st.integers(0, 10_000), st.sampled_from(policy_names()), st.booleans())
def test_every_request_of_a_random_life_has_a_whole_story_and_listening_changes_nothing(
    seed: int, rule: str, trouble: bool
) -> None:
    recording, plans = troubled(seed, rule, trouble)
    chorus = Chorus(ids_of(recording))
    assert recording.tell(chorus) == []
    assert chorus.plans == plans
    for watch in chorus.watches.values():
        for life in lives(watch.told()):
            check_life(life)


@settings(max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from(["fcfs", "density_first"]))
def test_every_order_and_every_moment_of_a_random_life_can_be_told(seed: int, rule: str) -> None:
    recording, plans = troubled(seed, rule, trouble=True)
    orders = [(step.lane, step.order) for plan in plans for step in plan.steps]
    rng = Random(seed)
    for lane, order in rng.sample(orders, min(6, len(orders))):
        told = explain_batch(recording, f"{lane}/{order}")
        assert any(sentence.text.startswith("order ") for sentence in told)
        assert [s.at for s in told] == sorted(s.at for s in told)
        assert all(sentence.text.isprintable() for sentence in told)
    for now, _ in rng.sample(list(recording.calls()), 6):
        told = explain_time(recording, now)
        assert all(sentence.text.isprintable() and sentence.at == now for sentence in told)


@pytest.mark.parametrize(("rule", "topology"), [("fcfs", "colocated"), ("density_first", "disaggregated")])
def test_the_stories_of_a_simulated_run_have_its_figures(rule: str, topology: str) -> None:
    built = build("h100", "llama-3.1-8b", topology=topology, lanes=1, surface="gated", staging=True)
    calls: list[tuple[float, tuple[Event, ...]]] = []
    latency = LatencyCollector(built.cluster)
    finished: list[str] = []

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        calls.append((now, events))
        latency.observe(now, events, plan)
        finished.extend(release.request for release in plan.releases if release.outcome is Outcome.FINISHED)

    run(workload("mooncake", seed=2, n=60), built.cluster, built.costs, policy(rule), observe=observe)
    recording = Recording(calls, lambda: Scheduler(built.cluster, policy(rule), built.costs))
    chorus = Chorus(ids_of(recording))
    recording.tell(chorus)
    columns = latency.finished_columns()
    assert len(finished) == 60
    for row, request in enumerate(finished):
        told = chorus.watches[request].told()
        check_life(told)
        tokens, e2e = int(columns["tokens"][row]), columns["last"][row] - columns["arrival"][row]
        ttft = columns["first"][row] - columns["arrival"][row]
        said = dict(re.findall(r"(TTFT|E2E) ([\d.,]+ \w+)", told[-1].text))
        assert told[-1].text.startswith(f"finished with {tokens:,} token")
        assert math.isclose(seconds_of(said["TTFT"]), ttft, rel_tol=6e-3)
        assert math.isclose(seconds_of(said["E2E"]), e2e, rel_tol=6e-3)


@pytest.mark.parametrize("rule", policy_names())
def test_listening_changes_nothing_where_costs_are_known(rule: str, tmp_path: Path) -> None:
    """A recorded run tells whether any plan came out differently, and policies may look at costs there."""
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=True)
    path = tmp_path / "log.alog"
    run(workload("mooncake", seed=4, n=50).offline(), built.cluster, built.costs, policy(rule), record=path)
    chorus = Chorus(f"r{number}" for number in range(0, 50, 7))
    assert LogFile(path).tell(chorus) == []
    for watch in chorus.watches.values():
        check_life(watch.told())


def seconds_of(said: str) -> float:
    value, unit = said.split()
    return float(value.replace(",", "")) * {"s": 1.0, "ms": 1e-3, "µs": 1e-6}[unit]


def test_a_plain_step_makes_as_many_calls_with_a_narrator_as_without() -> None:
    """So without one it cannot cost anything: nobody on its way even looks."""

    class Deaf:
        def note(self, rule: Rule, lane: str, request: str, figure: int) -> None:
            raise AssertionError("a plain step has nothing to say")

    counts = []
    for narrator in (None, Deaf()):
        rig = decoding(64, policy("fcfs"), lengths(Random(64)))
        rig.scheduler.narrate(narrator)
        lane = rig.lanes["gpu-lane"]
        counts.append([calls_of_handle(rig, lane.run()) for _ in range(HORIZON + 10)])
    assert counts[0] == counts[1]


# -- small runs, word by word


def both(blocks: int = 20, members: int = 8, max_tokens: int = 64) -> Cluster:
    """Lane ``l0`` prefills and decodes on ``g0``; blocks of 4 tokens."""
    return Cluster(
        (Device("g0", Role.BOTH, blocks),), (Lane("l0", ("g0",), 0, members, max_tokens),), layout=KVLayout(4, 10)
    )


def split(host: int = 0) -> Cluster:
    """Lane ``p`` prefills on ``p0``, lane ``l0`` decodes on ``g0``; 40,000 bytes of KV a token."""
    ends = [("p0", "g0"), ("g0", "p0"), *([("p0", HOST), (HOST, "g0"), ("g0", HOST)] if host else [])]
    return Cluster(
        (Device("p0", Role.PREFILL, 20), Device("g0", Role.DECODE, 20)),
        (Lane("p", ("p0",), 0, 8, 64), Lane("l0", ("g0",), 0, 8, 64)),
        host,
        tuple(Link(a, b, 1e9) for a, b in ends),
        KVLayout(4, 40_000),
    )


class Told:
    """A scheduler that is told events, a second apart, and a lane that runs step after step."""

    def __init__(self, cluster: Cluster, make: Callable[[], Policy] = policies.fcfs, **options: Any) -> None:
        self.make: Callable[[], Scheduler] = lambda: Scheduler(cluster, make(), max_horizon=8, **options)
        self.scheduler = self.make()
        self.calls: list[tuple[float, tuple[Event, ...]]] = []
        self.now = 0.0

    def tell(self, *events: Event) -> Plan:
        self.now += 1.0
        self.calls.append((self.now, events))
        plan = self.scheduler.handle(self.now, *events)
        self.scheduler.check()
        return plan

    def arrive(self, request: str, prompt: int = 4, limit: int | None = 9) -> Plan:
        return self.tell(Arrived(Request(request, prompt, limit, arrival=self.now + 1.0)))

    def step(self, *finished: str, lane: str = "l0") -> Plan:
        """The lane's next step is done, half a second long; these requests made their last token in it."""
        state = self.scheduler._books.lanes[lane].state
        order = state.issued[0] if state.issued else state.standing
        assert order is not None
        at = state.reported + 1
        prefilled = tuple(c.request for c in order.step.chunks if c.last)
        ends = tuple((request, at) for request in finished)
        first = order.first if order.first >= 0 else at
        return self.tell(StepsDone(lane, order.step.order, first, at, ends, prefilled, 0.5))

    @property
    def recording(self) -> Recording:
        return Recording(self.calls, self.make)

    def story(self, request: str) -> list[str]:
        return words(explain_request(self.recording, request))

    def batch(self, batch: str) -> list[str]:
        return words(explain_batch(self.recording, batch))

    def moment(self, time: float) -> list[str]:
        return [sentence.text for sentence in explain_time(self.recording, time)]


def words(told: Iterable[Sentence]) -> list[str]:
    return [f"{sentence.at:g} {sentence.text}" for sentence in told]


def test_a_request_that_is_alone() -> None:
    told = Told(both())
    told.arrive("a", 4, 3)
    for finished in ((), (), ("a",)):
        told.step(*finished)
    assert told.story("a") == [
        "1 arrived with 4 prompt tokens and a limit of 3 more",
        "1 prefilled 4 tokens on l0 in 1 chunk, 1 s",
        "2 decoded 2 tokens on l0 in 2 s, having joined batch l0/1 alone, 5 tokens long (everything that fits decodes)",
        "4 finished with 3 tokens: TTFT 1 s, TPOT 1 s, E2E 3 s",
    ]


def test_a_request_that_could_never_be_served() -> None:
    told = Told(both())
    told.arrive("a", 400)
    assert told.story("a") == [
        "1 arrived with 400 prompt tokens and a limit of 9 more",
        "1 refused: a prompt of 400 tokens fits on no device that prefills",
    ]


def test_waiting_in_the_queue_has_its_blocks_and_those_before_it() -> None:
    told = Told(both(blocks=5))
    told.arrive("a", 12, 5)
    told.arrive("b", 8, 5)
    told.arrive("c", 4, 5)
    for _ in range(3):
        told.step()
    told.step("a")
    assert told.story("b")[:3] == [
        "2 arrived with 8 prompt tokens and a limit of 5 more",
        "2 waited in the queue for 5 s: 2 blocks short on g0 (3 s); the steps ordered before had to come first (2 s)",
        "7 prefilled 0 of 8 tokens on l0 in 1 chunk, 0 s; here the log ends, at 7.000 s",
    ]
    assert told.story("c")[:2] == [
        "3 arrived with 4 prompt tokens and a limit of 5 more; 1 request queued before it",
        (
            "3 waited in the queue for 4 s: 2 blocks short on g0 for the first of 1 before it in the queue (3 s); "
            "the steps ordered before had to come first (1 s)"
        ),
    ]


def test_preemption_says_who_chose_and_what_it_freed() -> None:
    told = Told(both(blocks=6))
    told.arrive("a", 8, 13)
    told.arrive("b", 8, 13)
    for _ in range(9):
        told.step()
    told.step("a")
    for finished in ((), (), ("b",)):
        told.step(*finished)
    assert told.story("b") == [
        "2 arrived with 8 prompt tokens and a limit of 13 more",
        "2 waited in the queue for 1 s: the steps ordered before had to come first",
        "3 prefilled 8 tokens on l0 in 1 chunk, 1 s",
        (
            "4 decoded 3 tokens on l0 in 3 s, having joined batch l0/2 of 2 members, 9 to 10 tokens long, itself 9 "
            "(everything that fits decodes)"
        ),
        (
            "7 left batch l0/2, to be computed again: "
            "l0 was 1 block short for its next step, and fcfs gave it up (3 blocks)"
        ),
        "7 waited in the queue for 5 s: l0 had just made room by preemption, and began nobody until something ended",
        "12 prefilled 12 tokens on l0 in 1 chunk, 1 s",
        (
            "13 decoded 2 tokens on l0 in 2 s, having joined batch l0/5 alone, 13 tokens long "
            "(everything that fits decodes)"
        ),
        "15 finished with 7 tokens: TTFT 2 s, TPOT 1.83 s, E2E 13 s, longest pause between tokens 6 s",
    ]


def test_copies_have_their_way_size_and_time() -> None:
    told = Told(split())
    told.arrive("a")
    first = told.step(lane="p").copies[0]
    second = told.tell(CopyFailed(first.copy, "link down")).copies[0]
    told.tell(CopyDone(second.copy))
    assert told.story("a")[2:5] == [
        (
            "2 a copy of its KV, 160 kB from p0 to g0, ended after 1 s without arriving: link down "
            "(wanted in the running batch)"
        ),
        "2 wanted in the running batch of l0, not in it for 2 s in 2 decisions: its KV was on its way from p0 to g0",
        "3 its KV was copied, 160 kB from p0 to g0, in 1 s (wanted in the running batch)",
    ]


def test_seats_and_the_hook_are_reasons() -> None:
    told = Told(both(members=1))
    told.arrive("a")
    told.arrive("b")
    told.step()
    told.step()
    assert "all seats of l0 were taken, 1 a rank" in told.story("b")[1]

    told = Told(both(), eligible=lambda request: False)
    told.arrive("a")
    told.tell()
    assert "fcfs, or the caller, did not begin it on l0" in told.story("a")[1]


def test_a_copy_given_up() -> None:
    told = Told(split(), copy_lease_s=1.5)
    told.arrive("a")
    told.step(lane="p")
    told.tell()
    told.tell()
    assert "4 a copy of its KV did not end in time and was given up; its target is quarantined" in told.story("a")


def test_cancels_in_the_queue_and_in_a_batch() -> None:
    told = Told(both(blocks=5))
    told.arrive("a", 12, 5)
    told.arrive("b", 8, 5)
    told.step()
    told.tell(Cancelled("b"))
    told.tell(Cancelled("a"))
    told.step()
    assert told.story("b")[-1] == "4 cancelled: cancelled while it queued"
    assert told.story("a")[2:] == [
        (
            "3 decoded 0 tokens on l0 in 3 s, having joined batch l0/1 alone, 13 tokens long "
            "(everything that fits decodes)"
        ),
        "5 left batch l0/1: the client cancelled it",
        "6 cancelled after 1 token",
    ]


def test_pausing_and_draining_are_above_what_lanes_decide() -> None:
    told = Told(both())
    told.tell(Paused())
    told.arrive("a")
    told.tell(Draining())
    told.tell(Resumed())
    told.tell(Draining())
    told.arrive("b")
    told.tell()
    assert told.story("a")[1] == "2 waited in the queue for 2 s: the scheduler was paused"
    assert told.story("b")[1] == (
        "6 waited in the queue for 1 s: the scheduler was draining: nothing new began; here the log ends, at 7.000 s"
    )


def test_losses_are_causes() -> None:
    told = Told(both())
    told.arrive("a")
    told.step()
    told.tell(WeightsChanged())
    assert told.story("a")[3] == "3 left batch l0/1, to be computed again: new weights made all KV void"

    told = Told(both())
    told.arrive("a")
    told.step()
    told.tell(StepsFailed("l0", 1, 1, 0, "out of memory"))
    assert told.story("a")[3] == "3 left batch l0/1, to the pool: a step of l0 failed (out of memory)"

    told = Told(both())
    told.arrive("a")
    told.step()
    told.tell(LaneLost("l0"))
    told.tell()
    told.tell(LaneBack("l0", 1))
    assert told.story("a")[3:5] == [
        "3 left batch l0/1, to be computed again: lane l0 was lost",
        "3 waited in the queue for 2 s: every lane that prefills was lost",
    ]


def made_of(
    admit: Callable[[LaneView], Iterable[Take]] | None = None,
    compose: Callable[[LaneView], Composition] | None = None,
) -> Policy:
    """``fcfs`` with another admission or composition."""

    class Admission(ArrivalOrder):
        def admit(self, view: LaneView) -> Iterable[Take]:  # type: ignore[override]
            return admit(view) if admit is not None else super().admit(view)

    class Batching(ContinuousBatching):
        def compose(self, view: LaneView) -> Composition:
            return compose(view) if compose is not None else super().compose(view)

    return Policy("made", Admission(), Batching(), DirectResidency(to_host="never"))


def test_an_overruled_policy_is_named() -> None:
    told = Told(both(), lambda: made_of(compose=lambda view: Composition()))
    told.arrive("a", limit=3)
    told.step()
    assert told.story("a")[2].endswith("alone, 5 tokens long (overruled 'made', which chose nothing); "
                                       "here the log ends, at 2.000 s")  # fmt: skip


def test_a_policy_that_raised_is_told_like_any_other_call() -> None:
    asked = []

    def admit(view: LaneView) -> Iterable[Take]:
        asked.append(1)
        if len(asked) % 3 == 1:
            raise RuntimeError("a bug")
        return ArrivalOrder().admit(view)

    def make() -> Policy:
        asked.clear()
        return made_of(admit=admit)

    told = Told(both(), make)
    with pytest.raises(PolicyError):
        told.arrive("a", limit=1)
    told.tell()
    told.step("a")
    assert told.story("a")[-1] == "3 finished with 1 token: TTFT 2 s, E2E 2 s"


def test_the_pool_says_how_far_a_request_is_from_the_batch() -> None:
    """What density_first passes over, in its own figures."""
    built = build("h100", "llama-3.1-8b", topology="colocated", lanes=1, surface="gated", staging=True)
    calls: list[tuple[float, tuple[Event, ...]]] = []
    everything = workload("mooncake", seed=1, n=80).offline()
    run(
        everything, built.cluster, built.costs, policy("density_first", k_min=8),
        observe=lambda now, events, plan: calls.append((now, events)),
    )  # fmt: skip
    recording = Recording(calls, lambda: Scheduler(built.cluster, policy("density_first", k_min=8), built.costs))
    chorus = Chorus(ids_of(recording))
    recording.tell(chorus)
    told = [s.text for watch in chorus.watches.values() for s in watch.told()]
    said = [text for text in told if text.startswith("waited in the pool")]
    assert any("tokens from the median length on lane-d0, too far to refill that batch" in text for text in said)
    assert any("blocks were the batch's on lane-d0, which may have 11,358" in text for text in said)


# -- batches and moments


def two() -> Told:
    """``a`` and ``b`` decode together; then ``a`` finishes, and ``b`` goes on."""
    told = Told(both())
    told.arrive("a", 8, 13)
    told.arrive("b", 4, 13)
    for _ in range(4):
        told.step()
    told.step("a")
    told.step()
    return told


def test_a_batch_has_its_members_and_its_end() -> None:
    told = two()
    assert told.batch("l0/2") == [
        "4 order 2, decode (everything that fits decodes), made the batch: b (5) joined",
        "4 on g0 2 members, 5 to 10 tokens long (spread 5): a (10) and b (5)",
        "4 if all on g0 were as long as the longest, a step would read 33% more tokens",
        "7 a finished; 1 member left",
        "8 here the log ends; it ran 4 steps, 500 ms each",
    ]


def test_an_order_that_only_renews_stands_for_the_batch_it_renewed() -> None:
    told = Told(both())
    told.arrive("a", 4, 30)
    for _ in range(12):
        told.step()
    newest = told.scheduler._books.lanes["l0"].state.next_order - 1
    assert newest > 1
    assert any(f"order {newest} renewed batch l0/1" in sentence for sentence in told.batch(f"l0/{newest}"))
    assert told.batch(f"l0/{newest}")[0] == told.batch("l0/1")[0]


def test_a_moment_has_lanes_room_queue_and_last_decisions() -> None:
    told = Told(both(blocks=5))
    told.arrive("a", 12, 5)
    told.arrive("b", 8, 5)
    told.step()
    told.step()
    assert told.moment(3.5) == [
        "1 request queued, 0 in the pool, 1 begun and not ended, 0 copies under way; the last call was at 3.000 s",
        "l0: batch l0/1, 1 member on g0, 13 tokens long; order 1: decode, for 8 steps at most",
        "l0 last decided at 3.000 s: everything that fits decodes",
        "g0: 0 of 5 blocks free, 3 of the batch, 2 set aside for the steps ordered, 0 of others",
        "queue: b (8 tokens)",
        "why the first of the queue waits, l0: 2 blocks short on g0",
    ]


def test_what_is_not_there_is_answered_with_what_is() -> None:
    told = two()
    with pytest.raises(CallerError, match=r"^request aa never arrived; ids here are like a$"):
        told.story("aa")
    with pytest.raises(CallerError, match=r"^lane l0 has no order 99; its orders here are 0 to \d+$"):
        told.batch("l0/99")
    with pytest.raises(CallerError, match=r"^no lane l9; known: l0$"):
        told.batch("l9/0")
    for wrong in ("l0", "l0/x", "/", "l0/-1", "l0/" + "9" * 40):
        with pytest.raises(CallerError, match=r"^a batch is LANE/ORDER|no lane"):
            told.batch(wrong)
    with pytest.raises(CallerError, match=r"^time 99.0 is outside of the log, which goes from 1.000 s to 8.000 s$"):
        told.moment(99.0)
    with pytest.raises(CallerError, match=r"outside of the log"):
        told.moment(math.nan)
    with pytest.raises(CallerError, match=r"no request ever did$"):
        explain_request(Recording([], told.make), "a")
    with pytest.raises(CallerError, match=r"^the log has no calls$"):
        explain_time(Recording([], told.make), 0.0)


# -- names from outside


@given(st.text())
def test_no_name_reaches_a_terminal_unescaped(text: str) -> None:
    assert name(text).isprintable()
    assert printable(text).isprintable()
    assert len(name(text)) <= 700


def test_a_story_of_an_evil_id_is_harmless() -> None:
    evil = "\x1b]0;owned\x07 [bold]x[/bold]\n"
    told = Told(both())
    told.arrive(evil, limit=1)
    told.step(evil)
    told.arrive("b")
    told.step()
    for text in (*told.batch("l0/2"), *told.moment(1.5), *told.story(evil)):
        assert text.isprintable()
    with pytest.raises(CallerError) as caught:
        told.story(evil + "?")
    assert str(caught.value).isprintable()


# -- logs, and the command


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of a run of two requests."""
    path = tmp_path / "1-fcfs.alog"
    told = Told(both())
    with RecordedScheduler(path, both(), policy("fcfs"), AffineCosts(0.01, 0.001, 1e-6), max_horizon=8) as scheduler:
        told.scheduler = scheduler
        told.arrive("a", 4, 3)
        for finished in ((), (), ("a",)):
            told.step(*finished)
        told.arrive("b", 4, 3)
    return path


def test_a_log_tells_what_the_calls_tell(log: Path) -> None:
    assert words(explain_request(LogFile(log), "a"))[-1] == "4 finished with 3 tokens: TTFT 1 s, TPOT 1 s, E2E 3 s"


def test_a_hook_that_counts_is_not_asked_once_more(tmp_path: Path) -> None:
    asked: list[str] = []

    def hook(request: Request) -> bool:
        asked.append(request.id)
        return len(asked) % 3 == 0

    path, told = tmp_path / "hook.alog", Told(both())
    with RecordedScheduler(path, both(), policy("fcfs"), eligible=hook, max_horizon=8) as scheduler:
        told.scheduler = scheduler
        for number in range(6):
            told.arrive(f"r{number}")
    story = explain_request(LogFile(path), "r5")
    assert not any("here this story ends" in sentence.text for sentence in story)


def test_a_log_that_was_cut_off_says_so(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-3])
    with pytest.raises(CallerError, match="no request ever did"):
        explain_request(LogFile(log), "a")


def two_calls(path: Path) -> None:
    """A log of frames of one call: ``a`` comes and finishes, ``b`` comes."""
    told = Told(both())
    with RecordedScheduler(path, both(), policy("fcfs"), max_horizon=8, calls=1) as scheduler:
        told.scheduler = scheduler
        told.arrive("a", limit=1)
        told.step("a")
        told.arrive("b")


def test_a_log_that_was_cut_off_behind_a_request_tells_it_and_says_so(tmp_path: Path) -> None:
    two_calls(tmp_path / "log.alog")
    (tmp_path / "log.alog").write_bytes((tmp_path / "log.alog").read_bytes()[:-3])
    assert words(explain_request(LogFile(tmp_path / "log.alog"), "a"))[-2:] == [
        "2 finished with 1 token: TTFT 1 s, E2E 1 s",
        "2 here the log was cut off",
    ]


def test_a_story_ends_where_another_decision_is_made_than_was_recorded(tmp_path: Path) -> None:
    two_calls(tmp_path / "log.alog")
    lazy = made_of(admit=lambda view: [Take(w.request.id, 2) for w in view.queue])
    log = LogFile(tmp_path / "log.alog", policy=lambda: evolve(lazy, name="fcfs"))
    assert words(explain_request(log, "a"))[-1] == (
        "1 here this story ends: call 0 is decided otherwise now than the log says (`alignedsched replay` tells how)"
    )


def test_a_log_that_begins_late_tells_from_there(tmp_path: Path) -> None:
    from alignedsched.story import restore, snapshot

    told = Told(both(), lambda: policy("fcfs"))
    told.arrive("a", 4, 3)
    state = snapshot(told.scheduler)
    path = tmp_path / "late.alog"

    def recorded(*parts: object, **options: object) -> Scheduler:
        return RecordedScheduler(path, *parts, **options)  # type: ignore[arg-type]

    with restore(state, both(), policy("fcfs"), make=recorded) as scheduler:  # type: ignore[attr-defined]
        told.scheduler = scheduler
        for finished in ((), (), ("a",)):
            told.step(*finished)
    assert words(explain_request(LogFile(path), "a")) == [
        "1 was here already when the log began",
        "1 prefilled 4 tokens on l0 in 0 chunks, 1 s",
        "2 decoded 2 tokens on l0 in 2 s, having joined batch l0/1 alone, 5 tokens long (everything that fits decodes)",
        "4 finished with 3 tokens: TTFT 1 s, TPOT 1 s, E2E 3 s",
    ]


def test_the_command_tells_a_request_a_batch_and_a_moment(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(log), "--request", "a"]) == 0
    assert "       4.000 s  finished with 3 tokens: TTFT 1 s, TPOT 1 s, E2E 3 s\n" in capsys.readouterr().out
    assert main(["explain", str(log.parent), "--batch", "l0/1"]) == 0
    assert "order 1, decode" in capsys.readouterr().out
    assert main(["explain", str(log), "--time", "2.5"]) == 0
    assert "l0: batch l0/1" in capsys.readouterr().out


def test_several_logs_have_their_names_in_front(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (log.parent / "2-again.alog").write_bytes(log.read_bytes())
    assert main(["explain", str(log.parent), "--request", "a"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1-fcfs.alog\n")
    assert "\n\n2-again.alog\n" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "say what to explain: one of --request ID, --batch LANE/ORDER, --time T; 0 given"),
        (["--request", "a", "--time", "1"], "; 2 given"),
        (["--time", "nan"], "must be seconds on the log's clock, got 'nan'"),
        (["--request", "zz"], "request zz never arrived; ids here are like a, b"),
        (["--batch", "l0"], "a batch is LANE/ORDER, as lane-d0/17; got l0"),
        (["--wrong"], "--wrong"),
    ],
)
def test_wrong_use_is_one_sentence(
    log: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(log), *options]) == 2
    caught = capsys.readouterr()
    assert says in caught.err
    assert not caught.out


def test_a_terminal_with_rich_gets_no_markup_of_ids() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    print_story([Sentence(1.0, "[bold]x[/bold] \x1b[2J")], stream)
    assert "[bold]x[/bold]" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()

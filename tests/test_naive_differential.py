"""The scheduler under ``fcfs`` on one device without tiers decides, step by step, what a naive scheduler decides."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from random import Random

import pytest
from attrs import define, field

from alignedsched import Cluster, Device, KVLayout, Lane, Request, Role, Scheduler
from alignedsched.events import Arrived, Cancelled, Event
from alignedsched.plan import Outcome
from alignedsched.policies import fcfs
from benchmarks.step_by_step import LaneRun
from tests.naive_scheduler import Done, NaiveScheduler, Row


@define
class Workload:
    """Requests (prompt, tokens made, limit told or not) by the step before which they come, and cancels likewise."""

    blocks: int
    block_size: int
    seats: int
    tokens: int
    arrivals: dict[int, list[tuple[str, int, int, bool]]] = field(factory=dict)
    cancels: dict[int, list[str]] = field(factory=dict)


def drawn(seed: int) -> Workload:
    """A small workload, short of something: blocks, seats or tokens."""
    rng = Random(seed)
    size, seats = rng.choice((1, 2, 4, 16)), rng.choice((1, 2, 4, 8))
    tokens = max(seats, rng.choice((1, 8, 16, 64, 1000)))
    work = Workload(rng.choice((6, 8, 12, 40)) * (8 if size == 1 else 1), size, seats, tokens)
    room = (work.blocks - 1) * size  # one request alone fits
    names = []
    for number in range(rng.randint(1, 14)):
        prompt = rng.randint(1, max(1, min(room // 2, rng.choice((4, 30, 200)))))
        make = rng.randint(1, max(1, min(room - prompt, rng.choice((2, 20, 60)))))
        at = rng.choice((0, 0, 0, rng.randint(0, 30)))
        work.arrivals.setdefault(at, []).append((f"r{number}", prompt, make, rng.random() < 0.5))
        names.append((at, f"r{number}"))
    for at, name in names:
        if rng.random() < 0.1:
            work.cancels.setdefault(at + rng.randint(0, 20), []).append(name)
    return work


def naive_story(work: Workload) -> list[Done]:
    """What every step was, by the naive scheduler."""
    naive = NaiveScheduler(work.blocks, work.block_size, work.seats, work.tokens)
    story, order, at = [], 0, 0
    while at <= max([*work.arrivals, *work.cancels]) or naive.busy():
        for name, prompt, make, _ in work.arrivals.get(at, ()):
            naive.arrive(Row(name, order, prompt, make))
            order += 1
        naive.cancel(work.cancels.get(at, ()))
        story.append(naive.step())
        at += 1
        assert at < 5000, "the naive scheduler does not come to an end"
    return story


def core_story(work: Workload, max_horizon: int) -> tuple[list[Done], Mapping[str, int]]:
    """The same, by the scheduler over a device that runs one step between two calls."""
    lane = Lane("l", ("g",), 0, work.seats, work.tokens)
    layout = KVLayout(work.block_size, 1)
    cluster = Cluster((Device("g", Role.BOTH, work.blocks),), (lane,), layout=layout, max_positions=1 << 20)
    scheduler = Scheduler(cluster, fcfs(), max_horizon=max_horizon)
    run, reports, story, at = LaneRun("l"), list[Event](), list[Done](), 0
    to_make = {name: make for rows in work.arrivals.values() for name, _, make, _ in rows}
    made = dict.fromkeys(to_make, 0)
    while at <= max([*work.arrivals, *work.cancels]) or not scheduler.idle():
        events = list(reports)
        for name, prompt, make, told in work.arrivals.get(at, ()):
            events.append(Arrived(Request(name, prompt, make if told else None)))
        events += [Cancelled(name) for name in work.cancels.get(at, ())]
        plan = scheduler.handle(float(at), *events)
        scheduler.check()
        run.pending.extend(plan.steps)
        done = Done()
        reports = run_one(run, made, to_make, done)
        done.failed = [release.request for release in plan.releases if release.outcome is Outcome.FAILED]
        story.append(done)
        at += 1
        assert at < 5000, "the scheduler does not come to an end"
    return story, scheduler.counts


def run_one(run: LaneRun, made: dict[str, int], to_make: dict[str, int], done: Done) -> list[Event]:
    """Run one step if an order allows one; say what it was, and return the reports of it."""
    before = run.done
    peek = LaneRun(run.lane, run.done, run.pending.copy(), run.standing, run.first, dict(run.members))
    peek.run()
    if peek.done == before:
        return run.run()
    order = peek.standing
    assert order is not None
    done.members = list(peek.members)
    done.chunks = [(chunk.request, chunk.start, chunk.end) for chunk in order.chunks]
    for request in [*peek.members, *(chunk.request for chunk in order.chunks if chunk.last)]:
        made[request] += 1
        if made[request] == to_make[request]:
            done.finished.append(request)
    return run.run(tuple(done.finished))


def told(story: list[Done]) -> list[tuple[list[str], list[tuple[str, int, int]], list[str], list[str]]]:
    """Step by step who decoded, which chunks ran in which order, who ended and how; calls in which nothing ran at the
    end left out."""
    steps = [(sorted(done.members), done.chunks, sorted(done.finished), done.failed) for done in story]
    while steps and not any(steps[-1]):
        steps.pop()
    return steps


@pytest.mark.parametrize("first", range(0, 240, 80))
def test_the_scheduler_agrees_with_the_naive_one(first: int) -> None:
    """Under every horizon: how long an order may stand costs nobody a token."""
    preempted = 0
    for seed in range(first, first + 80):
        work = drawn(seed)
        naive = naive_story(work)
        core, counts = core_story(work, max_horizon=(1, 8, 256)[seed % 3])
        assert told(core) == told(naive), f"seed {seed}"
        assert counts["preemptions"] == sum(len(done.preempted) for done in naive), f"seed {seed}"
        preempted += counts["preemptions"]
    assert preempted > 20, "room was not short often enough to matter"


def run(*rows: tuple[str, int, int], cancel: tuple[int, str] | None = None, blocks: int, size: int) -> list[Done]:
    """Requests (name, prompt, tokens made) that all come at once, by the scheduler, and as the naive one does it."""
    work = Workload(blocks, size, 8, 1000, {0: [(*row, False) for row in rows]})
    if cancel is not None:
        work.cancels[cancel[0]] = [cancel[1]]
    story, _ = core_story(work, 256)
    assert told(story) == told(naive_story(work))
    return story


def test_who_was_just_prefilled_makes_room_before_an_older_member() -> None:
    story = run(("a", 2, 2), ("b", 2, 4), ("c", 9, 3), blocks=5, size=4)
    assert not any("c" in done.members and "b" not in done.members for done in story[:4])


def test_one_preemption_is_not_followed_by_another_before_the_step_it_was_for() -> None:
    story = run(("a", 3, 12), ("b", 3, 12), ("c", 3, 12), ("d", 3, 12), blocks=16, size=1)
    sizes = [len(done.members) for done in story]
    assert all(before - after <= 1 for before, after in pairwise(sizes[1:8])), sizes
    assert 0 not in sizes[1:8], "the lane does not stand still to make room"


def test_a_cancel_lets_those_behind_begin_at_once() -> None:
    story = run(("a", 4, 9), ("long", 40, 2), ("b", 2, 2), cancel=(3, "long"), blocks=12, size=4)
    assert [done.chunks for done in story[:4]] == [[("a", 0, 4)], [], [], [("b", 0, 2)]]

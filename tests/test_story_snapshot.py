"""Snapshots: a scheduler goes on from one as if nothing had happened, and nothing else is taken for one."""

from __future__ import annotations

import json
import struct
import zlib
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched import Cluster, Device, KVLayout, Lane, LogError, Request, Role, Scheduler, policy
from alignedsched.accounts import Accounts
from alignedsched.batch import RunningBatch
from alignedsched.cluster import HOST
from alignedsched.costs import AffineCosts
from alignedsched.events import Arrived, DeviceBack, StepsDone
from alignedsched.lane_book import LaneBook
from alignedsched.lanes import LaneState
from alignedsched.plan import Outcome
from alignedsched.policies.protocols import Policy
from alignedsched.pool import Pool
from alignedsched.queue import Queue
from alignedsched.scheduler_view import SchedulerView
from alignedsched.story import frames, recovery_events, restore, snapshot, state
from alignedsched.story.codec import encode
from alignedsched.story.snapshot import parts
from tests.lives import POLICIES, Life, chaos

CLUSTER = Cluster((Device("g0", Role.BOTH, 40),), (Lane("l0", ("g0",), 0, 4, 64),), layout=KVLayout(4, 1000))


def small() -> Scheduler:
    """A scheduler with a member, one in prefill, and one that queues."""
    scheduler = Scheduler(CLUSTER, policy("fcfs"), max_horizon=4)
    scheduler.handle(0.0, *(Arrived(Request(f"r{i}", 9, 20)) for i in range(2)))
    scheduler.handle(1.0, StepsDone("l0", 0, 0, 0, prefilled=("r0", "r1")), Arrived(Request("late", 150, 2)))
    return scheduler


# -- going on


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_a_life_goes_on_from_snapshots_at_any_moment(name: str, seed: int) -> None:
    rng = Random(seed)
    restored = 0

    def crash(life: Life) -> None:
        nonlocal restored
        if rng.random() < 0.2:
            data = snapshot(life.scheduler)
            life.bring(restore(data, life.cluster, POLICIES[name]()))
            assert snapshot(life.scheduler) == data
            restored += 1

    expected = Life(seed, POLICIES[name]()).live()
    assert Life(seed, POLICIES[name](), before=crash).live() == expected
    assert restored > 5


def test_what_an_error_has_left_in_the_outbox_is_kept() -> None:
    """A policy raises in a call, so its plan is still to come: the restored scheduler hands it out too."""
    kept = 0
    for seed in range(8):

        def crash(life: Life) -> None:
            nonlocal kept
            kept += bool(life.scheduler._books.out.steps)
            life.bring(restore(snapshot(life.scheduler), life.cluster, chaos()))

        assert Life(seed, chaos(), before=crash).live(30) == Life(seed, chaos()).live(30)
    assert kept


def test_settings_costs_and_hook_come_along() -> None:
    costs = AffineCosts(0.01, 1e-5, 1e-8, surface="padded")
    scheduler = Scheduler(
        CLUSTER, policy("fcfs"), costs, max_horizon=9, copy_lease_s=0.1, eligible=lambda request: request.priority > 0
    )
    data = snapshot(scheduler)
    again = restore(data, CLUSTER, policy("fcfs"), eligible=lambda request: request.priority > 0)
    assert again.settings == scheduler.settings
    assert again.costs == costs
    with pytest.raises(LogError, match="with an `eligible` hook"):
        restore(data, CLUSTER, policy("fcfs"))
    with pytest.raises(LogError, match="not those given"):
        restore(data, CLUSTER, policy("fcfs"), AffineCosts(0.02, 1e-5, 1e-8), eligible=lambda request: True)


class Learner:
    """A watch that counts the seconds it has seen."""

    def __init__(self) -> None:
        self.seen = 0.0

    def stepped(self, facts: object) -> None:
        self.seen += getattr(facts, "seconds", 0.0)

    def ended(self, request: object, produced: int, finished: bool) -> None:
        self.seen += produced

    def state(self) -> float:
        return self.seen

    def load(self, state: object) -> None:
        assert isinstance(state, float)
        self.seen = state


def watched() -> tuple[Policy, Learner]:
    from attrs import evolve

    learner = Learner()
    return evolve(policy("fcfs"), watches=(learner,)), learner


def test_watches_remember() -> None:
    made, learner = watched()
    scheduler = Scheduler(CLUSTER, made)
    scheduler.handle(0.0, Arrived(Request("r0", 9, 1)))
    scheduler.handle(1.0, StepsDone("l0", 0, 0, 0, (("r0", 0),), ("r0",), 0.25))
    assert learner.seen == 1.25
    again, other = watched()
    restore(snapshot(scheduler), CLUSTER, again)
    assert other.seen == 1.25
    with pytest.raises(LogError, match="0 watches, the state was written with others"):
        restore(snapshot(scheduler), CLUSTER, policy("fcfs"))


# -- refusing


def test_every_changed_byte_and_every_cut_is_refused() -> None:
    data = snapshot(small())
    assert len(data) < 3000
    for at in range(len(data)):
        for change in (0x01, 0x80):
            changed = bytearray(data)
            changed[at] ^= change
            with pytest.raises(LogError):
                restore(bytes(changed), CLUSTER, policy("fcfs"))
        with pytest.raises(LogError):
            restore(data[:at], CLUSTER, policy("fcfs"))
    with pytest.raises(LogError):
        restore(data + b"\0", CLUSTER, policy("fcfs"))


def test_other_versions_clusters_and_policies_are_refused() -> None:
    data = snapshot(small())
    other = Cluster((Device("g0", Role.BOTH, 41),), CLUSTER.lanes, layout=CLUSTER.layout)
    with pytest.raises(LogError, match="another cluster"):
        restore(data, other, policy("fcfs"))
    with pytest.raises(LogError, match="under the policy"):
        restore(data, CLUSTER, policy("density_first"))
    with pytest.raises(LogError, match="under the policy"):
        restore(data, CLUSTER, policy("fcfs", swap=True))
    with pytest.raises(LogError, match="format version '2'; this library reads version 1"):
        restore(data.replace(b"log 1\n", b"log 2\n", 1), CLUSTER, policy("fcfs"))
    with pytest.raises(LogError, match="is no log or snapshot"):
        restore(b"PK\x03\x04 and so on and on", CLUSTER, policy("fcfs"))
    with pytest.raises(LogError, match="is empty"):
        restore(b"", CLUSTER, policy("fcfs"))


def framed(*parts: object) -> bytes:
    """Bytes with right checks around whatever parts."""
    out, check = [frames.MAGIC], frames.FIRST
    for part in parts:
        frame, check = frames.pack(encode([part]), check)
        out.append(frame)
    return b"".join(out)


def parts_of(scheduler: Scheduler) -> list[Any]:
    return [list(part) for part in parts(scheduler)]


def test_what_does_not_hold_together_is_refused_though_its_checks_are_right() -> None:
    kept = parts_of(small())
    assert restore(framed(*kept), CLUSTER, policy("fcfs")).queued == 1
    for at, part in enumerate(kept):
        for changed in ([*kept[:at], *kept[at + 1 :]], [*kept[:at], part, *kept[at:]]):
            with pytest.raises(LogError):
                restore(framed(*changed), CLUSTER, policy("fcfs"))
    at = next(at for at, part in enumerate(kept) if part[0] == "live")
    kept[at] = json.loads(encode(kept[at]).replace(b'"r0",9,', b'"r0",9.5,'))
    with pytest.raises(LogError, match=r"live\[0\].request.prompt_tokens"):
        restore(framed(*kept), CLUSTER, policy("fcfs"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.sampled_from(["r0", "l0", "g0", "queued", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["r0", "now", "g0", "3"]), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_plain_data_in_any_place_gives_a_scheduler_that_checks_or_a_log_error(data: st.DataObject) -> None:
    kept = json.loads(encode(parts_of(small())))
    place: Any = kept
    at: Any = data.draw(st.integers(0, len(kept) - 1))
    while True:
        inner = place[at]
        if not isinstance(inner, list | dict) or not inner or data.draw(st.booleans()):
            break
        place, keys = inner, list(inner) if isinstance(inner, dict) else range(len(inner))
        at = data.draw(st.sampled_from(list(keys)))
    place[at] = data.draw(PLAIN)
    try:
        scheduler = restore(framed(*kept), CLUSTER, policy("fcfs"))
    except LogError:
        return
    scheduler.check()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[" * (frames.MOST_BYTES + 10), "when inflated"), (b"[" * 100_000, "is not JSON"), (b"{}", "a list of parts")],
)
def test_a_frame_that_inflates_without_end_or_nests_too_deep_is_refused(content: bytes, message: str) -> None:
    inside = zlib.compress(content)
    check = zlib.crc32(inside, frames.FIRST)
    own = zlib.crc32(struct.pack(">II", len(inside), check), frames.FIRST)
    with pytest.raises(LogError, match=message):
        restore(frames.MAGIC + struct.pack(">III", len(inside), check, own) + inside, CLUSTER, policy("fcfs"))


def test_a_state_that_is_no_plain_data_names_the_policy() -> None:
    from alignedsched.errors import PolicyError

    made = policy("density_first")
    made.batching.state = lambda: {1, 2}  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(PolicyError, match=r"density_first.*state"):
        snapshot(Scheduler(CLUSTER, made))


# -- complete


def test_everything_a_scheduler_knows_is_in_a_snapshot_or_follows_from_it() -> None:
    """A new attribute of the books, the scheduler or a lane has to be thought of here, or a crash forgets it."""
    scheduler = small()
    made_with_the_books = {"cluster", "layout", "deciders", "prefillers", "lane_of_device"}
    functions = {"rank_of", "on_end", "narrator"}
    apart = {"queue", "pool", "ledger", "live", "lanes", "links"}
    assert vars(scheduler._books).keys() == state._PLAIN_FACTS.keys() | made_with_the_books | functions | apart
    assert isinstance(scheduler._books, Accounts)
    parts_and_settings = {"cluster", "policy", "costs", "eligible", "settings"}
    machinery = {
        "_books",
        "_views",
        "_planner",
        "_standstill",
        "_watching",
        "_intake",
        "_leases",
        "_lanes",
        "_handlers",
    }
    assert vars(scheduler).keys() == parts_and_settings | machinery
    left_out = {"state", "tiers"}, {"lane", "role", "batches"}
    for record, without, kept in zip((LaneBook, LaneState), left_out, (state._BOOK, state._STATE), strict=True):
        names = {field.name for field in record.__attrs_attrs__ if field.init}  # type: ignore[attr-defined]
        assert set(kept._names) == names - without
    # Made again by adding what is in them, in the order in which it was added where that decides anything.
    assert set(Queue.__slots__) == {"_rows", "_keys", "_made", "again", "sizes"}
    assert set(Pool.__slots__) == {"_again", "_blocks", "_by_length", "_by_order", "_counts", "_keys", "_upwards"}
    assert set(RunningBatch.__slots__) == {
        "_bases", "_block_quotients", "_block_size", "_blocks", "_blocks_step", "_by_base", "_limit_of", "_limits",
        "_phases", "_total_base",
    }  # fmt: skip
    assert vars(scheduler._books.ledger).keys() == {
        "_layout", "_capacity", "_held", "_growth", "_quarantined", "_doomed", "_clearing", "_free", "_segments",
    }  # fmt: skip
    assert set(SchedulerView.__slots__) == {
        "_books", "_eligible", "_lane", "_largest", "cluster", "costs", "layout", "pool", "queue", "ranks",
    }  # fmt: skip


# -- an executor that begins anew


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_after_a_restart_with_empty_memory_every_request_ends_as_it_should(name: str, seed: int) -> None:
    life = Life(seed, POLICIES[name]())
    rng = Random(seed)
    for _ in range(4):
        for _ in range(15):
            life.act(rng)
        restart(life, restore(snapshot(life.scheduler), life.cluster, POLICIES[name]()))
    life.finish(rng)  # all ended, nothing left in any tier, and each request made as many tokens as it had to
    ends = life.adversary.released.values()
    assert Outcome.FINISHED in ends


def restart(life: Life, scheduler: Scheduler) -> None:
    """The process and its executor begin anew: what was in any memory is gone, prompts and made tokens are kept."""
    adversary = life.adversary
    for device in life.cluster.devices:
        if device.id not in life.lost_devices:
            adversary.lose_device(device.id)
    life.lost_devices.clear()
    life.shrunk.clear()
    assert not adversary.copies
    adversary.kv.clear()
    life.bring(scheduler)
    events = recovery_events(scheduler)
    back = {event.device: event.next_step for event in events if isinstance(event, DeviceBack)}
    for model in adversary.lanes.values():
        model.lost = False
        model.launched = model.done = model.told = back[model.lane.ranks[0]] - 1
        model.rows.clear()
    for tier in life.cluster.tiers.values():
        if tier.id != HOST:
            adversary.capacity[tier.id] = tier.blocks
    life.told.clear()  # nothing of the old executor's comes any more
    life.call(*events)

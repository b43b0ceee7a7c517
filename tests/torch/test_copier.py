"""Copies under any interleaving: each ends exactly once, what arrived is byte for byte right, no page is lost.

The slot protocol is model-checked here with its bytes: a hypothesis state machine lives the actions of
``benchmarks.staged_life`` on modelled and on threaded devices, and on GPUs where there are any; `test_staging_ring`
checks the protocol alone.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from alignedsched.cluster import HOST
from alignedsched.errors import ConfigError, ExecutorError
from alignedsched.events import CopyDone, CopyFailed
from alignedsched.plan import Copy
from alignedsched_torch.memory import Copier, copier
from alignedsched_torch.memory.ways import IN_FLIGHT
from benchmarks.staged_life import PAGES, SHAPE, STAGING, WAYS, Life, World, small_chunks
from benchmarks.staging_lives import measure


def needs(gpus: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.cuda.device_count() < gpus, reason=f"needs {gpus} GPU(s)")


@pytest.fixture(autouse=True)
def chunks_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST_CHUNK_BYTES", "PEER_CHUNK_BYTES"):
        monkeypatch.setattr(copier, name, getattr(copier, name))  # put back afterwards
    small_chunks()


class CopierMachine(RuleBasedStateMachine):
    """Routes direct, staged and split beside a scheduler's books. What a rule does follows from its seed."""

    kind = "modelled"
    gpus = (0, 0)
    life: Life

    @initialize(seed=st.integers(0, 1 << 16), slots=st.integers(0, 3), layers=st.integers(1, 2))
    def begin(self, seed: int, slots: int, layers: int) -> None:
        self.life = Life(World.make(seed, self.kind, slots, self.gpus, layers), Random(seed))

    @rule(
        seed=st.integers(0, 1 << 16),
        action=st.sampled_from(
            (
                Life.write, Life.copy, Life.copy, Life.copy, Life.wait, Life.abort, Life.revoke, Life.drop, Life.late,
                Life.break_link, Life.mend_links, Life.take_slots_back,
            )
        ),
    )  # fmt: skip
    def act(self, seed: int, action: object) -> None:
        self.life.rng = Random(seed)
        getattr(self.life, action.__name__)()  # type: ignore[attr-defined]

    @invariant()
    def slots_are_as_many_as_lent_and_each_is_told_of(self) -> None:
        for relays in self.life.copier.relays.values():
            for relay in relays:
                assert len(relay.ring) <= len(relay) <= 3

    def teardown(self) -> None:
        if hasattr(self, "life"):
            self.life.end()
            self.life.world.close()


class ThreadedMachine(CopierMachine):
    kind = "threaded"


class CudaMachine(CopierMachine):
    """Two logical devices of one GPU."""

    kind = "cuda"


class TwoGpusMachine(CudaMachine):
    gpus = (0, 1)


@pytest.mark.parametrize(
    ("machine", "examples", "steps"),
    [
        (CopierMachine, 60, 60),
        (ThreadedMachine, 30, 40),
        pytest.param(CudaMachine, 20, 40, marks=needs(1)),
        pytest.param(TwoGpusMachine, 20, 40, marks=needs(2)),
    ],
)  # fmt: skip
def test_the_slot_protocol_with_its_bytes(machine: type[CopierMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, derandomize=True)
    )


def test_everything_that_can_happen_to_a_copy_happens() -> None:
    met: Counter[str] = Counter(measure(400)["met"])
    for source, target in WAYS:
        assert met[f"{source}->{target} done"], (source, target)
        assert met[f"{source}->{target} link down"], (source, target)
    for source, target in (("p0", HOST), ("p0", "d0"), ("d0", HOST), (HOST, STAGING)):
        assert met[f"{source}->{target} aborted"], (source, target)
    assert met["dropped under a copy"]
    assert met[f"{HOST}->{STAGING} staging was revoked"], "taken back while it was filled"
    assert met[f"{STAGING}->d0 staging was revoked"], "taken back before the scheduler heard of it"
    assert met["split"]
    assert met["a relay broke"]


def held(world: World, tier: str, tokens: int) -> torch.Tensor:
    """KV of request "a" in a tier, each page with its own content."""
    pool = world.pools[tier]
    pool.hold("a", tokens)
    pages = pool.data[pool.pages("a")]
    pages[:] = torch.arange(float(len(pages)), dtype=torch.float64).view(-1, 1, 1, 1, 1, 1)
    pool.data[pool.pages("a")] = pages
    return pages


def ends(world: World) -> list[CopyDone | CopyFailed]:
    """Completions of all copies under way."""
    told = world.copier.poll()
    while len(world.copier):
        world.until_next()
        told += world.copier.poll()
    return told


def test_a_split_copy_takes_the_time_of_both_links_and_arrives_whole() -> None:
    seconds = []
    for slots in (0, 2):
        world = World.make(0, slots=slots)
        pages = held(world, HOST, 80)
        world.copier.start(Copy(1, "a", HOST, "d0", 0, 80))
        assert ends(world) == [CopyDone(1)]
        assert torch.equal(world.pools["d0"].data[world.pools["d0"].pages("a")], pages)
        assert world.clock is not None
        seconds.append(world.clock.now)
        assert (world.copier.relayed_bytes > 0) == bool(slots)
        assert world.copier.copied_bytes[HOST, "d0"] == 80 * 32
    assert 0.5 < seconds[1] / seconds[0] < 0.62, "two equal links: half the time, and the last chunk's way out"


@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("at_once", [1, 2])
def test_chunks_smaller_than_a_page_hold_some_of_its_layers(slots: int, at_once: int) -> None:
    world = World.make(0, slots=slots, layers=3)
    world.copier.host_chunk_bytes = at_once * SHAPE.bytes
    pages = held(world, HOST, 80)
    pages[:] = torch.arange(float(pages.numel()), dtype=torch.float64).view(pages.shape)
    world.pools[HOST].data[world.pools[HOST].pages("a")] = pages
    for number, (start, end) in enumerate(((0, 22), (22, 80))):
        world.copier.start(Copy(number, "a", HOST, "d0", start, end))
        assert ends(world) == [CopyDone(number)]
    assert torch.equal(world.pools["d0"].data[world.pools["d0"].pages("a")], pages)
    assert (world.copier.relayed_bytes > 0) == bool(slots)
    world.copier.start(Copy(2, "a", "d0", HOST, 0, 4))
    assert world.copier.poll() == []
    assert world.clock is not None
    began = world.clock.now
    assert ends(world) == [CopyDone(2)]
    each = -(-3 // at_once)
    assert world.clock.now - began == pytest.approx(each * 1e-5 + 3 * SHAPE.bytes / 1e6), "as many chunks"


def test_a_chunk_without_a_byte_is_refused() -> None:
    world = World.make(0)
    with pytest.raises(ConfigError, match="host_chunk_bytes must be at least 1, got 0"):
        Copier(world.copier._cluster, world.pools, world.devices, host_chunk_bytes=0)


def test_a_helper_that_fails_costs_time_and_its_chunks_go_over_the_own_link() -> None:
    world = World.make(0, slots=2)
    pages = held(world, HOST, 80)
    world.down.add("p0->d0")
    world.copier.start(Copy(1, "a", HOST, "d0", 0, 80))
    assert ends(world) == [CopyDone(1)]
    assert torch.equal(world.pools["d0"].data[world.pools["d0"].pages("a")], pages)
    (relay,) = world.copier.relays[HOST, "d0"]
    assert relay.broken == "link p0->d0 is down"
    assert not relay.bytes
    assert not relay.has_room()


def test_a_link_that_fails_ends_the_copy_and_leaves_what_was_there_before() -> None:
    world = World.make(0, slots=0)
    pages = held(world, HOST, 80)
    world.copier.start(Copy(1, "a", HOST, "d0", 0, 22))
    assert ends(world) == [CopyDone(1)]
    world.down.add("host->d0")
    world.copier.start(Copy(2, "a", HOST, "d0", 22, 80))
    assert ends(world) == [CopyFailed(2, "host->d0: link host->d0 is down")]
    pool = world.pools["d0"]
    assert len(pool.pages("a")) == SHAPE.pages(22)
    assert torch.equal(pool.data[pool.pages("a")][:5], pages[:5])
    assert torch.equal(pool.data[pool.pages("a")][5, :, :, :, :2], pages[5, :, :, :, :2]), "half a page it begins in"
    world.down.clear()
    world.copier.start(Copy(3, "a", HOST, "d0", 22, 80))
    assert ends(world) == [CopyDone(3)]
    assert torch.equal(pool.data[pool.pages("a")], pages)


def test_an_error_when_a_copy_is_queued_ends_it_and_a_staging_slot_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World.make(0)
    held(world, HOST, 20)

    def fails(*_: object) -> None:
        raise RuntimeError("no such stream")

    with monkeypatch.context() as broken:
        broken.setattr(type(world.devices["p0"].stream("host->p0")), "copy", fails)
        world.copier.start(Copy(1, "a", HOST, STAGING, 0, 20))
        assert ends(world) == [CopyFailed(1, "host->p0: no such stream")]
    assert world.pools[STAGING].free == PAGES
    assert not len(world.copier.rings[STAGING])
    world.copier.start(Copy(2, "a", HOST, STAGING, 0, 20))
    assert ends(world) == [CopyDone(2)]


@pytest.mark.parametrize(
    ("copy", "words"),
    [
        (Copy(1, "a", "p0", HOST, 0, 9), r"reads 9 tokens, 0 have pages in 'p0'"),
        (Copy(1, "b", HOST, "p0", 0, 97), r"reads 97 tokens, 96 have pages in 'host'"),
        (Copy(1, "b", "d0", "p0", 0, 4), r"there is no link from 'd0' to 'p0'"),
        (Copy(1, "b", HOST, STAGING, 0, 96), r"24 pages are wanted, 19 of 24 are free"),
    ],
)
def test_a_copy_that_cannot_be_is_refused_and_takes_nothing(copy: Copy, words: str) -> None:
    world = World.make(0)
    world.pools[HOST].hold("b", 96)
    world.pools["d0"].hold("b", 4)
    world.pools[STAGING].hold("c", 20)
    with pytest.raises(ExecutorError, match=words):
        world.copier.start(copy)
    assert [pool.free for pool in world.pools.values()].count(PAGES) == 1
    assert world.pools[STAGING].free == 19
    assert not len(world.copier)
    assert not len(world.copier.rings[STAGING])


def test_an_abort_waits_for_what_is_queued_and_not_for_the_rest() -> None:
    world = World.make(0)
    world.pools["p0"].hold("a", 80)
    world.copier.start(Copy(1, "a", "p0", HOST, 0, 80))
    world.copier.abort(1)
    assert world.clock is not None
    world.clock.advance(IN_FLIGHT * (1e-5 + SHAPE.bytes / 1e6) + 1e-9)
    assert world.copier.poll() == [CopyFailed(1, "aborted")]


def test_a_copy_all_of_which_is_queued_arrives_though_it_was_aborted() -> None:
    world = World.make(0)
    held(world, "p0", IN_FLIGHT * SHAPE.page_size)
    world.copier.start(Copy(1, "a", "p0", HOST, 0, IN_FLIGHT * SHAPE.page_size))
    world.copier.abort(1)
    assert ends(world) == [CopyDone(1)]

"""One random life of staged KV: the real copier beside a scheduler's books, on modelled devices or any others.

Three requests, four tiers, every route: writes, copies (to the host, host to staging, staging to the decoding device,
the direct ways, and from the host split over the own link and a helper's slots), aborts, revocations of staged KV and
of slots, drops under copies, links that fail or change their speed, time that passes. A copy that was aborted, revoked
or met an error ends as failed. Held against the books: each copy ends exactly once, what arrived is right byte for
byte, no page is lost, no slot is left.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import torch
from attrs import define, evolve

from alignedsched.cluster import HOST, Cluster, KVLayout, Lane, Link, Role
from alignedsched.cluster import Device as Memory
from alignedsched.events import CopyDone
from alignedsched.plan import Copy
from alignedsched_torch.devices import Clock, CudaDevice, Device, ModelledDevice, ModelledLink, ThreadedDevice
from alignedsched_torch.memory import Copier, KVPool, PageShape, copier

SHAPE = PageShape(1, 1, 2, 4, torch.float64)  # pages of 4 tokens
PAGES = 24
STAGING = "p0+staging"
WAYS = (("p0", HOST), (HOST, STAGING), (STAGING, "d0"), ("p0", "d0"), (HOST, "d0"), ("d0", HOST))
LINKS = (("p0", HOST), (HOST, "p0"), ("p0", "d0"), ("d0", HOST), (HOST, "d0"))
RARE = {STAGING: 0.0, HOST: 0.4}  # ways that are seldom possible go first where they are
NAMES = ("a", "b", "c")


def small_chunks() -> None:
    """Several chunks a copy, so that it can be given up in its middle, and split."""
    copier.HOST_CHUNK_BYTES, copier.PEER_CHUNK_BYTES = SHAPE.bytes, 2 * SHAPE.bytes


@define(eq=False)
class World:
    """Two devices, their pools, and the copier. ``down``: links over which copies fail; ``clock`` if time is modelled.

    ``kind``: modelled, threaded, or cuda (``gpus`` are the indices of the two devices' GPUs, which may be one).
    """

    pools: dict[str, KVPool]
    copier: Copier
    devices: dict[str, Device]
    down: set[str]
    clock: Clock | None

    @classmethod
    def make(
        cls, seed: int, kind: str = "modelled", slots: int = 0, gpus: tuple[int, int] = (0, 0), layers: int = 1
    ) -> World:
        """``slots``: of the helper ``p0`` for split copies. ``layers``: of the model; with several pages are cut."""
        shape = evolve(SHAPE, layers=layers)
        cluster = Cluster(
            (Memory("p0", Role.PREFILL, PAGES, PAGES), Memory("d0", Role.DECODE, PAGES)),
            (Lane("lp", ("p0",)), Lane("ld", ("d0",))),
            PAGES,
            tuple(Link(a, b, 1e6) for a, b in LINKS),
            KVLayout(SHAPE.page_size, 32 * layers),
        )
        clock = Clock({f"{a}->{b}": ModelledLink(1e6, 1e-5) for a, b in LINKS}, seed) if kind == "modelled" else None
        down: set[str] = set() if clock is None else clock.down
        devices: dict[str, Device] = {}
        for name, gpu in zip(("p0", "d0"), gpus, strict=True):
            if clock is not None:
                devices[name] = ModelledDevice(name, clock)
            else:
                devices[name] = CudaDevice(name, gpu) if kind == "cuda" else ThreadedDevice(name, seed, 2e-4, down)
        pools = {
            tier.id: KVPool(tier.id, devices[tier.device or "p0"], shape, tier.blocks, pinned=tier.device is None)
            for tier in cluster.tiers.values()
        }
        return cls(pools, Copier(cluster, pools, devices, slots), devices, down, clock)

    def pass_time(self, seconds: float) -> None:
        """Some time, whatever happens in it."""
        if self.clock is not None:
            self.clock.advance(self.clock.now + seconds)
        else:
            device = self.devices["d0"]
            device.idle(device.now() + seconds)

    def until_next(self) -> None:
        """Until the next thing happens. Raises AssertionError where nothing will."""
        if self.clock is None:
            self.pass_time(1e-4)
            return
        due = self.clock.next()
        assert due is not None, "copies never end"
        self.clock.advance(due)

    def close(self) -> None:
        """End the threads there are."""
        for device in self.devices.values():
            if isinstance(device, ThreadedDevice):
                device.close()


class Life:
    """The copier beside a scheduler's books: which tiers hold how much of a request, and what is under way.

    Actions take no argument; ``rng`` decides everything and may be replaced between two of them.
    """

    def __init__(self, world: World, rng: Random) -> None:
        self.rng = rng
        self.world = world
        self.pools, self.copier = world.pools, world.copier
        self.held: dict[tuple[str, str], int] = {}  # (request, tier) -> tokens that are readable there
        self.flying: dict[int, Copy] = {}
        self.asked = 0
        self.ended: list[int] = []
        self.met: Counter[str] = Counter()
        self.unsure: set[tuple[str, str]] = set()  # what may have more pages than it should, by such copies
        self.void: set[tuple[int, str]] = set()  # copies, and the ends of theirs that were dropped meanwhile

    def live(self, actions: int) -> None:
        """Random actions, then to the end."""
        does = (
            *(self.write,) * 2, *(self.copy,) * 6, *(self.wait,) * 2, *(self.abort,) * 2, *(self.drop,) * 2,
            self.revoke, self.late, self.break_link, self.mend_links, self.take_slots_back,
        )  # fmt: skip
        for _ in range(actions):
            self.rng.choice(does)()
        self.end()

    def end(self) -> None:
        """Everything under way ends, and nothing is left behind. Raises AssertionError naming what is."""
        self.world.down.clear()
        self.poll()
        while self.flying:
            self.world.until_next()
            self.poll()
        assert sorted(self.ended) == list(range(1, self.asked + 1)), "each copy ends exactly once"
        for name in NAMES:
            for tier, pool in self.pools.items():
                self.copier.free_staged(name, tier)
                pool.forget(name)
        assert all(pool.free == PAGES for pool in self.pools.values()), "no page is lost"
        assert not any(len(ring) for ring in self.copier.rings.values()), "no slot is stuck"
        for relays in self.copier.relays.values():
            assert not any(len(relay) or len(relay.ring) for relay in relays), "no slot of a relay is stuck"
            self.met["split"] += any(relay.bytes for relay in relays)
            self.met["a relay broke"] += any(relay.broken for relay in relays)

    # -- what a scheduler does

    def write(self) -> None:
        """A prefill writes KV; a request's KV has the same content wherever it is."""
        name, tier = self.rng.choice(NAMES), self.rng.choice(("p0", "p0", "d0"))
        if (name, tier) in self.held or self.busy(name, tier):
            return
        tokens = max(self.rng.randint(1, 30), self.rng.randint(1, 30))
        self.pools[tier].hold(name, tokens)
        for place, page in enumerate(self.pools[tier].pages(name)):
            self.pools[tier].data[page] = self.content(name, place)
        self.held[name, tier] = tokens

    def copy(self) -> None:
        """One of the copies that make sense now: whole, in part, or only what the target lacks."""
        possible = [
            (name, source, target)
            for source, target in sorted(WAYS, key=lambda way: self.rng.random() + RARE.get(way[0], 0.8))
            for name in self.rng.sample(NAMES, len(NAMES))
            if self.held.get((name, source), 0) > self.held.get((name, target), 0)
            and not self.busy(name, target)
            and not (target == STAGING and (name, target) in self.held)
        ]
        if not possible:
            return
        name, source, target = possible[0]
        start = self.held.get((name, target), 0)
        self.asked += 1
        copy = Copy(self.asked, name, source, target, start, self.rng.randint(start + 1, self.held[name, source]))
        self.copier.start(copy)
        self.flying[copy.copy] = copy

    def abort(self) -> None:
        if self.flying:
            self.copier.abort(self.rng.choice(sorted(self.flying)))
            self.poll()  # one that has not begun has ended

    def revoke(self) -> None:
        name = self.rng.choice(NAMES)
        self.copier.revoke(name, STAGING)
        if self.rng.random() < 0.5:  # else the scheduler has not heard of it yet, and may still copy from there
            self.held.pop((name, STAGING), None)

    def take_slots_back(self) -> None:
        """The helper wants the slots of split copies; what was in them goes another way."""
        self.copier.revoke_slots("p0")

    def drop(self) -> None:
        """Also while copies touch it: the pages they touch are not free before they have ended."""
        name, tier = self.rng.choice(NAMES), self.rng.choice((*self.pools, "d0", "d0", "d0"))
        touching = [c for c in self.flying.values() if c.request == name and tier in (c.source, c.target)]
        touched = SHAPE.pages(max((c.end for c in touching if (c.copy, tier) not in self.void), default=0))
        free, pages = self.pools[tier].free, len(self.pools[tier].pages(name))
        self.held.pop((name, tier), None)
        self.copier.free_staged(name, tier)
        self.pools[tier].forget(name)
        self.void.update((c.copy, tier) for c in touching)
        self.met["dropped under a copy"] += bool(touching)
        assert self.pools[tier].free <= free + max(0, pages - touched)

    # -- what happens to it

    def wait(self) -> None:
        self.world.pass_time(self.rng.random() ** 2 * 2e-3)
        self.poll()

    def late(self) -> None:
        """A link changes its speed, so that copies over different links overtake each other."""
        link, speed = self.rng.choice(LINKS), 10 ** self.rng.uniform(5, 7)
        if self.world.clock is not None:
            self.world.clock.links["->".join(link)] = ModelledLink(speed, 1e-5)

    def break_link(self) -> None:
        """What is on its way over it fails."""
        self.world.down.add("->".join(self.rng.choice(LINKS)))

    def mend_links(self) -> None:
        self.world.down.clear()

    # -- what must hold

    def poll(self) -> None:
        for event in self.copier.poll():
            copy = self.flying.pop(event.copy)  # KeyError: it had ended already
            self.ended.append(event.copy)
            key = (copy.request, copy.target)
            self.met[f"{copy.source}->{copy.target} {how(event)}"] += 1
            if self.void & {(event.copy, copy.source), (event.copy, copy.target)}:
                self.unsure.add(key)
                if key not in self.held and not self.busy(*key):
                    self.copier.free_staged(*key)
                    self.pools[copy.target].forget(copy.request)
                continue
            kept = copy.end if isinstance(event, CopyDone) else copy.start
            self.right(copy.request, copy.target, kept)
            if key not in self.unsure:
                assert len(self.pools[copy.target].pages(copy.request)) == SHAPE.pages(kept)
            if kept:
                self.held[key] = kept

    def right(self, name: str, tier: str, tokens: int) -> None:
        pool = self.pools[tier]
        for place, page in enumerate(pool.pages(name)[: SHAPE.pages(tokens)]):
            kept = min(SHAPE.page_size, tokens - place * SHAPE.page_size)
            assert bool((pool.data[page, :, :, :, :kept] == self.content(name, place)).all()), (name, tier, place)

    @staticmethod
    def content(name: str, place: int) -> float:
        return 1000.0 * (1 + NAMES.index(name)) + place

    def busy(self, name: str, tier: str) -> bool:
        return any(copy.request == name and tier in (copy.source, copy.target) for copy in self.flying.values())


def how(event: object) -> str:
    """How a copy ended, in few words."""
    reason = getattr(event, "reason", "done")
    return "link down" if "is down" in reason else str(reason)

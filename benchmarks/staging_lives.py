"""Random lives of staged KV on modelled devices: the real copier beside a scheduler's books.

    python -m benchmarks.staging_lives --lives 10000 [--json benchmarks/results/staging_lives.json]

A life is 60 random actions on three requests in four tiers: writes, copies (to the host, host to staging, staging to
the decoding device, and the direct ways), aborts, revocations, drops under copies, links that change their speed, time
that passes. A copy that was aborted or revoked ends as failed. Held against the books: each copy ends exactly once,
what arrived is right byte for byte, no page is lost, no slot is left.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch

from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.events import CopyDone
from alignedsched.plan import Copy
from alignedsched_torch.devices import Clock, ModelledDevice, ModelledLink
from alignedsched_torch.memory import Copier, KVPool, PageShape, copier

SHAPE = PageShape(1, 1, 2, 4, torch.float64)  # pages of 4 tokens
PAGES = 24
STAGING = "p0+staging"
WAYS = (("p0", HOST), (HOST, STAGING), (STAGING, "d0"), ("p0", "d0"), (HOST, "d0"), ("d0", HOST))
NAMES = ("a", "b", "c")
ACTIONS = 60


def make(seed: int) -> tuple[Clock, dict[str, KVPool], Copier]:
    ends = (("p0", HOST), (HOST, "p0"), ("p0", "d0"), ("d0", HOST), (HOST, "d0"))
    cluster = Cluster(
        (Device("p0", Role.PREFILL, PAGES, PAGES), Device("d0", Role.DECODE, PAGES)),
        (Lane("lp", ("p0",)), Lane("ld", ("d0",))),
        PAGES,
        tuple(Link(a, b, 1e6) for a, b in ends),
        KVLayout(SHAPE.page_size, 32),
    )
    clock = Clock({f"{a}->{b}": ModelledLink(1e6, 1e-5) for a, b in ends}, seed)
    devices = {name: ModelledDevice(name, clock) for name in ("p0", "d0")}
    pools = {
        tier.id: KVPool(tier.id, devices[tier.device or "p0"], SHAPE, tier.blocks, pinned=tier.device is None)
        for tier in cluster.tiers.values()
    }
    return clock, pools, Copier(cluster, pools, devices)


class Life:
    """The copier beside a scheduler's books: which tiers hold how much of a request, and what is under way."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.clock, self.pools, self.copier = make(seed)
        self.held: dict[tuple[str, str], int] = {}  # (request, tier) -> tokens that are readable there
        self.flying: dict[int, Copy] = {}
        self.asked = 0
        self.ended: list[int] = []
        self.met: Counter[str] = Counter()
        self.unsure: set[tuple[str, str]] = set()  # what may have more pages than it should, by such copies
        self.void: set[tuple[int, str]] = set()  # copies, and the ends of theirs that were dropped meanwhile

    def live(self, actions: int) -> Counter[str]:
        """Random actions, then to the end; returns what was met on the way."""
        does = (self.write, self.copy, self.copy, self.copy, self.wait, self.abort, self.revoke, self.drop, self.late)
        for _ in range(actions):
            self.rng.choice(does)()
        self.poll()
        while self.flying:
            due = self.clock.next()
            assert due is not None, f"copies {sorted(self.flying)} never end"
            self.clock.advance(due)
            self.poll()
        assert sorted(self.ended) == list(range(1, self.asked + 1)), "each copy ends exactly once"
        for name in NAMES:
            for tier, pool in self.pools.items():
                self.copier.free_staged(name, tier)
                pool.forget(name)
        assert all(pool.free == PAGES for pool in self.pools.values()), "no page is lost"
        assert not any(len(ring) for ring in self.copier.rings.values()), "no slot is stuck"
        return self.met

    # -- what a scheduler does

    def write(self) -> None:
        """A prefill writes KV; a request's KV has the same content wherever it is."""
        name, tier = self.rng.choice(NAMES), self.rng.choice(("p0", "d0"))
        if (name, tier) in self.held or self.busy(name, tier):
            return
        tokens = self.rng.randint(1, 30)
        self.pools[tier].hold(name, tokens)
        for place, page in enumerate(self.pools[tier].pages(name)):
            self.pools[tier].data[page] = self.content(name, place)
        self.held[name, tier] = tokens

    def copy(self) -> None:
        """One of the copies that make sense now: whole, in part, or only what the target lacks."""
        possible = [
            (name, source, target)
            for name in NAMES
            for source, target in WAYS
            if self.held.get((name, source), 0) > self.held.get((name, target), 0)
            and not self.busy(name, target)
            and not self.extended(name, source)
            and not (target == STAGING and (name, target) in self.held)
        ]
        if not possible:
            return
        name, source, target = self.rng.choice(possible)
        start = self.held.get((name, target), 0)
        self.asked += 1
        copy = Copy(self.asked, name, source, target, start, self.rng.randint(start + 1, self.held[name, source]))
        self.copier.start(copy)
        self.flying[copy.copy] = copy

    def abort(self) -> None:
        if self.flying:
            self.copier.abort(self.rng.choice(sorted(self.flying)))

    def revoke(self) -> None:
        name = self.rng.choice(NAMES)
        self.copier.revoke(name, STAGING)
        if self.rng.random() < 0.5:  # else the scheduler has not heard of it yet, and may still copy from there
            self.held.pop((name, STAGING), None)

    def drop(self) -> None:
        """Also while copies touch it: the pages they touch are not free before they have ended."""
        name, tier = self.rng.choice(NAMES), self.rng.choice((*self.pools,))
        touching = [c for c in self.flying.values() if c.request == name and tier in (c.source, c.target)]
        touched = SHAPE.pages(max((c.end for c in touching if (c.copy, tier) not in self.void), default=0))
        free, pages = self.pools[tier].free, len(self.pools[tier].pages(name))
        self.held.pop((name, tier), None)
        self.copier.free_staged(name, tier)
        self.pools[tier].forget(name)
        self.void.update((c.copy, tier) for c in touching)
        self.met["dropped under a copy"] += bool(touching)
        assert self.pools[tier].free <= free + max(0, pages - touched)

    def wait(self) -> None:
        self.clock.advance(self.clock.now + self.rng.random() ** 2 * 4e-3)
        self.poll()

    def late(self) -> None:
        """A link changes its speed, so that copies over different links overtake each other."""
        link = self.rng.choice(sorted(self.clock.links))
        self.clock.links[link] = ModelledLink(10 ** self.rng.uniform(5, 7), 1e-5)

    # -- what must hold

    def poll(self) -> None:
        for event in self.copier.poll():
            copy = self.flying.pop(event.copy)  # KeyError: it had ended already
            self.ended.append(event.copy)
            key = (copy.request, copy.target)
            self.met[f"{copy.source}->{copy.target} {getattr(event, 'reason', 'done')}"] += 1
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

    def extended(self, name: str, tier: str) -> bool:
        """Whether a copy goes behind what the tier has: it rewrites the page it begins in, with the same bytes."""
        return any(copy.request == name and copy.target == tier and copy.start for copy in self.flying.values())


def small_chunks() -> None:
    """Several chunks a copy, so that it can be given up in its middle."""
    copier.HOST_CHUNK_BYTES, copier.PEER_CHUNK_BYTES = 2 * SHAPE.bytes, 3 * SHAPE.bytes


def measure(lives: int, seed: int = 0) -> dict[str, Any]:
    """So many lives from a seed on. Raises AssertionError, after the seed, at the first that goes wrong."""
    met: Counter[str] = Counter()
    copies = 0
    began = time.monotonic()
    for number in range(seed, seed + lives):
        life = Life(number)
        try:
            met += life.live(ACTIONS)
        except AssertionError as error:
            raise AssertionError(f"seed {number}: {error}") from error
        copies += life.asked
    return {
        "what": "random staging lives on modelled devices: no wrong byte, no lost page, no stuck slot",
        "lives": lives,
        "actions": lives * ACTIONS,
        "first_seed": seed,
        "copies": copies,
        "met": dict(sorted(met.items())),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    small_chunks()
    result = measure(given.lives, given.seed)
    print(json.dumps(result, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

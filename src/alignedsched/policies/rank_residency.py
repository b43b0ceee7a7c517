"""Residency of lanes whose ranks step together: who joins comes to the rank that stays the fastest with it.

The most free blocks say little of a rank's step, and nothing of its seats: KV sent where no seat is waits for one,
while other ranks have some. So ranks with a seat and room come first, and of those the one whose step would be the
shortest, as in admission (``rank_balance``). Members on their way between ranks are copied over the link there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from attrs import frozen

from ..request import RequestId
from ..views import Entry, LaneView
from .protocols import Evict, Transfer
from .rank_balance import RankLoad, least
from .rank_migration import Migration, RankMemory
from .residency import fetch_joining

AHEAD = 64  # steps from now at which whoever joins should find the ranks even, as in RankOrder


class Migrating(Protocol):
    """What residency has to know of the batching it serves."""

    migration: Migration

    def on_ranks(self, lane: str) -> RankMemory:
        """What is remembered of a lane's ranks."""
        ...


@frozen
class RankResidency:
    """On lanes of one rank it is ``DirectResidency`` that sends nothing to the host."""

    batching: Migrating

    def place(self, view: LaneView) -> Iterator[Transfer | Evict]:
        """See Residency. O(joining + under way), and O(ranks) prices for each that is sent for."""
        if len(view.ranks) == 1:
            yield from fetch_joining(view)
            return
        yield from fetch_evenly(view)
        yield from self.batching.migration.place(view, self.batching.on_ranks(view.lane.id))


def fetch_evenly(view: LaneView) -> Iterator[Transfer]:
    """Joining requests, in the order chosen, each to the rank that stays the fastest with it."""
    if not view.joining:
        return
    ranks = RankLoad.of(view, view.lane.max_tokens, view.lane.max_members)
    wanted: list[Entry] = []
    for request in view.joining:
        entry, rank = view.entry(request), _goes_to(view, request)
        if rank is not None:
            ranks[rank].take(entry.stored, 0)  # its blocks are not free any more
        elif not view.flying(request):
            wanted.append(entry)
    for entry in wanted:
        length, need = entry.context_length, view.layout.blocks(entry.context_length)
        fitting = [rank for rank in ranks if rank.free >= need and _linked(view, entry, rank.rank)]
        place = least([rank for rank in fitting if rank.seats > 0] or fitting, view.costs, length, AHEAD)
        if place is None:
            return
        place.take(entry.stored, need)
        yield Transfer(entry.id, view.ranks[place.rank].tier, why="wanted in the running batch")


def _linked(view: LaneView, entry: Entry, rank: int) -> bool:
    return any(view.route(tier, view.ranks[rank].tier) is not None for tier in entry.tiers)


def _goes_to(view: LaneView, request: RequestId) -> int | None:
    """The rank that a joining request is being copied to, or waits on for a seat. O(ranks)."""
    entry, flying = view.entry(request), view.flying(request)
    for rank in view.ranks:
        if rank.tier in flying or entry.tiers.get(rank.tier, 0) >= entry.stored:
            return rank.rank
    return None

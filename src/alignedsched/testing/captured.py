"""A lane's view taken down as plain values: to compare with later, and to be asked again without a scheduler behind."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, frozen

from ..batch import RunningBatch
from ..cluster import Link
from ..pool import Pool
from ..queue import Queue, Waiting
from ..request import Request, RequestId
from ..views import BatchReader, Entry, LaneView, PoolReader, Prefill, QueueReader
from ..views.columns import ColumnRank, ColumnView


@frozen
class RankValues:
    """One rank: members with their context lengths, shortest first, and its room."""

    tier: str
    members: tuple[tuple[RequestId, int], ...]
    capacity: int
    free: int
    waiting: int


@frozen
class Captured:
    """Everything a view shows, in the order it shows it. Equal if and only if the views show the same."""

    now: float
    step: int
    ranks: tuple[RankValues, ...]
    queue: tuple[Waiting, ...]
    again: tuple[RequestId, ...]  # those of them that were preempted, longest here first
    pool: tuple[tuple[RequestId, int, int, int, bool], ...]  # (id, length, order, blocks, again), by arrival
    pool_by_length: tuple[RequestId, ...]
    prefilling: tuple[Prefill, ...]
    expected: tuple[RequestId, ...]
    candidates: tuple[RequestId, ...]
    joining: tuple[RequestId, ...]
    resident: tuple[RequestId, ...]
    loads: tuple[tuple[str, int], ...]
    rooms: tuple[tuple[str, int], ...]
    leaving: int
    entries: tuple[tuple[RequestId, Entry], ...]
    free: tuple[tuple[str, int], ...]
    flying: tuple[tuple[RequestId, frozenset[str]], ...]
    links: tuple[tuple[tuple[str, str], Link | None], ...]

    @classmethod
    def of(cls, view: LaneView) -> Captured:
        """Take a view down. O(everything it shows)."""
        pool = view.pool
        ranks = tuple(
            RankValues(
                rank.tier,
                tuple((member, rank.batch.context_length(member)) for member in rank.batch),
                rank.capacity,
                rank.free,
                rank.waiting,
            )
            for rank in view.ranks
        )
        by_order, anew = tuple(pool.by_order()), frozenset(pool.again())
        members = (member for rank in ranks for member, _ in rank.members)
        known = (*by_order, *view.expected, *view.candidates, *view.joining, *members)
        tiers = tuple(view.cluster.tiers)
        return cls(
            view.now,
            view.step,
            ranks,
            tuple(view.queue),
            view.queue.again(),
            tuple((r, pool.length(r), pool.order(r), pool.blocks(r), r in anew) for r in by_order),
            tuple(pool.by_length()),
            tuple(view.prefilling),
            tuple(view.expected),
            tuple(view.candidates),
            tuple(view.joining),
            tuple(view.resident),
            tuple(view.loads.items()),
            tuple(view.rooms.items()),
            view.leaving,
            tuple((request, view.entry(request)) for request in known),
            tuple((tier, view.free(tier)) for tier in tiers),
            tuple((request, view.flying(request)) for request in known),
            tuple(((a, b), view.route(a, b)) for a in tiers for b in tiers),
        )

    def view(self, like: LaneView) -> LaneView:
        """The same view over plain values. ``like`` gives what never changes: lane, cluster, costs, caller's hook."""
        pool, queue = Pool(), Queue()
        for request, length, order, blocks, again in self.pool:
            pool.add(request, length, order, blocks, again)
        places = {waiting.request.id: (place, waiting) for place, waiting in enumerate(self.queue)}
        for request in dict.fromkeys((*self.again, *places)):  # a queue tells the preempted in the order they came
            queue.add(places[request][1], places[request][0])
        ranks = []
        for number, values in enumerate(self.ranks):
            batch = RunningBatch(like.layout.block_size)
            for member, length in values.members:
                batch.add(member, length)
            reader = BatchReader(batch, lambda: 0)
            ranks.append(ColumnRank(number, values.tier, reader, values.capacity, values.free, values.waiting))
        return PlainView(
            now=self.now,
            step=self.step,
            lane=like.lane,
            role=like.role,
            cluster=like.cluster,
            layout=like.layout,
            costs=like.costs,
            queue=QueueReader(queue),
            pool=PoolReader(pool),
            ranks=tuple(ranks),
            entries=dict(self.entries),
            free=dict(self.free),
            prefilling=self.prefilling,
            expected=self.expected,
            candidates=self.candidates,
            joining=self.joining,
            resident=self.resident,
            loads=dict(self.loads),
            rooms=dict(self.rooms),
            leaving=self.leaving,
            flying=dict(self.flying),
            links=dict(self.links),
            like=like,
        )


@define(kw_only=True)
class PlainView(ColumnView):
    """A ColumnView that also knows what flies, which links are up, and what the caller's hook allows."""

    _flying: Mapping[RequestId, frozenset[str]]
    _links: Mapping[tuple[str, str], Link | None]
    _like: LaneView

    def flying(self, request: RequestId) -> frozenset[str]:
        return self._flying.get(request, frozenset())

    def route(self, source: str, target: str) -> Link | None:
        return self._links.get((source, target))

    def free(self, tier: str) -> int:
        return self._free.get(tier, 0)

    def eligible(self, request: Request) -> bool:
        return self._like.eligible(request)

"""KV on its way between processes: who asks whom for what, until each copy has ended once.

The side that has the KV *lends* its pages, the side that wants it *moves* them into its own; where one side is the host
pool, whose pages the driver keeps, the worker of the other side moves at once. Every rank moves its own share.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define, field

from alignedsched.cluster import HOST, Cluster
from alignedsched.events import CopyDone, CopyFailed
from alignedsched.plan import Copy

from ..memory import KVPool
from ..memory.pool import Holding
from .messages import Lend, Move, Moved


@define(eq=False)
class Draft:
    """Messages for one lane, not sent yet."""

    returned: list[int] = field(factory=list)
    moves: list[Move] = field(factory=list)
    lends: list[Lend] = field(factory=list)


@define(eq=False)
class _Flight:
    copy: Copy
    lender: str  # lane that lends pages, or ""
    mover: str  # lane that moves them
    pages: dict[int, tuple[int, ...]] = field(factory=dict)  # lent so far, by rank
    ended: set[int] = field(factory=set)  # ranks whose share has
    error: str = ""  # of a rank whose share has not arrived
    moving: bool = False
    aborted: bool = False
    held: Holding | None = None  # the host's pages it touches


class Flights:
    """Copies under way. ``lane_of``: which lane's workers hold a tier; ``host``: the driver's pool, if there is one."""

    def __init__(self, cluster: Cluster, lane_of: Mapping[str, str], host: KVPool | None, ranks: int) -> None:
        self._cluster = cluster
        self._lane_of = lane_of
        self._host = host
        self._ranks = ranks
        self._flights: dict[int, _Flight] = {}
        self.copied_bytes: dict[tuple[str, str], int] = dict.fromkeys(cluster.link, 0)
        self.staged_bytes = 0

    def __len__(self) -> int:
        return len(self._flights)

    def start(self, copy: Copy, drafts: Mapping[str, Draft]) -> None:
        """Send a copy on its way. Raises ExecutorError when the host pool's pages are not there."""
        source, target = self._lane_of.get(copy.source, ""), self._lane_of.get(copy.target, "")
        flight = _Flight(copy, source if source and target and source != target else "", target or source)
        self._flights[copy.copy] = flight
        if flight.lender:
            drafts[source].lends.append(Lend(copy.copy, copy.request, copy.source, copy.start, copy.end))
            return
        pages: tuple[int, ...] = ()
        if HOST in (copy.source, copy.target):
            pages = self._host_pages(flight)
        self._move(flight, dict.fromkeys(range(self._ranks), pages), drafts)

    def _host_pages(self, flight: _Flight) -> tuple[int, ...]:
        host, copy = self._host, flight.copy
        assert host is not None, "a cluster without host blocks has no host tier"
        if copy.target == HOST:
            host.hold(copy.request, copy.end)
        flight.held = host.touch(copy.request, 1, copy.end)
        size = host.shape.page_size
        return tuple(host.pages(copy.request)[copy.start // size : host.shape.pages(copy.end)])

    def _move(self, flight: _Flight, pages: Mapping[int, tuple[int, ...]], drafts: Mapping[str, Draft]) -> None:
        copy = flight.copy
        flight.moving = True
        far = tuple(pages[rank] for rank in range(self._ranks))
        move = Move(copy.copy, copy.request, copy.source, copy.target, copy.start, copy.end, far)
        drafts[flight.mover].moves.append(move)

    def abort(self, copy: int) -> None:
        """Nobody wants a copy any more: it goes no further than it is. Unknown: it has ended."""
        if copy in self._flights:
            self._flights[copy].aborted = True

    def lent(self, copy: int, rank: int, pages: tuple[int, ...], drafts: Mapping[str, Draft]) -> list[CopyFailed]:
        """A rank's pages may be read. Returns the end of a copy that nobody wants any more."""
        flight = self._flights.get(copy)
        if flight is None:
            return []
        flight.pages[rank] = pages
        if len(flight.pages) < self._ranks:
            return []
        if flight.aborted:
            self._end(flight, drafts)
            return [CopyFailed(copy, "aborted")]
        self._move(flight, flight.pages, drafts)
        return []

    def moved(self, moved: Moved, rank: int, drafts: Mapping[str, Draft]) -> list[CopyDone | CopyFailed]:
        """A rank's share has ended. Returns the end of the copy when all shares have."""
        flight = self._flights.get(moved.copy)
        if flight is None:
            return []
        flight.ended.add(rank)
        flight.error = flight.error or moved.error
        if len(flight.ended) < self._ranks:
            return []
        self._end(flight, drafts)
        copy = flight.copy
        if flight.error:
            if flight.held is not None and self._host is not None and copy.target == HOST:
                self._host.undo(copy.request, flight.held, copy.start)
            return [CopyFailed(copy.copy, flight.error)]
        ends = self._cluster.place(copy.source), self._cluster.place(copy.target)
        size = self._cluster.layout.copy_bytes(copy.start, copy.end)
        self.copied_bytes[ends] += size
        self.staged_bytes += size if self._cluster.tiers[copy.target].staged else 0
        return [CopyDone(copy.copy)]

    def lose(self, lane: str, drafts: Mapping[str, Draft]) -> None:
        """A lane's workers are gone: copies from and to their memory have ended, untold."""
        for flight in tuple(self._flights.values()):
            if lane in (flight.lender, flight.mover):
                self._end(flight, drafts)

    def _end(self, flight: _Flight, drafts: Mapping[str, Draft]) -> None:
        copy = flight.copy
        del self._flights[copy.copy]
        if flight.lender:
            drafts[flight.lender].returned.append(copy.copy)
        if flight.held is not None and self._host is not None:
            self._host.leave(flight.held)

"""The scheduler's own LaneView: a live, read-only window on the books, for one lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .books import Books
from .cluster import Cluster, KVLayout, Lane, Link, Role
from .lane_book import LaneBook
from .live import Live
from .load import Costs
from .request import Request, RequestId
from .states import CopyState, RequestState
from .views import BatchReader, Entry, PoolReader, Prefill, QueueReader, RankView


class LiveRank:
    """One rank of a scheduler's lane: a RankView that reads the books when asked."""

    __slots__ = ("_books", "_lane", "batch", "rank", "tier")

    def __init__(self, books: Books, lane: LaneBook, rank: int) -> None:
        self._books = books
        self._lane = lane
        self.rank = rank
        self.tier = lane.tiers[rank]
        self.batch = BatchReader(lane.state.batches[rank], lane.state.latest_first)

    @property
    def capacity(self) -> int:
        return self._books.ledger.capacity(self.tier)

    @property
    def free(self) -> int:
        return self._books.ledger.free(self.tier)

    @property
    def waiting(self) -> int:
        """O(requests in prefill here)."""
        lane, live = self._lane, self._books.live
        if len(lane.tiers) == 1:
            return len(lane.prefilling) + len(lane.expected) + len(lane.joining)
        return sum(1 for request in (*lane.prefilling, *lane.expected) if live[request].rank == self.rank)


class SchedulerView:
    """What a policy sees of a scheduler when it decides for one lane. Nothing is copied but small tuples."""

    __slots__ = ("_books", "_eligible", "_lane", "_largest", "cluster", "costs", "layout", "pool", "queue", "ranks")

    def __init__(self, books: Books, lane: LaneBook, costs: Costs | None, eligible: Callable[[Request], bool]) -> None:
        self._books = books
        self._lane = lane
        self._eligible = eligible
        self.ranks: Sequence[RankView] = tuple(LiveRank(books, lane, rank) for rank in range(len(lane.tiers)))
        self.cluster: Cluster = books.cluster
        self.layout: KVLayout = books.layout
        self.costs = costs
        self.pool = PoolReader(books.pool)
        self.queue = QueueReader(books.queue)
        devices = books.cluster.device
        self._largest = max(min(devices[tier].kv_blocks for tier in book.tiers) for book in books.prefillers)

    @property
    def now(self) -> float:
        return self._books.now

    @property
    def lane(self) -> Lane:
        return self._lane.state.lane

    @property
    def step(self) -> int:
        return self._lane.state.latest_first()

    @property
    def role(self) -> Role:
        return self._lane.state.role

    @property
    def why(self) -> str:
        """What batching said of its last composition for the lane: for those who report, a policy knows it."""
        return self._lane.why

    @property
    def prefilling(self) -> Sequence[Prefill]:
        if not self._lane.prefilling:
            return ()
        live = self._books.live
        begun = [live[request] for request in self._lane.prefilling]
        return tuple(Prefill(b.id, b.target - b.ordered, b.rank, b.order) for b in begun)

    @property
    def expected(self) -> Sequence[RequestId]:
        if not self._lane.expected:
            return ()
        limit = self.cluster.max_positions
        return tuple(r for r in self._lane.expected if self._books.live[r].tokens_left(limit) > 1)

    @property
    def candidates(self) -> Sequence[RequestId]:
        return tuple(self._lane.candidates)

    @property
    def joining(self) -> Sequence[RequestId]:
        return tuple(self._lane.joining)

    @property
    def resident(self) -> Sequence[RequestId]:
        return tuple(request for tier in self._lane.tiers for request in self._books.resident[tier])

    @property
    def leaving(self) -> int:
        return len(self._lane.fences)

    @property
    def loads(self) -> Mapping[str, int]:
        return {
            lane.id: lane.state.members() + len(lane.joining) + len(lane.prefilling) + len(lane.expected)
            for lane in self._books.deciders
            if not lane.state.lost
        }

    @property
    def rooms(self) -> Mapping[str, int]:
        return {lane.id: self._books.room(lane) for lane in self._books.deciders if not lane.state.lost}

    def entry(self, request: RequestId) -> Entry:
        live = self._books.live[request]
        limit = self.cluster.max_positions
        length, produced = self._length(live)
        ledger = self._books.ledger
        tiers = {tier: e.tokens for tier, e in ledger.extents(request).items() if e.tokens or e.growing}
        known = None if live.request.output_limit is None else live.tokens_left(limit) - (produced - live.produced)
        r = live.request
        return Entry(
            request, length, live.order, r.arrival, live.since, produced, known, r.priority, r.tenant, r.kind,
            live.preemptions, tiers, r.deadline,
        )  # fmt: skip

    def _length(self, live: Live) -> tuple[int, int]:
        """Context length of the next step, and tokens produced until then."""
        if live.state is not RequestState.RUNNING:
            return live.context_length, live.produced
        state = self._lane.state if live.lane == self._lane.id else self._books.lanes[live.lane or ""].state
        length = state.batches[live.rank].base(live.id) + state.latest_first()
        return length, live.produced + length - live.context

    def free(self, tier: str) -> int:
        return self._books.ledger.free(tier) if tier in self.cluster.tiers else 0

    def flying(self, request: RequestId) -> frozenset[str]:
        live = self._books.live.get(request)
        if live is None or not live.copies:
            return frozenset()
        flights = (self._books.flights[copy] for copy in live.copies)
        return frozenset(flight.target for flight in flights if flight.state is CopyState.FLYING)

    def route(self, source: str, target: str) -> Link | None:
        link = self.cluster.route(source, target)
        return link if link is not None and self._books.links[link.source, link.target] > 0 else None

    def eligible(self, request: Request) -> bool:
        return self._eligible(request) and self._holdable(request)

    def _holdable(self, request: Request) -> bool:
        """Whether the lane's devices, as large as they are now, could prefill a request that queues. O(ranks).

        With room for one token more, as admission policies ask for. What does not fit waits for a larger lane, or for
        capacity to come back, and blocks nobody behind it.
        """
        room = [*map(self._books.ledger.usable, self._lane.tiers)]
        if min(room) >= self._largest:
            return True
        if request.id not in self._books.queue:
            return True
        tokens = self._books.queue.get(request.id).prefill_tokens
        return self.layout.blocks(tokens + 1) <= max(room)

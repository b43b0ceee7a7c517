"""What stands where in an engine that keeps its own queue and block tables, kept from step to step; and its view.

A ``Board`` holds the same structures as a ``Scheduler`` (running batch, pool, queue), fed from an engine's columns
instead of from events, for one lane of one rank. ``BoardView`` is what policies see of it. A step that changes nothing
costs nothing here: members keep ``base = context length - step``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from attrs import define, field

from ..batch import RunningBatch
from ..cluster import HOST as HOST_TIER
from ..cluster import Cluster, Device, KVLayout, Lane, Link, Role
from ..load import Costs, Load
from ..pool import Pool
from ..queue import Queue, Waiting
from ..request import Request, RequestId
from ..views import BatchReader, ColumnRank, Entry, PoolReader, Prefill, QueueReader, RankView
from .columns import DEVICE, HOST, TO_DEVICE, TO_HOST

TIER, LANE = "gpu", "lane"


class At(enum.Enum):
    """What a request whose KV exists is doing."""

    PREFILL = enum.auto()
    RUNNING = enum.auto()
    POOLED = enum.auto()
    CANDIDATE = enum.auto()
    JOINING = enum.auto()


@define(eq=False)
class Row:
    """One request whose KV exists. ``base``: its context length, less the step while it runs."""

    request: Request
    order: int
    base: int
    at: At
    place: str
    since: float
    left: int = 0
    joined: int = 0  # context length at which it joined the running batch
    preemptions: int = 0


@define(eq=False)
class Board:
    """The state of one lane. Blocks are counted as the engine counts them: ``spare`` are those that nobody has."""

    cluster: Cluster
    batch: RunningBatch = field(init=False)
    pool: Pool = field(init=False, factory=Pool)
    queue: Queue = field(init=False, factory=Queue)
    rows: dict[RequestId, Row] = field(init=False, factory=dict)
    running: dict[RequestId, None] = field(init=False, factory=dict)
    prefilling: dict[RequestId, None] = field(init=False, factory=dict)
    resident: dict[RequestId, None] = field(init=False, factory=dict)  # pooled, on the device; longest there first
    candidates: dict[RequestId, None] = field(init=False, factory=dict)
    joining: dict[RequestId, None] = field(init=False, factory=dict)
    away: dict[RequestId, None] = field(init=False, factory=dict)  # the KV is not, or not only, on the device
    moving: dict[RequestId, None] = field(init=False, factory=dict)  # a copy of the KV is under way
    now: float = field(init=False, default=0.0)
    step: int = field(init=False, default=0)
    spare: int = field(init=False, default=0)
    host_spare: int = field(init=False, default=0)
    arrivals: int = field(init=False, default=0)
    moved: bool = field(init=False, default=False)  # somebody has come, gone, or does something else

    def __attrs_post_init__(self) -> None:
        self.batch = RunningBatch(self.layout.block_size)

    @property
    def layout(self) -> KVLayout:
        return self.cluster.layout

    def next_order(self) -> int:
        """A new request's arrival number."""
        self.arrivals += 1
        return self.arrivals - 1

    # -- lengths and room

    def length(self, row: Row) -> int:
        """Context length of the request's next step."""
        return row.base + self.step if row.at is At.RUNNING else row.base

    def produced(self, row: Row) -> int:
        """Tokens it has made; the first one comes with the end of its prefill."""
        return self.length(row) - row.request.prompt_tokens - (1 if row.left else 0)

    def stored_blocks(self, row: Row) -> int:
        """Blocks of the device that hold its KV, none of them shared."""
        if row.place == HOST:
            return 0
        return self.layout.blocks(self.length(row) - 1 - row.left)

    @property
    def free(self) -> int:
        """Free blocks once the next step of the members, and prefill that has begun, have theirs. O(in prefill)."""
        free = self.spare - self.batch.growth(self.step)
        if not self.prefilling:
            return free
        blocks = self.layout.blocks
        for request in self.prefilling:
            row = self.rows[request]
            free -= blocks(row.base) - blocks(row.base - 1 - row.left)
        return free

    def load(self) -> Load:
        """The running batch's next step. O(1)."""
        return Load(len(self.batch), self.batch.total(self.step), self.batch.longest(self.step))

    # -- moves

    def put(self, row: Row, at: At) -> None:
        """A request begins to do something, from now on."""
        self.remove(row)
        request, length = row.request.id, row.base
        self.rows[request] = row
        row.at, row.since, self.moved = at, self.now, True
        if row.place != DEVICE:
            self.away[request] = None
            if row.place != HOST:
                self.moving[request] = None
        if at is At.RUNNING:
            row.base, row.joined = length - self.step, length
            self.batch.add(request, row.base)
            self.running[request] = None
        elif at is At.POOLED:
            self.pool.add(request, length, row.order, self.layout.blocks(length), row.preemptions > 0)
            if row.place in (DEVICE, TO_HOST):
                self.resident[request] = None
        else:
            self._claimed(at)[request] = None

    def _claimed(self, at: At) -> dict[RequestId, None]:
        return self.prefilling if at is At.PREFILL else self.joining if at is At.JOINING else self.candidates

    def update(self, row: Row, length: int, left: int, place: str, at: At) -> None:
        """A request has another length or place; it goes on with what it does, or does something else."""
        goes_on, since, joined = at is row.at, row.since, row.joined
        if goes_on and at is At.PREFILL and place == row.place:
            row.base, row.left = length, left
            return
        self.remove(row)
        row.base, row.left, row.place = length, left, place
        self.put(row, at)
        if goes_on:
            row.since, row.joined = since, min(joined, length)

    def remove(self, row: Row) -> None:
        """A request is gone from where it was, if it was anywhere; its ``base`` is its context length then."""
        request = row.request.id
        if self.rows.pop(request, None) is None:
            return
        row.base = self.length(row)
        self.moved = True
        self.away.pop(request, None)
        self.moving.pop(request, None)
        if row.at is At.RUNNING:
            self.batch.remove(request)
            del self.running[request]
        elif row.at is At.POOLED:
            self.pool.remove(request)
            self.resident.pop(request, None)
        else:
            del self._claimed(row.at)[request]

    def queue_again(self, row: Row, rank: float, produced: int | None = None) -> None:
        """A request whose KV is lost waits to be computed again, with the tokens it has ``produced``."""
        made = self.produced(row) if produced is None else produced
        self.remove(row)
        self.queue.add(Waiting(row.request, row.order, made, row.preemptions + 1, self.now), rank)


class BoardView:
    """What a policy sees of a board: a LaneView. Nothing is copied but small tuples."""

    __slots__ = ("_board", "_reader", "cluster", "costs", "lane", "layout", "pool", "queue", "role")

    def __init__(self, board: Board, costs: Costs | None) -> None:
        self._board = board
        self._reader = BatchReader(board.batch, lambda: board.step)
        self.cluster: Cluster = board.cluster
        self.costs: Costs | None = costs
        self.lane: Lane = board.cluster.lanes[0]
        self.layout: KVLayout = board.layout
        self.pool = PoolReader(board.pool)
        self.queue = QueueReader(board.queue)
        self.role: Role = Role.BOTH

    @property
    def now(self) -> float:
        return self._board.now

    @property
    def step(self) -> int:
        return self._board.step

    @property
    def ranks(self) -> Sequence[RankView]:
        board = self._board
        capacity = board.cluster.devices[0].kv_blocks
        return (ColumnRank(0, TIER, self._reader, capacity, board.free, len(board.prefilling) + len(board.joining)),)

    @property
    def prefilling(self) -> Sequence[Prefill]:
        rows = (self._board.rows[request] for request in self._board.prefilling)
        begun = (Prefill(row.request.id, row.left, 0, row.order) for row in rows)
        return tuple(sorted(begun, key=lambda prefill: prefill.order))

    @property
    def expected(self) -> Sequence[RequestId]:
        return ()

    @property
    def candidates(self) -> Sequence[RequestId]:
        return tuple(self._board.candidates)

    @property
    def joining(self) -> Sequence[RequestId]:
        return tuple(self._board.joining)

    @property
    def resident(self) -> Sequence[RequestId]:
        return tuple(self._board.resident)

    @property
    def leaving(self) -> int:
        return 0

    @property
    def loads(self) -> Mapping[str, int]:
        board = self._board
        return {LANE: len(board.batch) + len(board.joining) + len(board.prefilling)}

    @property
    def rooms(self) -> Mapping[str, int]:
        return {LANE: self._board.cluster.devices[0].kv_blocks}

    def entry(self, request: RequestId) -> Entry:
        """See LaneView. O(1)."""
        board = self._board
        row = board.rows[request]
        length, r = board.length(row), row.request
        produced = length - r.prompt_tokens
        left = None if r.output_limit is None else max(0, r.output_limit - produced)
        tier = HOST_TIER if row.place in (HOST, TO_DEVICE) else TIER
        return Entry(
            request, length, row.order, r.arrival, row.since, produced, left, r.priority, r.tenant, r.kind,
            row.preemptions, {tier: length - 1}, r.deadline,
        )  # fmt: skip

    def free(self, tier: str) -> int:
        """See LaneView."""
        return self._board.free if tier == TIER else self._board.host_spare if tier == HOST_TIER else 0

    def flying(self, request: RequestId) -> frozenset[str]:
        """See LaneView."""
        row = self._board.rows.get(request)
        if row is None or row.place in (DEVICE, HOST):
            return frozenset()
        return frozenset((TIER if row.place == TO_DEVICE else HOST_TIER,))

    def route(self, source: str, target: str) -> Link | None:
        """See LaneView."""
        return self.cluster.route(source, target)

    def eligible(self, request: Request) -> bool:
        """Whether the device could hold it at all."""
        queue = self._board.queue
        tokens = queue.get(request.id).prefill_tokens if request.id in queue else request.prompt_tokens
        return self.layout.blocks(tokens + 1) <= self.cluster.devices[0].kv_blocks


def cluster_of(*, block_size: int, blocks: int, host_blocks: int, members: int, tokens: int) -> Cluster:
    """A cluster of one device with one lane, and the host's memory where it may hold KV.

    How fast its links are nobody asks. Raises ConfigError naming what is out of range.
    """
    links = (Link(TIER, HOST_TIER, 1.0), Link(HOST_TIER, TIER, 1.0)) if host_blocks else ()
    return Cluster(
        (Device(TIER, Role.BOTH, blocks),),
        (Lane(LANE, (TIER,), max_members=members, max_tokens=tokens),),
        host_blocks,
        links,
        KVLayout(block_size),
    )

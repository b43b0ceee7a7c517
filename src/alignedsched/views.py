"""What policies may see: read-only views of one lane and of what waits for it.

A policy looks at a ``LaneView`` and cannot tell whether a ``Scheduler`` stands behind it or an engine that keeps its
own queue and block tables: ``from_columns`` builds the same view from arrays. Views are live windows, not copies:
what one shows is valid during the call it was passed to. The readers below hide the mutators of the structures they
read, so that a policy cannot change anything by mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from attrs import define, field, frozen

from .batch import RunningBatch
from .cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from .costs import Costs
from .errors import CallerError
from .pool import Pool
from .queue import Queue, Waiting
from .request import Request, RequestId


@frozen
class Entry:
    """The facts of one prefilled request: lengths in tokens, times in seconds, ``tiers`` its readable tokens by tier."""

    id: RequestId
    context_length: int
    order: int  # arrival number: smaller came first
    arrival: float
    since: float  # in its present state since then
    produced: int
    tokens_left: int | None  # until its limit; None: unknown
    priority: int
    tenant: str | None
    kind: str | None
    preemptions: int
    tiers: Mapping[str, int]

    @property
    def stored(self) -> int:
        """Tokens whose KV exists (one less than the context length of the next step)."""
        return self.context_length - 1


class PoolReader:
    """The pool, without its mutators."""

    __slots__ = (
        "_pool",
        "blocks",
        "by_length",
        "by_order",
        "class_blocks",
        "class_count",
        "length",
        "nearest",
        "order",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.blocks = pool.blocks
        self.length = pool.length
        self.order = pool.order
        self.by_length = pool.by_length
        self.by_order = pool.by_order
        self.nearest = pool.nearest
        self.class_count = pool.class_count
        self.class_blocks = pool.class_blocks

    def __len__(self) -> int:
        return len(self._pool)

    def __contains__(self, request: object) -> bool:
        return request in self._pool


class QueueReader:
    """The queue, without its mutators."""

    __slots__ = ("_queue",)

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._queue)


class BatchReader:
    """One rank's running batch as it stands before its next step."""

    __slots__ = ("_batch", "_step")

    def __init__(self, batch: RunningBatch, step: Callable[[], int]) -> None:
        self._batch = batch
        self._step = step

    def __len__(self) -> int:
        return len(self._batch)

    def __contains__(self, request: object) -> bool:
        return request in self._batch

    def __iter__(self) -> Iterator[RequestId]:
        """Members, shortest first."""
        return iter(self._batch)

    def longest_first(self) -> Iterator[RequestId]:
        return self._batch.longest_first()

    def context_length(self, request: RequestId) -> int:
        return self._batch.base(request) + self._step()

    @property
    def total(self) -> int:
        """Sum of the members' context lengths. O(1)."""
        return self._batch.total(self._step())

    @property
    def longest(self) -> int:
        return self._batch.longest(self._step())

    @property
    def shortest(self) -> int:
        return self._batch.shortest(self._step())

    @property
    def blocks(self) -> int:
        """Blocks the batch holds after its next step. O(block size)."""
        return self._batch.blocks(self._step())


@frozen
class RankView:
    """One rank of the lane: its running batch, and the room in its device (blocks)."""

    rank: int
    tier: str
    batch: BatchReader
    capacity: int
    free: int  # after the next step of the present members has been set aside
    waiting: int = 0  # requests joining or prefilling here


@frozen
class Prefill:
    """A request whose prefill has begun: tokens still to compute, and the rank that holds its KV."""

    request: RequestId
    remaining: int
    rank: int
    order: int


class LaneView(Protocol):
    """Everything a policy may know when it decides for one lane."""

    @property
    def now(self) -> float: ...
    @property
    def lane(self) -> Lane: ...
    @property
    def role(self) -> Role: ...
    @property
    def cluster(self) -> Cluster: ...
    @property
    def layout(self) -> KVLayout: ...
    @property
    def costs(self) -> Costs | None: ...
    @property
    def queue(self) -> QueueReader: ...
    @property
    def pool(self) -> PoolReader: ...
    @property
    def ranks(self) -> Sequence[RankView]: ...
    @property
    def prefilling(self) -> Sequence[Prefill]:
        """Requests of this lane whose prefill has begun and is not all ordered yet, oldest first."""
        ...

    @property
    def expected(self) -> Sequence[RequestId]:
        """Requests whose last chunk is under way on this lane: they may join it in the very next order."""
        ...

    @property
    def candidates(self) -> Sequence[RequestId]:
        """Chosen for this lane's next batch, in the order chosen."""
        ...

    @property
    def joining(self) -> Sequence[RequestId]:
        """Wanted in the running batch as soon as their KV is there, in the order chosen."""
        ...

    @property
    def resident(self) -> Sequence[RequestId]:
        """Pooled requests (nobody's candidates) with KV in this lane's devices, oldest first."""
        ...

    @property
    def loads(self) -> Mapping[str, int]:
        """Members, joining and prefilling requests of every lane that decodes, by lane id."""
        ...

    def entry(self, request: RequestId) -> Entry:
        """Facts of a prefilled request. O(1). Raises KeyError for one that is not prefilled."""
        ...

    def free(self, tier: str) -> int:
        """Free blocks of any tier."""
        ...

    def flying(self, request: RequestId) -> frozenset[str]:
        """Tiers a copy of the request's KV is on its way to."""
        ...

    def route(self, source: str, target: str) -> Link | None:
        """The link between two tiers, or None where there is none or it is down."""
        ...

    def eligible(self, request: Request) -> bool:
        """Whether the caller's hook allows the request to be prefilled now."""
        ...


@define
class ColumnView:
    """A LaneView over arrays (see ``from_columns``)."""

    now: float
    lane: Lane
    role: Role
    cluster: Cluster
    layout: KVLayout
    costs: Costs | None
    queue: QueueReader
    pool: PoolReader
    ranks: Sequence[RankView]
    _entries: Mapping[RequestId, Entry]
    _free: Mapping[str, int]
    prefilling: Sequence[Prefill] = ()
    expected: Sequence[RequestId] = ()
    candidates: Sequence[RequestId] = ()
    joining: Sequence[RequestId] = ()
    resident: Sequence[RequestId] = ()
    loads: Mapping[str, int] = field(factory=dict)

    def entry(self, request: RequestId) -> Entry:
        return self._entries[request]

    def free(self, tier: str) -> int:
        return self._free[tier]

    def flying(self, request: RequestId) -> frozenset[str]:
        return frozenset()

    def route(self, source: str, target: str) -> Link | None:
        return self.cluster.route(source, target)

    def eligible(self, request: Request) -> bool:
        return True


def from_columns(
    *,
    running: Sequence[RequestId] = (),
    running_lengths: Sequence[int] = (),
    pooled: Sequence[RequestId] = (),
    pooled_lengths: Sequence[int] = (),
    pooled_on: Sequence[str] | None = None,
    pooled_since: Sequence[float] | None = None,
    queued: Sequence[RequestId] = (),
    queued_prompts: Sequence[int] = (),
    produced: Mapping[RequestId, int] | None = None,
    limits: Mapping[RequestId, int] | None = None,
    candidates: Sequence[RequestId] = (),
    joining: Sequence[RequestId] = (),
    free_blocks: int,
    capacity_blocks: int,
    host_free_blocks: int = 0,
    staging_free_blocks: int = 0,
    block_size: int = 16,
    bytes_per_token: int = 131_072,
    max_members: int = 256,
    max_tokens: int = 8192,
    role: Role = Role.BOTH,
    costs: Costs | None = None,
    now: float = 0.0,
) -> LaneView:
    """Build the view of a one-rank lane ``"lane"`` on device ``"gpu"`` from columns, oldest request first.

    ``*_lengths`` are context lengths in tokens; ``pooled_on`` says where each pooled request's KV is (``"gpu"``, the
    default, ``"host"`` or ``"helper+staging"``); ``free_blocks`` is what is free after the next step of the running members. Candidates and
    joining requests are named among the pooled ones. O(n log n). Raises CallerError when columns differ in length or
    an id stands twice.
    """
    where = list(pooled_on) if pooled_on is not None else ["gpu"] * len(pooled)
    since = list(pooled_since) if pooled_since is not None else [now] * len(pooled)
    _same("running", running, running_lengths)
    _same("pooled", pooled, pooled_lengths, where, since)
    _same("queued", queued, queued_prompts)
    if len({*running, *pooled, *queued}) != len(running) + len(pooled) + len(queued):
        raise CallerError("from_columns: an id stands twice among running, pooled and queued")
    cluster = _cluster(
        capacity_blocks, host_free_blocks, staging_free_blocks, block_size, bytes_per_token, role, max_members, max_tokens
    )
    made, limit = produced or {}, limits or {}
    batch, pool, queue = RunningBatch(block_size), Pool(), Queue()
    entries: dict[RequestId, Entry] = {}
    claimed = {*candidates, *joining}
    tiers_of = [*(["gpu"] * len(running)), *where]
    for order, (request, length) in enumerate(zip([*running, *pooled], [*running_lengths, *pooled_lengths], strict=True)):
        at = order - len(running)
        entries[request] = Entry(
            request, length, order, now, since[at] if at >= 0 else now, made.get(request, 1), limit.get(request),
            0, None, None, 0, {tiers_of[order]: length - 1},
        )  # fmt: skip
        if at < 0:
            batch.add(request, length)
        elif request not in claimed:
            pool.add(request, length, order, cluster.layout.blocks(length))
    for number, (request, prompt) in enumerate(zip(queued, queued_prompts, strict=True), len(entries)):
        queue.add(Waiting(Request(request, prompt, limit.get(request)), number, since=now))
    reader = BatchReader(batch, lambda: 0)
    rank = RankView(0, "gpu", reader, capacity_blocks, free_blocks, len(joining))
    resident = tuple(r for r, tier in zip(pooled, where, strict=True) if tier == "gpu" and r not in claimed)
    return ColumnView(
        now, cluster.lanes[0], role, cluster, cluster.layout, costs, QueueReader(queue), PoolReader(pool), (rank,),
        entries, {"gpu": free_blocks, HOST: host_free_blocks, "helper+staging": staging_free_blocks},
        candidates=tuple(candidates), joining=tuple(joining), resident=resident,
        loads={"lane": len(running) + len(joining)},
    )  # fmt: skip


def _same(name: str, first: Sequence[object], *others: Sequence[object]) -> None:
    for other in others:
        if len(other) != len(first):
            raise CallerError(f"from_columns: the {name} columns have {len(first)} and {len(other)} rows")


def _cluster(
    capacity: int, host: int, staging: int, block_size: int, bytes_per_token: int, role: Role, members: int, tokens: int
) -> Cluster:
    """A cluster of one lane, with a second lane where the first cannot do both, and a helper where staging is."""
    devices = [Device("gpu", role, capacity)]
    lanes = [Lane("lane", ("gpu",), max_members=members, max_tokens=tokens)]
    links: list[Link] = []
    if role is not Role.BOTH:
        devices.append(Device("other", Role.DECODE if role is Role.PREFILL else Role.PREFILL, capacity))
        lanes.append(Lane("other-lane", ("other",)))
        links += _both_ways("gpu", "other", 300e9)
    if host:
        links += _both_ways("gpu", HOST, 50e9)
    if staging:
        devices.append(Device("helper", Role.HELPER, 0, staging))
        links += [*_both_ways("helper", HOST, 50e9), *_both_ways("helper", "gpu", 300e9)]
    return Cluster(tuple(devices), tuple(lanes), host, tuple(links), KVLayout(block_size, bytes_per_token))


def _both_ways(a: str, b: str, bytes_per_s: float) -> Iterable[Link]:
    return (Link(a, b, bytes_per_s), Link(b, a, bytes_per_s))

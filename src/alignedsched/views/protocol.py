"""What policies may see: read-only views of one lane and of what waits for it.

A policy looks at a ``LaneView`` and cannot tell whether a ``Scheduler`` stands behind it or an engine that keeps its
own queue and block tables: ``from_columns`` builds the same view from arrays. Views are live windows, not copies:
what one shows is valid during the call it was passed to. The readers below hide the mutators of the structures they
read, so that a policy cannot change anything by mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from attrs import frozen

from ..batch import RunningBatch
from ..cluster import Cluster, KVLayout, Lane, Link, Role
from ..load import Costs
from ..pool import Pool
from ..queue import Queue, Waiting
from ..request import Request, RequestId


@frozen
class Entry:
    """One prefilled request: lengths in tokens, times in seconds, ``tiers`` its readable tokens by tier."""

    id: RequestId
    context_length: int
    order: int  # arrival number: smaller came first
    arrival: float
    since: float  # in its present state since then; pooled after it ran: since it was told to leave
    produced: int
    tokens_left: int | None  # until its limit; None: unknown
    priority: int
    tenant: str | None
    kind: str | None
    preemptions: int
    tiers: Mapping[str, int]
    deadline: float | None = None

    @property
    def stored(self) -> int:
        """Tokens whose KV exists (one less than the context length of the next step)."""
        return self.context_length - 1


class PoolReader:
    """The pool, without its mutators."""

    __slots__ = (
        "_pool",
        "again",
        "blocks",
        "by_length",
        "by_order",
        "class_blocks",
        "class_count",
        "length",
        "longer",
        "nearest",
        "order",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.again = pool.again
        self.blocks = pool.blocks
        self.length = pool.length
        self.longer = pool.longer
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

    @property
    def tokens(self) -> int:
        """Prefill tokens of all that wait. O(1)."""
        return self._queue.sizes.tokens

    def classes(self) -> Iterator[tuple[int, int]]:
        """(requests, prefill tokens) of every length class that is not empty, by ascending length. O(classes)."""
        return iter(self._queue.sizes)

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._queue)

    def __contains__(self, request: object) -> bool:
        return request in self._queue

    def get(self, request: RequestId) -> Waiting:
        """The waiting request of an id. O(1). Raises KeyError if it does not queue."""
        return self._queue.get(request)

    def again(self) -> tuple[RequestId, ...]:
        """Those that had begun before and were preempted, longest here first. O(their number)."""
        return tuple(self._queue.again)

    def lengths(self) -> Iterator[tuple[int, int, RequestId]]:
        """(prefill tokens, arrival number, id) of every waiting request, in order."""
        return self._queue.lengths()


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


class RankView(Protocol):
    """One rank of the lane: its running batch, and the room in its device (blocks)."""

    @property
    def rank(self) -> int: ...
    @property
    def tier(self) -> str: ...
    @property
    def batch(self) -> BatchReader: ...
    @property
    def capacity(self) -> int: ...
    @property
    def free(self) -> int:
        """Free blocks after the next step of the present members has been set aside."""
        ...

    @property
    def waiting(self) -> int:
        """Requests joining or prefilling here."""
        ...


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
    def step(self) -> int:
        """The number of the lane's next step, as it will be when an order given now takes effect."""
        ...

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
    def leaving(self) -> int:
        """Members that have left the batch and whose KV a step under way may still touch."""
        ...

    @property
    def loads(self) -> Mapping[str, int]:
        """Members, joining and prefilling requests of every lane that decodes, by lane id."""
        ...

    @property
    def rooms(self) -> Mapping[str, int]:
        """Blocks the roomiest device of a lane, as large as it is now, holds if it is empty; for the same lanes."""
        ...

    def entry(self, request: RequestId) -> Entry:
        """Facts of a request that is prefilled, or expected to be. O(1). Raises KeyError for any other."""
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
        """Whether the request may be prefilled here now: by the caller's hook, and by what the lane can hold at all."""
        ...

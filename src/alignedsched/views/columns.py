"""The same view built from arrays: for engines that keep their own queue and block tables, and for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import define, field, frozen

from ..batch import RunningBatch
from ..cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from ..errors import CallerError
from ..load import Costs
from ..pool import Pool
from ..queue import Queue, Waiting
from ..request import Request, RequestId
from .protocol import BatchReader, Entry, LaneView, PoolReader, Prefill, QueueReader, RankView


@frozen
class ColumnRank:
    """A RankView of plain values."""

    rank: int
    tier: str
    batch: BatchReader
    capacity: int
    free: int
    waiting: int = 0


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
    rooms: Mapping[str, int] = field(factory=dict)
    step: int = 0
    leaving: int = 0

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
    step: int = 0,
) -> LaneView:
    """Build the view of a one-rank lane ``"lane"`` on device ``"gpu"`` from columns, oldest request first.

    ``*_lengths`` are context lengths in tokens. ``pooled_on`` says where each pooled request's KV is: ``"gpu"`` (the
    default), ``"host"`` or ``"helper+staging"``. ``free_blocks`` is what is free after the next step of the running
    members. Candidates and joining requests are named among the pooled ones. O(n log n). Raises CallerError when
    columns differ in length or an id stands twice.
    """
    where = list(pooled_on) if pooled_on is not None else ["gpu"] * len(pooled)
    since = list(pooled_since) if pooled_since is not None else [now] * len(pooled)
    _same("running", running, running_lengths)
    _same("pooled", pooled, pooled_lengths, where, since)
    _same("queued", queued, queued_prompts)
    if len({*running, *pooled, *queued}) != len(running) + len(pooled) + len(queued):
        raise CallerError("from_columns: an id stands twice among running, pooled and queued")
    cluster = _cluster(
        capacity_blocks,
        host_free_blocks,
        staging_free_blocks,
        block_size,
        bytes_per_token,
        role,
        max_members,
        max_tokens,
    )
    made, limit = produced or {}, limits or {}
    batch, pool, queue = RunningBatch(block_size), Pool(), Queue()
    entries: dict[RequestId, Entry] = {}
    claimed = {*candidates, *joining}
    tiers_of = [*(["gpu"] * len(running)), *where]
    for order, (request, length) in enumerate(
        zip([*running, *pooled], [*running_lengths, *pooled_lengths], strict=True)
    ):
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
    rank = ColumnRank(0, "gpu", reader, capacity_blocks, free_blocks, len(joining))
    resident = tuple(r for r, tier in zip(pooled, where, strict=True) if tier == "gpu" and r not in claimed)
    return ColumnView(
        now, cluster.lanes[0], role, cluster, cluster.layout, costs, QueueReader(queue), PoolReader(pool), (rank,),
        entries, {"gpu": free_blocks, HOST: host_free_blocks, "helper+staging": staging_free_blocks},
        candidates=tuple(candidates), joining=tuple(joining), resident=resident,
        loads={"lane": len(running) + len(joining)}, rooms={"lane": capacity_blocks},
        step=step,
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

"""Copies between tiers: in pieces, over one stream a link, each ending in exactly one completion.

A copy is cut into chunks of whole pages, neighbours in both tiers joined into one piece; the page in which it begins
is copied whole, over the same bytes. At most ``IN_FLIGHT`` chunks of a link are queued at a time, so an abort waits
for megabytes and not for a batch. Chunks between devices may be large (each costs tens of microseconds there), those
from and to the host are small enough to be given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from attrs import define, field

from alignedsched.cluster import HOST, Cluster
from alignedsched.errors import ExecutorError
from alignedsched.events import CopyDone, CopyFailed
from alignedsched.plan import Copy
from alignedsched.request import RequestId

from ..devices import Device, Event, Piece, Stream
from .pages import runs
from .pool import Holding, KVPool
from .staging import StagingRing

HOST_CHUNK_BYTES = 16 << 20
PEER_CHUNK_BYTES = 256 << 20
IN_FLIGHT = 2
REVOKED = "staging was revoked"


@define(eq=False)
class _Job:
    """A copy under way."""

    copy: Copy
    stream: Stream
    link: str
    chunks: deque[list[Piece]]
    source: Holding | None  # None: there was nothing left to read
    target: Holding
    filling: int = -1  # generation of the staging slot it fills
    draining: int = -1  # and of the one it reads
    flying: deque[Event] = field(factory=deque)
    given_up: str = ""  # why nothing more of it is queued


class Copier:
    """Carries copies out. ``poll`` queues what may be queued and tells what has ended."""

    def __init__(self, cluster: Cluster, pools: Mapping[str, KVPool], devices: Mapping[str, Device]) -> None:
        self._cluster = cluster
        self._pools = pools
        self._devices = devices
        self.rings = {tier.id: StagingRing(tier.id) for tier in cluster.tiers.values() if tier.staged}
        self._jobs: dict[int, _Job] = {}
        self._links: dict[tuple[str, str], deque[int]] = {}  # copies by link, in order
        self.copied_bytes: dict[tuple[str, str], int] = dict.fromkeys(cluster.link, 0)
        self.staged_bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, copy: Copy) -> None:
        """Take a copy's target pages and queue its first chunks. Raises ExecutorError if it cannot be carried out."""
        source, target = self._pools[copy.source], self._pools[copy.target]
        ring = self.rings.get(copy.source)
        refused = ring is not None and not ring.readable(copy.request)  # before the scheduler could hear of it
        have = len(source.pages(copy.request)) * source.shape.page_size
        if have < copy.end and not refused:
            raise ExecutorError(f"{copy} reads {copy.end} tokens, {have} have pages in {copy.source!r}")
        filling = self.rings[copy.target].fill(copy.request) if copy.target in self.rings else -1
        draining = ring.drain(copy.request) if ring is not None and not refused else -1
        target.hold(copy.request, copy.end)
        ends = self._cluster.place(copy.source), self._cluster.place(copy.target)
        link = f"{ends[0]}->{ends[1]}"
        driver = self._devices[ends[1] if ends[1] != HOST else ends[0]]
        chunks = self._cut(copy, source, target) if not refused else deque()
        read = None if refused else source.touch(copy.request, 1, copy.end)
        written = target.touch(copy.request, 1, copy.end)
        job = _Job(copy, driver.stream(link), link, chunks, read, written, filling, draining)
        job.given_up = REVOKED if refused else ""
        self._jobs[copy.copy] = job
        self._links.setdefault(ends, deque()).append(copy.copy)
        self._push(ends)

    def _cut(self, copy: Copy, source: KVPool, target: KVPool) -> deque[list[Piece]]:
        """Pieces of whole pages, grouped into chunks."""
        size = source.shape.page_size
        first, last = copy.start // size, source.shape.pages(copy.end)
        from_host = HOST in (copy.source, copy.target)
        limit = max(1, (HOST_CHUNK_BYTES if from_host else PEER_CHUNK_BYTES) // source.shape.bytes)  # pages a chunk
        chunks: deque[list[Piece]] = deque()
        room = 0
        for there, here, length in runs(source.pages(copy.request)[first:last], target.pages(copy.request)[first:last]):
            done = 0
            while done < length:
                if not room:
                    chunks.append([])
                    room = limit
                now = min(room, length - done)
                chunks[-1].append(
                    Piece(target.data[here + done : here + done + now], source.data[there + done : there + done + now])
                )
                done += now
                room -= now
        return chunks

    def _push(self, ends: tuple[str, str]) -> None:
        """Keep the link busy: chunks of its oldest copies, in order."""
        flying = sum(len(self._jobs[number].flying) for number in self._links[ends])
        for number in self._links[ends]:
            job = self._jobs[number]
            while job.chunks and flying < IN_FLIGHT:
                job.stream.copy(job.chunks.popleft(), job.link)
                job.flying.append(job.stream.record())
                flying += 1

    def abort(self, copy: int) -> None:
        """Queue nothing more of a copy; it ends as failed when what is queued has ended. Unknown: ended already."""
        job = self._jobs.get(copy)
        if job is not None and (job.chunks or job.flying):
            job.chunks.clear()
            job.given_up = job.given_up or "aborted"

    def free_staged(self, request: RequestId, tier: str) -> None:
        """Nobody needs a request's staged KV any more."""
        if tier in self.rings:
            self.rings[tier].free(request)

    def revoke(self, request: RequestId, tier: str) -> None:
        """A request's staged KV is taken back: nothing begins to read it, and copies into it end as failed."""
        self.rings[tier].revoke(request)
        self._pools[tier].forget(request)
        for job in self._jobs.values():
            if job.copy.request == request and job.copy.target == tier:
                job.chunks.clear()
                job.given_up = job.given_up or REVOKED

    def poll(self) -> list[CopyDone | CopyFailed]:
        """Completions since the last call, in the order of their links' queues; then keep links busy."""
        ended: list[CopyDone | CopyFailed] = []
        for ends, numbers in self._links.items():
            for number in tuple(numbers):
                job = self._jobs[number]
                while job.flying and job.flying[0].done():
                    job.flying.popleft()
                if not job.chunks and not job.flying:
                    numbers.remove(number)
                    ended.append(self._end(job, ends))
            self._push(ends)
        return ended

    def _end(self, job: _Job, ends: tuple[str, str]) -> CopyDone | CopyFailed:
        copy = job.copy
        del self._jobs[copy.copy]
        if job.source is not None:
            self._pools[copy.source].leave(job.source)
        self._pools[copy.target].leave(job.target)
        if job.draining >= 0:
            self.rings[copy.source].drained(copy.request, job.draining)
        if job.filling >= 0 and not self.rings[copy.target].filled(copy.request, job.filling, not job.given_up):
            job.given_up = job.given_up or REVOKED
        if job.given_up:
            self._pools[copy.target].undo(copy.request, job.target, copy.start)
            return CopyFailed(copy.copy, job.given_up)
        moved = self._cluster.layout.copy_bytes(copy.start, copy.end)
        self.copied_bytes[ends] += moved
        self.staged_bytes += moved if copy.target in self.rings else 0
        return CopyDone(copy.copy)

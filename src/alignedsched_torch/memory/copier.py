"""Copies between tiers: in chunks, over every way there is, each ending in exactly one completion.

A copy is cut into chunks of whole pages, neighbours in both tiers joined into one piece; the page in which it begins
is copied whole, over the same bytes. Few chunks are queued at a time, so an abort waits for megabytes and not for a
batch. Chunks between devices may be large (each costs tens of microseconds there), those from and to the host are
small enough to be given up. What a step sends and fetches waits behind the chunks that are queued that way, so smaller
ones delay steps less and keep the link less busy; chunks below a page hold some of its layers.

Routes: *direct* over the link of the two places; *staged*, which is two copies of the scheduler's, into a helper's
staging tier and out of it; *split*, which is one copy whose chunks go over the target's own link and through the
helpers' slots at once (``ways``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from attrs import define

from alignedsched.cluster import HOST, Cluster
from alignedsched.errors import ConfigError, ExecutorError
from alignedsched.events import CopyDone, CopyFailed
from alignedsched.plan import Copy
from alignedsched.request import RequestId

from ..devices import Device, Piece
from .pages import runs
from .pool import Holding, KVPool
from .staging import StagingRing
from .ways import Chunk, Direct, Landed, Relay

HOST_CHUNK_BYTES = 16 << 20
PEER_CHUNK_BYTES = 256 << 20
REVOKED = "staging was revoked"
Ends = tuple[str, str]  # places: from, to


@define(eq=False)
class _Job:
    """A copy under way."""

    copy: Copy
    ends: Ends
    chunks: deque[Chunk]  # on no way yet
    source: Holding | None  # None: there was nothing left to read
    target: Holding
    filling: int = -1  # generation of the staging slot it fills
    draining: int = -1  # and of the one it reads
    flying: int = 0  # chunks on their way
    given_up: str = ""  # why nothing more of it is queued


class Copier:
    """Carries copies out. ``poll`` queues what may be queued and tells what has ended.

    ``relay_slots``: slots of a host chunk each, which every device that can lends to the copies from the host to each
    other one (0: no copy is split). A device can if it has a link from the host and one to the target, and shares no
    channel with the target's own link. ``host_chunk_bytes``: of a chunk from or to the host, at most (None:
    ``HOST_CHUNK_BYTES``); a layer of a page is the least that moves. It may be lowered later, for copies to come.
    Raises ConfigError for one below 1.
    """

    def __init__(
        self,
        cluster: Cluster,
        pools: Mapping[str, KVPool],
        devices: Mapping[str, Device],
        relay_slots: int = 0,
        host_chunk_bytes: int | None = None,
    ) -> None:
        self.host_chunk_bytes = HOST_CHUNK_BYTES if host_chunk_bytes is None else host_chunk_bytes
        if self.host_chunk_bytes < 1:
            raise ConfigError(f"host_chunk_bytes must be at least 1, got {host_chunk_bytes!r}")
        self._cluster = cluster
        self._pools = pools
        self._shape = next(iter(pools.values())).shape
        self._devices = devices
        self.rings = {tier.id: StagingRing(tier.id) for tier in cluster.tiers.values() if tier.staged}
        self._jobs: dict[int, _Job] = {}
        self._queues: dict[Ends, list[int]] = {ends: [] for ends in cluster.link}  # copies, in order
        self._direct: dict[Ends, Direct[_Job]] = {ends: Direct(*self._link(ends)) for ends in cluster.link}
        self.relays: dict[Ends, list[Relay[_Job]]] = {
            ends: self._relays(ends, relay_slots) if relay_slots else [] for ends in cluster.link
        }
        self._ended: list[CopyDone | CopyFailed] = []  # aborted, not told yet
        self.copied_bytes: dict[Ends, int] = dict.fromkeys(cluster.link, 0)
        self.staged_bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def relayed_bytes(self) -> int:
        """Of the copied bytes, those that went through helpers' slots."""
        return sum(relay.bytes for relays in self.relays.values() for relay in relays)

    # -- ways

    def _link(self, ends: Ends) -> tuple[Device, str]:
        """A link's name, and the device whose stream it is driven by: the one that pulls, unless that is the host."""
        return self._devices[ends[1] if ends[1] != HOST else ends[0]], "->".join(ends)

    def _relays(self, ends: Ends, slots: int) -> list[Relay[_Job]]:
        """One for each helper between these ends."""
        source, target = ends
        links, found = self._cluster.link, []
        for helper, device in self._devices.items() if source == HOST else ():
            fill, drain = (HOST, helper), (helper, target)
            if fill not in links or drain not in links or set(links[fill].shares) & set(links[ends].shares):
                continue  # over a channel they share, it would only take what the own link then lacks
            buffer = device.empty((slots, self._chunk_pages(ends), *self._shape.shape), self._shape.dtype)
            found.append(Relay[_Job](helper, buffer, self._link(fill), self._link(drain)))
        return found

    def _ways(self, ends: Ends) -> tuple[Direct[_Job] | Relay[_Job], ...]:
        """The own link comes first: a relay takes what it has no room for."""
        return (self._direct[ends], *self.relays[ends])

    def _chunk_bytes(self, ends: Ends) -> int:
        return self.host_chunk_bytes if HOST in ends else PEER_CHUNK_BYTES

    def _chunk_pages(self, ends: Ends) -> int:
        return max(1, self._chunk_bytes(ends) // self._shape.bytes)

    # -- for the executor

    def start(self, copy: Copy) -> None:
        """Take a copy's target pages and queue its first chunks.

        Raises ExecutorError if it cannot be carried out; nothing has changed then.
        """
        source, target = self._pools[copy.source], self._pools[copy.target]
        ring = self.rings.get(copy.source)
        refused = ring is not None and not ring.readable(copy.request)  # before the scheduler could hear of it
        have = len(source.pages(copy.request)) * source.shape.page_size
        if have < copy.end and not refused:
            raise ExecutorError(f"{copy} reads {copy.end} tokens, {have} have pages in {copy.source!r}")
        ends = self._cluster.place(copy.source), self._cluster.place(copy.target)
        if ends not in self._queues:
            raise ExecutorError(f"{copy}: there is no link from {ends[0]!r} to {ends[1]!r}")
        if copy.target in self.rings:
            self.rings[copy.target].check_fill(copy.request)
        target.hold(copy.request, copy.end)
        job = _Job(
            copy,
            ends,
            self._cut(copy, ends) if not refused else deque(),
            None if refused else source.touch(copy.request, 1, copy.end),
            target.touch(copy.request, 1, copy.end),
            filling=self.rings[copy.target].fill(copy.request) if copy.target in self.rings else -1,
            draining=ring.drain(copy.request) if ring is not None and not refused else -1,
            given_up=REVOKED if refused else "",
        )
        self._jobs[copy.copy] = job
        self._queues[ends].append(copy.copy)
        self._push(ends)

    def _cut(self, copy: Copy, ends: Ends) -> deque[Chunk]:
        """Pieces of whole pages, grouped into chunks; or of some layers of a page, each a chunk of its own."""
        source, target = self._pools[copy.source], self._pools[copy.target]
        first, last = copy.start // source.shape.page_size, source.shape.pages(copy.end)
        limit = self._chunk_pages(ends)
        chunks: deque[Chunk] = deque()
        room = 0
        for there, here, length in runs(source.pages(copy.request)[first:last], target.pages(copy.request)[first:last]):
            done = 0
            while done < length:
                if not room:
                    chunks.append([])
                    room = limit
                now = min(room, length - done)
                begins = copy.start % source.shape.page_size if chunks[0] == [] else 0
                chunks[-1].append(_piece(source, there + done, target, here + done, now, begins))
                done += now
                room -= now
        layers = max(1, self._chunk_bytes(ends) * self._shape.layers // self._shape.bytes)
        if layers >= self._shape.layers:
            return chunks
        return deque([part] for (piece,) in chunks for part in _of_layers(piece, layers))

    def _push(self, ends: Ends) -> None:
        """Keep every way busy: chunks of the oldest copies, in order."""
        ways = self._ways(ends)
        for number in self._queues[ends]:
            job = self._jobs[number]
            while job.chunks:
                way = next((way for way in ways if way.has_room()), None)
                if way is None:
                    return
                job.flying += 1
                way.take(job, job.chunks.popleft())

    def abort(self, copy: int) -> None:
        """Queue nothing more of a copy. What has all been queued arrives; else it ends as failed, at once if nothing of
        it is under way.

        Unknown: it has ended already.
        """
        job = self._jobs.get(copy)
        if job is not None and job.chunks:
            self._give_up(job, "aborted")
            if not job.flying:
                self._queues[job.ends].remove(copy)
                self._ended.append(self._end(job))

    def _give_up(self, job: _Job, why: str) -> None:
        """What is on its way to the target lands; nothing more is queued, and what is in slots goes no further."""
        job.chunks.clear()
        job.given_up = job.given_up or why
        for relay in self.relays[job.ends]:
            relay.revoke(job)

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
                self._give_up(job, REVOKED)

    def revoke_slots(self, helper: str) -> None:
        """A helper's slots are taken back: chunks that are not on their way out of them go another way."""
        for relays in self.relays.values():
            for relay in relays:
                if relay.helper == helper:
                    relay.revoke()

    def poll(self) -> list[CopyDone | CopyFailed]:
        """Completions since the last call, in the order of their links' queues; then keep links busy."""
        ended, self._ended = self._ended, []
        for ends, numbers in self._queues.items():
            if not numbers:
                continue
            for way in self._ways(ends):
                self._take_in(way.poll())
            for number in tuple(numbers):
                job = self._jobs[number]
                if not job.chunks and not job.flying:
                    numbers.remove(number)
                    ended.append(self._end(job))
            self._push(ends)
        return ended

    def _take_in(self, landed: Iterable[Landed[_Job]]) -> None:
        for chunk in landed:
            job = chunk.owner
            job.flying -= 1
            if chunk.error:
                self._give_up(job, chunk.error)
            elif chunk.again and not job.given_up:
                job.chunks.appendleft(chunk.chunk)

    def _end(self, job: _Job) -> CopyDone | CopyFailed:
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
        self.copied_bytes[job.ends] += moved
        self.staged_bytes += moved if copy.target in self.rings else 0
        return CopyDone(copy.copy)


def _piece(source: KVPool, there: int, target: KVPool, here: int, pages: int, begins: int) -> Piece:
    """Neighbouring pages from ``there`` to ``here``, of which the first ``begins`` tokens are at the target already."""
    into = target.data[here : here + pages]
    fresh = (into[:1, :, :, :, begins:], into[1:]) if begins else None
    return Piece(into, source.data[there : there + pages], fresh)


def _of_layers(page: Piece, layers: int) -> Iterator[Piece]:
    """A piece of one page in pieces of so many layers."""
    for first in range(0, page.source.shape[1], layers):
        cut = slice(first, first + layers)
        fresh = None if page.fresh is None else tuple(part[:, cut] for part in page.fresh)
        yield Piece(page.target[:, cut], page.source[:, cut], fresh)

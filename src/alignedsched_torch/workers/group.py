"""The workers of one lane as the driver sees them: one ring of orders for all, a ring of reports from each, and bells.

A worker is lost when its side of the socket is closed (it died: heard at once), when it says so itself, or when a bell
stays unanswered too long (it hangs). Then the whole group is: the others wait for it in a collective.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping, Sequence

from attrs import define, evolve, field

from alignedsched.story.codec import decode, encode

from .launch import Launcher, Process
from .memory import Region, Ring
from .messages import Orders, Told
from .spec import Limits, WorkerSpec
from .wire import Bell, ClosedError, Wire


class LostError(Exception):
    """A worker is gone, and its group with it."""


@define(eq=False)
class _Peer:
    """One worker."""

    process: Process
    wire: Wire
    reports: Ring
    read: int = 0  # of its reports, by us
    bell: Bell | None = None  # its last; None before it is ready
    rung: Bell = field(factory=Bell)  # our last
    rung_at: float | None = None  # that one is unanswered since
    quiet_since: float = 0.0


class Group:
    """Workers of one lane, from their start to their end. Raises LostError from ``listen`` when they are gone."""

    def __init__(
        self,
        spec: WorkerSpec,
        launcher: Launcher,
        regions: Sequence[Mapping[str, Region]],
        limits: Limits,
        now: float,
    ) -> None:
        """Starts the processes and returns; ``listen`` finds out when they are ready. ``regions`` by rank, by tier."""
        self.spec = spec
        self.ready = False
        self.held = False  # the lane launches nothing before it is posted a go
        self._limits = limits
        self._started = now
        self._backlog: deque[bytes] = deque()  # what the ring has no room for
        orders = Region.make(f"{spec.lane} orders", limits.ring_bytes)
        self._orders = Ring(orders)
        self._peers: list[_Peer] = []
        turns = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(spec.ranks - 1)]
        try:
            for rank in range(spec.ranks):
                mine = evolve(spec, rank=rank, number=spec.number + rank)
                ends = [here for here, _ in turns] if rank == 0 else [turns[rank - 1][1]]
                self._start(mine, launcher, orders, regions[rank], ends)
        except BaseException:
            self.kill()
            raise
        finally:
            orders.close()
            for pair in turns:
                for end in pair:
                    end.close()

    def _start(
        self,
        spec: WorkerSpec,
        launcher: Launcher,
        orders: Region,
        regions: Mapping[str, Region],
        turns: Sequence[socket.socket],
    ) -> None:
        process, wire = launcher.start(spec.number, self._limits.start_s)
        reports = Region.make(f"{spec.lane} reports {spec.rank}", self._limits.ring_bytes)
        self._peers.append(_Peer(process, wire, Ring(reports)))
        fds = [orders.fd, reports.fd, *(regions[name].fd for name in spec.regions), *(end.fileno() for end in turns)]
        try:
            wire.hand_over(encode(spec), fds)
        except ClosedError:
            pass  # ``listen`` tells
        finally:
            reports.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes by rank."""
        return tuple(peer.process.pid for peer in self._peers)

    def files(self) -> list[int]:
        """Descriptors to wait on."""
        return [peer.wire.fileno() for peer in self._peers]

    # -- orders

    def post(self, orders: Orders, now: float) -> None:
        """Send orders to every rank; never waits. Raises ExecutorError for a message that fits no ring."""
        payload = encode(orders)
        self.held = self.held and not orders.go
        if self._backlog or not self._orders.write(payload, self._slowest()):
            self._backlog.append(payload)
        self._ring(now)

    def _slowest(self) -> int:
        return min(0 if peer.bell is None else peer.bell.read for peer in self._peers)

    def _ring(self, now: float) -> None:
        """Ring where there is news, or has been none for long; one bell at a time, so nothing ever queues up."""
        for peer in self._peers:
            if peer.bell is None or peer.rung_at is not None:
                continue
            bell = Bell(self._orders.head, peer.read)
            owed = peer.read - peer.rung.read > peer.reports.capacity // 4
            if bell.written > peer.rung.written or owed or now >= peer.quiet_since + self._limits.silence_s / 4:
                try:
                    peer.wire.ring(bell)
                except ClosedError:
                    continue  # ``listen`` tells
                peer.rung, peer.rung_at = bell, now

    # -- reports

    def listen(self, now: float) -> list[tuple[int, Told]]:
        """What workers have told since the last call, with their ranks. Raises LostError; what came before is lost."""
        told: list[tuple[int, Told]] = []
        for rank, peer in enumerate(self._peers):
            try:
                told += [(rank, message) for message in self._hear(peer, now)]
            except ClosedError:
                raise LostError(f"worker {rank} of lane {self.spec.lane!r} (process {peer.process.pid}) died") from None
            waits = peer.rung_at if peer.bell is not None else self._started
            limit = self._limits.silence_s if peer.bell is not None else self._limits.start_s
            if waits is not None and now - waits > limit:
                raise LostError(f"worker {rank} of lane {self.spec.lane!r} is silent for {limit:g} s")
        self.held = self.held or any(message.held for _, message in told)
        self.ready = all(peer.bell is not None for peer in self._peers)
        while self._backlog and self._orders.write(self._backlog[0], self._slowest()):
            self._backlog.popleft()
        self._ring(now)
        return told

    def _hear(self, peer: _Peer, now: float) -> list[Told]:
        bell = peer.wire.heard()
        if bell is None:
            return []
        told: list[Told] = []
        while peer.read < bell.written:
            record = peer.reports.read(peer.read, bell.written)
            told.append(decode(Told, record.payload))
            peer.read = record.end
        broken = next((message.broken for message in told if message.broken), "")
        if broken:
            raise LostError(broken)
        peer.bell, peer.rung_at, peer.quiet_since = bell, None, now
        return told

    def due(self, now: float) -> float:
        """When to call ``listen`` again at the latest."""
        if not self.ready:
            return self._started + self._limits.start_s
        waits = [
            peer.quiet_since + self._limits.silence_s / 4
            if peer.rung_at is None
            else peer.rung_at + self._limits.silence_s
            for peer in self._peers
        ]
        return max(now, min(waits)) + 0.001

    def resting(self) -> bool:
        """Whether everything posted has been read and nothing is under way."""
        return not self._backlog and all(
            peer.bell is not None and peer.bell.idle and peer.bell.read == self._orders.head for peer in self._peers
        )

    # -- the end

    def goodbye(self) -> None:
        """Close our sides; workers that live end by themselves."""
        for peer in self._peers:
            peer.wire.close()

    def kill(self, within_s: float = 0.0) -> None:
        """Goodbye, and after that time death for those that are still there."""
        self.goodbye()
        for peer in self._peers:
            if not peer.process.ended(within_s):
                peer.process.kill()
        for peer in self._peers:
            peer.process.ended(10.0)

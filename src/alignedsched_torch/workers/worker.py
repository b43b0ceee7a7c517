"""A worker process: one rank of one lane; it takes orders from a ring, runs its lane, and tells what came of it.

The ranks of a tensor-parallel group are the same program on the same orders, but each sees an order when its own clock
lets it, and an order takes effect before the next step launched. So the first rank decides, before each turn, up to
which order it reads now and which steps have ended; the others read and take in exactly that. Every launch, and with it
every collective, is then the same on all ranks.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from attrs import evolve

from alignedsched.errors import AlignedSchedError
from alignedsched.events import StepsFailed
from alignedsched.story.codec import decode, encode

from ..job import Job
from .build import Rank, build
from .launch import FD_VARIABLE, PATH_VARIABLE
from .memory import Region, Ring
from .messages import Made, Moved, Orders, Told, learn
from .spec import WorkerSpec
from .wire import Bell, ClosedError, Turns, Wire

_MOMENT_S = 0.0002  # between two looks at a device that gives no sign when it is done


class GroupBrokenError(Exception):
    """This rank's lane can go on only together with ranks that are gone, or know nothing of what happened here."""


class Worker:
    """The loop of one rank."""

    def __init__(
        self, wire: Wire, rank: Rank, spec: WorkerSpec, orders: Ring, reports: Ring, turns: list[Turns]
    ) -> None:
        self._wire, self._turns = wire, turns
        self._rank = rank
        self._leads = spec.rank == 0
        self._alone = spec.ranks == 1
        self._orders, self._reports = orders, reports
        self._at = 0  # orders read
        self._bell = Bell()  # the driver's last
        self._said = Bell()  # ours
        self._owed = True  # a bell wants an answer; the first one says that this rank is ready
        self._held = False  # what was told has not been answered: nothing is launched
        self._known: dict[str, int] = {}  # tokens of each request the driver knows
        self._active: dict[str, Job] = {}  # requests that may have made tokens since the last report
        self._spoke: dict[str, None] = {}  # requests with tokens that somebody wants at once
        self._moved: list[Moved] = []
        self._last = (-1, -1)  # the last turn

    def run(self) -> None:
        """Until the driver is gone, or says goodbye by closing its side."""
        while True:
            busy = self._listen()
            turn = self._decide() if self._leads else self._follow()
            if turn is not None:
                self.turn(*turn)
            self._moved += self._ended_moves()
            if self._moved:
                self._tell(Told())
            idle = turn is None and not self._under_way()
            self._ring(idle)
            if turn is None and not busy:
                self._wait()

    def _ended_moves(self) -> list[Moved]:
        ended = self._rank.mover.ended()
        failed = next((moved for moved in ended if moved.error), None)
        if failed is not None and not self._alone:
            raise GroupBrokenError(f"a copy failed on one rank of several: {failed.error}")
        return ended

    # -- hearing

    def _listen(self) -> bool:
        bell = self._wire.heard()
        if bell is None:
            return False
        self._bell, self._owed = bell, True
        return True

    def _under_way(self) -> bool:
        return self._rank.lane.next_event() is not None or len(self._rank.mover) > 0

    def _wait(self) -> None:
        ends = [self._wire.fileno(), *(() if self._leads else (self._turns[0].fileno(),))]
        select.select(ends, [], [], _MOMENT_S if self._under_way() else None)

    # -- turns

    def _decide(self) -> tuple[int, int] | None:
        """The next turn, if there is anything to do; the other ranks are told."""
        upto, through = self._bell.written, self._rank.lane.ended()
        if upto == self._at and (self._held or (upto, through) == self._last):
            return None
        for turns in self._turns:
            turns.send(upto, through)
        return upto, through

    def _follow(self) -> tuple[int, int] | None:
        turn = self._turns[0].next()
        while turn is not None and self._bell.written < turn[0]:  # its orders are on their way
            self._ring(False)  # the driver rings again when its last bell has been answered
            select.select([self._wire.fileno()], [], [])
            self._listen()
        return turn

    def turn(self, upto: int, through: int) -> None:
        """Read the orders up to ``upto``, take in the steps up to ``through``, launch what may be, tell what is due."""
        lane, asked = self._rank.lane, False
        while self._at < upto:
            record = self._orders.read(self._at, upto)
            self._at = record.end
            orders = decode(Orders, record.payload)
            self._held = self._held and not orders.go
            asked = (asked or orders.hold) and not self._held and not orders.go  # one that is held has told already
            self._carry_out(orders)
        self._last = (upto, through)
        if self._held:
            return
        if asked:
            lane.end_steps(through)
        else:
            lane.pump(through)
        if asked or lane.due():
            self._report()
        elif self._spoke:
            self._tell(Told(self._said_at_once()))

    def _report(self) -> None:
        """Tell what the lane has done. What it may have launched is known now, so it waits for the answer.

        The steps under way, up to run-ahead, go on meanwhile.
        """
        events = self._rank.lane.reports()
        if not self._alone and any(type(event) is StepsFailed and not event.poisoned for event in events):
            raise GroupBrokenError(f"a step failed on one rank of several: {events[-1]}")
        self._held = True
        self._tell(Told(self._made(), tuple(events), held=True))

    def _carry_out(self, orders: Orders) -> None:
        rank = self._rank
        for copy in orders.returned:
            rank.mover.returned(copy)
        for news in orders.news:
            learn(rank.jobs, news, self._speaks)
            self._known[news.request] = max(self._known.get(news.request, 0), news.known + len(news.produced))
        for drop in orders.drops:
            rank.pools[drop.tier].keep(drop.request, drop.keep)
        for request in orders.releases:
            self._release(request)
        for move in orders.moves:
            rank.mover.start(move)
        lent = tuple((lend.copy, rank.mover.lend(lend)) for lend in orders.lends)
        if lent:
            self._tell(Told(lent=lent))
        for step in orders.steps:
            for request in (*(join.request for join in step.joins), *(chunk.request for chunk in step.chunks)):
                if request in rank.jobs:
                    self._active[request] = rank.jobs[request]
            rank.lane.take(step)

    def _speaks(self, request: str) -> None:
        """A request has a new token that somebody wants at once."""
        self._spoke[request] = None

    def _release(self, request: str) -> None:
        job = self._rank.jobs.pop(request, None)
        self._known.pop(request, None)
        self._active.pop(request, None)
        if job is not None and job.slot >= 0:
            self._rank.lane.drop(job)
        for pool in self._rank.pools.values():
            pool.forget(request)

    # -- telling

    def _made(self) -> tuple[Made, ...]:
        """Tokens the driver does not know. O(members) for each report."""
        made, awaited = [], self._rank.lane.awaited()
        self._spoke.clear()
        for request, job in tuple(self._active.items()):
            made += self._news_of(request, job)
            if job.slot < 0 and request not in awaited:
                del self._active[request]
        return tuple(made)

    def _said_at_once(self) -> tuple[Made, ...]:
        """The same of requests whose tokens somebody wants at once. O(those)."""
        spoke, self._spoke = self._spoke, {}
        return tuple(made for request in spoke for made in self._news_of(request, self._rank.jobs.get(request)))

    def _news_of(self, request: str, job: Job | None) -> list[Made]:
        if job is None:
            return []
        if job.slot >= 0:
            self._rank.table.collect(job.slot)
        known = self._known.get(request, 0)
        if len(job.produced) <= known:
            return []
        self._known[request] = len(job.produced)
        return [Made(request, known, tuple(job.produced[known:]))]

    def _tell(self, told: Told) -> None:
        """Write a report; the other ranks of a group write only what is their own."""
        moved, self._moved = tuple(self._moved), []
        if self._leads:
            told = evolve(told, moved=moved)
        else:
            told = Told(moved=moved, lent=told.lent)
            if not told:
                return
        payload = encode(told)
        while not self._reports.write(payload, self._bell.read):
            self._ring(False)
            select.select([self._wire.fileno()], [], [])
            self._listen()

    def _ring(self, idle: bool) -> None:
        """Say how far things are, where that is news or was asked."""
        bell = Bell(self._reports.head, self._at, idle)
        if self._owed or bell != self._said:
            self._wire.ring(bell)
            self._said, self._owed = bell, False


def main() -> int:
    """Connect to the driver, build what it says, work until it is gone. 0: the driver said goodbye."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; this process ends when it does
    wire = _connect()
    try:
        data, fds = wire.take_over()
        spec: WorkerSpec = decode(WorkerSpec, data)
        orders, reports = (Ring(Region.open(fd)) for fd in fds[:2])
        far = len(spec.regions)
        regions = dict(zip(spec.regions, (Region.open(fd) for fd in fds[2 : 2 + far]), strict=True))
        turns = [Turns(socket.socket(fileno=fd)) for fd in fds[2 + far :]]
        try:
            Worker(wire, build(spec, regions), spec, orders, reports, turns).run()
        except ClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - told to the driver, then this process ends
            kind = "" if isinstance(error, AlignedSchedError) else f"{type(error).__name__}: "
            _last_words(wire, reports, f"{kind}{error}" or type(error).__name__)
            return 1
    except ClosedError:  # of the driver's side, or of another rank's, which the driver hears of too
        return 0
    return 0


def _last_words(wire: Wire, reports: Ring, why: str) -> None:
    """Tell why this worker ends, and wait until the driver has closed its side."""
    read = 0
    while not reports.write(encode(Told(broken=why[:2000])), read):
        select.select([wire.fileno()], [], [])
        bell = wire.heard()
        read = read if bell is None else bell.read
    wire.ring(Bell(reports.head, 0))
    while True:
        select.select([wire.fileno()], [], [])
        wire.heard()


def _connect() -> Wire:
    """By the socket the driver left open for this process; or, started by torchrun, by the driver's path."""
    fd = os.environ.get(FD_VARIABLE)
    if fd is not None:
        return Wire(socket.socket(fileno=int(fd)))
    path = os.environ.get(PATH_VARIABLE)
    if path is None:
        raise SystemExit(f"a worker is started by its driver, or by torchrun with {PATH_VARIABLE} set to its socket")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    connection.send(os.environ.get("RANK", "0").encode())
    return Wire(connection)

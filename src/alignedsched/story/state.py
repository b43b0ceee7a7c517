"""The state of a scheduler as plain data, and a new scheduler filled with it.

Only primary facts are kept: requests, extents, copies, orders, who is where. What follows from them is made again:
the orders and classes of the pool, the closed forms of running batches, held and free blocks. Where the order in which
something was put into a dict decides anything later, that order is kept.

The data comes in parts (``PARTS``), each small enough for a frame, however much waits in the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import Any

from ..errors import AlignedSchedError
from ..lane_book import LaneBook, Outbox
from ..lanes import LaneState
from ..ledger import Extent
from ..live import Flight, Live
from ..load import Load
from ..outside import is_number, show
from ..policies.protocols import Batching, PlainData, Policy, Stepped, Watch
from ..queue import Waiting
from ..scheduler import Scheduler
from ..states import RequestState
from .codec import MisfitError, fields, fields_reader, reader, register

register(Load, Stepped)

PART = 10_000  # requests in one part
_TYPES: dict[str, Any] = {  # of plain facts of the books
    "now": float,
    "next_copy": int,
    "arrivals": int,
    "paused": bool,
    "draining": bool,
    "idle_since": float | None,
    "raised": bool,
    "counts": dict[str, int],
    "lost": dict[str, None],
    "resident": dict[str, dict[str, None]],
    "flights": dict[int, Flight],
    "quarantine": dict[int, Flight],
    "out": Outbox,
}
_PLAIN_FACTS = {name: reader(kind) for name, kind in _TYPES.items()}
_KEYS_GIVEN = ("counts", "resident")
_SEGMENTS = reader(list[tuple[str, dict[str, Extent]]])
_WAITING = reader(list[tuple[float, Waiting]])
_LIVE = reader(list[Live])
_TIERS = reader(dict[str, tuple[int, int, int, bool]])
_LINKS = reader(list[tuple[str, str, float]])
_MEMBERS = reader(list[list[tuple[str, int]]])
_UNTOLD = reader(tuple[list[Stepped], list[Live]])


class _Fields:
    """The fields of a record that has to stay the same object, but for some."""

    def __init__(self, kind: type, *without: str) -> None:
        self._names = [field.name for field in fields(kind, without)]
        self._get = attrgetter(*self._names)
        self._read = fields_reader(kind, without)

    def of(self, record: object) -> Any:
        return self._get(record)

    def fill(self, record: object, data: Any) -> None:
        for name, value in zip(self._names, self._read(data), strict=False):
            setattr(record, name, value)


_BOOK = _Fields(LaneBook, "state", "tiers")
_STATE = _Fields(LaneState, "lane", "role", "batches")


# -- out


def parts(scheduler: Scheduler) -> Iterator[list[Any]]:
    """The state of a scheduler between two calls, as named parts. O(everything).

    Raises TypeError for a policy's state that is no plain data.
    """
    books = scheduler._books
    yield ["policy", policy_state(scheduler.policy)]
    yield ["facts", {name: getattr(books, name) for name in _PLAIN_FACTS}]
    yield ["links", [(*key, rate) for key, rate in books.links.items()]]
    yield ["tiers", books.ledger.state()]
    watching = scheduler._watching  # has facts for the watches only where an error kept them from being told
    yield ["untold", [watching._steps, watching._ends] if watching else [[], []]]
    for name, lane in books.lanes.items():
        members = [[(r, batch.base(r)) for r in batch] for batch in lane.state.batches]
        yield ["lane", name, _BOOK.of(lane), _STATE.of(lane.state), members]
    yield from _cut("queue", books.queue.entered())
    yield from _cut("live", books.live.values())
    yield from _cut("extents", books.ledger.segments())


def _cut(name: str, rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while part := list(islice(rows, PART)):
        yield [name, part]


def policy_state(policy: Policy) -> PlainData:
    """All that a policy remembers: its batching's state, and those of what it lets watch."""
    return [policy.batching.state(), *(watch.state() for watch in policy.watches)]


# -- in


class Filling:
    """A new scheduler on its way into a state, part by part. Raises MisfitError, or what the books or the policy raise.

    A scheduler that was filled with an error is of no use.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._books = scheduler._books
        self._live: list[Live] = []
        self._lanes: dict[str, list[Any]] = {}
        once = {
            "policy": self._policy,
            "facts": self._facts,
            "links": self._links,
            "tiers": self._tiers,
            "untold": self._untold,
        }
        self._missing = dict.fromkeys(once)
        self._takers: dict[str, Callable[..., None]] = {
            **once,
            "lane": self._lane,
            "queue": self._queue,
            "live": self._begun,
            "extents": self._extents,
        }

    def take(self, name: str, *data: Any) -> None:
        """One part."""
        taker = self._takers.get(name)
        if taker is None or (len(data) != 4 if name == "lane" else len(data) != 1):
            raise MisfitError(f"{name!r:.80} with {len(data)} values is no part of a state")
        if name in self._missing:
            del self._missing[name]
        elif name not in ("lane", "queue", "live", "extents"):
            raise MisfitError(f"part {name!r} is there twice")
        try:
            taker(*data)
        except MisfitError as misfit:
            raise misfit.inside(f".{name}") from None

    def _policy(self, data: Any) -> None:
        policy = self._scheduler.policy
        memories: tuple[Batching | Watch, ...] = (policy.batching, *policy.watches)
        if type(data) is not list or len(data) != len(memories):
            raise MisfitError(
                f"policy {policy.name!r} has {len(policy.watches)} watches, the state was written with others"
            )
        try:
            for memory, state in zip(memories, data, strict=True):
                memory.load(state)
        except AlignedSchedError as error:
            raise MisfitError(f"{error!s:.300}") from None

    def _facts(self, data: Any) -> None:
        if type(data) is not dict or data.keys() != _PLAIN_FACTS.keys():
            raise MisfitError(f"must be {', '.join(_PLAIN_FACTS)}, got {data!r:.80}")
        if not is_number(data["now"]):
            raise MisfitError(f"now must be finite seconds, got {show(data['now'])}")
        for name, read in _PLAIN_FACTS.items():
            try:
                value = read(data[name])
            except MisfitError as misfit:
                raise misfit.inside(f".{name}") from None
            if name in _KEYS_GIVEN:
                known = getattr(self._books, name)
                unknown = value.keys() - known.keys()
                if unknown:
                    raise MisfitError(f"{name} has the unknown key {min(unknown)!r:.80}")
                value = {**known, **value}
            setattr(self._books, name, value)

    def _links(self, data: Any) -> None:
        rates = {(source, target): rate for source, target, rate in _LINKS(data)}
        if rates.keys() != self._books.links.keys():
            raise MisfitError("are not the cluster's")
        self._books.links = rates

    def _tiers(self, data: Any) -> None:
        self._books.ledger.load(_TIERS(data))

    def _untold(self, data: Any) -> None:
        steps, ends = _UNTOLD(data)
        watching = self._scheduler._watching
        if watching is not None:
            watching._steps.extend(steps)
            watching._ends.extend(ends)

    def _lane(self, name: Any, *data: Any) -> None:
        if type(name) is not str or name not in self._books.lanes or name in self._lanes:
            raise MisfitError(f"{name!r:.80} is unknown, or there twice")
        self._lanes[name] = list(data)

    def _queue(self, data: Any) -> None:
        for rank, waiting in _WAITING(data):
            self._books.queue.add(waiting, rank)

    def _begun(self, data: Any) -> None:
        self._live += _LIVE(data)

    def _extents(self, data: Any) -> None:
        for request, extents in _SEGMENTS(data):
            self._books.ledger.put(request, extents)

    def done(self) -> None:
        """All parts are there: put requests where they are, and members into their batches, as long as they are."""
        books = self._books
        missing = [*self._missing, *(f"lane {name!r}" for name in books.lanes if name not in self._lanes)]
        if missing:
            raise MisfitError(f"parts are missing: {', '.join(missing)}")
        for one in self._live:
            if one.id in books.live:
                raise MisfitError(f"request {one.id!r:.80} is live twice")
            books.live[one.id] = one
            if one.state is RequestState.POOLED:
                length, again = one.context_length, one.preemptions > 0
                books.pool.add(one.id, length, one.order, books.layout.blocks(length), again)
        for name, (book, state, ranks) in self._lanes.items():
            lane = books.lanes[name]
            _BOOK.fill(lane, book)
            _STATE.fill(lane.state, state)
            for batch, members in zip(lane.state.batches, _MEMBERS(ranks), strict=True):
                for request, base in members:
                    member = books.live[request]
                    batch.add(request, base, member.context - base + member.allowance - 1)
        for flight in (*books.flights.values(), *books.quarantine.values()):
            if flight.source not in books.cluster.tiers or flight.target not in books.cluster.tiers:
                raise MisfitError(
                    f"copy {flight.copy} goes from {flight.source!r:.40} to {flight.target!r:.40}, which are no tiers"
                )

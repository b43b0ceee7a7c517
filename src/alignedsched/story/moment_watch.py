"""One moment, told after the calls before it were replayed: each lane, the queue, the pool, copies under way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from ..books import Books
from ..events import Event
from ..lane_book import LaneBook
from ..narrator import Reason, Rule
from ..plan import Plan
from ..policies.protocols import Policy
from ..scheduler import Scheduler
from ..scheduler_view import SchedulerView
from . import reasons
from .batch_numbers import BatchNumbers
from .sentences import Sentence, data, listed, moment, name, seconds, several, span

SHOWN = 5  # of each kind: first in the queue, longest in the pool, copies


class MomentWatch:
    """A narrator that remembers what each lane decided last, and tells what is where."""

    _books: Books
    _views: dict[str, SchedulerView]
    _policy: Policy
    _hook: bool

    def __init__(self, at: float) -> None:
        self._at = at
        self._numbers = BatchNumbers()
        self._decided: dict[str, tuple[float, str]] = {}
        self._queues: dict[str, Reason] = {}

    def begin(self, scheduler: Scheduler) -> None:
        """A scheduler is about to make the calls."""
        self._books, self._policy = scheduler._books, scheduler.policy
        self._hook = scheduler.eligible is not None
        self._views = {lane: scheduler.view(lane) for lane in self._books.lanes}

    def wants(self, now: float) -> bool:
        """Whether the next call, made at ``now``, matters."""
        return now <= self._at

    def note(self, rule: Rule, lane: str, request: str, figure: int) -> None:
        """See Narrator."""
        books = self._books
        book = books.lanes[lane]
        if rule is Rule.DECIDED:
            self._decided[lane] = books.now, book.why or "nothing to change"
            self._queues.pop(lane, None)
            if len(books.queue) and book.state.role.prefills:
                self._queues[lane] = reasons.queued(books, book, self._views[lane], self._policy, figure, self._hook)
        elif rule is Rule.NO_ROOM:
            self._decided[lane] = books.now, f"{several(figure, 'block')} short for the next step"

    def before(self, now: float, events: Sequence[Event]) -> None:
        """A call is about to be made."""

    def after(self, now: float, events: Sequence[Event], plan: Plan) -> None:
        """The call has been made."""
        self._numbers.take(plan)

    def told(self) -> list[Sentence]:
        """What is where now."""
        books = self._books
        counts = (
            f"{several(len(books.queue), 'request')} queued, {len(books.pool):,} in the pool, {len(books.live):,} begun"
        )
        copies = f"{several(len(books.flights), 'copy')} under way{', paused' if books.paused else ''}"
        texts = [f"{counts} and not ended, {copies}; the last call was at {moment(books.now)}"]
        for lane in books.lanes.values():
            texts += self._lane(lane)
        texts += self._queue() + self._pool() + self._copies()
        return [Sentence(self._at, text) for text in texts]

    def _lane(self, lane: LaneBook) -> list[str]:
        state, who = lane.state, name(lane.id)
        if state.lost:
            return [f"{who} is lost"]
        step = state.reported + 1
        parts = []
        for tier, batch in zip(lane.tiers, state.batches, strict=True):
            lengths = f", {span(batch.shortest(step), batch.longest(step))} tokens long" if len(batch) else ""
            parts.append(f"{several(len(batch), 'member')} on {name(tier)}{lengths}")
        for count, what in (
            (len(lane.prefilling) + len(lane.expected), "in prefill"),
            (len(lane.joining), "joining"),
            (len(lane.candidates), "chosen for the next batch"),
        ):
            parts += [f"{count:,} {what}"] if count else []
        newest = state.issued[-1] if state.issued else state.standing
        orders = "no order yet" if newest is None else f"order {newest.step.order}: {newest.step.why}"
        if newest is not None and newest.step.horizon:
            orders += f", for {several(newest.step.horizon, 'step')} at most"
        told = [f"{who}: batch {self._numbers.of(lane.id)}, {listed(parts)}; {orders}"]
        if lane.id in self._decided:
            when, why = self._decided[lane.id]
            told.append(f"{who} last decided at {moment(when)}: {why}")
        ledger = self._books.ledger
        for tier, batch in zip(lane.tiers, state.batches, strict=True):
            now = batch.blocks(max(state.reported, 0)) if len(batch) else 0
            ahead = ledger.growth(tier) - now
            told.append(
                f"{name(tier)}: {ledger.free(tier):,} of {ledger.capacity(tier):,} blocks free, {now:,} of the batch, "
                f"{max(0, ahead):,} set aside for the steps ordered, {ledger.held(tier):,} of others"
                + (f", {ledger.quarantined(tier):,} quarantined" if ledger.quarantined(tier) else "")
            )
        return told

    def _queue(self) -> list[str]:
        books = self._books
        if not len(books.queue):
            return []
        first = [f"{name(w.request.id)} ({w.prefill_tokens:,} tokens)" for w in islice(books.queue, SHOWN)]
        more = f" and {len(books.queue) - SHOWN:,} more" if len(books.queue) > SHOWN else ""
        whys = [
            f"{name(lane)}: {why.text if why.figure is None else f'{why.figure:,} {why.text}'}"
            for lane, why in sorted(self._queues.items())
        ]
        return [f"queue: {', '.join(first)}{more}"] + [f"why the first of the queue waits, {why}" for why in whys]

    def _pool(self) -> list[str]:
        books = self._books
        if not len(books.pool):
            return []
        longest = max(books.pool.by_order(), key=lambda r: (books.pool.length(r), r))
        lengths = span(books.pool.length(next(books.pool.by_length())), books.pool.length(longest))
        oldest = min(books.pool.by_order(), key=lambda r: (books.live[r].since, r))
        since = books.now - books.live[oldest].since
        return [f"pool: {lengths} tokens long; {name(oldest)} is in it longest, {seconds(since)}"]

    def _copies(self) -> list[str]:
        books = self._books
        flights = list(books.flights.values())
        told = [
            f"copy {flight.copy} of {name(flight.request)}, "
            f"{data((flight.end - flight.start) * books.layout.bytes_per_token)} from {name(flight.source)} "
            f"to {name(flight.target)}"
            for flight in flights[:SHOWN]
        ]
        more = [f"and {len(flights) - SHOWN:,} more copies"] if len(flights) > SHOWN else []
        return told + more

"""Leases: what has been under way without a word for too long is given up; a lost report costs time, and no request.

A copy whose completion does not come leaves its request at once. Where it may still write is quarantined until the
completion does come, or the device is lost; what it still reads may be reused, since nobody will read the result.

A lane that owes a report and says nothing is given up like a lost one: its requests are computed again or go on from
KV elsewhere. Nothing is written to its devices until the executor vouches, by ``LaneBack``, that its steps have ended.
"""

from __future__ import annotations

from .books import Books
from .trouble import Trouble


class Leases:
    """Watches copies and lanes. ``None`` for a lease: wait for ever, the executor guarantees the report."""

    def __init__(self, books: Books, trouble: Trouble, copy_lease_s: float | None, step_lease_s: float | None) -> None:
        self._books = books
        self._trouble = trouble
        self._copy_lease_s = copy_lease_s
        self._step_lease_s = step_lease_s

    def expire(self) -> None:
        """Give up what is overdue, after the events of a call are in. O(lanes + what is given up)."""
        books = self._books
        if self._copy_lease_s is not None:
            while books.flights:  # in order of their beginning, so of their leases' end
                flight = next(iter(books.flights.values()))
                if flight.began + self._copy_lease_s > books.now:
                    break
                self._trouble.forsake_copy(flight)
        if self._step_lease_s is not None:
            for lane in books.lanes.values():
                if lane.heard is None or lane.state.fresh or not lane.state.owes_report():
                    lane.heard = None
                elif lane.heard + self._step_lease_s <= books.now:
                    books.out.given_up.append(lane.id)
                    self._trouble.lose_lane(lane)

    def next_end(self) -> float | None:
        """When the next lease ends, as things stand at the end of a call. O(lanes)."""
        books, ends = self._books, []
        if self._copy_lease_s is not None and books.flights:
            ends.append(next(iter(books.flights.values())).began + self._copy_lease_s)
        if self._step_lease_s is not None:
            for lane in books.lanes.values():
                if lane.state.owes_report():
                    lane.heard = books.now if lane.heard is None else lane.heard
                    ends.append(lane.heard + self._step_lease_s)
        return min(ends, default=None)

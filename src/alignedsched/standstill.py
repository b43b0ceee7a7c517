"""Standstill: nothing runs and nothing is under way, yet work waits; here somebody else chooses.

A policy may leave work waiting for as long as it has declared (``Policy.may_idle_s``). Beyond that it is overruled and
named: every lane is planned once, first come first served. If even that finds nothing to do, KV lies where it blocks
all the rest, and the newest of it starts over. So work that can go on goes on, whatever a policy chooses, and also
when it raises whenever it is asked.
"""

from __future__ import annotations

from .books import Books
from .planner import Planner
from .policies.protocols import Policy


class Standstill:
    """Notices a standstill and ends it. ``chooser`` plans first come, first served."""

    def __init__(self, books: Books, policy: Policy, chooser: Planner) -> None:
        self._books = books
        self._policy = policy
        self._chooser = chooser

    def due(self) -> float | None:
        """When the policy is overruled, if all stands still until then."""
        since = self._books.idle_since
        return None if since is None else since + self._policy.may_idle_s

    def overdue(self) -> bool:
        """Whether all stood still when last looked at, and the policy's time to choose is over. O(1)."""
        due = self.due()
        return due is not None and due <= self._books.now

    def note(self) -> None:
        """Look whether all stands still. O(lanes)."""
        books = self._books
        if not self._still():
            books.idle_since = None
        elif books.idle_since is None:
            books.idle_since = books.now

    def _still(self) -> bool:
        books = self._books
        waits = bool(books.live or len(books.queue)) and not books.paused
        return waits and not books.flights and not any(
            lane.state.members() or lane.fences or lane.state.chunk_orders()
            for lane in books.lanes.values()
            if not lane.state.lost
        )  # fmt: skip

    def end(self) -> bool:
        """Choose in the policy's place, or free what blocks all. True if lanes have to be looked at again."""
        self.note()
        return self.overdue() and (self._overrule() or self._chooser.free_blocked())

    def _overrule(self) -> bool:
        books = self._books
        before = len(books.out.steps) + len(books.out.copies)
        dirty = [lane.dirty for lane in books.lanes.values()]
        for lane in books.lanes.values():
            for request in (*lane.candidates, *lane.joining):  # first come, first served knows only the pool
                books.unclaim(books.live[request])
        for lane in books.lanes.values():
            if not lane.state.lost and lane.state.may_order():
                lane.dirty = True
                self._chooser.plan(lane)
        if len(books.out.steps) + len(books.out.copies) == before:
            for lane, was in zip(books.lanes.values(), dirty, strict=True):
                lane.dirty = was  # that nothing came of it is no reason to look again
            return False
        books.counts["overruled"] += 1
        self.note()
        return True

"""Copies of KV on their way: begun, ended, given up; moves over the accounts.

Both ends of a copy stay pinned until its one completion. One whose lease has ended is waited for no longer: its request
is free of it, and what it may still write is set aside until it has ended after all.
"""

from __future__ import annotations

from .accounts import Accounts
from .live import Flight, Live
from .plan import Copy, Drop
from .states import CopyState, RequestState

R = RequestState


class Flights(Accounts):
    """The accounts, and how copies begin and end."""

    def start_copy(self, live: Live, source: str, target: str, keep: bool, deadline: float | None, why: str) -> None:
        """Reserve the target and send KV on its way; both ends stay pinned until the one completion."""
        start = self.ledger.tokens(live.id, target)
        self.ledger.reserve(live.id, target, live.stored)
        self.ledger.pin(live.id, source)
        self.ledger.pin(live.id, target)
        flight = Flight(self.next_copy, live.id, source, target, start, live.stored, keep, self.now)
        self.next_copy += 1
        self.flights[flight.copy] = flight
        live.copies[flight.copy] = None
        self.out.copies.append(Copy(flight.copy, live.id, source, target, start, flight.end, deadline, why))

    def end_copy(self, flight: Flight, arrived: bool) -> None:
        """The one completion of a copy."""
        del self.flights[flight.copy]
        live = self.live[flight.request]
        del live.copies[flight.copy]
        wanted = flight.state is CopyState.FLYING
        self._land(live, flight, arrived and wanted)
        if self.ledger.unpin(live.id, flight.source):
            self.drop_freed(live, flight.source)
        if arrived and wanted and not flight.keep and flight.end >= live.stored:  # it may have decoded meanwhile
            self._drop_others(live, flight)
        self.gone(live)
        self._ended(live, flight)

    def _ended(self, live: Live, flight: Flight) -> None:
        """Whoever waits for room at either end, or for the request's KV, may go on or ask for another copy."""
        self.touch_device(flight.target)
        if flight.source in self.lane_of_device:
            self.touch_device(flight.source)
        if live.lane is not None:
            self.lanes[live.lane].dirty = True
        elif live.state is R.POOLED:
            self.touch_deciders()

    def forsake(self, flight: Flight) -> None:
        """A copy is waited for no longer: its request is free of it, its target is set aside until it has ended."""
        live, target = self.live[flight.request], flight.target
        self.abort(flight)
        del self.flights[flight.copy]
        del live.copies[flight.copy]
        if target in self.resident:
            self.resident[target].pop(live.id, None)
        flight.quarantined = self.ledger.quarantine(live.id, target)
        self.quarantine[flight.copy] = flight
        self.out.drops.append(Drop(live.id, target))
        if self.ledger.unpin(live.id, flight.source):
            self.drop_freed(live, flight.source)
        self.unclaim_unfit()
        self.gone(live)
        self._ended(live, flight)

    def vouch(self, flight: Flight) -> None:
        """A copy given up has ended after all: what it might have written is free."""
        del self.quarantine[flight.copy]
        self.ledger.vouch(flight.target, flight.quarantined)
        self.touch_device(flight.target)

    def unclaim_unfit(self) -> None:
        """What a lane has claimed and cannot hold any more goes back to the pool. O(claims)."""
        for lane in self.lanes.values():
            for request in (*lane.candidates, *lane.joining):
                if not self.could_hold(lane, self.live[request].context_length):
                    self.unclaim(self.live[request])

    def _land(self, live: Live, flight: Flight, readable: bool) -> None:
        if self.ledger.unpin(live.id, flight.target):
            self.drop_freed(live, flight.target)
        elif readable:
            self.ledger.commit(live.id, flight.target, flight.end)
            if live.state is R.POOLED and flight.target in self.resident:
                self.resident[flight.target][live.id] = None
        elif live.state is not R.ENDED:  # of who leaves a batch for the pool, too
            if flight.start:
                self.ledger.trim(live.id, flight.target, flight.start)
                self.out.drops.append(Drop(live.id, flight.target, flight.start))
            else:
                self.drop(live, flight.target)

    def _drop_others(self, live: Live, flight: Flight) -> None:
        """The copy arrived: what it replaces goes. Staged KV is revocable, so a copy into staging replaces nothing."""
        if live.state in (R.ENDED, R.LEAVING) or self.cluster.tiers[flight.target].staged:
            return
        for tier, extent in tuple(self.ledger.extents(live.id).items()):
            if tier != flight.target and not extent.growing and not extent.doomed:
                self.drop(live, tier)

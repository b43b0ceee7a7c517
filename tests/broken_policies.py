"""Policies with one fault each, for the tests of the conformance suite. Another process imports them by name."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from attrs import define, evolve, field

from alignedsched.policies import fcfs
from alignedsched.policies.admission import ArrivalOrder
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.policies.protocols import Batching, Composition, PlainData, Policy, Sacrifice, Take
from alignedsched.views import LaneView


class Delegating:
    """Batching that does what continuous batching does; the broken ones override a method."""

    def __init__(self) -> None:
        self.good: Batching = ContinuousBatching()

    def compose(self, view: LaneView) -> Composition:
        return self.good.compose(view)

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterable[tuple[str, Sacrifice]]:
        return self.good.victims(view, rank, blocks)

    def taken(self, view: LaneView, composition: Composition) -> None:
        """Nothing to remember."""

    def state(self) -> PlainData:
        return None

    def load(self, state: PlainData) -> None:
        """Nothing to restore."""


def _with(name: str, batching: Batching) -> Policy:
    return evolve(fcfs(), name=name, batching=batching)


def unbroken() -> Policy:
    return _with("unbroken", Delegating())


class _Raises(Delegating):
    def compose(self, view: LaneView) -> Composition:
        if len(view.pool) > 2:
            raise ZeroDivisionError("three is a crowd")
        return super().compose(view)


def raises() -> Policy:
    return _with("raises", _Raises())


class _AlwaysRaises(Delegating):
    def compose(self, view: LaneView) -> Composition:
        raise RuntimeError("no")


def always_raises() -> Policy:
    return _with("always raises", _AlwaysRaises())


class _UnknownIds(Delegating):
    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        return evolve(good, joins=[*good.joins, "nobody"])


def unknown_ids() -> Policy:
    return _with("unknown ids", _UnknownIds())


class _Duplicates(Delegating):
    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        return evolve(good, joins=[*good.joins, *good.joins])


def duplicates() -> Policy:
    return _with("duplicates", _Duplicates())


class _TakesTwice(ArrivalOrder):
    def admit(self, view: LaneView) -> Iterator[Take]:
        for take in super().admit(view):
            yield take
            yield take


def takes_twice() -> Policy:
    return evolve(fcfs(), name="takes twice", admission=_TakesTwice())


class _ChoosesNothing(Delegating):
    def compose(self, view: LaneView) -> Composition:
        return Composition()


def chooses_nothing() -> Policy:
    return _with("chooses nothing", _ChoosesNothing())


class _MutatesView(Delegating):
    def compose(self, view: LaneView) -> Composition:
        pool = view.pool._pool
        for request in list(view.pool.by_order())[:1]:
            length, order, blocks = pool.length(request), pool.order(request), pool.blocks(request)
            pool.remove(request)
            pool.add(request, length + 1, order, blocks)
        return super().compose(view)


def mutates_view() -> Policy:
    return _with("mutates its view", _MutatesView())


class _Random(Delegating):
    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        return evolve(good, joins=random.sample(list(good.joins), len(good.joins)))


def at_random() -> Policy:
    return _with("at random", _Random())


class _HashOrder(Delegating):
    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        return evolve(good, joins=list(set(good.joins)))


def in_hash_order() -> Policy:
    return _with("in hash order", _HashOrder())


class _Identity(Delegating):
    """Orders by what differs between two instances that should be the same."""

    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        return evolve(good, joins=sorted(good.joins, key=lambda request: (hash((id(self), request)), request)))


def by_identity() -> Policy:
    return _with("by identity", _Identity())


class _Ignores(Delegating):
    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        return evolve(good, joins=[request for request in good.joins if request != "r3"])


def ignores_one() -> Policy:
    return _with("ignores one", _Ignores())


class _Hidden(Delegating):
    """Every third composition that was taken is followed by an empty one; ``state()`` does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = 0

    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        return evolve(good, joins=list(good.joins)[::-1]) if self._taken % 3 == 2 else good

    def taken(self, view: LaneView, composition: Composition) -> None:
        self._taken += bool(composition.joins)


def hidden_state() -> Policy:
    return _with("hidden state", _Hidden())


class _Impatient(Delegating):
    def compose(self, view: LaneView) -> Composition:
        return evolve(super().compose(view), wake_at=view.now)


def wakes_at_once() -> Policy:
    return _with("wakes at once", _Impatient())


class _Storm(Delegating):
    def compose(self, view: LaneView) -> Composition:
        return evolve(super().compose(view), wake_at=view.now + 1e-7)


def wake_storm() -> Policy:
    return _with("wake storm", _Storm())


@define(eq=False)
class _Early(Delegating):
    """Remembers in ``compose`` what only ``taken`` may remember."""

    seen: list[str] = field(factory=list)
    good: Batching = field(factory=ContinuousBatching)

    def compose(self, view: LaneView) -> Composition:
        self.seen = [*self.seen, view.lane.id][-50:]
        return self.good.compose(view)

    def state(self) -> PlainData:
        return list(self.seen)

    def load(self, state: PlainData) -> None:
        assert isinstance(state, list)
        self.seen = [str(one) for one in state]


def remembers_early() -> Policy:
    return _with("remembers early", _Early())


class _Unplain(Delegating):
    def state(self) -> PlainData:
        return {"seen": {"a", "b"}}  # type: ignore[dict-item]


def unplain_state() -> Policy:
    return _with("unplain state", _Unplain())


class _BehindTheView(Delegating):
    """Looks through its view at the scheduler's books."""

    def compose(self, view: LaneView) -> Composition:
        good = super().compose(view)
        books = getattr(view, "_books", None)
        return evolve(good, joins=list(good.joins)[:1]) if books is not None and len(books.pool) > 1 else good


def behind_the_view() -> Policy:
    return _with("looks behind the view", _BehindTheView())

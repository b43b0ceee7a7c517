"""Timing several things in turns, in short spells, so that a slow moment of the machine hits all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter, thread_time
from typing import NamedTuple

from attrs import define, field, frozen

SPELL = 100  # calls before the next one has its turn


class Spent(NamedTuple):
    """Seconds of one call: by the clock on the wall, and of the processor."""

    wall: float
    cpu: float


def spent(call: Callable[[], None]) -> Spent:
    """Make a call and say what it took."""
    cpu, begin = thread_time(), perf_counter()
    call()
    end = perf_counter()
    return Spent(end - begin, thread_time() - cpu)


@frozen
class Figure:
    """One row of the result: wall microseconds per call, and mean processor microseconds per event.

    The means count rare long calls (garbage collection, say) but not the time for which the machine ran something else.
    Aims are per event.
    """

    case: str
    scheduler: str
    repetitions: int
    median_us: float
    p999_us: float
    longest_us: float
    least_us: float
    cpu_mean_us: float
    events: int
    cpu_per_event_us: float
    aim_us: float | None

    @staticmethod
    def of(case: str, scheduler: str, seconds: list[Spent], events: int = 1, aim_us: float | None = None) -> Figure:
        """The figures of so many timed calls."""
        ordered = sorted(1e6 * call.wall for call in seconds)
        n = len(ordered)
        at = min(n - 1, int(0.999 * n))
        mean = 1e6 * sum(call.cpu for call in seconds) / n
        middle, rare, longest, least = ordered[n // 2], ordered[at], ordered[-1], ordered[0]
        return Figure(case, scheduler, n, middle, rare, longest, least, mean, events, mean / events, aim_us)


@define(eq=False)
class Taker:
    """Something timed in spells: ``once`` makes one call and returns what it took."""

    case: str
    scheduler: str
    repetitions: int
    once: Callable[[], Spent]
    aim_us: float | None = None
    events: int = 1
    seconds: list[Spent] = field(factory=list)

    def figure(self) -> Figure:
        return Figure.of(self.case, self.scheduler, self.seconds, self.events, self.aim_us)


def take_turns(takers: list[Taker]) -> Iterator[Figure]:
    """Time them in turns until each has its repetitions."""
    while any(len(taker.seconds) < taker.repetitions for taker in takers):
        for taker in takers:
            for _ in range(min(SPELL, taker.repetitions - len(taker.seconds))):
                taker.seconds.append(taker.once())
    yield from (taker.figure() for taker in takers)

"""The workers of all lanes: started, waited for, held and let go, replaced when they are lost, ended."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator

from attrs import evolve

from alignedsched.errors import ExecutorError

from .alarm import Alarm
from .group import Group, LostError
from .launch import Launcher, Spawn
from .meeting import Meeting
from .memory import Region
from .messages import Orders
from .spec import Limits, WorkerSpec


class Fleet:
    """Groups of workers, ``ranks`` in each, by their lane. A lane whose workers are lost has none until it has others.

    Iterating goes over (lane, group), those that are there when it begins.
    """

    def __init__(self, ranks: int, launcher: Launcher | None, limits: Limits | None) -> None:
        self.lost: list[str] = []  # why workers were lost, in order
        self.regions: list[dict[str, Region]] = [{} for _ in range(ranks)]  # by rank, by tier
        self._limits = limits or Limits()
        self._launcher = launcher or Spawn()
        self._meeting = Meeting(ranks > 1)
        self._specs: dict[str, WorkerSpec] = {}
        self._starts: dict[str, int] = {}
        self._groups: dict[str, Group] = {}
        self._alarm = Alarm()
        self._finalizer = weakref.finalize(
            self, _end, self._groups, self.regions, self._launcher, self._meeting, self._alarm
        )

    @property
    def store(self) -> tuple[str, int]:
        """Where the workers of a group meet."""
        return self._meeting.address

    def now(self) -> float:
        """Seconds on the clock that all times here are of."""
        return time.monotonic()

    def __iter__(self) -> Iterator[tuple[str, Group]]:
        return iter(tuple(self._groups.items()))

    def get(self, lane: str) -> Group | None:
        """The workers of a lane, unless they are lost."""
        return self._groups.get(lane)

    # -- their lives

    def start(self, spec: WorkerSpec) -> None:
        """Start a lane's first workers. Returns at once; they are ready when their ``listen`` has found them so."""
        self._specs[spec.lane], self._starts[spec.lane] = spec, 0
        self._start(spec.lane, spec.first_step)

    def _start(self, lane: str, first_step: int) -> None:
        self._starts[lane] += 1
        spec = evolve(self._specs[lane], first_step=first_step, meeting=f"{lane}/{self._starts[lane]}")
        self._groups[lane] = Group(spec, self._launcher, self.regions, self._limits, self.now())

    def await_all(self) -> None:
        """Until all are ready. Raises ExecutorError when one does not come up."""
        while True:
            for lane, group in self:
                try:
                    group.listen(self.now())
                except LostError as error:
                    raise ExecutorError(f"lane {lane!r} did not start: {error}") from error
            if all(group.ready for _, group in self):
                return
            self.sleep(None)

    def lose(self, lane: str, why: str) -> None:
        """A lane's workers are gone, or shall be."""
        self.lost.append(why)
        self._groups.pop(lane).kill()

    def replace(self, lane: str, first_step: int) -> None:
        """Start other workers for a lane that lost its own, if there may be any."""
        if self._launcher.again and self._starts[lane] <= self._limits.restarts:
            self._start(lane, first_step)

    def close(self) -> None:
        """End all workers and give all memory back. More than once is fine."""
        self._finalizer()

    # -- turns

    def post(self, lane: str, orders: Orders) -> None:
        """Send what there is to a lane; what a lost one is told means nothing."""
        group = self.get(lane)
        if group is not None and group.ready and (orders or (orders.go and group.held)):
            group.post(orders, self.now())

    def hold(self) -> list[Group]:
        """Have every lane that may run tell what it has done, and launch nothing before a go. Returns those asked."""
        asked = [group for _, group in self if group.ready and not group.held and not group.resting()]
        for group in asked:
            group.post(Orders(hold=True), self.now())
        return asked

    def awaits(self, asked: list[Group]) -> bool:
        """Whether one of these has still to tell; one that was lost meanwhile never will."""
        return any(not group.held and self.get(group.spec.lane) is group for group in asked)

    def release_held(self) -> None:
        """Lanes held for a plan that never came go on."""
        for _, group in self:
            if group.held:
                group.post(Orders(go=True), self.now())

    def resting(self) -> bool:
        """Whether nothing is under way in any of them."""
        return all(group.resting() for _, group in self)

    # -- sleep

    def sleep(self, until: float | None) -> None:
        """Until a worker rings, somebody wakes us, or something is due."""
        now = self.now()
        times = [group.due(now) for _, group in self] + ([] if until is None else [until])
        files = (file for _, group in self for file in group.files())
        self._alarm.sleep(files, min(times) - now if times else None)

    def wake(self) -> None:
        """End the present sleep, or the next one, at once. Any thread may call this."""
        self._alarm.wake()

    def woken(self) -> bool:
        """Whether somebody called ``wake`` since the last call."""
        return self._alarm.woken()


def _end(
    groups: dict[str, Group], regions: list[dict[str, Region]], launcher: Launcher, meeting: Meeting, alarm: Alarm
) -> None:
    """All of it, also when nobody closed and the interpreter ends."""
    for group in groups.values():
        group.goodbye()
    for group in groups.values():
        group.kill(5.0)
    groups.clear()
    for rank in regions:
        for region in rank.values():
            region.close()
    launcher.close()
    meeting.close()
    alarm.close()

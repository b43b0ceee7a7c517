"""Lives of a policy over the simulated executor: a calm one with room for everybody, and a crowded one."""

from __future__ import annotations

import hashlib
from random import Random

from attrs import frozen

from ..cluster import HOST, Cluster, Device, KVLayout, Lane, Role
from ..costs import AffineCosts
from ..driver import drive
from ..errors import AlignedSchedError, PolicyError
from ..events import Arrived, Event
from ..plan import Outcome, Plan
from ..scheduler import Scheduler
from ..sim.executor import SimulatedExecutor
from .clusters import both_ways
from .probe import Probe, SpoiledError, overruled
from .results import Findings
from .streams import stream

IDLE_CALLS = 100  # calls in a row without an event and with an empty plan
COSTS = AffineCosts(0.01, 1e-4, 1e-6, 1e-5, "unsplit", per_pair=1e-8)


@frozen
class Setting:
    """A cluster and how fast requests come. ``calm``: there is room for all of them at once."""

    cluster: Cluster
    spacing_s: float
    calm: bool


def _cluster(apart: bool, blocks: int, host: int, members: int, tokens: int) -> Cluster:
    """One device that does both, or prefill (with staging) and decode on two; all linked with each other."""
    devices: tuple[Device, ...] = (Device("d0", Role.BOTH, blocks),)
    if apart:
        devices = (Device("d0", Role.PREFILL, blocks, blocks // 2), Device("d1", Role.DECODE, blocks))
    lanes = tuple(Lane(f"l{device.id}", (device.id,), 1, members, tokens) for device in devices)
    links = [link for device in devices for link in both_ways(device.id, HOST)]
    links += both_ways("d0", "d1") if apart else ()
    return Cluster(devices, lanes, host, tuple(links), KVLayout(8, 1000), 400)


def calm(seed: int) -> Setting:
    """A dozen requests at a time, and room for all that ever come."""
    return Setting(_cluster(bool(seed % 2), 4000, 8000, 64, 512), 0.05, True)


def crowded(seed: int) -> Setting:
    """Requests come faster than they can be served: a deep queue, a deep pool, and no room."""
    return Setting(_cluster(bool(seed % 2), 100, 400, 8, 128), 0.002, False)


class Served:
    """One stream of requests served in a setting. What is wrong is noted, not raised."""

    def __init__(self, setting: Setting, probe: Probe, findings: Findings, most_overtaken: int | None = None) -> None:
        self.digests: list[str] = []  # one a call, each over all plans so far
        self._setting = setting
        self._probe = probe
        self._findings = findings
        self._most = most_overtaken
        self._open: dict[str, list[int]] = {}  # request -> [arrival number, how many came later and ended before]
        self._arrived = 0
        self._idle = 0
        self._digest = hashlib.sha256()
        self._scheduler = Scheduler(setting.cluster, probe.policy(), COSTS)

    def run(self, seed: int, count: int) -> None:
        """Serve ``count`` requests drawn from the seed."""
        executor = SimulatedExecutor(self._setting.cluster, COSTS)
        jobs = list(stream(Random(seed), count, self._setting.spacing_s, longest_output=100))
        for job in jobs:
            executor.expect(job.request.id, job.output_tokens)
        arrivals = [(job.request.arrival, Arrived(job.request)) for job in jobs]
        try:
            drive(self._scheduler, executor, arrivals, observe=self._watch)
        except SpoiledError:
            pass
        except PolicyError as error:
            self._findings.note("raises_nothing", str(error))
        except AlignedSchedError as error:
            self._findings.note("everything_ends", f"{type(error).__name__}: {error}")

    def _watch(self, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        self._findings.calls += 1
        self._digest.update(repr((now, events, plan)).encode())
        self.digests.append(self._digest.hexdigest())
        if self._scheduler.counts["overruled"]:
            self._findings.note("chooses_something", overruled(plan))
        self._idle = 0 if events or plan else self._idle + 1
        if self._idle > IDLE_CALLS:
            why = f"wanted to be called {self._idle} times in a row, and each time decided nothing (now {now!r})"
            self._findings.note("wakes_later", why)
            raise SpoiledError
        for event in events:
            if isinstance(event, Arrived):
                self._open[event.request.id] = [self._arrived, 0]
                self._arrived += 1
        for release in plan.releases:
            self._ended(release.request, release.outcome)
        if self._probe.spoiled:
            raise SpoiledError

    def _ended(self, request: str, outcome: Outcome) -> None:
        number, _ = self._open.pop(request)
        if not self._setting.calm:
            return
        if outcome is not Outcome.FINISHED:
            why = f"{request!r} ended as {outcome.value} on a cluster with room for all"
            self._findings.note("everything_ends", why)
        for other, waiting in self._open.items():
            waiting[1] += waiting[0] < number
            if self._most is not None and waiting[1] > self._most:
                why = f"{other!r} waits while {waiting[1]} that came later have ended, on a cluster with room for all"
                self._findings.note("bounded_wait", why)
                raise SpoiledError

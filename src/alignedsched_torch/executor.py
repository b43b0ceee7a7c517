"""The executor: carries the scheduler's plans out on devices, one process, any number of lanes."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from alignedsched.cluster import Cluster
from alignedsched.errors import CallerError, ConfigError, ExecutorError
from alignedsched.events import ExecutorEvent, StagedLost
from alignedsched.plan import Plan
from alignedsched.request import RequestId

from .devices import Device
from .forward import Forward
from .job import Job
from .lane import LaneRunner
from .memory import Copier, KVPool, PageShape
from .models import Decoder
from .table import BatchTable


class TorchExecutor:
    """Lanes, pools and copies of a cluster; see ``alignedsched.driver.Executor``.

    ``devices`` by device id, ``decoders`` by lane id (lanes on one device may share one). The host's pool is pinned by
    the first device. ``attention`` and ``fixed``: see ``forward.Forward``. ``relay_slots`` and ``host_chunk_bytes``:
    see ``memory.copier``; with slots, copies from the host are split over the target's own link and the helpers. Raises
    ConfigError for a lane of several ranks: those run in several processes.
    """

    def __init__(
        self,
        cluster: Cluster,
        devices: Mapping[str, Device],
        decoders: Mapping[str, Decoder],
        *,
        step_seconds: float = 0.0,
        attention: str = "auto",
        fixed: bool | None = None,
        relay_slots: int = 0,
        host_chunk_bytes: int | None = None,
    ) -> None:
        for lane in cluster.lanes:
            if len(lane.ranks) > 1:
                raise ConfigError(f"lane {lane.id!r} has {len(lane.ranks)} ranks; here a lane has one")
        self.cluster = cluster
        self.jobs: dict[RequestId, Job] = {}
        self.devices = dict(devices)
        self._clock = next(iter(devices.values()))
        config = next(iter(decoders.values())).config
        dtype = next(iter(decoders.values())).weights.norm.dtype
        heads = next(iter(decoders.values())).kv_heads
        self.shape = PageShape(config.layers, heads, config.head_dim, cluster.layout.block_size, dtype)
        self.pools: dict[str, KVPool] = {}
        for tier in cluster.tiers.values():
            device = self._clock if tier.device is None else self.devices[tier.device]
            self.pools[tier.id] = KVPool(tier.id, device, self.shape, tier.blocks, pinned=tier.device is None)
        self.copier = Copier(cluster, self.pools, self.devices, relay_slots, host_chunk_bytes)
        self.lanes: dict[str, LaneRunner] = {}
        for lane in cluster.lanes:
            pool, device = self.pools[lane.ranks[0]], self.devices[lane.ranks[0]]
            pages = min(self.shape.pages(cluster.max_positions), cluster.device[lane.ranks[0]].kv_blocks)
            table = BatchTable(pool, lane.max_members, max(1, pages), lane.run_ahead, config.vocab)
            forward = Forward(
                decoders[lane.id], pool, table, device.stream("compute"), step_seconds, attention=attention, fixed=fixed
            )
            self.lanes[lane.id] = LaneRunner(lane, forward, pool, self.jobs)
        for device in self.devices.values():
            device.settle()
        self._woken = threading.Event()
        self._news: list[ExecutorEvent] = []

    # -- requests

    def expect(self, job: Job) -> None:
        """A request will be in the plans: here is what it consists of. Raises CallerError for an id that is here."""
        if job.id in self.jobs:
            raise CallerError(f"request {job.id!r} is here already")
        self.jobs[job.id] = job

    @property
    def copied_bytes(self) -> Mapping[tuple[str, str], int]:
        """KV copied so far, by (source, target) place."""
        return self.copier.copied_bytes

    @property
    def staged_bytes(self) -> int:
        """Of these, what went into staging memory."""
        return self.copier.staged_bytes

    def close(self) -> None:
        """Nothing outlives it."""

    # -- the protocol

    def now(self) -> float:
        return self._clock.now()

    def submit(self, plan: Plan) -> None:
        """Start carrying a plan out. Raises ExecutorError, naming the instruction, if it cannot be done."""
        for drop in plan.drops:
            if not drop.keep:
                self.copier.free_staged(drop.request, drop.tier)
            self.pools[drop.tier].keep(drop.request, drop.keep)
        for release in plan.releases:
            job = self.jobs.pop(release.request, None)
            if job is not None:
                for lane in self.lanes.values():
                    if job.slot >= 0:
                        lane.drop(job)
            for tier, pool in self.pools.items():
                self.copier.free_staged(release.request, tier)
                pool.forget(release.request)
        for abort in plan.aborts:
            self.copier.abort(abort.copy)
        for copy in plan.copies:
            self.copier.start(copy)
        for step in plan.steps:
            self.lanes[step.lane].take(step)
        for lane in self.lanes.values():
            lane.pump()

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Run until there is something to tell, at the latest to ``until`` or ``wake``; every ended step is told."""
        while True:
            events: list[ExecutorEvent] = [*self._news, *self.copier.poll()]
            self._news.clear()
            before = sum(lane.launched for lane in self.lanes.values())
            due = [lane.pump() for lane in self.lanes.values()]
            if events or any(due) or self._woken.is_set() or (until is not None and self.now() >= until):
                break
            if before != sum(lane.launched for lane in self.lanes.values()):
                continue
            under_way = len(self.copier) or any(lane.next_event() is not None for lane in self.lanes.values())
            if until is None and not under_way:
                raise ExecutorError("nothing is under way and nobody said until when to wait: the scheduler is stuck")
            self._clock.idle(until, None if under_way else self._woken)
        self._woken.clear()
        for lane in self.lanes.values():
            events += lane.reports()
        return events

    def wake(self) -> None:
        """End the present ``wait``, or the next one, at once. The one method that other threads may call."""
        self._woken.set()

    # -- helpers take their memory back

    def revoke(self, device: str, requests: tuple[RequestId, ...] = ()) -> None:
        """A helper wants its staging memory back (of these requests, or all): staged KV is void from now on.

        Of all: also what is in the slots it lends to split copies; those chunks go another way.
        """
        tier = self.cluster.device[device].staging_tier
        if not requests:
            self.copier.revoke_slots(device)
        if tier not in self.pools:
            return
        for request in requests or self.pools[tier].requests():
            self.copier.revoke(request, tier)
        self._news.append(StagedLost(device, requests))

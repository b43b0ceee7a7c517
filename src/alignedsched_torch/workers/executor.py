"""The executor whose devices are in other processes: plans go to the workers, what they tell goes to the scheduler.

The caller's process holds the scheduler, the requests and the host pool's page numbers; it computes nothing. A lane
whose worker dies or hangs is told as a lost device; its workers are started again, and told as back when they are
ready. What was in their memory is computed again: the scheduler knows how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import define, field

from alignedsched.cluster import HOST, Cluster
from alignedsched.errors import CallerError, ExecutorError
from alignedsched.events import DeviceBack, DeviceLost, ExecutorEvent
from alignedsched.plan import Drop, Plan, Step
from alignedsched.request import RequestId

from ..job import Job
from ..memory import KVPool, PageShape
from ..models import ModelConfig
from .fleet import Fleet
from .flights import Draft, Flights
from .group import LostError
from .launch import Launcher
from .memory import Region, SharedDevice
from .messages import News, Orders, Told, all_of
from .spec import DTYPES, Limits, WorkerSpec, check, page_shape


@define(eq=False)
class _Lane:
    """What the driver remembers of a lane, whoever its workers are."""

    known: dict[RequestId, int] = field(factory=dict)  # tokens its workers know of each request
    through: int = -1  # the last step told


class WorkersExecutor:
    """A cluster in worker processes; see ``alignedsched.driver.Executor``. Use it as a context manager, or close it.

    Each lane is one device of the cluster: one process, or ``tensor_parallel`` of them, each with its share of the
    heads. Returns when all workers are ready. Raises ConfigError for a cluster or model that cannot be shared out so,
    ExecutorError when a worker does not come up, with its own words.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: str | Path,
        *,
        tensor_parallel: int = 1,
        device: str = "cpu",
        dtype: str = "float32",
        limits: Limits | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        config = ModelConfig.from_folder(folder)
        check(cluster, config, tensor_parallel, device, dtype)
        self.cluster = cluster
        self.jobs: dict[RequestId, Job] = {}
        self._fleet = Fleet(tensor_parallel, launcher, limits)
        self._lanes = {lane.id: _Lane() for lane in cluster.lanes}
        lanes = {lane.ranks[0]: lane.id for lane in cluster.lanes}
        self._lane_of = {tier.id: lanes[tier.device] for tier in cluster.tiers.values() if tier.device is not None}
        tiers = [tier for tier in cluster.tiers.values() if device == "cpu" or tier.id == HOST]
        try:
            shape = page_shape(cluster, config, DTYPES[dtype], tensor_parallel)
            for rank, regions in enumerate(self._fleet.regions):
                for tier in tiers:
                    regions[tier.id] = Region.make(f"kv {tier.id} {rank}", tier.blocks * shape.bytes)
            self._host = self._host_pool(shape)
            self._flights = Flights(cluster, self._lane_of, self._host, tensor_parallel)
            for number, lane in enumerate(cluster.lanes):
                spec = WorkerSpec(
                    str(Path(folder).resolve()), dtype, device, cluster, lane.id, 0, tensor_parallel,
                    number * tensor_parallel, 0, self._fleet.store, "", tuple(tier.id for tier in tiers),
                )  # fmt: skip
                self._fleet.start(spec)
            self._fleet.await_all()
        except BaseException:
            self.close()
            raise

    def _host_pool(self, shape: PageShape) -> KVPool | None:
        """Page numbers of the host tier; they are the same for every rank's share."""
        region = self._fleet.regions[0].get(HOST)
        return None if region is None else KVPool(HOST, SharedDevice(HOST, region), shape, self.cluster.host_blocks)

    # -- requests

    def expect(self, job: Job) -> None:
        """A request will be in the plans: here is what it consists of. Raises CallerError for an id that is here."""
        if job.id in self.jobs:
            raise CallerError(f"request {job.id!r} is here already")
        self.jobs[job.id] = job

    @property
    def copied_bytes(self) -> Mapping[tuple[str, str], int]:
        """KV copied so far, by (source, target) place."""
        return self._flights.copied_bytes

    @property
    def staged_bytes(self) -> int:
        """Of these, what went into staging memory."""
        return self._flights.staged_bytes

    def pids(self, lane: str) -> tuple[int, ...]:
        """The worker processes of a lane, by rank; none while it is lost."""
        group = self._fleet.get(lane)
        return () if group is None else group.pids

    @property
    def lost(self) -> list[str]:
        """Why workers were lost, in order."""
        return self._fleet.lost

    # -- the protocol

    def now(self) -> float:
        return self._fleet.now()

    def submit(self, plan: Plan) -> None:
        """Hand a plan to the workers. Raises ExecutorError if it cannot be carried out."""
        drafts = self._drafts()
        drops: dict[str, list[Drop]] = {lane: [] for lane in drafts}
        steps: dict[str, list[Step]] = {lane: [] for lane in drafts}
        for drop in plan.drops:
            if drop.tier == HOST and self._host is not None:
                self._host.keep(drop.request, drop.keep)
            else:
                drops[self._lane_of[drop.tier]].append(drop)
        for release in plan.releases:
            self.jobs.pop(release.request, None)
            if self._host is not None:
                self._host.forget(release.request)
            for state in self._lanes.values():
                state.known.pop(release.request, None)
        for abort in plan.aborts:
            self._flights.abort(abort.copy)
        for copy in plan.copies:
            self._flights.start(copy, drafts)
        for step in plan.steps:
            steps[step.lane].append(step)
        gone = tuple(release.request for release in plan.releases)
        for lane, draft in drafts.items():
            self._post(
                lane, draft, self._tell_lane(lane, steps[lane]), tuple(drops[lane]), gone, tuple(steps[lane]), go=True
            )

    def wait(self, until: float | None) -> list[ExecutorEvent]:
        """Until a worker has something to tell, at the latest to ``until`` or ``wake``.

        Then every lane tells what it has done, and launches nothing before the plan that answers: what the scheduler
        takes for launched is what is launched. Steps under way, up to run-ahead, go on meanwhile.
        """
        self._fleet.release_held()
        while True:
            events = self._collect()
            woken = self._fleet.woken()
            if events or woken or (until is not None and self.now() >= until):
                break
            if until is None and not len(self._flights) and self._fleet.resting():
                gone = "; ".join(self.lost)
                raise ExecutorError(
                    "nothing is under way and nobody said until when to wait: the scheduler is stuck"
                    + (f"; lost so far: {gone}" if gone else "")
                )
            self._fleet.sleep(until)
        return events + self._hold()

    def _hold(self) -> list[ExecutorEvent]:
        """Let every lane that may run tell and wait; returns what was told."""
        events: list[ExecutorEvent] = []
        asked = self._fleet.hold()
        while self._fleet.awaits(asked):
            self._fleet.sleep(None)
            events += self._collect()
        return events

    def wake(self) -> None:
        """End the present ``wait``, or the next one, at once. The one method that other threads may call."""
        self._fleet.wake()

    # -- to the workers

    def _drafts(self) -> dict[str, Draft]:
        return {lane: Draft() for lane in self._lanes}

    def _tell_lane(self, lane: str, steps: Iterable[Step]) -> tuple[News, ...]:
        """What the workers of a lane have to learn before they can carry its orders out."""
        known, news = self._lanes[lane].known, []
        for step in steps:
            for request in (*(join.request for join in step.joins), *(chunk.request for chunk in step.chunks)):
                job = self.jobs[request]
                if request not in known:
                    news.append(all_of(job))
                elif known[request] < len(job.produced):
                    news.append(News(request, known[request], tuple(job.produced[known[request] :])))
                known[request] = len(job.produced)
        return tuple(news)

    def _forward(self, drafts: Mapping[str, Draft]) -> None:
        """Send what follows from reports; lanes that wait for a plan go on waiting."""
        for lane, draft in drafts.items():
            self._post(lane, draft)

    def _post(
        self,
        lane: str,
        draft: Draft,
        news: tuple[News, ...] = (),
        drops: tuple[Drop, ...] = (),
        releases: tuple[RequestId, ...] = (),
        steps: tuple[Step, ...] = (),
        go: bool = False,
    ) -> None:
        """Send what there is to a lane. ``go``: what it told has been answered."""
        orders = Orders(
            tuple(draft.returned), news, drops, releases, tuple(draft.moves), tuple(draft.lends), steps, go=go
        )  # fmt: skip
        self._fleet.post(lane, orders)

    # -- from the workers

    def _collect(self) -> list[ExecutorEvent]:
        events: list[ExecutorEvent] = []
        for lane, group in self._fleet:
            was_ready = group.ready
            try:
                told = group.listen(self.now())
            except LostError as error:
                events += self._lose(lane, str(error), was_ready)
                continue
            for rank, message in told:
                events += self._take_in(lane, rank, message)
            if group.ready and not was_ready:
                events.append(DeviceBack(group.spec.own, group.spec.first_step))
        return events

    def _take_in(self, lane: str, rank: int, told: Told) -> list[ExecutorEvent]:
        state, drafts = self._lanes[lane], self._drafts()
        events: list[ExecutorEvent] = []
        for made in told.made:
            job = self.jobs.get(made.request)
            if job is None:
                continue
            new = made.tokens[len(job.produced) - made.known :]
            job.produced += new
            state.known[job.id] = len(job.produced)
            heard = job.heard
            if heard is not None:
                for token in new:
                    heard(token)
        for copy, pages in told.lent:
            events += self._flights.lent(copy, rank, pages, drafts)
        for moved in told.moved:
            events += self._flights.moved(moved, rank, drafts)
        for event in told.events:
            state.through = max(state.through, event.through)
            for request, _ in event.finished:
                if request in self.jobs:
                    self.jobs[request].ended = True
        events += told.events
        self._forward(drafts)
        return events

    def _lose(self, lane: str, why: str, was_ready: bool) -> list[ExecutorEvent]:
        """A lane's workers are gone: the others hear what that means for them, new ones are started."""
        self._fleet.lose(lane, why)
        drafts, state = self._drafts(), self._lanes[lane]
        self._flights.lose(lane, drafts)
        self._forward(drafts)
        state.known.clear()
        self._fleet.replace(lane, state.through + 1)
        return [DeviceLost(self.cluster.lane[lane].ranks[0])] if was_ready else []

    # -- the end

    def close(self) -> None:
        """End all workers and give all memory back; what is open stays undone. More than once is fine."""
        self._fleet.close()

    def __enter__(self) -> WorkersExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

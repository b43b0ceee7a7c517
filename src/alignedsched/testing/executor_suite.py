"""``check_executor``: does an executor carry plans out as ordered, and tell the truth about it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random

from attrs import frozen

from ..cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from ..costs import AffineCosts
from ..driver import Executor, drive
from ..errors import ExecutorError, InvariantError
from ..events import Arrived, CallerEvent, Cancelled, Event, Paused, Resumed
from ..plan import Plan
from ..policies import density_first, fcfs
from ..policies.protocols import Policy
from ..scheduler import Scheduler
from ..sim.executor import SimulatedExecutor
from .audit import Audited, EndedError
from .capabilities import Capabilities, Probes
from .ground import Ground
from .policy_suite import need_assertions
from .results import Findings, Report, check_names
from .streams import Job, stream
from .subjects import name_of

EXECUTOR_CHECKS: Mapping[str, str] = {
    "carries_out_legal_plans": "`submit` takes every plan the scheduler makes, `wait` raises nothing",
    "time_never_falls": "`now()` never goes back",
    "waits_until_told": "`wait` comes back with something to tell, or at `until`",
    "names_what_exists": "reports name lanes, orders, copies and requests that exist",
    "copies_end_once": "every copy ends in exactly one completion",
    "aborts_complete": "an aborted copy completes too",
    "copies_arrive_whole": "a copy reported as done is whole at its target",
    "orders_are_reported": "every order is named by a report, or passed over by a later one of its lane",
    "reports_come_once": "nothing is reported twice (unless it says that it `repeats`)",
    "reports_in_order": "a lane's orders are reported in their order (unless it says that it `overtakes`)",
    "reports_are_prompt": "what has ended is told by the wait that saw it (if it says that it is `prompt`)",
    "steps_numbered_right": "steps are consecutive, an order's first step stays what it was",
    "within_horizon": "no order runs beyond its horizon",
    "launches_within_run_ahead": "no more steps are launched than run-ahead allows",
    "empty_lane_rests": "a lane without member and chunk runs no step",
    "orders_applied_whole": "chunks, joins and leaves of an order all happen, and nothing else",
    "finishes_at_limits": "a request ends with its last token, not before and not after",
    "finishes_once": "a request ends once",
    "durations_add_up": "durations are finite and fit into the time that passed",
    "memory_as_accounted": "blocks in use are those that plans and reports account for",
    "orders_void_after_failure": "orders from before the answer to a failed step are void",
    "reports_can_be_true": "the scheduler, too, finds nothing impossible in a report",
    "everything_ends": "every request ends",
}
COSTS = AffineCosts(0.01, 1e-4, 1e-6, per_pair=1e-8)
LAYOUT = KVLayout(8, 1000)
SLOW = 1e6  # bytes/s of a link, modelled: a copy takes as long as some steps, so that things happen meanwhile
Introduce = Callable[[Executor, Job], None]


@frozen
class Setting:
    """A cluster, who schedules on it, and the flags an executor needs for it."""

    name: str
    cluster: Cluster
    policy: Callable[[], Policy]
    needs: tuple[str, ...] = ()


def settings() -> tuple[Setting, ...]:
    """Small clusters of every kind, short of blocks: what a seed's life takes place on, in turn."""

    def lane(name: str, *ranks: str, ahead: int = 0) -> Lane:
        return Lane(name, ranks, ahead, 6, 48)

    def cluster(devices: Sequence[Device], lanes: Sequence[Lane], host: int = 0) -> Cluster:
        ids = [device.id for device in devices]
        pairs = [(ids[b], ids[a]) for a in range(len(ids)) for b in range(a)] + [(one, HOST) for one in ids if host]
        links = [Link(*ends, SLOW) for a, b in pairs for ends in ((a, b), (b, a))]
        return Cluster(tuple(devices), tuple(lanes), host, tuple(links), LAYOUT, 400)

    def swap() -> Policy:
        return fcfs(swap=True)

    both, prefill, decode = Role.BOTH, Role.PREFILL, Role.DECODE
    one, two = Device("d0", both, 40), Device("d1", both, 40)
    apart = (Device("p0", prefill, 40, 20), Device("d0", decode, 40))
    return (
        Setting("one lane", cluster([one], [lane("l0", "d0")]), fcfs),
        Setting("run-ahead", cluster([one], [lane("l0", "d0", ahead=2)]), fcfs, ("run_ahead",)),
        Setting("host", cluster([one], [lane("l0", "d0", ahead=1)], 200), swap, ("run_ahead", "host")),
        Setting("long batches", cluster([one], [lane("l0", "d0")], 200), density_first, ("host",)),
        Setting(
            "two lanes", cluster([one, two], [lane("l0", "d0"), lane("l1", "d1")], 200), swap,
            ("several_lanes", "host", "peer"),
        ),
        Setting("ranks", cluster([one, two], [lane("l0", "d0", "d1", ahead=1)]), fcfs, ("run_ahead", "ranks")),
        Setting(
            "apart", cluster(apart, [lane("p", "p0"), lane("l0", "d0", ahead=1)]), fcfs,
            ("run_ahead", "several_lanes", "peer"),
        ),
        Setting(
            "staging", cluster(apart, [lane("p", "p0"), lane("l0", "d0")], 200), density_first,
            ("several_lanes", "host", "peer", "staging"),
        ),
    )  # fmt: skip


def simulated(cluster: Cluster) -> SimulatedExecutor:
    """The simulated executor with plain costs: what ``check_executor`` needs to check it."""
    return SimulatedExecutor(cluster, COSTS)


def introduced(executor: Executor, job: Job) -> None:
    """Tell an executor of a request to come by its own ``introduce`` or ``expect``, if it has one."""
    introduce = Probes.of(executor).introduce
    if introduce is not None:
        introduce(job.request, job.output_tokens)


def check_executor(
    factory: Callable[[Cluster], Executor],
    *,
    seeds: Iterable[int] = range(16),
    requests: int = 60,
    clusters: Sequence[Cluster] | None = None,
    spacing_s: float = 0.02,
    introduce: Introduce = introduced,
    known_gaps: Mapping[str, str] | None = None,
) -> Report:
    """Drive an executor with the plans of a real scheduler, and verify everything it reports.

    ``factory`` makes a fresh executor for a cluster; ``clusters`` says for which (default: ``settings``, less what
    the executor's ``capabilities`` rule out). Each seed is a life of ``requests`` requests, ``spacing_s`` seconds of
    the executor's clock apart on average, some of them cancelled. ``introduce`` tells the executor of each request
    beforehand. ``known_gaps`` maps checks known to fail to the reason; one that passes all the same fails.

    Raises ConfigError for unknown checks and capabilities, or when assertions are switched off (``python -O``).
    """
    need_assertions()
    check_names("known_gaps", known_gaps or {}, EXECUTOR_CHECKS)
    findings = Findings(EXECUTOR_CHECKS)
    places = settings()
    if clusters is not None:
        places = tuple(Setting(f"cluster {n}", cluster, fcfs) for n, cluster in enumerate(clusters))
    flags = Capabilities.of(factory(places[0].cluster))
    probes = Probes.of(factory(places[0].cluster))
    able = [place for place in places if all(getattr(flags, need) for need in place.needs)]
    for seed in seeds:
        findings.begin(seed)
        life = ExecutorLife(factory, able[seed % len(able)], seed, findings, introduce)
        life.run(requests, spacing_s * (1.0, 0.3, 4.0)[seed % 3])
    _skip(findings, flags, probes)
    return findings.report(f"executor {name_of(factory)}", "executor", known_gaps or {})


def _skip(findings: Findings, flags: Capabilities, probes: Probes) -> None:
    skipped = findings.skipped
    if probes.blocks_held is None:
        skipped["memory_as_accounted"] = "it has no method blocks_held(tier)"
    if probes.tokens_held is None:
        skipped["copies_arrive_whole"] = "it has no method tokens_held(request, tier)"
    if probes.fail_next_step is None:
        skipped["orders_void_after_failure"] = "it has no method fail_next_step(lane)"
    if flags.repeats:
        skipped["reports_come_once"] = "it says that it repeats itself"
    if flags.overtakes:
        skipped["reports_in_order"] = "it says that reports may overtake each other"
    if not flags.prompt:
        skipped["reports_are_prompt"] = "it does not say that it is prompt"
    if not flags.exact_lengths:
        skipped["finishes_at_limits"] = "it does not say how long requests will be; limits alone were checked"
    if not (flags.host or flags.peer):
        skipped |= dict.fromkeys(("copies_end_once", "aborts_complete"), "it copies nothing")


class ExecutorLife:
    """One stream of requests, scheduled for real, under one executor."""

    def __init__(
        self,
        factory: Callable[[Cluster], Executor],
        place: Setting,
        seed: int,
        findings: Findings,
        introduce: Introduce,
    ) -> None:
        self._rng = Random(seed)
        self._findings = findings
        self._place = place
        self._introduce = introduce
        self._executor = factory(place.cluster)
        self._ground = Ground(place.cluster)
        self._audited = Audited(self._executor, place.cluster, self._ground, findings)
        self._scheduler = Scheduler(
            place.cluster, place.policy(), COSTS, max_horizon=self._rng.choice((1, 4, 64)), step_retries=1000
        )

    def run(self, count: int, spacing_s: float) -> None:
        """Serve ``count`` requests. What is wrong is noted, not raised."""
        try:
            drive(self._scheduler, self._audited, self._events(count, spacing_s), observe=self._watch)
            self._audited.close()
        except EndedError:
            pass
        except ExecutorError as error:
            self._findings.note("reports_can_be_true", f"on {self._place.name!r}: {error}")
        except (InvariantError, AssertionError) as error:
            self._findings.note("reports_can_be_true", f"the books fell into disorder on {self._place.name!r}: {error}")

    def _events(self, count: int, spacing_s: float) -> Iterator[tuple[float, CallerEvent]]:
        """Arrivals, some cancels, now and then a pause; in order of time, by the executor's clock."""
        start, events = self._executor.now(), list[tuple[float, int, CallerEvent]]()
        for number, job in enumerate(stream(self._rng, count, spacing_s)):
            at = start + job.request.arrival
            self._ground.jobs[job.request.id] = job
            self._introduce(self._executor, job)
            events.append((at, number, Arrived(job.request)))
            if self._rng.random() < 0.2:
                events.append((at + self._rng.expovariate(1.0) * 0.2, number, Cancelled(job.request.id)))
            if self._rng.random() < 0.03:
                events += [(at, number, Paused()), (at + self._rng.random() * 0.1, number, Resumed())]
        events.append((max(at for at, _, _ in events), count, Resumed()))
        return ((at, event) for at, _, event in sorted(events, key=lambda one: one[:2]))

    def _watch(self, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        self._findings.calls += 1
        self._scheduler.check()
        self._ground.cancelled |= {event.request for event in events if isinstance(event, Cancelled)}
        fail = self._audited.probes.fail_next_step
        if fail is not None and self._rng.random() < 0.05:
            fail(self._rng.choice(self._place.cluster.lanes).id)

"""Hypothesis strategies for every public record: what they draw is valid by construction.

Those named ``invalid_*`` draw ``(field, arguments)``: arguments of the record's class of which exactly the named one
is out of range. Everything shrinks to the smallest record of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from .. import events, plan
from ..cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from ..costs import SURFACES, AffineCosts
from ..policies.protocols import Composition, Evict, Take, Transfer
from ..request import Request
from ..workloads import Workload
from .world import World

IDS = st.text("abcdefgh0123456789-_/é\u202e<&\"' ", min_size=1, max_size=8)
SECONDS = st.floats(0.0, 1e6, allow_nan=False)
RATES = st.floats(1e3, 1e12)
NAMES = st.none() | st.sampled_from(["a", "b", "c"])


def requests(*, ids: st.SearchStrategy[str] = IDS, longest: int = 4096) -> st.SearchStrategy[Request]:
    """Requests with any mixture of the optional fields; prompts and limits up to ``longest`` tokens."""
    return st.builds(
        Request,
        id=ids,
        prompt_tokens=st.integers(1, longest),
        output_limit=st.none() | st.integers(1, longest),
        arrival=SECONDS,
        priority=st.integers(-3, 3),
        tenant=NAMES,
        deadline=st.none() | SECONDS,
        ttft_target=st.none() | SECONDS,
        tpot_target=st.none() | SECONDS,
        block_hashes=st.lists(st.integers(0, 1 << 63), max_size=4).map(tuple),
        session=NAMES,
        kind=NAMES,
    )


_NO_COUNT = st.sampled_from([0, -1, 1.0, True, "7", float("nan")])
_NO_SECONDS = st.sampled_from([-1.0, float("nan"), float("inf"), "1", True])


@st.composite
def invalid_requests(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Arguments of ``Request`` with one field out of range: it raises CallerError naming the field."""
    wrong: dict[str, st.SearchStrategy[Any]] = {
        "id": st.sampled_from(["", 7, None, b"r"]),
        "prompt_tokens": _NO_COUNT | st.none(),
        "output_limit": _NO_COUNT,
        "arrival": _NO_SECONDS | st.none(),
        "deadline": _NO_SECONDS,
        "ttft_target": _NO_SECONDS,
        "tpot_target": _NO_SECONDS,
    }
    field = draw(st.sampled_from(sorted(wrong)))
    return field, {"id": "r", "prompt_tokens": 5, field: draw(wrong[field])}


# -- clusters

layouts = st.builds(KVLayout, st.sampled_from([1, 4, 16, 128]), st.integers(1, 1 << 20))


@st.composite
def lanes_and_devices(draw: st.DrawFn, most: int) -> tuple[list[Lane], list[Device]]:
    """Lanes of one or more ranks that together can prefill and decode, their devices, and helpers."""
    roles = draw(
        st.lists(st.sampled_from([Role.BOTH, Role.PREFILL, Role.DECODE]), min_size=1, max_size=most).filter(
            lambda chosen: any(r.prefills for r in chosen) and any(r.decodes for r in chosen)
        )
    )
    lanes, devices = [], []
    for number, role in enumerate(roles):
        ranks = tuple(f"d{number}.{rank}" for rank in range(draw(st.integers(1, 2))))
        staging = st.sampled_from([0, 0, 10]) if role is Role.PREFILL else st.just(0)
        devices += [Device(rank, role, draw(st.integers(1, 200)), draw(staging)) for rank in ranks]
        lanes.append(
            Lane(f"l{number}", ranks, draw(st.integers(0, 2)), draw(st.integers(1, 16)), draw(st.integers(1, 256)))
        )
    devices += [Device(f"h{n}", Role.HELPER, 0, draw(st.integers(1, 60))) for n in range(draw(st.integers(0, 1)))]
    return lanes, devices


@st.composite
def clusters(draw: st.DrawFn, *, most_lanes: int = 3) -> Cluster:
    """Clusters a scheduler accepts: every lane that prefills reaches every one that decodes."""
    lanes, devices = draw(lanes_and_devices(most_lanes))
    host = draw(st.sampled_from([0, 40, 1000]))
    pairs = [(a.id, b.id) for a in devices for b in devices if a.id != b.id]
    pairs += [pair for device in devices if host for pair in ((device.id, HOST), (HOST, device.id))]
    links = tuple(
        Link(a, b, draw(RATES), draw(st.sampled_from([0.0, 1e-5])), draw(st.sampled_from([(), ("switch",)])))
        for a, b in pairs
    )
    positions = draw(st.integers(2, 100_000))
    return Cluster(tuple(devices), tuple(lanes), host, links, draw(layouts), positions)


@st.composite
def invalid_clusters(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Arguments of ``Cluster`` that do not fit together: it raises ConfigError whose message has the drawn word."""
    device, lane = Device("d", Role.BOTH, 10), Lane("l", ("d",))
    good = {"devices": (device,), "lanes": (lane,)}
    wrong: dict[str, dict[str, Any]] = {
        "at least one lane": {"lanes": ()},
        "distinct": {"devices": (device, device)},
        HOST: {"devices": (device, Device(HOST, Role.BOTH, 1))},
        "no ranks": {"lanes": (Lane("l", ()),)},
        "known": {"lanes": (Lane("l", ("nowhere",)),)},
        "different roles": {"devices": (device, Device("e", Role.DECODE, 1)), "lanes": (Lane("l", ("d", "e")),)},
        "helper": {"devices": (device, Device("h", Role.HELPER, 1)), "lanes": (lane, Lane("m", ("h",)))},
        "prefill": {"devices": (Device("d", Role.DECODE, 10),)},
        "decode": {"devices": (Device("d", Role.PREFILL, 10),)},
        "leads nowhere": {"links": (Link("d", "d", 1.0),)},
        "positive": {"links": (Link("d", HOST, 0.0),)},
        "max_positions": {"max_positions": draw(st.sampled_from([1, 0, -5, 2.0, True]))},
        "host_blocks": {"host_blocks": draw(st.sampled_from([-1, 1.5, "9"]))},
    }
    word = draw(st.sampled_from(sorted(wrong)))
    return word, good | wrong[word]


def costs() -> st.SearchStrategy[AffineCosts]:
    """Costs of every surface, by plain arithmetic."""
    small = st.sampled_from([0.0, 1e-7, 1e-5])
    return st.builds(
        AffineCosts, st.sampled_from([1e-4, 0.01]), small, small, small, st.sampled_from(SURFACES),
        st.sampled_from([1.0, 8.0]), small,
    )  # fmt: skip


# -- events


def caller_events(of: Sequence[Request]) -> st.SearchStrategy[events.CallerEvent]:
    """One event of a caller about some of these requests, or a standing wish."""
    arrive = st.sampled_from([events.Arrived(request) for request in of])
    cancel = st.sampled_from([request.id for request in of]).map(events.Cancelled)
    wishes = [events.Paused(), events.Resumed(), events.Draining(), events.WeightsChanged()]
    return arrive | cancel | st.sampled_from(wishes)


@st.composite
def executor_events(draw: st.DrawFn, cluster: Cluster) -> events.ExecutorEvent:
    """One well-formed report about a cluster; whether it can be true is up to the scheduler that gets it."""
    lane, device = draw(st.sampled_from(cluster.lanes)).id, draw(st.sampled_from(cluster.devices)).id
    number, first, steps = draw(st.integers(0, 9)), draw(st.integers(0, 30)), draw(st.integers(0, 9))
    names = draw(st.lists(IDS, max_size=2, unique=True))
    ends = tuple((name, first) for name in names)
    through = first + steps - 1
    choices: list[events.ExecutorEvent] = [
        events.StepsDone(lane, number, first, through, ends, tuple(names), draw(SECONDS), None, None),
        events.StepsFailed(lane, number, first, through, "out of luck", tuple(names), ()),
        events.CopyDone(number),
        events.CopyFailed(number, "the link was busy"),
        events.CapacityChanged(draw(st.sampled_from(sorted(cluster.tiers))), draw(st.integers(0, 300))),
        events.LaneLost(lane),
        events.LaneBack(lane, first),
        events.DeviceLost(device),
        events.DeviceBack(device, first),
    ]
    if cluster.links:
        link = draw(st.sampled_from(cluster.links))
        choices.append(events.LinkChanged(link.source, link.target, draw(st.just(0.0) | RATES)))
    helpers = [d.id for d in cluster.devices if d.staging_blocks]
    if helpers:
        choices.append(events.StagedLost(draw(st.sampled_from(helpers)), tuple(names)))
    return draw(st.sampled_from(choices))


@st.composite
def event_sequences(draw: st.DrawFn, *, most: int = 20, longest: int = 60) -> list[tuple[float, events.CallerEvent]]:
    """What callers may say, in order of time: each request arrives once, cancels and wishes come at any moment.

    Sequences with an executor's reports in them depend on the plans: draw ``worlds`` and let them act.
    """
    ids = st.integers(0, 10_000).map(lambda number: f"r{number}")
    arriving = draw(st.lists(requests(ids=ids, longest=longest), max_size=most, unique_by=lambda r: r.id))
    told: list[tuple[float, events.CallerEvent]] = [(r.arrival, events.Arrived(r)) for r in arriving]
    if arriving:
        others = caller_events(arriving).filter(lambda event: not isinstance(event, events.Arrived))
        told += draw(st.lists(st.tuples(SECONDS, others), max_size=most))
    return sorted(told, key=lambda one: one[0])


@st.composite
def worlds(draw: st.DrawFn, *, trouble: bool | None = None) -> World:
    """A scheduler with an executor that takes every freedom; ``act`` makes something happen, ``finish`` ends it."""
    return World(draw(st.integers(0, 1 << 20)), draw(st.booleans()) if trouble is None else trouble)


# -- plans and proposals


@st.composite
def steps(draw: st.DrawFn, cluster: Cluster) -> plan.Step:
    """A well-formed order: chunks only with a horizon of 1, nobody named twice."""
    lane = draw(st.sampled_from(cluster.lanes))
    ranks = st.integers(0, len(lane.ranks) - 1)
    names = draw(st.lists(IDS, max_size=5, unique=True))
    cut = sorted(draw(st.tuples(st.integers(0, len(names)), st.integers(0, len(names)))))
    joins = tuple(plan.Join(name, draw(st.integers(2, 500)), draw(ranks)) for name in names[: cut[0]])
    chunks = []
    for name in names[cut[0] : cut[1]]:
        start = draw(st.integers(0, 100))
        chunks.append(plan.Chunk(name, start, start + draw(st.integers(1, 100)), draw(ranks), draw(st.booleans())))
    horizon = 1 if chunks else draw(st.integers(1 if joins else 0, 256))
    return plan.Step(
        lane.id,
        draw(st.integers(0, 99)),
        horizon,
        joins,
        tuple(names[cut[1] :]),
        tuple(chunks),
        draw(st.text(max_size=9)),
    )


@st.composite
def copies(draw: st.DrawFn, cluster: Cluster) -> plan.Copy | None:
    """A well-formed copy between two tiers with a link, or None where a cluster has no links."""
    routes = [(a, b) for a in cluster.tiers for b in cluster.tiers if a != b and cluster.route(a, b) is not None]
    if not routes:
        return None
    source, target = draw(st.sampled_from(routes))
    start = draw(st.integers(0, 100))
    deadline = draw(st.none() | SECONDS)
    return plan.Copy(
        draw(st.integers(0, 999)), draw(IDS), source, target, start, start + draw(st.integers(1, 400)), deadline
    )


@st.composite
def plans(draw: st.DrawFn, cluster: Cluster) -> plan.Plan:
    """A well-formed plan; whether an executor can carry it out depends on what it did before."""
    tiers = st.sampled_from(sorted(cluster.tiers))
    copied = [copy for copy in draw(st.lists(copies(cluster), max_size=3)) if copy is not None]
    return plan.Plan(
        tuple(draw(st.lists(steps(cluster), max_size=3))),
        tuple(copied),
        tuple(draw(st.lists(st.builds(plan.Abort, st.integers(0, 999)), max_size=2))),
        tuple(draw(st.lists(st.builds(plan.Drop, IDS, tiers, st.integers(0, 50)), max_size=2))),
        tuple(
            draw(st.lists(st.builds(plan.Release, IDS, st.sampled_from(plan.Outcome), st.text(max_size=9)), max_size=2))
        ),
        draw(st.none() | SECONDS),
    )


def compositions(ids: Sequence[str]) -> st.SearchStrategy[Composition]:
    """What batching may want of these requests: nobody twice in one list, nobody both joining and candidate."""
    some = st.lists(st.sampled_from(list(ids)), unique=True) if ids else st.just([])
    wake, text = st.none() | SECONDS, st.text(max_size=9)
    drawn = st.tuples(some, some, some, some, wake, text)
    return drawn.map(lambda d: Composition(d[0], [one for one in d[1] if one not in d[0]], *d[2:]))


def takes(ids: st.SearchStrategy[str] = IDS) -> st.SearchStrategy[Take]:
    """What admission may take."""
    return st.builds(Take, ids, st.integers(1, 512), st.integers(0, 1))


def wishes(cluster: Cluster, ids: st.SearchStrategy[str] = IDS) -> st.SearchStrategy[Transfer | Evict]:
    """What residency may want."""
    tiers = st.sampled_from(sorted(cluster.tiers))
    return st.builds(Transfer, ids, tiers, st.none() | SECONDS, st.booleans()) | st.builds(Evict, ids, tiers)


# -- workloads


@st.composite
def workloads(draw: st.DrawFn, *, most: int = 30, longest: int = 4096) -> Workload:
    """Workloads with any mixture of the optional columns."""
    n = draw(st.integers(0, most))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    def maybe(values: st.SearchStrategy[Any]) -> Any:
        return tuple(column(values)) if draw(st.booleans()) else None

    return Workload(
        draw(IDS),
        sorted(column(SECONDS)),
        column(st.integers(1, longest)),
        column(st.integers(1, longest)),
        ids=tuple(f"r{i}" for i in range(n)) if draw(st.booleans()) else None,
        priority=maybe(st.integers(-3, 3)),
        tenant=maybe(NAMES),
        session=maybe(NAMES),
        kind=maybe(NAMES),
    )

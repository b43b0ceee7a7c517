"""Clusters, devices and a run to the end, for tests that put the executor under the real scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.driver import drive
from alignedsched.events import CallerEvent
from alignedsched.plan import Outcome, Plan
from alignedsched.scheduler import Scheduler
from alignedsched_torch import devices as dev
from alignedsched_torch.executor import TorchExecutor
from alignedsched_torch.models import Decoder

MEMBERS, TOKENS, HORIZON = 8, 48, 16


def layout(decoder: Decoder, size: int) -> KVLayout:
    config = decoder.config
    width = decoder.weights.norm.element_size()
    return KVLayout(size, config.layers * 2 * config.kv_heads * config.head_dim * width)


def colocated(decoder: Decoder, blocks: int, size: int, run_ahead: int, host: int = 0) -> Cluster:
    links = (Link("d0", HOST, 1e8), Link(HOST, "d0", 1e8)) if host else ()
    return Cluster(
        (Device("d0", Role.BOTH, blocks),), (Lane("l0", ("d0",), run_ahead, MEMBERS, TOKENS),), host, links,
        layout(decoder, size), 512,
    )  # fmt: skip


def split(decoder: Decoder, blocks: int, size: int, run_ahead: int, host: int) -> Cluster:
    """A prefill device that stages for a decoding one."""
    ends = [("p0", "d0"), ("d0", "p0"), ("p0", HOST), (HOST, "p0"), (HOST, "d0"), ("d0", HOST)]
    return Cluster(
        (Device("p0", Role.PREFILL, blocks, blocks), Device("d0", Role.DECODE, blocks)),
        (Lane("lp", ("p0",), run_ahead, MEMBERS, TOKENS), Lane("ld", ("d0",), run_ahead, MEMBERS, TOKENS)),
        host,
        tuple(Link(a, b, 1e8) for a, b in ends),
        layout(decoder, size),
        512,
    )


def make_devices(kind: str, cluster: Cluster, seed: int) -> Mapping[str, dev.Device]:
    names = [device.id for device in cluster.devices]
    if kind == "cpu":
        return {name: dev.CpuDevice(name) for name in names}
    if kind == "cuda":  # as many logical devices on one GPU
        return {name: dev.CudaDevice(name) for name in names}
    if kind == "threaded":
        return {name: dev.ThreadedDevice(name, seed, 0.0005) for name in names}
    links = {f"{link.source}->{link.target}": dev.ModelledLink(link.bytes_per_s, 1e-5) for link in cluster.links}
    clock = dev.Clock(links, seed)
    return {name: dev.ModelledDevice(name, clock) for name in names}


def serve(
    scheduler: Scheduler,
    executor: TorchExecutor,
    arrivals: Sequence[tuple[float, CallerEvent]],
    watch: Callable[[Plan], None] = lambda plan: None,
) -> dict[str, Outcome]:
    """Run to the end, checking the scheduler's invariants all along and afterwards that nothing is left anywhere."""
    outcomes: dict[str, Outcome] = {}

    def observe(now: float, events: object, plan: Plan) -> None:
        scheduler.check()
        watch(plan)
        outcomes.update((release.request, release.outcome) for release in plan.releases)

    drive(scheduler, executor, arrivals, observe=observe)
    assert not executor.jobs
    assert not any(len(ring) for ring in executor.copier.rings.values()), "no slot is stuck"
    for pool in executor.pools.values():
        assert not pool.requests()
        assert pool.free == scheduler.cluster.tiers[pool.tier].blocks
    return outcomes

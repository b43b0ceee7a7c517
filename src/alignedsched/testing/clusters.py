"""Small random clusters of every shape, short of blocks: one or two lanes, ranks, prefill and decode apart, helpers."""

from __future__ import annotations

from random import Random

from ..cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role


def both_ways(a: str, b: str) -> tuple[Link, Link]:
    """A link there and one back."""
    return Link(a, b, 1e9), Link(b, a, 1e9)


def random_cluster(rng: Random) -> Cluster:
    """A small cluster, short of blocks."""
    shape = rng.choice(("one", "two", "ranks", "disaggregated", "fan", "helper", "prefill ranks"))
    run_ahead, members = rng.randint(0, 2), rng.choice((2, 4, 8))
    host = rng.choice((0, 12, 60))
    size = rng.choice((1, 4, 8))

    def blocks() -> int:
        return rng.choice((8, 12, 20, 40)) * (4 if size == 1 else 1)

    def lane(name: str, *ranks: str) -> Lane:
        return Lane(name, ranks, run_ahead, members, rng.choice((8, 16, 64)))

    links: list[Link] = []
    if shape in ("one", "two", "ranks"):
        devices = [Device("g0", Role.BOTH, blocks()), *([Device("g1", Role.BOTH, blocks())] if shape != "one" else [])]
        lanes = [lane("l0", "g0"), *([lane("l1", "g1")] if shape == "two" else [])]
        if shape == "ranks":
            lanes = [lane("l0", "g0", "g1")]
        if len(devices) == 2 and rng.random() < 0.7:
            links += both_ways("g0", "g1")
    else:
        staging = rng.choice((0, 10)) if shape != "helper" else 12
        devices = [Device("p0", Role.PREFILL, blocks(), staging), Device("g0", Role.DECODE, blocks())]
        lanes = [lane("p", "p0"), lane("l0", "g0")]
        links += both_ways("p0", "g0")
        if shape == "fan":
            devices.append(Device("g1", Role.DECODE, blocks()))
            lanes.append(lane("l1", "g1"))
            links += both_ways("p0", "g1")
        elif shape == "prefill ranks":
            devices += [Device("p1", Role.PREFILL, blocks()), Device("g1", Role.DECODE, blocks())]
            lanes = [lane("p", "p0", "p1"), lane("l0", "g0", "g1")]
            links += [*both_ways("p0", "g1"), *both_ways("p1", "g0"), *both_ways("p1", "g1")]
        elif shape == "helper":
            devices.append(Device("h0", Role.HELPER, 0, rng.choice((6, 30))))
            links += [*both_ways("h0", "g0"), *(both_ways("h0", HOST) if host else ())]
    if host:
        for device in devices:
            if device.role is not Role.HELPER:
                links += both_ways(device.id, HOST)
    layout = KVLayout(size, 1000)
    return Cluster(tuple(devices), tuple(lanes), host, tuple(links), layout, rng.choice((64, 400)))

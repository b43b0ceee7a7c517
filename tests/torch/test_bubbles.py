"""Bubbles of a real run, held against those of the simulator over the same run; and the surface fitted to a run."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts, Costs
from alignedsched.driver import drive
from alignedsched.events import Arrived, Event
from alignedsched.load import Load
from alignedsched.plan import Plan
from alignedsched.registry import policy
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.sim.meter import LaneMeters
from alignedsched_torch.bubbles import Bubbles
from alignedsched_torch.own_surface import ENOUGH, OwnSurface

PADDED = AffineCosts(1e-3, 1e-5, 1e-6, surface="padded", per_pair=1e-9)
LINKS = tuple(Link(a, b, 1e8) for a, b in (("p0", "d0"), ("p0", HOST), (HOST, "p0"), (HOST, "d0"), ("d0", HOST)))
APART = Cluster(
    (Device("p0", Role.PREFILL, 300, 100), Device("d0", Role.DECODE, 300)),
    (Lane("lp", ("p0",), 0, 8, 512), Lane("ld", ("d0",), 0, 8, 512)), 1000, LINKS, KVLayout(16, 1000), 4096,
)  # fmt: skip
ONE = Cluster((Device("d0", Role.BOTH, 300),), (Lane("l0", ("d0",), 0, 8, 512),), layout=KVLayout(16, 1000))


def both(cluster: Cluster, name: str, given_costs: Costs | None) -> tuple[dict[str, float], dict[str, float | None]]:
    """Fractions of one simulated run: by the simulator's own spans, and from reports alone as of a real run."""
    rng = Random(1)
    executor, bubbles = SimulatedExecutor(cluster, PADDED), Bubbles(cluster, given_costs)
    chosen = policy(name)
    scheduler = Scheduler(cluster, evolve(chosen, watches=(*chosen.watches, bubbles)), PADDED, max_horizon=4)
    meters = LaneMeters(cluster, scheduler)
    arrivals = []
    for number in range(60):
        request = Request(f"r{number}", rng.choice((20, 60, 900)), 40, number * 0.01)
        executor.expect(request.id, rng.randint(2, 40))
        arrivals.append((request.arrival, Arrived(request)))

    def observe(now: float, events: tuple[Event, ...], plan: Plan) -> None:
        meters.observe(executor.spans)
        bubbles.observe(scheduler, now, events)

    drive(scheduler, executor, arrivals, observe=observe)
    return meters.close(executor.now()), bubbles.shares(executor.now())


@pytest.mark.parametrize(("cluster", "name"), [(ONE, "fcfs"), (APART, "fcfs"), (APART, "density_first")])
@pytest.mark.parametrize("given_costs", [PADDED, None], ids=["given", "fitted"])
def test_reports_alone_give_the_shares_of_the_simulator(cluster: Cluster, name: str, given_costs: Costs | None) -> None:
    wanted, shares = both(cluster, name, given_costs)
    assert wanted["iteration"] > 0.05
    for kind, share in wanted.items():
        assert shares[kind] == pytest.approx(share, abs=0.02), kind


loads = st.tuples(
    st.integers(1, 64), st.integers(1, 2000), st.floats(1.0, 5.0), st.integers(1, 32), st.booleans()
)  # members, mean length, longest / mean, steps, with a chunk


@given(
    st.lists(loads, min_size=ENOUGH + 30, max_size=80, unique=True),
    st.tuples(*(st.floats(1e-6, 1e-3) for _ in range(5))),
)
def test_a_fit_explains_what_the_surface_made(
    seen: list[tuple[int, int, float, int, bool]], true: tuple[float, ...]
) -> None:
    surface, told, costs = OwnSurface(), [], []
    t0, row, token, imbalance, pair = np.array(true) * (1.0, 0.1, 1e-3, 1e-3, 1e-4)
    for n, mean, stretch, steps, chunked in seen:
        load = Load(n, n * mean, int(mean * stretch), ((0, 50),)) if chunked else Load(n, n * mean, int(mean * stretch))
        steps = 1 if chunked else steps
        one = AffineCosts(t0, row, token, per_pair=pair)
        seconds = sum(one.step_seconds(Load(n, n * mean + n * k, load.longest + k, load.chunks)) for k in range(steps))
        seconds += steps * imbalance * (n * load.longest - n * mean)
        surface.add(load, steps, seconds)
        told.append((load, steps))
        costs.append(seconds)
    fitted = surface.fitted()
    assert fitted is not None
    found, price = fitted
    again = [
        sum(found.step_seconds(Load(o.n, o.total + o.n * k, o.longest + k, o.chunks)) for k in range(steps))
        + steps * price * (o.n * o.longest - o.total)
        for o, steps in told
    ]
    assert sum(again) == pytest.approx(sum(costs), rel=1e-6)
    assert np.median(np.abs(np.array(again) / costs - 1)) < 0.02


def test_nothing_is_said_of_too_few_reports() -> None:
    surface = OwnSurface()
    for _ in range(ENOUGH - 1):
        surface.add(Load(1, 10, 10), 1, 0.1)
    assert surface.fitted() is None
    surface.add(Load(1, 10, 10), 1, 0.1)
    fitted = surface.fitted()
    assert fitted is not None
    assert fitted[0].step_seconds(Load(1, 10, 10)) == pytest.approx(0.1)

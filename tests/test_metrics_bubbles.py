"""Bubbles: every second falls into exactly one share, and the shares are the documented ones."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched import Cluster, Device, Lane, Role, policy
from alignedsched.cluster import KVLayout, Link
from alignedsched.costs import AffineCosts
from alignedsched.errors import CallerError
from alignedsched.metrics import BubbleMeter, Idle, fractions
from alignedsched.metrics.bubbles import Reasons
from alignedsched.sim.run import run
from alignedsched.workloads import Row, Workload

SECONDS = st.floats(0.0, 1e4)
STEP = st.tuples(SECONDS, SECONDS, st.integers(0, 300), st.integers(0, 300))
IDLE = st.tuples(SECONDS, st.sampled_from(Idle))


def test_time_before_the_first_arrival_is_nobodys_bubble() -> None:
    cluster = Cluster((Device("g", Role.BOTH, 500),), (Lane("l", ("g",), max_members=4),))
    costs = AffineCosts(0.005, 1e-5, 1e-6, 3e-4, "unsplit")
    lengths = [(10 + 90 * (i % 3), 20 + i) for i in range(20)]
    shares = [
        run(Workload.from_rows("x", [Row(at, *each) for each in lengths]), cluster, costs, policy("fcfs")).figures
        for at in (0.0, 1024.0)
    ]
    assert shares[0]["bubbles"]["iteration"] > 0.01
    for kind, share in shares[0]["bubbles"].items():
        assert shares[1]["bubbles"][kind] == pytest.approx(share, rel=1e-6)


@given(lanes=st.lists(st.lists(STEP | IDLE, max_size=20), min_size=1, max_size=3))
def test_shares_sum_to_the_time_counted(lanes: list[list[tuple[float, float, int, int] | tuple[float, Idle]]]) -> None:
    meters, total = [], 0.0
    for entries in lanes:
        meter = BubbleMeter()
        for entry in entries:
            if len(entry) == 2:
                meter.idle(*entry)
            else:
                meter.step(*entry)
            total += entry[0]
        meters.append(meter)
    assert sum(meter.seconds for meter in meters) == pytest.approx(total)
    parts = fractions(meters)
    assert set(parts) == {"iteration", "batch", "copy_stall"}
    assert all(0.0 <= part <= 1.0 for part in parts.values())
    assert sum(parts.values()) <= 1.0 + 1e-12


def test_the_shares_are_those_of_the_formulas() -> None:
    meter = BubbleMeter()
    meter.step(10.0, 8.0, members=3, missing=1)
    assert (meter.iteration, meter.batch, meter.busy) == (2.0, 2.0, 6.0)
    meter.idle(1.0, Idle.BATCH)
    meter.idle(4.0, Idle.COPY)
    meter.idle(5.0, Idle.NO_WORK)
    assert meter.seconds == 20.0
    assert meter.fractions() == {"iteration": 0.1, "batch": 0.15, "copy_stall": 0.2}
    assert BubbleMeter().fractions() == {"iteration": 0.0, "batch": 0.0, "copy_stall": 0.0}


@pytest.mark.parametrize("bad", [(-1.0, 0.0, 1, 0), (math.nan, 0.0, 1, 0), (1.0, math.inf, 1, 0), (1.0, 1.0, -1, 0)])
def test_bad_steps_are_refused_and_change_nothing(bad: tuple[float, float, int, int]) -> None:
    meter = BubbleMeter()
    with pytest.raises(CallerError, match="at least 0"):
        meter.step(*bad)
    with pytest.raises(CallerError, match="idle time"):
        meter.idle(-1.0, Idle.COPY)
    with pytest.raises(CallerError, match="reason"):
        meter.idle(1.0, "nap")  # type: ignore[arg-type]
    assert meter.seconds == 0.0


@given(
    looks=st.lists(st.tuples(st.integers(0, 20), st.sampled_from(Idle)), max_size=12),
    cuts=st.lists(st.integers(0, 25), min_size=2, max_size=8),
)
def test_idle_time_has_the_reason_that_was_seen_last(looks: list[tuple[int, Idle]], cuts: list[int]) -> None:
    """Against a list of what holds in each second; gaps between the pieces asked for are steps."""
    looks.sort(key=lambda look: look[0])
    cuts.sort()
    reasons, told = Reasons(), []
    for at, reason in looks:
        reasons.saw(float(at), reason)
    for begin, end in itertools.pairwise(cuts):
        pieces = reasons.over(float(begin), float(end))
        assert sum(stop - start for start, stop, _ in pieces) == end - begin
        told += pieces
    for second in range(cuts[0], cuts[-1]):
        expected = next((reason for at, reason in reversed(looks) if at <= second), Idle.NO_WORK)
        assert [reason for start, stop, reason in told if start <= second < stop] == [expected]


def test_a_lane_that_is_never_idle_keeps_no_reasons() -> None:
    reasons = Reasons()
    for second in range(1000):
        reasons.saw(float(second), (Idle.COPY, Idle.BATCH)[second % 2])
        assert reasons.over(float(second), float(second)) == []
    assert len(reasons._seen) == 1


def test_a_lane_that_waits_for_a_copy_stalls_for_as_long_as_the_copy_takes() -> None:
    cluster = Cluster(
        (Device("p", Role.PREFILL, 1000), Device("d", Role.DECODE, 1000)),
        (Lane("lane-p", ("p",)), Lane("lane-d", ("d",))),
        links=(Link("p", "d", 1e6, 0.25),),
        layout=KVLayout(16, 1000),
    )
    one = Workload.from_rows("one", [Row(0.0, 500, 5)])
    figures = run(one, cluster, AffineCosts(t0=0.1, per_row=0.0, per_token=0.0), policy("fcfs")).figures
    seconds = figures["simulated_s"]
    assert seconds == pytest.approx(0.1 + 0.75 + 4 * 0.1)
    assert figures["bubbles"]["copy_stall"] == pytest.approx(0.75 / seconds)

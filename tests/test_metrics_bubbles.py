"""Bubbles: every second falls into exactly one share, and the shares are the documented ones."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import CallerError
from alignedsched.metrics import BubbleMeter, Idle, fractions

SECONDS = st.floats(0.0, 1e4)
STEP = st.tuples(SECONDS, SECONDS, st.integers(0, 300), st.integers(0, 300))
IDLE = st.tuples(SECONDS, st.sampled_from(Idle))


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

"""What the host does for a step does not grow with the members: counted in calls, which no busy machine changes."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from benchmarks.host_work import Serving, decoder
from tests.kernels.paged import PLACE

PAGE = 512  # tokens: in half of the steps of 256 members no row needs a page


def calls_of_a_step(members: int) -> int:
    """Function calls, of Python and of C, in a step in which nobody comes or goes and no row needs a page."""
    serving = Serving(decoder(), members, PAGE)
    serving.order(*(serving.join(serving.request(1 << 20)) for _ in range(members)))
    least, count = sys.maxsize, 0

    def counts(frame: object, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    try:
        for _ in range(40):
            count = 0
            sys.setprofile(counts)
            serving.step()
            sys.setprofile(None)
            least = min(least, count)
    finally:
        sys.setprofile(None)
        gc.enable()
    return least


@pytest.mark.skipif(PLACE.type != "cpu", reason="counts the host's work on a CPU")
def test_a_step_takes_as_many_calls_for_256_members_as_for_16() -> None:
    few, many = calls_of_a_step(16), calls_of_a_step(256)
    assert many <= few + 5
    assert many < 200

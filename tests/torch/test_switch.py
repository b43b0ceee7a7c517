"""The modelled switch: staged takes the peer link's time, direct the host link's, and every byte arrives."""

from __future__ import annotations

import pytest

from alignedsched.hardware import link_named
from benchmarks.switch import measure


def test_a_small_batch_takes_the_time_of_its_link() -> None:
    batch = 256 << 20
    result = measure(batch, 4)
    for route, name in (("direct", "pcie5"), ("staged", "nvlink4")):
        link = link_named(name)
        least = batch / link.bytes_per_s
        assert least < 1e-3 * result["stall_ms"][route] < least + 64 * link.latency_s + 1e-5
    assert 0.5 < result["stall_ms"]["split"] / result["stall_ms"]["direct"] < 0.6
    assert result["staging_ahead_ms"] == pytest.approx(result["stall_ms"]["direct"])
    assert result["modelled"] is True

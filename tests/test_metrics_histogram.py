"""The log-spaced histogram against numpy and a sorted list of the raw values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.errors import CallerError
from alignedsched.metrics import LogHistogram, summarize
from alignedsched.metrics.histogram import LEAST, MOST, RATIO, rank_of

VALUES = st.floats(min_value=LEAST, max_value=MOST / 2, allow_nan=False)
WEIGHTED = st.lists(st.tuples(VALUES | st.just(0.0), st.integers(0, 50)), min_size=1, max_size=60)
QUANTILES = st.floats(0.0, 1.0)


@settings(max_examples=200, deadline=None)
@given(entries=WEIGHTED, quantile=QUANTILES, bulk=st.booleans())
def test_quantiles_are_within_the_stated_error_of_the_raw_values(
    entries: list[tuple[float, int]], quantile: float, bulk: bool
) -> None:
    histogram = LogHistogram()
    for value, weight in entries:
        if bulk:
            histogram.add_many(np.array([value]), weight)
        else:
            histogram.add(value, weight)
    raw = np.sort(np.repeat([value for value, _ in entries], [weight for _, weight in entries]))
    assert histogram.count == len(raw)
    if not len(raw):
        assert set(histogram.summary().values()) == {None}
        return
    answer, mean = histogram.quantile(quantile), histogram.mean
    assert answer is not None
    assert mean is not None
    expected = float(raw[rank_of(quantile, len(raw)) - 1])
    if expected >= LEAST:
        assert expected / math.sqrt(RATIO) * (1 - 1e-9) <= answer <= expected * math.sqrt(RATIO) * (1 + 1e-9)
    else:
        assert answer == raw[0]
    assert histogram.max == raw[-1]
    assert mean == pytest.approx(float(raw.mean()), rel=1e-9, abs=1e-300)


@given(values=st.lists(VALUES, min_size=1, max_size=200), quantile=QUANTILES)
def test_the_rank_agrees_with_numpys_inverted_distribution(values: list[float], quantile: float) -> None:
    raw = np.sort(values)
    # Rounding of quantile * n may move numpy's rank by one where the product is whole.
    index = int(np.searchsorted(raw, np.quantile(raw, quantile, method="inverted_cdf")))
    rank = rank_of(quantile, len(raw)) - 1
    assert raw[rank] in {raw[max(0, index - 1)], raw[index], raw[min(len(raw) - 1, index + 1)]}
    assert rank_of(0.9, 10) == 9
    assert rank_of(0.0, 10) == 1
    assert rank_of(1.0, 10) == 10


@given(values=st.lists(VALUES, max_size=200))
def test_summaries_of_raw_values_are_values_and_ordered(values: list[float]) -> None:
    summary = summarize(np.array(values, dtype=np.float64))
    if not values:
        assert set(summary.values()) == {None}
        return
    quantiles = [summary[name] for name in ("p50", "p90", "p99", "max")]
    assert all(value in values for value in quantiles)
    assert quantiles == sorted(quantiles, key=lambda value: value or 0.0)
    assert summary["max"] == max(values)
    assert summary["mean"] == pytest.approx(sum(values) / len(values))


def test_many_entries_cross_the_buffer_and_stay_exact() -> None:
    histogram = LogHistogram()
    for i in range(20_000):
        histogram.add(0.001 * (1 + i % 7), 3)
    assert histogram.count == 60_000
    assert histogram.mean == pytest.approx(np.mean([0.001 * (1 + i % 7) for i in range(20_000)]))


def test_values_outside_the_bins_answer_with_the_extremes() -> None:
    histogram = LogHistogram()
    histogram.add(LEAST / 10)
    histogram.add(MOST * 10, 3)
    assert histogram.quantile(0.25) == LEAST / 10
    assert histogram.quantile(0.5) == MOST * 10


@pytest.mark.parametrize(("value", "weight"), [(-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)])
def test_bad_values_are_refused_and_change_nothing(value: float, weight: int) -> None:
    histogram = LogHistogram()
    with pytest.raises(CallerError, match="at least 0"):
        histogram.add(value, weight)
    with pytest.raises(CallerError, match="at least 0"):
        histogram.add_many(np.array([1.0, value]), weight)
    assert histogram.count == 0
    with pytest.raises(CallerError, match="quantile"):
        histogram.quantile(1.5)
    with pytest.raises(CallerError, match="finite"):
        summarize(np.array([math.nan]))

"""Packed costs, learned, and steps in parts: against every other way of parting them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.adapters.transformers_costs import GOOD, PackedCosts, PackedFit
from alignedsched.adapters.transformers_parts import CUTS, SAVING, parts
from alignedsched.errors import CallerError, ConfigError
from alignedsched.load import Load

COSTS = PackedCosts(t0=2e-3, per_row=1e-5, per_key=4e-7, per_pair=3e-8)
ROWS = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 3000)).map(lambda row: (row[0], row[0] + row[1])))


def seconds(costs: PackedCosts, rows: list[int], keys: list[int], split: list[list[int]]) -> float:
    return sum(costs.packed_seconds(sum(rows[i] for i in some), sum(keys[i] for i in some)) for some in split)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to part a few items."""
    if not items:
        yield []
        return
    first, *rest = items
    for split in partitions(rest):
        yield [[first], *split]
        for at in range(len(split)):
            yield [*split[:at], [first, *split[at]], *split[at + 1 :]]


@given(ROWS, st.floats(0.0, 1e-2), st.floats(0.0, 1e-6))
def test_everybody_takes_part_once_and_never_slower_than_together(
    table: list[tuple[int, int]], t0: float, per_pair: float
) -> None:
    rows, keys = [row for row, _ in table], [key for _, key in table]
    costs = PackedCosts(t0, 1e-5, 4e-7, per_pair)
    split = parts(rows, keys, costs)
    assert sorted(i for some in split for i in some) == list(range(len(table)))
    if table:
        assert all(split)
        together = costs.packed_seconds(sum(rows), sum(keys))
        assert seconds(costs, rows, keys, split) <= together * (1.0 + 1e-9)
        assert len(split) == 1 or seconds(costs, rows, keys, split) <= (1.0 - SAVING) * together * (1.0 + 1e-9)


@given(ROWS.filter(lambda table: 1 < len(table) < 7))
def test_no_other_way_is_faster(table: list[tuple[int, int]]) -> None:
    """Intervals in the order of keys per row are enough."""
    rows, keys = [row for row, _ in table], [key for _, key in table]
    best = min(seconds(COSTS, rows, keys, split) for split in partitions(list(range(len(table)))))
    found = seconds(COSTS, rows, keys, parts(rows, keys, COSTS))
    assert found <= best / (1.0 - SAVING)


def test_many_requests_are_parted_nearly_as_well_with_fewer_places_to_cut() -> None:
    rng = random.Random(0)
    keys = [rng.choice([rng.randint(20, 100), rng.randint(500, 4000)]) for _ in range(40 * CUTS)]
    rows = [1] * len(keys)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    found = seconds(COSTS, rows, keys, parts(rows, keys, COSTS))
    for pieces in range(1, 30):  # equal shares of the requests
        size = -(-len(order) // pieces)
        assert found <= 1.02 * seconds(COSTS, rows, keys, [order[at : at + size] for at in range(0, len(order), size)])


def test_a_prompt_runs_apart_from_long_decodes_and_short_ones_stay_with_each_other() -> None:
    rows, keys = [1, 1, 1, 1, 500], [40, 45, 2000, 2100, 500]
    assert parts(rows, keys, COSTS) == [[4], [0, 1, 2, 3]]
    assert parts(rows[:2], keys[:2], COSTS) == [[0, 1]]


@given(st.integers(1, 500), st.integers(1, 3000), st.integers(1, 300))
def test_the_surface_agrees_with_itself(n: int, mean: int, steps: int) -> None:
    load = Load(n, n * mean, 2 * mean)
    ahead = [Load(n, n * mean + n * j, 2 * mean + j) for j in range(steps)]
    assert COSTS.finishing_times(load, steps)[-1] == pytest.approx(sum(map(COSTS.step_seconds, ahead)))
    chunked = Load(n, n * mean, 2 * mean, ((100, 300), (0, 50)))
    assert COSTS.step_seconds(chunked) == pytest.approx(COSTS.packed_seconds(n + 250, n * mean + 350))
    for some in (load, chunked):
        assert 0.0 < COSTS.balanced_seconds(some) <= COSTS.step_seconds(some)
    assert COSTS.step_seconds(Load(0, 0, 0)) == COSTS.balanced_seconds(Load(0, 0, 0)) == 0.0
    assert COSTS.finishing_times(Load(0, 0, 0), 3).tolist() == [0.0, 0.0, 0.0]


def test_what_is_no_cost_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"PackedCosts.per_pair must be a number from 0"):
        PackedCosts(0.0, 0.0, 0.0, -1.0)
    with pytest.raises(CallerError, match="steps must be at least 1"):
        COSTS.finishing_times(Load(1, 1, 1), 0)


def served(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Steps as an engine makes them: prompts alone, decodes alone, both."""
    steps = []
    for _ in range(count):
        decoding = rng.randint(0, 40)
        prompt = rng.choice([0, 0, 512]) if decoding else 512
        steps.append(
            (decoding + prompt, decoding * rng.randint(30, 700) + (prompt + rng.randint(0, 1500)) * (prompt > 0))
        )
    return steps


@pytest.mark.parametrize("disturbed", [0.0, 0.1])
def test_a_known_surface_is_found_again(disturbed: float) -> None:
    """Ten per cent noise, and now and then a step that something else held up."""
    rng = random.Random(5)
    fit = PackedFit()
    for rows, keys in served(rng, 200):
        late = rng.uniform(2.0, 10.0) if rng.random() < disturbed else 1.0
        fit.add(rows, keys, COSTS.packed_seconds(rows, keys) * rng.uniform(0.9, 1.1) * late)
    assert fit.costs is not None
    for rows, keys in served(rng, 50):
        assert fit.costs.packed_seconds(rows, keys) == pytest.approx(COSTS.packed_seconds(rows, keys), rel=0.2)
    assert fit.costs.per_pair == pytest.approx(COSTS.per_pair, rel=0.2)
    assert fit.costs.t0 == pytest.approx(COSTS.t0, rel=0.5)


@given(st.lists(st.tuples(st.integers(1, 600), st.integers(1, 9000), st.floats(1e-5, 10.0)), min_size=8, max_size=80))
def test_whatever_is_measured_no_cost_is_below_zero(steps: list[tuple[int, int, float]]) -> None:
    fit = PackedFit()
    for rows, keys, took in steps:
        fit.add(rows, keys, took)
    if fit.costs is not None:
        assert fit.costs.t0 > 0.0
        assert min(fit.costs.per_row, fit.costs.per_key, fit.costs.per_pair) >= 0.0


def test_what_no_surface_explains_is_not_believed() -> None:
    fit = PackedFit(COSTS)
    assert fit.costs is COSTS
    rng = random.Random(1)
    for _ in range(64):
        fit.add(10, 1000, 10 ** rng.uniform(-4, 0))
    assert GOOD < 1.0
    assert fit.costs is None
    fit.add(10, 1000, 0.0)  # a clock that stood still says nothing

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.errors import CallerError, ConfigError
from alignedsched.workloads import Row, Workload

lengths = st.integers(1, 200_000)
names = st.none() | st.sampled_from(["a", "b", "c"])


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    times = sorted(draw(st.lists(st.floats(0, 1e5), max_size=10)))
    plain = draw(st.booleans())
    return [
        Row(t, draw(lengths), draw(lengths))
        if plain
        else Row(
            t,
            draw(lengths),
            draw(lengths),
            f"id{i}" if draw(st.booleans()) else None,
            draw(st.integers(-2, 2)),
            draw(names),
            draw(names),
            draw(names),
            tuple(draw(st.lists(st.integers(0, 2**63 - 1), max_size=4))),
        )
        for i, t in enumerate(times)
    ]


def back(workload: Workload) -> list[Row]:
    return [
        Row(r.arrival, r.prompt_tokens, o, r.id, r.priority, r.tenant, r.session, r.kind, r.block_hashes)
        for r, o in workload.requests()
    ]


def named(given_rows: list[Row]) -> list[Row]:
    return [row if row.id else row._replace(id=f"r{i}") for i, row in enumerate(given_rows)]


@given(rows())
def test_rows_come_back_as_requests(given_rows: list[Row]) -> None:
    workload = Workload.from_rows("w", iter(given_rows))
    assert back(workload) == named(given_rows)
    assert workload.total_prompt_tokens == sum(row.prompt_tokens for row in given_rows)
    assert workload.total_output_tokens == sum(row.output_tokens for row in given_rows)
    assert workload.span_s == (given_rows[-1].arrival_s - given_rows[0].arrival_s if given_rows else 0.0)
    assert all(request.output_limit is None for request, _ in workload.requests())


@given(rows())
def test_columns_nobody_uses_are_absent(given_rows: list[Row]) -> None:
    workload = Workload.from_rows("w", given_rows)
    for column, field, default in (
        ("ids", "id", None),
        ("priority", "priority", 0),
        ("tenant", "tenant", None),
        ("session", "session", None),
        ("kind", "kind", None),
        ("block_hashes", "block_hashes", ()),
    ):
        used = any(getattr(row, field) != default for row in given_rows)
        assert (getattr(workload, column) is not None) == used


@given(rows(), st.integers(0, 12))
def test_take_is_the_first_rows(given_rows: list[Row], n: int) -> None:
    assert back(Workload.from_rows("w", given_rows).take(n)) == named(given_rows)[:n]


@given(rows(), st.floats(0.01, 100))
def test_scaled_divides_times_and_keeps_the_rest(given_rows: list[Row], rate: float) -> None:
    expected = [row._replace(arrival_s=row.arrival_s / rate) for row in named(given_rows)]
    assert back(Workload.from_rows("w", given_rows).scaled(rate)) == expected


@given(rows())
def test_offline_is_all_at_once(given_rows: list[Row]) -> None:
    expected = [row._replace(arrival_s=0.0) for row in named(given_rows)]
    assert back(Workload.from_rows("w", given_rows).offline()) == expected


@given(rows(), st.integers(2, 300_000))
def test_clamped_fits_drops_nothing_and_changes_only_what_must(given_rows: list[Row], most: int) -> None:
    clamped, count = Workload.from_rows("w", given_rows).clamped(most)
    after, before = back(clamped), named(given_rows)
    assert len(after) == len(before)
    assert count == sum(row.prompt_tokens + row.output_tokens > most for row in before)
    for new, old in zip(after, before, strict=True):
        if old.prompt_tokens + old.output_tokens <= most:
            assert new == old
            continue
        assert new.prompt_tokens + new.output_tokens == most
        assert new.output_tokens == min(old.output_tokens, most - 1)
        kept = len(old.block_hashes) * new.prompt_tokens // old.prompt_tokens
        assert new.block_hashes == old.block_hashes[:kept]


@pytest.mark.parametrize(
    ("arrival", "prompt", "output", "message"),
    [
        ([0.0, float("nan")], [1, 1], [1, 1], "arrival_s, request 1: got nan, expected finite seconds of at least 0"),
        ([-1.0, 0.0], [1, 1], [1, 1], "arrival_s, request 0: got -1.0"),
        ([1.0, 0.5], [1, 1], [1, 1], "arrival_s, request 1: got 0.5, expected a time that does not go back"),
        ([0.0, 1.0], [1, 0], [1, 1], "prompt_tokens, request 1: got 0, expected an integer from 1"),
        ([0.0, 1.0], [1, 1], [2**31, 1], "output_tokens, request 0: got 2147483648"),
        ([0.0, 1.0], [1, 1], [1], "output_tokens has 1 values, expected 2"),
    ],
)
def test_wrong_columns_are_named(arrival: list[float], prompt: list[int], output: list[int], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        Workload("w", np.array(arrival), np.array(prompt), np.array(output))


def test_an_id_given_twice_is_named() -> None:
    with pytest.raises(CallerError, match="ids, request 2: got 'x', expected an id no other request has"):
        Workload.from_rows("w", [Row(0.0, 1, 1, "x"), Row(0.0, 1, 1, "y"), Row(0.0, 1, 1, "x")])


def test_wrong_arguments_are_config_errors() -> None:
    workload = Workload.from_rows("w", [Row(0.0, 5, 5), Row(1.0, 5, 5)])
    for rate in (0.0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(ConfigError, match="rate factor must be a positive finite number"):
            workload.scaled(rate)
    with pytest.raises(CallerError, match="got inf"):
        workload.scaled(1e-320)
    with pytest.raises(ConfigError, match="max_positions must be an integer of at least 2, got 1"):
        workload.clamped(1)
    with pytest.raises(ConfigError, match="n must be an integer of at least 0, got -1"):
        workload.take(-1)


def test_columns_cannot_be_written() -> None:
    workload = Workload.from_rows("w", [Row(0.0, 5, 5)])
    with pytest.raises(ValueError, match="read-only"):
        workload.prompt_tokens[0] = 7


def test_gathering_rows_takes_little_memory() -> None:
    count = 100_000

    def many() -> Iterator[Row]:
        for i in range(count):
            yield Row(float(i), i + 1, i % 100 + 1)

    tracemalloc.start()
    workload = Workload.from_rows("w", many())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(workload) == count
    assert peak < 80 * count  # 24 bytes a row kept, 8 for the offsets of hashes, growth and checks beside them


def test_requests_come_one_at_a_time() -> None:
    workload = Workload("w", np.zeros(10**6), np.ones(10**6), np.ones(10**6))
    requests = workload.requests()
    tracemalloc.start()
    assert [next(requests)[0].id for _ in range(3)] == ["r0", "r1", "r2"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000

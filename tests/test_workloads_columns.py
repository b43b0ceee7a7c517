from __future__ import annotations

import re
import tracemalloc
from array import array
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


def test_an_invented_id_is_nobody_elses() -> None:
    ids = ["r1", None, "rr1", None, "r5", None]
    workload = Workload.from_rows("w", [Row(float(at), 5, 5, name) for at, name in enumerate(ids)])
    assert workload.ids == ("r1", "rrr1", "rr1", "r3", "r5", "rr5")


@pytest.mark.parametrize("column", ["prompt_tokens", "output_tokens", "priority"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.9], "must be one row of whole numbers, got shape (1,), dtype float64"),
        (["7"], "must be one row of whole numbers, got shape (1,), dtype <U1"),
        ([True], "must be one row of whole numbers, got shape (1,), dtype bool"),
        ([float("nan")], "must be one row of whole numbers, got shape (1,), dtype float64"),
        ([2**70], "must be one row of whole numbers, got shape (1,), dtype object"),
        ([2**63], "request 0: got 9223372036854775808, expected an integer that fits 64 bits"),
        ([None], "must be one row of whole numbers, got shape (1,), dtype object"),
        ([[10, 20]], "must be one row of whole numbers, got shape (1, 2), dtype int64"),
        ([[10, 20], [1]], "must be one row of whole numbers: "),
        (7, "must be one row of whole numbers, got shape (), dtype int64"),
    ],
)
def test_nothing_is_made_a_whole_number(column: str, values: object, message: str) -> None:
    columns = {"arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1], column: values}
    with pytest.raises(CallerError, match=re.escape(f"workload column {column}") + ".*" + re.escape(message)):
        Workload("w", **columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [["a"], [True], [None], [[0.0]], [2**70], [1j]])
def test_times_are_numbers(values: object) -> None:
    with pytest.raises(CallerError, match="workload column arrival_s must be one row of numbers"):
        Workload("w", values, [1], [1])
    for dtype in (np.int32, np.uint8, np.float32):
        assert Workload("w", np.array([3], dtype), [1], np.array([2], np.uint16)).arrival_s.tolist() == [3.0]


def test_a_column_is_nobody_elses() -> None:
    arrival, prompt, output = np.array([0.0, 1.0]), np.array([5, 6]), array("q", [3, 4])
    priority = prompt[::-1]
    workload = Workload("w", arrival, prompt, output, priority=priority)
    arrival[0], prompt[0], output[0] = -1.0, -7, -7
    assert [workload.arrival_s[0], workload.prompt_tokens[0], workload.output_tokens[0]] == [0.0, 5, 3]
    assert workload.priority is not None
    assert workload.priority.tolist() == [6, 5]
    assert np.shares_memory(workload.scaled(2.0).prompt_tokens, workload.prompt_tokens)
    assert np.shares_memory(workload.take(1).prompt_tokens, workload.prompt_tokens)


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
    ones = np.ones(10**6, np.int64)
    workload = Workload("w", np.zeros(10**6), ones, ones)
    requests = workload.requests()
    tracemalloc.start()
    assert [next(requests)[0].id for _ in range(3)] == ["r0", "r1", "r2"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000

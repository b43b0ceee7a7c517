"""Step logs: what is written is read, and whatever is not as it should be is named with file, line and field."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.adapters.step_log import BUFFERED, FIELDS, HEADER, StepLine, StepLog, read_step_log
from alignedsched.errors import CallerError, TraceError


@st.composite
def lines(draw: st.DrawFn) -> StepLine:
    lengths = draw(st.lists(st.integers(1, 10**6), max_size=5))
    prefill = draw(st.integers(0 if lengths else 1, 10**5))
    ms = draw(st.integers(1, 10**8)) / 1e4
    return StepLine(len(lengths), sum(lengths), max(lengths, default=0), prefill, ms)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@given(steps=st.lists(lines(), min_size=1, max_size=20))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, suffix: str, steps: list[StepLine]) -> None:
    path = tmp_path_factory.mktemp("log") / f"steps.{suffix}"
    with StepLog(path) as log:
        for line in steps:
            log.step(line.n, line.total, line.longest, line.prefill, line.ms)
    assert list(read_step_log(path)) == steps


def test_it_is_buffered_and_closed_once_or_twice(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    log = StepLog(path)
    for _ in range(BUFFERED - 2):
        log.step(1, 10, 10, 0, 1.0)
    assert path.read_text() == ""
    log.step(1, 10, 10, 0, 1.0)
    assert len(path.read_text().splitlines()) == BUFFERED
    log.step(2, 30, 20, 5, 2.5)
    log.close()
    log.close()
    assert path.read_text().splitlines()[-1] == "2,30,20,5,2.5000"


def test_gzip_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl.gz"
    text = '{"n":1,"total":10,"longest":10,"prefill":0,"ms":1}\n\n{"ms":2.5,"n":0,"total":0,"longest":0,"prefill":7}\n'
    path.write_bytes(gzip.compress(text.encode()))
    assert list(read_step_log(path)) == [StepLine(1, 10, 10, 0, 1.0), StepLine(0, 0, 0, 7, 2.5)]


def test_a_header_in_quotes_is_a_header(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text('"n", "total","longest","prefill","ms"\n1,10,10,0,1\n')
    assert list(read_step_log(path)) == [StepLine(1, 10, 10, 0, 1.0)]


def test_a_name_that_says_no_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match=r"must end in .csv or .jsonl, got "):
        StepLog(tmp_path / "steps.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"steps.csv: is empty; expected the header 'n,total,longest,prefill,ms'"),
        ("a,b\n", r"steps.csv, line 1: expected the header .* got 'a,b'"),
        ("x" * 200_000, r"steps.csv, line 1: expected the header .* \(200000 characters\)"),
        (f"{HEADER}\n1,10,10,0,1_0\n", r"line 2, column 'ms': must be milliseconds above 0, got '1_0'"),
        (f"{HEADER}\n1,1_0,10,0,1\n", r"line 2, column 'total': must be a whole number of at least 0, got '1_0'"),
        (f"{HEADER}\n\u0661,1,1,0,1\n", r"line 2, column 'n': must be a whole number of at least 0, got '\u0661'"),
        (f"{HEADER}\n1,2,3\n", r"line 2: expected 5 values .* got 3"),
        (f"{HEADER}\n1,10,10,0,x\n", r"line 2, column 'ms': must be milliseconds above 0, got 'x'"),
        (f"{HEADER}\n1,10,10,0,0\n", r"column 'ms': must be milliseconds above 0, got 0"),
        (f"{HEADER}\n1,10,10,0,nan\n", r"column 'ms': must be milliseconds above 0, got nan"),
        (f"{HEADER}\n1,10,10,0,1\n-1,10,10,0,1\n", r"line 3, column 'n': must be a whole number of at least 0, got -1"),
        (f"{HEADER}\n1.5,10,10,0,1\n", r"column 'n': must be a whole number of at least 0, got 1.5"),
        (f"{HEADER}\n0,0,0,0,1\n", r"column 'n': must be at least 1 in a step without prefill"),
        (f"{HEADER}\n2,30,10,0,1\n", r"column 'total': must be from n = 2 to n times longest = 20, got 30"),
        (f"{HEADER}\n2,10,12,0,1\n", r"column 'longest': must be at most total = 10.*, got 12"),
        (f"{HEADER}\n0,4,4,3,1\n", r"column 'longest': .*both 0 where n is 0"),
        ('{"n":1}\n', r"line 1, column 'total': is missing; expected the keys n,total,longest,prefill,ms"),
        ('{"n":1\n', r"line 1: is not JSON"),
        ('{"n":true,"total":1,"longest":1,"prefill":0,"ms":1}\n', r"column 'n': must be a whole number.*, got True"),
        (
            '{"n":1,"total":1,"longest":1,"prefill":0,"ms":1}\n[]\n',
            r"line 2: expected a JSON object, got an empty list",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        list(read_step_log(path))


@given(junk=st.binary(max_size=200))
def test_junk_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "steps.csv"
    for start in (b"", f"{HEADER}\n".encode(), b'{"n":'):
        path.write_bytes(start + junk)
        with suppress(TraceError):
            assert all(isinstance(line, StepLine) for line in read_step_log(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nothing.csv"):
        list(read_step_log(tmp_path / "nothing.csv"))
    assert ",".join(FIELDS) == HEADER

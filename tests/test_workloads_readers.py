from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.errors import TraceError
from alignedsched.workloads import FORMATS, Row, read_trace
from alignedsched.workloads import lines as lines_module

lengths = st.integers(1, 2**31 - 1)
# Names as a file can carry them: no lone surrogates, no lone "\r", which the csv module refuses to write unquoted.
names = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1, max_size=8)
hashes = st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple)


@st.composite
def own_rows(draw: st.DrawFn) -> list[Row]:
    times = sorted(draw(st.lists(st.floats(0, 1e6), max_size=8)))
    first = times[0] if times else 0.0
    return [
        Row(
            t - first,
            draw(lengths),
            draw(lengths),
            draw(names),
            draw(st.integers(-(10**18) + 1, 10**18 - 1)),
            draw(names),
            draw(names),
            draw(names),
            draw(hashes),
        )
        for t in times
    ]


def read(data: bytes, format: str | None = None) -> list[Row]:  # noqa: A002
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_bytes(data)
        return list(read_trace(path, format))


def own_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    columns = (
        "kind",
        "arrival_s",
        "client_id",
        "prompt_tokens",
        "id",
        "output_tokens",
        "priority",
        "tenant",
        "session",
    )
    writer.writerow((*columns, "block_hashes"))
    for row in rows:
        cells = {**row._asdict(), "client_id": "ignored"}
        writer.writerow(
            (*("" if cells[c] is None else cells[c] for c in columns), " ".join(map(str, row.block_hashes)))
        )
    return out.getvalue()


@given(own_rows(), st.booleans(), st.booleans())
def test_own_csv_comes_back_equal(rows: list[Row], zipped: bool, bom: bool) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + own_csv(rows).encode()
    assert read(gzip.compress(data, mtime=0) if zipped else data) == rows


@given(own_rows().filter(bool), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_own_jsonl_comes_back_equal(rows: list[Row], end: str, zipped: bool) -> None:
    data = "".join(json.dumps({**row._asdict(), "reasoning_tokens": 1}) + end for row in rows).encode()
    assert read(gzip.compress(data, mtime=0) if zipped else data, "jsonl") == rows


@given(st.lists(st.tuples(st.integers(0, 10**7), lengths, lengths, hashes), min_size=1, max_size=8))
def test_mooncake_comes_back_equal(raw: list[tuple[int, int, int, tuple[int, ...]]]) -> None:
    raw.sort(key=lambda item: item[0])
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    data = "\n".join(json.dumps(dict(zip(keys, item, strict=True))) for item in raw).encode()
    assert read(data) == [Row((t - raw[0][0]) / 1000, p, o, block_hashes=h) for t, p, o, h in raw]


zones = st.sampled_from([None, 0, 330, -480])


@given(st.lists(st.tuples(st.integers(0, 10**13), lengths, lengths, zones), min_size=1, max_size=8), st.booleans())
def test_azure_comes_back_equal(raw: list[tuple[int, int, int, int | None]], iso: bool) -> None:
    raw.sort(key=lambda item: item[0])
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for micros, prompt, output, zone in raw:
        at = datetime(2023, 11, 16, tzinfo=timezone.utc) + timedelta(microseconds=micros)  # noqa: UP017
        local = at.astimezone(timezone(timedelta(minutes=zone or 0)))
        # Seven decimals, as in the 2023 files: the last digit is below datetime's resolution.
        stamp = local.strftime("%Y-%m-%dT%H:%M:%S.%f" if iso else "%Y-%m-%d %H:%M:%S.%f") + "0"
        tail = "" if zone is None else "Z" if zone == 0 else local.strftime("%z")
        lines.append(f"{stamp}{tail},{prompt},{output}")
    assert read("\r\n".join(lines).encode()) == [Row((t - raw[0][0]) / 10**6, p, o) for t, p, o, _ in raw]


def test_azure_keeps_the_seventh_decimal() -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    rows = read(f"{head}2023-11-16 18:15:50.9951691,396,109\n".encode())
    assert rows == [Row(0.0, 374, 44), Row(4.3145791, 396, 109)]


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([None, *FORMATS]), st.sampled_from([b"", b"\x1f\x8b", b"{", b'"']))
def test_arbitrary_bytes_give_rows_or_a_trace_error(data: bytes, form: str | None, head: bytes) -> None:
    try:
        rows = read(head + data, form)
    except TraceError:
        return
    assert all(row.prompt_tokens >= 1 and row.output_tokens >= 1 for row in rows)


HEADS = {
    "csv": "arrival_s,prompt_tokens,output_tokens,priority,block_hashes\n0,1,2,,\n",
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,2\n",
    "jsonl": '\n{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2}\n',
    "mooncake": '\n{"timestamp": 0, "input_length": 1, "output_length": 2}\n',
}
MUTATIONS = st.tuples(st.sampled_from(sorted(HEADS)), st.integers(0, 120), st.binary(max_size=3), st.integers(0, 3))


@settings(max_examples=300)
@given(MUTATIONS)
def test_a_damaged_trace_gives_rows_or_a_trace_error(mutation: tuple[str, int, bytes, int]) -> None:
    form, place, new, cut = mutation
    data = HEADS[form].encode()
    damaged = data[:place] + new + data[place + cut :]
    for candidate in (damaged, gzip.compress(data, mtime=0)[: place or 1]):
        try:
            read(candidate)
        except TraceError as error:
            named = error.file is not None
            assert named, error  # noqa: PT017 - success is allowed too


def test_wrong_encoding_names_the_byte(tmp_path: Path) -> None:
    path, aside = tmp_path / "trace", tmp_path / "bad"
    path.write_bytes(HEADS["csv"].encode() + b"1,\xe9,2,,\n3,4,5,,\n")
    with pytest.raises(TraceError, match="line 3: got the byte 0xe9 at place 3, expected UTF-8 text"):
        list(read_trace(path))
    assert len(list(read_trace(path, skip_bad_rows=aside))) == 2
    assert json.loads(aside.read_text())["text"] == "1,\\xe9,2,,"


def test_an_oversized_line_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 100)
    path, aside = tmp_path / "trace", tmp_path / "bad"
    path.write_bytes(HEADS["csv"].encode() + b"1," + b"9" * 1000 + b",2,,\n3,4,5,,\n")
    with pytest.raises(TraceError, match="line 3: the line is too long, expected at most 100 bytes"):
        list(read_trace(path))
    assert list(read_trace(path, skip_bad_rows=aside))[1] == Row(3.0, 4, 5)
    assert json.loads(aside.read_text())["line"] == 3


def test_a_truncated_gzip_gives_its_rows_then_an_error(tmp_path: Path) -> None:
    path, aside = tmp_path / "trace", tmp_path / "bad"
    rows = "".join(f"{i},{i * 7919 % 5000 + 1},{i * 104729 % 900 + 1}\n" for i in range(5000))
    path.write_bytes(gzip.compress(f"arrival_s,prompt_tokens,output_tokens\n{rows}".encode())[:-2000])
    with pytest.raises(TraceError, match=r"the gzip data ends early or is damaged .* expected a whole file"):
        list(read_trace(path))
    reader = read_trace(path, skip_bad_rows=aside)
    assert 100 < len(list(reader)) < 5000
    assert reader.skipped >= 1
    assert "gzip data ends early" in json.loads(aside.read_text().splitlines()[-1])["reason"]


def test_a_last_line_cut_short_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(HEADS["csv"] + "1,2")
    with pytest.raises(TraceError, match=r"line 3.*the file ends inside this line"):
        list(read_trace(path))


def test_unclosed_quotes_cost_only_their_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    rows = "".join(f"{i},1,1,,\n" for i in range(1, 200))
    path.write_text(f'{HEADS["csv"]}0,"1,1,,\n{rows}')
    reader = read_trace(path, skip_bad_rows=tmp_path / "bad")
    assert len(list(reader)) == 200
    assert reader.skipped == 1


def test_a_quoted_cell_may_hold_commas_quotes_and_line_ends() -> None:
    data = 'arrival_s,prompt_tokens,output_tokens,tenant\r\n0,1,2,"a,""b""\nc"\r\n"1","2","3",d\r\n'
    assert read(data.encode()) == [Row(0.0, 1, 2, tenant='a,"b"\nc'), Row(1.0, 2, 3, tenant="d")]


def test_reading_one_row_does_not_read_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(HEADS["csv"] + "".join(f"{i},1,1,,\n" for i in range(200_000)) + "broken\n")
    with read_trace(path) as reader:
        assert next(reader) == Row(0.0, 1, 2)
        assert reader._source._file.tell() < 200  # the logical place: what the file object handed out
    assert list(reader) == []


@given(st.integers(0, 12))
def test_limit_stops_before_a_later_bad_row(limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_text(HEADS["csv"] + "".join(f"{i},1,1,,\n" for i in range(1, 10)) + "broken\n")
        if limit <= 10:
            assert len(list(read_trace(path, limit=limit))) == limit
        else:
            with pytest.raises(TraceError, match="line 12"):
                list(read_trace(path, limit=limit))


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=20))
def test_skipping_keeps_exactly_the_good_rows_in_order(raw: list[tuple[int, bool]]) -> None:
    good: list[Row] = []
    for time, fine in raw:
        if fine and (not good or time >= good[-1].arrival_s):
            good.append(Row(float(time), 1, 1))
    text = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{t},{1 if fine else 0},1\n" for t, fine in raw)
    with tempfile.TemporaryDirectory() as folder:
        path, aside = Path(folder) / "trace", Path(folder) / "bad"
        path.write_text(text)
        reader = read_trace(path, skip_bad_rows=aside)
        rows = list(reader)
        assert reader.skipped == len(aside.read_text().splitlines()) == len(raw) - len(good)
    first = good[0].arrival_s if good else 0.0
    assert rows == [row._replace(arrival_s=row.arrival_s - first) for row in good]

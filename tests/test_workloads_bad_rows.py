from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from alignedsched.errors import ConfigError, TraceError
from alignedsched.workloads import Row, Workload, read_trace

HEADS = {
    "csv": "arrival_s,prompt_tokens,output_tokens,priority,block_hashes\n0,1,2,,\n",
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,2\n",
    "jsonl": '\n{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2}\n',
    "mooncake": '\n{"timestamp": 0, "input_length": 1, "output_length": 2}\n',
}

LENGTH = "expected a whole number of tokens from 1 to 2147483647"
SECONDS = "expected finite seconds from 0 to 1e+12"
BAD_ROWS = [
    ("csv", "1,abc,2,,", "prompt_tokens", "got 'abc'", LENGTH),
    ("csv", "1,2,,,", "output_tokens", "got ''", LENGTH),
    ("csv", "1,0,2,,", "prompt_tokens", "got '0'", LENGTH),
    ("csv", "1,2,-7,,", "output_tokens", "got '-7'", LENGTH),
    ("csv", "1,1_0,2,,", "prompt_tokens", "got '1_0'", LENGTH),
    ("csv", "1,٣,2,,", "prompt_tokens", "got '٣'", LENGTH),
    ("csv", "1,2147483648,2,,", "prompt_tokens", "got '2147483648'", LENGTH),
    ("csv", "nan,1,2,,", "arrival_s", "got 'nan'", SECONDS),
    ("csv", "inf,1,2,,", "arrival_s", "got 'inf'", SECONDS),
    ("csv", "-1,1,2,,", "arrival_s", "got '-1'", SECONDS),
    ("csv", "soon,1,2,,", "arrival_s", "got 'soon'", SECONDS),
    ("csv", "1,2", "output_tokens", "got 2 cells ('1,2')", "expected 5, one for each column"),
    ("csv", "1,2,3,4,5,6", None, "got 6 cells", "expected 5, one for each column"),
    ("csv", '1,2,"3', None, "unexpected end of data", "expected closed quotes"),
    ("csv", "1,2,3,9223372036854775808,", "priority", "got '9223372036854775808'", "expected an integer that fits 64"),
    ("csv", "1,2,3,-99999999999999999999,", "priority", "got '-999", "expected an integer that fits 64"),
    ("csv", "1,2,3,high,", "priority", "got 'high'", "expected an integer that fits 64 bits"),
    ("csv", "1,2,3,,7 x", "block_hashes", "got 'x'", "expected block hashes that are integers from 0"),
    ("azure", "2023-11-16 18:15,1,2", "TIMESTAMP", "got '2023-11-16 18:15'", "expected a time like 2023-11-16"),
    ("azure", "2023-02-30 18:15:46,1,2", "TIMESTAMP", "got '2023-02-30 18:15:46'", "expected a time like"),
    ("azure", "2023-11-16 18:15:45,1,2", "TIMESTAMP", "1 s before the row above", "expected times that never go back"),
    ("azure", "2023-11-16 18:15:47,x,2", "ContextTokens", "got 'x'", LENGTH),
    ("jsonl", '{"arrival_s": 1, "prompt_tokens": 2}', "output_tokens", "is absent", "expected the keys arrival_s"),
    (
        "jsonl",
        '{"arrival_s": NaN, "prompt_tokens": 2, "output_tokens": 3}',
        None,
        "NaN is no JSON",
        "expected one JSON",
    ),
    ("jsonl", '{"arrival_s": 1e999, "prompt_tokens": 2, "output_tokens": 3}', "arrival_s", "got inf", SECONDS),
    ("jsonl", '{"arrival_s": 1, "prompt_tokens": 2.0, "output_tokens": 3}', "prompt_tokens", "got 2.0", LENGTH),
    ("jsonl", '{"arrival_s": 1, "prompt_tokens": true, "output_tokens": 3}', "prompt_tokens", "got True", LENGTH),
    ("jsonl", '{"arrival_s": 1, "prompt_tokens": [2], "output_tokens": 3}', "prompt_tokens", "got a list", LENGTH),
    ("jsonl", '{"arrival_s": 1, "prompt_tok', None, "got '{\"arrival_s", "expected one JSON object"),
    ("jsonl", "[" * 100_000, None, "nested too deeply", "expected one JSON object"),
    ("jsonl", "[1]", None, "got '[1]'", "expected one JSON object"),
    ("jsonl", '{"arrival_s": 1, "prompt_tokens": 2, "output_tokens": ' + "9" * 5000 + "}", None, "got", "JSON object"),
    ("mooncake", '{"timestamp": -1, "input_length": 2, "output_length": 3}', "timestamp", "got -1", "milliseconds"),
    (
        "mooncake",
        '{"timestamp": 1000000000000001, "input_length": 2, "output_length": 3}',
        "timestamp",
        "got 1000000000000001",
        "expected finite milliseconds from 0 to 1e+15",
    ),
    (
        "mooncake",
        '{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": [-1]}',
        "hash_ids",
        "got -1",
        "expected a list of block hashes",
    ),
]


@pytest.mark.parametrize(("form", "row", "column", "value", "expected"), BAD_ROWS)
def test_a_bad_row_is_named_or_set_aside(
    form: str, row: str, column: str | None, value: str, expected: str, tmp_path: Path
) -> None:
    path, aside = tmp_path / "trace.txt", tmp_path / "bad.jsonl"
    good = HEADS[form].splitlines()[1]
    path.write_text(f"{HEADS[form]}{row}\n{good}\n", encoding="utf-8")
    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    message = str(caught.value)
    assert (caught.value.file, caught.value.line, caught.value.column) == (str(path), 3, column)
    assert message.startswith(f"{path}, line 3")
    assert column is None or f"column {column!r}" in message
    assert value in message
    assert expected in message
    assert len(message) < 600
    reader = read_trace(path, skip_bad_rows=aside)
    assert list(reader) == [Row(0.0, 1, 2)] * 2
    assert (reader.rows, reader.skipped, reader.format) == (2, 1, form)
    (record,) = [json.loads(text) for text in aside.read_text(encoding="utf-8").splitlines()]
    assert (record["line"], record["column"], record["text"]) == (3, column, row)
    assert value in record["reason"]


def test_times_since_1970_and_the_largest_priority_are_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(
        '{"timestamp": 1700000000000, "input_length": 1, "output_length": 2}\n'
        '{"timestamp": 1700000000250, "input_length": 1, "output_length": 2}\n'
    )
    assert [row.arrival_s for row in read_trace(path)] == [0.0, 0.25]
    path.write_text("arrival_s,prompt_tokens,output_tokens,priority\n0,1,2,9223372036854775807\n")
    assert [row.priority for row in read_trace(path)] == [2**63 - 1]


@pytest.mark.parametrize(
    "lines",
    [
        ["id,arrival_s,prompt_tokens,output_tokens", "a,0,1,2", ",1,1,2", ",1,1,2", "a,2,1,2", "b,3,1,2"],
        [
            '{"id": "1", "arrival_s": 0, "prompt_tokens": 1, "output_tokens": 2}',
            "",
            '{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 2}',
            '{"id": null, "arrival_s": 1, "prompt_tokens": 1, "output_tokens": 2}',
            '{"id": 1, "arrival_s": 2, "prompt_tokens": 1, "output_tokens": 2}',
            '{"id": "b", "arrival_s": 3, "prompt_tokens": 1, "output_tokens": 2}',
        ],
    ],
)
def test_an_id_that_comes_again_has_a_place_and_is_set_aside(lines: list[str], tmp_path: Path) -> None:
    path, aside = tmp_path / "trace", tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TraceError, match=r"line 5, column 'id': got '[a1]', which a row above has, expected an id of"):
        Workload.from_rows("w", read_trace(path))
    with read_trace(path, skip_bad_rows=aside) as reader:
        workload = Workload.from_rows("w", reader)
    assert reader.skipped == 1
    assert workload.ids is not None
    assert (workload.ids[1:], workload.arrival_s.tolist()) == (("r1", "r2", "b"), [0.0, 1.0, 1.0, 3.0])
    assert [json.loads(line)["line"] for line in aside.read_text().splitlines()] == [5]


FILES = [
    (b"", "the file is empty"),
    (b"\n\n", "the file is empty"),
    (b"time,in,out\n1,2,3\n", "no known trace format, got 'time,in,out', expected a CSV header with arrival_s"),
    (b'{"a": 1}\n', "no known trace format"),
    (b"\xff\xfea\x00", "got the byte 0xff at place 1, expected UTF-8 text"),
    (b"arrival_s,prompt_tokens,output_tokens,prompt_tokens\n", "comes 2 times in the header, expected once"),
    (gzip.compress(b"x", mtime=0)[:5], "the gzip data ends early or is damaged"),
]


@pytest.mark.parametrize(("data", "problem"), FILES)
def test_a_file_of_no_known_form_is_an_error_even_when_skipping(data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=r"line (1|3)\b") as caught:
        read_trace(path, skip_bad_rows=tmp_path / "bad")
    assert problem in str(caught.value)


def test_a_header_without_a_named_forms_columns_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"arrival_s,prompt_tokens,output_tokens\n")
    with pytest.raises(
        TraceError, match=r"column 'TIMESTAMP': is absent, got the header 'arrival_s,.*expected the col"
    ):
        read_trace(path, "azure")


@pytest.mark.parametrize("name", ["absent", ".", "nul\0byte"])
def test_a_path_that_cannot_be_opened_is_a_trace_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be opened"):
        read_trace(f"{tmp_path}/{name}")


def test_wrong_arguments_are_config_errors(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(HEADS["csv"])
    with pytest.raises(ConfigError, match="unknown trace format 'xml'; known: azure, csv, mooncake, jsonl"):
        read_trace(path, "xml")
    with pytest.raises(ConfigError, match="limit must be an integer of at least 0, got -1"):
        read_trace(path, limit=-1)
    with pytest.raises(ConfigError, match="skip_bad_rows must not be the trace itself"):
        read_trace(path, skip_bad_rows=path)
    with pytest.raises(ConfigError, match="cannot be written"):
        read_trace(path, skip_bad_rows=tmp_path / "no" / "folder")
    assert path.read_text() == HEADS["csv"]

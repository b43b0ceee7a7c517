"""The forms of trace files: how each is recognised, and how one of its rows becomes a Row with its own clock.

Azure LLM inference traces: Azure/AzurePublicDataset, ``AzureLLMInferenceDataset2023.md`` and ``...2024.md``.
Mooncake traces: kvcache-ai/Mooncake, ``FAST25-release/traces``. The own form is described in ``docs/workloads.md``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import NoReturn, Protocol

from ..outside import show
from .lines import Line, LineSource
from .rows import (
    BadRowError,
    Row,
    hashes_json,
    hashes_text,
    name_json,
    priority_json,
    priority_text,
    time_json,
    time_text,
    whole_json,
    whole_text,
    wrong,
)

OWN = ("arrival_s", "prompt_tokens", "output_tokens")
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE = ("timestamp", "input_length", "output_length")
_NAMES = ("id", "tenant", "session", "kind")
_OPTIONAL = (*_NAMES, "priority", "block_hashes")
_MAX_RECORD_LINES = 64
_STAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[ T]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])(?:\.([0-9]{1,9}))?"
    r" ?(?:Z|UTC|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))?"
)
_STAMP_EXPECTED = "a time like 2023-11-16 18:15:46.6805900, with a zone (Z, +00:00) or without"


class Form(Protocol):
    """One form of file. ``parse`` gives a row whose ``arrival_s`` is still on the file's clock, as ``clock`` says.

    ``per_second`` is how many units of that clock make a second. Raises BadRowError.
    """

    name: str
    per_second: int
    time_column: str

    def parse(self, line: Line, source: LineSource) -> tuple[int | float, Row]: ...


def split_record(line: Line, source: LineSource) -> list[str]:
    """The cells of one CSV record, as the csv module reads them; a quoted cell may go on over further lines.

    A record that never closes its quotes costs only its first line: the others are given back.
    """
    if '"' not in line.text:
        return line.text.split(",")
    further: list[Line] = []

    def texts() -> Iterator[str]:  # read as the csv module asks for them, each once
        yield line.text + line.end
        while len(further) < _MAX_RECORD_LINES - 1:
            more = next(source, None)
            if more is None:
                return
            further.append(more)
            if more.problem:
                return
            yield more.text + more.end

    try:
        return next(csv.reader(texts(), strict=True))
    except csv.Error as error:
        source.push_back(further)
        raise BadRowError(
            None, f"got {show(line.text)} ({error}), expected closed quotes and cells as the csv module has them"
        ) from None


class CsvForm:
    """The own form as CSV: a header with ``arrival_s``, ``prompt_tokens``, ``output_tokens``, perhaps others."""

    name = "csv"
    per_second = 1
    required: tuple[str, str, str] = OWN

    def __init__(self, header: list[str]) -> None:
        """Raises BadRowError when a needed column is absent or a column comes twice."""
        self.header = [cell.strip() for cell in header]
        for column in self.required:
            if column not in self.header:
                raise BadRowError(
                    column, f"is absent, got the header {show(','.join(self.header))}, expected {self.expected}"
                )
        for column in self.header:
            if column and self.header.count(column) > 1:
                raise BadRowError(column, f"comes {self.header.count(column)} times in the header, expected once")
        place = {column: index for index, column in enumerate(self.header)}
        self._time, self._prompt, self._output = (place[column] for column in self.required)
        self._names = [(name, place[name]) for name in _NAMES if name in place] if self.required is OWN else []
        self._priority = place.get("priority") if self.required is OWN else None
        self._hashes = place.get("block_hashes") if self.required is OWN else None
        self._plain = not self._names and self._priority is None and self._hashes is None
        self.time_column = self.required[0]

    @property
    def expected(self) -> str:
        return f"the columns {', '.join(self.required)}"

    def clock(self, cell: str) -> int | float:
        """A time on the file's clock, in units of ``1 / per_second`` seconds."""
        return time_text(cell, self.time_column)

    def parse(self, line: Line, source: LineSource) -> tuple[int | float, Row]:
        cells = split_record(line, source)
        if len(cells) != len(self.header):
            self._wrong_width(cells)
        when = self.clock(cells[self._time])
        prompt = whole_text(cells[self._prompt], self.required[1])
        output = whole_text(cells[self._output], self.required[2])
        if self._plain:
            return when, Row(0.0, prompt, output)
        names = {name: cells[index] or None for name, index in self._names}
        priority = 0 if self._priority is None else priority_text(cells[self._priority], "priority")
        hashes = () if self._hashes is None else hashes_text(cells[self._hashes], "block_hashes")
        return when, Row(0.0, prompt, output, priority=priority, block_hashes=hashes, **names)

    def _wrong_width(self, cells: list[str]) -> NoReturn:
        have, want = len(cells), len(self.header)
        column = self.header[have] if have < want else None
        raise BadRowError(column, f"got {have} cells ({show(','.join(cells))}), expected {want}, one for each column")


class AzureForm(CsvForm):
    """Azure's CSV: ``TIMESTAMP,ContextTokens,GeneratedTokens``; a time without a zone counts as UTC. Exact to 1 ns."""

    name = "azure"
    per_second = 10**9
    required = AZURE

    def clock(self, cell: str) -> int:
        """Nanoseconds since year 1, as an integer: differences are exact."""
        found = _STAMP.fullmatch(cell.strip())
        if found is None:
            raise wrong(self.time_column, cell, _STAMP_EXPECTED)
        year, month, day, hour, minute, second, fraction, sign, zone_hour, zone_minute = found.groups()
        try:
            days = date(int(year), int(month), int(day)).toordinal()
        except ValueError:
            raise wrong(self.time_column, cell, _STAMP_EXPECTED) from None
        seconds = days * 86_400 + int(hour) * 3600 + int(minute) * 60 + int(second)
        if sign:
            zone = int(zone_hour) * 3600 + int(zone_minute) * 60
            seconds += zone if sign == "-" else -zone
        return seconds * 10**9 + (int(fraction.ljust(9, "0")) if fraction else 0)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def parse_json(text: str) -> dict[str, object]:
    """One JSON object. Raises BadRowError for anything else, NaN and Infinity included."""
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise BadRowError(None, f"got {show(text)}, nested too deeply, expected one JSON object") from None
    except ValueError as error:
        raise BadRowError(None, f"got {show(text)} ({str(error)[:120]}), expected one JSON object") from None
    if not isinstance(value, dict):
        raise BadRowError(None, f"got {show(text)}, expected one JSON object")
    return value


class JsonForm:
    """The own form as JSON lines: the same names as in CSV, ``block_hashes`` a list."""

    name = "jsonl"
    per_second = 1
    required: tuple[str, str, str] = OWN
    unit = "seconds"

    def __init__(self) -> None:
        self.time_column = self.required[0]

    def parse(self, line: Line, source: LineSource) -> tuple[int | float, Row]:
        value = parse_json(line.text)
        for column in self.required:
            if column not in value:
                raise BadRowError(
                    column, f"is absent, got {show(line.text)}, expected the keys {', '.join(self.required)}"
                )
        when = time_json(value[self.required[0]], self.required[0], self.unit, self.per_second)
        prompt = whole_json(value[self.required[1]], self.required[1])
        output = whole_json(value[self.required[2]], self.required[2])
        return when, self.optional(Row(0.0, prompt, output), value)

    def optional(self, row: Row, value: dict[str, object]) -> Row:
        """The row with the optional columns the object has."""
        if value.keys().isdisjoint(_OPTIONAL):
            return row
        return row._replace(
            id=name_json(value.get("id"), "id"),
            priority=priority_json(value.get("priority"), "priority"),
            tenant=name_json(value.get("tenant"), "tenant"),
            session=name_json(value.get("session"), "session"),
            kind=name_json(value.get("kind"), "kind"),
            block_hashes=hashes_json(value.get("block_hashes"), "block_hashes"),
        )


class MooncakeForm(JsonForm):
    """Mooncake's JSON lines: ``timestamp`` in ms, ``input_length``, ``output_length``, perhaps ``hash_ids``."""

    name = "mooncake"
    per_second = 1000
    required = MOONCAKE
    unit = "milliseconds"

    def optional(self, row: Row, value: dict[str, object]) -> Row:
        return row._replace(block_hashes=hashes_json(value.get("hash_ids"), "hash_ids"))


CSV_FORMS: dict[str, Callable[[list[str]], CsvForm]] = {"azure": AzureForm, "csv": CsvForm}
JSON_FORMS: dict[str, Callable[[], JsonForm]] = {"mooncake": MooncakeForm, "jsonl": JsonForm}
FORMATS = (*CSV_FORMS, *JSON_FORMS)


def recognise(line: Line, source: LineSource) -> str:
    """The name of the form a file's first line (not blank) speaks for. Raises BadRowError when none fits."""
    try:
        if line.text.lstrip().startswith("{"):
            names = set(parse_json(line.text))
        else:
            cells = split_record(line, source)
            names = {cell.strip() for cell in cells}
    except BadRowError as bad:
        raise BadRowError(None, f"{bad.problem}; name the format if only this row is bad") from None
    if line.text.lstrip().startswith("{"):
        fits = [name for name, keys in (("mooncake", MOONCAKE), ("jsonl", OWN)) if names >= set(keys)]
    else:
        fits = [name for name, keys in (("azure", AZURE), ("csv", OWN)) if names >= set(keys)]
    if len(fits) == 1:
        return fits[0]
    raise BadRowError(
        None,
        f"no known trace format, got {show(line.text)}, expected a CSV header with {', '.join(OWN)} "
        f"or {', '.join(AZURE)}, or JSON lines with {', '.join(OWN)} or {', '.join(MOONCAKE)}",
    )

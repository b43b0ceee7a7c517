"""Reading a trace: rows come one at a time, and a bad one is an error with its place, or is set aside in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ..errors import ConfigError, TraceError
from ..outside import show
from .formats import CSV_FORMS, FORMATS, JSON_FORMS, Form, recognise, split_record
from .lines import Line, LineSource
from .rows import BadRowError, Row

FilePath = str | PathLike[str]


class TraceReader(Iterator[Row]):
    """The rows of one trace file, in order, the first at 0 s. An iterator; also a context manager that closes.

    ``format`` is the form read, ``rows`` how many rows came so far, ``skipped`` how many were set aside.
    Memory does not grow with the file, but for the ids it has: no two rows have the same.
    """

    def __init__(
        self,
        path: FilePath,
        format: str | None = None,  # noqa: A002 - the word users know
        *,
        skip_bad_rows: FilePath | None = None,
        limit: int | None = None,
    ) -> None:
        if format is not None and format not in FORMATS:
            raise ConfigError(f"unknown trace format {show(format)}; known: {', '.join(FORMATS)}")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ConfigError(f"limit must be an integer of at least 0, got {show(limit)}")
        self.path = fspath(path)
        self.rows = 0
        self.skipped = 0
        self._limit = limit
        self._first: int | float | None = None
        self._last: int | float = 0
        self._ids: set[str] = set()
        self._aside: TextIO | None = None
        self._source = LineSource(self.path)
        try:
            self._form = self._open_form(format)
            self._aside = self._open_aside(skip_bad_rows)
        except BaseException:
            self.close()
            raise

    @property
    def format(self) -> str:
        """The form of the file: one of "azure", "mooncake", "csv", "jsonl"."""
        return self._form.name

    def close(self) -> None:
        """Close the trace and the file of bad rows; iteration ends. Safe to call again; the end of the file does it."""
        self._source.close()
        if self._aside is not None:
            self._aside.close()

    def __del__(self) -> None:
        # A reader dropped half-way closes its files at once, as a generator would.
        if hasattr(self, "_source"):
            self.close()

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __next__(self) -> Row:
        while self._limit is None or self.rows < self._limit:
            line = next(self._source, None)
            if line is None:
                break
            if not line.problem and not line.text.strip():
                continue
            try:
                row = self._row(line)
            except BadRowError as bad:
                self._set_aside(line, bad)
                continue
            self.rows += 1
            return row
        self.close()
        raise StopIteration

    def _row(self, line: Line) -> Row:
        if line.problem:
            raise BadRowError(None, line.problem)
        when, row = self._form.parse(line, self._source)
        if self._first is not None and when < self._last:
            late = (self._last - when) / self._form.per_second
            raise BadRowError(
                self._form.time_column,
                f"got a time {late:.9g} s before the row above in {show(line.text)}, expected times that never go back",
            )
        if row.id is not None:
            if row.id in self._ids:
                raise BadRowError("id", f"got {show(row.id)}, which a row above has, expected an id of its own")
            self._ids.add(row.id)
        if self._first is None:
            self._first = when
        self._last = when
        return Row((when - self._first) / self._form.per_second, *row[1:])

    def _set_aside(self, line: Line, bad: BadRowError) -> None:
        problem = bad.problem
        if not line.end and not line.problem:
            problem += " (the file ends inside this line)"
        if self._aside is None:
            self.close()
            raise TraceError(problem, file=self.path, line=line.number, column=bad.column)
        record = {"line": line.number, "column": bad.column, "reason": problem, "text": line.text}
        try:
            self._aside.write(json.dumps(record) + "\n")
        except OSError as error:
            self.close()
            raise TraceError(f"cannot be written: {error}", file=self._aside.name) from error
        self.skipped += 1

    def _open_form(self, named: str | None) -> Form:
        line = next((line for line in self._source if line.problem or line.text.strip()), None)
        if line is None:
            raise TraceError("the file is empty, expected a header or a JSON object", file=self.path, line=1)
        if named in JSON_FORMS:
            self._source.push_back([line])
            return JSON_FORMS[named]()
        try:
            if line.problem:
                raise BadRowError(None, line.problem)
            name = named or recognise(line, self._source)
            if name in JSON_FORMS:
                self._source.push_back([line])
                return JSON_FORMS[name]()
            return CSV_FORMS[name](split_record(line, self._source))
        except BadRowError as bad:
            raise TraceError(bad.problem, file=self.path, line=line.number, column=bad.column) from None

    def _open_aside(self, path: FilePath | None) -> TextIO | None:
        if path is None:
            return None
        try:
            target = Path(path)
            if target.exists() and target.samefile(self.path):
                raise ConfigError(f"skip_bad_rows must not be the trace itself, got {fspath(path)!r}")
            return target.open("w", encoding="utf-8")
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"skip_bad_rows: {fspath(path)!r} cannot be written: {error}") from error


def read_trace(
    path: FilePath,
    format: str | None = None,  # noqa: A002 - the word users know
    *,
    skip_bad_rows: FilePath | None = None,
    limit: int | None = None,
) -> TraceReader:
    """Read a trace, plain or gzip (told by its first bytes), row by row; the first row arrives at 0 s.

    ``format`` is "azure", "mooncake", "csv" or "jsonl"; None recognises it from the first line. At most ``limit``
    rows come. With ``skip_bad_rows`` a row that cannot be used is written to that file (written anew; one JSON object
    a line: line, column, reason, text) and counted in ``.skipped`` instead of raising. O(ids) memory, O(file) time.

    Raises TraceError naming file, line, column, value and what was expected, for a bad row while it is read, and at
    once when the file cannot be opened or its form is not known; ConfigError for a wrong argument.
    """
    return TraceReader(path, format, skip_bad_rows=skip_bad_rows, limit=limit)

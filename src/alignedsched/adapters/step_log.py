"""A step log: one line for each engine step, with what its time depends on. Any engine can print it.

Columns, in this order: ``n`` decode members, ``total`` the sum of their context lengths, ``longest`` the longest of
them, ``prefill`` tokens computed beside them, ``ms`` milliseconds the step took. As CSV with that header line, or as
JSONL with these keys, plain or gzip where it is read. `alignedsched advise` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from attrs import frozen

from ..errors import CallerError, TraceError
from ..outside import is_count, is_number, show
from ..workloads.lines import LineSource

FIELDS = ("n", "total", "longest", "prefill", "ms")
HEADER = ",".join(FIELDS)
BUFFERED = 1024  # lines
MOST = 2**53


@frozen
class StepLine:
    """One step: ``n`` decode members of ``total`` tokens together, the ``longest`` of them, ``prefill`` tokens, ms."""

    n: int
    total: int
    longest: int
    prefill: int
    ms: float


class StepLog:
    """Writes a step log: a few hundred nanoseconds a step, and a write to the file every ``BUFFERED`` steps.

    The name says the form: ``.jsonl`` or ``.csv``. Use it as a context manager, or call
    ``close``: what is buffered is lost otherwise. An existing file is replaced. Raises CallerError for another name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if not self.path.endswith((".csv", ".jsonl")):
            raise CallerError(f"StepLog: the name must end in .csv or .jsonl, got {show(self.path)}")
        self._json = self.path.endswith(".jsonl")
        self._file: TextIO = Path(self.path).open("w", encoding="utf-8")  # noqa: SIM115 (close closes it)
        self._lines: list[str] = [] if self._json else [f"{HEADER}\n"]

    def step(self, n: int, total: int, longest: int, prefill: int, ms: float) -> None:
        """One step has been done. The numbers are trusted, not checked."""
        if self._json:
            line = f'{{"n":{n},"total":{total},"longest":{longest},"prefill":{prefill},"ms":{ms:.4f}}}\n'
        else:
            line = f"{n},{total},{longest},{prefill},{ms:.4f}\n"
        self._lines.append(line)
        if len(self._lines) >= BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.writelines(self._lines)
        self._lines.clear()
        self._file.flush()

    def close(self) -> None:
        """Write what is buffered, and be done. Twice is harmless."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_step_log(path: str | os.PathLike[str]) -> Iterator[StepLine]:
    """The steps of a log, in order; the form is recognised from the first line.

    Raises TraceError naming file, line and field for the first line that is not as it should be, or for an empty log.
    """
    where = os.fspath(path)
    with closing(LineSource(path)) as lines:
        parse = None
        for line in lines:
            if line.problem is not None:
                raise TraceError(line.problem, file=where, line=line.number)
            if not line.text.strip():
                continue
            if parse is None:
                if line.text.lstrip().startswith("{"):
                    parse = _of_json
                else:
                    parse = _of_csv
                    _check_header(line.text, where, line.number)
                    continue
            yield _checked(parse(line.text, where, line.number), where, line.number)
        if parse is None:
            raise TraceError(f"is empty; expected the header {HEADER!r} or JSON objects", file=where)


def _check_header(text: str, where: str, number: int) -> None:
    names = tuple(name.strip().strip('"') for name in text.split(","))
    if names != FIELDS:
        raise TraceError(
            f"expected the header {HEADER!r} or a JSON object with these keys, got {show(text)}",
            file=where,
            line=number,
        )


def _of_csv(text: str, where: str, number: int) -> Sequence[Any]:
    cells = text.strip().split(",")
    if len(cells) != len(FIELDS):
        raise TraceError(f"expected {len(FIELDS)} values ({HEADER}), got {len(cells)}", file=where, line=number)
    return [_number(cell) for cell in cells]


def _number(text: str) -> object:
    if not text.isascii() or "_" in text:  # Python reads numbers in these
        return text
    try:
        return int(text) if text.strip().lstrip("-").isdecimal() else float(text)
    except ValueError:
        return text


def _of_json(text: str, where: str, number: int) -> Sequence[Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"is not JSON ({str(error)[:80]})", file=where, line=number) from None
    if not isinstance(content, dict):
        raise TraceError(f"expected a JSON object, got {show(content)}", file=where, line=number)
    for name in FIELDS:
        if name not in content:
            raise TraceError(f"is missing; expected the keys {HEADER}", file=where, line=number, column=name)
    return [content[name] for name in FIELDS]


def _checked(values: Sequence[Any], where: str, number: int) -> StepLine:
    n, total, longest, prefill, ms = values

    def wrong(name: str, value: object, expected: str) -> TraceError:
        return TraceError(f"must be {expected}, got {show(value)}", file=where, line=number, column=name)

    for name, value in (("n", n), ("total", total), ("longest", longest), ("prefill", prefill)):
        if not is_count(value, 0, MOST):
            raise wrong(name, value, "a whole number of at least 0")
    if not is_number(ms, 0.0, 1e9) or not ms:
        raise wrong("ms", ms, "milliseconds above 0")
    if not n and not prefill:
        raise wrong("n", n, "at least 1 in a step without prefill")
    if n and not n <= total <= n * longest:
        raise wrong("total", total, f"from n = {n:,} to n times longest = {n * longest:,}")
    if longest > total or (not n and total):
        raise wrong("longest", longest, f"at most total = {total:,}, and both 0 where n is 0")
    return StepLine(n, total, longest, prefill, float(ms))

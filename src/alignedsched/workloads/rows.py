"""One row of a trace, and the checks that turn the text or JSON values of a file into one."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..outside import show

MAX_TOKENS = 2**31 - 1
MAX_HASH = 2**63 - 1
MAX_TIME = 1e12  # seconds; beyond it a float no longer resolves a tenth of a millisecond

WHOLE_LENGTH = f"a whole number of tokens from 1 to {MAX_TOKENS}"
_HASHES = f"block hashes that are integers from 0 to {MAX_HASH}"
_PRIORITY = "an integer that fits 64 bits"


class Row(NamedTuple):
    """One request of a trace: when it arrived (seconds since the first row) and how long it was (tokens).

    ``id``, ``tenant``, ``session`` and ``kind`` are None, ``priority`` 0 and ``block_hashes`` empty where the file
    does not say. ``block_hashes`` are chained content hashes of the prompt's blocks: equal ids, equal shared prefix.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    id: str | None = None
    priority: int = 0
    tenant: str | None = None
    session: str | None = None
    kind: str | None = None
    block_hashes: tuple[int, ...] = ()


class BadRowError(Exception):
    """A row cannot be used: ``column`` (None: the row as a whole) and what is wrong with it. Stays inside readers."""

    def __init__(self, column: str | None, problem: str) -> None:
        super().__init__(problem)
        self.column = column
        self.problem = problem


def wrong(column: str, value: object, expected: str) -> BadRowError:
    """The exception for a value that is not what its column takes."""
    return BadRowError(column, f"got {show(value)}, expected {expected}")


def whole_text(text: str, column: str) -> int:
    """A length from a CSV cell. ``int`` alone would take underscores and foreign digits."""
    bare = text.strip()
    if bare.isascii() and bare.isdigit() and len(bare) <= 18:
        value = int(bare)
        if 1 <= value <= MAX_TOKENS:
            return value
    raise wrong(column, text, WHOLE_LENGTH)


def whole_json(value: object, column: str) -> int:
    """A length from a JSON value: an integer, not a boolean, a float or a text."""
    if type(value) is int and 1 <= value <= MAX_TOKENS:
        return value
    raise wrong(column, value, WHOLE_LENGTH)


def time_text(text: str, column: str) -> float:
    """A time from a CSV cell, in seconds."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if 0 <= value <= MAX_TIME:
        return value
    raise wrong(column, text, _time("seconds", 1))


def time_json(value: object, column: str, unit: str, per_second: int) -> float | int:
    """A time from a JSON value, kept as the integer it is where it is one, so that differences are exact.

    It is in ``unit``, of which ``per_second`` make a second.
    """
    if type(value) in (int, float) and 0 <= value <= MAX_TIME * per_second:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise wrong(column, value, _time(unit, per_second))


def _time(unit: str, per_second: int) -> str:
    return f"finite {unit} from 0 to {MAX_TIME * per_second:.0e}"


def name_json(value: object, column: str) -> str | None:
    """An optional name: a text, an integer (taken as its digits) or null; the empty text counts as absent."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if type(value) is int and abs(value) <= MAX_HASH:
        return str(value)
    raise wrong(column, value, "a text, a 64-bit integer or null")


def priority_text(text: str, column: str) -> int:
    """A priority from a CSV cell; empty is 0."""
    bare = text.strip()
    digits = bare.removeprefix("-")
    if not bare:
        return 0
    if digits.isascii() and digits.isdigit() and len(digits) <= 19 and int(digits) <= MAX_HASH:
        return int(bare)
    raise wrong(column, text, _PRIORITY)


def priority_json(value: object, column: str) -> int:
    """A priority from a JSON value; null is 0."""
    if value is None:
        return 0
    if type(value) is int and abs(value) <= MAX_HASH:
        return value
    raise wrong(column, value, _PRIORITY)


def hashes_text(text: str, column: str) -> tuple[int, ...]:
    """Block hashes from a CSV cell: integers with spaces between."""
    hashes = []
    for word in text.split():
        if not (word.isascii() and word.isdigit() and len(word) <= 19 and int(word) <= MAX_HASH):
            raise wrong(column, word, f"{_HASHES}, with spaces between")
        hashes.append(int(word))
    return tuple(hashes)


def hashes_json(value: object, column: str) -> tuple[int, ...]:
    """Block hashes from a JSON value: a list of integers, or null."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong(column, value, f"a list of {_HASHES}")
    for item in value:
        if type(item) is not int or not 0 <= item <= MAX_HASH:
            raise wrong(column, item, f"a list of {_HASHES}")
    return tuple(value)

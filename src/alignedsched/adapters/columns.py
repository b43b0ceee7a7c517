"""What an engine tells of its requests at every step: columns, one row a request, checked before anything is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from ..errors import CallerError
from ..outside import is_count, is_number, show
from ..request import RequestId

DEVICE, HOST, TO_DEVICE, TO_HOST = "device", "host", "to_device", "to_host"
PLACES = (DEVICE, HOST, TO_DEVICE, TO_HOST)
LONGEST = 2**40  # tokens: longer than any context


@frozen
class Resident:
    """Requests whose KV exists, finished or not: those in prefill, those that decode or could, those in the host.

    ``lengths`` are context lengths: the tokens that a request's next decode step reads, the one it writes included (one
    more than are stored; vLLM's ``num_computed_tokens + 1``). Of a request in prefill it is that of its first decode
    step, and ``left`` are the tokens of its prefill still to compute (0: it can decode; None: nobody prefills).
    ``places`` say where the KV is: ``DEVICE`` (None: all there), ``HOST``, or on its way: ``TO_DEVICE``, ``TO_HOST``.
    The other columns are read when a row is first seen, and not at all for requests that were told as queued: tokens
    ``produced`` so far (1 where not given), the most it may produce (``limits``, None: unknown), waiting ``since``
    (seconds; the present where not given), and ``priorities`` (larger goes first where a policy looks at it).
    """

    ids: Sequence[RequestId] = ()
    lengths: Sequence[int] = ()
    left: Sequence[int] | None = None
    places: Sequence[str] | None = None
    produced: Sequence[int] | None = None
    limits: Sequence[int | None] | None = None
    since: Sequence[float] | None = None
    priorities: Sequence[int] | None = None


@frozen
class Queued:
    """Requests without KV that wait to begin: ``tokens`` to prefill (prompt, and what was ``produced`` before)."""

    ids: Sequence[RequestId] = ()
    tokens: Sequence[int] = ()
    produced: Sequence[int] | None = None
    limits: Sequence[int | None] | None = None
    since: Sequence[float] | None = None
    priorities: Sequence[int] | None = None


Columns = Resident | Queued


def bad(columns: Columns, name: str, row: int, value: object, expected: str) -> CallerError:
    """The error for one value: names column, row and id."""
    table = type(columns).__name__
    request = columns.ids[row] if row < len(columns.ids) else None
    return CallerError(f"{table}.{name}[{row}] (request {show(request)}): must be {expected}, got {show(value)}")


def check_rows(columns: Columns) -> None:
    """Every column that is there has a row for each id. O(columns)."""
    rows = len(columns.ids)
    for name in _names(columns):
        column = getattr(columns, name)
        if column is not None and len(column) != rows:
            raise CallerError(f"{type(columns).__name__}.{name} has {len(column)} rows, ids has {rows}")


def _names(columns: Columns) -> tuple[str, ...]:
    return _RESIDENT if isinstance(columns, Resident) else _QUEUED


_RESIDENT = ("ids", "lengths", "left", "places", "produced", "limits", "since", "priorities")
_QUEUED = ("ids", "tokens", "produced", "limits", "since", "priorities")


def check_ids(columns: Columns) -> None:
    """Ids are non-empty strings, none of them twice. O(rows)."""
    seen: dict[object, int] = {}
    for row, request in enumerate(columns.ids):
        if not _is_id(request):
            raise bad(columns, "ids", row, request, "a non-empty string")
        first = seen.setdefault(request, row)
        if first != row:
            raise bad(columns, "ids", row, request, f"an id that stands once; row {first} has it too")


def _is_id(value: object) -> bool:
    return type(value) is str and bool(value)


def _count(least: int) -> Callable[[object], bool]:
    return lambda value: is_count(value, least, LONGEST)


_RULES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "ids": (_is_id, "a non-empty string"),
    "lengths": (_count(2), "an integer of at least 2 (a token is stored, the next is written)"),
    "left": (_count(0), "an integer of at least 0"),
    "places": (lambda value: value in PLACES, f"one of {', '.join(PLACES)}"),
    "tokens": (_count(1), "an integer of at least 1"),
    "produced": (_count(0), "an integer of at least 0"),
    "limits": (lambda value: value is None or is_count(value, 1, LONGEST), "an integer of at least 1, or None"),
    "since": (lambda value: is_number(value, 0.0), "finite seconds of at least 0"),
    "priorities": (lambda value: is_count(value, -LONGEST, LONGEST), "an integer"),
}


def check_row(columns: Columns, row: int, names: Sequence[str] | None = None) -> None:
    """The values of one row, in all columns or in those named."""
    for name in names or _names(columns):
        column: Sequence[Any] | None = getattr(columns, name)
        if column is not None:
            good, expected = _RULES[name]
            if not good(column[row]):
                raise bad(columns, name, row, column[row], expected)


def prompt(columns: Columns, row: int) -> int:
    """Tokens of a row's prompt: those it has, less those it has produced. Raises CallerError if none are left.

    Prefill gives a token when it ends, so of a request in prefill that one is not among the produced.
    """
    if isinstance(columns, Queued):
        tokens, produced = columns.tokens[row], value(columns.produced, row, 0)
    else:
        decodes = not value(columns.left, row, 0)
        tokens = columns.lengths[row] - (0 if decodes else 1)
        produced = value(columns.produced, row, 1 if decodes else 0)
    if produced >= tokens:
        raise bad(columns, "produced", row, produced, f"less than the {tokens:,} tokens the request has")
    return int(tokens - produced)


def value(column: Sequence[Any] | None, row: int, default: Any) -> Any:
    """A value of a column that may be absent."""
    return default if column is None else column[row]

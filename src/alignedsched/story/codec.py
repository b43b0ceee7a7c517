"""Records to plain data and back, exactly: no pickle, no code, no name from a file ever looked up outside one table.

A record is written as the list of its fields, in their order; an event has its type's name in front. Enums are written
as their values, dicts as objects, everything else as itself, in JSON without spaces: the same record always gives the
same bytes, in every process and on every machine. Floats are written with `repr`, which reads back
exactly; what is not finite is written `NaN`, `Infinity` or `-Infinity`, as Python's `json` does by itself.

Reading goes by the annotations of the fields, so that a file decides nothing: a value of another type, a missing field
or one too many is a `MisfitError` that says where. Fields at the end may be missing where they have a default: so a
file from before a field was added can be read.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

import attrs

from .. import cluster, events, lane_book, lanes, ledger, live, plan, queue, request, states
from ..errors import AlignedSchedError

T = TypeVar("T")
EVENTS: tuple[type, ...] = typing.get_args(events.Event)
_ENUMS: tuple[type[enum.Enum], ...] = (
    cluster.Role,
    plan.Outcome,
    states.RequestState,
    states.CopyState,
    states.OrderState,
)
_RECORDS: set[type] = {
    *EVENTS,
    request.Request,
    cluster.Cluster, cluster.Device, cluster.KVLayout, cluster.Lane, cluster.Link,
    plan.Plan, plan.Step, plan.Join, plan.Chunk, plan.Copy, plan.Abort, plan.Drop, plan.Release,
    live.Live, live.Flight, lanes.Issued, ledger.Extent, lane_book.Outbox, queue.Waiting,
}  # fmt: skip
_TAGGED: dict[str, type] = {event.__name__: event for event in EVENTS}


class MisfitError(ValueError):
    """Data is not what its place asks for; ``path`` says where, from the outside in."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path = ""

    def inside(self, step: str) -> MisfitError:
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        return f"{self.path.lstrip('.')}: {self.args[0]}" if self.path else str(self.args[0])


def register(*records: type, tagged: bool = False) -> None:
    """Let further records be written and read; ``tagged`` ones with their name in front, as events are."""
    _RECORDS.update(records)
    if tagged:
        _TAGGED.update({record.__name__: record for record in records})


def fields(record: type, without: tuple[str, ...] = ()) -> list[attrs.Attribute[Any]]:
    """The fields that make a record, in order."""
    return [field for field in attrs.fields(record) if field.init and field.name not in without]


# -- writing


def encode(value: object) -> bytes:
    """Canonical bytes. Raises TypeError naming the type of what is no plain data and in no table of records."""
    return _ENCODER.encode(value).encode("ascii")


def plan_bytes(plan: plan.Plan) -> bytes:
    """The canonical bytes of a plan: equal if and only if the plans are the same, to the last bit of a float."""
    return encode(plan)


def _plain(value: object) -> object:
    kind: Any = type(value)
    if kind in _RECORDS:
        return _values(kind)(value)
    if isinstance(value, enum.Enum):
        return value.value
    if kind is deque:
        return list(value)  # type: ignore[call-overload]
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is no plain data and no record: {value!r:.80}")


@cache
def _values(record: type) -> Callable[[object], object]:
    """What turns a record into the list of its fields' values."""
    names = [field.name for field in fields(record)]
    tag = (record.__name__,) if record in _TAGGED.values() else ()
    if len(names) > 1:
        get = attrgetter(*names)
        return (lambda value: tag + get(value)) if tag else get
    return lambda value: tag + tuple(getattr(value, name) for name in names)


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)


# -- reading


def decode(kind: Any, data: bytes) -> Any:
    """One value of a type out of its bytes. Raises MisfitError."""
    return reader(kind)(parse(data))


def parse(data: bytes) -> Any:
    """JSON to plain data. Raises MisfitError for what is none."""
    try:
        return json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise MisfitError(f"is not JSON ({error})") from None


def reader(kind: Any) -> Callable[[Any], Any]:
    """What reads a value of an annotated type out of plain data, or raises MisfitError."""
    return _reader(kind)


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    if kind is None or kind is type(None):
        return _exactly(type(None), "null")
    if kind in (str, bool, int):
        return _exactly(kind, {"str": "a string", "bool": "true or false", "int": "an integer"}[kind.__name__])
    if kind is float:
        return _number
    if kind is Any:  # plain data
        return lambda data: data
    if kind in _ENUMS:
        return _enum(kind)
    if kind in _RECORDS:
        return _record(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _union(arguments)
    if origin in (list, deque, tuple):
        return _sequence(origin, arguments)
    if origin in (dict, Mapping):
        return _mapping(*arguments)
    raise TypeError(f"no reader for {kind!r}")


def _exactly(kind: type, words: str) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if type(data) is not kind:
            raise MisfitError(f"must be {words}, got {data!r:.80}")
        return data

    return read


def _number(data: Any) -> float:
    if type(data) is not float and type(data) is not int:
        raise MisfitError(f"must be a number, got {data!r:.80}")
    return data  # a whole number stays one: it is written again as it was


def _enum(kind: type[enum.Enum]) -> Callable[[Any], enum.Enum]:
    by_value = {member.value: member for member in kind}

    def read(data: Any) -> enum.Enum:
        member = by_value.get(data) if type(data) is str else None
        if member is None:
            raise MisfitError(f"must be one of {', '.join(by_value)}, got {data!r:.80}")
        return member

    return read


def _record(kind: type) -> Callable[[Any], Any]:
    read_fields = fields_reader(kind)
    tag = kind.__name__ if kind in _TAGGED.values() else None

    def read(data: Any) -> Any:
        if tag is not None:
            if type(data) is not list or not data or data[0] != tag:
                raise MisfitError(f"must be a {tag}, got {data!r:.80}")
            data = data[1:]
        values = read_fields(data)
        try:
            return kind(*values)
        except AlignedSchedError as error:
            raise MisfitError(f"{error!s:.300}") from None

    return read


def fields_reader(kind: type, without: tuple[str, ...] = ()) -> Callable[[Any], list[Any]]:
    """What reads the values of a record's fields out of a list, those ``without`` left out."""
    hints = typing.get_type_hints(kind)
    known = fields(kind, without)
    readers = [(_as_it_is(hints[field.name]), _reader(hints[field.name])) for field in known]
    least = sum(1 for field in known if field.default is attrs.NOTHING)

    def read(data: Any) -> list[Any]:
        if type(data) is not list or not least <= len(data) <= len(readers):
            what = f"{len(data)} values" if type(data) is list else f"{data!r:.80}"
            raise MisfitError(f"a {kind.__name__} is a list of {len(readers)} values, got {what}")
        values: list[Any] = []
        try:
            for (plain, read_field), value in zip(readers, data, strict=False):
                values.append(value if type(value) is plain else read_field(value))
        except MisfitError as misfit:
            raise misfit.inside(f".{known[len(values)].name}") from None
        return values

    return read


def _as_it_is(kind: Any) -> type | None:
    """The type whose values need no reading in a field of this kind: most fields cost one comparison."""
    plain = [one for one in (typing.get_args(kind) or (kind,)) if one in (str, int, float, bool)]
    simple = typing.get_origin(kind) in (None, types.UnionType, typing.Union)
    return plain[0] if plain and simple else None


def _union(kinds: tuple[Any, ...]) -> Callable[[Any], Any]:
    tagged = {kind.__name__: _reader(kind) for kind in kinds if kind in _TAGGED.values()}
    others = [kind for kind in kinds if kind not in _TAGGED.values()]
    if tagged and others:
        raise TypeError(f"no reader for a union of {kinds}")
    if tagged:

        def read_tagged(data: Any) -> Any:
            tag = data[0] if type(data) is list and data else None
            read = tagged.get(tag) if type(tag) is str else None
            if read is None:
                raise MisfitError(f"must begin with one of {', '.join(tagged)}, got {data!r:.80}")
            return read(data)

        return read_tagged
    if len(others) != 2 or type(None) not in others:
        raise TypeError(f"no reader for a union of {kinds}")
    read_some = _reader(next(kind for kind in others if kind is not type(None)))
    return lambda data: None if data is None else read_some(data)


def _sequence(kind: Any, arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    each = arguments[0] if len(arguments) == 1 or arguments[1:] == (...,) else None
    readers = [] if each is not None else [_reader(argument) for argument in arguments]
    read_each = None if each is None else _reader(each)

    def read(data: Any) -> Any:
        if type(data) is not list or (read_each is None and len(data) != len(readers)):
            raise MisfitError(f"must be a list{'' if read_each else f' of {len(readers)}'}, got {data!r:.80}")
        values = []
        for index, value in enumerate(data):
            try:
                values.append((read_each or readers[index])(value))
            except MisfitError as misfit:
                raise misfit.inside(f"[{index}]") from None
        return kind(values)

    return read


def _mapping(key: Any, value: Any) -> Callable[[Any], dict[Any, Any]]:
    read_value = _reader(value)
    if key not in (str, int):
        raise TypeError(f"no reader for keys of {key!r}")

    def read(data: Any) -> dict[Any, Any]:
        if type(data) is not dict:
            raise MisfitError(f"must be an object, got {data!r:.80}")
        values = {}
        for name, one in data.items():
            if key is int and not (name.lstrip("-").isdecimal() and name.isascii() and str(int(name)) == name):
                raise MisfitError(f"has the key {name!r:.80}, which is no integer")
            try:
                values[key(name)] = read_value(one)
            except MisfitError as misfit:
                raise misfit.inside(f"[{name!r:.80}]") from None
        return values

    return read

"""A workload: requests as columns (arrival, prompt length, output length), small enough for ten million of them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import evolve, field, frozen

from ..errors import CallerError, ConfigError
from ..outside import show
from ..request import Request
from .rows import MAX_HASH, MAX_TOKENS, Row

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Names = tuple[str | None, ...]


@frozen(eq=False)
class Ragged:
    """A tuple of integers for each request, flat: request i has ``values[offsets[i]:offsets[i + 1]]``."""

    values: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(self.values[self.offsets[index] : self.offsets[index + 1]].tolist())

    def cut(self, lengths: Ints) -> Ragged:
        """The first ``lengths[i]`` values of each. Lengths above what is there keep all. O(values)."""
        counts = np.diff(self.offsets)
        kept = np.minimum(counts, lengths)
        place = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], counts)
        offsets = np.concatenate(([0], np.cumsum(kept)))
        return Ragged(self.values[place < np.repeat(kept, counts)], offsets)


def _column(name: str, values: Any, kinds: str, what: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """A read-only column that nobody else can change. An array that is not writable is kept without a copy."""
    try:
        given = np.asarray(values)
    except (TypeError, ValueError) as error:  # rows of unequal length, say
        raise CallerError(f"workload column {name} must be one row of {what}: {str(error)[:200]}") from None
    if given.ndim != 1 or (given.size and given.dtype.kind not in kinds):
        raise CallerError(
            f"workload column {name} must be one row of {what}, got shape {given.shape}, dtype {given.dtype}"
        )
    if given.dtype.kind == "u" and given.size and int(given.max()) > MAX_HASH:
        _fail(name, int(given.argmax()), int(given.max()), "an integer that fits 64 bits")
    column = given.astype(dtype, copy=False)
    if column is given and given.flags.writeable and not isinstance(values, list | tuple):
        column = given.copy()
    column = column.view()
    column.flags.writeable = False
    return column


def _ints(name: str, values: Any) -> Ints:
    return _column(name, values, "iu", "whole numbers", np.int64)


def _arrivals(values: Any) -> Floats:
    return _column("arrival_s", values, "iuf", "numbers", np.float64)


def _prompts(values: Any) -> Ints:
    return _ints("prompt_tokens", values)


def _outputs(values: Any) -> Ints:
    return _ints("output_tokens", values)


def _priorities(values: Any) -> Ints | None:
    return None if values is None else _ints("priority", values)


def _kept(values: array[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """What was gathered, as an array that need not be copied: nobody else has it."""
    column = np.frombuffer(values, dtype)
    column.flags.writeable = False
    return column


def _fail(what: str, index: int, value: object, expected: str) -> None:
    raise CallerError(f"workload column {what}, request {index}: got {show(value)}, expected {expected}")


@frozen(eq=False)
class Workload:
    """Requests in order of arrival, as read-only columns of equal length n.

    ``arrival_s`` float64 seconds, never falling, from 0 or later; ``prompt_tokens`` and ``output_tokens`` int64, each
    from 1 to 2^31 - 1. Optional columns are None where no request has them. Lengths must be integers already: nothing
    is rounded. Arrays that may be written are copied. Raises CallerError naming column, request and value. 24 bytes a
    request without optional columns.
    """

    name: str
    arrival_s: Floats = field(converter=_arrivals)
    prompt_tokens: Ints = field(converter=_prompts)
    output_tokens: Ints = field(converter=_outputs)
    ids: tuple[str, ...] | None = None
    priority: Ints | None = field(default=None, converter=_priorities)
    tenant: Names | None = None
    session: Names | None = None
    kind: Names | None = None
    block_hashes: Ragged | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("arrival_s", "prompt_tokens", "output_tokens", *_OPTIONAL):
            column = getattr(self, name)
            if column is not None and len(column) != len(self):
                raise CallerError(f"workload column {name} has {len(column)} values, expected {len(self)}")
        if len(self) == 0:
            return
        bad = ~np.isfinite(self.arrival_s) | (self.arrival_s < 0)
        if bad.any():
            at = int(bad.argmax())
            _fail("arrival_s", at, float(self.arrival_s[at]), "finite seconds of at least 0")
        back = np.flatnonzero(np.diff(self.arrival_s) < 0)
        if len(back):
            _fail("arrival_s", at := int(back[0]) + 1, float(self.arrival_s[at]), "a time that does not go back")
        for name in ("prompt_tokens", "output_tokens"):
            column = getattr(self, name)
            bad = (column < 1) | (column > MAX_TOKENS)
            if bad.any():
                _fail(name, at := int(bad.argmax()), int(column[at]), f"an integer from 1 to {MAX_TOKENS}")
        if self.ids is not None and len(set(self.ids)) != len(self.ids):
            seen: set[str] = set()
            for at, request in enumerate(self.ids):
                if request in seen:
                    _fail("ids", at, request, "an id no other request has")
                seen.add(request)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def from_rows(cls, name: str, rows: Iterable[Row]) -> Workload:
        """Gather rows (of a trace, say) into columns, one at a time; the rows themselves are not kept. O(n).

        A request without an id among others that have one is called "r" and its number (with more of "r" in front if
        another is called so). Raises CallerError as the class does, and whatever ``rows`` raises.
        """
        arrivals, prompts, outputs, priorities = array("d"), array("q"), array("q"), array("q")
        values, offsets = array("q"), array("q", [0])
        names: dict[str, list[str | None]] = {"ids": [], "tenant": [], "session": [], "kind": []}
        interned: dict[str, str] = {}
        for row in rows:
            arrivals.append(row.arrival_s)
            prompts.append(row.prompt_tokens)
            outputs.append(row.output_tokens)
            _sparse_int(priorities, row.priority, len(arrivals))
            for key, value in (("ids", row.id), ("tenant", row.tenant), ("session", row.session), ("kind", row.kind)):
                if value is not None:
                    kept = value if key == "ids" else interned.setdefault(value, value)
                    _sparse_name(names[key], kept, len(arrivals))
            values.extend(row.block_hashes)
            offsets.append(len(values))
        n = len(arrivals)
        full = {key: tuple(column + [None] * (n - len(column))) if column else None for key, column in names.items()}
        given = full.pop("ids")
        priorities.extend([0] * (n - len(priorities)) if priorities else ())
        return cls(
            name,
            _kept(arrivals, np.float64),
            _kept(prompts, np.int64),
            _kept(outputs, np.int64),
            ids=None if given is None else _all_named(given),
            priority=_kept(priorities, np.int64) if priorities else None,
            block_hashes=Ragged(_kept(values, np.int64), _kept(offsets, np.int64)) if values else None,
            **full,
        )

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last (0 for fewer than two requests)."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals a second over the span; 0 where there is none (fewer than two requests, or all at once)."""
        return (len(self) - 1) / self.span_s if self.span_s > 0 else 0.0

    @property
    def total_prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return int(self.prompt_tokens.sum())

    @property
    def total_output_tokens(self) -> int:
        """Output tokens of all requests."""
        return int(self.output_tokens.sum())

    def take(self, n: int) -> Workload:
        """The first ``n`` requests, or all where there are fewer."""
        if type(n) is not int or n < 0:
            raise ConfigError(f"take: n must be an integer of at least 0, got {n!r}")
        cut: dict[str, Any] = {}
        for name in ("arrival_s", "prompt_tokens", "output_tokens", *_OPTIONAL):
            column = getattr(self, name)
            if isinstance(column, Ragged):
                end = min(n, len(self))
                cut[name] = Ragged(column.values[: column.offsets[end]], column.offsets[: end + 1])
            elif column is not None:
                cut[name] = column[:n]
        return evolve(self, **cut)

    def scaled(self, rate: float) -> Workload:
        """The same requests ``rate`` times as fast: arrival times divided by it. Raises ConfigError unless positive."""
        given: object = rate
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
            raise ConfigError(f"scaled: the rate factor must be a positive finite number, got {rate!r}")
        with np.errstate(over="ignore"):  # what overflows is refused by the columns' own check
            return evolve(self, arrival_s=self.arrival_s / float(given))

    def offline(self) -> Workload:
        """The same requests, all there at 0 s."""
        return evolve(self, arrival_s=np.zeros(len(self)))

    def clamped(self, max_positions: int) -> tuple[Workload, int]:
        """The workload with prompt + output at most ``max_positions`` each, and how many requests had to change.

        No request is dropped. The prompt gives way first (its end is cut, down to one token), then the output; of
        block hashes the same share of leading ones stays, rounded down. Raises ConfigError below 2 positions.
        """
        if type(max_positions) is not int or max_positions < 2:
            raise ConfigError(f"clamped: max_positions must be an integer of at least 2, got {max_positions!r}")
        output = np.minimum(self.output_tokens, max_positions - 1)
        prompt = np.minimum(self.prompt_tokens, max_positions - output)
        changed = int(np.count_nonzero((prompt != self.prompt_tokens) | (output != self.output_tokens)))
        if not changed:
            return self, 0
        hashes = self.block_hashes
        if hashes is not None:
            hashes = hashes.cut(np.diff(hashes.offsets) * prompt // self.prompt_tokens)
        return evolve(self, prompt_tokens=prompt, output_tokens=output, block_hashes=hashes), changed

    def requests(self) -> Iterator[tuple[Request, int]]:
        """Each request and the tokens it will really produce, one at a time, in order of arrival.

        Ids are the trace's where it has them, "r0", "r1", ... otherwise. What a request will produce is not in it:
        a scheduler must not know.
        """
        for at in range(len(self)):
            request = Request(
                self.ids[at] if self.ids else f"r{at}",
                int(self.prompt_tokens[at]),
                arrival=float(self.arrival_s[at]),
                priority=0 if self.priority is None else int(self.priority[at]),
                tenant=_at(self.tenant, at),
                session=_at(self.session, at),
                kind=_at(self.kind, at),
                block_hashes=() if self.block_hashes is None else self.block_hashes[at],
            )
            yield request, int(self.output_tokens[at])


_OPTIONAL = ("ids", "priority", "tenant", "session", "kind", "block_hashes")


def _at(column: Sequence[str | None] | None, index: int) -> str | None:
    return None if column is None else column[index]


def _all_named(given: Names) -> tuple[str, ...]:
    """The ids of all requests: invented ones are no given one's, and differ by their numbers."""
    taken = set(given)
    names = []
    for at, name in enumerate(given):
        if not name:
            name = f"r{at}"
            while name in taken:
                name = f"r{name}"
        names.append(name)
    return tuple(names)


def _sparse_int(column: array[int], value: int, count: int) -> None:
    # A column begins with the first value that is not the default, so that an unused one costs nothing.
    if value or column:
        column.extend([0] * (count - 1 - len(column)))
        column.append(value)


def _sparse_name(column: list[str | None], value: str, count: int) -> None:
    column.extend([None] * (count - 1 - len(column)))
    column.append(value)

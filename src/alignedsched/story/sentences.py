"""Sentences of a story: when, for how long, and the words; names from outside never upset a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import field, frozen

from ..outside import printable

_PLAIN = frozenset("-_.:/+@#")
_LONGEST_NAME = 60


def name(text: str) -> str:
    r"""An id from outside as it stands in a sentence: quoted and escaped unless it is plain, and never long.

    >>> name("lane-d0"), name("my id"), name("evil" + chr(27) + "[2J")
    ('lane-d0', "'my id'", "'evil\\x1b[2J'")
    """
    short = text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."
    plain = all((c.isascii() and c.isalnum()) or c in _PLAIN for c in text)
    return short if plain and text else printable(repr(short))


@frozen
class Sentence:
    """Something that happened ``at`` a time (seconds on the scheduler's clock) and took ``seconds``.

    In the story of a request the sentences that take time follow each other without gap or overlap, from its arrival
    to its end.
    """

    at: float
    text: str = field(converter=printable)
    seconds: float = 0.0


def several(number: int, noun: str) -> str:
    """``1 request``, ``2 requests``, ``3 copies``."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"


def span(low: int, high: int) -> str:
    """A figure that did not stay the same: ``12 to 40``."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def listed(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``; of many the first few and how many more."""
    every = list(names)
    if len(every) > 8:
        return f"{', '.join(every[:7])} and {len(every) - 7:,} more"
    return " and ".join(every) if len(every) < 3 else f"{', '.join(every[:-1])} and {every[-1]}"


def seconds(value: float) -> str:
    """A duration to three digits: 1.8 s, 40 ms, 3.25 µs, 0 s."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:,.0f} {unit}" if scaled >= 999.5 else f"{scaled:.3g} {unit}"
    return "0 s" if value < 1e-9 else f"{value / 1e-6:.1g} µs"


def moment(value: float) -> str:
    """A point in time: 12.345 s."""
    return f"{value:,.3f} s"


def data(value: int) -> str:
    """Bytes to three digits, in powers of ten: 1.2 GB."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"

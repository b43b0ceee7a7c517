"""Numbers and names as a person reads them: three significant digits, units, nothing that upsets a terminal."""

from __future__ import annotations

import unicodedata
from typing import TextIO

from ..outside import printable

__all__ = [
    "NOTHING", "columns", "count", "data", "encodable", "factor", "percent", "printable", "quantity", "rate", "seconds",
]  # fmt: skip

NOTHING = "-"  # what stands where there is no value
_ASCII = str.maketrans({"×": "x", "µ": "u", "…": "..."})


def columns(text: str) -> int:
    """Terminal columns that printable text takes: wide East Asian characters count two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def encodable(text: str, stream: TextIO) -> str:
    """``text`` with what the stream's encoding lacks replaced by ASCII look-alikes or escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text


def _three_digits(value: float) -> str:
    """At least three significant digits, thousands separated: 0.0123, 1.23, 12.3, 1,234."""
    size = abs(value)
    if size == 0:
        return "0"
    for bound, digits in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)):
        if size >= bound:
            return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """``value`` in the largest unit in which it is at least 1, the smallest unit otherwise; units fall in size."""
    # 0.9995: what three digits round up to the larger unit's 1 is printed in the larger unit.
    size, unit = next((entry for entry in units if value >= entry[0] * 0.9995), units[-1])
    if size == 1 and type(value) is int:
        return f"{value:,}{unit}"
    return f"{_three_digits(value / size)}{unit}"


def seconds(value: float | None) -> str:
    """Seconds as s, ms or µs."""
    if value is None:
        return NOTHING
    return "0 s" if value == 0 else _scaled(value, ((1.0, " s"), (1e-3, " ms"), (1e-6, " µs")))


def quantity(value: float | None) -> str:
    """A large number: 853, 12.3k, 1.23M, 4.56G."""
    if value is None:
        return NOTHING
    return _scaled(value, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")))


def rate(value: float | None) -> str:
    """Tokens per second, with thousands as k."""
    if value is None:
        return NOTHING
    number = quantity(value)
    return f"{number} tok/s" if number[-1].isdigit() else f"{number[:-1]} {number[-1]} tok/s"


def data(value: float | None) -> str:
    """Bytes as B, kB, MB, GB or TB (powers of ten)."""
    if value is None:
        return NOTHING
    return _scaled(value, ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B")))


def percent(value: float | None) -> str:
    """A fraction as per cent, one digit behind the point."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def count(value: float | None) -> str:
    """A whole number with separated thousands."""
    return NOTHING if value is None else f"{value:,}"


def factor(value: float | None) -> str:
    """A ratio: ×0.87."""
    if value is None:
        return NOTHING
    if value >= 99.995:
        return f"×{_three_digits(value)}"
    return f"×{value:.2f}" if value >= 0.0995 else f"×{value:.2g}"

"""What comes from outside: JSON read within bounds, numbers that are numbers, names and values that can be shown.

Everything here is total: it answers for values nested a thousand levels deep, for integers of a thousand digits, for
text of a million characters, where ``repr``, ``str``, ``float`` and ``math.isfinite`` raise or never end.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TypeGuard

from .errors import ConfigError

MAX_FILE_BYTES = 64 * 2**20  # of a configuration, a table, a result: far above any there is
MAX_COUNT = 2**63 - 1
_SHOWN = 80  # characters of a text


def show(value: object) -> str:
    """A value for a message: short and printable whatever it is. O(1)."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!r}... ({len(value)} characters)"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**30 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict):
        kind = "a list" if isinstance(value, list) else "a tuple" if isinstance(value, tuple) else "an object"
        return f"{kind} of {len(value)}" if value else f"an empty {kind.split()[-1]}"
    return type(value).__name__


def printable(text: str, most: int | None = None) -> str:
    """``text`` with all that is no printable character escaped, cut to ``most`` characters (at least 2).

    Every report passes every name from outside through here: no terminal acts on what comes out (no control, no change
    of direction, no line break), and every encoding of Unicode can write it. O(length).
    """
    if most is not None:
        text = text[: most + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if most is None or len(text) <= most else text[: most - 1] + "…"


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> TypeGuard[float]:
    """Whether it is an int or a float (no bool), finite as a float, from ``low`` to ``high``. Never raises."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value <= high and -sys.float_info.max <= value <= sys.float_info.max


def is_count(value: object, least: int = 0, most: int = MAX_COUNT) -> TypeGuard[int]:
    """Whether it is an int (no bool, no float) from ``least`` to ``most``. Never raises."""
    return type(value) is int and least <= value <= most


def read_json(path: str | os.PathLike[str]) -> object:
    """The JSON value a file holds. Raises ConfigError, beginning with the path, when there is none to be had.

    Reads at most ``MAX_FILE_BYTES``; what is nested deeper than Python's parser goes is refused.
    """
    where = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a name no file can have
        raise ConfigError(f"{where!r}: cannot be read ({error})") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{where}: is too long, expected at most {MAX_FILE_BYTES} bytes")
    try:
        value: object = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{where}: is not JSON ({str(error)[:120]})") from error
    return value

"""Hostile inputs: bytes and plain data changed at random, and the values that have broken parsers before."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

DEEP = 3000  # levels of nesting; beyond any recursion limit
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")

NUMBERS: tuple[bytes, ...] = (
    b"0", b"-0", b"-1", b"1", b"2147483647", b"2147483648", b"9223372036854775807", b"9223372036854775808", b"1e999",
    b"-1e999", b"1e-999", b"0.1", b"1e12", b"1e13", b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf", b"0x10", b"1_0",
    b"+1", b" 1 ", b"1.", b".5", "٣".encode(), b"9" * 400, b"9" * 5000, b"1e400", b"true", b"null", b'""', b"{}", b"[]",
)  # fmt: skip
WORDS: tuple[bytes, ...] = (
    b"\n", b"\r\n", b"\r", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b'"', b'""', b"'", b",",
    b";", b"\t", b"{", b"}", b"[", b"]", b":", b"\\", b"\\u0000", b"\\ud800", b'"\\ud800"', b"\x1b[31m", b"\x85",
    "\u2028".encode(), "\u202e".encode(), b"<script>", b"[red]", b"%s%n", b"\x1f\x8b", b"[" * 2000, b'{"a":' * 2000,
    b" " * 3000, b"," * 3000, b'a","\n' * 40, b"\n" * 200,
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", " ", "x", "0", "-1", "nan", "\x00", "\n", "\ud800", "\udcff", "\u202eabc", "<script>alert(1)</script>",
    "</script>", "\x1b[31m\x1b]0;x\x07", "[red]x[/red]", "{0.__class__}", "%s", "'; --", "x" * 5000,
    "é", "\U0001f600" * 30, "\u2028",
)  # fmt: skip


@cache
def deep_list() -> list[Any]:
    """A list in a list in a list ... that ``repr`` and ``json`` cannot walk."""
    value: list[Any] = []
    for _ in range(DEEP):
        value = [value]
    return value


def hostile(rng: Random) -> Any:
    """A value that does not belong where it is put."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice((0, 1, -1, 2, 36, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30, 10**400, -(10**400), 10**5000))
    if kind == 2:
        return rng.choice((0.0, -0.0, 0.5, -0.5, 1.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf))
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice(([], {}, [None], [[]], {"": None}, {"a": {"b": []}}, ["x"] * 50))
    if kind == 6:
        return deep_list() if rng.random() < 0.3 else rng.randint(-5, 100)
    return rng.uniform(-2, 2)


def near(rng: Random, value: Any) -> Any:
    """A value of about the same kind."""
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None, 0, 1))
    if isinstance(value, int):
        small = abs(value) < 10**300
        return rng.choice(
            (value + 1, value - 1, -value, value * 2, *((value / 2, float(value), str(value)) if small else ()))
        )
    if isinstance(value, float):
        return rng.choice((value * 2, value / 2, -value, value + 1e-9, str(value), value * 1e300))
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        return value[:at] + rng.choice(TEXTS) + value[at + rng.randint(0, 2) :]
    return [value]


def mutated_value(rng: Random, value: Any) -> Any:
    """Plain data with one change somewhere in it; the original is not touched."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        action = rng.random()
        if action < 0.75:
            return {**value, key: mutated_value(rng, value[key])}
        if action < 0.85:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.95:
            return {**value, rng.choice(TEXTS): hostile(rng)}
        return {k if k != key else k + rng.choice(TEXTS): v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at, action = rng.randrange(len(value)), rng.random()
        if action < 0.7:
            return [*value[:at], mutated_value(rng, value[at]), *value[at + 1 :]]
        if action < 0.8:
            return value[:at] + value[at + 1 :]
        if action < 0.9:
            return [*value, value[at]]
        return value[::-1]
    return near(rng, value) if rng.random() < 0.4 else hostile(rng)


def mutated_often(rng: Random, value: Any) -> Any:
    """Plain data with one to three changes; now and then with none."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        value = mutated_value(rng, value)
    return value


def as_json(value: Any) -> bytes:
    """Plain data as a JSON text; what cannot be written (too deep, too long a number) as a text that cannot be read."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000
    except ValueError:
        return b'{"n": ' + b"9" * 5000 + b"}"


def _cut(rng: Random, data: bytes) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 1, 2, 4, 8, 64)))


def _flip(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]


def _delete(rng: Random, data: bytes) -> bytes:
    start, end = _cut(rng, data)
    return data[:start] + data[end:]


def _double(rng: Random, data: bytes) -> bytes:
    start, end = _cut(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _insert(rng: Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice(WORDS) + data[at:]


def _noise(rng: Random, data: bytes) -> bytes:
    start, end = _cut(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _number(rng: Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data, 0, 4000))
    if not found:
        return _insert(rng, data)
    place = rng.choice(found)
    return data[: place.start()] + rng.choice(NUMBERS) + data[place.end() :]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _lines(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return rng.choice((b"\n", b"\n", b"\r\n", b"\r", b"\n\n")).join(lines)


_CHANGES: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip, _delete, _double, _insert, _insert, _noise, _number, _number, _number, _truncate, _lines,
)  # fmt: skip


def mutated_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes with one to four changes; now and then with none."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        if data:
            data = rng.choice(_CHANGES)(rng, data)
    return data


@cache
def bombs() -> tuple[tuple[bytes, int], ...]:
    """Small gzip files that hold a lot, and how much: one endless line, blank lines, rows."""
    row = b'{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n'
    head = b"arrival_s,prompt_tokens,output_tokens\n"
    contents = (
        b"0" * 20_000_000,
        b" " * 70_000_000,
        head + b"\n" * 50_000,
        head + b"0,1,1\n" * 30_000,
        row * 5000,
        head + b'a","\n' * 5000,
    )
    return tuple((gzip.compress(content, 9, mtime=0), len(content)) for content in contents)


def zipped(rng: Random, data: bytes) -> bytes:
    """The gzip form of data, sound or damaged."""
    packed = gzip.compress(data, 1, mtime=0)
    damage = rng.random()
    if damage < 0.4:
        return packed
    if damage < 0.6:
        return packed[: rng.randint(0, len(packed))]
    if damage < 0.8:
        return packed + rng.choice((packed, b"\x1f\x8b", b"\0" * 20, b"x"))
    return _flip(rng, packed)


def choice_of(rng: Random, seeds: Sequence[Any]) -> Any:
    """One of the sound inputs that mutation starts from."""
    return seeds[rng.randrange(len(seeds))]

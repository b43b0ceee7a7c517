"""Prompts from a file: one a line, as text or as a JSON object; a bad line is an error beside the good ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from attrs import evolve, frozen

from alignedsched.errors import CallerError
from alignedsched.outside import show

from .prompts import Prompt
from .sampling import Sampling

_SAMPLING = ("temperature", "top_p", "top_k", "seed")
_KEYS = ("prompt", "tokens", "max_new_tokens", *_SAMPLING)


@frozen
class Line:
    """A line that asks for something: its number, and the prompt or what is wrong with it."""

    number: int
    prompt: Prompt | CallerError


def read_prompts(lines: Iterable[bytes], name: str, sampling: Sampling) -> list[Line]:
    """Every line that is not blank. ``sampling`` is what a line's own fields change. O(bytes)."""
    found = []
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            try:
                found.append(Line(number, _prompt(raw, sampling)))
            except CallerError as error:
                found.append(Line(number, CallerError(f"{name}, line {number}: {error}")))
    return found


def _prompt(raw: bytes, sampling: Sampling) -> Prompt:
    try:
        line = raw.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise CallerError(f"is not UTF-8: {error.reason} at byte {error.start}") from error
    if not line.lstrip().startswith("{"):
        return Prompt(line)
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CallerError(f"begins with {{ but is no JSON object: {error}") from error
    unknown = sorted(set(said) - set(_KEYS))
    if unknown:
        raise CallerError(f"unknown field {show(unknown[0])}; known: {', '.join(_KEYS)}")
    if ("prompt" in said) == ("tokens" in said):
        raise CallerError("give either prompt (text) or tokens (a list of token ids)")
    if "prompt" in said and not isinstance(said["prompt"], str):
        raise CallerError(f"prompt must be text, got {show(said['prompt'])}")
    if "tokens" in said and not isinstance(said["tokens"], list):
        raise CallerError(f"tokens must be a list of token ids, got {show(said['tokens'])}")
    return Prompt(
        said["prompt"] if "prompt" in said else tuple(said["tokens"]),
        said.get("max_new_tokens"),
        evolve(sampling, **{name: _number(name, said[name]) for name in _SAMPLING if name in said}),
    )


def _number(name: str, value: Any) -> Any:
    if type(value) not in (int, float):
        raise CallerError(f"{name} must be a number, got {show(value)}")
    return value

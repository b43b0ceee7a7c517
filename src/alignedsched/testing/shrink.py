"""Cutting a failed life down: fewer acts, fewer actions in each, the same failure; and the file that plays it again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from ..errors import TraceError
from .life import ACTIONS, Act, Life

VERSION = 1


@frozen
class Failure:
    """A life that failed: its seed, its acts, and what was wrong."""

    seed: int
    acts: tuple[Act, ...]
    error: str

    def write(self, path: Path) -> None:
        """Write the event file: JSON with ``version``, ``seed``, ``error``, and ``acts`` as [seed, actions]."""
        lines = ",\n".join(json.dumps([seed, list(names)]) for seed, names in self.acts)
        head = {"version": VERSION, "seed": self.seed, "error": self.error}
        path.write_text(json.dumps(head)[:-1] + f', "acts": [\n{lines}\n]}}\n', encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Failure:
        """Read an event file. Raises TraceError naming what is wrong with it; runs nothing that is not an action."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            acts = tuple((_whole(seed), tuple(str(name) for name in names)) for seed, names in plain["acts"])
            version, seed, error = plain["version"], _whole(plain["seed"]), str(plain["error"])
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise TraceError(f"no event file of the swarm: {type(problem).__name__}", file=str(path)) from problem
        if version != VERSION:
            raise TraceError(f"version {version!r}; this library plays version {VERSION}", file=str(path))
        unknown = sorted({name for _, names in acts for name in names} - ACTIONS)
        if unknown:
            raise TraceError(f"unknown actions {', '.join(map(repr, unknown[:5]))}", file=str(path))
        return cls(seed, acts, error)

    def play(self) -> None:
        """Live it again. Raises what is wrong, if it still is."""
        Life(self.seed).play(self.acts)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no integer")
    return value


def sign(error: BaseException) -> str:
    """What two failures have in common when they are the same one: the error without its names and numbers."""
    return f"{type(error).__name__}: {re.sub(r'[0-9]+|r[0-9]+', '#', str(error))[:48]}"


def outcome(seed: int, acts: Sequence[Act]) -> str | None:
    """How a life with these acts fails, or None."""
    try:
        Life(seed).play(acts)
    except Exception as error:  # noqa: BLE001 - whatever it raises is what we compare
        return sign(error)
    return None


def shrink(failure: Failure, *, most: int = 600) -> Failure:
    """Leave out acts, in halves, quarters, … and single ones, then single actions, as long as it fails the same way.

    At most ``most`` lives are tried. Returns the failure unchanged if it does not repeat.
    """
    wanted, acts, tried = outcome(failure.seed, failure.acts), list(failure.acts), 1
    if wanted is None:
        return failure
    size = len(acts) // 2
    while size and tried < most:
        at = 0
        while at < len(acts) and tried < most:
            fewer = acts[:at] + acts[at + size :]
            tried += 1
            if outcome(failure.seed, fewer) == wanted:
                acts = fewer
            else:
                at += size
        size //= 2
    for at, (choices, names) in enumerate(acts):
        for name in names if len(names) > 1 else ():
            kept = list(acts[at][1])
            kept.remove(name)
            fewer = [*acts[:at], (choices, tuple(kept)), *acts[at + 1 :]]
            tried += 1
            if tried < most and outcome(failure.seed, fewer) == wanted:
                acts = fewer
    return Failure(failure.seed, tuple(acts), failure.error)

"""Answers as they are written for a person: in the order of the prompts, the first open one token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from alignedsched.report.text import encodable, printable

from .prompts import Completion, Token

_REDRAW_S = 0.1


class Answers:
    """Writes each answer behind the number of its line. What comes out of turn is kept until it is its turn.

    ``ids``: tokens are shown as their ids, where there is no tokenizer.
    """

    def __init__(self, lines: Sequence[int], stream: TextIO, ids: bool = False) -> None:
        self._lines = lines
        self._ids = ids
        self._stream = stream
        self._turn = 0
        self._begun = False
        self._kept: dict[int, list[str]] = {}
        self._over: set[int] = set()

    def take(self, number: int, item: Token | Completion) -> None:
        """A token of a prompt, or its end."""
        if isinstance(item, Completion):
            self._over.add(number)
            if item.error is not None:
                self._keep(number, f"(error: {printable(str(item.error), 500)})")
        else:
            self._keep(number, f"{item.id} " if self._ids else item.text)
        while self._turn < len(self._lines):
            self._write("".join(self._kept.pop(self._turn, ())))
            if self._turn not in self._over:
                break
            self._stream.write("\n")
            self._turn += 1
            self._begun = False
        self._stream.flush()

    def _keep(self, number: int, text: str) -> None:
        self._kept.setdefault(number, []).append(text)

    def _write(self, text: str) -> None:
        if not self._begun and (text or self._turn in self._over):
            self._stream.write(f"[{self._lines[self._turn]}] ")
            self._begun = True
        self._stream.write(encodable(_harmless(text), self._stream))


class Progress:
    """How far a batch is: one line that is rewritten, on a terminal that shows nothing else."""

    def __init__(self, total: int, stream: TextIO, shown: bool) -> None:
        self._total = total
        self._stream = stream
        self._shown = shown and stream.isatty()
        self._began = self._drawn = time.monotonic()
        self._ended = self._tokens = 0

    def take(self, item: Token | Completion) -> None:
        if isinstance(item, Completion):
            self._ended += 1
        elif item.id is not None:
            self._tokens += 1
        now = time.monotonic()
        if self._shown and now - self._drawn > _REDRAW_S:
            self._drawn = now
            self._stream.write(f"\r{self._line(now)}  ")
            self._stream.flush()

    def close(self) -> None:
        """The line that stays."""
        self._stream.write(("\r" if self._shown else "") + self._line(time.monotonic()) + "\n")
        self._stream.flush()

    def _line(self, now: float) -> str:
        return f"{self._ended:,} of {self._total:,} prompts, {self._tokens:,} tokens, {now - self._began:.1f} s"


def _harmless(text: str) -> str:
    """Text without what could steer a terminal; line ends stay."""
    return "\n".join(printable(line) for line in text.split("\n"))

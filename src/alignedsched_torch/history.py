"""Tokens that a lane's steps made, kept as the steps made them until the requests take theirs.

A step is one line of a block, [steps, slots]: to write it down is one assignment for all rows, and a request's tokens
are read from a column when somebody wants them. Lines that no row needs any more are dropped block by block.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from .job import Ids

NEVER = 1 << 62
LINES = 256  # of a block


class History:
    """What the rows of a lane made. Steps are written in order; one that failed is written anew."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._since: Ids = np.full(slots, NEVER, dtype=np.int64)  # the first step whose token was not taken
        self._blocks: deque[np.ndarray[Any, np.dtype[np.int32]]] = deque()
        self._base = 0  # the step of the first line
        self._through = -1  # the last step written

    def begin(self, slot: int, step: int) -> None:
        """From that step on a slot makes a token in every step."""
        self._since[slot] = step

    def end(self, slot: int) -> None:
        """What a slot makes from now on nobody wants."""
        self._since[slot] = NEVER

    def write(self, step: int, slots: Ids, tokens: Ids) -> None:
        """The tokens of a step that has ended. O(slots) in one array operation."""
        line = step - self._base
        if line >= LINES * len(self._blocks):
            line = self._room(step)
        self._blocks[line // LINES][line % LINES][slots] = tokens
        self._through = step

    def take(self, slot: int) -> list[int]:
        """What a slot made and was not taken before. O(that)."""
        step, end = int(self._since[slot]), self._through + 1
        made: list[int] = []
        if step >= end:
            return made
        self._since[slot] = end
        while step < end:
            block, line = divmod(step - self._base, LINES)
            through = min(end - step, LINES - line)
            made += self._blocks[block][line : line + through, slot].tolist()
            step += through
        return made

    def _room(self, step: int) -> int:
        """A block for a step that has no line yet; its line. Blocks that everybody has taken go."""
        oldest = min(step, int(self._since.min()))
        while self._blocks and self._base + LINES <= oldest:
            self._blocks.popleft()
            self._base += LINES
        if not self._blocks:
            self._base = step
        while step - self._base >= LINES * len(self._blocks):
            self._blocks.append(np.empty((LINES, self._slots), dtype=np.int32))
        return step - self._base

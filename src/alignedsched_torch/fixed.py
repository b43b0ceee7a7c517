"""Decode steps over buffers that never move: recorded once a size, replayed for every batch (CUDA graphs, on a GPU).

A step without prefill is the same work whatever the batch: its rows lie in one buffer, padded to one of a few sizes
with the spare row, whose length is 0; plans and pages are in buffers too. So what the host does for a step is to write
what has changed into them and to replay, which does not depend on the number of members. Where a device records
nothing, the very same work is run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from .columns import DeviceColumns
from .devices import Stream
from .models.attention import Backend, DecodeRows

if TYPE_CHECKING:
    from .forward import StepWork


def sizes(members: int) -> list[int]:
    """Numbers of rows that steps are padded to: few, and little waste at any of them."""
    found = [size for size in (1, 2, 4, 8, *range(16, 128, 16), *range(128, members + 32, 32)) if size < members]
    return [*found, members]


Compute = Callable[[DecodeRows, bool], torch.Tensor]


class FixedSteps:
    """All recorded steps of a lane. ``compute``: rows and whether tokens are drawn -> the tokens they make."""

    def __init__(
        self,
        members: int,
        columns: DeviceColumns,
        stream: Stream,
        attention: Backend,
        compute: Compute,
    ) -> None:
        self._columns = columns
        self._stream = stream
        self._attention = attention
        self._compute = compute
        self._sizes = sizes(members)
        self._rows = torch.full((members,), columns.spare, dtype=torch.int64, device=columns.device)
        self._made = torch.zeros(members, dtype=torch.int64, device=columns.device)
        self._tokens = self._made[:0]
        self._batch = self._over(0, -1)  # the rows in the buffer
        self._steps: dict[tuple[int, bool], Callable[[], object]] = {}

    def run(self, work: StepWork) -> torch.Tensor:
        """Queue the step; its tokens [rows], in a buffer that the next step writes over."""
        n = len(work.rows)
        size = self._sizes[bisect_left(self._sizes, n)]
        step = self._steps.get((size, work.draws))
        if step is None:
            step = self._steps[size, work.draws] = self._record(size, work.draws)
        if work.version != self._batch.version:
            padded = np.full(len(self._rows), self._columns.spare, dtype=np.int64)
            padded[:n] = work.rows
            self._rows.copy_(self._columns.send(padded), non_blocking=True)
            self._batch, self._tokens = self._over(n, work.version), self._made[:n]
        self._batch.known = work.lengths
        self._attention.prepare(self._batch)
        step()
        return self._tokens

    def _record(self, size: int, draws: bool) -> Callable[[], object]:
        """The step of one size, recorded while all rows are padding: a recording may run its work, to no effect."""
        self._rows.fill_(self._columns.spare)
        self._batch = self._over(0, -1)
        self._attention.prepare(self._batch)
        # Not a method: what is recorded must not hold this, which holds it.
        return self._stream.recorded(partial(_step, self._compute, self._over(size, -1), draws, self._made[:size]))

    def _over(self, count: int, version: int) -> DecodeRows:
        columns = self._columns
        return DecodeRows(self._rows[:count], columns.pages, columns.length, np.zeros(0, dtype=np.int64), version)


def _step(compute: Compute, rows: DecodeRows, draws: bool, made: torch.Tensor) -> None:
    made.copy_(compute(rows, draws))

"""One step on the device: the rows' tokens through the decoder, the next ones sampled, everything queued at once."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from attrs import define

from .devices import Event, Stream
from .fixed import FixedSteps
from .job import Ids
from .kernels.choice import attention as attention_named
from .memory import KVPool
from .models import Decoder
from .models.attention import ChunkRows, DecodeRows, StepRows
from .sampling import sample
from .table import BatchTable, Column


@define(eq=False)
class ChunkWork:
    """Prefill of tokens from ``start`` on; the token after them goes to row ``slot`` (-1: none is made)."""

    tokens: Ids
    start: int
    pages: list[int]
    slot: int


@define(eq=False)
class StepWork:
    """A step as the host has fixed it."""

    rows: Column
    version: int  # of ``rows``: the same version means the same rows
    lengths: Column  # of the rows: tokens to attend to, the one that the step writes included
    chunks: tuple[ChunkWork, ...]
    delta: Callable[[], None]
    draws: bool  # some of its tokens are drawn; told by the host, so that nobody waits for the device to say so


class Forward:
    """A model over one pool. ``launch`` queues a step and returns at once.

    ``attention`` is a name of ``kernels.choice``. ``fixed``: steps without prefill run over buffers that never move, so
    that a device which records work replays them (None: if the device is a GPU; never where the attention or a
    collective forbids it). Raises ConfigError for an attention that cannot be had here.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: KVPool,
        table: BatchTable,
        stream: Stream,
        seconds: float = 0.0,
        *,
        attention: str = "auto",
        fixed: bool | None = None,
    ) -> None:
        self.table = table
        self.attention = attention_named(attention, pool, decoder.heads, table.members)
        self._decoder = decoder
        self._pool = pool
        self._stream = stream
        self._seconds = seconds  # a step takes, where time is modelled
        lines, width = table.ahead + 2, table.columns.spare  # more than there are steps under way, and tokens of one
        self._lines = deque(pool.device.host_ids(lines * width).view(lines, width).unbind())
        self._rows: tuple[int, torch.Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        self._fixed: FixedSteps | None = None
        wanted = pool.device.torch_device.type == "cuda" if fixed is None else fixed
        if wanted and self.attention.fixed and decoder.ranks == 1:
            self._fixed = FixedSteps(table.members, table.columns, stream, self.attention, self._weakly())

    def launch(self, work: StepWork) -> tuple[torch.Tensor, Event]:
        """Queue a step. The tokens, [rows + last chunks] on the host, are there when the event has fired.

        A token of -1 says that the row's logits were not finite. The memory is used again in a later step.
        """
        made = sum(1 for chunk in work.chunks if chunk.slot >= 0)
        out = self._lines[0][: len(work.rows) + made]
        self._lines.rotate(-1)
        if self._pool.device.poisons:
            out.fill_(-1)
        self._stream.launch(lambda: self._run(work, out), self._seconds)
        return out, self._stream.record()

    def _run(self, work: StepWork, out: torch.Tensor) -> None:
        with torch.inference_mode():
            work.delta()
            if self._fixed is not None and not work.chunks:
                made = self._fixed.run(work)
            else:
                columns = self.table.columns
                rows = DecodeRows(self._row_ids(work), columns.pages, columns.length, work.lengths, work.version)
                self.attention.prepare(rows)
                made = self._compute(rows, work.draws, work.chunks)
            out.copy_(made, non_blocking=True)

    def _weakly(self) -> Callable[[DecodeRows, bool], torch.Tensor]:
        """``_compute`` for what is this one's own: in a cycle the pool would outlive it until garbage is collected."""
        method = weakref.WeakMethod(self._compute)

        def compute(rows: DecodeRows, draws: bool) -> torch.Tensor:
            found = method()
            assert found is not None, "only this one launches its steps"
            return found(rows, draws)

        return compute

    def _compute(self, decode: DecodeRows, draws: bool, chunks: Sequence[ChunkWork] = ()) -> torch.Tensor:
        """The tokens that rows and last chunks make, put into the columns too. Rows of length 0 are padding.

        Without chunks nothing is sent or waited for (that is why nowhere here is a ``torch.where`` with a number, which
        torch sends to the device), and no shape depends on what the columns hold.
        """
        columns, size, rows = self.table.columns, self._pool.shape.page_size, decode.rows
        length = columns.length[rows]
        place = (length - 1).clamp_min(0)
        tokens, positions = [columns.last[rows]], [place]
        page, offset = [columns.pages[rows, place // size].masked_fill(length == 0, -1)], [place % size]
        prefilled, picks, slots, ends, at = [], list(range(len(rows))), [rows], [length], len(rows)
        for chunk in chunks:
            count = len(chunk.tokens)
            pages_of = columns.send(np.array(chunk.pages, dtype=np.int64))
            where = torch.arange(chunk.start, chunk.start + count, device=rows.device)
            tokens.append(columns.send(chunk.tokens))
            positions.append(where)
            page.append(pages_of[where // size])
            offset.append(where % size)
            prefilled.append(ChunkRows(at, at + count, chunk.start, pages_of[: -(-(chunk.start + count) // size)]))
            at += count
            if chunk.slot >= 0:
                picks.append(at - 1)
                slots.append(columns.send(np.array([chunk.slot], dtype=np.int64)))
                ends.append(where[-1:] + 1)
        step = StepRows(torch.cat(page), torch.cat(offset), decode, prefilled)
        hidden = self._decoder.hidden(torch.cat(tokens), torch.cat(positions), self.attention.over(step))
        if chunks:
            hidden = hidden[columns.send(np.array(picks, dtype=np.int64))]
        into = torch.cat(slots)
        made = self._pick(self._decoder.logits(hidden), into, torch.cat(ends), draws)
        columns.last[into] = made.clamp_min(0)  # -1 is told to the host; a row's next token must be one
        columns.length[rows] = length + (length > 0)
        return made

    def _row_ids(self, work: StepWork) -> torch.Tensor:
        """The rows on the device; sent only when they have changed."""
        version, rows = self._rows
        if version != work.version:
            rows = self.table.columns.send(work.rows)
            self._rows = (work.version, rows)
        return rows

    def _pick(self, logits: torch.Tensor, slots: torch.Tensor, places: torch.Tensor, draws: bool) -> torch.Tensor:
        """The next token of each row, which stands at ``places`` of its text; -1 where its logits are not finite."""
        columns = self.table.columns
        best = logits.argmax(-1)
        if draws:
            best = sample(
                logits,
                columns.temperature[slots],
                columns.top_p[slots],
                columns.top_k[slots],
                columns.seed[slots],
                places,
            )
        return best.masked_fill(~logits.isfinite().all(-1), -1)

"""One step on the device: the rows' tokens through the decoder, the next ones sampled, everything queued at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import define

from .devices import Event, Stream
from .job import Ids
from .memory import KVPool
from .models import Decoder
from .models.attention import ChunkRows, DecodeGroup, PagedAttention, StepRows
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
    groups: list[tuple[int, int, int]]
    chunks: tuple[ChunkWork, ...]
    delta: Callable[[], None]
    draws: bool  # some of its tokens are drawn; told by the host, so that nobody waits for the device to say so


class Forward:
    """A model over one pool. ``launch`` queues a step and returns at once."""

    def __init__(self, decoder: Decoder, pool: KVPool, table: BatchTable, stream: Stream, seconds: float = 0.0) -> None:
        self.table = table
        self._decoder = decoder
        self._pool = pool
        self._stream = stream
        self._seconds = seconds  # a step takes, where time is modelled
        self._rows: tuple[int, torch.Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def launch(self, work: StepWork) -> tuple[torch.Tensor, Event]:
        """Queue a step. The tokens, [rows + last chunks] on the host, are there when the event has fired.

        A token of -1 says that the row's logits were not finite.
        """
        made = sum(1 for chunk in work.chunks if chunk.slot >= 0)
        out = self._pool.device.host_ids(len(work.rows) + made)
        self._stream.launch(lambda: self._run(work, out), self._seconds)
        return out, self._stream.record()

    def _run(self, work: StepWork, out: torch.Tensor) -> None:
        with torch.inference_mode():
            work.delta()
            self._step(work, out)

    def _step(self, work: StepWork, out: torch.Tensor) -> None:
        columns, size = self.table.columns, self._pool.shape.page_size
        rows = self._row_ids(work)
        n = len(work.rows)
        length = columns.length[rows]
        place = length - 1
        tokens, positions = [columns.last[rows]], [place]
        page, offset = [columns.pages[rows, place // size]], [place % size]
        groups = [
            DecodeGroup(first, last, columns.pages[rows[first:last], :pages], length[first:last])
            for first, last, pages in work.groups
        ]
        chunks, picks, slots, ends, at = [], list(range(n)), [rows], [length], n
        for chunk in work.chunks:
            count = len(chunk.tokens)
            pages_of = self._send(torch.tensor(chunk.pages, dtype=torch.int64))
            where = torch.arange(chunk.start, chunk.start + count, device=rows.device)
            tokens.append(self._send(torch.from_numpy(chunk.tokens)))
            positions.append(where)
            page.append(pages_of[where // size])
            offset.append(where % size)
            chunks.append(ChunkRows(at, at + count, chunk.start, pages_of[: -(-(chunk.start + count) // size)]))
            at += count
            if chunk.slot >= 0:
                picks.append(at - 1)
                slots.append(self._send(torch.tensor([chunk.slot], dtype=torch.int64)))
                ends.append(where[-1:] + 1)
        step = StepRows(torch.cat(page), torch.cat(offset), groups, chunks)
        hidden = self._decoder.hidden(torch.cat(tokens), torch.cat(positions), PagedAttention(self._pool, step))
        if not picks:
            return
        if work.chunks:
            hidden = hidden[self._send(torch.tensor(picks, dtype=torch.int64))]
        into = torch.cat(slots)
        made = self._pick(self._decoder.logits(hidden), into, torch.cat(ends), work.draws)
        columns.last[into] = made
        columns.length[rows] += 1
        out.copy_(made, non_blocking=True)

    def _send(self, values: torch.Tensor) -> torch.Tensor:
        """Small host values on the device. Not blocking: else the host would wait for all steps queued before."""
        return values.to(self.table.columns.device, non_blocking=True)

    def _row_ids(self, work: StepWork) -> torch.Tensor:
        """The rows on the device; sent only when they have changed."""
        version, rows = self._rows
        if version != work.version:
            rows = self._send(torch.from_numpy(work.rows.copy()))
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
        return torch.where(logits.isfinite().all(-1), best, -1)

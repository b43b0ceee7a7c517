"""Which program attends to what: equal shares of all pages of all requests, wherever that cuts them.

Think of the work of a decode step as one long line of pages: request by request, KV head by KV head, each such *run*
as many pages as its request has. A fixed number of programs takes equal stretches of the line (stream-K; LeanAttention,
arXiv 2405.10480, does it for attention). So a long request is shared by many programs and costs no one more than the
mean, and no program waits for another. A plan is only where each program begins.

Each program cuts at most one run at each of its two ends, so at most two of its results are parts that must be merged
later: buffers of ``2 * programs`` parts hold for any batch. The last part of a run goes to the run's end, wherever
that is by now. So a plan stays *right* while the rows stay the same, however they grow; it only loses balance, by less
than a page a run in ``page_size`` steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen

from alignedsched.errors import ExecutorError

Ints = np.ndarray[Any, np.dtype[np.int32]]
Column = np.ndarray[Any, np.dtype[np.int64]]

LEAST_TOKENS = 256  # of a share: starting one costs about as much as ten small tiles (FlashInfer PR 4904)
SEGMENTS = 16  # of a run, where results must not depend on the rest of the batch


@frozen(eq=False)
class Plan:
    """Where programs begin, for one set of rows.

    ``starts`` [3, programs + 1], int32: the run (row * kv_heads + head) each program begins in; the page (or, with
    ``segments``, the segment) of that run; and the parts of the run that begins in this program and is cut by its end
    (0: none is). The last column is the end of all work.
    """

    starts: Ints
    rows: int
    kv_heads: int
    page_size: int
    segments: int = 0  # most segments of a run where boundaries depend on the request alone, else 0

    @property
    def programs(self) -> int:
        """Among which the work is shared; fixed, whatever the batch."""
        return int(self.starts.shape[1]) - 1


def plan(
    lengths: np.ndarray[Any, Any],
    kv_heads: int,
    page_size: int,
    programs: int,
    *,
    invariant: bool = False,
    least_tokens: int = LEAST_TOKENS,
) -> Plan:
    """Share the pages of requests with ``lengths`` [rows] tokens among ``programs``. O(rows + programs log rows).

    With little to do, fewer programs get at least about ``least_tokens`` each, and the others nothing. ``invariant``:
    cut only where the request's own length says (at most ``SEGMENTS`` equal segments), so that its result is the same
    to the last bit in any batch. Raises ExecutorError for a length below 1.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and int(lengths.min()) < 1:
        short = int(lengths.argmin())
        raise ExecutorError(f"row {short}: a request that decodes reads at least one token, not {int(lengths[short])}")
    rows = len(lengths)
    pages, begin = np.ones(rows + 1, dtype=np.int64), np.zeros(rows + 1, dtype=np.int64)  # and what is behind the rows:
    pages[:rows] = (lengths + (page_size - 1)) // page_size  # one page of run rows * kv_heads, where the work ends
    (pages[:rows] * kv_heads).cumsum(out=begin[1:])
    total = int(begin[rows])
    used = max(1, min(programs, total, total * page_size // max(1, least_tokens)))
    at = np.minimum(np.arange(programs + 1) * total // used, total)
    row: Column = begin[1:].searchsorted(at, side="right")
    each = pages[row]
    head, place = np.divmod(at - begin[row], each)
    if invariant:
        place = place // segment_pages(each, page_size)
    return Plan(_with_parts(row * kv_heads + head, place), rows, kv_heads, page_size, SEGMENTS if invariant else 0)


def segment_pages(pages: Column, page_size: int) -> Column:
    """Pages a segment of requests with so many pages: a function of the request alone (the kernels compute it too)."""
    return np.maximum(max(1, LEAST_TOKENS // page_size), -(-pages // SEGMENTS)).astype(np.int64)


def _with_parts(run: Column, page: Column) -> Ints:
    """The third row: parts of a run that begins in program p and is cut by its end. Its other parts fill p + 1, ..."""
    starts: Ints = np.zeros((3, len(run)), dtype=np.int32)
    starts[0], starts[1] = run, page
    begins = (run[:-1] < run[1:]) | (page[:-1] == 0)
    cut = (page[1:] > 0) & begins
    behind = run.searchsorted(run[1:], side="right") - np.arange(len(cut))
    starts[2, :-1] = behind * cut
    return starts

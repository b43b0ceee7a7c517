"""Every kernel once over memory that ends, or begins, at a page nobody may touch: a read too many ends the process.

TRITON_INTERPRET=1 python -m tests.kernels.guarded behind|before
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable

import numpy as np
import torch

from alignedsched_torch.kernels.decode import Tables, Workspace, balanced, unsplit
from alignedsched_torch.kernels.pages import move_pages
from alignedsched_torch.kernels.plan import plan
from alignedsched_torch.kernels.rowwise import TritonRowwise
from alignedsched_torch.kernels.write import rope_write

Guard = Callable[[torch.Tensor], torch.Tensor]
HEADS, KV_HEADS, DIM = 4, 2, 16


def guarded(tensor: torch.Tensor, side: str) -> torch.Tensor:
    """A copy whose last byte lies in front of a page that must not be touched, or whose first one lies behind it."""
    libc, page, size = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE, tensor.numel() * tensor.element_size()
    room = -(-size // page) * page
    memory = mmap.mmap(-1, page + room)  # kept by what is made over it
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    forbidden, start = (first + room, room - size) if side == "behind" else (first, page)
    if libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    made = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
    return made.copy_(tensor)


def say(what: str) -> None:
    """What comes next, told before it may end the process."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def attention(guard: Guard, lengths: list[int], page: int, grown: int, programs: int, kinds: str) -> None:
    """Decode attention over a table without a column or a slot too many, by a plan made ``grown`` tokens ago."""
    rows, counts = len(lengths), [-(-length // page) for length in lengths]
    table = torch.zeros((rows, max(counts)), dtype=torch.int64)
    for row, pages in enumerate(torch.randperm(sum(counts)).split(counts)):
        table[row, : len(pages)] = pages
    tables = Tables(guard(torch.arange(rows)), guard(table), guard(torch.tensor(lengths)))
    q = guard(torch.randn(rows, HEADS, DIM))
    kv = guard(torch.randn(sum(counts), 2, KV_HEADS, page, DIM))
    made = []
    for kind in kinds.split():
        say(f"{kind} {lengths}")
        out = guard(torch.full((rows, HEADS, DIM), math.nan))
        if kind == "unsplit":
            unsplit(q, kv, tables, out)
        else:
            invariant = kind == "invariant"
            work = Workspace(programs, HEADS, KV_HEADS, DIM, q.device, invariant=invariant, rows=rows)
            work.starts, work.part_sum = guard(work.starts), guard(work.part_sum)
            work.part_top, work.part_weight = guard(work.part_top), guard(work.part_weight)
            known = np.array(lengths) - grown
            work.load(plan(known, KV_HEADS, page, programs, invariant=invariant, least_tokens=16))
            balanced(q, kv, tables, work, out)
        made.append(out)
    for out in made:
        assert torch.allclose(out, made[0], atol=1e-5), kinds


def write(guard: Guard) -> None:
    """Rope with the KV write, a row of padding among the others, the last page's last place written."""
    say("rope_write")
    kv = guard(torch.zeros(2, 2, KV_HEADS, 16, DIM))
    q, k, v = (guard(torch.randn(3, heads, DIM)) for heads in (HEADS, KV_HEADS, KV_HEADS))
    cos, sin = (guard(torch.rand(3, 1, DIM // 2)) for _ in range(2))
    rope_write(q, k, v, cos, sin, guard(torch.tensor([0, -1, 1])), guard(torch.tensor([0, 0, 15])), kv)


def move(guard: Guard) -> None:
    """Whole pages, no multiple of a piece, one of them skipped."""
    say("move_pages")
    source, target = guard(torch.randn(3, 1500)), guard(torch.zeros(3, 1500))
    move_pages(source, guard(torch.tensor([2, 0, 1])), target, guard(torch.tensor([0, -1, 2])), programs=2)
    assert torch.equal(target[[0, 2]], source[[2, 1]])


def rowwise(guard: Guard) -> None:
    """Rows that are no power of two wide."""
    say("add_norm and gate")
    rows = TritonRowwise(1e-5, torch.float32)
    rows.add_norm(guard(torch.randn(3, 24)), guard(torch.randn(3, 24)), guard(torch.randn(24)))
    rows.gated(guard(torch.randn(3, 2 * 1032)))


def main(side: str) -> None:
    """Run them all."""
    torch.set_num_threads(1)

    def guard(tensor: torch.Tensor) -> torch.Tensor:
        return guarded(tensor, side)

    attention(guard, [40, 20], 16, 0, 3, "unsplit balanced invariant")
    attention(guard, [40, 20], 16, 0, 40, "unsplit balanced")  # idle programs
    attention(guard, [4100], 256, 10, 8, "unsplit invariant")  # fewer, longer segments than were planned
    write(guard)
    move(guard)
    rowwise(guard)
    say("done")


if __name__ == "__main__":
    main(sys.argv[1])

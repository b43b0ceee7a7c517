"""Paged KV made up at random, and attention over it in float64, one request at a time: what the kernels must equal."""

from __future__ import annotations

import math

import numpy as np
import torch
from attrs import define

from alignedsched_torch.kernels import device
from alignedsched_torch.kernels.decode import Tables, Workspace, balanced, unsplit
from alignedsched_torch.kernels.plan import plan

PLACE = torch.device("cpu" if device.INTERPRETED else "cuda")
# Of a value, relative to 1 + its size. bfloat16 keeps 8 bits, and the interpreter cuts where a GPU rounds.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2**-7}


@define(eq=False)
class Paged:
    """A batch over a pool of several layers. Pages nobody wrote, and rows behind a request's end, hold NaN."""

    data: torch.Tensor  # [pages, layers, 2, kv_heads, page_size, head_dim]
    tables: Tables
    lengths: list[int]
    q: torch.Tensor  # [rows, heads, head_dim]

    @classmethod
    def random(
        cls, lengths: list[int], kv_heads: int, group: int, dim: int, page: int, dtype: torch.dtype, seed: int
    ) -> Paged:
        """Pages in random order, rows of the batch in random slots."""
        generator = torch.Generator().manual_seed(seed)
        counts = [-(-length // page) for length in lengths]
        numbers = torch.randperm(sum(counts) + 3, generator=generator)
        data = torch.full((len(numbers), 2, 2, kv_heads, page, dim), math.nan, dtype=dtype)
        rows = torch.randperm(len(lengths) + 2, generator=generator)[: len(lengths)]
        pages = torch.zeros((len(lengths) + 2, max(counts) + 1), dtype=torch.int64)
        of = torch.zeros(len(lengths) + 2, dtype=torch.int64)
        for slot, length, mine in zip(rows.tolist(), lengths, numbers[: sum(counts)].split(counts), strict=True):
            pages[slot, : len(mine)], of[slot] = mine, length
            kv = torch.randn(len(mine) * page, 2, 2, kv_heads, dim, generator=generator).to(dtype)
            kv[length:] = math.nan
            data[mine] = kv.unflatten(0, (len(mine), page)).permute(0, 2, 3, 4, 1, 5)
        q = torch.randn(len(lengths), kv_heads * group, dim, generator=generator).to(dtype)
        place = [tensor.to(PLACE) for tensor in (data, rows, pages, of, q)]
        return cls(place[0], Tables(*place[1:4]), lengths, place[4])

    @property
    def kv(self) -> torch.Tensor:
        """Its second layer."""
        return self.data[:, 1]

    def wanted(self) -> torch.Tensor:
        """[rows, heads, head_dim] in float64."""
        return attended(self.q, self.kv, self.tables, self.lengths)

    def balanced(self, programs: int, least: int = 16, *, invariant: bool = False) -> torch.Tensor:
        """By the kernel, with a plan of its own; where nothing is written there is NaN."""
        _, _, kv_heads, page, dim = self.kv.shape
        work = Workspace(
            programs, self.q.shape[1], kv_heads, dim, PLACE, invariant=invariant, rows=len(self.lengths)
        )  # fmt: skip
        for part in (work.part_sum, work.part_top, work.part_weight):
            part.fill_(math.nan)
        lengths = np.array(self.lengths)
        work.load(plan(lengths, kv_heads, page, programs, invariant=invariant, least_tokens=least))
        return balanced(self.q, self.kv, self.tables, work, torch.full_like(self.q, math.nan))

    def unsplit(self) -> torch.Tensor:
        return unsplit(self.q, self.kv, self.tables, torch.full_like(self.q, math.nan))


def attended(q: torch.Tensor, kv: torch.Tensor, tables: Tables, lengths: list[int]) -> torch.Tensor:
    """Softmax attention of each row to its first ``lengths`` tokens, in float64."""
    kv_heads, page, dim = kv.shape[2:]
    out = []
    for row, length in enumerate(lengths):
        pages = tables.pages[tables.rows[row], : -(-length // page)]
        k, v = (kv[pages, side].double().transpose(0, 1).flatten(1, 2)[:, :length] for side in (0, 1))
        scores = q[row].double().view(kv_heads, -1, dim) @ k.transpose(1, 2) / math.sqrt(dim)
        out.append((scores.softmax(-1) @ v).flatten(0, 1))
    return torch.stack(out)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest, relative to 1 + the value's size; NaN where a value is missing."""
    return float(((found.double() - wanted).abs() / (1 + wanted.abs())).max())

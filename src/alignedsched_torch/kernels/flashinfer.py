"""FlashInfer's decode kernel behind the same interface, where that library and a GPU are.

Written after its documentation (0.7); nobody has run it yet. Its plan depends on the batch in ways that only it knows,
so steps with it are not captured; rope, the KV write and prefill are as with Triton's kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..memory import KVPool
from ..models.attention import DecodeRows, StepRows
from .attention import prefill_chunks, varlen
from .write import rope_write

WORKSPACE_BYTES = 128 << 20  # what its documentation asks for


class FlashInferAttention:
    """See ``models.attention.Backend``."""

    name = "flashinfer"
    fixed = False

    def __init__(self, pool: KVPool, heads: int) -> None:
        import flashinfer

        device = pool.device.torch_device
        self.pool = pool
        self.varlen = varlen(pool)
        self.wrapper: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device),
            "HND",
            use_tensor_cores=heads > pool.shape.kv_heads,
        )
        self._heads = heads

    def prepare(self, rows: DecodeRows) -> None:
        """Its plan, for these lengths; page numbers are put in a row on the device."""
        n, shape = len(rows.known), self.pool.shape
        if not n:
            return
        counts = -(-rows.known // shape.page_size)
        starts = np.concatenate(([0], np.cumsum(counts)))
        total = int(starts[-1])
        device = rows.rows.device
        columns = torch.from_numpy(np.stack((counts, starts[:-1]))).pin_memory().to(device, non_blocking=True)
        which = torch.repeat_interleave(torch.arange(n, device=device), columns[0], output_size=total)
        place = torch.arange(total, device=device) - columns[1][which]
        pages = rows.pages[rows.rows[which], place].to(torch.int32)
        self.wrapper.plan(
            torch.from_numpy(starts.astype(np.int32)), pages,
            torch.from_numpy((rows.known - (counts - 1) * shape.page_size).astype(np.int32)),
            self._heads, shape.kv_heads, shape.head_dim, shape.page_size,
            q_data_type=shape.dtype, kv_data_type=shape.dtype,
        )  # fmt: skip

    def over(self, step: StepRows) -> FlashInferStep:
        return FlashInferStep(self, step)


class FlashInferStep:
    """Attention of one step; see ``models.Attention``."""

    def __init__(self, backend: FlashInferAttention, step: StepRows) -> None:
        self._backend = backend
        self._step = step
        self._rows = 0 if step.decode is None else len(step.decode.rows)

    def __call__(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        kv, n = self._backend.pool.data[:, layer], self._rows
        q = rope_write(q, k, v, cos, sin, self._step.page, self._step.offset, kv)
        out = torch.empty_like(q)
        if n:
            out[:n] = self._backend.wrapper.run(q[:n], (kv[:, 0], kv[:, 1]))
        if self._step.chunks:
            prefill_chunks(q, kv, self._step.chunks, out, self._backend.varlen)
        return out

"""What a step costs at least, whatever is in it: the cost surface taken apart into convex terms that can be summed.

Every surface costs at least ``balanced``, and a balanced step is a sum of terms that are convex in what they depend on
(rows, sampled rows, lengths). By Jensen's inequality, a sum over S steps of a convex ``f`` is at least S times ``f`` of
the mean; by Minkowski's, a sum of norms is at least the norm of the sums. So sums over requests suffice, however a
scheduler cuts them into steps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from attrs import frozen

from ..costs import AffineCosts, Costs, ModelCosts, TableCosts
from ..errors import ConfigError
from .table_terms import decode_plane, per_chunk_row

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@frozen(eq=False)
class Envelope:
    """A convex function at most the sampled one, linear between ``at`` (rising, from 1); flat below 1."""

    at: FloatArray
    seconds: FloatArray

    @classmethod
    def below(cls, seconds: FloatArray) -> Envelope:
        """The lower convex hull of ``seconds``, the cost of 1, 2, ... rows; shape (rows,). O(rows)."""
        hull: list[int] = []
        values = seconds.tolist()
        for k, value in enumerate(values):
            while len(hull) > 1:
                i, j = hull[-2], hull[-1]
                if (values[j] - values[i]) * (k - i) < (value - values[i]) * (j - i):
                    break
                hull.pop()
            hull.append(k)
        at = np.array(hull, dtype=np.float64) + 1.0
        return cls(at, seconds[hull])

    def least(self, rows: FloatArray, steps: FloatArray) -> FloatArray:
        """The least sum over at least ``steps`` steps that share ``rows``: shapes (n,), rows and steps at least 0.

        Over S steps it is at least S · f(rows/S), which falls with S while the mean is beyond the row count that is
        cheapest per row, and rises from there on: so either the fewest steps or the cheapest row count is best.
        """
        per_row = self.seconds / self.at
        best = int(np.argmin(per_row))
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.where(steps > 0, rows / steps, 0.0)
        fewest = steps * np.interp(mean, self.at, self.seconds)
        return np.where((steps > 0) & (mean <= self.at[best]), fewest, rows * per_row[best])


@frozen(eq=False)
class Terms:
    """A balanced step, as a lower bound: seconds of each convex term.

    ``rows(r) + sampled(q)`` for r rows of which q give a token, ``decode_fixed + ((per_member·n)^p +
    (per_token·total)^p)^(1/p)`` with decode members, ``prefill_fixed + Σ (per_prompt·p + per_pair·pairs)`` with chunks;
    ``host_fixed + host_per_member·q`` beside it (``host_overlaps``) or on top.
    """

    rows: Envelope
    sampled: Envelope
    per_token: float
    per_member: float = 0.0
    p: float = 1.0
    decode_fixed: float = 0.0
    prefill_fixed: float = 0.0
    per_prompt: float = 0.0
    per_pair: float = 0.0
    half_pair: float = 0.0  # a prompt of p tokens has p·(p + half_pair)/2 pairs
    host_fixed: float = 0.0
    host_per_member: float = 0.0
    host_overlaps: bool = True

    def decode_attention(self, members: FloatArray, total: FloatArray, steps: FloatArray) -> FloatArray:
        """Least decode attention of ``members`` rows that read ``total`` tokens in at least ``steps`` steps."""
        read = self.per_token * total
        if self.per_member:
            read = ((self.per_member * members) ** self.p + read**self.p) ** (1.0 / self.p)
        return self.decode_fixed * steps + read

    def prefill_attention(self, prompts: FloatArray, pairs: FloatArray, steps: FloatArray) -> FloatArray:
        """Least prefill attention of ``prompts`` tokens with ``pairs`` query-key pairs in at least ``steps``."""
        return self.prefill_fixed * steps + self.per_prompt * prompts + self.per_pair * pairs

    def with_host(self, gpu: FloatArray, sampled: FloatArray, steps: FloatArray) -> FloatArray:
        """Add the host's time, or take the larger, as the costs do."""
        host = self.host_fixed * steps + self.host_per_member * sampled
        return np.maximum(gpu, host) if self.host_overlaps else gpu + host


def terms_of(costs: Costs, most_rows: int) -> Terms:
    """The terms of known costs for steps of up to ``most_rows`` rows. O(most_rows), models and tables cached.

    Those of a TableCosts hold for steps of up to as many members as were measured. Raises ConfigError for other costs.
    """
    if isinstance(costs, AffineCosts):
        ends = np.unique([1, most_rows]).astype(np.float64)
        rows = Envelope(ends, costs.t0 + costs.per_row * ends)
        none = Envelope(ends, np.zeros(len(ends)))
        return Terms(
            rows, none, per_token=costs.per_token, per_prompt=costs.per_prompt, per_pair=costs.per_pair, half_pair=1.0
        )
    if isinstance(costs, ModelCosts):
        return _model_terms(costs, most_rows)
    if isinstance(costs, TableCosts):
        return _table_terms(costs, most_rows)
    raise ConfigError(f"a bound is known for ModelCosts, AffineCosts and TableCosts, got {type(costs).__name__}")


@lru_cache(maxsize=16)
def _model_terms(costs: ModelCosts, most_rows: int) -> Terms:
    gpu, model = costs.gpu, costs.model
    layers, decode, prefill = model.layers, costs.decode_fit, gpu.prefill
    kv_heads, heads = model.kv_heads_on(costs.tensor_parallel), model.heads // costs.tensor_parallel
    kv_bytes = kv_heads * model.kv_bytes_per_token_and_head
    # Layers run on all rows, the head on the sampled ones: two separate terms of linear_seconds, q = 1 in the first.
    one = costs.linear_seconds(1, 1)
    rows = np.array([costs.linear_seconds(r, 1) for r in range(1, most_rows + 1)])
    head = np.array([costs.linear_seconds(1, q) - one for q in range(1, most_rows + 1)])
    # Only their sum is known; any constant may go from one to the other. Give the head as much as makes it cheapest per
    # row at the most rows (so that it, too, is least in the fewest steps), which is less than its weights' time.
    constant = max(0.0, most_rows * float(head[-1] - head[-2]) - float(head[-1])) if most_rows > 1 else 0.0
    rows -= constant
    head += constant
    # Chunks read their history again; at least each token's own KV is read once.
    prompt_bytes = 4 * heads * model.head_size + kv_bytes
    return Terms(
        rows=Envelope.below(rows),
        sampled=Envelope.below(head),
        per_token=layers * kv_bytes / decode.bandwidth,
        per_member=layers * decode.per_sequence_head * kv_heads,
        p=decode.p,
        decode_fixed=layers * decode.t0,
        prefill_fixed=layers * prefill.t0,
        per_prompt=layers * prompt_bytes / prefill.bandwidth,
        per_pair=layers * 4 * heads * model.head_size / prefill.flops,
        host_fixed=costs.host_seconds(0),
        host_per_member=costs.host_seconds(1) - costs.host_seconds(0),
        host_overlaps=costs.overlap_host,
    )


@lru_cache(maxsize=16)
def _table_terms(costs: TableCosts, most_rows: int) -> Terms:
    fixed, member, token = decode_plane(costs)
    prompt, alone = per_chunk_row(costs)
    ends = np.unique([1, most_rows]).astype(np.float64)
    row, step = min(member, prompt), min(fixed, alone)
    return Terms(
        rows=Envelope(ends, step + row * ends),
        sampled=Envelope(ends, np.zeros(len(ends))),
        per_token=token,
        per_member=member - row,
        decode_fixed=fixed - step,
        prefill_fixed=costs.prefill.per_chunk,
        per_prompt=prompt - row,
        per_pair=costs.prefill.per_pair + costs.prefill.per_cell,  # a chunk's cells are at least its pairs
        half_pair=1.0,
    )

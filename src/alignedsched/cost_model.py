"""A step's cost in closed form: one model on one kind of GPU, from fits to published kernel measurements.

    step = layers · (products + small kernels + 2 all-reduces + attention) + head

Products are paid once for decode and prefill rows together, attention separately; host time overlaps the GPU's or adds.
Form and figures: `docs/costs.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import define, field

from .arrays import FloatArray
from .errors import ConfigError
from .hardware import ENGINE_HOST, DecodeAttention, Gpu, Host, MatMul
from .load import Load, check_surface, check_uniform
from .models import DTYPE_BYTES, Model

# FlashAttention-2 stops splitting a sequence's KV over blocks when batch x KV heads reaches 0.8 of two blocks per SM
# (Dao-AILab/flash-attention, csrc/flash_attn/flash_api.cpp, num_splits_heuristic).
GATE_BLOCKS_PER_SM = 1.6
MEMO_SIZE = 65_536
Chunks = Sequence[tuple[int, int]]
_AHEAD = np.arange(512, dtype=np.float64)
_AHEAD.flags.writeable = False


@define(eq=False)
class ModelCosts:
    """Costs of ``model`` on ``tensor_parallel`` GPUs, on a surface; see Costs for the surfaces.

    With ``overlap_host`` a step takes the larger of GPU and host time, else their sum. Row counts are memoised.

    Raises ConfigError naming the field for an unknown surface, a split the model does not allow, a number of GPUs whose
    all-reduce was not measured, or fp8 weights on a GPU without a fit for them.
    """

    gpu: Gpu
    model: Model
    tensor_parallel: int = 1
    surface: str = field(default="gated", validator=check_surface)
    overlap_host: bool = True
    host: Host = ENGINE_HOST
    _fit: DecodeAttention = field(init=False)
    _kv_heads: int = field(init=False)
    _bytes_per_token: int = field(init=False)  # of KV, per layer, on this GPU
    _tail: float = field(init=False)  # seconds per token and layer of one KV head read by one SM alone
    _gate: float = field(init=False)  # members from which no sequence is split any more
    _layers: dict[int, float] = field(init=False, factory=dict)  # linear part of all layers, by rows
    _heads: dict[int, float] = field(init=False, factory=dict)  # by rows sampled
    _chunks: tuple[Chunks, float] = field(init=False, default=((), 0.0))  # the last step's, asked about twice
    _uniform: dict[int, tuple[float, float, bool, float, float]] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        gpu, model, parallel = self.gpu, self.model, self.tensor_parallel
        self._kv_heads = model.kv_heads_on(parallel)
        if parallel > 1 and parallel not in gpu.all_reduce:
            known = ", ".join(map(str, (1, *sorted(gpu.all_reduce))))
            raise ConfigError(f"ModelCosts: tensor_parallel={parallel} was not measured on {gpu.name}; known: {known}")
        self._matmul()
        # Without a fit of its own an 8-bit cache is read at the 16-bit rate: `docs/costs.md` says how far off that was.
        narrow = gpu.decode_fp8 if DTYPE_BYTES[model.kv_dtype] == 1 else None
        self._fit = narrow or gpu.decode
        self._bytes_per_token = self._kv_heads * model.kv_bytes_per_token_and_head
        self._tail = model.kv_bytes_per_token_and_head * gpu.sms / self._fit.bandwidth
        self._gate = GATE_BLOCKS_PER_SM * gpu.sms / self._kv_heads

    def _matmul(self) -> MatMul:
        if DTYPE_BYTES[self.model.weight_dtype] > 1:
            return self.gpu.matmul
        if self.gpu.matmul_fp8 is None:
            raise ConfigError(f"ModelCosts: {self.gpu.name} has no fit for weight_dtype 'fp8'; use a 16-bit model")
        return self.gpu.matmul_fp8

    @property
    def gate(self) -> float:
        """Members from which ``gated`` costs as ``unsplit``: 1.6 · SMs / KV heads per GPU."""
        return self._gate

    @property
    def decode_fit(self) -> DecodeAttention:
        """The fit that decode attention is read from: the cache's number format decides."""
        return self._fit

    @property
    def tail(self) -> float:
        """Seconds per token of a sequence that is not split over blocks, all layers."""
        return self.model.layers * self._tail

    def linear_seconds(self, rows: int, sampled: int | None = None) -> float:
        """All of a step but attention and host: products, small kernels, all-reduces, and the head.

        ``rows`` are decode members plus prefill tokens; the head runs on ``sampled`` of them (default: all). Memoised.
        """
        if rows < 1:
            return 0.0
        sampled = rows if sampled is None else sampled
        layers = self._layers.get(rows)
        if layers is None:
            layers = _keep(self._layers, rows, self._layer_seconds(rows))
        head = self._heads.get(sampled)
        if head is None:
            head = _keep(self._heads, sampled, self._head_seconds(sampled))
        return layers + head

    def _layer_seconds(self, rows: int) -> float:
        """Products, small kernels and all-reduces of all layers."""
        model, gpu, parallel = self.model, self.gpu, self.tensor_parallel
        matmul, size = self._matmul(), DTYPE_BYTES[model.weight_dtype]
        layer = sum(matmul.seconds(rows, outputs, inputs, size) for outputs, inputs in model.products_on(parallel))
        # Two norms, rope and cache write, activation: a launch each, and about 6 bytes a row and hidden unit.
        layer += 4 * (gpu.small_kernel + 6 * rows * model.hidden / gpu.matmul.bandwidth)
        if parallel > 1:
            link = gpu.all_reduce[parallel]
            layer += 2 * (link.latency + 2 * rows * model.hidden / link.bandwidth)
        return model.layers * layer

    def _head_seconds(self, sampled: int) -> float:
        model = self.model
        return self.gpu.matmul.seconds(sampled, -(-model.vocabulary // self.tensor_parallel), model.hidden, 2)

    def decode_attention_seconds(self, n: int, total: int, longest: int) -> float:
        """Decode attention of all layers on this surface, in a step without chunks."""
        return self._decode(n, total, longest, self.surface)

    def _decode(self, n: int, total: int, longest: int, surface: str) -> float:
        if n < 1:
            return 0.0
        fit = self._fit
        moved = self._bytes_per_token * (n * longest if surface == "padded" else total) / fit.bandwidth
        busy = ((fit.per_sequence_head * n * self._kv_heads) ** fit.p + moved**fit.p) ** (1 / fit.p)
        if surface == "unsplit" or (surface == "gated" and n >= self._gate):
            busy = max(busy, self._tail * longest)
        return float(self.model.layers * (fit.t0 + busy))

    def prefill_attention_seconds(self, start: int, end: int, chunks: int = 1) -> float:
        """Attention of all layers for ``chunks`` chunks of tokens ``start`` to ``end`` in one launch, and no decode."""
        return self._prefill(((start, end),) * chunks, 0, 0)

    def attention_seconds(self, load: Load) -> float:
        """Attention of all layers in a step, decode members and chunks together."""
        return self._attention(load, self.surface)

    def _prefill_alone(self, chunks: Chunks) -> float:
        """Attention of a step's chunks where decode rows do not ride along; the last answer is remembered."""
        known, seconds = self._chunks
        if known is not chunks:
            seconds = self._prefill(chunks, 0, 0)
            self._chunks = (chunks, seconds)
        return seconds

    def _prefill(self, chunks: Chunks, decoded: int, longest: int) -> float:
        """All chunks of a step in one launch; ``decoded`` context tokens of decode rows ride along where tiles do."""
        model, fit = self.model, self.gpu.prefill
        heads = model.heads // self.tensor_parallel
        pairs, far, own, read = float(decoded * fit.tile), longest, 0, decoded
        for start, end in chunks:
            size = end - start
            own += size
            read += end
            far = max(far, end)
            pairs += (-(-size // fit.tile) * fit.tile if fit.tile else size) * (start + size / 2)
        flops = 4 * heads * model.head_size * pairs
        alone = 4 * model.head_size * fit.tile * far * self.gpu.sms  # one SM works through the longest row of tiles
        moved = 2 * own * heads * model.head_size * 2 + read * self._bytes_per_token
        busy = (flops**2 + alone**2) ** 0.5 / fit.flops
        return float(model.layers * (fit.t0 + busy + moved / fit.bandwidth))

    def _attention(self, load: Load, surface: str) -> float:
        if not load.chunks:
            return self._decode(load.n, load.total, load.longest, surface)
        if not (self.gpu.prefill.tile and load.n):
            return self._prefill_alone(load.chunks) + self._decode(load.n, load.total, load.longest, surface)
        tokens = load.n * load.longest if surface == "padded" else load.total
        mixed = self._prefill(load.chunks, tokens, load.longest if surface in ("gated", "unsplit") else 0)
        return max(mixed, self._decode(load.n, load.total, load.longest, surface))

    def host_seconds(self, n: int) -> float:
        """What the engine's host code takes for a step of ``n`` requests."""
        host = self.host
        return host.base + host.per_gpu * self.tensor_parallel + host.per_member * n

    def step_seconds(self, load: Load) -> float:
        """See Costs. O(chunks)."""
        return self._step(load, self.surface)

    def balanced_seconds(self, load: Load) -> float:
        """See Costs. O(chunks)."""
        return self._step(load, "balanced")

    def _step(self, load: Load, surface: str) -> float:
        rows = requests = load.n
        for start, end in load.chunks:
            rows += end - start
            requests += 1
        if not requests:
            return 0.0
        gpu_seconds = self.linear_seconds(rows, requests) + self._attention(load, surface)
        host = self.host_seconds(requests)
        return max(gpu_seconds, host) if self.overlap_host else gpu_seconds + host

    def finishing_times(self, load: Load, steps: int) -> FloatArray:
        """See Costs. O(steps)."""
        n = load.n
        if steps < 1 or load.chunks:
            check_uniform(steps, load)
        if n < 1:
            return np.zeros(steps)
        if steps == 1:  # arrays of one element cost more than the arithmetic
            return np.array([self._step(load, self.surface)])
        slope, launch, bound, fixed, host = self._uniform.get(n) or self._remember(n)
        p = self._fit.p
        ahead = _AHEAD[:steps] if steps <= len(_AHEAD) else np.arange(steps, dtype=np.float64)
        times = ahead * (slope * n)
        times += slope * (n * load.longest if self.surface == "padded" else load.total)
        times **= p
        times += launch
        times **= 1 / p
        if bound:
            alone = ahead + load.longest
            alone *= self._tail
            np.maximum(times, alone, out=times)
        times *= self.model.layers
        times += fixed
        if not self.overlap_host:
            times += host
        elif times[0] < host:  # times rise along the way
            np.maximum(times, host, out=times)
        return times.cumsum(out=times)

    def _remember(self, n: int) -> tuple[float, float, bool, float, float]:
        """What ``finishing_times`` needs and does not change from step to step."""
        fit = self._fit
        launch = (fit.per_sequence_head * n * self._kv_heads) ** fit.p
        bound = self.surface == "unsplit" or (self.surface == "gated" and n >= self._gate)
        fixed = self.linear_seconds(n, n) + self.model.layers * fit.t0
        known = (self._bytes_per_token / fit.bandwidth, launch, bound, fixed, self.host_seconds(n))
        self._uniform[n] = known
        return known


def _keep(memo: dict[int, float], key: int, value: float) -> float:
    """Remember a value in a memo of bounded size, and return it."""
    if len(memo) >= MEMO_SIZE:
        memo.clear()
    memo[key] = value
    return value

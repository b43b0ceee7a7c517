"""What GPUs and links can do, as fitted coefficients, and how much KV fits beside a model's weights.

Every figure names its source. The fits to NVIDIA's and KAIST's published measurements can be checked with
``python -m benchmarks.fidelity_tables``.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from .errors import ConfigError
from .models import MODELS, Model, model_named
from .outside import is_count, is_number, show

__all__ = [
    "ENGINE_HOST", "GPUS", "LINKS", "MODELS", "AllReduce", "DecodeAttention", "Gpu", "Host", "LinkSpeed", "MatMul",
    "Model", "PrefillAttention", "gpu_named", "kv_blocks", "link_named", "model_named",
]  # fmt: skip


@frozen
class MatMul:
    """A matrix product of m rows: ``t0 + ((bytes/bandwidth)^p + (2·m·outputs·inputs/flops)^p)^(1/p)`` seconds.

    ``per_input`` seconds come on top for each of the m · inputs elements, where they are quantised on the way in (fp8).
    """

    t0: float
    bandwidth: float  # bytes/s
    flops: float  # 1/s
    p: float
    per_input: float = 0.0

    def seconds(self, rows: int, outputs: int, inputs: int, weight_size: int) -> float:
        """Time of ``rows`` by ``inputs`` times ``inputs`` by ``outputs``; a weight takes ``weight_size`` bytes."""
        moved = weight_size * inputs * (outputs + rows) + 2 * rows * outputs
        counted = 2 * rows * outputs * inputs
        busy = ((moved / self.bandwidth) ** self.p + (counted / self.flops) ** self.p) ** (1 / self.p)
        return float(self.t0 + busy + self.per_input * rows * inputs)


@frozen
class DecodeAttention:
    """One layer's decode attention: ``t0 + ((c·n·kv_heads)^p + (KV bytes/bandwidth)^p)^(1/p)`` seconds."""

    t0: float
    per_sequence_head: float  # c, seconds
    bandwidth: float  # bytes/s
    p: float


@frozen
class PrefillAttention:
    """One layer's prefill attention: ``t0 + 4·heads·head_size·pairs/flops + (q, k, v, o bytes)/bandwidth`` seconds.

    With ``tile`` rows per block the work is counted in whole tiles, and joined (as a 2-norm) with the time one SM takes
    for the longest row of tiles; decode members of a step with chunks are then rows of the same kernel, a tile each.
    """

    t0: float
    flops: float  # 1/s
    bandwidth: float  # bytes/s
    tile: int = 0


@frozen
class AllReduce:
    """An all-reduce under a CUDA graph: ``latency + message bytes/bandwidth`` seconds."""

    latency: float
    bandwidth: float  # bytes/s


@frozen
class Gpu:
    """One kind of GPU. ``all_reduce`` is by number of GPUs.

    ``matmul_fp8`` and ``decode_fp8`` (8-bit weights, 8-bit KV) are None where they were not measured.
    """

    name: str
    sms: int
    memory_bytes: int
    matmul: MatMul
    decode: DecodeAttention
    prefill: PrefillAttention
    matmul_fp8: MatMul | None = None
    decode_fp8: DecodeAttention | None = None
    all_reduce: Mapping[int, AllReduce] = field(factory=dict)
    small_kernel: float = 2e-6  # seconds of a norm, a rope, an activation, before its bytes


@frozen
class Host:
    """What the engine's host code takes per step: ``base + per_gpu·tensor_parallel + per_member·members`` seconds."""

    base: float = 0.0
    per_gpu: float = 0.0
    per_member: float = 0.0


# Residual of the step model against NVIDIA's whole-server runs of vLLM (ai-dynamo/aiconfigurator, silicon end to end,
# Llama-3.1-70B): 0.3-1.4 ms a step. The part per member is assumed.
ENGINE_HOST = Host(base=0.3e-3, per_gpu=0.1e-3, per_member=5e-6)

_US, _NS, _T, _G = 1e-6, 1e-9, 1e12, 1e9

# Fits to ai-dynamo/aiconfigurator's tables (Apache-2.0, NVIDIA): gemm (n, k >= 1024), generation attention (grouped
# queries, head size 128, vLLM 0.24 FlashAttention-3; A100: vLLM 0.14 FlashAttention-2), context attention, and vLLM's
# custom all-reduce under a CUDA graph. The fp8 rows were fitted here: products with a term for quantising the inputs,
# decode with an fp8 KV cache. SMs and memory: NVIDIA's data sheets.
_H200 = Gpu(
    name="h200",
    sms=132,
    memory_bytes=151_397_597_184,
    matmul=MatMul(4.15 * _US, 4.05 * _T, 796 * _T, 3.39),
    matmul_fp8=MatMul(6.93 * _US, 3.90 * _T, 1518 * _T, 1.21, 2.90e-12),
    decode=DecodeAttention(11.57 * _US, 27.21 * _NS, 4.00 * _T, 1.49),
    decode_fp8=DecodeAttention(13.33 * _US, 27.09 * _NS, 2.89 * _T, 1.025),
    prefill=PrefillAttention(13.2 * _US, 663 * _T, 1.47 * _T),
    all_reduce={
        2: AllReduce(4.5 * _US, 269 * _G),
        4: AllReduce(4.8 * _US, 200 * _G),
        8: AllReduce(5.3 * _US, 213 * _G),
    },
)
_H100 = Gpu(
    name="h100",
    sms=132,
    memory_bytes=85_899_345_920,
    matmul=MatMul(3.85 * _US, 2.94 * _T, 802 * _T, 3.18),
    matmul_fp8=MatMul(6.48 * _US, 2.80 * _T, 1257 * _T, 1.65, 2.79e-12),
    decode=DecodeAttention(11.58 * _US, 27.47 * _NS, 2.92 * _T, 1.74),
    decode_fp8=DecodeAttention(13.51 * _US, 27.17 * _NS, 2.59 * _T, 1.073),
    prefill=PrefillAttention(13.3 * _US, 673 * _T, 1.42 * _T),
    all_reduce={
        2: AllReduce(4.3 * _US, 262 * _G),
        4: AllReduce(4.8 * _US, 192 * _G),
        8: AllReduce(5.4 * _US, 201 * _G),
    },
)
_A100 = Gpu(
    name="a100",
    sms=108,
    memory_bytes=85_899_345_920,
    matmul=MatMul(6.08 * _US, 1.57 * _T, 267 * _T, 1.67),
    decode=DecodeAttention(17.27 * _US, 38.96 * _NS, 1.40 * _T, 3.4),
    prefill=PrefillAttention(11.2 * _US, 181 * _T, 0.83 * _T),
    all_reduce={
        2: AllReduce(5.0 * _US, 180 * _G),
        4: AllReduce(5.6 * _US, 119 * _G),
        8: AllReduce(6.7 * _US, 105 * _G),
    },
)
# Fitted here to casys-kaist/LLMServingSim's tables (MIT, KAIST; vLLM 0.19, eager, FlashAttention-2): products and head
# (RTX PRO 6000: weights of 100 MB and more, as smaller ones stay in its cache between repeats), uniform decode, prefill
# with and without history, mixed steps on a uniform grid. No all-reduce was published, so one GPU only. SMs, memory:
# NVIDIA's data sheets.
_RTX4090 = Gpu(
    name="rtx4090",
    sms=128,
    memory_bytes=25_769_803_776,
    matmul=MatMul(5.75 * _US, 0.943 * _T, 159.9 * _T, 2.38),
    decode=DecodeAttention(12.32 * _US, 25.04 * _NS, 0.914 * _T, 1.014),
    prefill=PrefillAttention(7.30 * _US, 146.8 * _T, 1.495 * _T, tile=64),
)
_RTXPRO6000 = Gpu(
    name="rtxpro6000",
    sms=188,
    memory_bytes=102_641_958_912,
    matmul=MatMul(6.56 * _US, 1.505 * _T, 406.5 * _T, 1.765),
    decode=DecodeAttention(12.64 * _US, 12.06 * _NS, 1.416 * _T, 1.0),
    prefill=PrefillAttention(7.02 * _US, 297.4 * _T, 1.854 * _T, tile=64),
)
GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu in (_H200, _H100, _A100, _RTX4090, _RTXPRO6000)}


@frozen
class LinkSpeed:
    """A way for KV, one direction of it: a copy of b bytes takes ``latency_s + b / bytes_per_s``.

    That each direction has less while both are busy is not modelled.
    """

    name: str
    bytes_per_s: float
    latency_s: float


_LINKS: tuple[LinkSpeed, ...] = (
    # NVIDIA/nvbandwidth's README prints 26 GB/s one way and 18.6 each when both run (GPU not named, Gen4 class); the
    # 10 us of a batch of copies are assumed.
    LinkSpeed("pcie4", 26 * _G, 10 * _US),
    # Assumed, not measured: 0.86 of the 64 GB/s of the specification.
    LinkSpeed("pcie5", 55 * _G, 10 * _US),
    # Fits to microsoft/vidur's send/recv measurements inside one node (A100 DGX, H100 DGX), one pair.
    LinkSpeed("nvlink3", 289 * _G, 13.6 * _US),
    LinkSpeed("nvlink4", 359 * _G, 7.7 * _US),
)
LINKS: Mapping[str, LinkSpeed] = {link.name: link for link in _LINKS}


def gpu_named(name: str) -> Gpu:
    """The preset of that name. Raises ConfigError listing the known ones."""
    if name not in GPUS:
        raise ConfigError(f"unknown GPU {show(name)}; known: {', '.join(GPUS)}")
    return GPUS[name]


def link_named(name: str) -> LinkSpeed:
    """The preset of that name. Raises ConfigError listing the known ones."""
    if name not in LINKS:
        raise ConfigError(f"unknown link {show(name)}; known: {', '.join(LINKS)}")
    return LINKS[name]


# What vLLM 0.19 kept back for activations and graphs on an RTX 4090 with Llama-3.1-8B, 2,048 tokens a step: its cache
# held 41,408 tokens (casys-kaist/LLMServingSim, bench), 1.7 GB less than 0.9 of the memory without the weights.
RESERVED_BYTES = 1_700_000_000


def kv_blocks(
    gpu: Gpu,
    model: Model,
    tensor_parallel: int = 1,
    block_size: int = 16,
    utilization: float = 0.9,
    reserved_bytes: int = RESERVED_BYTES,
) -> int:
    """Blocks of ``block_size`` tokens that fit into ``utilization`` of each GPU's memory beside the weights.

    ``reserved_bytes`` of it are left to activations and graphs. Raises ConfigError when not one block fits, saying how
    many bytes are missing, and for values out of range.
    """
    if not is_number(utilization, 0, 1) or not utilization:
        raise ConfigError(f"utilization must lie in (0, 1], got {show(utilization)}")
    if not is_count(block_size, 1):
        raise ConfigError(f"block_size must be at least 1, got {show(block_size)}")
    if not is_count(reserved_bytes):
        raise ConfigError(f"reserved_bytes must be at least 0, got {show(reserved_bytes)}")
    block_bytes = block_size * model.kv_bytes_per_token_on(tensor_parallel)
    room = int(gpu.memory_bytes * utilization) - model.weight_bytes_on(tensor_parallel) - reserved_bytes
    if room < block_bytes:
        raise ConfigError(
            f"{show(model.name)} at tensor_parallel={tensor_parallel} does not fit on {gpu.name}: "
            f"{block_bytes - room} bytes are missing for one KV block at utilization {utilization}; "
            "use more GPUs or a smaller number format"
        )
    return room // block_bytes

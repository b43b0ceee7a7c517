"""How a kernel is cut for the hardware: chosen by shape and width, so that the wanted programs fit on each processor.

One program for each of Hopper's processors cannot hide the memory's latency; three can (FlashInfer PR 4904: 2.40 to
3.30 TB/s by the size of the grid alone). What was chosen here was read off compiled code (``build``), not timed.
"""

from __future__ import annotations

from attrs import frozen

PER_PROCESSOR = 3  # decode programs wanted on each streaming multiprocessor at once


@frozen
class Options:
    """``tile`` tokens at a time, ``stages`` tiles in the pipeline, ``warps`` of 32 threads a program."""

    tile: int
    stages: int
    warps: int


def options(head_dim: int, item_bytes: int) -> Options:
    """For heads of ``head_dim`` values of ``item_bytes`` bytes: the largest tile whose program does not spill."""
    width = power(head_dim)
    tile = 64 if item_bytes == 2 and width <= 128 else max(16, min(64, 2048 // width))
    return Options(tile, stages=3, warps=4)


def power(count: int) -> int:
    """The next power of two, at least 16: the least that a matrix product takes."""
    return max(16, 1 << (count - 1).bit_length())

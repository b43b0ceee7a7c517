"""Scattered pages moved by one kernel, where pieces are too many or too small for copies one by one.

Page numbers lie on the device. The source may be pinned host memory: the GPU reads it in place. Whole pages of all
layers are megabytes, and plain copies (``memory.Copier``) leave the processors to decoding; which is quicker is for
calibration to say.
"""

from __future__ import annotations

import torch

from alignedsched.errors import ExecutorError

from .device import move_pages_kernel

PROGRAMS = 64  # enough for a link, few enough to leave room for decoding; not timed
BLOCK = 1024  # 4-byte words a piece


def move_pages(
    source: torch.Tensor, source_ids: torch.Tensor, target: torch.Tensor, target_ids: torch.Tensor,
    programs: int = PROGRAMS,
) -> None:  # fmt: skip
    """Copy page ``source_ids[i]`` of ``source`` to ``target_ids[i]`` of ``target`` (-1: skip). Ids are int64 [n].

    Both are [pages, ...], one page contiguous, pages any distance apart. Raises ExecutorError for pages that differ
    in shape or dtype, or are no multiple of four bytes.
    """
    if source.shape[1:] != target.shape[1:] or source.dtype != target.dtype:
        raise ExecutorError(f"pages {tuple(source.shape[1:])} of {source.dtype} do not fit {tuple(target.shape[1:])}")
    words, rest = divmod(source[0].numel() * source.element_size(), 4)
    if rest or not (source[0].is_contiguous() and target[0].is_contiguous()):
        raise ExecutorError(f"a page of {4 * words + rest} bytes is not a contiguous row of 4-byte words")
    read, written = (side.flatten(1).view(torch.int32) for side in (source, target))
    move_pages_kernel[(programs,)](
        read, source_ids, written, target_ids, len(source_ids), read.stride(0), written.stride(0),
        WORDS=words, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def gather_pages(source: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> None:
    """Page ``ids[i]`` of ``source`` becomes page i of ``target``: scattered pages into one stretch."""
    move_pages(source, ids, target, torch.arange(len(ids), device=ids.device))


def scatter_pages(source: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> None:
    """Page i of ``source`` becomes page ``ids[i]`` of ``target``: one stretch into scattered pages."""
    move_pages(source, torch.arange(len(ids), device=ids.device), target, ids)

"""The KV of one tier: pages that hold all layers, and which request has which.

A page is ``[layers, 2, kv_heads, page_size, head_dim]``: K and V of all layers for ``page_size`` tokens in one
contiguous stretch, the same on devices and in host memory, so that it moves as one large piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import define, field, frozen

from alignedsched.errors import ExecutorError
from alignedsched.request import RequestId

from ..devices import Device
from .pages import PageAllocator


@frozen
class PageShape:
    """What a page of a model holds."""

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[layers, 2, kv_heads, page_size, head_dim]."""
        return (self.layers, 2, self.kv_heads, self.page_size, self.head_dim)

    @property
    def bytes(self) -> int:
        """Of one page."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def pages(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_size)


@define(eq=False)
class Holding:
    """A request's pages in one pool. ``limbo``: given back, but a copy that is under way still touches them."""

    pages: list[int] = field(factory=list)
    copies: int = 0
    reach: int = 0  # pages from the first on that the copies touch
    limbo: list[int] = field(factory=list)


class KVPool:
    """One tier's pages. The scheduler has counted blocks before; here each of them gets its place.

    ``data``: [pages, layers, 2, kv_heads, page_size, head_dim].
    """

    def __init__(self, tier: str, device: Device, shape: PageShape, pages: int, *, pinned: bool = False) -> None:
        self.tier = tier
        self.device = device
        self.shape = shape
        size = (pages, *shape.shape)
        self.data: torch.Tensor = device.pinned(size, shape.dtype) if pinned else device.empty(size, shape.dtype)
        self._free = PageAllocator(pages)
        self._held: dict[RequestId, Holding] = {}

    @property
    def free(self) -> int:
        """Pages nobody has."""
        return self._free.free

    def pages(self, request: RequestId) -> list[int]:
        """A request's pages in the order of its tokens; empty for one that has none. Read-only by agreement."""
        held = self._held.get(request)
        return [] if held is None else held.pages

    def requests(self) -> tuple[RequestId, ...]:
        return tuple(self._held)

    def hold(self, request: RequestId, tokens: int) -> None:
        """Give a request pages for its first ``tokens`` tokens.

        Raises ExecutorError when they are not there: the plan was wrong, or this pool smaller than it was said to be.
        """
        held = self._held.get(request) or Holding()
        missing = self.shape.pages(tokens) - len(held.pages)
        if missing <= 0:
            return
        try:
            new = self._free.take(missing, held.pages[-1] if held.pages else None)
        except ExecutorError as error:
            raise ExecutorError(f"tier {self.tier!r}, request {request!r}: {error}") from error
        held.pages += new
        self._held[request] = held

    def hold_next(self, requests: Sequence[RequestId]) -> list[int]:
        """One page more for each of these, which all have some; the pages. With ExecutorError nobody gets one."""
        lists = [self._held[request].pages for request in requests]
        try:
            pages = self._free.take_next([pages[-1] for pages in lists])
        except ExecutorError as error:
            raise ExecutorError(f"tier {self.tier!r}, requests {', '.join(map(repr, requests))}: {error}") from error
        for held, page in zip(lists, pages, strict=True):
            held.append(page)
        return pages

    def keep(self, request: RequestId, tokens: int) -> None:
        """Give back what lies beyond a request's first ``tokens`` tokens; what a copy touches is free when it ends."""
        held = self._held.get(request)
        if held is None:
            return
        kept = self.shape.pages(tokens)
        touched = max(kept, held.reach)
        self._give(held.pages[touched:])
        held.limbo += held.pages[kept:touched]
        del held.pages[kept:]
        if not held.pages:
            del self._held[request]
        if not held.copies:
            self._settle(held)

    def forget(self, request: RequestId) -> None:
        """Give back all pages of a request."""
        self.keep(request, 0)

    def undo(self, request: RequestId, held: Holding, tokens: int) -> None:
        """A copy failed: give back what it would have filled behind the first ``tokens``, if it was not dropped."""
        if self._held.get(request) is held:
            self.keep(request, tokens)

    def touch(self, request: RequestId, change: int = 1, tokens: int | None = None) -> Holding:
        """A copy begins (+1) to touch a request's first ``tokens`` (None: all it has here now), or ends (-1).

        Whoever lets the request drop its pages meanwhile ends with ``leave``, naming what was returned here.
        """
        held = self._held[request]
        if change < 0:
            self.leave(held)
        else:
            held.copies += 1
            held.reach = max(held.reach, len(held.pages) if tokens is None else self.shape.pages(tokens))
        return held

    def leave(self, held: Holding) -> None:
        """A copy that touched it has ended."""
        held.copies -= 1
        if not held.copies:
            self._settle(held)

    def _settle(self, held: Holding) -> None:
        """No copy touches it any more."""
        self._give(held.limbo)
        held.limbo.clear()
        held.reach = 0

    def _give(self, pages: list[int]) -> None:
        if self.device.poisons:
            for page in pages:
                self.device.scribble(self.data[page])
        self._free.give(pages)

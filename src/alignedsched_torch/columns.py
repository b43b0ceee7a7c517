"""The device's half of a batch table, and the changes that the host sends it: one transfer for a step, or none."""

from __future__ import annotations

from itertools import chain
from struct import Struct
from typing import Any

import numpy as np
import torch
from attrs import define, field

from .job import Ids
from .sampling import Sampling

WORDS = 6  # of a slot, in the order of ``DeviceColumns``
REALS, BITS = Struct("=2d"), Struct("=2q")  # the last two of them


@define(eq=False)
class Delta:
    """Changes to the device's columns since the last step was launched. No place is written twice."""

    fresh: dict[int, tuple[int, int, Sampling]] = field(factory=dict)
    """Slot -> length, last token (-1: it is there), sampling."""
    places: list[Ids] = field(factory=list)
    """In the flattened column of pages."""
    pages: list[list[int]] = field(factory=list)
    """The page for each of these places."""

    def __bool__(self) -> bool:
        return bool(self.fresh or self.places)

    def packed(self) -> tuple[Ids, int, int, int]:
        """Slots, their words, places, pages in one array; how many slots, with known tokens (first), and pages."""
        slots = sorted(self.fresh, key=lambda slot: self.fresh[slot][1] < 0)
        n, known, pages = len(slots), 0, sum(map(len, self.pages))
        packed: Ids = np.empty((1 + WORDS) * n + 2 * pages, dtype=np.int64)
        if n:
            rows = [self.fresh[slot] for slot in slots]
            known = sum(token >= 0 for _, token, _ in rows)
            words = [(token, length, way.top_k, way.seed, *BITS.unpack(REALS.pack(way.temperature, way.top_p)))
                     for length, token, way in rows]  # fmt: skip
            packed[: (1 + WORDS) * n] = [*slots, *chain(*zip(*words, strict=True))]
        at = (1 + WORDS) * n
        for places, numbers in zip(self.places, self.pages, strict=True):
            end = at + len(places)
            packed[at:end], packed[at + pages : end + pages] = places, numbers
            at = end
        return packed, n, known, pages


class DeviceColumns:
    """The device's half of the table. Touched only by work on the compute stream.

    There is one slot more than the table has, ``spare``: its length stays 0; rows that pad a step to a fixed size name
    it. A slot's numbers are the columns of one array of words, the real ones by their bits, so that one write changes
    them all.
    """

    def __init__(self, device: torch.device, slots: int, pages: int) -> None:
        self.device = device
        self.spare = slots
        self._words = torch.zeros((WORDS, slots + 1), dtype=torch.int64, device=device)
        self.last, self.length, self.top_k, self.seed, temperature, top_p = self._words.unbind()
        self.temperature, self.top_p = temperature.view(torch.float64), top_p.view(torch.float64)
        self.pages = torch.zeros((slots + 1, pages), dtype=torch.int64, device=device)
        self._flat_pages = self.pages.view(-1)

    def apply(self, delta: Delta) -> None:
        """Write a delta into the columns: one transfer, a write for fresh rows (two for both kinds), one for pages."""
        packed, n, known, pages = delta.packed()
        slots, words, places, numbers = self.send(packed).split((n, WORDS * n, pages, pages))
        if known:
            self._words.index_copy_(1, slots[:known], words.view(WORDS, n)[:, :known])
        if known < n:
            self._words[1:].index_copy_(1, slots[known:], words.view(WORDS, n)[1:, known:])
        if pages:
            self._flat_pages.index_copy_(0, places, numbers)

    def send(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        """Numbers of the host on the device, without waiting; the caller writes over them no more."""
        host = torch.from_numpy(values)
        if self.device.type == "cuda":
            host = host.pin_memory()  # torch keeps it until the copy has run
        return host.to(self.device, non_blocking=True)

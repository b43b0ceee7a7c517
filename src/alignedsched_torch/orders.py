"""What a lane remembers of an order that took effect, and of a step on its way."""

from __future__ import annotations

import torch
from attrs import define, field

from alignedsched.plan import Chunk, Step
from alignedsched.request import RequestId

from .devices import Event
from .table import Batch


@define(eq=False)
class InForce:
    """An order that took effect: its first step, and what of it has been told."""

    step: Step
    first: int
    told: bool = False
    finished: list[tuple[RequestId, int]] = field(factory=list)
    prefilled: list[RequestId] = field(factory=list)
    seconds: float = 0.0
    ended: float | None = None  # its last step that has

    @property
    def last(self) -> int:
        return self.first + self.step.horizon - 1


@define(eq=False)
class Launched:
    """A step on its way."""

    number: int
    order: InForce
    batch: Batch
    chunks: tuple[Chunk, ...]
    tokens: torch.Tensor  # [rows + last chunks], on the host once ``event`` has fired
    event: Event
    began: float

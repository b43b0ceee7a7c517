"""The shipped policies, one file each; ``protocols`` says what a policy is."""

from __future__ import annotations

from .admission import ArrivalOrder
from .density_first import density_first
from .fcfs import ContinuousBatching, fcfs
from .protocols import (
    Admission,
    Batching,
    Composition,
    Evict,
    PlainData,
    Policy,
    Residency,
    Sacrifice,
    Take,
    Transfer,
)
from .residency import DirectResidency

__all__ = [
    "Admission",
    "ArrivalOrder",
    "Batching",
    "Composition",
    "ContinuousBatching",
    "DirectResidency",
    "Evict",
    "PlainData",
    "Policy",
    "Residency",
    "Sacrifice",
    "Take",
    "Transfer",
    "density_first",
    "fcfs",
]

"""The shipped policies, one file each; ``protocols`` says what a policy is."""

from __future__ import annotations

from .admission import ArrivalOrder
from .buckets import buckets
from .cost_aligned import cost_aligned
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
from .sjf import sjf, sjf_oracle
from .waves import waves

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
    "buckets",
    "cost_aligned",
    "density_first",
    "fcfs",
    "sjf",
    "sjf_oracle",
    "waves",
]

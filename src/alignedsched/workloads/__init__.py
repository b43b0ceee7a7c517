"""Workloads: trace readers, validation, columns, and synthesis from fitted shapes."""

from __future__ import annotations

from .columns import Ragged, Workload
from .describe import PERCENTILES, Description, describe
from .formats import FORMATS
from .readers import TraceReader, read_trace
from .rows import Row
from .shapes import SHAPES, workload
from .synthesis import Arrivals, Giant, Marginal, Shape, spread_ticks, synthesise

__all__ = [
    "FORMATS",
    "PERCENTILES",
    "SHAPES",
    "Arrivals",
    "Description",
    "Giant",
    "Marginal",
    "Ragged",
    "Row",
    "Shape",
    "TraceReader",
    "Workload",
    "describe",
    "read_trace",
    "spread_ticks",
    "synthesise",
    "workload",
]

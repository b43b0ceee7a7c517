"""What policies may see of one lane and of what waits for it; ``from_columns`` builds the same from arrays."""

from __future__ import annotations

from .columns import ColumnRank, ColumnView, from_columns
from .protocol import BatchReader, Entry, LaneView, PoolReader, Prefill, QueueReader, RankView

__all__ = [
    "BatchReader",
    "ColumnRank",
    "ColumnView",
    "Entry",
    "LaneView",
    "PoolReader",
    "Prefill",
    "QueueReader",
    "RankView",
    "from_columns",
]

"""What a run is judged by: latencies, bubbles, and a lower bound on its time. Formulas: `docs/metrics.md`."""

from .bounds import Bound, Lanes, bound, rate_for_load, work_seconds
from .bubbles import BubbleMeter, Idle, fractions
from .histogram import LogHistogram, summarize
from .latency import FIGURES, LatencyCollector
from .service import Objectives, goodput, longest_prompts, met

__all__ = [
    "FIGURES", "Bound", "BubbleMeter", "Idle", "Lanes", "LatencyCollector", "LogHistogram", "Objectives", "bound",
    "fractions", "goodput", "longest_prompts", "met", "rate_for_load", "summarize", "work_seconds",
]  # fmt: skip

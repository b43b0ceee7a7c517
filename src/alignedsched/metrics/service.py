"""Who was served how well: the longest prompts apart, and how many requests met their objectives.

A mean or a p99 over all requests can hide that a policy pays for the many with the few longest ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from ..errors import ConfigError
from ..outside import is_number, show
from .latency import LatencyCollector

LONGEST = 0.02  # the share of requests, by prompt length, that is looked at apart
Mask = npt.NDArray[np.bool_]


def _positive(instance: object, attribute: Any, value: Any) -> None:
    if not is_number(value, 0.0) or not value:
        raise ConfigError(f"Objectives: {attribute.name} must be finite seconds above 0, got {show(value)}")


@frozen
class Objectives:
    """What a client was promised: the first token after at most ``ttft_s``, then one every ``tpot_s`` on average.

    Raises ConfigError naming the one that is not finite seconds above 0.
    """

    ttft_s: float = field(validator=_positive)
    tpot_s: float = field(validator=_positive)


def longest_prompts(latency: LatencyCollector, share: float = LONGEST) -> Mask:
    """Which finished requests are the ``share`` with the longest prompts, shape (finished,); at least one if any.

    Of equal prompts those released first count as longer. O(n log n).
    """
    prompts = latency.finished_columns()["prompt"]
    chosen = np.zeros(len(prompts), dtype=bool)
    count = max(1, round(share * len(prompts)))
    chosen[np.argsort(-prompts, kind="stable")[:count]] = True
    return chosen


def met(latency: LatencyCollector, promised: Objectives) -> Mask:
    """Which finished requests met both objectives, shape (finished,); one token meets any ``tpot_s``. O(n)."""
    columns = latency.finished_columns()
    in_time = columns["first"] - columns["arrival"] <= promised.ttft_s
    pace = (columns["last"] - columns["first"]) / np.maximum(columns["tokens"] - 1, 1)
    return np.asarray(in_time & (pace <= promised.tpot_s), dtype=bool)


def goodput(latency: LatencyCollector, promised: Objectives, seconds: float) -> float:
    """Requests a second that met their objectives, over a run of ``seconds`` (0 where it took no time). O(n).

    Source of the term: DistServe (Zhong et al., OSDI 2024), section 1.
    """
    return float(met(latency, promised).sum()) / seconds if seconds > 0 else 0.0

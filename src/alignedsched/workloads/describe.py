"""What a workload looks like in a few figures: percentiles, means, joint shape, burstiness, imbalance."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from .columns import Floats, Ints, Workload

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)


@frozen
class Description:
    """Figures of a workload. Lengths in tokens; ``*_percentiles`` at ``PERCENTILES``.

    ``rank_correlation`` is Spearman's, of prompt and output length. ``output_by_prompt`` is the mean output of each
    tenth of the requests in order of prompt length, over the mean output. ``gap_cv`` is the standard deviation of
    the gaps between arrivals over their mean; ``fano_10s`` and ``fano_60s`` the variance of the arrivals in whole
    windows of that length over their mean (1 for a Poisson process); nan where the span holds fewer than two.
    """

    requests: int
    rate_per_s: float
    prompt_percentiles: tuple[float, ...]
    prompt_mean: float
    prompt_max: int
    output_percentiles: tuple[float, ...]
    output_mean: float
    output_max: int
    rank_correlation: float
    output_by_prompt: tuple[float, ...]
    gap_cv: float
    fano_10s: float
    fano_60s: float


def ranks(values: Ints | Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs. O(n log n)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared = ends - (counts + 1) / 2
    return np.asarray(shared[inverse], dtype=np.float64)


def rank_correlation(a: Ints | Floats, b: Ints | Floats) -> float:
    """Spearman's rank correlation; 0 where one of the two does not vary."""
    ra, rb = ranks(a), ranks(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()
    scale = float(np.sqrt((ra @ ra) * (rb @ rb)))
    return float(ra @ rb) / scale if scale > 0 else 0.0


def gap_cv(arrival_s: Floats) -> float:
    """Standard deviation of the gaps between arrivals over their mean; nan without two different arrivals."""
    gaps = np.diff(arrival_s)
    return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else float("nan")


def fano(arrival_s: Floats, window_s: float) -> float:
    """Variance over mean of the arrivals in whole windows of ``window_s`` seconds; nan with fewer than two windows."""
    windows = int((arrival_s[-1] - arrival_s[0]) // window_s) if len(arrival_s) else 0
    if windows < 2:
        return float("nan")
    index = ((arrival_s - arrival_s[0]) // window_s).astype(np.int64)
    counts = np.bincount(index[index < windows], minlength=windows)
    return float(counts.var() / counts.mean())


def output_by_prompt(workload: Workload, groups: int = 10) -> tuple[float, ...]:
    """Mean output of each of ``groups`` equal groups in order of prompt length, over the mean output."""
    order = np.argsort(workload.prompt_tokens, kind="stable")
    parts = np.array_split(workload.output_tokens[order], groups)
    mean = workload.output_tokens.mean()
    return tuple(float(part.mean() / mean) if len(part) else float("nan") for part in parts)


def describe(workload: Workload) -> Description:
    """The figures of a workload of at least one request (ValueError from numpy otherwise). O(n log n)."""
    prompt, output, arrival = workload.prompt_tokens, workload.output_tokens, workload.arrival_s
    return Description(
        requests=len(workload),
        rate_per_s=workload.rate_per_s,
        prompt_percentiles=tuple(np.percentile(prompt, PERCENTILES).tolist()),
        prompt_mean=float(prompt.mean()),
        prompt_max=int(prompt.max()),
        output_percentiles=tuple(np.percentile(output, PERCENTILES).tolist()),
        output_mean=float(output.mean()),
        output_max=int(output.max()),
        rank_correlation=rank_correlation(prompt, output),
        output_by_prompt=output_by_prompt(workload),
        gap_cv=gap_cv(arrival),
        fano_10s=fano(arrival, 10.0),
        fano_60s=fano(arrival, 60.0),
    )

"""Drawing a workload of any size from a shape: joint lengths by a grid copula, arrivals by gaps under a moving rate.

Every random figure is one uniform number of PCG64, put through an inverse distribution function: no rejection, so a
last-digit difference between platforms cannot shift the stream; tokens and microseconds are rounded, which hides it.
Each column has its own stream, so a longer workload begins with the shorter one of the same seed.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from attrs import evolve, frozen

from .columns import Floats, Ints, Workload

HOUR_S = 3600.0
# Tenths, the last one split: the longest few per cent carry much of the tokens, and who meets whom there matters.
EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@frozen
class Marginal:
    """A distribution of lengths by its quantiles: ``tokens[i]`` is the quantile at ``at[i]``, from 0 to 1.

    Between two figures the logarithm of the length is linear. Two equal lengths in a row are an atom.
    """

    at: tuple[float, ...]
    tokens: tuple[int, ...]

    def quantile(self, u: Floats) -> Ints:
        """Lengths (tokens, int64) at probabilities ``u``. O(len(u) log knots)."""
        logs = np.interp(u, self.at, np.log(np.array(self.tokens, dtype=np.float64)))
        return np.rint(np.exp(logs)).astype(np.int64)


@frozen
class Arrivals:
    """How requests arrive: ``rate_per_s`` on average, Weibull gaps of shape ``gap_shape`` (1: a Poisson process).

    The rate moves: each hour has ``levels`` stretches of equal length, whose rates are the quantiles of a lognormal
    law with mean 1 and coefficient of variation ``rate_cv``, in random order. So every hour carries the whole
    variation, and the figures of one hour depend little on the seed.
    """

    rate_per_s: float
    gap_shape: float = 1.0
    rate_cv: float = 0.0
    levels: int = 1


@frozen
class Giant:
    """One far longer request in each ``every``, at a random place among the first ``within`` of them."""

    prompt_tokens: int
    output_tokens: int
    every: int
    within: int


@frozen
class Shape:
    """What a workload is drawn from. ``source`` says where the figures come from.

    ``grid[i]`` are the chances, in 1/10,000, that a request whose prompt is in the i-th part by rank has an output in
    each such part by rank (a grid, or checkerboard, copula); ``edges`` part the ranks from 0 to 1. Empty: independent.
    """

    name: str
    source: str
    prompt: Marginal
    output: Marginal
    arrivals: Arrivals
    grid: tuple[tuple[int, ...], ...] = ()
    edges: tuple[float, ...] = EDGES
    giant: Giant | None = None


def output_rank(shape: Shape, prompt_rank: Floats, u: Floats) -> Floats:
    """The rank (0 to 1) of each output, given the rank of its prompt and a uniform number. O(n · parts).

    Within its part of the grid an output is uniform: the inverse of the row's piecewise linear distribution at ``u``.
    """
    if not shape.grid:
        return u
    band = np.searchsorted(shape.edges[1:-1], prompt_rank, side="right")
    rank = np.empty_like(u)
    for part, row in enumerate(shape.grid):
        chosen = band == part
        below = np.concatenate(([0.0], np.cumsum(row))) / sum(row)
        rank[chosen] = np.interp(u[chosen], below, shape.edges)
    return rank


def rate_levels(arrivals: Arrivals) -> Floats:
    """The hour's rates over the mean rate, ascending: mean 1 and coefficient of variation ``rate_cv`` exactly."""
    count = arrivals.levels
    if count == 1 or arrivals.rate_cv == 0.0:
        return np.ones(count)
    normal = NormalDist()
    scores = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]

    def levels(sigma: float) -> Floats:
        raw = np.array([math.exp(sigma * score) for score in scores])
        return np.asarray(raw / raw.mean())

    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if levels(middle).std() < arrivals.rate_cv else (low, middle)
    return levels((low + high) / 2)


def draw_arrivals(arrivals: Arrivals, gaps: np.random.Generator, order: np.random.Generator, n: int) -> Floats:
    """``n`` arrival times in seconds from 0, whole microseconds, never falling. O(n).

    A renewal process with Weibull gaps of mean 1 runs on the integral of the rate; its inverse gives the times.
    """
    if n == 0:
        return np.zeros(0)
    mean = math.gamma(1 + 1 / arrivals.gap_shape)
    steps = (-np.log1p(-gaps.random(n))) ** (1 / arrivals.gap_shape) / mean
    work = np.cumsum(steps)
    levels = rate_levels(arrivals)
    hours = int(work[-1] / (arrivals.rate_per_s * HOUR_S)) + 1
    shuffled = levels[np.argsort(order.random((hours, len(levels))), axis=1, kind="stable")].ravel()
    stretch = HOUR_S / len(levels)
    done = np.concatenate(([0.0], np.cumsum(shuffled * (stretch * arrivals.rate_per_s))))
    times = np.interp(work, done, np.arange(len(done)) * stretch)
    return np.asarray(np.round(times - times[0], 6))


def synthesise(shape: Shape, *, seed: int, n: int | None = None) -> Workload:
    """``n`` requests of a shape (None: an hour of its traffic), the same for the same seed. O(n).

    ``workload`` checks the arguments of users; here ``seed`` and ``n`` are integers of at least 0.
    """
    count = round(shape.arrivals.rate_per_s * HOUR_S) if n is None else n
    prompts, outputs, gaps, order, places = (
        np.random.Generator(np.random.PCG64(stream)) for stream in np.random.SeedSequence(seed).spawn(5)
    )
    rank = prompts.random(count)
    prompt = shape.prompt.quantile(rank)
    output = shape.output.quantile(output_rank(shape, rank, outputs.random(count)))
    if shape.giant is not None:
        giant = shape.giant
        first = np.arange(0, count, giant.every)
        at = first + (places.random(len(first)) * giant.within).astype(np.int64)
        at = at[at < count]
        prompt[at], output[at] = giant.prompt_tokens, giant.output_tokens
    return Workload(shape.name, draw_arrivals(shape.arrivals, gaps, order, count), prompt, output)


def spread_ticks(workload: Workload, *, seed: int = 0) -> Workload:
    """Arrivals that share a time stamp, spread at random up to the next stamp (the last ones over a typical tick).

    For traces with coarse clocks (Mooncake's ticks of about 3 s), before reading burstiness off them. O(n log n).
    """
    stamps, inverse = np.unique(workload.arrival_s, return_inverse=True)
    if len(stamps) < 2:
        return workload
    ticks = np.diff(stamps)
    length = np.append(ticks, np.median(ticks))[inverse]
    u = np.random.Generator(np.random.PCG64(seed)).random(len(workload))
    return evolve(workload, arrival_s=np.sort(workload.arrival_s + u * length))

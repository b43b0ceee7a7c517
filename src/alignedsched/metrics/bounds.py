"""A lower bound on the time of given work on given lanes: no scheduler, however clairvoyant, is faster.

A request of p prompt and o output tokens costs the prefill of p tokens, which gives the first token, and o - 1 decode
rows that read p + 1 to p + o - 1 tokens. Three facts bound the time (formulas in `docs/metrics.md`):

* the longest request: nobody ends before its arrival, its prefill and its decode steps alone in the lane;
* work: requests arriving from some moment on need their lane time after that moment, shared by all lanes. Lane time is
  bounded term by term (see `work`) over the fewest steps that members, tokens and KV blocks per step allow;
* sides: prefill work, and after it at least one request's decode; before any decode, at least one prefill.

Shared prefixes, copies and imbalance cost nothing here, and every rank counts as a lane of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from ..cluster import Cluster
from ..costs import Costs, Load
from ..errors import CallerError, ConfigError
from .work import FloatArray, IntArray, Terms, terms_of


def _least(minimum: int) -> Any:
    def validate(instance: object, attribute: Any, value: object) -> None:
        if type(value) is not int or value < minimum:
            raise ConfigError(f"Lanes.{attribute.name} must be an integer of at least {minimum}, got {value!r}")

    return validate


@frozen(kw_only=True)
class Lanes:
    """Lanes (ranks counted singly) by what they do, and the greatest limits any of them has.

    Raises ConfigError naming the field, or when nothing prefills or nothing decodes.
    """

    prefill: int = field(default=0, validator=_least(0))
    decode: int = field(default=0, validator=_least(0))
    both: int = field(default=0, validator=_least(0))
    max_members: int = field(default=256, validator=_least(1))
    max_tokens: int = field(default=8192, validator=_least(1))
    prefill_blocks: int = field(validator=_least(1))
    decode_blocks: int = field(validator=_least(1))
    block_size: int = field(default=16, validator=_least(1))

    def __attrs_post_init__(self) -> None:
        if not (self.prefill + self.both and self.decode + self.both):
            raise ConfigError(f"Lanes: something must prefill and something must decode, got {self}")

    @classmethod
    def of(cls, cluster: Cluster) -> Lanes:
        """The lanes of a cluster. O(ranks)."""
        counts = {"prefill": 0, "decode": 0, "both": 0}
        blocks = {"prefill": [1], "decode": [1]}
        for lane in cluster.lanes:
            role = cluster.role(lane)
            counts[role.value] += len(lane.ranks)
            sizes = [cluster.device[rank].kv_blocks for rank in lane.ranks]
            blocks["prefill"] += sizes if role.prefills else []
            blocks["decode"] += sizes if role.decodes else []
        return cls(
            **counts,
            max_members=max(lane.max_members for lane in cluster.lanes),
            max_tokens=max(lane.max_tokens for lane in cluster.lanes),
            prefill_blocks=max(blocks["prefill"]),
            decode_blocks=max(blocks["decode"]),
            block_size=cluster.layout.block_size,
        )


@frozen
class Bound:
    """``bound_s``: least seconds from the first arrival to the last token; ``work_s``: the same work's lane time over
    its lanes, as if everything were there at once and no request were long; ``request_s``: the longest request's term.
    """

    bound_s: float
    work_s: float
    request_s: float


def _counts(name: str, values: npt.ArrayLike) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise CallerError(f"{name} must be one row of whole numbers, got shape {array.shape}, dtype {array.dtype}")
    if array.size and int(array.min()) < 1:
        raise CallerError(f"{name}[{int(array.argmin())}] must be at least 1, got {int(array.min())}")
    return array.astype(np.int64)


class _Work:
    """Requests in order of arrival, their sums from each one on, and what they need on these lanes."""

    def __init__(self, arrival: npt.ArrayLike, prompt: npt.ArrayLike, output: npt.ArrayLike, lanes: Lanes) -> None:
        prompts, outputs = _counts("prompt", prompt), _counts("output", output)
        arrivals = np.asarray(arrival, dtype=np.float64)
        if not arrivals.shape == prompts.shape == outputs.shape:
            raise CallerError(f"arrival, prompt and output must be equally long, got shapes {arrivals.shape}, "
                              f"{prompts.shape}, {outputs.shape}")  # fmt: skip
        if not np.isfinite(arrivals).all():
            raise CallerError(f"arrival[{int(np.argmin(np.isfinite(arrivals)))}] must be finite")
        size = lanes.block_size
        for name, needed, blocks in (
            ("prefill", -(-prompts // size), lanes.prefill_blocks),
            ("decode", np.where(outputs > 1, -(-(prompts + outputs - 1) // size), 0), lanes.decode_blocks),
        ):
            if len(needed) and int(needed.max()) > blocks:
                raise CallerError(f"request {int(needed.argmax())} needs {int(needed.max())} blocks, no {name} device "
                                  f"has more than {blocks}: leave out what is rejected")  # fmt: skip
        order = np.argsort(arrivals, kind="stable")
        self.arrival, self.prompt, self.output = arrivals[order], prompts[order], outputs[order]
        decoded, last = self.output - 1, self.prompt + self.output - 1
        self.tokens = _from_each(self.prompt)
        self.requests = np.arange(len(order), 0, -1, dtype=np.float64)
        self.pairs_twice = _from_each(self.prompt.astype(np.float64) ** 2)
        self.rows = _from_each(decoded)
        self.read = _from_each(decoded * self.prompt + decoded * (decoded + 1) // 2)
        self.block_steps = _from_each(_blocks_up_to(last, size) - _blocks_up_to(self.prompt, size))
        chunks = -(-self.prompt // lanes.max_tokens)
        # Steps of all lanes: one request's steps are all different ones.
        self.prefill_steps = np.maximum(_most_from(chunks), np.ceil(self.tokens / lanes.max_tokens))
        per_step = min(lanes.max_members, lanes.max_tokens)
        by_members = np.ceil(self.rows / per_step)
        by_blocks = np.ceil(self.block_steps / lanes.decode_blocks)
        self.decode_steps = np.maximum(_most_from(decoded), np.maximum(by_members, by_blocks))
        both = np.ceil((self.tokens + self.rows) / lanes.max_tokens)
        self.steps = np.maximum(_most_from(chunks + decoded), np.maximum(both, self.decode_steps))

    def pairs(self, terms: Terms) -> FloatArray:
        return (self.pairs_twice + terms.half_pair * self.tokens) / 2.0

    def prefill_seconds(self, terms: Terms) -> FloatArray:
        """Least lane time of all prefill from each request on; shape (n,)."""
        gpu = terms.rows.least(self.tokens, self.prefill_steps) + terms.sampled.least(self.requests, self.prefill_steps)
        gpu += terms.prefill_attention(self.tokens, self.pairs(terms), self.prefill_steps)
        return terms.with_host(gpu, self.requests, self.prefill_steps)

    def decode_seconds(self, terms: Terms) -> FloatArray:
        """Least lane time of all decoding from each request on; shape (n,)."""
        gpu = terms.rows.least(self.rows, self.decode_steps) + terms.sampled.least(self.rows, self.decode_steps)
        gpu += terms.decode_attention(self.rows, self.read, self.decode_steps)
        return terms.with_host(gpu, self.rows, self.decode_steps)

    def all_seconds(self, terms: Terms) -> FloatArray:
        """Least lane time of everything, prefill and decode rows sharing steps; shape (n,)."""
        sampled = self.requests + self.rows
        gpu = terms.rows.least(self.tokens + self.rows, self.steps) + terms.sampled.least(sampled, self.steps)
        gpu += terms.prefill_attention(self.tokens, self.pairs(terms), self.prefill_steps)
        gpu += terms.decode_attention(self.rows, self.read, self.decode_steps)
        return terms.with_host(gpu, sampled, self.steps)

    def prefill_alone(self, terms: Terms, max_tokens: int) -> FloatArray:
        """Least time of each request's own prefill; shape (n,)."""
        prompt = self.prompt.astype(np.float64)
        steps = np.ceil(prompt / max_tokens)
        gpu = terms.rows.least(prompt, steps) + terms.sampled.least(steps, steps)
        gpu += terms.prefill_attention(prompt, prompt * (prompt + terms.half_pair) / 2.0, steps)
        return terms.with_host(gpu, steps, steps)


def decode_alone(prompt: IntArray, output: IntArray, costs: Costs) -> FloatArray:
    """Time of each request's own decode steps, alone in the lane, on the real surface; shape (n,), n at least 1.

    O(n + longest context).
    """
    last, stored = prompt + output - 1, int(prompt.min())
    steps = int(last.max()) - stored
    times = np.zeros(1)
    if steps:
        times = np.append(times, costs.finishing_times(Load(1, stored + 1, stored + 1), steps))
    alone: FloatArray = times[last - stored] - times[prompt - stored]
    return alone


def _from_each(values: npt.NDArray[np.generic]) -> FloatArray:
    """Sums from each position to the end."""
    return np.cumsum(values[::-1], dtype=np.float64)[::-1]


def _most_from(values: npt.NDArray[np.generic]) -> FloatArray:
    return np.asarray(np.maximum.accumulate(values[::-1])[::-1], dtype=np.float64)


def _least_from(values: FloatArray) -> FloatArray:
    return np.asarray(np.minimum.accumulate(values[::-1])[::-1], dtype=np.float64)


def _blocks_up_to(tokens: IntArray, size: int) -> IntArray:
    """Σ ceil(L / size) for L from 1 to ``tokens``."""
    whole, rest = tokens // size, tokens % size
    return np.asarray(size * whole * (whole + 1) // 2 + rest * (whole + 1), dtype=np.int64)


def _lane_seconds(work: _Work, costs: Costs, lanes: Lanes) -> tuple[FloatArray, FloatArray, FloatArray]:
    """From each request on, lane time over lanes: of prefill, of decode, of both together."""
    mixed = terms_of(costs, lanes.max_tokens)
    decode = mixed if lanes.both else terms_of(costs, min(lanes.max_members, lanes.max_tokens))
    return (
        work.prefill_seconds(mixed) / (lanes.prefill + lanes.both),
        work.decode_seconds(decode) / (lanes.decode + lanes.both),
        work.all_seconds(mixed) / (lanes.prefill + lanes.decode + lanes.both),
    )


def bound(arrival: npt.ArrayLike, prompt: npt.ArrayLike, output: npt.ArrayLike, costs: Costs, lanes: Lanes) -> Bound:
    """The bound for requests with these arrivals (seconds), prompt and output tokens, each of shape (n,), in any order.

    Give the work that was done: finished requests with the tokens they produced. O(n log n + longest context).
    Raises CallerError for unequal shapes, counts below 1, times that are not finite, a request that fits on no lane;
    ConfigError for costs of which no bound is known. All 0 without requests.
    """
    work = _Work(arrival, prompt, output, lanes)
    if not len(work.arrival):
        return Bound(0.0, 0.0, 0.0)
    prefill_s, decode_s, all_s = _lane_seconds(work, costs, lanes)
    since = work.arrival - work.arrival[0]
    prefill_alone = work.prefill_alone(terms_of(costs, lanes.max_tokens), lanes.max_tokens)
    decoding = decode_alone(work.prompt, work.output, costs)
    request_s = float(np.max(since + prefill_alone + decoding))
    # Whose prefill ends last still decodes; no decode starts before the first of them is prefilled.
    decodes = np.where(work.output > 1, since + prefill_alone, np.inf)
    first_decode = _least_from(decodes)
    first_decode = np.where(np.isfinite(first_decode), first_decode, 0.0)
    suffix = max(
        float(np.max(since + prefill_s + _least_from(decoding))),
        float(np.max(first_decode + decode_s)),
        float(np.max(since + all_s)),
    )
    work_s = max(float(prefill_s[0]), float(decode_s[0]), float(all_s[0]))
    # A simulation adds the same seconds in another order: leave it that much rounding.
    return Bound(max(request_s, suffix) * (1.0 - 1e-9), work_s, request_s)


def work_seconds(prompt: npt.ArrayLike, output: npt.ArrayLike, costs: Costs, lanes: Lanes) -> float:
    """``Bound.work_s`` alone. O(n). Raises as ``bound`` does."""
    work = _Work(np.zeros(len(np.asarray(prompt))), prompt, output, lanes)
    if not len(work.arrival):
        return 0.0
    return max(float(part[0]) for part in _lane_seconds(work, costs, lanes))


def rate_for_load(
    arrival: npt.ArrayLike, prompt: npt.ArrayLike, output: npt.ArrayLike, costs: Costs, lanes: Lanes, load: float
) -> float:
    """The factor on the arrival rate (divide arrival times by it) that makes ``work_s`` equal ``load`` times the span.

    The span runs from the first to the last arrival. Raises CallerError unless ``load`` is positive and finite and the
    arrivals span some time, and as ``bound`` does.
    """
    if not 0.0 < load < float("inf"):
        raise CallerError(f"load must be a positive number, got {load!r}")
    times = np.asarray(arrival, dtype=np.float64)
    if not times.size or not np.isfinite(times).all() or not float(np.ptp(times)) > 0.0:
        raise CallerError("load needs finite arrivals that span some time; these are all at once")
    if times.shape != np.asarray(prompt).shape:
        raise CallerError(f"arrival and prompt must be equally long, got shapes {times.shape}, {np.shape(prompt)}")
    return load * float(np.ptp(times)) / work_seconds(prompt, output, costs, lanes)

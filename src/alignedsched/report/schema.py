"""The form of a comparison's JSON, version 1, and the check that a result keeps it. In words: `docs/json.md`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import CallerError
from ..outside import is_count, is_number, show

VERSION = 1
_CLOSE = 1e-6  # relative distance allowed between a figure and the same one made from others


class _Leaf:
    """A value that is no object and no list: a test and the words for what it must be."""

    def __init__(self, words: str, test: Callable[[Any], bool]) -> None:
        self.words = words
        self.test = test


def _finite(value: Any) -> bool:
    return is_number(value)


_TEXT = _Leaf("a non-empty text", lambda v: type(v) is str and bool(v))
_FLAG = _Leaf("true or false", lambda v: type(v) is bool)
_COUNT = _Leaf("a whole number of at least 0", is_count)
_SOME = _Leaf("a whole number of at least 1", lambda v: is_count(v, 1))
_NUMBER = _Leaf("a finite number of at least 0", lambda v: _finite(v) and v >= 0)
_NUMBER_OR_NULL = _Leaf("a finite number of at least 0, or null", lambda v: v is None or (_finite(v) and v >= 0))
_FACTOR_OR_NULL = _Leaf("a finite number above 0, or null", lambda v: v is None or (_finite(v) and v > 0))
_FRACTION = _Leaf("a number from 0 to 1", lambda v: _finite(v) and 0 <= v <= 1)
_FRACTION_OR_NULL = _Leaf("a number from 0 to 1, or null", lambda v: v is None or (_finite(v) and 0 <= v <= 1))
_VERSION = _Leaf(f"{VERSION}", lambda v: type(v) is int and v == VERSION)

LATENCIES = ("ttft", "tpot", "tpot_decoding", "itl", "e2e", "pool_wait")
_LATENCY = dict.fromkeys(("mean", "p50", "p90", "p99", "max"), _NUMBER_OR_NULL)
_RUN: dict[str, Any] = {
    "policy": _TEXT,
    "requests": dict.fromkeys(("arrived", "finished", "cancelled", "rejected", "failed"), _COUNT),
    "output_tokens": _COUNT,
    "simulated_s": _NUMBER,
    "wall_s": _NUMBER,
    "steps": _COUNT,
    "events": _COUNT,
    "throughput_tok_s": _NUMBER,
    "latency_s": dict.fromkeys(LATENCIES, _LATENCY),
    "bubbles": dict.fromkeys(("iteration", "batch", "copy_stall"), _FRACTION),
    "copies": dict.fromkeys(("host_to_device_bytes", "device_to_host_bytes", "peer_bytes", "staged_bytes"), _COUNT),
    "preemptions": _COUNT,
    "bound_s": _NUMBER,
    "bound_ratio": _FRACTION_OR_NULL,
}
# A key that ends in "?" may be absent; every other one is there in each result; there are no further ones.
_RESULT: dict[str, Any] = {
    "version": _VERSION,
    "workload": {"name": _TEXT, "requests": _COUNT, "prompt_tokens": _COUNT, "output_tokens": _COUNT},
    "hardware": _TEXT,
    "model": _TEXT,
    "surface": _TEXT,
    "topology": _TEXT,
    "load": _FACTOR_OR_NULL,
    "seed": _COUNT,
    "lanes?": _SOME,
    "ranks?": _SOME,
    "rate_scale?": _FACTOR_OR_NULL,
    "offline?": _FLAG,
    "staging?": _FLAG,
    "runs": [_RUN],
}


def _fail(path: str, message: str) -> CallerError:
    return CallerError(f"{path or 'result'}: {message}")


def _walk(shape: Any, value: Any, path: str) -> None:
    if isinstance(shape, _Leaf):
        if not shape.test(value):
            raise _fail(path, f"must be {shape.words}, got {show(value)}")
    elif isinstance(shape, list):
        if not isinstance(value, list) or not value:
            raise _fail(path, f"must be a list with at least one entry, got {show(value)}")
        for index, entry in enumerate(value):
            _walk(shape[0], entry, f"{path}[{index}]")
    else:
        if not isinstance(value, Mapping):
            raise _fail(path, f"must be an object, got {show(value)}")
        known = {key.rstrip("?") for key in shape}
        for key in value:
            if key not in known:
                raise _fail(path, f"has an unknown key {show(key)}; known: {', '.join(sorted(known))}")
        for key, inner in shape.items():
            name = key.rstrip("?")
            if name in value:
                _walk(inner, value[name], f"{path}.{name}" if path else name)
            elif not key.endswith("?"):
                raise _fail(path, f"lacks the key {name!r}")


def _same(path: str, value: float, expected: float, how: str) -> None:
    if not math.isclose(value, expected, rel_tol=_CLOSE, abs_tol=1e-12):
        raise _fail(path, f"must be {how} = {expected!r}, got {value!r}")


def _check_latency(path: str, latency: Mapping[str, float | None]) -> None:
    missing = [part for part, value in latency.items() if value is None]
    if missing:
        if len(missing) != len(latency):
            raise _fail(path, f"is null in part ({', '.join(missing)}): either all of it is null or nothing")
        return
    previous = "0"
    bound = 0.0
    for part in ("p50", "p90", "p99", "max"):
        value = latency[part]
        assert value is not None
        if value < bound * (1 - _CLOSE):
            raise _fail(f"{path}.{part}", f"must not be below {previous} ({bound!r}), got {value!r}")
        previous, bound = part, value
    mean = latency["mean"]
    assert mean is not None
    if mean > bound * (1 + _CLOSE):
        raise _fail(f"{path}.mean", f"must not be above max ({bound!r}), got {mean!r}")


def _check_run(path: str, run: Mapping[str, Any], arrived: int) -> None:
    requests = run["requests"]
    ended = sum(number for how, number in requests.items() if how != "arrived")
    if requests["arrived"] != ended:
        raise _fail(f"{path}.requests", f"arrived {requests['arrived']}, but {ended} ended: each request ends once")
    if requests["arrived"] != arrived:
        raise _fail(f"{path}.requests.arrived", f"must be workload.requests ({arrived}), got {requests['arrived']}")
    simulated, ratio = run["simulated_s"], run["bound_ratio"]
    if simulated > 0:
        _same(f"{path}.throughput_tok_s", run["throughput_tok_s"], run["output_tokens"] / simulated, "tokens / time")
        if ratio is not None:
            _same(f"{path}.bound_ratio", ratio, run["bound_s"] / simulated, "bound_s / simulated_s")
    for kind in LATENCIES:
        _check_latency(f"{path}.latency_s.{kind}", run["latency_s"][kind])


def validate(result: object) -> None:
    """Check a comparison's result against the promised form, version 1.

    Besides names and types: every request of the workload ended once in every run, percentiles rise, the figures
    that follow from others do. Raises CallerError naming the path (``runs[1].latency_s.tpot.p99``). O(size).
    """
    _walk(_RESULT, result, "")
    assert isinstance(result, Mapping)
    for index, run in enumerate(result["runs"]):
        _check_run(f"runs[{index}]", run, result["workload"]["requests"])


def paths() -> Iterator[str]:
    """The path of every value in a result, list entries as ``[]``: what the documentation has to explain."""

    def inside(shape: Any, path: str) -> Iterator[str]:
        if isinstance(shape, _Leaf):
            yield path
        elif isinstance(shape, list):
            yield from inside(shape[0], f"{path}[]")
        else:
            for key, inner in shape.items():
                name = key.rstrip("?")
                yield from inside(inner, f"{path}.{name}" if path else name)

    yield from inside(_RESULT, "")

"""vLLM's requests as columns: the view that policies decide over. No type of vLLM is needed to read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...request import Request
from ..columns import DEVICE, HOST, TO_DEVICE, Resident

MOST = 2**40


def decodes(request: Any) -> bool:
    """Whether a running request's next step makes a token: its prompt is computed, or will be by steps under way."""
    return not request.is_prefill_chunk


def context_length(request: Any) -> int:
    """Tokens its next decode step reads, steps under way being done. O(1)."""
    return int(request.num_computed_tokens) + 1


def resident(running: Sequence[Any], held: Collection[Any], coming: Collection[Any]) -> Resident:
    """All requests with KV: running (whoever sits out too), held, and on their way back. O(requests).

    The columns that are read once are left out: whoever is here has queued before, and was told of then.
    """
    ids = [request.request_id for request in running]
    lengths = [request.num_computed_tokens + 1 for request in running]
    left = [request.num_tokens - request.num_computed_tokens if request.is_prefill_chunk else 0 for request in running]
    if any(left):
        lengths = [length + rest for length, rest in zip(lengths, left, strict=True)]
    if not (held or coming):
        return Resident(ids, lengths, left)
    away = [*held, *coming]
    ids += [request.request_id for request in away]
    lengths += [request.num_tokens for request in away]
    left += [0] * len(away)
    places = [DEVICE] * len(running) + [HOST] * len(held) + [TO_DEVICE] * len(coming)
    return Resident(ids, lengths, left, places)


def decode_line(scheduled: Mapping[str, int], requests: Mapping[str, Any], most: int) -> tuple[int, int, int, int]:
    """A step's line of the step log, without milliseconds: members, their tokens, the longest of them, prefill tokens.

    ``scheduled`` are the step's tokens by request, already counted as computed; ``most`` of them make a decode row
    (more than one with speculation). O(requests).
    """
    n = total = longest = prefill = 0
    for name, tokens in scheduled.items():
        request = requests[name]
        length = request.num_computed_tokens
        if tokens <= most and length - tokens >= request.num_prompt_tokens:
            n, total, longest = n + 1, total + length, max(longest, length)
        else:
            prefill += tokens
    return n, total, longest, prefill


def queued(request: Any, now: float) -> Request:
    """A request that waits in vLLM's queue. What is urgent to vLLM has a small priority; to policies, a large one."""
    limit = request.max_tokens
    return Request(
        request.request_id,
        max(1, request.num_prompt_tokens),
        limit if limit and limit < MOST else None,
        arrival=now,
        priority=-request.priority,
    )

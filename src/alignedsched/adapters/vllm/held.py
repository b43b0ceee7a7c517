"""Requests that are held out of vLLM's queues: preempted, their KV in the host, until a policy wants them back.

vLLM puts who is preempted at the front of its waiting queue and scans that queue at every step; whoever is only skipped
there costs each step some microseconds. So while a request is parked hard, the queue that gets it is this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Held:
    """An ordered table of requests by id, with the one method of vLLM's queues that a preemption calls."""

    def __init__(self) -> None:
        self._requests: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: object) -> bool:
        return request in self._requests

    def __iter__(self) -> Iterator[Any]:
        """Requests, longest here first."""
        return iter(self._requests.values())

    def prepend_request(self, request: Any) -> None:
        """Take a request in."""
        self._requests[request.request_id] = request

    def pop(self, request: str) -> Any | None:
        """Let a request go; None if it is not here."""
        return self._requests.pop(request, None)

"""Soft parks: a request stays among vLLM's running ones, its KV in the device, and is not scheduled for a while.

vLLM passes over a running request whose ``next_decode_eligible_step`` has not come; its own schedulers use that to
space decode steps. Whoever sits out has it far ahead, and gets the old value back: a park costs nothing a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NEVER = 2**62


class Sitting:
    """Who sits out. A request that vLLM preempts or ends is taken out with ``rise`` too."""

    def __init__(self) -> None:
        self._eligible: dict[str, tuple[Any, int]] = {}

    def __len__(self) -> int:
        return len(self._eligible)

    def __contains__(self, request: object) -> bool:
        return request in self._eligible

    def __iter__(self) -> Iterator[Any]:
        """Requests, longest out first."""
        return (request for request, _ in self._eligible.values())

    def sit(self, request: Any) -> None:
        """A request sits out from the next step on; harmless if it does already."""
        if request.request_id not in self._eligible:
            self._eligible[request.request_id] = (request, request.next_decode_eligible_step)
            request.next_decode_eligible_step = NEVER

    def rise(self, request: Any) -> bool:
        """A request may decode again; False if it did not sit out."""
        known = self._eligible.pop(request.request_id, None)
        if known is None:
            return False
        request.next_decode_eligible_step = known[1]
        return True

    def all_rise(self) -> None:
        """Everybody may decode again."""
        for request in list(self):
            self.rise(request)

"""What a real run came to, in the same figures as a simulated one: latencies, throughput, copies, preemptions.

Bubbles and the lower bound need to know what a step would cost; they are left out here.
"""

from __future__ import annotations

from typing import Any

from alignedsched.cluster import HOST
from alignedsched.events import Event
from alignedsched.metrics import LatencyCollector
from alignedsched.plan import Plan
from alignedsched.scheduler import Scheduler

from .executor import TorchExecutor


class Figures:
    """Fed with every call of the scheduler."""

    def __init__(self, latency: LatencyCollector, scheduler: Scheduler, executor: TorchExecutor) -> None:
        self._latency = latency
        self._scheduler = scheduler
        self._executor = executor
        self._events = 0
        self._first: float | None = None
        self._last = 0.0

    def observe(self, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        """Take in one call of the scheduler."""
        self._latency.observe(now, events, plan)
        self._events += len(events)
        self._first = now if self._first is None else self._first
        if plan.releases:
            self._last = now

    def summary(self) -> dict[str, Any]:
        """The figures up to the last request that ended; times in real seconds."""
        seconds = max(0.0, self._last - (self._first or 0.0))
        moved = self._executor.copier.copied_bytes
        tokens = self._latency.output_tokens
        return {
            "policy": self._scheduler.policy.name,
            "requests": self._latency.requests,
            "output_tokens": tokens,
            "wall_s": seconds,
            "steps": sum(lane.steps for lane in self._executor.lanes.values()),
            "events": self._events,
            "throughput_tok_s": tokens / seconds if seconds else 0.0,
            "latency_s": self._latency.summary(),
            "copies": {
                "host_to_device_bytes": sum(n for (source, _), n in moved.items() if source == HOST),
                "device_to_host_bytes": sum(n for (_, target), n in moved.items() if target == HOST),
                "peer_bytes": sum(n for ends, n in moved.items() if HOST not in ends),
                "staged_bytes": self._executor.copier.staged_bytes,
            },
            "preemptions": self._scheduler.counts["preemptions"],
        }

"""What a real run came to, in the same figures as a simulated one: latencies, throughput, bubbles, copies, the bound.

Times are measured. What imbalance cost, and the lower bound, need a surface: the engine's, else one fitted to the run's
own steps (``own_surface``), so without the engine's they are estimates.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from alignedsched.cluster import HOST, Cluster
from alignedsched.errors import CallerError
from alignedsched.events import Event, StepsDone
from alignedsched.load import Costs
from alignedsched.metrics import Lanes, LatencyCollector, bound
from alignedsched.plan import Plan
from alignedsched.scheduler import Scheduler

from .bubbles import Bubbles
from .loop import Serving


class Figures:
    """Fed with every call of the scheduler; its ``bubbles`` are a watch that the policy must have."""

    def __init__(self, cluster: Cluster, costs: Costs | None) -> None:
        self.bubbles = Bubbles(cluster, costs)
        self._cluster = cluster
        self._costs = costs
        self._latency = LatencyCollector(cluster)
        self._events = self._steps = 0
        self._through = dict.fromkeys(cluster.lane, -1)  # the last step reported
        self._first: float | None = None
        self._last = 0.0

    def observe(self, scheduler: Scheduler, now: float, events: tuple[Event, ...], plan: Plan) -> None:
        """Take in one call of the scheduler."""
        self._latency.observe(now, events, plan)
        self.bubbles.observe(scheduler, now, events)
        self._events += len(events)
        for event in events:
            if isinstance(event, StepsDone):
                self._steps += max(0, event.through - self._through[event.lane])
                self._through[event.lane] = max(self._through[event.lane], event.through)
        self._first = now if self._first is None else self._first
        if plan.releases:
            self._last = now

    def summary(self, scheduler: Scheduler, executor: Serving) -> dict[str, Any]:
        """The figures up to the last request that ended; times in real seconds."""
        seconds = max(0.0, self._last - (self._first or 0.0))
        moved = executor.copied_bytes
        tokens = self._latency.output_tokens
        return {
            "policy": scheduler.policy.name,
            "requests": self._latency.requests,
            "output_tokens": tokens,
            "wall_s": seconds,
            "steps": self._steps,
            "events": self._events,
            "throughput_tok_s": tokens / seconds if seconds else 0.0,
            "latency_s": self._latency.summary(),
            "bubbles": self.bubbles.shares(self._last),
            "copies": {
                "host_to_device_bytes": sum(n for (source, _), n in moved.items() if source == HOST),
                "device_to_host_bytes": sum(n for (_, target), n in moved.items() if target == HOST),
                "peer_bytes": sum(n for ends, n in moved.items() if HOST not in ends),
                "staged_bytes": executor.staged_bytes,
            },
            "preemptions": scheduler.counts["preemptions"],
            **self._bound(seconds),
        }

    def _bound(self, seconds: float) -> dict[str, float | None]:
        """The bound on the work that was done; None where no surface that has one is known."""
        fitted = self.bubbles.own.fitted()
        costs = self._costs if self._costs is not None else None if fitted is None else fitted[0]
        done = self._latency.finished_columns()
        least = None
        if costs is not None and len(done["tokens"]):
            with suppress(CallerError):  # measured tables have no bound
                least = bound(done["arrival"], done["prompt"], done["tokens"], costs, Lanes.of(self._cluster)).bound_s
        return {"bound_s": least, "bound_ratio": least / seconds if least is not None and seconds else None}

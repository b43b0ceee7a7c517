"""vLLM's schedulers with our policies: one mixin over its synchronous and its asynchronous one.

Nothing of vLLM's scheduling is copied. Before a step the mixin asks the policy (every ``look_every`` steps, or at once
where it is due) and marks: who sits out, who leaves for the host, who comes back, who is next in the queue. Then vLLM's
own ``schedule`` runs. Whom it preempts when blocks are short stays its choice, as do budgets, prefix caching, and
everything about speculation, grammars and encoders.

Progress: whoever is not named as parked decodes; a step in which nothing could run lets everybody go; a policy that
raises is switched off, loudly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import remove_all
from vllm.v1.request import RequestStatus

from ...errors import AlignedSchedError, ConfigError
from ..hooks import Decision, Hooks, Sacrifice
from ..step_log import StepLog
from . import WINDOW
from .groups import fill
from .held import Held
from .pace import Pace
from .rows import context_length, decode_line, decodes, queued, resident
from .settings import Settings, settings_of
from .sitting import Sitting

logger = init_logger(__name__)

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = object


class Aligned(_Base):  # type: ignore[misc]
    """The mixin. What it adds has names that begin with ``aligned``, so that they meet none of vLLM's."""

    running: list[Any]
    waiting: Any
    aligned_clock = staticmethod(time.monotonic)  # seconds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        settings = settings_of(config.additional_config)
        WINDOW.check(override=settings.any_version)
        super().__init__(*args, **kwargs)
        if self.lora_config:
            raise ConfigError("the alignedsched adapter for vLLM does not support LoRA: vLLM counts no parked adapters")
        self.aligned_settings = settings
        self.aligned_host = self.connector if hasattr(self.connector, "room") else None
        self.aligned_groups = max(1, len(self.kv_cache_config.kv_cache_groups))  # each takes blocks of the one pool
        self.aligned_hooks: Hooks | None = self._aligned_hooks(settings)
        self.aligned_sitting = Sitting()
        self.aligned_held = Held()
        self.aligned_coming: dict[str, Any] = {}  # KV in the host, on the way back through vLLM's queue
        self.aligned_queued: set[str] = set()  # of whom the hooks know that they queue
        self.aligned_pace = Pace(None if settings.step_log is None else StepLog(settings.step_log))
        self.aligned_sizes = sorted(self.vllm_config.compilation_config.cudagraph_capture_sizes or ())
        self.aligned_last: Decision | None = None
        self.aligned_again = False  # it has to be done once more, or what is left of it
        self.aligned_next = 0  # the step before which to decide
        self.aligned_counts = dict.fromkeys(("applied", "sat_out", "to_host", "to_device", "let_go"), 0)

    def _aligned_hooks(self, settings: Settings) -> Hooks:
        host = self.aligned_host
        return Hooks(
            settings.make_policy(),
            block_size=self.block_size,
            capacity_blocks=max(1, (self.kv_cache_config.num_blocks - 1) // self.aligned_groups),
            max_members=min(self.max_num_running_reqs, self.max_num_active_reqs),
            max_tokens=self.max_num_scheduled_tokens,
            host_blocks=0 if host is None else host.blocks,
            costs=settings.read_costs(),
        )

    # -- a step

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """One step of vLLM over whoever the policy lets decode; O(1) beside it but for every ``look_every``-th step."""
        now = self.aligned_clock()
        pace = self.aligned_pace
        pace.begin(now, bool(self.running))
        if self.aligned_hooks is not None and self._aligned_due(now):
            self._aligned_look(now)
        output = super().schedule(throttle_prefills)
        scheduled, tokens = output.num_scheduled_tokens, output.total_num_scheduled_tokens
        logs = pace.log is not None and tokens
        pace.end(len(scheduled), tokens, self._aligned_line(scheduled) if logs else None)
        if not tokens and (self.aligned_sitting or self.aligned_held):
            self._aligned_let_go()
        return output

    def _aligned_line(self, scheduled: dict[str, int]) -> tuple[int, int, int, int]:
        return decode_line(scheduled, self.requests, 1 + self.num_spec_tokens)

    def _aligned_due(self, now: float) -> bool:
        """Whether to decide before this step. O(1)."""
        if self._pause_state == PauseState.PAUSED_ALL:
            return False
        last, sitting = self.aligned_last, len(self.aligned_sitting)
        nobody = sitting >= len(self.running) and (sitting or len(self.aligned_held))
        late = last is not None and last.wake_at is not None and now >= last.wake_at
        return bool(self.current_step >= self.aligned_next or nobody or late)

    def _aligned_look(self, now: float) -> None:
        """Tell the hooks what there is, and do what they say. O(running + held)."""
        hooks, host = self.aligned_hooks, self.aligned_host
        assert hooks is not None
        self.aligned_next = self.current_step + self.aligned_settings.look_every
        coming = self.aligned_coming
        for name in [name for name, request in coming.items() if request.status == RequestStatus.RUNNING]:
            del coming[name]
        columns = resident(self.running, self.aligned_held, tuple(coming.values()))
        self.aligned_queued.difference_update(columns.ids)
        decision = self._aligned_ask(
            hooks.decide,
            now,
            columns,
            free_blocks=self.kv_cache_manager.block_pool.get_num_free_blocks() // self.aligned_groups,
            free_host_blocks=0 if host is None else host.room.free,
            seconds=self.aligned_pace.take(),
        )
        if decision is None:
            return
        if decision is not self.aligned_last:  # else nothing has changed
            self.aligned_last, self.aligned_again = decision, True
            self.aligned_queued.update(name for name, how in decision.victims if how is Sacrifice.RECOMPUTE)
        if self.aligned_again:
            self.aligned_again = False
            self._aligned_apply(decision)

    def _aligned_ask(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the hooks answer; None once they have failed, which lets everybody go and asks them no more."""
        try:
            return call(*args, **kwargs)
        except AlignedSchedError:
            logger.exception("alignedsched is switched off: from here on vLLM schedules as it does by itself")
            self.aligned_hooks = None
            self._aligned_let_go()
            return None

    # -- what a decision does

    def _aligned_apply(self, decision: Decision) -> None:
        sitting, counts = self.aligned_sitting, self.aligned_counts
        counts["applied"] += 1
        out = self._aligned_out(decision)
        for request in self.running if out or sitting else ():
            if request.request_id not in out:
                sitting.rise(request)
            elif request.request_id not in sitting:
                sitting.sit(request)
                counts["sat_out"] += 1
        for name in reversed(decision.to_device):
            request = self.aligned_held.pop(name)
            if request is not None:
                self._aligned_back(request)
                counts["to_device"] += 1
        self._aligned_leave([name for name in decision.to_host if name in out])
        if decision.prefill and self.policy == SchedulingPolicy.FCFS:
            self._aligned_queue([take.request for take in decision.prefill if take.request in self.aligned_queued])

    def _aligned_out(self, decision: Decision) -> set[str]:
        """Who does not decode: those named, but for whom vLLM's priorities or a graph's spare rows call in."""
        out = {*decision.parked, *decision.to_host}
        if not out:
            return out
        members = [r for r in self.running if r.request_id not in out and decodes(r)]
        parked = [r for r in self.running if r.request_id in out]
        if self.policy == SchedulingPolicy.PRIORITY and members:
            lowest = max(request.priority for request in members)  # the greatest number is the least urgent
            called = [request for request in parked if request.priority < lowest]
            members += called
            out.difference_update(request.request_id for request in called)
        if self.aligned_settings.fill_graphs and self.aligned_sizes and members:
            lengths = ((context_length(r), r.request_id) for r in parked if r.request_id in out)
            riders = fill(len(members), max(map(context_length, members)), lengths, self.aligned_sizes)
            out.difference_update(riders)
        return out

    def _aligned_queue(self, first: list[str]) -> None:
        """Who begins next goes to the front of vLLM's queue, behind whoever was preempted. O(queue) if they move."""
        again = list(takewhile(lambda request: request.status == RequestStatus.PREEMPTED, self.waiting))
        if [request.request_id for request in islice(self.waiting, len(again), len(again) + len(first))] == first:
            return
        requests = [self.requests[name] for name in first if self.requests[name].status == RequestStatus.WAITING]
        self.waiting.remove_requests({*again, *requests})
        for request in reversed([*again, *requests]):
            self.waiting.prepend_request(request)

    # -- to the host and back

    def _aligned_leave(self, names: Iterable[str]) -> None:
        """Hard parks, of those that sit out and have no step under way; for the others there is another time."""
        gone: set[Any] = set()
        waiting, self.waiting = self.waiting, self.aligned_held
        try:
            for request in map(self.requests.__getitem__, names):
                if self._aligned_may_leave(request):  # asked one by one: each takes room in the host
                    self._preempt_request(request, self.aligned_clock())
                    gone.add(request)
                else:
                    self.aligned_again = True
        finally:
            self.waiting = waiting
        self.running = remove_all(self.running, gone)
        self.aligned_counts["to_host"] += len(gone)

    def _aligned_may_leave(self, request: Any) -> bool:
        name, host = request.request_id, self.aligned_host
        return (
            host is not None
            and name in self.aligned_sitting
            and not request.num_in_flight_tokens
            and not request.resumable  # a session, whose KV vLLM itself keeps between turns
            and not request.skip_reading_prefix_cache  # its prompt would be computed again to be scored
            and host.room.fits(name, request.num_computed_tokens)
        )

    def _aligned_back(self, request: Any) -> None:
        """A held request goes to the front of vLLM's queue."""
        self.waiting.prepend_request(request)
        self.aligned_coming[request.request_id] = request

    def _aligned_let_go(self) -> None:
        """Everybody may decode again, and whoever is held queues; nothing is decided for a while."""
        self.aligned_sitting.all_rise()
        for request in reversed(list(self.aligned_held)):
            self.aligned_held.pop(request.request_id)
            self._aligned_back(request)
        self.aligned_again = True
        self.aligned_next = self.current_step + self.aligned_settings.look_every
        self.aligned_counts["let_go"] += 1

    def _aligned_save(self, request: Any) -> bool:
        """Keep in the host what a request has computed, steps under way not counted. False if nothing is kept."""
        host, tokens = self.aligned_host, request.num_computed_tokens - request.num_in_flight_tokens
        if host is None or tokens <= 0 or request.resumable:
            return False
        return bool(host.save(request.request_id, self.kv_cache_manager.get_block_ids(request.request_id)[0], tokens))

    # -- what vLLM does by itself

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        """A preemption by vLLM, or a hard park: the KV goes to the host where that has room."""
        self.aligned_sitting.rise(request)
        kept = self._aligned_save(request)
        super()._preempt_request(request, *args, **kwargs)
        name = request.request_id
        if self.waiting is self.aligned_held:
            return
        if kept and request.num_output_tokens:
            self.aligned_coming[name] = request
        else:
            self._aligned_tell_queued(request)

    def _aligned_tell_queued(self, request: Any) -> None:
        name = request.request_id
        if self.aligned_hooks is not None and name not in self.aligned_queued:
            self.aligned_queued.add(name)
            told = queued(request, self.aligned_clock())
            self._aligned_ask(self.aligned_hooks.enqueue, told, produced=request.num_output_tokens)

    def add_request(self, request: Any) -> None:
        """See vLLM."""
        fresh = request.request_id not in self.requests
        super().add_request(request)
        if fresh:
            self._aligned_tell_queued(request)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """A request has ended, however that came."""
        name = request.request_id
        self.aligned_sitting.rise(request)
        self.aligned_held.pop(name)
        self.aligned_coming.pop(name, None)
        self.aligned_queued.discard(name)
        if self.aligned_hooks is not None:
            finished = request.status in (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
            self._aligned_ask(self.aligned_hooks.end, name, produced=request.num_output_tokens, finished=finished)
        return super()._free_request(request, *args, **kwargs)

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting; whoever is held waits."""
        running, waiting = super().get_request_counts()
        return running, waiting + len(self.aligned_held)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """See vLLM. Where running requests start over, the KV of those in the host is void, too."""
        if reset_running_requests:
            self._aligned_let_go()
        done = bool(super().reset_prefix_cache(reset_running_requests, reset_connector))
        if reset_running_requests and self.aligned_host is not None:
            self.aligned_host.reset_cache()
        return done

    def shutdown(self) -> None:
        """See vLLM."""
        if self.aligned_pace.log is not None:
            self.aligned_pace.log.close()
        super().shutdown()


class AlignedScheduler(Aligned, Scheduler):  # type: ignore[misc]
    """For ``--no-async-scheduling``, and for platforms without overlapped scheduling."""


class AlignedAsyncScheduler(Aligned, AsyncScheduler):  # type: ignore[misc]
    """For overlapped scheduling, which is vLLM's default on GPUs."""

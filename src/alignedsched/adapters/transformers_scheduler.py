"""A scheduler of transformers' continuous batching that asks our policies; see ``transformers`` beside this file.

What the engine does stays the engine's: budgets, blocks, prefix matches and changes of status are those of
``Scheduler._process_candidates``, copies to the host and back those of its ``OffloadingManager``. Decided here is who
its candidates are, in which order, and who makes room.

A policy decides a *common step*: who decodes by one token, and whose prefill goes on. Where attention is packed, it is
run in parts (``transformers_parts``), one step of the engine each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from attrs import frozen
from transformers.generation.continuous_batching import distributed
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler

from ..errors import ConfigError
from ..load import Costs
from ..policies.protocols import Policy
from ..registry import policy as policy_named
from ..request import Request, RequestId
from .hooks import DEVICE, HOST, Decision, Hooks, Resident
from .step_log import StepLog
from .transformers_costs import PackedCosts, PackedFit
from .transformers_parts import parts

Batch = tuple[list[FutureRequestState] | None, bool, int, int]
TRIES = 8  # common steps parted before it is known whether that pays, so that it can be known


@frozen
class Settings:
    """What ``register`` was told; see there."""

    policy: str
    options: Mapping[str, Any]
    costs: Costs | None = None
    parts: bool | None = None
    log: StepLog | None = None
    clock: Callable[[], float] = time.perf_counter

    @property
    def packed(self) -> PackedCosts | None:
        """The costs, if they are of packed attention."""
        return self.costs if isinstance(self.costs, PackedCosts) else None

    def policy_made(self) -> Policy:
        """A policy of its own for each engine: policies have a memory."""
        options = dict(self.options)
        if self.policy == "cost_aligned" and self.packed is not None:
            options.setdefault("refit", False)  # what it corrects costs by knows nothing of packed attention
        return policy_named(self.policy, **options)

    def parted(self, cache: PagedAttentionCache) -> bool:
        """Whether common steps are run in parts: as told, or where that was tested."""
        if self.parts is not None:
            return self.parts
        packs = str(cache.config._attn_implementation).removeprefix("paged|") in ("sdpa", "eager")
        return packs and str(cache.device) == "cpu" and (self.costs is None or self.packed is not None)


@frozen
class Part:
    """Who takes part in one engine step, and the query rows planned for them."""

    states: list[RequestState]
    rows: int


class AlignedScheduler(FIFOScheduler):
    """The scheduler that transformers makes; ``register`` derives a class with settings for it.

    ``common_steps`` are the policy's, ``steps`` the engine's; ``plain_steps`` of them were decided by transformers' own
    means, because nothing the policy chose could go on. ``fit.costs`` is what steps are believed to cost.
    """

    settings: ClassVar[Settings]
    started: ClassVar[int] = 0  # schedulers that engines have made of this class

    def __init__(self, cache: PagedAttentionCache, safety_margin: float | None, max_requests_per_batch: int) -> None:
        _check(cache)
        super().__init__(cache, safety_margin, max_requests_per_batch)
        type(self).started += 1

    def reset(self) -> None:
        """Start anew; the engine calls this at its start, and where a manager is used again."""
        super().reset()
        settings, cache = self.settings, self.cache
        self._allocator = cache.cache_allocators[FULL_ATTENTION]
        self._parted = settings.parted(cache)
        self.fit = PackedFit(settings.packed)
        self._learns = self._parted and settings.packed is None
        # Only ratios of costs matter for parts. On a CPU a thread's own time has them without what others do meanwhile.
        own = str(cache.device) == "cpu" and sys.platform != "win32" and settings.clock is time.perf_counter
        self._effort = time.thread_time if own else settings.clock
        self._hooks = Hooks(
            settings.policy_made(),
            block_size=self._allocator.tokens_per_page,
            capacity_blocks=cache.num_blocks,
            max_members=self.max_requests_per_batch,
            max_tokens=cache.max_batch_tokens,
            costs=None if self._parted else settings.costs,
        )
        self._began = settings.clock()
        self._decision = Decision()
        self._left: list[Part] = []  # parts of the common step that have not run
        self._in_host: dict[RequestId, RequestState] = {}
        self._starved: dict[RequestId, tuple[RequestState, int]] = {}
        self._running: tuple[float, float, list[FutureRequestState], int, int] | None = None
        self._spent = 0.0  # seconds of the parts that have run
        self._tries = TRIES
        self.common_steps = self.steps = self.plain_steps = 0

    # -- what the engine tells

    def add_waiting_request(self, state: RequestState) -> None:
        """A request waits: a new one, or one whose KV was dropped or copied to the host."""
        super().add_waiting_request(state)
        request = state.request_id
        if state.is_cpu_offloaded:
            self._in_host[request] = state
            return
        prompt = state._true_initial_tokens or len(state.initial_tokens)
        if not state._true_initial_tokens:
            self._hooks.end(request)  # a new one may have the id of one that has just finished
        elif any(request == victim for victim, _ in self._decision.victims):
            return  # the hooks gave it up themselves
        asked = Request(request, prompt, state.max_new_tokens, arrival=max(0.0, self.settings.clock() - self._began))
        self._hooks.enqueue(asked, produced=len(state.initial_tokens) - prompt)

    def clear_cancelled_requests(self) -> list[RequestState]:
        """Forget whoever was cancelled."""
        cancelled: list[RequestState] = super().clear_cancelled_requests()
        for state in cancelled:
            self._hooks.end(state.request_id, finished=False)
        return cancelled

    def has_pending_requests(self) -> bool:
        """Whether anything waits or runs; if not, what follows the last step is no part of it."""
        pending: bool = super().has_pending_requests()
        if not pending:
            self._running = None
        return pending

    # -- one engine step

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Batch:
        """The next part of the common step, or of a new one; as the engine's own scheduler where none can go on."""
        now, effort = self.settings.clock(), self._effort()
        self._measure(now, effort)
        batch = self._next_part(token_budget, cache_budget)
        if batch is None:
            self._plan(now)
            batch = self._next_part(token_budget, cache_budget) or self._plainly(token_budget, cache_budget)
        scheduled, _, rows, keys = batch
        if scheduled:
            self.steps += 1
            self._running = (now, effort, scheduled, rows, keys + rows)
        return batch

    def _measure(self, now: float, effort: float) -> None:
        """The step since the last call has ended."""
        if self._running is None:
            return
        (began, before, scheduled, rows, keys), self._running = self._running, None
        seconds = now - began
        self._spent += seconds
        if self._learns:
            self.fit.add(rows, keys, effort - before)
        log = self.settings.log
        if log is not None:
            lengths = [one.state.position_offset for one in scheduled if one.query_length == 1]
            log.step(len(lengths), sum(lengths), max(lengths, default=0), rows - len(lengths), 1e3 * seconds)

    def _next_part(self, token_budget: int, cache_budget: int) -> Batch | None:
        """The first part left of which anybody can be scheduled."""
        while self._left:
            part = self._left.pop(0)
            states = [state for state in part.states if self._here(state)]
            if not states:
                continue
            gone: set[RequestId] = set()
            tokens = min(part.rows, token_budget)  # whoever comes back from the host is not in the policy's budget
            scheduled, _, fast, rows, keys = self._process_candidates(states, tokens, cache_budget, gone)
            if gone:
                self._cleanup_waiting_queue(gone)
            self._starved.update((state.request_id, (state, need)) for state, need in self.starved_requests)
            if scheduled:
                self.starved_requests = self._in_order_of_sacrifice(scheduled)
                return scheduled, fast, rows, keys
        return None

    def _here(self, state: RequestState) -> bool:
        """Whether a planned request is still as it was planned: it may have ended, left or been cancelled since."""
        request = state.request_id
        if self.active_requests.get(request) is state:
            return True
        return self.waiting_requests.get(request) is state and not self.block_new_requests

    def _plainly(self, token_budget: int, cache_budget: int) -> Batch:
        """First come, first served by the engine's own means: never an empty batch while it would make one."""
        self.plain_steps += 1
        batch: Batch = super().schedule_batch(token_budget, cache_budget)
        self._starved.update((state.request_id, (state, need)) for state, need in self.starved_requests)
        self.starved_requests = self._in_order_of_sacrifice(batch[0] or [])
        return batch

    def _in_order_of_sacrifice(self, scheduled: Iterable[FutureRequestState]) -> list[tuple[RequestState, int]]:
        """Who lacks blocks, and whom the policy gives up for them; the engine takes them from the end.

        It stops as soon as all that are left can go on. Whoever is in the batch is never touched.
        """
        if not self._starved:
            return []
        running = {one.state.request_id for one in scheduled}
        rows = {request: self._starved[request] for request in self.active_requests if request in self._starved}
        for victim, _ in reversed(self._decision.victims):
            state = self.active_requests.get(victim)
            if state is not None:
                rows[victim] = rows.pop(victim, (state, 0))
        self._starved.clear()
        return [row for request, row in rows.items() if request not in running]

    # -- one common step

    def _plan(self, now: float) -> None:
        """Ask the policy for the next common step, and plan its parts."""
        if not self.active_requests:
            self.block_new_requests = False  # the engine waits for an end, and whoever ran was cancelled
        self._decision = decision = self._hooks.decide(
            max(0.0, now - self._began),
            self._columns(),
            free_blocks=self._spare() + len(self._allocator.ledger.cached_blocks),
            seconds=self._spent,
        )
        self._spent = 0.0
        self.common_steps += 1
        rows: dict[RequestId, tuple[RequestState, int]] = {}
        for request in decision.decode:
            state = self.active_requests.get(request)
            if state is not None and state.status == RequestStatus.DECODING:
                rows[request] = (state, 1)
        decoding = len(rows)
        if not decoding or self._try_to_meet_safety_margin():
            back = ((request, 1) for request in decision.to_device)
            for request, tokens in (*back, *((take.request, take.tokens) for take in decision.prefill)):
                state = self.active_requests.get(request)
                if state is None and not self.block_new_requests:
                    state = self.waiting_requests.get(request)
                if state is not None and state.remaining_prefill_tokens:
                    rows[request] = (state, min(tokens, len(state.remaining_prefill_tokens)))
        self._free_for(rows.values())
        self._left = self._split(list(rows.values()), decoding)

    def _split(self, rows: list[tuple[RequestState, int]], decoding: int) -> list[Part]:
        """The common step in parts. The first ``decoding`` rows decode; they go first within a part too."""
        costs, count = self.fit.costs, len(rows)
        if not self._parted or not count:
            split = [list(range(count))] if count else []
        elif costs is not None:
            queries = [tokens for _, tokens in rows]
            split = parts(queries, [state.position_offset + tokens for state, tokens in rows], costs)
        elif self._tries and 0 < decoding < count:
            self._tries -= 1
            split = [list(range(decoding)), list(range(decoding, count))]
        else:
            split = [list(range(count))]
        return [Part([rows[i][0] for i in sorted(some)], sum(rows[i][1] for i in some)) for some in split]

    def _free_for(self, rows: Iterable[tuple[RequestState, int]]) -> None:
        """Blocks kept for prefixes make room for the step, as they do in the engine where nothing can go on."""
        if not self._allocator.ledger.cached_blocks:
            return
        needs = self._allocator.needs_new_blocks
        short = sum(needs(state.request_id, state.position_offset, tokens) for state, tokens in rows) - self._spare()
        if short > 0:
            self.cache.evict_cached_blocks()

    def _columns(self) -> Resident:
        """Whose KV exists: on the device, in the order in which they began, and in the host. O(requests)."""
        ids, lengths, left, places = [], [], [], []
        prefilling, decoding = False, RequestStatus.DECODING
        for request, state in self.active_requests.items():
            ids.append(request)
            more = 0 if state._status == decoding else len(state.remaining_prefill_tokens)
            prefilling = prefilling or more > 0
            left.append(more)
            lengths.append(state.position_offset + more + 1)
            places.append(DEVICE)
        for request, state in self._offloaded():
            more = len(state.remaining_prefill_tokens)
            ids.append(request)
            left.append(more if more > 1 else 0)
            lengths.append(state.position_offset + more + (1 if more > 1 else 0))
            places.append(HOST)
        in_host = len(ids) > len(self.active_requests)
        return Resident(ids, lengths, left if prefilling or in_host else None, places if in_host else None)

    def _offloaded(self) -> list[tuple[RequestId, RequestState]]:
        """Requests whose KV the engine keeps in the host, in the order in which it went there."""
        for request, state in list(self._in_host.items()):
            if not state.is_cpu_offloaded or self.waiting_requests.get(request) is not state:
                del self._in_host[request]
        return list(self._in_host.items())

    def _spare(self) -> int:
        """Blocks that nobody has and nothing is kept in."""
        pool, allocator = self.cache.pool, self._allocator
        return int(len(pool.free_sectors) * allocator.blocks_per_sector + pool.count_free_blocks(allocator.index))


def _check(cache: PagedAttentionCache) -> None:
    """Raise ConfigError for what was never tested."""
    if list(cache.cache_allocators) != [FULL_ATTENTION]:
        raise ConfigError(
            f"the alignedsched adapter knows models with full attention only; this one has "
            f"{', '.join(sorted(cache.cache_allocators))}"
        )
    if distributed.dist is not None and distributed.dist.is_initialized() and distributed.dist.get_world_size() > 1:
        raise ConfigError(
            "the alignedsched adapter is for one process: the ranks of a tensor-parallel group would measure "
            "different seconds and decide differently"
        )

"""Continuous batching as engines write it: every step walks over everything that runs. The yardstick for decision cost.

The shape of vLLM's v1 scheduler (vllm-project/vllm, vllm/v1/core/sched/scheduler.py and kv_cache_manager.py) without
prefix caching, speculation, encoders and connectors: ``schedule`` goes through the running list, asks for one token
each, allocates a block where the next one is needed and preempts the newest when none is free; then it admits from a
deque in order of arrival. ``update`` goes through what was scheduled and notes each new token. Block tables are lists
of block ids. It is no straw man: no logging, no records per token, no work that a scheduler needs not do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from attrs import define, field


@define(eq=False)  # found by identity, the cheapest way
class Row:
    """One request: its lengths and its block table."""

    id: str
    prompt_tokens: int
    computed: int = 0
    produced: int = 0
    blocks: list[int] = field(factory=list)


class NaiveScheduler:
    """First come, first served; O(batch) per step, O(queue) per cancel of a waiting request."""

    def __init__(self, blocks: int, block_size: int, max_members: int, max_tokens: int) -> None:
        self._block_size = block_size
        self._max_members = max_members
        self._max_tokens = max_tokens
        self._free: deque[int] = deque(range(blocks))
        self._rows: dict[str, Row] = {}
        self.waiting: deque[Row] = deque()
        self.paused: deque[Row] = deque()  # prefilled elsewhere, with KV to be brought in
        self.running: list[Row] = []

    def add(self, request: str, prompt_tokens: int) -> None:
        """A request arrives."""
        row = Row(request, prompt_tokens)
        self._rows[request] = row
        self.waiting.append(row)

    def add_prefilled(self, request: str, prompt_tokens: int) -> None:
        """A request arrives that another device has prefilled."""
        row = Row(request, prompt_tokens, computed=prompt_tokens, produced=1)
        self._rows[request] = row
        self.paused.append(row)

    def schedule(self) -> dict[str, int]:
        """Tokens each request computes in the next step."""
        scheduled: dict[str, int] = {}
        budget = self._max_tokens
        at = 0
        while at < len(self.running) and budget > 0:
            row = self.running[at]
            tokens = min(row.prompt_tokens + row.produced - row.computed, budget)
            while not self._allocate(row, row.computed + tokens):
                victim = self.running.pop()
                self._preempt(victim)
                budget += scheduled.pop(victim.id, 0)
                if victim is row:
                    break
            else:
                scheduled[row.id] = tokens
                budget -= tokens
                at += 1
        for source in (self.paused, self.waiting):
            while source and budget > 0 and len(self.running) < self._max_members:
                row = source[0]
                tokens = min(row.prompt_tokens + row.produced - row.computed, budget)
                if not self._allocate(row, row.computed + tokens):
                    return scheduled
                source.popleft()
                self.running.append(row)
                scheduled[row.id] = tokens
                budget -= tokens
        return scheduled

    def update(self, scheduled: dict[str, int], finished: Iterable[str]) -> None:
        """The step is done: every scheduled request has computed its tokens, and these have ended."""
        ended = set(finished)
        gone = []
        for row in self.running:
            tokens = scheduled.get(row.id, 0)
            if not tokens:
                continue
            row.computed += tokens
            if row.computed >= row.prompt_tokens + row.produced:
                row.produced += 1
            if row.id in ended:
                gone.append(row)
        for row in gone:
            self._release(row)
        if gone:
            self.running = [row for row in self.running if row.id not in ended]

    def cancel(self, request: str) -> None:
        """A request is not wanted any more, wherever it is."""
        row = self._rows[request]
        for place in (self.running, self.waiting, self.paused):
            try:
                place.remove(row)
            except ValueError:
                continue
            break
        self._release(row)

    def _allocate(self, row: Row, tokens: int) -> bool:
        missing = -(-tokens // self._block_size) - len(row.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            row.blocks.append(self._free.popleft())
        return True

    def _preempt(self, row: Row) -> None:
        self._free.extend(row.blocks)
        row.blocks.clear()
        row.computed = 0
        self.waiting.appendleft(row)

    def _release(self, row: Row) -> None:
        self._free.extend(row.blocks)
        row.blocks.clear()
        del self._rows[row.id]

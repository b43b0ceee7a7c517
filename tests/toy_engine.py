"""An engine with its own queue and block tables, as small as it can be: what drives ``Hooks`` in the tests.

It knows how long each answer is, counts its own blocks, and checks that nothing it is told is impossible. Copies may
take some steps, and it may leave undone what it was told (``unwilling``), as real engines do.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from attrs import define, field

from alignedsched.adapters.hooks import DEVICE, HOST, TO_DEVICE, TO_HOST, Decision, Hooks, Queued, Resident, Sacrifice
from alignedsched.load import Costs, Load


@define
class Held:
    """A request with KV: tokens stored, tokens its prefill is to have, where it lies, when a copy ends."""

    stored: int
    target: int
    place: str = DEVICE
    until: int = 0


@define(eq=False)
class ToyEngine:
    """Requests are (prompt tokens, output tokens); all queue at the start, or ``every`` so many steps one."""

    hooks: Hooks
    asks: dict[str, tuple[int, int]]
    blocks: int
    block_size: int = 16
    host_blocks: int = 0
    costs: Costs | None = None
    copy_steps: int = 0
    every: int = 0
    unwilling: float = 0.0
    seed: int = 0
    watch: Callable[[ToyEngine, Resident, Queued, Decision], None] | None = None
    now: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    queue: dict[str, None] = field(init=False, factory=dict)
    held: dict[str, Held] = field(init=False, factory=dict)
    made: dict[str, int] = field(init=False, factory=dict)
    ended: dict[str, float] = field(init=False, factory=dict)
    counts: dict[str, int] = field(init=False, factory=dict)
    _random: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._coming = list(self.asks)

    _coming: list[str] = field(init=False, factory=list)

    # -- blocks

    def size(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    @property
    def free(self) -> int:
        return self.blocks - sum(self.size(h.stored) for h in self.held.values() if h.place != HOST)

    @property
    def host_free(self) -> int:
        return self.host_blocks - sum(self.size(h.stored) for h in self.held.values() if h.place in (HOST, TO_HOST))

    # -- columns

    def resident(self) -> Resident:
        ids = list(self.held)
        return Resident(
            ids,
            [max(self.held[r].stored, self.held[r].target) + 1 for r in ids],
            left=[max(0, self.held[r].target - self.held[r].stored) for r in ids],
            places=[self.held[r].place for r in ids],
            produced=[self.made[r] for r in ids],
            limits=[self.asks[r][1] + 20 for r in ids],
        )

    def queued(self) -> Queued:
        ids = list(self.queue)
        return Queued(ids, [self.asks[r][0] + self.made[r] for r in ids], produced=[self.made[r] for r in ids])

    # -- steps

    def run(self, most: int = 20_000) -> ToyEngine:
        while len(self.ended) < len(self.asks):
            self.step()
            assert self.steps < most, "the engine does not get anywhere"
        return self

    def step(self) -> Decision:
        self._arrive()
        for held in self.held.values():
            if held.place in (TO_HOST, TO_DEVICE) and held.until <= self.steps:
                held.place = HOST if held.place == TO_HOST else DEVICE
        resident, queued = self.resident(), self.queued()
        decision = self.hooks.decide(
            self.now, resident, queued, free_blocks=self.free, free_host_blocks=self.host_free, seconds=self.seconds
        )
        if self.watch is not None:
            self.watch(self, resident, queued, decision)
        self._move(decision)
        self._compute(decision)
        self.steps += 1
        return decision

    def _arrive(self) -> None:
        while self._coming and (not self.every or self.steps >= self.every * (len(self.asks) - len(self._coming))):
            request = self._coming.pop(0)
            self.queue[request], self.made[request] = None, 0

    def _will(self) -> bool:
        return not self.unwilling or self._random.random() >= self.unwilling

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _move(self, decision: Decision) -> None:
        for request, how in decision.victims:
            self._count(how.value)
            if how is Sacrifice.PARK:
                self.held[request].place = HOST
            else:
                del self.held[request]
                self.queue[request] = None
        for request in decision.to_host:
            if self._will():
                self._count("to_host")
                self._copy(request, TO_HOST, HOST)
        for request in decision.to_device:
            if self._will():
                self._count("to_device")
                self._copy(request, TO_DEVICE, DEVICE)
        assert self.host_free >= 0, "told to put more on the host than there is room for"
        if decision.parked:
            self._count("soft parks")

    def _copy(self, request: str, meanwhile: str, then: str) -> None:
        held = self.held[request]
        held.place, held.until = (meanwhile, self.steps + self.copy_steps) if self.copy_steps else (then, 0)

    def _compute(self, decision: Decision) -> None:
        total = longest = 0
        decoded = [r for r in decision.decode if self._will()]
        for request in decoded:
            held = self.held[request]
            assert held.place == DEVICE, f"{request} was to decode without its KV"
            assert held.stored >= held.target, f"{request} was to decode in its prefill"
            held.stored += 1
            self.made[request] += 1
            total, longest = total + held.stored, max(longest, held.stored)
        chunks = [self._prefill(t.request, t.tokens) for t in decision.prefill if self._will()]
        assert self.free >= 0 or decision.short, f"told to use {-self.free} blocks more than there are"
        load = Load(len(decoded), total, longest, tuple(chunks))
        self.seconds = 0.01 if self.costs is None else self.costs.step_seconds(load)
        self.now += self.seconds
        for request in (*decoded, *(t.request for t in decision.prefill)):
            known = self.held.get(request)
            if known is not None and known.stored >= known.target and self.made[request] >= self.asks[request][1]:
                del self.held[request]
                self.ended[request] = self.now

    def _prefill(self, request: str, tokens: int) -> tuple[int, int]:
        if request in self.queue:
            del self.queue[request]
            self.held[request] = Held(0, self.asks[request][0] + self.made[request])
        held = self.held[request]
        start = held.stored
        held.stored = min(held.target, start + tokens)
        if held.stored == held.target:
            self.made[request] += 1
        return start, held.stored

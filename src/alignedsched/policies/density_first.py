"""``density_first``: batches of similar context length, one after the other (AlignedServe, arXiv 2605.23389).

Per lane: while a batch runs, the next one is chosen, so that residency can stage it; the running batch is refilled
with requests of about its length; when it has drained, the next one joins, and what is left of the old one runs along
until it ends or has to make room, longest first. Idle lanes never wait: what is pooled runs at once, and while all
that is ready fits, it all runs together as in continuous batching. ``docs/density-first.md`` says where this departs
from the paper and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from ..cluster import HOST
from ..errors import CallerError
from ..narrator import Reason
from ..outside import show
from ..request import RequestId
from ..views import LaneView
from . import guard
from .aligned_round import Round
from .aligned_settings import LaneMemory, Settings, read_seconds
from .formation import DensestClass, Formation
from .lane_room import LaneRoom
from .pooled_admission import PooledOrder
from .protocols import Composition, PlainData, Policy, Sacrifice
from .staging import StagedResidency

_NOTHING = Composition()


class AlignedBatching:
    """Batch-level scheduling over a formation. Its memory: the guard's clocks, and a few facts a lane.

    ``compose`` costs O(classes + members + candidates + requests chosen). How many are pooled matters only where others
    have them: a pooled request on another decode device, or too large for the lane, is passed over when it is met.
    """

    def __init__(self, settings: Settings, formation: Formation) -> None:
        self.settings = settings
        self.formation = formation
        self._clocks: dict[str, float] = {}
        self._lanes: dict[str, LaneMemory] = {}

    def compose(self, view: LaneView) -> Composition:
        """The lane's next change; see Batching."""
        if not view.role.decodes:
            return _NOTHING
        memory = self._lanes.get(view.lane.id, LaneMemory())
        clocks = guard.tick(self._clocks, view.pool, view.now)
        return Round(self.settings, self.formation, view, clocks, memory).decide()

    def passed_over(self, view: LaneView, request: RequestId) -> Reason | None:
        """Why a pooled request was left in the pool; see PassesOver."""
        room = LaneRoom.of(view, self.settings.batch_share)
        if room.idle:
            return None
        if room.used >= room.batch_blocks:
            return Reason(f"blocks were the batch's on {view.lane.id}, which may have {room.batch_blocks:,}", room.used)
        median = room.median(frozenset(self._lanes.get(view.lane.id, LaneMemory()).old))
        away = 0 if median is None else abs(view.pool.length(request) - median)
        if median is not None and away > self.settings.reach(median):
            return Reason(f"tokens from the median length on {view.lane.id}, too far to refill that batch", away)
        return None

    def victims(self, view: LaneView, rank: int, blocks: int) -> Iterator[tuple[RequestId, Sacrifice]]:
        """The longest of the old batch first, then the longest of the running one; to the host while it has room."""
        old = frozenset(self._lanes.get(view.lane.id, LaneMemory()).old)
        batch = view.ranks[rank].batch
        parks = HOST in view.cluster.tiers and view.route(view.ranks[rank].tier, HOST) is not None
        room = view.free(HOST) if parks else 0
        first = (request for request in batch.longest_first() if request in old)
        for request in chain(first, (request for request in batch.longest_first() if request not in old)):
            need = view.layout.blocks(batch.context_length(request))
            room -= need
            yield request, Sacrifice.PARK if room >= 0 else Sacrifice.RECOMPUTE

    def taken(self, view: LaneView, composition: Composition) -> None:
        """Remember what the composition rests on. O(classes + old members)."""
        if isinstance(composition.memory, dict):
            self._clocks, lanes = _read(composition.memory)
            self._lanes.update(lanes)

    def state(self) -> PlainData:
        """Clocks by class and memory by lane."""
        return {"clocks": dict(self._clocks), "lanes": {lane: memory.plain() for lane, memory in self._lanes.items()}}

    def load(self, state: PlainData) -> None:
        """Restore ``state()``. Raises CallerError naming the part that is no such state, and then changes nothing."""
        self._clocks, self._lanes = _read(state)


def _read(state: PlainData) -> tuple[dict[str, float], dict[str, LaneMemory]]:
    if not isinstance(state, dict) or not state.keys() >= {"clocks", "lanes"}:
        raise CallerError(f"density_first: its state is a dict with 'clocks' and 'lanes', got {show(state)}")
    clocks, lanes = state["clocks"], state["lanes"]
    if not isinstance(clocks, dict) or any(key not in guard.KEYS for key in clocks):
        raise CallerError(f"density_first: 'clocks' of its state maps '0' to '{guard.CLASSES - 1}' to seconds")
    if not isinstance(lanes, dict):
        raise CallerError(f"density_first: 'lanes' of its state maps lane ids to memories, got {show(lanes)}")
    times = {key: read_seconds(f"clocks[{show(key)}]", value) for key, value in clocks.items()}
    return times, {lane: LaneMemory.from_plain(lane, plain) for lane, plain in lanes.items()}


def density_first(
    *,
    batch_share: float = 0.4,
    k_min: int = 36,
    mix_share: float = 0.8,
    near_share: float = 0.25,
    near_tokens: int = 512,
    drain_share: float = 0.5,
    guard_s: float | None = 30.0,
    patience_s: float | None = 30.0,
    dwell_s: float = 0.25,
    to_host: str = "always",
    staging: bool = True,
    token_budget: int | None = None,
    by_priority: bool = False,
    growth_share: float = 0.1,
    pool_batches: float | None = 8.0,
) -> Policy:
    """The policy, whole. The options are the fields of Settings, DensestClass, StagedResidency and PooledOrder.

    Raises ConfigError naming the option that is out of range.
    """
    settings = Settings(
        batch_share=batch_share,
        k_min=k_min,
        mix_share=mix_share,
        near_share=near_share,
        near_tokens=near_tokens,
        drain_share=drain_share,
        guard_s=guard_s,
        patience_s=patience_s,
        dwell_s=dwell_s,
    )
    admission = PooledOrder(
        token_budget=token_budget,
        by_priority=by_priority,
        batch_share=batch_share,
        growth_share=growth_share,
        pool_batches=pool_batches,
    )
    batching = AlignedBatching(settings, DensestClass(k_min))
    return Policy("density_first", admission, batching, StagedResidency(to_host=to_host, staging=staging))

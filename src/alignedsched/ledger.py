"""Who holds which blocks in which tier: the one owner of every KV block.

KV is accounted in *segments* (today: one private segment per request, named by its id). In each tier a segment has
at most one *extent*: its first ``tokens`` tokens are readable there, and ``blocks`` whole blocks are charged for it,
which may be more while a copy or a prefill chunk is on its way. The rules:

* Space is reserved before anything is written, and the extent is lengthened only when the write is confirmed.
* There is no "move". A copy lengthens one extent; later another is dropped.
* An extent that a copy or a launched step may still touch is *pinned*. Dropping a pinned extent dooms it: it is no
  longer readable, but its blocks come free only with the last pin.
* The extent of a decoding member *grows*. Growing extents are charged together, as one number per device tier that
  the running batch knows in closed form; so a decode step costs the ledger nothing.
* Space that an executor did not vouch for in time is *quarantined*: charged to nobody, reused by nobody.

Per tier therefore, at every moment:  held + growth + quarantined + free = capacity  (``free`` is negative only while
a tier that has shrunk still has to be cleared).

Deliberately absent: block ids and bytes (the executor's), what is worth keeping (the policies').
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import define

from .cluster import Cluster, KVLayout
from .errors import InvariantError


@define
class Extent:
    """A segment's KV in one tier."""

    tokens: int = 0  # readable
    blocks: int = 0  # charged; 0 while growing, when the running batch is charged instead
    pins: int = 0  # copies and launched steps that may touch it
    growing: bool = False
    doomed: bool = False  # dropped, and freed with the last pin


class Ledger:
    """Extents and block counts per tier. Every operation is O(1)."""

    def __init__(self, cluster: Cluster) -> None:
        self._layout: KVLayout = cluster.layout
        self._capacity: dict[str, int] = {tier.id: tier.blocks for tier in cluster.tiers.values()}
        self._held: dict[str, int] = dict.fromkeys(self._capacity, 0)
        self._growth: dict[str, int] = dict.fromkeys(self._capacity, 0)
        self._quarantined: dict[str, int] = dict.fromkeys(self._capacity, 0)
        self._doomed: dict[str, int] = dict.fromkeys(self._capacity, 0)
        self._clearing: dict[str, bool] = dict.fromkeys(self._capacity, False)
        self._free: dict[str, int] = dict(self._capacity)  # kept: asked for far more often than it changes
        self._segments: dict[str, dict[str, Extent]] = {}

    # -- reading

    def capacity(self, tier: str) -> int:
        return self._capacity[tier]

    def free(self, tier: str) -> int:
        """Blocks nobody holds; negative while a shrunken tier is over-full."""
        return self._free[tier]

    def growth(self, tier: str) -> int:
        """Blocks charged for the running batch of a device."""
        return self._growth[tier]

    def held(self, tier: str) -> int:
        return self._held[tier]

    def quarantined(self, tier: str) -> int:
        return self._quarantined[tier]

    def usable(self, tier: str) -> int:
        """Blocks that are not quarantined."""
        return self._capacity[tier] - self._quarantined[tier]

    def doomed(self, tier: str) -> int:
        """Blocks of dropped extents, which come free with their last pin."""
        return self._doomed[tier]

    def extents(self, segment: str) -> Mapping[str, Extent]:
        """A segment's extents by tier (empty for an unknown segment); read-only by agreement."""
        return self._segments.get(segment, {})

    def tokens(self, segment: str, tier: str) -> int:
        """Readable tokens of a segment in a tier; 0 if none or doomed."""
        extent = self._segments.get(segment, {}).get(tier)
        return 0 if extent is None or extent.doomed else extent.tokens

    def segments(self) -> Iterator[tuple[str, Mapping[str, Extent]]]:
        """Every segment with its extents, for checking."""
        yield from self._segments.items()

    def missing(self, segment: str, tier: str, tokens: int) -> int:
        """Blocks still to be charged before ``tokens`` tokens of a segment fit in a tier."""
        extent = self._segments.get(segment, {}).get(tier)
        need = self._layout.blocks(tokens)
        return need if extent is None else max(0, need - extent.blocks)

    # -- writing: reserve, commit, release

    def reserve(self, segment: str, tier: str, tokens: int) -> None:
        """Charge whole blocks for a segment's first ``tokens`` tokens. The caller has looked at ``free`` first."""
        extent = self._segments.get(segment, {}).get(tier)
        if extent is not None and (extent.doomed or extent.growing):
            raise InvariantError("single_owner", f"{segment!r} reserves in {tier!r}, where its KV is not at rest")
        more = self._layout.blocks(tokens) - (extent.blocks if extent is not None else 0)
        if more > self._free[tier] and more > 0:
            raise InvariantError("capacity", f"{segment!r} needs {more} blocks of {tier!r}, {self._free[tier]} free")
        if extent is None:
            extent = self._segments.setdefault(segment, {})[tier] = Extent()
        if more > 0:
            extent.blocks += more
            self._hold(tier, more)

    def commit(self, segment: str, tier: str, tokens: int) -> None:
        """The first ``tokens`` tokens are readable now."""
        extent = self._segments[segment][tier]
        if not extent.doomed:
            extent.tokens = max(extent.tokens, tokens)

    def trim(self, segment: str, tier: str, tokens: int) -> None:
        """Keep only the first ``tokens`` tokens, readable and charged."""
        extent = self._segments[segment][tier]
        extent.tokens = min(extent.tokens, tokens)
        blocks = self._layout.blocks(tokens)
        self._hold(tier, blocks - extent.blocks)
        if extent.doomed:
            self._doomed[tier] += blocks - extent.blocks
        extent.blocks = blocks

    def pin(self, segment: str, tier: str) -> None:
        self._segments[segment][tier].pins += 1

    def unpin(self, segment: str, tier: str) -> bool:
        """Take one pin away; True if that freed a doomed extent."""
        extent = self._segments[segment][tier]
        extent.pins -= 1
        if extent.pins == 0 and extent.doomed:
            self._remove(segment, tier)
            return True
        return False

    def drop(self, segment: str, tier: str) -> bool:
        """Give an extent up. True if its blocks came free at once, False if a pin dooms it for later."""
        extent = self._segments[segment][tier]
        if extent.growing:
            raise InvariantError("pinned_stays", f"{segment!r} decodes in {tier!r} and cannot be dropped there")
        extent.tokens = 0
        if extent.pins:
            if not extent.doomed:
                extent.doomed = True
                self._doomed[tier] += extent.blocks
            return False
        self._remove(segment, tier)
        return True

    def _remove(self, segment: str, tier: str) -> int:
        """Forget an extent; returns the blocks it had, which are free now."""
        extents = self._segments[segment]
        extent = extents.pop(tier)
        blocks = extent.blocks
        self._hold(tier, -blocks)
        if extent.doomed:
            self._doomed[tier] -= blocks
        if not extents:
            del self._segments[segment]
        return blocks

    def _hold(self, tier: str, blocks: int) -> None:
        """Charge so many blocks more to extents of a tier."""
        self._held[tier] += blocks
        self._free[tier] -= blocks

    # -- growing members

    def lend(self, segment: str, tier: str) -> None:
        """The segment joins the running batch of a device: from now on the batch is charged for it."""
        extent = self._segments[segment][tier]
        if extent.growing or extent.doomed:
            raise InvariantError("single_owner", f"{segment!r} joins in {tier!r}, where it grows already or is dropped")
        self._hold(tier, -extent.blocks)
        extent.blocks = 0
        extent.growing = True

    def settle(self, segment: str, tier: str, readable: int, charged: int) -> None:
        """The segment left the running batch: ``readable`` tokens, space charged for ``charged`` of them."""
        extent = self._segments[segment][tier]
        if not extent.growing:
            raise InvariantError("single_owner", f"{segment!r} leaves {tier!r}, where it does not grow")
        extent.growing = False
        extent.tokens = readable
        extent.blocks = self._layout.blocks(charged)
        self._hold(tier, extent.blocks)

    def set_growth(self, tier: str, blocks: int) -> None:
        """Charge the running batch of a device ``blocks`` blocks from now on."""
        self._free[tier] += self._growth[tier] - blocks
        self._growth[tier] = blocks

    # -- trouble

    def set_capacity(self, tier: str, blocks: int) -> None:
        self._free[tier] += blocks - self._capacity[tier]
        self._capacity[tier] = blocks
        self._clearing[tier] = self.free(tier) < 0

    def clearing(self, tier: str) -> bool:
        """Whether the tier became smaller than what it held, the last time its capacity was set."""
        return self._clearing[tier]

    def quarantine(self, segment: str, tier: str) -> int:
        """Set the space of a pinned extent aside because nobody vouched for it in time; returns its blocks."""
        blocks = self._remove(segment, tier)
        self._quarantined[tier] += blocks
        self._free[tier] -= blocks
        return blocks

    def vouch(self, tier: str, blocks: int) -> None:
        """Quarantined space is safe again."""
        self._quarantined[tier] -= blocks
        self._free[tier] += blocks

    def forget(self, segment: str, tier: str) -> None:
        """A tier's memory is gone: so is the extent, pinned or not."""
        self._remove(segment, tier)

    # -- snapshots

    def state(self) -> dict[str, tuple[int, int, int, bool]]:
        """What does not follow from the extents, by tier: capacity, growth, quarantined, clearing."""
        return {
            tier: (capacity, self._growth[tier], self._quarantined[tier], self._clearing[tier])
            for tier, capacity in self._capacity.items()
        }

    def load(self, tiers: Mapping[str, tuple[int, int, int, bool]]) -> None:
        """Restore ``state()`` in a ledger that holds nothing yet. Raises InvariantError for other tiers."""
        if tiers.keys() != self._capacity.keys():
            raise InvariantError("conservation", f"there are {', '.join(self._capacity)}, and no other tiers")
        for tier, (capacity, growth, quarantined, clearing) in tiers.items():
            self._capacity[tier], self._growth[tier] = capacity, growth
            self._quarantined[tier], self._clearing[tier] = quarantined, clearing
            self._free[tier] = capacity - growth - quarantined

    def put(self, segment: str, extents: dict[str, Extent]) -> None:
        """Put a segment back as it was."""
        if segment in self._segments:
            raise InvariantError("single_owner", f"{segment!r} is there twice")
        for tier, extent in extents.items():
            self._hold(tier, extent.blocks)
            self._doomed[tier] += extent.blocks if extent.doomed else 0
        self._segments[segment] = extents

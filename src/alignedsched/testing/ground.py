"""What lies where, by the plans given and the reports made: tokens stored by tier, tokens made, who ended."""

from __future__ import annotations

from attrs import define, field

from ..cluster import Cluster
from ..plan import Chunk, Copy, Drop
from .streams import Job


@define(eq=False)
class Ground:
    """Plain counting, nothing guessed. A member's KV is counted again when it leaves its batch."""

    cluster: Cluster
    jobs: dict[str, Job] = field(factory=dict)
    made: dict[str, int] = field(factory=dict)  # tokens, those of members as of their joining
    stored: dict[tuple[str, str], int] = field(factory=dict)  # (request, tier) -> tokens, but of members and the ended
    kept: dict[tuple[str, str], int] = field(
        factory=dict
    )  # members' KV dropped beyond so far, by the plan they leave with
    members: set[tuple[str, str]] = field(factory=set)
    finished: set[str] = field(factory=set)
    cancelled: set[str] = field(factory=set)
    released: set[str] = field(factory=set)
    last_row: dict[str, int] = field(factory=dict)  # by lane: no row of an ended request beyond this step

    def knows(self, request: str) -> bool:
        return request in self.jobs

    def left(self, request: str, exact: bool) -> tuple[int | None, int | None]:
        """Tokens a request still makes (None: unknown), and how many it may at most make."""
        job = self.jobs.get(request)
        if job is None:
            return None, None
        made, limit = self.made.get(request, 0), job.request.output_limit
        return (job.output_tokens - made if exact else None), (None if limit is None else limit - made)

    def prefilled(self, chunk: Chunk, tier: str) -> None:
        if chunk.request in self.released:
            return
        self.stored[chunk.request, tier] = chunk.end
        if chunk.last:
            self.made[chunk.request] = self.made.get(chunk.request, 0) + 1

    def decoding(self, request: str, tier: str) -> None:
        self.stored.pop((request, tier), None)
        self.members.add((request, tier))

    def decoded(self, request: str, tier: str, context_length: int, steps: int) -> None:
        """A member left after so many steps."""
        self.members.discard((request, tier))
        self.made[request] = self.made.get(request, 0) + steps
        tokens = min(context_length - 1 + steps, self.kept.pop((request, tier), 1 << 62))
        if tokens and request not in self.released:
            self.stored[request, tier] = tokens

    def arrive(self, copy: Copy) -> None:
        if copy.request not in self.released:
            self.stored[copy.request, copy.target] = copy.end

    def drop(self, drop: Drop) -> None:
        where = (drop.request, drop.tier)
        if where in self.members:
            self.kept[where] = drop.keep
        elif where in self.stored:
            self.stored[where] = min(self.stored[where], drop.keep)
            if not drop.keep:
                del self.stored[where]

    def release(self, request: str) -> None:
        self.released.add(request)
        for where in [where for where in self.stored if where[0] == request]:
            del self.stored[where]

    def lose(self, tiers: set[str]) -> None:
        """Everything in some tiers is gone."""
        for where in [where for where in self.stored if where[1] in tiers]:
            del self.stored[where]

    def blocks(self, tier: str) -> int:
        """Blocks of KV known to lie in a tier: of nobody who decodes there or has ended."""
        rounded = self.cluster.layout.blocks
        return sum(
            rounded(n) for (request, at), n in self.stored.items() if at == tier and request not in self.finished
        )

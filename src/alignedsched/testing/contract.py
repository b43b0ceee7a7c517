"""The executor's side of the contract: carries plans out by the book, and asserts that every instruction is legal.

It keeps its own account of which tokens of which request are written and readable where: nothing may be read that is
not there, nothing freed or reused while a launched step or a copy may touch it, and no tier may ever hold more than it
has. What happens when, and what is told when, is left to whoever drives it (``adversary`` does at random).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..cluster import Cluster
from ..plan import Copy, Drop, Join, Outcome, Plan, Step
from ..request import Request
from .lane_model import Fragment, Kv, LaneModel, Row


class Contract:
    """Plans, steps and memory by the book. ``to_make``: tokens each request produces before it ends by itself."""

    def __init__(self, cluster: Cluster, max_kinds: int | None = None) -> None:
        self.cluster = cluster
        self.layout = cluster.layout
        self.max_kinds = max_kinds
        self.weights = 0
        self.requests: dict[str, Request] = {}
        self.to_make: dict[str, int] = {}
        self.kv: dict[str, dict[str, Kv]] = {}
        self.lanes = {lane.id: LaneModel(lane) for lane in cluster.lanes}
        self.copies: dict[int, Copy] = {}
        self.astray: dict[int, int] = {}  # copies given up after their lease -> blocks they may still write
        self.mute: set[int] = set()  # copies whose completion is lost
        self.now = 0.0
        self.copy_lease_s: float | None = None
        self.sent: dict[int, float] = {}  # when a copy began
        self.aborted: set[int] = set()
        self.finished: set[str] = set()
        self.released: dict[str, Outcome] = {}
        self.capacity = {tier.id: tier.blocks for tier in cluster.tiers.values()}

    # -- the account of memory

    def used(self, tier: str) -> int:
        """Blocks physically written, or reserved by a copy under way, in a tier."""
        held = sum(self.layout.blocks(there[tier].written) for there in self.kv.values() if tier in there)
        return held + sum(blocks for copy, blocks in self.astray.items() if self.copies[copy].target == tier)

    def _wanted_copies(self) -> Iterator[Copy]:
        """Copies under way that nobody has given up."""
        return (copy for copy in self.copies.values() if copy.copy not in self.astray)

    def check_memory(self) -> None:
        for tier, blocks in self.capacity.items():
            used = self.used(tier)
            assert used <= blocks, f"tier {tier!r} holds {used} of {blocks} blocks"

    def _kv(self, request: str, tier: str) -> Kv:
        return self.kv.setdefault(request, {}).setdefault(tier, Kv(weights=self.weights))

    def _untouched(self, request: str, tier: str, why: str) -> None:
        for copy in self._wanted_copies():
            if copy.request == request:
                assert tier not in (copy.source, copy.target), f"{why} of {request!r} in {tier!r} under {copy}"
        for model in self.lanes.values():
            if tier not in model.lane.ranks:
                continue
            rank = model.lane.ranks.index(tier)
            assert not model.touching(request, rank), f"{why} of {request!r} in {tier!r} while a step touches it"
            member = model.members.get(request)
            assert member is None or member[0] != rank, f"{why} of member {request!r} in {tier!r}"
            held = [step for _, step in model.pending]
            held += [model.order] if model.order is not None and not model.ran else []
            for step in held:
                for chunk in step.chunks:
                    assert (chunk.request, chunk.rank) != (request, rank), f"{why} of {request!r} under {step}"

    # -- plans

    def submit(self, plan: Plan) -> None:
        """Take a plan in the order the contract names. Raises AssertionError if it is illegal."""
        for lane in plan.given_up:
            assert not self.lanes[lane].lost, f"lane {lane!r} is given up, but is lost already"
            self.lose_lane(self.lanes[lane])
        for abort in plan.aborts:
            self.aborted.add(abort.copy)  # it may have ended meanwhile
        running: set[str] = set()  # lanes that an order of this plan lets run
        for step in plan.steps:
            model = self.lanes[step.lane]
            assert not model.lost, f"order {step} to a lost lane"
            if step.lane in running:
                continue
            if step.horizon:
                running.add(step.lane)
            if model.launched == model.done and not model.failed and not self._unrun_chunks(model):
                for request in step.leaves:
                    model.members.pop(request, None)
        for drop in plan.drops:
            self._drop(drop)
        for release in plan.releases:
            assert release.request in self.requests, f"{release} of an unknown request"
            assert release.request not in self.released, f"second {release}"
            self.released[release.request] = release.outcome
            if release.outcome is Outcome.FINISHED:
                assert release.request in self.finished, f"{release}, but it has not made its last token"
            for tier in tuple(self.kv.get(release.request, ())):
                self._untouched(release.request, tier, "release")
            self.kv.pop(release.request, None)
        for copy in plan.copies:
            self._send(copy)
        for step in plan.steps:
            self._order(self.lanes[step.lane], step)
        self.check_memory()

    @staticmethod
    def _unrun_chunks(model: LaneModel) -> bool:
        return model.order is not None and bool(model.order.chunks) and not model.ran

    def _drop(self, drop: Drop) -> None:
        there = self.kv.get(drop.request, {})
        if drop.tier not in there:
            return
        kv = there[drop.tier]
        for copy in tuple(self._wanted_copies()):
            if (copy.request, copy.target) == (drop.request, drop.tier) and self._overdue(copy):
                self.astray[copy.copy] = self.layout.blocks(kv.written)
        self._untouched(drop.request, drop.tier, "drop")
        kv.readable, kv.written = min(kv.readable, drop.keep), min(kv.written, drop.keep)
        if not drop.keep:
            del there[drop.tier]

    def _overdue(self, copy: Copy) -> bool:
        lease = self.copy_lease_s
        return copy.copy in self.aborted and lease is not None and self.sent[copy.copy] + lease <= self.now

    def _send(self, copy: Copy) -> None:
        assert copy.copy not in self.copies
        there = self.kv.get(copy.request, {})
        assert self.cluster.route(copy.source, copy.target) is not None, f"{copy}: no link"
        source = there.get(copy.source)
        assert source is not None, f"{copy} reads what is not there: {there}"
        assert source.readable >= copy.end, f"{copy} reads what is not there: {there}"
        assert source.weights == self.weights, f"{copy} reads KV of old weights"
        target = self._kv(copy.request, copy.target)
        assert target.readable >= copy.start, f"{copy} extends what is not there: {there}"
        self._untouched_target(copy)
        self.sent[copy.copy] = self.now
        target.written = max(copy.end, target.written)
        target.weights = source.weights
        self.copies[copy.copy] = copy

    def _untouched_target(self, copy: Copy) -> None:
        for other in self._wanted_copies():
            apart = other.request != copy.request or copy.target not in (other.target, other.source)
            assert apart, f"{copy} over {other}"
        for model in self.lanes.values():
            if copy.target in model.lane.ranks:
                assert not model.lost, f"{copy} to a device whose lane is lost"
                rank = model.lane.ranks.index(copy.target)
                member = model.members.get(copy.request)
                assert member is None or member[0] != rank, f"{copy} into a member"
                assert not model.touching(copy.request, rank), f"{copy} into what a step touches"

    def _order(self, model: LaneModel, step: Step) -> None:
        if model.failed:
            return
        at = model.launched + 1
        if model.pending:
            previous_at, previous = model.pending[-1]
            at = max(at, previous_at + (1 if previous.chunks else 0))
        elif self._unrun_chunks(model):
            at = max(at, model.first + 1)
        if step.chunks:
            assert step.horizon == 1, f"{step} has chunks and a horizon of {step.horizon}"
        model.pending.append((at, step))
        model.weights[step.order] = self.weights
        self._apply(model)

    def _apply(self, model: LaneModel) -> None:
        """Orders whose time has come take effect before the next step is launched."""
        while model.pending and model.pending[0][0] <= model.launched + 1 and not self._unrun_chunks(model):
            at, step = model.pending.popleft()
            for request in step.leaves:
                model.members.pop(request, None)
            for join in step.joins:
                self._join(model, join, at, step)
            for chunk in step.chunks:
                kv = self.kv.get(chunk.request, {}).get(model.lane.ranks[chunk.rank])
                start = kv.written if kv is not None else 0
                assert start == chunk.start, f"{chunk} of {step} does not go on where its KV ends ({start})"
                fresh = kv is None or chunk.start == 0 or kv.weights >= model.weights[step.order]
                assert fresh, f"{chunk} behind KV of old weights"
            model.order, model.first, model.ran = step, at, False
            if not step.chunks:
                if model.done >= at - 1:
                    model.mail.append(Fragment(step.order, at, at - 1))
                else:
                    model.took.append((at, step.order))
        self._check_seats(model)

    def _join(self, model: LaneModel, join: Join, at: int, step: Step) -> None:
        if join.request in self.finished:
            return
        tier = model.lane.ranks[join.rank]
        assert join.request not in model.members, f"{join} of {step}: a member already"
        for other in self.lanes.values():
            assert join.request not in other.members, f"{join} of {step}: a member of {other.lane.id}"
        kv = self.kv.get(join.request, {}).get(tier)
        assert kv is not None, f"{join} of {step}: no KV in {tier!r}"
        assert kv.written == join.context_length - 1, f"{join} of {step}: its KV is {kv} in {tier!r}"
        assert kv.readable == kv.written or model.touching(join.request, join.rank), f"{join}: KV not readable {kv}"
        assert kv.weights >= model.weights[step.order], f"{join} of {step}: KV of old weights"
        for copy in self._wanted_copies():
            assert (copy.request, copy.target) != (join.request, tier), f"{join} of {step} under {copy}"
        model.members[join.request] = (join.rank, join.context_length - at)

    def _check_seats(self, model: LaneModel) -> None:
        lane, step = model.lane, model.order
        assert step is not None or not model.members
        chunks = step.chunks if step is not None and not model.ran else ()
        for rank in range(len(lane.ranks)):
            rows = sum(1 for at, _ in model.members.values() if at == rank)
            tokens = sum(chunk.end - chunk.start for chunk in chunks if chunk.rank == rank)
            assert rows <= lane.max_members, f"lane {lane.id!r} has {rows} members"
            assert rows + tokens <= lane.max_tokens, f"lane {lane.id!r} computes {rows} + {tokens} tokens"
        if self.max_kinds is not None:
            kinds = {self.requests[r].kind for r in (*model.members, *(c.request for c in chunks))} - {None}
            assert len(kinds) <= self.max_kinds, f"lane {lane.id!r} mixes kinds {kinds}"

    # -- steps

    def may_launch(self, model: LaneModel) -> bool:
        """Whether the next step may be launched: an order allows it, there is a row, and run-ahead is kept."""
        step = model.order
        if step is None or model.lost or model.failed or model.launched >= model.reach():
            return False
        if model.launched + 1 > model.first + step.horizon - 1:
            return False
        return bool(model.members) or (bool(step.chunks) and not model.ran)

    def launch(self, model: LaneModel) -> None:
        step, number = model.order, model.launched + 1
        assert step is not None
        rows = []
        for request, (rank, base) in model.members.items():
            kv = self.kv[request][model.lane.ranks[rank]]
            assert kv.written == base + number - 1, f"{request!r} decodes at {base + number} with {kv}"
            rows.append(Row(request, rank, kv.written, base + number))
        for chunk in step.chunks if not model.ran else ():
            kv = self._kv(chunk.request, model.lane.ranks[chunk.rank])
            kv.weights = self.weights if not chunk.start else kv.weights
            rows.append(Row(chunk.request, chunk.rank, chunk.start, chunk.end, chunk))
        for row in rows:
            self.kv[row.request][model.lane.ranks[row.rank]].written = row.after
        model.rows[number] = rows
        model.by_order[number] = (step.order, model.first, bool(step.chunks))
        model.launched, model.ran = number, True
        self.check_memory()
        self._apply(model)

    def complete(self, model: LaneModel) -> None:
        """The oldest launched step ends."""
        number = model.done + 1
        order, first, chunked = model.by_order.pop(number)
        fragment = Fragment(order, first, number, chunked=chunked)
        for row in model.rows[number]:
            if row.request in self.finished:
                continue
            self.kv[row.request][model.lane.ranks[row.rank]].readable = row.after
            if row.chunk is not None:
                fragment.prefilled.append(row.request)
                if not row.chunk.last:
                    continue
            if row.after - self.requests[row.request].prompt_tokens + 1 >= self.to_make[row.request]:
                fragment.finished.append((row.request, number))
                self.finished.add(row.request)
                model.members.pop(row.request, None)
        model.done = number
        model.mail.append(fragment)
        while model.took and model.took[0][0] <= number + 1:
            at, effective = model.took.popleft()
            model.mail.append(Fragment(effective, at, at - 1))

    def lose_lane(self, model: LaneModel) -> None:
        """A lane stops for good, or until it is back."""
        model.lost = True

    def state(self) -> Iterator[str]:
        """A few lines about everything, for failures."""
        for model in self.lanes.values():
            yield f"{model.lane.id}: {model}"
        yield f"copies {self.copies}"
        for request, there in self.kv.items():
            yield f"{request}: {there}"

"""An executor that keeps the contract and nothing more: every freedom it has, it takes at random.

Orders take effect at whatever step run-ahead allows, reports come late, several at once, twice or in the wrong order,
copies end in any order or fail, steps fail, lanes and devices vanish. It keeps its own account of which tokens of which
request are written and readable where, and asserts that each instruction is legal: nothing is read that is not there,
nothing is freed or reused while a launched step or a copy may touch it, no tier ever holds more than it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from random import Random

from attrs import define, evolve, field

from alignedsched.cluster import Cluster, Lane
from alignedsched.events import CopyDone, CopyFailed, ExecutorEvent, StepsDone, StepsFailed
from alignedsched.plan import Chunk, Copy, Drop, Join, Outcome, Plan, Step
from alignedsched.request import Request


@define(eq=False)
class Kv:
    """A request's KV in one tier: ``readable`` tokens, ``written`` ones (steps launched, copies under way)."""

    readable: int = 0
    written: int = 0
    weights: int = 0  # with which it was computed


@define(eq=False)
class Row:
    """What a launched step does to one request."""

    request: str
    rank: int
    before: int
    after: int
    chunk: Chunk | None = None


@define(eq=False)
class Fragment:
    """Something to report: steps ``done`` of one order up to ``through``."""

    order: int
    first: int
    through: int
    finished: list[tuple[str, int]] = field(factory=list)
    prefilled: list[str] = field(factory=list)
    chunked: bool = False
    failed: StepsFailed | None = None
    told: bool = False


@define(eq=False)
class LaneModel:
    """One lane: membership as of its next step, what is launched, and what is still to be told."""

    lane: Lane
    launched: int = -1
    done: int = -1
    told: int = -1  # the last step the scheduler has heard of
    order: Step | None = None
    first: int = 0
    ran: bool = False  # the order in force has launched a step
    members: dict[str, tuple[int, int]] = field(factory=dict)  # request -> (rank, base)
    pending: deque[tuple[int, Step]] = field(factory=deque)
    rows: dict[int, list[Row]] = field(factory=dict)  # by step, until the scheduler knows of it
    weights: dict[int, int] = field(factory=dict)  # in force when an order came
    by_order: dict[int, tuple[int, int, bool]] = field(factory=dict)  # step -> (order, first, chunks)
    took: deque[tuple[int, int]] = field(factory=deque)  # (first, order) in effect from a step that is not done yet
    mail: list[Fragment] = field(factory=list)
    lost: bool = False
    failed: bool = False  # a step failed and the scheduler has not heard it: orders until then are void

    def reach(self) -> int:
        """The last step that may be launched: by run-ahead."""
        return self.told + self.lane.run_ahead + 1

    def touching(self, request: str, rank: int) -> bool:
        """Whether a launched step that has not ended touches a request's KV on a rank."""
        return any(
            row.request == request and row.rank == rank
            for step in range(self.done + 1, self.launched + 1)
            for row in self.rows.get(step, ())
        )


class Adversary:
    """Carries plans out as unhelpfully as the contract allows, and checks them. ``to_make``: tokens per request."""

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
        self.aborted: set[int] = set()
        self.finished: set[str] = set()
        self.released: dict[str, Outcome] = {}
        self.capacity = {tier.id: tier.blocks for tier in cluster.tiers.values()}

    # -- the account of memory

    def used(self, tier: str) -> int:
        """Blocks physically written, or reserved by a copy under way, in a tier."""
        return sum(self.layout.blocks(there[tier].written) for there in self.kv.values() if tier in there)

    def check_memory(self) -> None:
        for tier, blocks in self.capacity.items():
            used = self.used(tier)
            assert used <= blocks, f"tier {tier!r} holds {used} of {blocks} blocks"

    def _kv(self, request: str, tier: str) -> Kv:
        return self.kv.setdefault(request, {}).setdefault(tier, Kv(weights=self.weights))

    def _untouched(self, request: str, tier: str, why: str) -> None:
        for copy in self.copies.values():
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
        for abort in plan.aborts:
            self.aborted.add(abort.copy)  # it may have ended meanwhile
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
        self._untouched(drop.request, drop.tier, "drop")
        kv = there[drop.tier]
        kv.readable, kv.written = min(kv.readable, drop.keep), min(kv.written, drop.keep)
        if not drop.keep:
            del there[drop.tier]

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
        target.written = max(copy.end, target.written)
        target.weights = source.weights
        self.copies[copy.copy] = copy

    def _untouched_target(self, copy: Copy) -> None:
        for other in self.copies.values():
            apart = other.request != copy.request or copy.target not in (other.target, other.source)
            assert apart, f"{copy} over {other}"
        for model in self.lanes.values():
            if copy.target in model.lane.ranks:
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
        for copy in self.copies.values():
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

    # -- what it tells

    def reports(self, model: LaneModel, rng: Random, everything: bool = False) -> list[ExecutorEvent]:
        """Some of what is to be told, merged, skipped and reordered as the contract allows."""
        waiting = [f for f in model.mail if not f.told]
        count = len(waiting) if everything or model.failed else rng.randint(0, len(waiting))
        chosen = waiting[:count]
        if not everything and not model.failed and rng.random() < 0.2:
            # a later order's report overtakes: leave out what belongs to one earlier order
            orders = sorted({f.order for f in chosen})
            if len(orders) > 1:
                kept_back = rng.choice(orders[:-1])
                chosen = [f for f in chosen if f.order != kept_back]
        merged: list[Fragment] = []
        for fragment in chosen:
            fragment.told = True
            model.told = max(model.told, fragment.through)
            last = merged[-1] if merged else None
            if last is not None and last.order == fragment.order and (fragment.failed or rng.random() < 0.7):
                merged[-1] = Fragment(
                    last.order, last.first, fragment.through, last.finished + fragment.finished,
                    last.prefilled + fragment.prefilled, fragment.chunked, fragment.failed,
                )  # fmt: skip
            else:
                merged.append(fragment)
        if model.failed and any(f.failed for f in chosen):
            model.failed = False
        self._prune(model)
        events = [self._event(model, fragment, rng) for fragment in merged]
        if not any(f.failed for f in merged) and rng.random() < 0.3:
            events = _shuffled_by_order(events, rng)
        return events

    def _event(self, model: LaneModel, fragment: Fragment, rng: Random) -> ExecutorEvent:
        if fragment.failed is not None:
            return evolve(fragment.failed, finished=tuple(fragment.finished))
        synchronous = model.launched <= fragment.through + model.lane.run_ahead
        launched = None if synchronous and rng.random() < 0.5 else model.launched
        return StepsDone(
            model.lane.id, fragment.order, fragment.first, fragment.through, tuple(fragment.finished),
            tuple(fragment.prefilled), 0.001, launched,
        )  # fmt: skip

    @staticmethod
    def _known(model: LaneModel) -> int:
        """The last step the scheduler knows to be done: the one before the first step not told."""
        untold = (f.through - 1 for f in model.mail if not f.told and f.through >= f.first and f.failed is None)
        return min(untold, default=model.done)

    def _prune(self, model: LaneModel) -> None:
        """Forget what the scheduler knows for certain."""
        while model.mail and model.mail[0].told:
            model.mail.pop(0)
        known = self._known(model)
        for number in [n for n in model.rows if n <= known]:
            del model.rows[number]

    # -- copies

    def end_copy(self, number: int, arrives: bool) -> ExecutorEvent:
        copy = self.copies.pop(number)
        self.aborted.discard(number)
        target = self.kv[copy.request][copy.target]
        if not arrives:
            target.written = target.readable
            return CopyFailed(number, "the link was busy")
        target.readable = copy.end
        return CopyDone(number)

    # -- trouble

    def fail_step(self, model: LaneModel, poisoned: tuple[str, ...], reason: str) -> None:
        """The oldest launched step fails; the scheduler hears of it with the lane's next reports."""
        number = model.done + 1
        order, first, _ = model.by_order[number]
        self._rollback(model, model.done)
        event = StepsFailed(model.lane.id, order, first, model.done, reason, poisoned)
        model.mail.append(Fragment(order, first, model.done, failed=event))
        self._stop(model)
        model.failed = True

    def row_requests(self, model: LaneModel) -> list[str]:
        """Requests in the oldest launched step."""
        return [row.request for row in model.rows.get(model.done + 1, ())]

    def _rollback(self, model: LaneModel, last: int) -> None:
        """Steps beyond ``last`` never happened."""
        for number in sorted((n for n in model.rows if n > last), reverse=True):
            for row in model.rows.pop(number):
                kv = self.kv.get(row.request, {}).get(model.lane.ranks[row.rank])
                if kv is not None:
                    kv.written, kv.readable = row.before, min(kv.readable, row.before)
            model.by_order.pop(number, None)

    @staticmethod
    def _stop(model: LaneModel) -> None:
        model.launched = model.done
        model.members.clear()
        model.pending.clear()
        model.took.clear()
        model.order = None

    def lose_lane(self, model: LaneModel) -> None:
        """The lane stops; what was not told has not happened."""
        known = self._known(model)
        for fragment in model.mail:
            if fragment.through > known:
                self.finished -= {request for request, _ in fragment.finished}
        self._rollback(model, known)
        self._stop(model)
        model.mail.clear()
        model.lost, model.failed = True, False

    def lane_back(self, model: LaneModel, skip: int) -> int:
        """The lane is back; returns its next step."""
        model.lost = False
        model.launched = model.done = model.told = max(model.launched, model.done, model.told) + skip
        model.rows.clear()
        return model.done + 1

    def lose_device(self, device: str) -> None:
        tiers = {tier.id for tier in self.cluster.tiers.values() if tier.device == device}
        for model in self.lanes.values():
            if device in model.lane.ranks and not model.lost:
                self.lose_lane(model)
        for number in [n for n, copy in self.copies.items() if {copy.source, copy.target} & tiers]:
            copy = self.copies.pop(number)
            self.aborted.discard(number)
            if copy.target not in tiers:
                target = self.kv[copy.request][copy.target]
                target.written = target.readable
        for there in self.kv.values():
            for tier in tiers & set(there):
                del there[tier]

    def change_weights(self) -> None:
        self.weights += 1

    # -- what is still to come

    def outstanding(self) -> bool:
        """Whether anything is under way, or still to be told."""
        return bool(self.copies) or any(self.busy(model) for model in self.lanes.values())

    def busy(self, model: LaneModel) -> bool:
        untold = any(not f.told for f in model.mail)
        return untold or model.done < model.launched or self.may_launch(model)

    def state(self) -> Iterator[str]:
        """A few lines about everything, for failures."""
        for model in self.lanes.values():
            yield f"{model.lane.id}: {model}"
        yield f"copies {self.copies}"
        for request, there in self.kv.items():
            yield f"{request}: {there}"


def _shuffled_by_order(events: list[ExecutorEvent], rng: Random) -> list[ExecutorEvent]:
    """Events in another order, those of one order still in theirs."""
    keys = [getattr(event, "order", -1) for event in events]
    shuffled = list(keys)
    rng.shuffle(shuffled)
    queues: Mapping[int, deque[ExecutorEvent]] = {
        key: deque(e for e, k in zip(events, keys, strict=True) if k == key) for key in set(keys)
    }
    return [queues[key].popleft() for key in shuffled]

"""Planning one lane: ask its policies, take what is possible, and give the lane its next order.

The order of things matters. First the reservation shrinks to what the next step needs, so that policies see the room
there really is; then departures, and victims if that step does not fit; then joins, copies and prefill chunks; and
what room is left becomes the horizon. If nothing came of it, the standing order stands and keeps its reservation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from .books import Books, LaneBook
from .cluster import HOST
from .errors import PolicyError
from .live import Live
from .plan import Chunk, Join, Outcome, Step
from .policies.protocols import Composition, Evict, Policy, Sacrifice, Take, Transfer
from .request import Request, RequestId
from .scheduler_view import SchedulerView
from .states import CopyState, RequestState

R = RequestState
T = TypeVar("T")
RENEW_SHARE = 4  # a standing order is renewed when less than this share of the longest horizon is left of it


class Planner:
    """Turns one lane's situation into its next order. Work is proportional to what changed."""

    def __init__(
        self,
        books: Books,
        policy: Policy,
        views: dict[str, SchedulerView],
        *,
        max_horizon: int,
        max_kinds: int | None,
        eligible: Callable[[Request], bool],
    ) -> None:
        self._books = books
        self._policy = policy
        self._views = views
        self._max_horizon = max_horizon
        self._max_kinds = max_kinds
        self._eligible = eligible
        self.draining = False

    def plan(self, lane: LaneBook) -> None:
        """Plan a dirty lane (or renew its horizon)."""
        books, state = self._books, lane.state
        dirty, lane.dirty, lane.renew = lane.dirty, False, False
        latest = state.latest_first()
        leaves = self._departures(lane, latest)
        for rank, tier in enumerate(lane.tiers):
            books.ledger.set_growth(tier, state.batches[rank].blocks(latest))
        before = len(leaves)
        stuck = self._make_room(lane, latest, leaves)
        lane.relieved = lane.relieved or len(leaves) > before
        joins: list[Join] = []
        chunks: list[Chunk] = []
        if not stuck and self._waits(lane):
            joins += self._arrivals(lane, latest)
            if dirty:
                self._compose(lane, latest, joins, leaves)
            self._place(lane)
            if dirty and state.role.prefills:
                chunks = self._admit(lane)
            if not (joins or chunks or state.members()) and self._quiet(lane):
                self._last_resort(lane)
        self._order(lane, latest, joins, leaves, chunks, stuck)

    def _waits(self, lane: LaneBook) -> bool:
        """Whether anything waits that a policy could decide about: nobody is asked about members alone."""
        books = self._books
        return bool(
            lane.expected or lane.prefilling or lane.joining or lane.candidates or len(books.pool) or len(books.queue)
        )

    def halt(self, lane: LaneBook) -> None:
        """Stop a lane (paused): its members stay members, but for those that have to go."""
        state = lane.state
        lane.renew = False
        if state.may_run() or lane.going:
            latest = state.latest_first()
            leaves = self._departures(lane, latest)
            for rank, tier in enumerate(lane.tiers):
                self._books.ledger.set_growth(tier, state.batches[rank].blocks(latest - 1))
            self._issue(lane, 0, (), leaves, (), "paused")

    # -- members out

    def _departures(self, lane: LaneBook, latest: int) -> list[RequestId]:
        """Members that have to go (cancelled, to be computed again) leave with the next order."""
        leaves = list(lane.going)
        for request in leaves:
            live = self._books.live[request]
            self._books.depart(live, lane, lane.going[request], latest - 1, lane.state.next_order)
        return leaves

    def _make_room(self, lane: LaneBook, latest: int, leaves: list[RequestId]) -> bool:
        """Members make room until the next step of the others fits. True if it still does not (frees are awaited)."""
        books = self._books
        stuck = False
        for rank, tier in enumerate(lane.tiers):
            if books.ledger.free(tier) >= 0 or not len(lane.state.batches[rank]):
                continue
            victims = iter(self._victims(lane, rank))
            parked = 0  # their blocks come free when residency has copied them out
            while books.ledger.free(tier) + self._coming(lane, tier) + parked < 0:
                chosen = next(victims, None) or self._fallback_victim(lane, rank)
                if chosen is None:
                    break
                self._sacrifice(lane, rank, *chosen, latest, leaves)
                books.ledger.set_growth(tier, lane.state.batches[rank].blocks(latest))
                if chosen[0] in books.pool:
                    parked += books.ledger.extents(chosen[0])[tier].blocks
            stuck = stuck or books.ledger.free(tier) < 0
        return stuck

    def _victims(self, lane: LaneBook, rank: int) -> list[tuple[RequestId, Sacrifice]]:
        """Whom the policy gives up first. A lone member cannot make room for itself, so nobody is asked then."""
        if len(lane.state.batches[rank]) < 2 and not lane.prefilling:
            return []
        short = -self._books.ledger.free(lane.tiers[rank])
        return self._ask(lambda: list(self._policy.batching.victims(self._views[lane.id], rank, short)))

    def _fallback_victim(self, lane: LaneBook, rank: int) -> tuple[RequestId, Sacrifice] | None:
        """Beyond the policy's victims: the newest that holds KV here without running, then the newest member."""
        books, tier, batch = self._books, lane.tiers[rank], lane.state.batches[rank]
        idle = [*books.resident.get(tier, {}), *lane.prefilling]
        idle += [r for r in (*lane.joining, *lane.candidates) if tier in books.ledger.extents(r)]
        choice = idle or (list(batch) if len(batch) > 1 else [])
        if choice:
            return max(choice, key=lambda request: books.live[request].order), Sacrifice.RECOMPUTE
        if len(batch) == 1 and not self._outstanding(lane):
            live = books.live[next(iter(batch))]
            live.outcome, live.why = Outcome.FAILED, f"its KV outgrew {tier}"
            return live.id, Sacrifice.RECOMPUTE
        return None

    def _sacrifice(
        self, lane: LaneBook, rank: int, request: RequestId, how: Sacrifice, latest: int, leaves: list[RequestId]
    ) -> None:
        books = self._books
        live = books.live.get(request)
        if live is None or live.state in (R.LEAVING, R.ENDED):
            return
        if live.state is not R.RUNNING:
            if live.lane == lane.id or live.id in books.resident.get(lane.tiers[rank], {}):
                self._recompute(live)
            return
        batch = lane.state.batches[rank]
        if request not in batch or (len(batch) == 1 and live.outcome is None):
            return
        if how is Sacrifice.PARK and not self._can_park(lane, live):
            how = Sacrifice.RECOMPUTE
        then = R.POOLED if how is Sacrifice.PARK else R.QUEUED
        if live.outcome is not None:
            then = R.ENDED
            live.to(R.ENDED, books.now)
        leaves.append(live.id)
        books.depart(live, lane, then, latest - 1, lane.state.next_order)

    def _can_park(self, lane: LaneBook, live: Live) -> bool:
        books = self._books
        if HOST not in books.cluster.tiers:
            return False
        blocks = books.layout.blocks(live.context_length)
        return self._views[lane.id].route(lane.tiers[live.rank], HOST) is not None and books.ledger.free(HOST) >= blocks

    def _recompute(self, live: Live) -> None:
        live.then = R.QUEUED
        self._books.vacate(live)

    def _coming(self, lane: LaneBook, tier: str) -> int:
        """Blocks of a device that come free when what is under way has ended. O(fences and copies)."""
        books = self._books
        coming = 0
        for request in lane.fences:
            live = books.live[request]
            extent = books.ledger.extents(request).get(tier)
            if extent is not None and (live.then is not R.POOLED or self._can_park(lane, live)):
                coming += extent.blocks
        for flight in books.flights.values():
            live = books.live[flight.request]
            if flight.source == tier and not flight.keep and live.id not in lane.fences:
                extent = books.ledger.extents(flight.request).get(tier)
                if extent is not None and not extent.growing and flight.state is CopyState.FLYING:
                    coming += extent.blocks
            elif flight.target == tier and flight.state is CopyState.UNWANTED:
                extent = books.ledger.extents(flight.request).get(tier)
                coming += extent.blocks if extent is not None and extent.doomed else 0
        return coming

    def _outstanding(self, lane: LaneBook) -> bool:
        """Whether something under way will call for this lane again."""
        return bool(lane.fences or lane.state.chunk_orders() or self._books.flights)

    def _quiet(self, lane: LaneBook) -> bool:
        """Whether nothing runs or is under way anywhere, and no other lane has still to be planned."""
        return not self._books.flights and not any(
            other.state.members() or other.fences or other.state.chunk_orders() or other.wake_at is not None
            or (other is not lane and (other.dirty or other.renew))
            for other in self._books.lanes.values()
            if not other.state.lost
        )  # fmt: skip

    def _last_resort(self, lane: LaneBook) -> None:
        """Nothing runs, nothing is under way, yet KV sits here that cannot go on: the newest of it starts over."""
        books = self._books
        blocked = bool(lane.joining or lane.prefilling) or (len(books.queue) > 0 and lane.state.role.prefills)
        if not blocked or self.draining:
            return
        held = [books.live[r] for r in (*lane.joining, *lane.candidates) if books.resident_rank(books.live[r], lane) is not None]
        held += [books.live[r] for tier in lane.tiers for r in books.resident.get(tier, {})]
        if held and (len(held) > 1 or lane.prefilling or lane.joining):
            self._recompute(max(held, key=lambda live: live.order))
            lane.dirty = True

    # -- members in

    def _arrivals(self, lane: LaneBook, latest: int) -> list[Join]:
        """Joining requests whose KV has arrived."""
        books = self._books
        joins = []
        for request in tuple(lane.joining):
            rank = books.resident_rank(books.live[request], lane)
            if rank is not None:
                joins += self._join(lane, books.live[request], rank, latest)
        return joins

    def _join(self, lane: LaneBook, live: Live, rank: int, latest: int) -> list[Join]:
        """Make a request a member if there is a seat and room for its next step."""
        books, state = self._books, lane.state
        tier, batch = lane.tiers[rank], state.batches[rank]
        context = live.target + 1 if live.state is R.PREFILLING else live.context_length
        extent = books.ledger.extents(live.id)[tier]
        need = books.layout.blocks(context - state.earliest_first() + latest) - extent.blocks
        if len(batch) >= state.lane.max_members or need > books.ledger.free(tier) or not self._kind_fits(lane, live.request):
            return []
        if extent.doomed or extent.growing:
            return []
        blocks = need + extent.blocks
        books.join(live, lane, rank, state.next_order)
        books.ledger.set_growth(tier, books.ledger.growth(tier) + blocks)
        return [Join(live.id, context, rank)]

    def _kind_fits(self, lane: LaneBook, request: Request) -> bool:
        return self._kind_open(request, lane.kinds)

    def _kind_open(self, request: Request, kinds: Collection[str]) -> bool:
        """Whether a batch that holds these kinds may hold the request too."""
        limit, kind = self._max_kinds, request.kind
        return limit is None or kind is None or kind in kinds or len(kinds) < limit

    def _compose(self, lane: LaneBook, latest: int, joins: list[Join], leaves: list[RequestId]) -> None:
        books, view = self._books, self._views[lane.id]
        batching = self._policy.batching
        composition: Composition = self._ask(lambda: batching.compose(view))
        parks = self._known(composition.parks)
        wanted = self._known(composition.joins)
        for live in parks:
            if live.state is R.RUNNING and live.lane == lane.id and live.id not in {j.request for j in joins}:
                leaves.append(live.id)
                books.depart(live, lane, R.POOLED, latest - 1, lane.state.next_order)
        if parks:
            for rank, tier in enumerate(lane.tiers):
                books.ledger.set_growth(tier, lane.state.batches[rank].blocks(latest))
        for live in self._known(composition.unclaims):
            if live.state in (R.CANDIDATE, R.JOINING) and live.lane == lane.id:
                books.unclaim(live)
        for live in self._known(composition.candidates):
            if live.state is R.POOLED and lane.state.role.decodes and books.could_hold(lane, live.context_length):
                books.claim(live, lane, R.CANDIDATE)
        for live in wanted:
            self._take_join(lane, live, latest, joins)
        lane.wake_at = composition.wake_at
        self._ask(lambda: batching.taken(view, composition))

    def _take_join(self, lane: LaneBook, live: Live, latest: int, joins: list[Join]) -> None:
        books = self._books
        if not lane.state.role.decodes:
            return
        if live.state is R.PREFILLING:
            if live.id in lane.expected and live.tokens_left(books.cluster.max_positions) > 1:
                joins += self._join(lane, live, live.rank, latest)
            return
        if not (live.state is R.POOLED or (live.state in (R.CANDIDATE, R.JOINING) and live.lane == lane.id)):
            return
        here = books.resident_rank(live, lane)
        if here is not None and live.id not in lane.joining:
            joined = self._join(lane, live, here, latest)
            joins += joined
            if joined:
                return
        if live.state is not R.JOINING and here is None and books.could_hold(lane, live.context_length):
            books.claim(live, lane, R.JOINING)

    def _known(self, requests: Iterable[RequestId]) -> list[Live]:
        live = self._books.live
        return [live[request] for request in dict.fromkeys(requests) if request in live]

    # -- copies

    def _place(self, lane: LaneBook) -> None:
        books, view = self._books, self._views[lane.id]
        for proposal in self._ask(lambda: list(self._policy.residency.place(view))):
            live = books.live.get(proposal.request)
            taken = live is not None and (
                self._transfer(lane, live, proposal) if isinstance(proposal, Transfer) else self._evict(live, proposal)
            )
            if not taken:
                books.counts["refused"] += 1

    def _transfer(self, lane: LaneBook, live: Live, wish: Transfer) -> bool:
        """Start a copy if it is legal now: at rest, wanted place, room, a route from a whole readable extent."""
        books = self._books
        tier = books.cluster.tiers.get(wish.target)
        at_rest = live.state in (R.POOLED, R.CANDIDATE, R.JOINING)
        ours = wish.target in lane.tiers
        if tier is None or not at_rest or live.copies or (ours and not (live.state is R.JOINING and live.lane == lane.id)):
            return False
        if not ours and not tier.staged and wish.target != HOST:
            return False
        there = books.ledger.extents(live.id).get(wish.target)
        if there is not None and (there.doomed or there.pins or there.tokens >= live.stored):
            return False
        if books.ledger.missing(live.id, wish.target, live.stored) > books.ledger.free(wish.target):
            return False
        source = self._source(lane, live, wish.target)
        if source is None:
            return False
        keep = wish.keep or tier.staged
        books.start_copy(live, source, wish.target, keep, wish.deadline, wish.why)
        return True

    def _source(self, lane: LaneBook, live: Live, target: str) -> str | None:
        """The tier to copy from: staged first, then devices, then the host; whole, readable, with a link that is up."""
        books = self._books
        best: tuple[int, str] | None = None
        for tier, extent in books.ledger.extents(live.id).items():
            if tier == target or extent.doomed or extent.tokens < live.stored:
                continue
            if self._views[lane.id].route(tier, target) is None:
                continue
            place = books.cluster.tiers[tier]
            rank = 0 if place.staged else 2 if tier == HOST else 1
            if best is None or (rank, tier) < best:
                best = (rank, tier)
        return None if best is None else best[1]

    def _evict(self, live: Live, wish: Evict) -> bool:
        books = self._books
        extent = books.ledger.extents(live.id).get(wish.tier)
        if extent is None or extent.pins or extent.growing or extent.doomed:
            return False
        if not books.cluster.tiers[wish.tier].staged and not books.whole_elsewhere(live, wish.tier):
            return False
        books.drop(live, wish.tier)
        return True

    # -- prefill

    def _admit(self, lane: LaneBook) -> list[Chunk]:
        view = self._views[lane.id]
        chunks: list[Chunk] = []
        tokens = [lane.state.lane.max_tokens - len(batch) for batch in lane.state.batches]
        kinds = set(lane.kinds)
        served: set[RequestId] = set()  # an order has one chunk of a request
        for take in self._ask(lambda: list(self._policy.admission.admit(view))):
            chunk = None if take.request in served else self._take_chunk(lane, take, tokens, kinds)
            served.add(take.request)
            if chunk is None:
                self._books.counts["refused"] += 1
            else:
                chunks.append(chunk)
        return chunks

    def _take_chunk(self, lane: LaneBook, take: Take, tokens: list[int], kinds: set[str]) -> Chunk | None:
        books = self._books
        if not 0 <= take.rank < len(tokens) or not 0 < take.tokens <= tokens[take.rank]:
            return None
        live = books.live.get(take.request)
        if live is None:
            live = self._begin(lane, take, kinds)
        if live is None or live.id not in lane.prefilling or live.rank != take.rank:
            return None
        if not self._kind_open(live.request, kinds):
            return None
        start, end = live.ordered, min(live.ordered + take.tokens, live.target)
        tokens[take.rank] -= end - start
        live.ordered = end
        if live.request.kind is not None:
            kinds.add(live.request.kind)
        books.ledger.pin(live.id, lane.tiers[live.rank])
        last = end == live.target
        if last:
            del lane.prefilling[live.id]
            lane.expected[live.id] = None
        return Chunk(live.id, start, end, live.rank, last)

    def _begin(self, lane: LaneBook, take: Take, kinds: set[str]) -> Live | None:
        books = self._books
        if take.request not in books.queue:
            return None
        waiting = books.queue.get(take.request)
        request = waiting.request
        if lane.relieved or (self.draining and not waiting.preemptions):
            return None  # who has just made room does not come back in the same breath
        if not self._eligible(request):
            return None
        if not self._kind_open(request, kinds):
            return None
        room = books.prefill_room(lane, waiting.prefill_tokens)
        if books.layout.blocks(room) > books.ledger.free(lane.tiers[take.rank]):
            return None
        return books.begin(waiting, lane, take.rank)

    # -- the order

    def _order(
        self, lane: LaneBook, latest: int, joins: list[Join], leaves: list[RequestId], chunks: list[Chunk], stuck: bool
    ) -> None:
        books, state = self._books, lane.state
        if stuck:
            for rank, tier in enumerate(lane.tiers):
                books.ledger.set_growth(tier, state.batches[rank].blocks(latest - 1))
            if leaves or state.may_run():
                self._issue(lane, 0, (), leaves, (), "waits for room")
            return
        if not (joins or leaves or chunks):
            if not state.members():
                if lane.fences and state.may_run():
                    self._issue(lane, 0, (), (), (), "nobody is left")
                return
            if self._keeps_standing(lane, latest):
                return
        horizon = 1 if chunks else self._horizon(lane, latest) if state.members() else 0
        self._reserve(lane, latest + horizon - 1)
        self._issue(lane, horizon, joins, leaves, chunks, "prefill" if chunks else "decode")

    def _keeps_standing(self, lane: LaneBook, latest: int) -> bool:
        """Whether the standing order goes on as it is: its steps still fit, and they last or could not be more."""
        state = lane.state
        if state.last_possible < latest:
            return False
        last = latest + self._horizon(lane, latest) - 1
        lasts = state.last_possible - state.reported > self._max_horizon // RENEW_SHARE
        if last < state.last_possible or (last > state.last_possible and not lasts):
            return False
        self._reserve(lane, state.last_possible)
        return True

    def _horizon(self, lane: LaneBook, latest: int) -> int:
        """The most steps, up to ``max_horizon``, whose blocks all fit."""
        ledger = self._books.ledger
        last = latest + self._max_horizon - 1
        for rank, tier in enumerate(lane.tiers):
            within = ledger.growth(tier) + ledger.free(tier)
            last = lane.state.batches[rank].last_step_within(within, latest, last - latest + 1)
        return last - latest + 1

    def _reserve(self, lane: LaneBook, last: int) -> None:
        for rank, tier in enumerate(lane.tiers):
            self._books.ledger.set_growth(tier, lane.state.batches[rank].blocks(last))

    def _issue(
        self,
        lane: LaneBook,
        horizon: int,
        joins: Iterable[Join],
        leaves: Iterable[RequestId],
        chunks: Iterable[Chunk],
        why: str,
    ) -> None:
        step = Step(lane.id, lane.state.next_order, horizon, tuple(joins), tuple(leaves), tuple(chunks), why)
        lane.state.issue(step)
        self._books.out.steps.append(step)

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask a policy; what it raises becomes a PolicyError that names it."""
        try:
            return question()
        except PolicyError:
            raise
        except Exception as error:
            raise PolicyError(self._policy.name, f"raised {type(error).__name__}: {error}") from error

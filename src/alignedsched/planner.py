"""Planning one lane: ask its policies, take what is possible, and give the lane its next order.

The order of things matters. First the reservation shrinks to what the next step needs, so that policies see the room
there really is; then departures, and victims if that step does not fit; then joins, copies and prefill chunks; and
what room is left becomes the horizon. If nothing came of it, the standing order stands and keeps its reservation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from .asking import ask, composition
from .books import Books
from .lane_book import LaneBook
from .live import Live
from .narrator import Rule
from .placement import Placement
from .plan import Chunk, Join, Step
from .policies.protocols import Policy
from .prefill import Prefill
from .request import Request, RequestId
from .room import Room
from .scheduler_view import SchedulerView
from .states import RequestState

R = RequestState
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
        why: str = "",
    ) -> None:
        self._books = books
        self._policy = policy
        self._views = views
        self._max_horizon = max_horizon
        self._room = Room(books, policy, views)
        self._placement = Placement(books, policy, views)
        self._prefill = Prefill(books, policy, views, max_kinds, eligible)
        self._why = why  # said of every order, in place of what it does

    def plan(self, lane: LaneBook) -> None:
        """Plan a dirty lane (or renew its horizon)."""
        books, state = self._books, lane.state
        dirty, lane.dirty, lane.renew = lane.dirty, False, False
        looked, lane.looked = lane.looked, False
        if (
            state.members()
            and not lane.going
            and self._lasts(lane)
            and not (looked or self._waits(lane))
            and not self._over_full(lane)
        ):
            return  # nothing to decide: the standing order goes on, its steps reserved
        latest = state.latest_first()
        leaves = self._departures(lane, latest)
        for rank, tier in enumerate(lane.tiers):
            books.ledger.set_growth(tier, state.batches[rank].blocks(latest))
        lane.put_off = state.awaits_report() and not leaves and self._over_full(lane)
        if lane.put_off:  # members may end in what is under way, and the lane loses nothing by waiting for the report
            lane.dirty, lane.looked = dirty, looked
            self._reserve(lane, state.last_possible)
            return
        joins: list[Join] = []
        chunks: list[Chunk] = []
        try:
            before = len(leaves)
            stuck = self._room.make_room(lane, latest, leaves)
            lane.relieved = lane.relieved or len(leaves) > before
            if stuck:
                self._placement.place(lane)  # who was parked makes room only by being copied out
            elif looked or self._waits(lane):
                self._decide(lane, latest, dirty, joins, leaves, chunks)
        except BaseException:  # whatever it is, what was taken until then stands: the executor must hear of it
            lane.dirty, lane.looked = True, looked
            self._order(lane, latest, joins, leaves, chunks, self._over_full(lane))
            raise
        self._order(lane, latest, joins, leaves, chunks, stuck)

    def look(self, lane: LaneBook) -> None:
        """Ask batching about members alone, as it wished; the lane is dirty if there is something to change."""
        if self._waits(lane) or not lane.state.may_order():
            lane.look_at = None
            return
        view = self._views[lane.id]
        wanted = composition(self._policy, view)
        if wanted.joins or wanted.parks or wanted.candidates or wanted.unclaims:
            lane.look_at = None
            lane.dirty = lane.looked = True
        else:
            lane.look_at = wanted.look_at
            ask(self._policy, lambda: self._policy.batching.taken(view, wanted))

    def _decide(
        self, lane: LaneBook, latest: int, dirty: bool, joins: list[Join], leaves: list[RequestId], chunks: list[Chunk]
    ) -> None:
        """Ask the policies and take what is possible, into ``joins``, ``leaves`` and ``chunks``."""
        self._prefill.refused = None
        joins += self._arrivals(lane, latest)
        if dirty:
            self._compose(lane, latest, joins, leaves)
        self._placement.place(lane)
        if dirty and lane.state.role.prefills:
            self._prefill.admit(lane, chunks)
        if dirty and self._books.narrator is not None:
            self._books.narrator.note(Rule.DECIDED, lane.id, "", sum(chunk.end - chunk.start for chunk in chunks))

    def free_blocked(self) -> bool:
        """Where KV blocks all that waits, the newest of it starts over. True if there is something to plan then."""
        lanes = [lane for lane in self._books.lanes.values() if not lane.state.lost]
        for lane in lanes:
            self._room.last_resort(lane)
        return any(lane.dirty for lane in lanes)

    def _over_full(self, lane: LaneBook) -> bool:
        return any(self._books.ledger.free(tier) < 0 for tier in lane.tiers)

    def _waits(self, lane: LaneBook) -> bool:
        """Whether anything waits that a policy could decide about. About members alone it is asked only if it wants."""
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
        if (
            len(batch) >= state.lane.max_members
            or need > books.ledger.free(tier)
            or not self._prefill.kind_open(lane, live.request, live.order, lane.kinds)
        ):
            return []
        if extent.doomed or extent.growing:
            return []
        blocks = need + extent.blocks
        books.join(live, lane, rank, state.next_order)
        books.ledger.set_growth(tier, books.ledger.growth(tier) + blocks)
        return [Join(live.id, context, rank)]

    def _compose(self, lane: LaneBook, latest: int, joins: list[Join], leaves: list[RequestId]) -> None:
        books, view = self._books, self._views[lane.id]
        wanted = composition(self._policy, view)
        parks = self._known(wanted.parks)
        joining = self._known(wanted.joins)
        for live in parks:
            if live.state is R.RUNNING and live.lane == lane.id and self._has_run(lane, live):
                leaves.append(live.id)
                books.depart(live, lane, R.POOLED, latest - 1, lane.state.next_order)
        if parks:
            for rank, tier in enumerate(lane.tiers):
                books.ledger.set_growth(tier, lane.state.batches[rank].blocks(latest))
        for live in self._known(wanted.unclaims):
            if live.state in (R.CANDIDATE, R.JOINING) and live.lane == lane.id:
                books.unclaim(live)
        for live in self._known(wanted.candidates):
            if live.state is R.POOLED and lane.state.role.decodes and books.could_hold(lane, live.context_length):
                books.claim(live, lane, R.CANDIDATE)
        for live in joining:
            self._take_join(lane, live, latest, joins)
        lane.wake_at, lane.look_at, lane.why = wanted.wake_at, wanted.look_at, wanted.why
        ask(self._policy, lambda: self._policy.batching.taken(view, wanted))

    @staticmethod
    def _has_run(lane: LaneBook, live: Live) -> bool:
        """Whether a member has made a token since it joined. Until then no policy can send it away again: whatever
        was copied in for it has bought progress, and batches cannot change places for ever without any.
        """
        return live.base is not None and live.base + lane.state.reported > live.stored

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

    def _known(self, requests: Collection[RequestId]) -> list[Live]:
        if not requests:
            return []
        live = self._books.live
        return [live[request] for request in dict.fromkeys(requests) if request in live]

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
                if state.may_run() and (lane.fences or self._waits(lane)):
                    # until it is taken back, what the last order allows counts as if it could still run
                    self._issue(lane, 0, (), (), (), "nobody is left")
                return
            if self._keeps_standing(lane, latest):
                return
        horizon = 1 if chunks else self._horizon(lane, latest) if state.members() else 0
        self._reserve(lane, latest + horizon - 1)
        self._issue(lane, horizon, joins, leaves, chunks, self._why or ("prefill" if chunks else "decode"))

    def _keeps_standing(self, lane: LaneBook, latest: int) -> bool:
        """Whether the standing order goes on as it is: its steps still fit, and they last or could not be more."""
        state = lane.state
        if state.last_possible < latest:
            return False
        last = latest + self._horizon(lane, latest) - 1
        if last < state.last_possible or (last > state.last_possible and not self._lasts(lane)):
            return False
        self._reserve(lane, state.last_possible)
        return True

    def _lasts(self, lane: LaneBook) -> bool:
        """Whether the steps ordered last for a while yet."""
        return lane.state.last_possible - lane.state.reported > self._max_horizon // RENEW_SHARE

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

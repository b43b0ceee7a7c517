"""One engine step decided: room first, then who joins and leaves, what is copied, what is prefilled.

The order of things is the planner's. What a policy proposes is taken where it is legal and there is room; what cannot
be used is passed over. If nothing would run although work waits, the policy is overruled, first come first served.
"""

from __future__ import annotations

from attrs import define, field

from ..asking import ask, composition, takes, victims, wishes
from ..cluster import HOST as HOST_TIER
from ..policies import fcfs
from ..policies.protocols import Policy, Sacrifice, Take, Transfer
from ..request import RequestId
from .board import TIER, At, Board, BoardView, Row
from .columns import DEVICE, HOST, TO_HOST
from .reading import rank_of


@define(eq=False)
class Choice:
    """What one step changes, in order, and why."""

    victims: list[tuple[RequestId, Sacrifice]] = field(factory=list)
    to_host: list[RequestId] = field(factory=list)
    to_device: list[RequestId] = field(factory=list)
    prefill: list[Take] = field(factory=list)
    reasons: dict[RequestId, str] = field(factory=dict)
    why: str = ""
    wake_at: float | None = None
    look_at: float | None = None
    short: int = 0
    overruled: bool = False


@define(eq=False)
class Chooser:
    """Asks a policy over a board and takes what is possible."""

    board: Board
    view: BoardView
    policy: Policy
    idle_since: float | None = None
    _plain: Policy = field(init=False, factory=fcfs)

    def choose(self, due: bool = False) -> Choice:
        """One decision; the board stands as the step is to find it afterwards. ``due``: the policy asked for it."""
        choice = Choice()
        self._make_room(choice)
        if due or self.waits():
            self._ask(self.policy, choice)
        if not self._idle(choice):
            self.idle_since = None
        else:
            self._end_standstill(choice)
        choice.short = max(0, -self.board.free)
        return choice

    def waits(self) -> bool:
        """Whether anything waits that a policy could decide about. About members alone it is asked only if it wants."""
        board = self.board
        return bool(board.joining or board.candidates or board.prefilling or len(board.pool) or len(board.queue))

    def _ask(self, policy: Policy, choice: Choice) -> None:
        self._arrivals(choice)
        self._compose(policy, choice)
        self._place(policy, choice)
        self._admit(policy, choice)

    # -- room

    def _make_room(self, choice: Choice) -> None:
        """Whom the policy gives up, until the next step fits; beyond them the newest that holds blocks."""
        board = self.board
        short = -board.free
        if short <= 0:
            return
        named = victims(self.policy, self.view, 0, short)
        rest = sorted(board.rows.values(), key=lambda row: -row.order)
        others = ((row.request.id, Sacrifice.RECOMPUTE) for row in rest)
        for request, how in (*named, *others):
            if board.free >= 0:
                return
            row = board.rows.get(request)
            if row is not None and self._yields(row):
                self._sacrifice(row, how, choice, f"makes room: {short:,} blocks short")

    def _yields(self, row: Row) -> bool:
        """Whether giving the request up frees blocks; a lone member makes no room for itself."""
        alone = row.at is At.RUNNING and len(self.board.batch) == 1
        return not alone and row.place == DEVICE and self.board.stored_blocks(row) > 0

    def _sacrifice(self, row: Row, how: Sacrifice, choice: Choice, why: str) -> None:
        board, request = self.board, row.request.id
        blocks = board.stored_blocks(row)
        if how is Sacrifice.PARK and (row.left or board.layout.blocks(board.length(row)) > board.host_spare):
            how = Sacrifice.RECOMPUTE
        board.spare += blocks
        if how is Sacrifice.PARK:
            board.host_spare -= board.layout.blocks(board.length(row))
            board.remove(row)
            row.place = HOST
            board.put(row, At.POOLED)
        else:
            board.queue_again(row, rank_of(self.policy, row.request))
        choice.victims.append((request, how))
        choice.reasons[request] = why

    # -- members

    def _arrivals(self, choice: Choice) -> None:
        """Joining requests whose KV has arrived."""
        for request in tuple(self.board.joining):
            row = self.board.rows[request]
            if row.place == DEVICE and self._join(row):
                choice.reasons[request] = "its KV has arrived"

    def _join(self, row: Row) -> bool:
        """Make a request a member if there is a seat and room for its next step."""
        board = self.board
        blocks = board.layout.blocks
        need = blocks(row.base) - blocks(row.base - 1)
        if row.place != DEVICE or len(board.batch) >= self.view.lane.max_members or need > board.free:
            return False
        board.put(row, At.RUNNING)
        return True

    def _compose(self, policy: Policy, choice: Choice) -> None:
        board, view = self.board, self.view
        wanted = composition(policy, view)
        for request in dict.fromkeys(wanted.parks):
            row = board.rows.get(request)
            if row is not None and row.at is At.RUNNING and board.length(row) > row.joined:
                board.put(row, At.POOLED)
                choice.reasons[request] = wanted.why
        for request in wanted.unclaims:
            row = board.rows.get(request)
            if row is not None and row.at in (At.CANDIDATE, At.JOINING):
                board.put(row, At.POOLED)
        for request in wanted.candidates:
            row = board.rows.get(request)
            if row is not None and row.at is At.POOLED:
                board.put(row, At.CANDIDATE)
        for request in dict.fromkeys(wanted.joins):
            row = board.rows.get(request)
            if row is None or row.at not in (At.POOLED, At.CANDIDATE):
                continue
            if self._join(row):
                choice.reasons[request] = wanted.why
            elif row.place not in (DEVICE, TO_HOST):
                board.put(row, At.JOINING)
        choice.wake_at, choice.look_at, choice.why = wanted.wake_at, wanted.look_at, wanted.why
        ask(policy, lambda: policy.batching.taken(view, wanted))

    # -- copies

    def _place(self, policy: Policy, choice: Choice) -> None:
        """Copies that are legal and have room; the rest is passed over."""
        board = self.board
        for wish in wishes(policy, self.view):
            row = board.rows.get(wish.request)
            if row is None or not isinstance(wish, Transfer) or wish.request in choice.to_host:
                continue
            blocks = board.layout.blocks(row.base)
            at_rest = row.at in (At.POOLED, At.CANDIDATE) and row.place == DEVICE
            if wish.target == TIER and row.at is At.JOINING and row.place == HOST:
                if blocks <= board.free and wish.request not in choice.to_device:
                    board.spare -= blocks
                    choice.to_device.append(wish.request)
                    choice.reasons[wish.request] = wish.why
            elif wish.target == HOST_TIER and at_rest and blocks <= board.host_spare:
                board.host_spare -= blocks
                choice.to_host.append(wish.request)
                choice.reasons[wish.request] = wish.why

    # -- prefill

    def _admit(self, policy: Policy, choice: Choice) -> None:
        """Chunks for requests that begin and that have begun; who has just made room does not begin again."""
        board, view = self.board, self.view
        if not (board.prefilling or len(board.queue)):
            return
        tokens, free = view.lane.max_tokens - len(board.batch), board.free
        served: dict[RequestId, None] = {}
        relieved = bool(choice.victims)
        for take in takes(policy, view):
            if take.request in served or not 0 < take.tokens <= tokens:
                continue
            if take.request in board.queue:
                need = board.layout.blocks(board.queue.get(take.request).prefill_tokens + 1)
                if relieved or need > free:
                    continue
                free -= need
            elif take.request not in board.prefilling:
                continue
            served[take.request] = None
            tokens -= take.tokens
            choice.prefill.append(take)
        self._say_held_back(policy, choice, sum(take.tokens for take in choice.prefill))

    def _say_held_back(self, policy: Policy, choice: Choice, ordered: int) -> None:
        """Why the first that still queues does not begin, where the policy knows."""
        first = next(iter(self.view.queue), None)
        if first is None or any(take.request == first.request.id for take in choice.prefill):
            return
        held_back = getattr(policy.admission, "held_back", None)
        reason = None if held_back is None else ask(policy, lambda: held_back(self.view, first, ordered))
        if reason is not None:
            figure = "" if reason.figure is None else f": {reason.figure:,}"
            choice.reasons.setdefault(first.request.id, f"{reason.text}{figure}")

    # -- standstill

    def _idle(self, choice: Choice) -> bool:
        """Whether nothing runs and nothing is under way although work waits."""
        board = self.board
        under_way = choice.prefill or choice.to_device or choice.to_host or board.moving
        return not len(board.batch) and not under_way and bool(board.rows or len(board.queue))

    def _end_standstill(self, choice: Choice) -> None:
        """Choose in the policy's place once its time is over; then free what blocks all, the newest first."""
        board = self.board
        if self.idle_since is None:
            self.idle_since = board.now
        due = self.idle_since + self.policy.may_idle_s
        if board.now < due:
            choice.wake_at = due if choice.wake_at is None else min(due, choice.wake_at)
            return
        wake_at = choice.wake_at
        for request in (*board.candidates, *board.joining):
            board.put(board.rows[request], At.POOLED)
        self._ask(self._plain, choice)
        while self._idle(choice) and self._blocks_others():
            newest = max((board.rows[request] for request in board.resident), key=lambda row: row.order)
            self._sacrifice(newest, Sacrifice.RECOMPUTE, choice, "nothing else could go on: it starts over")
            self._ask(self._plain, choice)
        if self._idle(choice) and board.resident:  # alone, and without a block for its next token: the engine's to end
            board.put(board.rows[next(iter(board.resident))], At.RUNNING)
        choice.wake_at = wake_at
        choice.overruled = not self._idle(choice)
        if choice.overruled:
            choice.why = f"{self.policy.name} chose nothing: first come, first served"
            self.idle_since = None

    def _blocks_others(self) -> bool:
        """Whether KV in the device keeps others from going on, or older KV from coming in."""
        board = self.board
        if not board.resident:
            return False
        newest = max(board.rows[request].order for request in board.resident)
        first = next(board.pool.by_order(), None)
        return len(board.resident) > 1 or (first is not None and board.rows[first].order < newest)

"""An engine's columns read into a board: what they say is the truth, whatever was decided before.

A step in which every member made one token and nobody came or went is recognised by comparing lists; nothing else is
looked at then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import add
from typing import Any

from attrs import define, field, frozen

from ..asking import ask
from ..errors import CallerError
from ..policies.protocols import Policy
from ..queue import Waiting
from ..request import Request, RequestId
from .board import At, Board, Row
from .columns import DEVICE, Queued, Resident, bad, check_ids, check_row, check_rows, prompt, value

_LIVE = ("lengths", "left", "places")  # columns that may change from step to step


@frozen
class Ended:
    """A request that is gone."""

    request: Request
    produced: int
    finished: bool


@define(eq=False)
class Reader:
    """Keeps a board in step with the columns.

    ``steps`` are the steps since the last call, ``news`` whether more happened than that members made a token.
    """

    board: Board
    policy: Policy
    steps: int = 0
    news: bool = False
    ended: list[Ended] = field(factory=list)
    ordered: frozenset[RequestId] = frozenset()  # who queued, and was to be prefilled whole in the last step
    _ids: list[RequestId] = field(factory=list)
    _lengths: list[int] = field(factory=list)
    _left: list[int] | None = None
    _places: list[str] | None = None
    _waiting: list[RequestId] | None = None  # of the last queue that was told
    _grows: list[bool] | None = None  # whether a row makes a token in a step; None: to be found again

    def read(self, resident: Resident, queued: Queued | None) -> None:
        """Take the columns in. O(rows), by comparing lists where nothing changed.

        Raises CallerError naming table, column, row and id; nothing has changed then.
        """
        ids, lengths = list(resident.ids), _plain(resident.lengths)
        left = None if resident.left is None else _plain(resident.left)
        places = None if resident.places is None else list(resident.places)
        waiting = self._waiting if queued is None else list(queued.ids)
        if waiting == self._waiting:
            queued = None
        same = ids == self._ids and left == self._left and places == self._places
        if queued is None and same and self._grows is not None:
            if lengths == list(map(add, self._lengths, self._grows)):
                self._lengths, self.steps, self.news = lengths, 1, False
                self.board.step += 1
                return
            if lengths == self._lengths:
                self.steps, self.news = 0, False
                return
        rest = map(_python, (resident.produced, resident.limits, resident.since, resident.priorities))
        self._read(Resident(ids, lengths, left, places, *rest), queued and _python_queue(queued))
        self._ids, self._lengths, self._left, self._places, self._waiting = ids, lengths, left, places, waiting
        self.doubt()

    def settle(self) -> None:
        """What the rows are doing is decided: from here on a plain step is recognised."""
        if self.board.moved or self._grows is None:
            self.board.moved = False
            self._grows = list(map(self.board.running.__contains__, self._ids))

    def doubt(self) -> None:
        """Look at every row the next time."""
        self._grows = None

    # -- all rows

    def _read(self, resident: Resident, queued: Queued | None) -> None:
        check_rows(resident)
        present = _numbered(resident)
        odd, steps = self._odd(resident)
        rows, fresh, changed = self.board.rows, [], []
        for at in odd:
            row = rows.get(resident.ids[at])
            if row is None:
                check_row(resident, at)
                fresh.append(self._row(resident, at))
            elif not self._as_foreseen(resident, at, row, steps):
                check_row(resident, at, _LIVE)
                changed.append((at, row))
        arriving = None if queued is None else self._check_queued(queued, present)
        self.board.step += steps
        self.steps, self.news = steps, False
        self._come(fresh)
        if queued is not None and arriving is not None:
            self._apply_queued(queued, arriving)
        self._go(present)
        for at, row in changed:
            self._change(row, resident.lengths[at], value(resident.left, at, 0), value(resident.places, at, DEVICE))

    def _odd(self, resident: Resident) -> tuple[list[int], int]:
        """Rows that are new or not as foreseen, in order, and the steps that the running members have made."""
        board, lengths = self.board, resident.lengths
        steps = 1 if board.running else 0
        foreseen = self._foreseen(steps)
        odd = [at for at, key in enumerate(zip(resident.ids, lengths, strict=True)) if foreseen.get(key[0]) != key[1]]
        surprised = [at for at in odd if resident.ids[at] in board.running]
        if 2 * len(surprised) > len(board.running):
            steps = self._steps(resident, surprised)
            foreseen = self._foreseen(steps)
            odd = [at for at, request in enumerate(resident.ids) if foreseen.get(request) != lengths[at]]
        moving = self._moving(resident)
        return (sorted({*odd, *moving}) if moving else odd), steps

    def _foreseen(self, steps: int) -> dict[RequestId, int]:
        """The length of every row after so many steps."""
        if steps == 1 and self._grows is not None:
            return dict(zip(self._ids, map(add, self._lengths, self._grows), strict=True))
        board = self.board
        ahead = board.step + steps
        return {request: row.base + (ahead if row.at is At.RUNNING else 0) for request, row in board.rows.items()}

    def _as_foreseen(self, resident: Resident, at: int, row: Row, steps: int) -> bool:
        length = row.base + (self.board.step + steps if row.at is At.RUNNING else 0)
        told = resident.lengths[at], value(resident.left, at, 0), value(resident.places, at, DEVICE)
        return told == (length, row.left, row.place)

    def _steps(self, resident: Resident, surprised: Sequence[int]) -> int:
        """Steps that the running members have made: the median of what those grew by whose length was not foreseen."""
        board, grown = self.board, []
        for at in surprised:
            length = resident.lengths[at]
            if type(length) is int:
                grown.append(length - board.length(board.rows[resident.ids[at]]))
        return max(0, sorted(grown)[len(grown) // 2]) if grown else 0

    def _moving(self, resident: Resident) -> list[int]:
        """Rows that are in prefill or not on the device, or were."""
        rows, left, places = self.board.rows, resident.left, resident.places
        moving = [] if left is None else [at for at, tokens in enumerate(left) if tokens]
        moving += [] if places is None else [at for at, place in enumerate(places) if place != DEVICE]
        if self.board.prefilling or self.board.away:
            for at, request in enumerate(resident.ids):
                row = rows.get(request)
                if row is not None and (row.left or row.place != DEVICE):
                    moving.append(at)
        return moving

    def _row(self, resident: Resident, at: int) -> Row:
        """The row of a request seen for the first time, or known from the queue."""
        board, request, length = self.board, resident.ids[at], resident.lengths[at]
        left, place = value(resident.left, at, 0), value(resident.places, at, DEVICE)
        if left >= length:
            raise bad(resident, "left", at, left, f"less than the context length {length:,}")
        if request in board.queue:
            waiting = board.queue.get(request)
            if length <= waiting.request.prompt_tokens:
                raise bad(
                    resident, "lengths", at, length,
                    f"more than the {waiting.request.prompt_tokens:,} prompt tokens it queued with",
                )  # fmt: skip
            known, order, preemptions = waiting.request, waiting.order, waiting.preemptions
        else:
            known = _request(resident, at, request, prompt(resident, at), board.now)
            order, preemptions = -1, 0
        return Row(known, order, length, At.POOLED, place, board.now, left, preemptions=preemptions)

    def _come(self, fresh: Sequence[Row]) -> None:
        """Rows that were not there before, or queued until now."""
        for row in fresh:
            if row.order < 0:
                row.order = self.board.next_order()
            else:
                self.board.queue.remove(row.request.id)
            self.board.put(row, At.PREFILL if row.left else At.POOLED)
            self.news = True

    def _go(self, present: Mapping[RequestId, int]) -> None:
        """Rows that are gone have ended: finished if they ran, with the tokens of the steps since."""
        board = self.board
        for request in self._ids:
            if request not in present and request in board.rows:
                row = board.rows[request]
                self.ended.append(Ended(row.request, board.produced(row), row.at is At.RUNNING))
                board.remove(row)
                self.news = True

    def _change(self, row: Row, length: int, left: int, place: str) -> None:
        """A row whose length, prefill or place is other than foreseen."""
        at = row.at
        if (left, place) != (row.left, row.place):
            self.news = True
        if left:
            at = At.PREFILL
        elif at is At.PREFILL or (at is At.RUNNING and place != DEVICE):
            at = At.POOLED
        self.board.update(row, length, left, place, at)

    # -- the queue

    def _check_queued(self, queued: Queued, present: Mapping[RequestId, int]) -> list[tuple[Request, int | None]]:
        """Requests of the table that do not queue yet, with what they have produced."""
        check_rows(queued)
        _numbered(queued)
        arriving = []
        for at, request in enumerate(queued.ids):
            if request in present:
                raise bad(queued, "ids", at, request, "no request that Resident has too")
            if request not in self.board.queue:
                check_row(queued, at)
                arrived = _request(queued, at, request, prompt(queued, at), self.board.now)
                arriving.append((arrived, value(queued.produced, at, None)))
        return arriving

    def _apply_queued(self, queued: Queued, arriving: Sequence[tuple[Request, int | None]]) -> None:
        board, present = self.board, dict.fromkeys(queued.ids)
        for request in [request for _, request in board.queue.rows() if request not in present]:
            waiting = board.queue.get(request)
            if request in self.ordered:  # begun and ended in one step: the token that its prefill gave was its last
                self.ended.append(Ended(waiting.request, waiting.produced + 1, True))
            board.queue.remove(request)
            self.news = True
        for arrived, produced in arriving:
            self.enqueue(arrived, produced)

    def enqueue(self, request: Request, produced: int | None) -> None:
        """A request queues; one whose KV existed until now has lost it. Raises CallerError if it queues already."""
        board = self.board
        if request.id in board.queue:
            raise CallerError(f"request {request.id!r} queues already")
        self.news = True
        row = board.rows.get(request.id)
        if row is not None:
            board.queue_again(row, rank_of(self.policy, row.request), produced)
            self.doubt()
        else:
            waiting = Waiting(request, board.next_order(), produced or 0, 1 if produced else 0, board.now)
            board.queue.add(waiting, rank_of(self.policy, request))


def rank_of(policy: Policy, request: Request) -> float:
    """Where a request queues. Raises PolicyError if the policy raises."""
    return ask(policy, lambda: policy.admission.rank(request))


def _numbered(columns: Resident | Queued) -> dict[RequestId, int]:
    """Rows by id. Raises CallerError for an id that stands twice, or is no id."""
    try:
        rows = dict(zip(columns.ids, range(len(columns.ids)), strict=True))
    except TypeError:  # cannot be hashed
        rows = {}
    if len(rows) < len(columns.ids):
        check_ids(columns)
    return rows


def _plain(column: Any) -> list[int]:
    """A copy of a column, numpy's integers as Python's: what the engine does with its own later changes nothing."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _python(column: Any) -> Any:
    """A column that is read once: numpy's numbers as Python's."""
    return column.tolist() if hasattr(column, "tolist") else column


def _python_queue(queued: Queued) -> Queued:
    columns = (queued.tokens, queued.produced, queued.limits, queued.since, queued.priorities)
    return Queued(queued.ids, *map(_python, columns))


def _request(columns: Resident | Queued, at: int, request: RequestId, tokens: int, now: float) -> Request:
    return Request(
        request,
        tokens,
        value(columns.limits, at, None),
        arrival=float(value(columns.since, at, now)),  # a single number of numpy's is a float, and is none to Request
        priority=value(columns.priorities, at, 0),
    )

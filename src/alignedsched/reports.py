"""Reports of steps, held against what can be true: who may have finished, and whose chunks must be written."""

from __future__ import annotations

from .books import Books
from .errors import ExecutorError
from .events import StepsDone, StepsFailed
from .lane_book import LaneBook
from .live import Live
from .plan import Chunk
from .states import RequestState

R = RequestState


class Reports:
    """Checks reports before they change anything. O(what the report names)."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def check(self, lane: LaneBook, event: StepsDone | StepsFailed) -> None:
        """Raise ExecutorError if a report names what cannot have finished, or misses what must have."""
        order = lane.state.find(event.order)
        assert order is not None
        where = f"lane {event.lane!r}, order {event.order}"
        chunks = {chunk.request: chunk for chunk in order.step.chunks}
        named = {request for request, _ in event.finished}
        for request, step in event.finished:
            live = self._books.live.get(request)
            in_chunk = request in chunks and chunks[request].last
            if live is None or not (in_chunk or self._is_member(lane, live)):
                raise ExecutorError(f"{where}: {request!r} finished, but is no member")
            if not lane.state.reported < step <= event.through:
                raise ExecutorError(f"{where}: {request!r} finished in step {step}, outside of what is newly done")
        if isinstance(event, StepsDone) and (chunks or event.prefilled):
            self._check_chunks(where, chunks, event)
        for batch in lane.state.batches:
            limit = batch.next_limit()
            if limit is not None and limit[0] <= event.through and limit[1] not in named:
                due = self._due(self._books.live[limit[1]], limit[0], event)
                if due is not None and due <= event.through:
                    raise ExecutorError(f"{where}: {limit[1]!r} went on beyond its limit, reached in step {due}")

    @staticmethod
    def _due(live: Live, limit: int, event: StepsDone | StepsFailed) -> int | None:
        """The step of a member's last allowed token, if the report says or has said when it joined."""
        if live.base is not None:
            return limit
        return event.first + live.allowance - 1 if live.join_order <= event.order else None

    def _check_chunks(self, where: str, chunks: dict[str, Chunk], event: StepsDone) -> None:
        unknown = [request for request in event.prefilled if request not in chunks]
        missing = [r for r in chunks if r not in event.prefilled and self._wants(r)]
        if unknown or missing:
            raise ExecutorError(f"{where}: prefilled {event.prefilled!r}, but its chunks are of {tuple(chunks)!r}")

    def _wants(self, request: str) -> bool:
        live = self._books.live.get(request)
        return live is not None and live.state not in (R.ENDED, R.LEAVING)

    def _is_member(self, lane: LaneBook, live: Live) -> bool:
        return live.lane == lane.id and live.state in (R.RUNNING, R.LEAVING, R.ENDED)

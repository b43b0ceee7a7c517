"""A lane that runs: takes standing orders, launches steps ahead of the host's knowledge, and tells what they made.

A step is launched whole: its rows, pages and chunks are fixed on the host, its arithmetic is queued on the compute
stream, and its tokens come back behind an event. At most ``run_ahead + 1`` steps are launched beyond the last one that
has ended. A row whose stop token is discovered late has run a step or two too many; those are ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from alignedsched.cluster import Lane
from alignedsched.errors import ExecutorError
from alignedsched.events import StepsDone, StepsFailed
from alignedsched.plan import Chunk, Step
from alignedsched.request import RequestId

from .devices import Event
from .failing import poisoned, unwrite
from .forward import ChunkWork, Forward, StepWork
from .job import Job
from .memory import KVPool
from .orders import InForce, Launched
from .reports import Reports
from .table import Batch, Column


class LaneRunner:
    """One lane in one process. Its steps are numbered from ``first_step`` on."""

    def __init__(
        self, lane: Lane, forward: Forward, pool: KVPool, jobs: Mapping[RequestId, Job], first_step: int = 0
    ) -> None:
        self.lane = lane
        self.launched = self.done = first_step - 1
        self.steps = 0
        self._forward = forward
        self.attention = forward.attention.name  # see ``kernels.choice``
        self._pool = pool
        self._jobs = jobs
        self._table = forward.table
        self._device = pool.device
        self._pending: deque[Step] = deque()
        self._reports = Reports(lane, self.done)
        self._flying: deque[Launched] = deque()
        self._leaving: dict[int, int] = {}  # slots, and the last step that writes each
        self._members: dict[RequestId, int] = {}

    # -- orders

    def take(self, step: Step) -> None:
        """An order has come. While a failure is being reported it is void: it was made without knowing of it."""
        if self._reports.failed is None:
            self._pending.append(step)
            self._change()

    def members(self) -> int:
        return len(self._members)

    def awaited(self) -> set[RequestId]:
        """Requests that orders name whose first step has not been launched."""
        steps = [*self._pending, *(order.step for order in self._reports.not_begun(self.launched))]
        joins = {join.request for step in steps for join in step.joins}
        return joins | {chunk.request for step in steps for chunk in step.chunks}

    def _change(self) -> None:
        """Orders take effect before the next step, each with chunks only after the one before has run its own."""
        while self._pending:
            force = self._reports.force
            if force is not None and force.step.chunks and self.launched < force.first:
                return
            self._apply(self._pending.popleft(), self.launched + 1)

    def _apply(self, step: Step, first: int) -> None:
        self._reports.take(InForce(step, first))
        leaves = [self._members.pop(request) for request in step.leaves if request in self._members]
        self._leaving |= dict.fromkeys(leaves, self.launched)
        for slot in leaves:
            self._table.leave(slot)
        for join in step.joins:
            job = self._jobs.get(join.request)
            if job is None or job.ended:
                continue  # it ended by its last chunk's token
            if join.request in self._members:
                raise ExecutorError(f"lane {self.lane.id!r}, order {step.order}: {join.request!r} joins twice")
            made = join.context_length - len(job.prompt)
            slot = job.slot
            if slot < 0:
                if len(job.produced) != made:
                    raise ExecutorError(
                        f"lane {self.lane.id!r}, order {step.order}: {join.request!r} joins with {join.context_length} "
                        f"tokens, but has {len(job.prompt)} and made {len(job.produced)}"
                    )
                slot = self._table.seat(job, join.context_length, job.produced[-1])
            self._members[join.request] = slot
            self._table.join(slot, first, first + job.limit - made - 1)
        self._settle_left()

    # -- running

    def pump(self, through: int | None = None) -> bool:
        """Take in what has ended, launch what may be. True if there is something to report.

        At most run-ahead + 1 steps are launched by one call, so that whoever calls hears of other things between. With
        ``through`` the steps up to that one, waited for, and no others count as ended.
        """
        self.end_steps(self.ended() if through is None else through)
        while not self.due() and self.launched - self.done <= self.lane.run_ahead and self._launch():
            pass
        return self.due()

    def _launch(self) -> bool:
        """Launch the next step if there is one to run."""
        if self._reports.failed is not None:
            return False
        self._change()
        force, number = self._reports.force, self.launched + 1
        if force is None or number > force.last:
            return False
        self._table.expire(number)
        batch = self._table.form()
        chunks = force.step.chunks if number == force.first else ()
        if not len(batch.rows) and not chunks:
            return False
        began = self._device.now()
        try:
            work = self._prepare(batch, chunks)
            tokens, event = self._forward.launch(work)
        except (ExecutorError, RuntimeError, MemoryError) as error:
            for chunk in chunks:
                self._pool.keep(chunk.request, chunk.start)
            self._fail(str(error) or type(error).__name__)
            return False
        self._flying.append(Launched(number, force, batch, chunks, tokens, event, began))
        self.launched = number
        batch.steps += 1
        self.steps += 1
        return True

    def _prepare(self, batch: Batch, chunks: tuple[Chunk, ...]) -> StepWork:
        """Pages for everything the step writes, and its rows as they are now."""
        table = self._table
        table.grow()
        work = []
        for chunk in chunks:
            job = self._jobs[chunk.request]
            self._pool.hold(chunk.request, chunk.end)
            slot = -1
            if chunk.last:
                slot = job.slot if job.slot >= 0 else table.seat(job, chunk.end + 1, -1)
            work.append(
                ChunkWork(job.tokens(chunk.start, chunk.end), chunk.start, self._pool.pages(chunk.request), slot)
            )
        draws = batch.draws or any(table.draws[chunk.slot] for chunk in work if chunk.slot >= 0)
        return StepWork(batch.rows, batch.version, batch.lengths + batch.steps, tuple(work), table.take_delta(), draws)

    # -- what steps made

    def ended(self) -> int:
        """The last step that has ended, taken in or not; one that failed has ended too."""
        last = self.done
        for step in self._flying:
            try:
                if not step.event.done():
                    break
            except RuntimeError:  # told by ``end_steps``
                return step.number
            last = step.number
        return last

    def end_steps(self, through: int) -> None:
        """Take in the steps up to that one, as soon as they have ended; launch nothing."""
        while self._flying and self._flying[0].number <= through and self._reports.failed is None:
            try:
                self._flying[0].event.wait()
            except RuntimeError as error:
                self._fail(str(error) or type(error).__name__)
                return
            self._take_in(self._flying.popleft())

    def _take_in(self, step: Launched) -> None:
        """A step has ended: tokens to their requests, finished ones out."""
        now = self._device.now()
        made: Column = step.tokens.numpy()
        if len(made) and int(made.min()) < 0:
            self._flying.appendleft(step)  # it did not happen either
            self._fail("its logits are not finite", poisoned(step, made, self._table, self._jobs))
            return
        self._reports.step_ended(step.order, step.began, now)
        self.done = step.number
        rows = len(step.batch.rows)
        if step.chunks:
            self._chunks_ended(step, made[rows:])
        self._rows_ended(step, made[:rows])
        self._settle_left()

    def _chunks_ended(self, step: Launched, firsts: Column) -> None:
        order = step.order
        last = iter(firsts.tolist())
        for chunk in step.chunks:
            order.prefilled.append(chunk.request)
            if not chunk.last:
                continue
            token = next(last)
            job = self._jobs.get(chunk.request)
            if job is None or job.ended:
                continue
            job.produced.append(token)
            if job.heard is not None:
                job.heard(token)
            if job.ends_with(token):
                self._finish(job, step)
            elif job.slot >= 0 and chunk.request not in self._members and job.slot not in self._leaving:
                self._table.unseat(job.slot)  # it joins later, with a token the host knows

    def _rows_ended(self, step: Launched, tokens: Column) -> None:
        table, batch = self._table, step.batch
        table.record(step.number, batch, tokens)
        for at in batch.listens:
            job = table.jobs[batch.rows[at]]
            if job is not None and job.heard is not None and not job.ended:
                job.heard(int(tokens[at]))
        for job in table.ending(step.number, batch, tokens):
            self._finish(job, step)

    def _finish(self, job: Job, step: Launched) -> None:
        """A request made its last token; it leaves by itself."""
        job.ended = True
        step.order.finished.append((job.id, step.number))
        slot = self._members.pop(job.id, job.slot)
        if slot >= 0:
            self._table.end(slot)
            self._leaving.setdefault(slot, self.launched)  # an order may have taken it out already

    def _settle_left(self) -> None:
        """Rows that no launched step writes any more are free."""
        if not self._leaving:
            return
        for slot in [slot for slot, last in self._leaving.items() if last <= self.done]:
            del self._leaving[slot]
            self._table.unseat(slot)

    # -- failures

    def fail(self, reason: str) -> bool:
        """The oldest step under way counts as failed, and all behind it. False: none is under way."""
        if not self._flying or self._reports.failed is not None:
            return False
        self._fail(reason)
        return True

    def _fail(self, reason: str, culprits: tuple[RequestId, ...] = ()) -> None:
        """The next step failed: nothing beyond ``done`` counts, the lane is empty and waits for an order."""
        unwrite(self._flying, self._table, self._pool, (*self._members.values(), *self._leaving))
        self.launched = self.done
        self._reports.fail(self.done, reason, culprits)
        self._table.clear()
        self._leaving.clear()
        self._members.clear()
        self._pending.clear()

    # -- reports

    def due(self) -> bool:
        """Whether there is something the scheduler has to hear now."""
        return self._reports.due(self.done)

    def next_event(self) -> Event | None:
        """What the lane waits for."""
        return self._flying[0].event if self._flying else None

    def reports(self) -> list[StepsDone | StepsFailed]:
        """What is done and was not told: of orders replaced since, then of the one in force, then a failure."""
        return self._reports.tell(self.done, self.launched)

    def drop(self, job: Job) -> None:
        """A request was released: whatever row it has goes when nothing writes it."""
        slot = self._members.pop(job.id, job.slot)
        job.ended = True
        if slot < 0 or self._table.jobs[slot] is not job:
            return
        self._table.end(slot)
        self._leaving.setdefault(slot, self.launched)
        self._settle_left()

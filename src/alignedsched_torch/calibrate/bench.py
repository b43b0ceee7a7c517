"""One lane on a bench: the real executor runs batches of chosen lengths, without a scheduler and without prefill.

A batch is put together by hand: each request gets its pages, which hold noise, and joins with the context length that
is wanted. Then a standing order runs some steps, as it does under a scheduler, and the stopwatch tells what one took.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from alignedsched.cluster import Cluster
from alignedsched.errors import ExecutorError
from alignedsched.events import CopyDone, StepsDone
from alignedsched.plan import Chunk, Copy, Join, Outcome, Plan, Release, Step
from alignedsched.request import Request

from ..devices import Device
from ..executor import TorchExecutor
from ..job import Job
from ..models import Decoder
from .stopwatch import Stopwatch

STEPS = 4  # of an order that are timed


class Bench:
    """The lane that decodes, in a cluster of its own. Every method leaves it empty."""

    def __init__(
        self,
        cluster: Cluster,
        devices: Mapping[str, Device],
        decoders: Mapping[str, Decoder],
        attention: str = "auto",
    ) -> None:
        self.cluster = cluster
        self.executor = TorchExecutor(cluster, devices, decoders, attention=attention)
        self.lane = next(lane for lane in cluster.lanes if cluster.role(lane).decodes)
        self.attention = self.executor.lanes[self.lane.id].attention
        self.device = devices[self.lane.ranks[0]]
        self.decoder = decoders[self.lane.id]
        self.watch = Stopwatch(self.device)
        self._numbers = itertools.count(1)
        self._vocab = self.decoder.config.vocab
        for pool in self.executor.pools.values():  # memory that nobody wrote may not even be there
            _fill(pool.data)

    # -- steps

    def decode(self, lengths: Sequence[int], steps: int = STEPS) -> float:
        """Seconds of one step of members whose context lengths are ``lengths`` in the middle of ``steps`` steps.

        One step more comes first: with it the batch is put together, on a device that waits, and its end starts the
        clock. What is timed is how steps follow each other while the batch stays as it is.
        """
        starts = [max(2, length - (steps - 1) // 2 - 1) for length in lengths]
        plan, jobs = self._order((), starts, 1 + steps)
        lane = self.executor.lanes[self.lane.id]
        first = lane.done + 1
        self.executor.submit(plan)
        lane.end_steps(first)
        self.watch.start_amid()
        seconds, _ = self._until_done(plan.steps[0])
        self._clear(jobs)
        return seconds / steps

    def chunk(self, start: int, end: int, lengths: Sequence[int] = ()) -> float:
        """Seconds of one step with a prefill chunk of tokens ``start`` to ``end``, beside decoding members."""
        return self.chunks_beside(((start, end),), lengths)

    def chunks_beside(self, chunks: Sequence[tuple[int, int]], lengths: Sequence[int]) -> float:
        """Seconds of one step with these chunks, from its order to its report, in a lane whose members decode already.

        They have made a step before, so that only the chunks are new, as in service.
        """
        jobs: tuple[str, ...] = ()
        if lengths:
            plan, jobs = self._order((), [max(2, length - 1) for length in lengths], 1)
            self.executor.submit(plan)
            self._until_done(plan.steps[0])
        plan, more = self._order(chunks, (), 1)
        self.watch.start()
        self.executor.submit(plan)
        self._until_done(plan.steps[0])
        seconds = self.watch.stop()
        self._clear((*jobs, *more))
        return seconds

    def beside(
        self, lengths: Sequence[int], steps: int, source: str = "", target: str = "", tokens: int = 0
    ) -> tuple[float, float]:
        """Decode steps and a copy begun together: seconds until all steps are reported, and until the copy is.

        Without ``tokens`` the same steps alone.
        """
        plan, jobs = self._order((), lengths, steps)
        copy = self._copy(source, target, tokens) if tokens else None
        self.watch.start()
        self.executor.submit(Plan(steps=plan.steps, copies=(copy,) if copy is not None else ()))
        taken = self._until_done(plan.steps[0], copy)
        self._clear((*jobs, *([copy.request] if copy is not None else [])))
        return taken

    def _order(
        self, chunks: Sequence[tuple[int, int]], lengths: Sequence[int], steps: int
    ) -> tuple[Plan, tuple[str, ...]]:
        """An order for new requests, and their names."""
        members = [self._seated(length) for length in lengths]
        parts = tuple(self._chunk(start, end) for start, end in chunks)
        joins = tuple(Join(job.id, length) for job, length in zip(members, lengths, strict=True))
        order = Step(self.lane.id, next(self._numbers), steps, joins=joins, chunks=parts)
        return Plan(steps=(order,)), (*(job.id for job in members), *(chunk.request for chunk in parts))

    def _until_done(self, order: Step, copy: Copy | None = None) -> tuple[float, float]:
        """Wait for the order's last step, and a copy; seconds until each was reported. Raises what went wrong."""
        stepped = copied = 0.0
        while not stepped or (copy is not None and not copied):
            for event in self.executor.wait(None):
                if isinstance(event, StepsDone):
                    if event.order == order.order and event.through - event.first + 1 == order.horizon:
                        stepped = self.watch.lap()
                elif isinstance(event, CopyDone):
                    copied = self.watch.lap()
                else:
                    raise ExecutorError(f"on the bench, {order} and {copy}: {event}")
        return stepped, copied

    def _seated(self, length: int) -> Job:
        """A request whose next step reads ``length`` tokens."""
        job = self._job(length - 1)
        job.produced.append(0)
        self.executor.pools[self.lane.ranks[0]].hold(job.id, length - 1)
        return job

    def _chunk(self, start: int, end: int) -> Chunk:
        job = self._job(end)
        if start:
            self.executor.pools[self.lane.ranks[0]].hold(job.id, start)
        return Chunk(job.id, start, end, last=True)

    def _job(self, prompt: int) -> Job:
        name = f"bench{next(self._numbers)}"
        job = Job(Request(name, prompt, 1 << 20), np.zeros(prompt, dtype=np.int64), 1 << 20)
        job.prompt[-1] = prompt % self._vocab
        self.executor.expect(job)
        return job

    def _clear(self, jobs: Sequence[str]) -> None:
        """Requests leave the lane, and everything of them is forgotten."""
        stop = Step(self.lane.id, next(self._numbers), 0)
        gone = tuple(Release(job, Outcome.CANCELLED) for job in jobs)
        self.executor.submit(Plan(steps=(stop,), releases=gone))
        self.executor.lanes[self.lane.id].reports()

    # -- copies

    def copy(self, source: str, target: str, tokens: int) -> float:
        """Seconds until one copy of ``tokens`` tokens between tiers has been reported."""
        copy = self._copy(source, target, tokens)
        self.watch.start()
        self.executor.submit(Plan(copies=(copy,)))
        events = self.executor.wait(None)
        while not events:
            events = self.executor.wait(None)
        seconds = self.watch.stop()
        if not isinstance(events[0], CopyDone):
            raise ExecutorError(f"on the bench, {copy}: {events[0]}")
        self._clear((copy.request,))
        return seconds

    def _copy(self, source: str, target: str, tokens: int) -> Copy:
        job = self._job(tokens)
        self.executor.pools[source].hold(job.id, tokens)
        return Copy(next(self._numbers), job.id, source, target, 0, tokens)


def _fill(data: torch.Tensor) -> None:
    """Noise of the size of keys and values, written a stretch at a time."""
    flat = data.view(-1)
    generator = torch.Generator(flat.device).manual_seed(0)
    stretch = torch.randn(min(flat.numel(), 1 << 20), generator=generator, device=flat.device).to(flat.dtype)
    for start in range(0, flat.numel(), stretch.numel()):
        part = flat[start : start + stretch.numel()]
        part.copy_(stretch[: part.numel()])

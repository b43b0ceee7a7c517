"""A step failed: who caused it, and what has to be given back because it did not happen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np

from alignedsched.request import RequestId

from .job import Job
from .memory import KVPool
from .orders import Launched
from .table import BatchTable, Column


def poisoned(step: Launched, made: Column, table: BatchTable, jobs: Mapping[RequestId, Job]) -> tuple[RequestId, ...]:
    """Requests whose numbers are not finite (``made`` is negative): they caused the failure, the others go on."""
    lasts = [chunk.request for chunk in step.chunks if chunk.last]
    names = []
    for at in np.flatnonzero(made < 0).tolist():
        rows = step.batch.rows
        job = table.jobs[int(rows[at])] if at < len(rows) else jobs.get(lasts[at - len(rows)])
        if job is not None and not job.ended:
            names.append(job.id)
    return tuple(sorted(names))


def unwrite(flying: deque[Launched], table: BatchTable, pool: KVPool, slots: Iterable[int]) -> None:
    """Steps under way did not happen: give back the pages they would have filled; ``slots`` are the lane's rows."""
    for step in flying:
        with suppress(RuntimeError):  # one that failed has ended
            step.event.wait()  # what it still writes must not land in pages that somebody else has by then
    table.undo([step.batch for step in flying])
    while flying:
        step = flying.pop()
        for chunk in step.chunks:
            pool.keep(chunk.request, chunk.start)
    for slot in slots:
        job = table.jobs[slot]
        if job is not None and not job.ended:
            pool.keep(job.id, table.length(slot) - 1)

"""After a crash: the scheduler as its log says it was, and what to tell one whose executor has begun anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from ..errors import LogError
from ..events import DeviceBack, DeviceLost, Event, WeightsChanged
from ..load import Costs
from ..policies.protocols import Policy
from ..request import Request
from ..scheduler import Scheduler
from .log import LogReader
from .origin import make_policy
from .recorder import RecordedScheduler
from .replay import rerun
from .snapshot import restore, snapshot


def resume(
    path: str | os.PathLike[str],
    *,
    policy: Callable[[], Policy] | None = None,
    costs: Costs | None = None,
    eligible: Callable[[Request], bool] | None = None,
    calls: int = 256,
) -> RecordedScheduler:
    """The scheduler as it was after the last whole call of a log, recorded further into the same file.

    ``policy`` makes the policy where no registered name does; ``costs`` and ``eligible`` as for ``restore``. Raises
    LogError for a log that is not as it was written, or whose plans come out differently now: then the scheduler would
    not be the one whose plans the executor has. O(the calls of the log): begin a new log now and then, it begins with
    a snapshot.
    """
    begun: list[Scheduler] = []
    with LogReader(path) as log:
        for again in rerun(log, policy=policy, costs=costs, begin=begun.append):
            if not again.same:
                raise LogError(f"call {again.call.number} comes out differently now (see `replay`)", file=log.name)
        assert log.origin is not None  # a log begins with one
        fresh = policy() if policy is not None else make_policy(log.origin)
    make = partial(RecordedScheduler, path, append=True, calls=calls)
    scheduler = restore(snapshot(begun[-1]), begun[-1].cluster, fresh, costs, eligible=eligible, make=make)
    assert isinstance(scheduler, RecordedScheduler)
    return scheduler


def recovery_events(scheduler: Scheduler) -> tuple[Event, ...]:
    """Events for one call: every device was lost, all KV is void (the host's too), every device is back and empty.

    No request is lost by it: each that had begun is prefilled again, with its prompt and the tokens it had made, which
    the executor has kept. Copies and steps under way have ended, and nothing more is to be reported of them. Each lane
    goes on with the step after the last one reported (``DeviceBack.next_step``); links and capacities are as at first
    until other events say more. The plan of the call may drop and abort what the new executor never had: it passes
    over that.
    """
    books = scheduler._books
    next_step = {tier: lane.state.reported + 1 for lane in books.lanes.values() for tier in lane.tiers}
    devices = [device.id for device in scheduler.cluster.devices]
    lost = [DeviceLost(device) for device in devices]
    back = [DeviceBack(device, next_step.get(device, 0)) for device in devices]
    return (*lost, WeightsChanged(), *back)

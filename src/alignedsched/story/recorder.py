"""A scheduler that keeps a log of itself: made like any other, with the log's path in front."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from ..cluster import Cluster
from ..events import Event
from ..load import Costs
from ..plan import Plan
from ..policies.protocols import Policy
from ..request import Request
from ..scheduler import Scheduler
from .log import LogWriter, readable
from .snapshot import parts


class RecordedScheduler(Scheduler):
    """A Scheduler whose every call goes into a log, also those that raise. A context manager; close it.

    The log begins with the state before the first call, so that a scheduler that ``restore`` made can be recorded, and
    a log can be appended to. The answers of the ``eligible`` hook are recorded too: it may look at anything. Whatever
    else a policy asks must be in the events, or in what ``costs`` say.

    ``calls`` calls make a frame: what a killed process loses at most. With 1 every call is in the file before its plan
    is handed out. Trouble with the file never reaches ``handle``; ``close`` raises it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cluster: Cluster,
        policy: Policy,
        costs: Costs | None = None,
        *,
        eligible: Callable[[Request], bool] | None = None,
        append: bool = False,
        calls: int = 256,
        **settings: Any,
    ) -> None:
        self._hook = eligible
        self._answers: list[str] = []
        super().__init__(cluster, policy, costs, eligible=None if eligible is None else self._ask, **settings)
        self.log = LogWriter(path, append=append, calls=calls)
        self._begun = False
        # A log that nobody closed still gets its last calls.
        self._last = weakref.finalize(self, self.log.abandon)

    def handle(self, now: float, *events: Event) -> Plan:
        """See Scheduler."""
        if not self._begun:
            self._begun = True
            self.log.start(parts(self))
        try:
            plan = super().handle(now, *events)
        except Exception as error:
            self.log.call(now, tuple(map(readable, events)), None, type(error).__name__, self._said())
            self.log.flush()
            raise
        self.log.call(now, events, plan, "", self._said() if self._answers else "")
        return plan

    def _ask(self, request: Request) -> bool:
        assert self._hook is not None
        try:
            answer = bool(self._hook(request))
        except Exception:
            self._answers.append("!")
            raise
        self._answers.append("1" if answer else "0")
        return answer

    def _said(self) -> str:
        said = "".join(self._answers)
        self._answers.clear()
        return said

    def close(self) -> None:
        """Write the rest of the log. Raises LogError if anything could not be written."""
        self.log.close()

    def __enter__(self) -> RecordedScheduler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

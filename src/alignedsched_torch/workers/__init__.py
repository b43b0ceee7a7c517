"""Several processes: one worker a device, orders and reports through shared memory, the scheduler in the caller's."""

from __future__ import annotations

from .executor import WorkersExecutor
from .spec import Limits

__all__ = ["Limits", "WorkersExecutor"]

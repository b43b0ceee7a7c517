"""alignedsched: decides which LLM requests decode together, what runs next, and where their KV cache lies."""

from __future__ import annotations

from .cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from .driver import AsyncExecutor, Executor, as_arrivals, drive, drive_async
from .errors import (
    AlignedSchedError,
    CallerError,
    ConfigError,
    ExecutorError,
    HookError,
    InvariantError,
    LogError,
    PolicyError,
    TraceError,
)
from .load import Costs
from .plan import Outcome, Plan
from .policies.protocols import Policy
from .registry import policy, policy_names
from .request import Request
from .scheduler import Scheduler
from .version import VERSION

__version__ = VERSION

__all__ = [
    "HOST",
    "AlignedSchedError",
    "AsyncExecutor",
    "CallerError",
    "Cluster",
    "ConfigError",
    "Costs",
    "Device",
    "Executor",
    "ExecutorError",
    "HookError",
    "InvariantError",
    "KVLayout",
    "Lane",
    "Link",
    "LogError",
    "Outcome",
    "Plan",
    "Policy",
    "PolicyError",
    "Request",
    "Role",
    "Scheduler",
    "TraceError",
    "as_arrivals",
    "drive",
    "drive_async",
    "policy",
    "policy_names",
]

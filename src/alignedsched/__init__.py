"""alignedsched: decides which LLM requests decode together, what runs next, and where their KV cache lies."""

from __future__ import annotations

from .cluster import HOST, Cluster, Device, KVLayout, Lane, Link, Role
from .driver import AsyncExecutor, Executor, as_arrivals, drive, drive_async
from .errors import (
    AlignedSchedError,
    CallerError,
    ConfigError,
    ExecutorError,
    InvariantError,
    PolicyError,
    TraceError,
)
from .load import Costs
from .plan import Outcome, Plan
from .policies.protocols import Policy
from .registry import policy, policy_names
from .request import Request
from .scheduler import Scheduler

__version__ = "0.1.0"

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
    "InvariantError",
    "KVLayout",
    "Lane",
    "Link",
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

"""Tests for others' policies and executors: conformance suites, a random world, strategies, faults.

What is exported here needs no pytest and no hypothesis. ``strategies`` and ``machine`` need hypothesis (the extra
``testing``), ``pytest_checks`` needs pytest.
"""

from __future__ import annotations

from .adversarial_executor import AdversarialExecutor
from .capabilities import Capabilities
from .clusters import random_cluster
from .executor_suite import EXECUTOR_CHECKS, check_executor, simulated
from .faults import FAMILIES, Fault, FaultPlan, cancel_storm
from .faulty_executor import FaultyExecutor
from .policy_suite import POLICY_CHECKS, check_policy
from .results import SUITE_VERSION, ConformanceError, Finding, Report, Result, Verdict
from .streams import Job, random_request, stream
from .world import World, walk

__all__ = [
    "EXECUTOR_CHECKS",
    "FAMILIES",
    "POLICY_CHECKS",
    "SUITE_VERSION",
    "AdversarialExecutor",
    "Capabilities",
    "ConformanceError",
    "Fault",
    "FaultPlan",
    "FaultyExecutor",
    "Finding",
    "Job",
    "Report",
    "Result",
    "Verdict",
    "World",
    "cancel_storm",
    "check_executor",
    "check_policy",
    "random_cluster",
    "random_request",
    "simulated",
    "stream",
    "walk",
]

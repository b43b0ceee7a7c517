"""The suites as pytest classes to subclass: one test a check.

    class TestMine(PolicyConformance):
        subject = "mypackage:my_policy"

The suite runs once a class; a skipped check is a skipped test, a known gap an expected failure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import pytest

from ..cluster import Cluster
from ..driver import Executor
from .executor_suite import EXECUTOR_CHECKS, check_executor
from .policy_suite import POLICY_CHECKS, check_policy
from .results import Report, Verdict
from .subjects import PolicyFactory


class _Conformance(ABC):
    known_gaps: ClassVar[Mapping[str, str]] = {}
    options: ClassVar[Mapping[str, Any]] = {}  # further arguments of the suite's function
    _reports: ClassVar[dict[type, Report]] = {}

    @abstractmethod
    def _run(self) -> Report:
        """The suite's report on the class's subject."""

    def _result(self, check: str) -> None:
        reports = self._reports
        if type(self) not in reports:
            reports[type(self)] = self._run()
        result = reports[type(self)][check]
        if result.verdict is Verdict.SKIPPED:
            pytest.skip(result.why)
        if result.verdict is Verdict.KNOWN_GAP:
            pytest.xfail(result.why)
        if result.verdict is Verdict.FAILED:
            pytest.fail(f"{check}: {result.why}\n{reports[type(self)]}")


class PolicyConformance(_Conformance):
    """Set ``subject`` to a registered name, ``"module:attribute"`` or, as a staticmethod, a factory of policies."""

    subject: PolicyFactory | str
    seeds: ClassVar[Iterable[int]] = range(6)

    def _run(self) -> Report:
        return check_policy(self.subject, seeds=self.seeds, known_gaps=self.known_gaps, **self.options)

    @pytest.mark.parametrize("check", POLICY_CHECKS)
    def test_policy(self, check: str) -> None:
        """One check of the policy suite."""
        self._result(check)


class ExecutorConformance(_Conformance):
    """Set ``subject`` to a factory that makes an executor for a cluster (as a staticmethod)."""

    subject: Callable[[Cluster], Executor]
    seeds: ClassVar[Iterable[int]] = range(16)

    def _run(self) -> Report:
        return check_executor(type(self).subject, seeds=self.seeds, known_gaps=self.known_gaps, **self.options)

    @pytest.mark.parametrize("check", EXECUTOR_CHECKS)
    def test_executor(self, check: str) -> None:
        """One check of the executor suite."""
        self._result(check)

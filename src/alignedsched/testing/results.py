"""What a conformance run says: one result per named check, and the suite's version."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from attrs import define, field, frozen

from ..errors import AlignedSchedError, ConfigError

SUITE_VERSION = "1.0"


class ConformanceError(AlignedSchedError, AssertionError):
    """A policy or an executor does not pass; the message is the whole report."""


class Verdict(enum.Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    KNOWN_GAP = "known gap"  # fails, and the caller had said so


@frozen
class Finding:
    """What broke a check: the life (``seed``) and how many calls of it suffice to see it."""

    message: str
    seed: int | None = None
    calls: int | None = None

    def __str__(self) -> str:
        where = "" if self.seed is None else f" [seed {self.seed}, {self.calls} calls]"
        return self.message + where


@frozen
class Result:
    """One check: its name, its verdict, and why, if it did not simply pass."""

    check: str
    verdict: Verdict
    why: str = ""
    finding: Finding | None = None


@frozen
class Report:
    """The results of a suite for one subject, in the suite's order. ``str()`` is a table for people."""

    subject: str
    results: tuple[Result, ...]
    suite: str
    version: str = SUITE_VERSION

    def __getitem__(self, check: str) -> Result:
        """The result of a check. Raises KeyError for an unknown one."""
        for result in self.results:
            if result.check == check:
                return result
        raise KeyError(check)

    def named(self, verdict: Verdict) -> tuple[str, ...]:
        """Names of the checks that ended so."""
        return tuple(result.check for result in self.results if result.verdict is verdict)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return self.named(Verdict.FAILED)

    @property
    def passed(self) -> bool:
        """Whether no check failed; known gaps and skipped checks do not count as failed."""
        return not self.failed

    def raise_if_failed(self) -> None:
        """Raise ConformanceError with the whole report unless everything passed."""
        if self.failed:
            raise ConformanceError(str(self))

    def __str__(self) -> str:
        width = max((len(result.check) for result in self.results), default=0)
        lines = [f"{self.subject}: {self.suite} suite {self.version}, {self._sum()}"]
        for result in self.results:
            why = f"  {result.why}" if result.why else ""
            lines.append(f"  {result.check:<{width}}  {result.verdict.value:<9}{why}".rstrip())
        return "\n".join(lines)

    def _sum(self) -> str:
        counted = ((verdict, len(self.named(verdict))) for verdict in Verdict)
        return ", ".join(f"{count} {verdict.value}" for verdict, count in counted if count)


@define(eq=False)
class Findings:
    """Collects what breaks checks over many lives; of each check the finding that needs the fewest calls stays."""

    checks: Mapping[str, str]  # name -> what it demands
    found: dict[str, Finding] = field(factory=dict)
    skipped: dict[str, str] = field(factory=dict)
    seed: int | None = None  # of the life under way
    calls: int = 0  # made in it so far

    @classmethod
    def anything(cls) -> Findings:
        """Findings nobody will read: every name is a check."""
        return cls(_Anything())

    def note(self, check: str, message: str) -> None:
        """A check does not hold, as seen now."""
        if check not in self.checks:
            raise KeyError(check)
        known = self.found.get(check)
        if known is None or (known.calls is not None and self.calls < known.calls):
            self.found[check] = Finding(message, self.seed, self.calls)

    def begin(self, seed: int) -> None:
        """A new life begins."""
        self.seed, self.calls = seed, 0

    def report(self, subject: str, suite: str, known_gaps: Mapping[str, str]) -> Report:
        """One result per check. A known gap that shows nothing fails: the declaration is out of date."""
        check_names("known_gaps", known_gaps, self.checks)
        return Report(subject, tuple(self._result(check, known_gaps) for check in self.checks), suite)

    def _result(self, check: str, known_gaps: Mapping[str, str]) -> Result:
        finding = self.found.get(check)
        if check in self.skipped and finding is None:
            return Result(check, Verdict.SKIPPED, self.skipped[check])
        if check in known_gaps:
            if finding is None:
                return Result(check, Verdict.FAILED, f"declared a known gap ({known_gaps[check]}), but it passes")
            return Result(check, Verdict.KNOWN_GAP, f"{known_gaps[check]}: {finding}", finding)
        if finding is not None:
            return Result(check, Verdict.FAILED, f"{finding} ({self.checks[check]})", finding)
        return Result(check, Verdict.PASSED)


class _Anything(dict[str, str]):
    def __contains__(self, name: object) -> bool:
        return True


def check_names(what: str, names: Iterable[str], known: Mapping[str, str]) -> None:
    """Raise ConfigError unless all names are known checks."""
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} names check {name!r}; known: {', '.join(known)}")

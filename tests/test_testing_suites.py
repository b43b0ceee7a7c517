"""`alignedsched.testing`: what ships passes, reports say what they should, and nothing is needed that need not be."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from alignedsched import Cluster, policy
from alignedsched.errors import ConfigError
from alignedsched.policies.protocols import Policy
from alignedsched.registry import policy_names
from alignedsched.scheduler import Scheduler
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.testing import (
    EXECUTOR_CHECKS,
    POLICY_CHECKS,
    SUITE_VERSION,
    AdversarialExecutor,
    Capabilities,
    ConformanceError,
    Verdict,
    check_executor,
    check_policy,
    simulated,
    stream,
)
from alignedsched.testing.__main__ import main
from alignedsched.testing.executor_suite import COSTS, settings
from alignedsched.testing.pytest_checks import ExecutorConformance, PolicyConformance
from tests import broken_executors as bad
from tests import broken_policies as broken


@pytest.mark.parametrize("name", policy_names())
def test_every_registered_policy_passes(name: str) -> None:
    report = check_policy(name, seeds=range(3), events=60)
    report.raise_if_failed()
    assert report.named(Verdict.PASSED) == tuple(POLICY_CHECKS)


def swapping() -> Policy:
    return policy("fcfs", swap=True, by_priority=True)


def test_a_policy_with_options_passes() -> None:
    check_policy(swapping, seeds=range(3), events=60, another_process=False).raise_if_failed()


def test_the_simulated_executor_passes() -> None:
    report = check_executor(simulated, seeds=range(24), requests=40)
    report.raise_if_failed()
    assert report.named(Verdict.SKIPPED) == ("orders_void_after_failure",)


def test_an_executor_that_takes_every_freedom_of_the_contract_passes() -> None:
    report = check_executor(AdversarialExecutor, seeds=range(16), requests=40)
    report.raise_if_failed()
    assert "orders_void_after_failure" in report.named(Verdict.PASSED)


def vanishing(cluster: Cluster) -> AdversarialExecutor:
    return AdversarialExecutor(cluster, seed=3, losses=True)


def test_an_executor_whose_lanes_and_devices_vanish_passes() -> None:
    check_executor(vanishing, seeds=range(16), requests=40).raise_if_failed()


def test_what_the_broken_ones_are_made_of_passes() -> None:
    """Else a broken one could be caught for what it has from its base."""
    check_policy(broken.unbroken, seeds=range(2), events=60).raise_if_failed()
    check_executor(bad.Simulated, seeds=range(8), requests=30).raise_if_failed()


def test_a_policy_that_promises_no_bound_is_not_asked_for_one() -> None:
    report = check_policy(broken.ignores_one, seeds=[0], events=60, another_process=False, most_overtaken=None)
    assert report["bounded_wait"].verdict is Verdict.SKIPPED
    assert report["chooses_something"].verdict is Verdict.FAILED


def test_a_factory_no_other_process_can_import_is_skipped_there_and_told() -> None:
    report = check_policy(lambda: policy("fcfs"), seeds=[0], events=20)
    assert "module:attribute" in report["same_in_another_process"].why
    report.raise_if_failed()


def test_a_lane_whose_only_joining_request_has_ended_takes_the_next_order() -> None:
    """With run-ahead, an order whose only member ended with its prefill leaves nothing to run: what follows must."""
    place = next(place for place in settings() if place.name == "run-ahead")
    check_executor(simulated, clusters=[place.cluster], seeds=range(6), requests=80, spacing_s=0.1).raise_if_failed()


# -- reports


def test_a_report_names_the_suite_and_each_check() -> None:
    report = check_policy(broken.unknown_ids, seeds=[0, 1], events=40, another_process=False)
    assert report.version == SUITE_VERSION
    assert [result.check for result in report.results] == list(POLICY_CHECKS)
    table = str(report)
    assert f"policy suite {SUITE_VERSION}" in table.splitlines()[0]
    assert all(check in table for check in POLICY_CHECKS)
    assert "'nobody' not there" in report["proposals_legal"].why
    with pytest.raises(ConformanceError, match="proposals_legal"):
        report.raise_if_failed()


def test_a_finding_says_which_life_shows_it_in_how_many_calls() -> None:
    finding = check_policy(broken.unknown_ids, seeds=range(3), events=40, another_process=False)[
        "proposals_legal"
    ].finding
    assert finding is not None
    assert finding.seed in range(4)
    assert finding.calls is not None
    assert 1 <= finding.calls < 30


def test_a_known_gap_is_told_and_does_not_fail() -> None:
    gaps = {"proposals_legal": "names a request that never came"}
    report = check_policy(broken.unknown_ids, seeds=range(2), events=40, another_process=False, known_gaps=gaps)
    assert report["proposals_legal"].verdict is Verdict.KNOWN_GAP
    assert report["proposals_legal"].why.startswith("names a request that never came")
    assert report.passed


def test_a_known_gap_that_passes_fails() -> None:
    report = check_executor(simulated, seeds=range(2), requests=10, known_gaps={"finishes_once": "used to"})
    assert report.failed == ("finishes_once",)


def test_unknown_gaps_and_subjects_are_refused() -> None:
    with pytest.raises(ConfigError, match="no_such_check"):
        check_policy("fcfs", known_gaps={"no_such_check": "?"})
    with pytest.raises(ConfigError, match="no_such_check"):
        check_executor(simulated, known_gaps={"no_such_check": "?"})
    with pytest.raises(ConfigError, match="fcfs"):
        check_policy("no_such_policy")
    with pytest.raises(ConfigError, match="no_such_module"):
        check_policy("no_such_module:policy")


def test_what_an_executor_cannot_do_is_skipped_and_said() -> None:
    class Plain(SimulatedExecutor):
        capabilities = {"host": False, "peer": False, "staging": False, "exact_lengths": False}  # noqa: RUF012
        blocks_held = None  # type: ignore[assignment]
        tokens_held = None  # type: ignore[assignment]

    def plain(cluster: Cluster) -> Plain:
        return Plain(cluster, COSTS)

    report = check_executor(plain, seeds=range(6), requests=30)
    report.raise_if_failed()
    skipped = set(report.named(Verdict.SKIPPED))
    assert {"memory_as_accounted", "copies_arrive_whole", "reports_are_prompt", "copies_end_once"} <= skipped
    assert all(report[check].why for check in skipped)


@pytest.mark.parametrize("flags", [{"flies": True}, {"host": 1}, ["host"]])
def test_capabilities_nobody_knows_are_refused(flags: object) -> None:
    class Odd:
        capabilities = flags

    with pytest.raises(ConfigError, match="flags"):
        Capabilities.of(Odd())


# -- as plain functions, from the command line, and as pytest classes


def test_importing_it_needs_neither_pytest_nor_hypothesis() -> None:
    code = "import sys, alignedsched.testing; print([m for m in ('pytest', 'hypothesis') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_without_assertions_it_refuses_to_pass_anything() -> None:
    command = [sys.executable, "-O", "-m", "alignedsched.testing", "policy", "fcfs", "--seeds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "assertions" in done.stderr


def test_the_command_reports_and_exits_by_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["executor", "sim", "--seeds", "2", "--events", "10"]) == 0
    assert "everything_ends" in capsys.readouterr().out
    assert main(["executor", "tests.broken_executors:UnknownRequests", "--seeds", "1", "--events", "10"]) == 1
    assert "unknown request 'nobody'" in capsys.readouterr().out
    assert main(["policy", "no_such_policy"]) == 2
    assert "unknown policy" in capsys.readouterr().err


def test_a_digest_is_the_same_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digest", "fcfs", "--seeds", "1", "2", "--events", "20"]) == 0
    first = capsys.readouterr().out
    assert main(["digest", "fcfs", "--seeds", "1", "2", "--events", "20"]) == 0
    assert capsys.readouterr().out == first
    assert len(set(first.split())) == 2


class TestFcfs(PolicyConformance):
    subject = "fcfs"
    seeds = (0,)


class TestSimulated(ExecutorConformance):
    subject = staticmethod(simulated)
    seeds = range(8)


class TestDeclaredGap(ExecutorConformance):
    subject = staticmethod(bad.RepeatsSteps)
    seeds = range(4)
    known_gaps = {"reports_come_once": "it stutters"}  # noqa: RUF012
    options = {"requests": 30}  # noqa: RUF012


def test_the_pytest_layer_fails_where_the_suite_does() -> None:
    class Broken(ExecutorConformance):
        subject = staticmethod(bad.UnknownCopies)
        seeds = range(2)

    with pytest.raises(pytest.fail.Exception, match="names_what_exists"):
        Broken()._result("names_what_exists")
    Broken()._result("finishes_once")


def test_the_suites_name_their_checks_once() -> None:
    assert not {*POLICY_CHECKS} & {*EXECUTOR_CHECKS} - {"everything_ends"}


def test_streams_repeat_themselves_and_are_in_order() -> None:
    first, again = list(stream(Random(3), 50, 0.1)), list(stream(Random(3), 50, 0.1))
    assert first == again
    arrivals = [job.request.arrival for job in first]
    assert arrivals == sorted(arrivals)
    assert all(job.request.output_limit is None or job.output_tokens <= job.request.output_limit for job in first)


def test_every_setting_suits_its_policy() -> None:
    for place in settings():
        Scheduler(place.cluster, place.policy()).check()

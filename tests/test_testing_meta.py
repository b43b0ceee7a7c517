"""The suites of `alignedsched.testing` catch what is broken, by the name of the check, and nothing that is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from alignedsched.cluster import Cluster
from alignedsched.driver import Executor
from alignedsched.policies.protocols import Policy
from alignedsched.testing.executor_suite import check_executor
from alignedsched.testing.policy_suite import check_policy
from alignedsched.testing.results import Verdict
from tests import broken_executors as bad
from tests import broken_policies as broken

POLICIES: list[tuple[Callable[[], Policy], str]] = [
    (broken.raises, "raises_nothing"),
    (broken.always_raises, "raises_nothing"),
    (broken.unknown_ids, "proposals_legal"),
    (broken.duplicates, "proposals_legal"),
    (broken.takes_twice, "proposals_legal"),
    (broken.chooses_nothing, "chooses_something"),
    (broken.mutates_view, "views_unmodified"),
    (broken.at_random, "deterministic"),
    (broken.in_hash_order, "same_in_another_process"),
    (broken.by_identity, "deterministic"),
    (broken.ignores_one, "bounded_wait"),
    (broken.hidden_state, "restored_goes_on"),
    (broken.wakes_at_once, "wakes_later"),
    (broken.wake_storm, "wakes_later"),
    (broken.remembers_early, "pure_until_taken"),
    (broken.unplain_state, "state_is_plain"),
    (broken.behind_the_view, "same_over_plain_views"),
]


@pytest.mark.parametrize(("factory", "check"), POLICIES, ids=[factory.__name__ for factory, _ in POLICIES])
def test_a_broken_policy_is_caught_by_name(factory: Callable[[], Policy], check: str) -> None:
    report = check_policy(factory, seeds=range(3), events=60, another_process=check == "same_in_another_process")
    assert report[check].verdict is Verdict.FAILED, str(report)
    assert "invariants" not in report.failed, str(report)


EXECUTORS: list[tuple[Callable[[Cluster], Executor], str]] = [
    (bad.LateSteps, "reports_are_prompt"),
    (bad.LateCopies, "reports_are_prompt"),
    (bad.RepeatsSteps, "reports_come_once"),
    (bad.RepeatsCopies, "copies_end_once"),
    (bad.LosesSteps, "orders_are_reported"),
    (bad.LosesCopies, "copies_end_once"),
    (bad.Reorders, "reports_in_order"),
    (bad.WrongBlocks, "memory_as_accounted"),
    (bad.LeaksBlocks, "memory_as_accounted"),
    (bad.PartialCopies, "copies_arrive_whole"),
    (bad.HalfJoins, "orders_applied_whole"),
    (bad.HalfChunks, "orders_applied_whole"),
    (bad.HalfLeaves, "orders_applied_whole"),
    (bad.RunsEmpty, "empty_lane_rests"),
    (bad.UnknownRequests, "names_what_exists"),
    (bad.UnknownCopies, "names_what_exists"),
    (bad.FinishesTwice, "finishes_once"),
    (bad.StopsEarly, "finishes_at_limits"),
    (bad.GoesOn, "finishes_at_limits"),
    (bad.ClockGoesBack, "time_never_falls"),
    (bad.ComesBackEarly, "waits_until_told"),
    (bad.Oversleeps, "waits_until_told"),
    (bad.WrongDurations, "durations_add_up"),
    (bad.SkipsSteps, "steps_numbered_right"),
    (bad.BeyondHorizon, "within_horizon"),
    (bad.LaunchesAhead, "launches_within_run_ahead"),
    (bad.Refuses, "carries_out_legal_plans"),
    (bad.ForgetsAborted, "aborts_complete"),
    (bad.RunsVoidOrders, "orders_void_after_failure"),
]


@pytest.mark.parametrize(("factory", "check"), EXECUTORS, ids=[factory.__name__ for factory, _ in EXECUTORS])
def test_a_broken_executor_is_caught_by_name(factory: Callable[[Cluster], Executor], check: str) -> None:
    report = check_executor(factory, seeds=range(16), requests=30)
    assert report[check].verdict is Verdict.FAILED, str(report)

"""The simulated executor: it jumps as if it stepped, serves links in turn, refuses what no device could do."""

from __future__ import annotations

from typing import Any

import pytest

from alignedsched import HOST, Cluster, Device, ExecutorError, KVLayout, Lane, Link, Role
from alignedsched.costs import AffineCosts
from alignedsched.events import CopyDone, CopyFailed, StepsDone
from alignedsched.plan import Abort, Chunk, Copy, Drop, Join, Plan, Step
from alignedsched.registry import policy
from alignedsched.sim import lane as sim_lane
from alignedsched.sim.build import build
from alignedsched.sim.executor import SimulatedExecutor
from alignedsched.sim.run import run
from alignedsched.workloads import workload

COSTS = AffineCosts(0.010, 0.0, 0.0)
LAYOUT = KVLayout(block_size=16, bytes_per_token=1000)


def small(kv_blocks: int = 64, shares: tuple[str, ...] = (), run_ahead: int = 0) -> SimulatedExecutor:
    """One device that does both, a host, and 1 MB/s each way."""
    links = (Link("gpu", HOST, 1e6, 0.0, shares), Link(HOST, "gpu", 1e6, 0.0, shares))
    cluster = Cluster((Device("gpu", Role.BOTH, kv_blocks),), (Lane("lane", ("gpu",), run_ahead),), 1000, links, LAYOUT)
    executor = SimulatedExecutor(cluster, COSTS)
    for name in "abc":
        executor.expect(name, 50)
    return executor


def prefilled(executor: SimulatedExecutor, **tokens: int) -> None:
    """Prefill requests in order 0, all at once."""
    chunks = tuple(Chunk(name, 0, count, last=True) for name, count in tokens.items())
    executor.submit(Plan(steps=(Step("lane", 0, 1, chunks=chunks),)))
    (report,) = executor.wait(None)
    assert isinstance(report, StepsDone)
    assert report.prefilled == tuple(tokens)


@pytest.mark.parametrize("name", ["fcfs", "density_first"])
@pytest.mark.parametrize("topology", ["colocated", "disaggregated"])
def test_jumping_gives_what_stepping_gives(topology: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing many uniform steps at once changes nothing: every figure equals that of one step at a time."""
    built = build("h100", "llama-3.1-8b", topology=topology, lanes=1, surface="gated", staging=True)
    traffic = workload("azure-conv", seed=5, n=150).scaled(6.0)

    def figures() -> dict[str, Any]:
        made = run(traffic, built.cluster, built.costs, policy(name)).figures
        return {
            key: made[key] for key in ("requests", "output_tokens", "steps", "preemptions", "simulated_s", "copies")
        }

    jumped = figures()
    monkeypatch.setattr(sim_lane, "LONGEST_SEGMENT", 1)
    stepped = figures()
    assert stepped.pop("simulated_s") == pytest.approx(jumped.pop("simulated_s"), rel=1e-9)
    assert stepped == jumped


def test_steps_take_what_they_cost_and_end_at_the_horizon() -> None:
    executor = small()
    prefilled(executor, a=20)
    executor.submit(Plan(steps=(Step("lane", 1, 7, joins=(Join("a", 21),)),)))
    (report,) = executor.wait(None)
    assert isinstance(report, StepsDone)
    assert (report.first, report.through, report.finished) == (1, 7, ())
    assert executor.now() == pytest.approx(0.08)
    executor.submit(Plan(steps=(Step("lane", 2, 100),)))
    (report,) = executor.wait(None)
    assert isinstance(report, StepsDone)
    assert report.finished == (("a", 49),)  # one token from prefill, 49 from decode steps 1 to 49


@pytest.mark.parametrize(("shares", "expected"), [((), [0.02, 0.02]), (("switch",), [0.02, 0.04])])
def test_copies_that_share_a_channel_take_turns(shares: tuple[str, ...], expected: list[float]) -> None:
    """Twenty tokens take 20 ms: in opposite directions at once, unless both links share a channel."""
    executor = small(shares=shares)
    prefilled(executor, a=20, b=20)
    executor.submit(Plan(copies=(Copy(0, "a", "gpu", HOST, 0, 20),)))
    assert executor.wait(None) == [CopyDone(0)]
    executor.submit(Plan(drops=(Drop("a", "gpu"),)))
    start = executor.now()
    ends: list[float] = []
    executor.submit(Plan(copies=(Copy(1, "b", "gpu", HOST, 0, 20), Copy(2, "a", HOST, "gpu", 0, 20))))
    while len(ends) < 2:
        arrived = [event for event in executor.wait(None) if isinstance(event, CopyDone)]
        ends += [executor.now() - start] * len(arrived)
    assert ends == pytest.approx(expected)


def test_copies_over_one_link_take_turns() -> None:
    executor = small()
    prefilled(executor, a=20, b=30)
    start = executor.now()
    executor.submit(Plan(copies=(Copy(0, "b", "gpu", HOST, 0, 30), Copy(1, "a", "gpu", HOST, 0, 20))))
    assert executor.wait(None) == [CopyDone(0)]
    assert executor.now() - start == pytest.approx(0.03)
    assert executor.wait(None) == [CopyDone(1)]
    assert executor.now() - start == pytest.approx(0.05)


def test_an_abort_ends_a_waiting_copy_and_frees_its_target() -> None:
    executor = small()
    prefilled(executor, a=20, b=20)
    executor.submit(Plan(copies=(Copy(0, "a", "gpu", HOST, 0, 20), Copy(1, "b", "gpu", HOST, 0, 20))))
    executor.submit(Plan(aborts=(Abort(1), Abort(0), Abort(9))))
    assert executor.wait(None) == [CopyFailed(1, "aborted")]
    assert executor.wait(None) == [CopyDone(0)]  # it had begun
    full = Copy(2, "b", "gpu", HOST, 0, 20)
    executor.submit(Plan(drops=(Drop("a", HOST),), copies=(full,)))
    assert executor.wait(None) == [CopyDone(2)]


def test_a_drop_may_keep_the_first_tokens() -> None:
    executor = small(kv_blocks=4)
    prefilled(executor, a=48)
    executor.submit(Plan(drops=(Drop("a", "gpu", keep=16),)))
    executor.submit(Plan(steps=(Step("lane", 1, 1, chunks=(Chunk("b", 0, 48, last=True),)),)))  # 1 + 3 blocks fit
    with pytest.raises(ExecutorError, match="'a' joins"):
        executor.submit(Plan(steps=(Step("lane", 2, 1, joins=(Join("a", 49),)),)))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(steps=(Step("lane", 1, 1, joins=(Join("b", 21),)),)), "'b' joins"),
        (Plan(steps=(Step("lane", 1, 1, joins=(Join("a", 22),)),)), "'a' joins"),
        (Plan(steps=(Step("lane", 1, 1, chunks=(Chunk("b", 8, 16),)),)), "does not go on"),
        (Plan(copies=(Copy(0, "a", "gpu", HOST, 0, 21),)), "not there"),
        (Plan(copies=(Copy(0, "a", HOST, "gpu", 0, 20),)), "not there"),
        (Plan(copies=(Copy(0, "a", "gpu", HOST, 4, 20),)), "not there"),
        (Plan(steps=(Step("lane", 1, 1, chunks=(Chunk("b", 0, 16 * 63, last=True),)),)), "holds 65 of 64 blocks"),
    ],
)
def test_a_plan_no_device_could_carry_out_is_refused(plan: Plan, words: str) -> None:
    executor = small()
    prefilled(executor, a=20)
    with pytest.raises(ExecutorError, match=words):
        executor.submit(plan)


def test_waiting_for_nothing_is_an_error_instead_of_a_hang() -> None:
    with pytest.raises(ExecutorError, match="stuck"):
        small().wait(None)
    executor = small()
    assert executor.wait(3.5) == []
    assert executor.now() == 3.5

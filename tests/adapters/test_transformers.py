"""transformers' continuous batching under our policies: the tokens of ``generate()``, whatever makes room."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING

from alignedsched import registry
from alignedsched.adapters import transformers as adapter
from alignedsched.adapters.step_log import StepLog, read_step_log
from alignedsched.adapters.transformers_costs import PackedCosts
from alignedsched.adapters.versions import EngineVersionWarning, Window
from alignedsched.costs import AffineCosts
from alignedsched.errors import ConfigError, ExecutorError
from alignedsched.policies import ArrivalOrder, DirectResidency, Policy, Sacrifice
from alignedsched.policies.fcfs import ContinuousBatching
from alignedsched.registry import policy_names
from alignedsched.views import LaneView
from tests.adapters.transformers_engine import Stepped, batching, decoding, generated, host_memory, prompts, tiny

POLICIES = [name for name in policy_names() if name != "sjf_oracle"]  # that one is told what it cannot know here
SEEN = PackedCosts(t0=1.6e-3, per_row=3e-5, per_key=1e-6, per_pair=3e-8)  # as fitted on one machine
NEW = 24


class Ticking:
    """A clock that nobody waits for: so many seconds go by each time it is looked at."""

    def __init__(self, seconds: float = 0.001) -> None:
        self._ticks = itertools.count()
        self._seconds = seconds

    def __call__(self) -> float:
        return next(self._ticks) * self._seconds


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def alone(model: Any) -> dict[str, list[int]]:
    """24 mixed requests, each answered by itself."""
    return {f"r{i}": generated(model, prompt, NEW) for i, prompt in enumerate(prompts(24))}


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    before = dict(SCHEDULER_MAPPING)
    yield
    SCHEDULER_MAPPING.clear()
    SCHEDULER_MAPPING.update(before)


def serve(model: Any, name: str, requests: int = 24, new: int = NEW, **config: Any) -> Stepped:
    engine = Stepped(model, name, config, new)
    for number, prompt in enumerate(prompts(requests)):
        engine.ask(prompt, f"r{number}")
    engine.run()
    return engine


# -- the tokens


def test_64_mixed_requests_get_the_tokens_of_generate_from_the_running_engine(model: Any) -> None:
    adapter.register()
    asked, limits = prompts(64, seed=1), [4 + 3 * (number % 5) for number in range(64)]
    with model.continuous_batching_context_manager(
        generation_config=decoding(16), continuous_batching_config=batching("cost_aligned"), warmup=False
    ) as manager:
        for number, (prompt, new) in enumerate(zip(asked, limits, strict=True)):
            manager.add_request(prompt, request_id=f"r{number}", max_new_tokens=new)
        scheduler = adapter.verify(manager)
        answers: dict[str, list[int]] = {}
        while len(answers) < 64:
            answer = manager.get_result(timeout=10)
            assert answer is not None
            assert answer.error is None
            answers[answer.request_id] = answer.generated_tokens
    assert scheduler.common_steps > 0
    assert scheduler.plain_steps == 0
    for number, (prompt, new) in enumerate(zip(asked, limits, strict=True)):
        assert answers[f"r{number}"] == generated(model, prompt, new), number


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_makes_the_tokens_of_generate(
    model: Any, alone: dict[str, list[int]], policy: str, parts: bool
) -> None:
    adapter.register(policy, parts=parts, costs=SEEN, clock=Ticking())
    engine = serve(model, policy)
    assert engine.tokens() == alone
    assert not engine.evicted


@pytest.mark.parametrize("policy", POLICIES)
def test_forced_eviction_changes_no_token(model: Any, alone: dict[str, list[int]], policy: str) -> None:
    adapter.register(policy, costs=SEEN, clock=Ticking())
    engine = serve(model, policy, blocks=50, safety_margin=0.0)
    assert engine.tokens() == alone
    assert engine.evicted
    assert not engine.copied_out


@pytest.mark.parametrize("policy", POLICIES)
def test_round_trips_to_the_host_change_no_token(model: Any, alone: dict[str, list[int]], policy: str) -> None:
    adapter.register(policy, costs=SEEN, clock=Ticking())
    with host_memory():
        engine = serve(model, policy, blocks=50, safety_margin=0.0, cpu_offload_space=0.01)
    assert engine.tokens() == alone
    assert engine.copied_out
    assert sorted(engine.copied_in) == sorted(engine.copied_out)


def test_eager_attention_and_several_answers_to_one_prompt(model: Any) -> None:
    adapter.register(costs=SEEN, clock=Ticking())
    asked = prompts(6)
    engine = Stepped(tiny(attention="eager"), "cost_aligned", {}, NEW)
    for number, prompt in enumerate(asked):
        engine.ask(prompt, f"r{number}", answers=3)
    engine.run()
    assert len(engine.answers) == 18
    for request, tokens in engine.tokens().items():
        assert tokens == generated(model, asked[int(request[1])], NEW)


def test_shared_prefixes_are_not_computed_twice_and_change_no_token(model: Any) -> None:
    adapter.register(costs=SEEN, clock=Ticking())
    stem = prompts(1, long=(256, 256), share=1.0)[0]
    asked = {f"r{i}": stem + prompt for i, prompt in enumerate(prompts(8, share=0.0, seed=3))}
    engine = Stepped(model, "cost_aligned", {}, NEW)
    engine.ask(asked["r0"], "r0")
    engine.run()
    for request, prompt in asked.items():
        if request != "r0":
            engine.ask(prompt, request)
    engine.run()
    assert engine.tokens() == {request: generated(model, prompt, NEW) for request, prompt in asked.items()}
    assert sum(rows for rows, _ in engine.steps) < 2 * len(stem) + sum(len(p) - len(stem) + NEW for p in asked.values())


# -- who makes room, and what it costs


@pytest.mark.parametrize("parts", [True, False])
def test_the_default_evicts_no_more_than_fifo_where_kv_is_short(model: Any, parts: bool) -> None:
    """The recipe in which a first prototype raised evictions from 9 to 17."""
    adapter.register(costs=SEEN, parts=parts, clock=Ticking())
    stock, ours = (serve(model, name, 32, 64, blocks=160) for name in ("fifo", "cost_aligned"))
    assert ours.tokens() == stock.tokens()
    assert 0 < len(ours.evicted) <= len(stock.evicted)


def crowded(model: Any, name: str) -> Stepped:
    """Four requests of 16 tokens that make 64 more each, in 12 blocks; whoever makes room goes to the host."""
    config = {"blocks": 12, "safety_margin": 0.0, "cpu_offload_space": 0.01}
    with host_memory():
        engine = Stepped(model, name, config, 64)
        for number, prompt in enumerate(prompts(4, share=0.0)):
            engine.ask(prompt[:16], f"r{number}")
        engine.run()
    assert len(engine.answers) == 4
    return engine


def test_the_newest_makes_room_and_comes_back_after_those_who_had_begun_before(model: Any) -> None:
    adapter.register(costs=SEEN, clock=Ticking())
    engine = crowded(model, "cost_aligned")
    assert engine.copied_out == ["r3", "r2"]
    assert engine.copied_in == ["r2", "r3"]


def test_the_policy_says_who_makes_room_and_who_comes_back_first(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldestGoes(ContinuousBatching):
        def victims(self, view: LaneView, rank: int, blocks: int) -> Iterator[tuple[str, Sacrifice]]:
            return iter(reversed(list(super().victims(view, rank, blocks))))

        def _in_turn(self, view: LaneView) -> list[str]:
            return list(reversed(list(view.pool.by_order())))

    def oldest_goes() -> Policy:
        return Policy("oldest_goes", ArrivalOrder(), OldestGoes(), DirectResidency(to_host="never"))

    monkeypatch.setitem(registry._SHIPPED, "oldest_goes", oldest_goes)
    adapter.register("oldest_goes", costs=SEEN, clock=Ticking())
    engine = crowded(model, "oldest_goes")
    assert engine.copied_out == ["r0", "r1"]
    assert engine.copied_in == ["r1", "r0"]


def test_a_step_in_parts_multiplies_fewer_rows_with_keys(model: Any) -> None:
    adapter.register(costs=SEEN, clock=Ticking())

    def pairs(name: str) -> int:
        engine = Stepped(model, name, {"blocks": 1024}, NEW)
        for number, prompt in enumerate(prompts(16, long=(1000, 1500))):
            engine.ask(prompt, f"r{number}")
        engine.run()
        return sum(rows * keys for rows, keys in engine.steps)

    assert pairs("cost_aligned") < 0.5 * pairs("fifo")


def test_costs_are_learned_from_the_steps(model: Any) -> None:
    adapter.register()
    fitted = serve(model, "cost_aligned", 32, 24).scheduler.fit.costs
    assert fitted is not None
    assert fitted.t0 > 0.0
    assert fitted.per_pair > 0.0


def test_other_costs_are_what_the_policy_decides_by(model: Any) -> None:
    padded = AffineCosts(t0=1e-4, per_row=0.0, per_token=1e-5, surface="padded")
    adapter.register(costs=padded, clock=Ticking(0.05), refit=False)
    engine = Stepped(model, "cost_aligned", {}, 64)
    for number, length in enumerate([20] * 8 + [900] * 2):
        engine.ask(prompts(1, long=(length, length), share=1.0, seed=number)[0], f"r{number}")
    for number in range(60):
        engine.step()
        if number == 30:
            engine.ask(prompts(1, share=0.0)[0], "late")
    engine.run()
    assert {2, 9} <= {rows for rows, _ in engine.steps}  # rounds: the two long ones and the nine short ones in turn


# -- always something to do


@given(st.data())
@settings(max_examples=20)
def test_never_an_empty_batch_while_work_exists(model: Any, data: st.DataObject) -> None:
    """Requests come and go at any time, under any policy, with little room: everybody gets his own tokens."""
    policy = data.draw(st.sampled_from(POLICIES), "policy")
    config = {
        "blocks": data.draw(st.integers(12, 60), "blocks"),
        "tokens": data.draw(st.sampled_from([32, 64, 512]), "tokens a step"),
        "max_requests_per_batch": data.draw(st.sampled_from([2, 5, 256]), "members"),
        "safety_margin": data.draw(st.sampled_from([0.0, 0.15]), "margin"),
        "cpu_offload_space": data.draw(st.sampled_from([0.0, 0.0005, 0.01]), "host"),
    }
    costs = data.draw(st.sampled_from([SEEN, PackedCosts(1e-6, 0.0, 0.0, 1e-6), None]), "costs")
    asked = prompts(12, long=(100, 150), seed=data.draw(st.integers(0, 3), "seed"))
    arrivals = data.draw(st.lists(st.integers(0, 30), min_size=12, max_size=12), "arrivals")
    gone = data.draw(st.dictionaries(st.integers(0, 11), st.integers(0, 40), max_size=3), "cancelled")
    parts = data.draw(st.booleans(), "parts")
    with adapter.using(policy, costs=costs, parts=parts, clock=Ticking()), host_memory():
        engine = Stepped(model, policy, config, 16)
        for now in range(41):
            for number, arrival in enumerate(arrivals):
                if arrival == now:
                    engine.ask(asked[number], f"r{number}")
            for number, at in gone.items():
                if at == now:
                    engine.cancel(f"r{number}")
            worked = engine.step()
            assert worked or not engine.processor.has_pending_requests()
        engine.run()
    assert not engine.scheduler.active_requests
    assert not engine.scheduler.waiting_requests
    for request, tokens in engine.tokens().items():
        assert tokens == _answer(model, asked[int(request[1:])])
    stayed = {f"r{number}" for number in range(12) if number not in gone}
    assert stayed <= engine.answers.keys()


def test_whoever_was_evicted_goes_on_after_the_last_that_ran_was_cancelled(model: Any) -> None:
    """The engine lets nobody in after an eviction until a request ends; a cancelled one does not count there."""
    adapter.register("fcfs", costs=SEEN, clock=Ticking())
    engine = Stepped(model, "fcfs", {"blocks": 6, "safety_margin": 0.0}, 64)
    for number in range(2):
        engine.ask(list(range(number, 20 + number)), f"r{number}")
    while not engine.evicted:
        assert engine.step()
    assert list(engine.scheduler.active_requests) == ["r0"]
    engine.cancel("r0")
    engine.run()
    assert engine.tokens() == {"r1": generated(model, range(1, 21), 64)}


_answers: dict[tuple[int, ...], list[int]] = {}


def _answer(model: Any, prompt: list[int]) -> list[int]:
    key = tuple(prompt)
    if key not in _answers:
        _answers[key] = generated(model, prompt, 16)
    return _answers[key]


def test_an_engine_used_again_begins_anew(model: Any) -> None:
    kind = adapter.register(clock=Ticking())
    engine = serve(model, "cost_aligned", 4)
    engine.processor.reset()
    engine.ask(prompts(1)[0], "r0")  # an id that was there before
    engine.run()
    assert engine.tokens()["r0"] == generated(model, prompts(1)[0], NEW)
    assert engine.scheduler.common_steps > 0
    assert kind.started == 1


def test_an_id_that_comes_back_at_once_is_a_new_request(model: Any) -> None:
    adapter.register(costs=SEEN, clock=Ticking())
    engine = Stepped(model, "cost_aligned", {}, 2)
    for length in (200, 40, 90):
        prompt = prompts(1, long=(length, length), share=1.0, seed=length)[0]
        engine.ask(prompt, "again")
        while "again" not in engine.answers:
            assert engine.step()
        assert list(engine.answers.pop("again").generated_tokens) == generated(model, prompt, 2)


# -- names, versions, and being sure


def test_registering_leaves_nothing_behind(model: Any) -> None:
    before = dict(SCHEDULER_MAPPING)
    kind = adapter.register("fcfs", name="mine")
    assert {**before, "mine": kind} == SCHEDULER_MAPPING
    adapter.unregister("mine")
    assert before == SCHEDULER_MAPPING
    with adapter.using(clock=Ticking()) as used:
        serve(model, "cost_aligned", 2)
    assert used.started == 1
    assert before == SCHEDULER_MAPPING


def test_names_that_are_taken_or_not_ours() -> None:
    adapter.register("fcfs")
    with pytest.raises(ConfigError, match="'fcfs' is registered already"):
        adapter.register("fcfs")
    with pytest.raises(ConfigError, match="'fifo' is a scheduler of transformers' own"):
        adapter.register("fcfs", name="fifo")
    with pytest.raises(ConfigError, match="'fifo' is not registered by alignedsched"):
        adapter.unregister("fifo")
    with pytest.raises(ConfigError, match="unknown policy 'fastest'"):
        adapter.register("fastest")
    with pytest.raises(ConfigError, match=r"wait_s"):
        adapter.register("cost_aligned", wait_s=-1.0)
    with pytest.raises(ConfigError, match="parts are planned by PackedCosts, and costs are AffineCosts"):
        adapter.register(parts=True, costs=AffineCosts(1.0, 0.0, 0.0))
    assert "cost_aligned" not in SCHEDULER_MAPPING


def test_an_engine_that_runs_something_else_is_found_out(model: Any) -> None:
    adapter.register()
    with (
        model.continuous_batching_context_manager(
            generation_config=decoding(2), continuous_batching_config=batching("cost-aligned"), warmup=False
        ) as manager,
        pytest.raises(ExecutorError, match=r"runs FIFOScheduler .* 'cost-aligned'; registered are cost_aligned"),
    ):
        adapter.verify(manager)
    with pytest.raises(ExecutorError, match="does not run"):
        adapter.verify(manager)
    with (
        pytest.raises(ExecutorError, match="no engine was started with scheduler_type='fcfs'"),
        adapter.using("fcfs"),
    ):
        serve(model, "fifo", 1)


def test_only_versions_that_were_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "WINDOW", Window("transformers", ("transformers",), first="4.0", last="4.9"))
    with pytest.raises(ConfigError, match=r"tested with 4.0 to 4.9, but transformers 5"):
        adapter.register()
    assert "cost_aligned" not in SCHEDULER_MAPPING
    with pytest.warns(EngineVersionWarning, match="outside the tested versions"):
        adapter.register(any_version=True)


def test_a_model_that_was_not_tested_is_refused_by_name(model: Any) -> None:
    adapter.register()
    windowed = tiny(layers=2)
    windowed.config.layer_types = ["full_attention", "sliding_attention"]
    windowed.config.sliding_window = 32
    with pytest.raises(ConfigError, match="full attention only"):
        Stepped(windowed, "cost_aligned")


# -- the step log


def test_the_step_log_has_every_step(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    with StepLog(path) as log:
        adapter.register(costs=SEEN, log=log, clock=Ticking())
        engine = serve(model, "cost_aligned", 8)
    lines = list(read_step_log(path))
    assert len(lines) == len(engine.steps) - 1  # nobody asks again after the last
    for line, (rows, keys) in zip(lines, engine.steps[:-1], strict=True):
        assert line.n + line.prefill == rows
        assert line.total <= keys
        assert line.ms > 0.0

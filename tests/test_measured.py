"""Measured machines: files come back, wrong ones are refused by file and field, and simulations stand on them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.cli import main
from alignedsched.cluster import HOST
from alignedsched.cost_sheet import Curve
from alignedsched.cost_table import TERMS
from alignedsched.costs import Load, Prefill, Sheet, TableCosts
from alignedsched.errors import ConfigError
from alignedsched.measured import (
    Errors,
    Measured,
    MeasuredKernel,
    MeasuredLink,
    MeasuredMemory,
    MeasuredModel,
)
from alignedsched.metrics.table_terms import decode_plane
from alignedsched.registry import policy
from alignedsched.report import schema
from alignedsched.sim.build import build
from alignedsched.sim.compare import compare
from alignedsched.sim.run import run
from alignedsched.sim.settings import CompareSettings
from alignedsched.workloads import Workload

PREFILL = Prefill(
    1e-4, per_token=2e-6, per_pair=3e-9, per_chunk=1e-4, per_cell=1e-9, rows=Curve((1, 64, 512), (1e-3, 1e-3, 5e-3))
)


def table(most: int = 8) -> TableCosts:
    """A sound table: what it costs grows with members and tokens."""
    means, stretches = (64.0, 1024.0), (1.0, 4.0)
    sheets = tuple(
        Sheet(n, means, stretches[: 1 if n == 1 else 2], tuple(
            tuple(1e-3 + n * mean * stretch**0.5 * 1e-7 for stretch in stretches[: 1 if n == 1 else 2])
            for mean in means
        ))
        for n in (1, most)
    )  # fmt: skip
    return TableCosts(sheets, PREFILL, "made up")


def machine(**links: MeasuredLink) -> Measured:
    held_out = {"decode": Errors(9, 0.02, 0.1, -0.01)}
    ways = links or {"host->device": MeasuredLink(2e9, 1e-4, 0.02, {4096: 1e9, 65536: 2e9}, 0.9, 0.97),
                     "device->host": MeasuredLink(1e9, 1e-4, 0.02)}  # fmt: skip
    return Measured(
        {"processor": "made up", "clock": "process CPU time"},
        MeasuredModel("tiny", 2048, 8192),
        MeasuredMemory(16, 4096, 16_384, 8, 256, 0),
        "torch",
        {"torch": MeasuredKernel(table(), held_out)},
        ways,
    )


def saved(measured: Measured, folder: Path) -> Path:
    measured.save(folder / "machine.json")
    return folder / "machine.json"


def test_a_machine_survives_saving(tmp_path: Path) -> None:
    measured = machine()
    again = Measured.load(saved(measured, tmp_path))
    assert again.content() == measured.content()
    assert again.costs().sheets == table().sheets
    assert again.costs().prefill == PREFILL
    assert again.links == measured.links
    with pytest.raises(ConfigError, match="kernel 'triton' was not measured; measured: torch"):
        again.costs("triton")


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = to

    return change


def _drop(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in path[:-1]:
            content = content[name]
        del content[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", to="alignedsched-cost-table"), "format must be 'alignedsched-measured'"),
        (_set("version", to=2), "version must be 1, got 2"),
        (_drop("model"), "model is missing"),
        (_set("model", to=[]), "model must be an object, got an empty list"),
        (_set("model", "name", to=""), "model.name must be a text that is not empty"),
        (_set("model", "kv_bytes_per_token", to=0), "model.kv_bytes_per_token must be a whole number of at least 1"),
        (_drop("memory", "run_ahead"), "memory.run_ahead is missing"),
        (_set("memory", "page_size", to=1.5), "memory.page_size must be a whole number"),
        (_set("memory", "max_members", to=9), "memory.max_members is 9, but kernels.torch was measured up to 8"),
        (_set("machine", "gpu", to=3), "machine.gpu must be a text"),
        (_set("kernel", to="triton"), "kernel 'triton' is none of kernels: torch"),
        (_set("kernels", "torch", "costs", "sheets", to=[]), "kernels.torch.costs: sheets must hold at least one"),
        (_set("kernels", "torch", "costs", "prefill", "rows", to=3), "prefill.rows must be an object"),
        (_set("kernels", "torch", "costs", "prefill", "rows", to={"rows": [2, 1], "seconds": [1, 1]}), "must ascend"),
        (_set("kernels", "torch", "costs", "prefill", "rows", to={"rows": [1, 2], "seconds": [2, 1]}), "must not fall"),
        (_set("kernels", "torch", "costs", "prefill", "per_cell", to=-1), "prefill.per_cell must be a finite number"),
        (_set("kernels", "torch", "held_out", "decode", to={}), "held_out.decode.cases is missing"),
        (_set("kernels", "torch", "held_out", "decode", "p50", to="x"), "decode.p50 must be a finite number"),
        (_set("links", "host->device", "bytes_per_s", to=0), "links.host->device.bytes_per_s must be .* above 0"),
        (_set("links", "host->device", "pieces", to={"4k": 1}), "'4k' is no size in bytes"),
        (_set("links", "host->device", "speed", to=1), "links.host->device: 'speed' is no field of version 1"),
        (_set("links", "sideways", to=None), "links.sideways must be an object"),
        (_set("surprise", to=1), "'surprise' is no field of version 1"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = copy.deepcopy(machine().content())
    change(content)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^.*wrong\.json: .*{message}"):
        Measured.load(path)


def test_a_link_of_no_known_direction_is_refused(tmp_path: Path) -> None:
    path = saved(machine(sideways=MeasuredLink(1e9, 0.0, 0.0)), tmp_path)
    with pytest.raises(ConfigError, match="links: 'sideways' is none of host->device, device->host, device->device"):
        Measured.load(path)


def test_measured_hardware_is_simulated_with_what_was_measured(tmp_path: Path) -> None:
    path = str(saved(machine(), tmp_path))
    built = build(path, topology="colocated", lanes=2, staging=False)
    assert built.costs.surface == built.surface == "table"
    assert (built.hardware, built.model) == ("made up", "tiny")
    cluster = built.cluster
    assert [device.kv_blocks for device in cluster.devices] == [256, 256]
    assert cluster.host_blocks == 2 * 1024
    assert {(lane.run_ahead, lane.max_members, lane.max_tokens) for lane in cluster.lanes} == {(0, 8, 256)}
    into, back = cluster.link[HOST, "d0"], cluster.link["d0", HOST]
    assert (into.bytes_per_s, back.bytes_per_s, into.latency_s) == (2e9, 1e9, 1e-4)


def test_another_kernel_is_asked_for_behind_a_colon(tmp_path: Path) -> None:
    two = evolve(machine(), kernels={**machine().kernels, "slow": MeasuredKernel(table(16))})
    path = str(saved(two, tmp_path))
    built = build(f"{path}:slow", topology="colocated", lanes=1, staging=False)
    assert built.costs.sheets[-1].n == 16  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="kernel 'fast' was not measured; measured: torch, slow"):
        build(f"{path}:fast", topology="colocated", lanes=1, staging=False)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"model": "llama-3.1-8b"}, "model 'llama-3.1-8b': hardware .* was measured with its own"),
        ({"surface": "gated"}, "surface 'gated': hardware .* was measured with its own"),
        ({"topology": "disaggregated"}, "no link between devices was measured"),
    ],
)
def test_what_a_measurement_cannot_be_asked_for_is_refused(tmp_path: Path, how: Any, message: str) -> None:
    asked: dict[str, Any] = {"topology": "colocated", "lanes": 1, "staging": False, **how}
    with pytest.raises(ConfigError, match=message):
        build(str(saved(machine(), tmp_path)), **asked)


def test_host_memory_needs_measured_copies(tmp_path: Path) -> None:
    path = saved(machine(**{"host->device": MeasuredLink(1e9, 0.0, 0.0)}), tmp_path)
    with pytest.raises(ConfigError, match="host memory of 16384 tokens, but no copies"):
        build(str(path), topology="colocated", lanes=1, staging=False)


@pytest.mark.parametrize("how", [{"offline": True}, {"load": 0.7}])
def test_compare_keeps_its_promises_with_measured_hardware(tmp_path: Path, how: Any) -> None:
    path = str(saved(machine(), tmp_path))
    found = compare(CompareSettings(workload="azure-conv", requests=30, hardware=path, **how))
    schema.validate(json.loads(json.dumps(found)))
    assert (found["surface"], found["model"], found["hardware"]) == ("table", "tiny", "made up")


def test_a_run_on_measured_hardware_is_recorded_and_replayed(tmp_path: Path) -> None:
    path, logs = str(saved(machine(), tmp_path)), tmp_path / "logs"
    logs.mkdir()
    compare(CompareSettings(workload="azure-conv", requests=10, hardware=path, offline=True, record=str(logs)))
    assert main(["replay", str(logs)]) == 0


positive = st.floats(1e-6, 1.0)


@st.composite
def tables(draw: st.DrawFn) -> TableCosts:
    """Any sound table, as rough as measurements may be."""
    sheets = []
    for n in sorted(draw(st.sets(st.integers(1, 8), min_size=1, max_size=3))):
        means = sorted(draw(st.sets(st.integers(1, 500), min_size=1, max_size=3)))
        stretches = [1.0, 2.0][: draw(st.integers(1, 2))]
        rows = tuple(tuple(draw(positive) for _ in stretches) for _ in means)
        sheets.append(Sheet(n, tuple(map(float, means)), tuple(stretches), rows))
    rising = sorted(draw(st.lists(positive, min_size=3, max_size=3)))
    terms: list[Any] = [draw(st.floats(0, 1e-3)) for _ in range(6)]
    curve = draw(st.sampled_from([None, Curve((1.0, 10.0, 200.0), tuple(rising))]))
    return TableCosts(tuple(sheets), Prefill(**dict(zip(TERMS, terms, strict=True)), rows=curve))


@given(costs=tables(), lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_the_plane_under_a_table_is_nowhere_above_it(costs: TableCosts, lengths: list[int]) -> None:
    lengths = lengths[: costs.sheets[-1].n]
    a, b, c = decode_plane(costs)
    load = Load(len(lengths), sum(lengths), max(lengths))
    if load.n >= costs.sheets[0].n:
        assert a + b * load.n + c * load.total <= costs.step_seconds(load) * (1 + 1e-9)


@settings(max_examples=25)
@given(costs=tables(), data=st.data())
def test_no_simulation_beats_the_bound_of_a_table(costs: TableCosts, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    prompts = np.array(data.draw(st.lists(st.integers(1, 300), min_size=count, max_size=count)))
    outputs = np.array(data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count)))
    costs = TableCosts((Sheet(1, (1.0,), (1.0,), ((1e-3,),)), *(s for s in costs.sheets if s.n > 1)), costs.prefill)
    built = build("h100", topology="colocated", lanes=1, staging=False)
    lane = evolve(built.cluster.lanes[0], run_ahead=0, max_members=costs.sheets[-1].n, max_tokens=128)
    cluster = evolve(built.cluster, lanes=(lane,), max_positions=512)
    figures = run(Workload("made up", np.zeros(count), prompts, outputs), cluster, costs, policy("fcfs")).figures
    assert figures["bound_s"] <= figures["simulated_s"] * (1 + 1e-9)


@given(rows=st.floats(0.5, 1000))
def test_a_curve_returns_its_points_and_does_not_fall(rows: float) -> None:
    curve = Curve((1.0, 8.0, 64.0), (1.0, 1.0, 3.0))
    assert [curve.at(at) for at in curve.rows] == list(curve.seconds)
    assert curve.at(rows) <= curve.at(rows + 1) + 1e-12
    assert curve.at(120.0) == pytest.approx(3.0 + 2.0)
    assert Curve((4.0,), (2.0,)).at(rows) == 2.0


def test_chunks_cost_what_their_rows_and_terms_add() -> None:
    prefill = Prefill(1.0, 0.1, 0.01, per_chunk=0.5, per_cell=0.001, per_context=0.02, rows=Curve((1, 11), (2.0, 4.0)))
    terms = 10 * (0.1 + 0.01 * (20 + 30 + 1) / 2 + 0.001 * 30) + 0.5 + 0.02 * 30
    assert prefill.seconds(Load(0, 0, 0, ((20, 30),))) == pytest.approx(1.0 + terms + 2.0 + 0.2 * 9)
    assert prefill.seconds(Load(1, 5, 5, ((20, 30),))) == pytest.approx(terms + 4.0 - 2.0)
    assert prefill.seconds(Load(1, 5, 5)) == 0.0

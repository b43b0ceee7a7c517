"""Calibration: what is measured, how it is fitted, what it leaves behind, and that it finds planted costs again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.cluster import HOST
from alignedsched.cost_sheet import Curve
from alignedsched.cost_table import TERMS, Prefill, TableCosts
from alignedsched.costs import AffineCosts
from alignedsched.errors import ConfigError
from alignedsched.load import Load
from alignedsched.measured import Measured
from alignedsched.sim.build import build
from alignedsched_torch.calibrate import steps
from alignedsched_torch.calibrate.bench import STEPS, Bench
from alignedsched_torch.calibrate.fits import errors, least_squares
from alignedsched_torch.calibrate.random_model import TINY, random_decoder
from alignedsched_torch.calibrate.rounds import quiet
from alignedsched_torch.calibrate.run import Wanted, calibrate, limits_of
from alignedsched_torch.calibrate.shapes import SLACK, Limits, chunks, grid, lengths, unseen
from alignedsched_torch.cli import main
from alignedsched_torch.clusters import Sizes, open_devices, plan_cluster
from alignedsched_torch.engine import Engine
from alignedsched_torch.forward import StepWork
from alignedsched_torch.tiny import write_tiny
from benchmarks.calibrate_cpu import CpuTimeDevice, agreement

SIZES = Sizes(kv_tokens=1024, host_tokens=512, page_size=16, max_members=4, max_tokens=64)
RAW = TINY | {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 512}

limits = st.builds(Limits, st.integers(1, 64), st.integers(200, 9000), st.integers(4000, 40_000), st.just(16))


# -- which batches


@given(limits, st.randoms(use_true_random=False))
def test_every_cell_of_the_grid_is_a_batch_that_fits(limits: Limits, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    cells = grid(limits)
    for cell in [cells[int(i)] for i in rng.integers(0, len(cells), 20)]:
        drawn = lengths(cell, rng)
        assert len(drawn) == cell.n
        assert max(drawn) == cell.longest
        assert min(drawn) >= 1
        assert abs(sum(drawn) - cell.n * cell.mean) <= max(cell.n, 0.02 * cell.n * cell.mean)
        assert cell.longest + SLACK <= limits.positions
        if cell.stretch == 1:
            assert limits.fits(drawn)


@given(limits, st.integers(0, 2**32))
def test_batches_that_no_fit_sees_fit_too(limits: Limits, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for drawn in islice(unseen(limits, rng), 5):
        assert 1 <= len(drawn) <= limits.members
        assert limits.fits(drawn)
    for start, end in chunks(limits, 256):
        assert 0 <= start < end <= start + 256
        assert limits.fits([end])


# -- fits


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_least_squares_finds_non_negative_coefficients_and_nothing_better_is_drawn(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    features = rng.random((12, count)) * 10.0 ** rng.integers(-4, 5, count)
    planted = rng.random(count) * (rng.random(count) < 0.7)
    found = least_squares(features.tolist(), (features @ planted).tolist(), [1.0] * 12)
    assert found == pytest.approx(planted, abs=1e-6 * (1 + planted.max()))
    noisy = rng.normal(size=12)
    scale = rng.random(12) + 0.1
    found = least_squares(features.tolist(), noisy.tolist(), scale.tolist())
    assert (found >= 0).all()
    least = float((((features @ found - noisy) / scale) ** 2).sum())
    for _ in range(20):
        other = np.maximum(0, found + rng.normal(size=count) * (found + 1e-3))
        assert least <= float((((features @ other - noisy) / scale) ** 2).sum()) + 1e-9


def test_errors_are_relative_to_what_was_measured() -> None:
    found = errors([1.1, 2.0, 2.7], [1.0, 2.0, 3.0])
    assert found.cases == 3
    assert found.p50 == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.0)


def test_cells_that_no_batch_reaches_are_extended_to() -> None:
    cells = grid(Limits(8, 1100, 8192, 16))
    assert any(cell.n == 8 and cell.stretch > 4 for cell in cells)
    sheets = steps.sheets_of({cell: 1.0 + cell.mean * cell.stretch / 1024 for cell in cells})
    assert [sheet.n for sheet in sheets] == [1, 2, 4, 8]
    for sheet in sheets:
        reached = {stretch: [c.mean for c in cells if (c.n, c.stretch) == (sheet.n, stretch)] for stretch in
                   sheet.stretches}  # fmt: skip
        for mean, row in zip(sheet.means, sheet.seconds, strict=True):
            for stretch, seconds in zip(sheet.stretches, row, strict=True):
                if mean in reached[stretch] or len(reached[stretch]) > 1:
                    assert seconds == pytest.approx(1.0 + mean * stretch / 1024)
                else:  # known at one length only: it grows as batches of one length do
                    first = reached[stretch][0]
                    known = 1.0 + first * stretch / 1024
                    assert seconds == pytest.approx(known * (1.0 + mean / 1024) / (1.0 + first / 1024))


class Planted(Bench):
    """A bench whose clock tells planted costs instead of the time; everything else is real."""

    truth = AffineCosts(1e-3, 1e-5, 2e-7, per_pair=3e-9)
    noise = np.random.default_rng(1)

    def decode(self, lengths: Sequence[int], steps: int = STEPS) -> float:
        return self.chunks_beside((), lengths)

    def chunks_beside(self, chunks: Sequence[tuple[int, int]], lengths: Sequence[int]) -> float:
        load = Load(len(lengths), sum(lengths), max(lengths, default=0), tuple(chunks))
        return self.truth.step_seconds(load) * float(self.noise.lognormal(0, 0.02))


def bench(kind: type[Bench] = Bench) -> Bench:
    decoder = random_decoder(RAW, torch.float32, torch.device("cpu"))
    devices = open_devices("cpu", "colocated")
    cluster = plan_cluster(decoder.config, torch.float32, devices, SIZES)
    return kind(cluster, devices, {lane.id: decoder for lane in cluster.lanes})


def test_planted_costs_are_found_again() -> None:
    here, rng = bench(Planted), np.random.default_rng(0)
    limits = limits_of(here.cluster)
    sheets = steps.measure_decode(here, limits, 0.5, rng, quiet)
    truth = Planted.truth
    rows = Curve((1.0, 64.0), (truth.per_row, 64 * truth.per_row))
    prefill = steps.measure_prefill(here, limits, sheets, rows, 0.1, rng, quiet)
    found = steps.held_out(here, limits, TableCosts(sheets, prefill), 0.1, rng, quiet)
    assert {kind: bool(off.p50 < 0.03) for kind, off in found.items()} == {
        "decode": True, "prefill": True, "both": True,
    }  # fmt: skip
    assert set(found) == {"decode", "prefill", "both"}
    assert all(getattr(prefill, term) >= 0 for term in TERMS)


# -- the bench


def test_a_bench_leaves_nothing_behind() -> None:
    here = bench()
    free = {name: pool.free for name, pool in here.executor.pools.items()}
    assert here.decode([40, 17, 3]) > 0
    assert here.chunk(16, 64) > 0
    assert here.chunk(0, 20, [30, 30]) > 0
    assert here.copy(HOST, "d0", 128) > 0
    stepped, copied = here.beside([20, 20], 3, "d0", HOST, 64)
    assert stepped > 0
    assert copied > 0
    assert {name: pool.free for name, pool in here.executor.pools.items()} == free
    assert not here.executor.jobs
    assert not here.executor.lanes[here.lane.id].members()


def test_a_bench_measures_the_batch_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here, seen = bench(), []
    launch = here.executor.lanes[here.lane.id]._forward.launch

    def watched(work: object) -> object:
        seen.append(work)
        return launch(work)  # type: ignore[arg-type]

    monkeypatch.setattr(here.executor.lanes[here.lane.id]._forward, "launch", watched)
    here.decode([100, 50], steps=5)
    assert [work.lengths.tolist() for work in seen] == [[97 + j, 47 + j] for j in range(6)]  # type: ignore[attr-defined]
    seen.clear()
    here.chunk(16, 40, [7])
    assert not seen[0].chunks, "members decode already"  # type: ignore[attr-defined]
    assert [(chunk.start, len(chunk.tokens)) for chunk in seen[1].chunks] == [(16, 24)]  # type: ignore[attr-defined]
    assert seen[1].lengths.tolist() == [7]  # type: ignore[attr-defined]
    assert len(seen) == 2


def test_putting_a_batch_together_is_no_part_of_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    here, now, takes = bench(), 0.0, iter([100.0, 1.0, 2.0, 4.0, 5.0])
    forward = here.executor.lanes[here.lane.id]._forward
    launch = forward.launch

    def launched(work: StepWork) -> object:
        nonlocal now
        now += next(takes)
        return launch(work)

    monkeypatch.setattr(forward, "launch", launched)
    monkeypatch.setattr(here.watch, "_read", lambda: now)
    assert here.decode([40, 17, 3], steps=4) == 3.0
    assert not list(takes)
    takes = iter([100.0, 7.0])
    assert here.chunk(0, 20, [40, 17, 3]) == 7.0


# -- the whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("calibrated")
    write_tiny(place / "model", hidden=32, layers=2, positions=512)
    return place


@pytest.fixture(scope="module")
def measured(folder: Path) -> Path:
    """A real calibration, from the command line."""
    path = folder / "machine.json"
    words = ["calibrate", "-o", str(path), "--model", str(folder / "model"), "--minutes", "0.02", "--kv-tokens", "1024",
             "--host-tokens", "512", "--max-members", "4", "--max-tokens", "64", "--attention", "torch"]  # fmt: skip
    assert main(words) == 0
    return path


def test_a_calibration_is_a_file_that_reads_back_whole(measured: Path) -> None:
    found = Measured.load(measured)
    assert found.kernel == "torch"
    assert found.model.name == "model"
    assert found.machine["clock"] == "process CPU time"
    assert (found.memory.page_size, found.memory.kv_tokens, found.memory.max_members) == (16, 1024, 4)
    assert set(found.links) == {"host->device", "device->host", "device->device"}
    assert set(found.kernels["torch"].held_out) >= {"decode", "prefill"}
    assert json.loads(measured.read_text(encoding="utf-8")) == json.loads(json.dumps(found.content()))


def test_simulations_and_engines_stand_on_a_calibration(folder: Path, measured: Path) -> None:
    found = Measured.load(measured)
    built = build(str(measured), topology="disaggregated", lanes=1, staging=True)
    with Engine(folder / "model", costs=measured, policy="cost_aligned", kv_tokens=1024, host_tokens=512) as engine:
        assert engine.scheduler.costs.sheets == built.costs.sheets == found.costs().sheets  # type: ignore[union-attr]
        link = engine.cluster.link[HOST, "d0"]
        assert (link.bytes_per_s, link.latency_s) == (
            found.links["host->device"].bytes_per_s, found.links["host->device"].latency_s,
        )  # fmt: skip
        answers = engine.generate([[1, 2, 3], [4] * 40], max_new_tokens=5)
    assert [len(answer.tokens) for answer in answers] == [5, 5]


def test_measurements_of_another_model_are_refused(folder: Path, measured: Path) -> None:
    write_tiny(folder / "other", hidden=64, layers=2, positions=512)
    with pytest.raises(ConfigError, match="the costs were measured with 'model', whose KV has 256 bytes a token"):
        Engine(folder / "other", costs=measured)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "minutes must be above 0"),
        (["--device", "gpu"], "device 'gpu' is not known"),
        (["--dtype", "int8"], "dtype 'int8' is not supported"),
        (["--attention", "magic"], "attention 'magic' is not known"),
        (["--kv-tokens", "16"], "a KV memory of 1 blocks is too small to be measured"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_options_are_named_and_leave_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    path = tmp_path / "machine.json"
    assert main(["calibrate", "-o", str(path), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "-o", "/nowhere/machine.json"]) == 2
    assert "--output '/nowhere/machine.json' cannot be written" in capsys.readouterr().err


def test_several_kernels_are_measured_and_named_once() -> None:
    wanted = Wanted(minutes=0.001, sizes=Sizes(512, 0, 16, 2, 32), attention=("torch", "auto"))
    found = calibrate(wanted)
    assert list(found.kernels) == ["torch"]
    assert set(found.links) == {"device->device"}


@settings(max_examples=5)
@given(st.integers(0, 2**16))
def test_a_random_model_is_finite(seed: int) -> None:
    decoder = random_decoder(RAW, torch.float32, torch.device("cpu"))
    assert torch.isfinite(decoder.logits(torch.randn((2, 32), generator=torch.Generator().manual_seed(seed)))).all()


def test_policies_agree_where_real_runs_tell_them_apart() -> None:
    real = {"a": [1.0, 2.0], "b": [1.5, 3.0], "c": [4.0, 5.0], "d": [6.0, 7.0]}
    told = agreement(real, {"a": 2.0, "b": 1.0, "c": 3.0, "d": 3.0})
    assert told == {"pairs": 6, "told_apart": 5, "same": 4, "wrong": [["c", "d"]]}  # a and b overlap; c and d tie


def test_the_clock_of_real_runs_jumps_where_there_is_nothing_to_do() -> None:
    device = CpuTimeDevice("d0")
    began = device.now()
    device.idle(began + 1000.0)
    assert 1000.0 <= device.now() - began < 1010.0
    device.idle(began)
    assert device.now() - began >= 1000.0


def test_prefill_without_terms_costs_nothing() -> None:
    assert Prefill().seconds(Load(3, 30, 10, ((0, 20),))) == 0.0

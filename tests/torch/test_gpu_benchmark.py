"""The GPU benchmark runs on a CPU, tiny; its fits find planted surfaces; a part that fails costs the others nothing."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignedsched.cost_sheet import Curve
from alignedsched.load import Load
from alignedsched_torch.calibrate.shapes import lengths
from alignedsched_torch.models import Decoder
from benchmarks import gpu, gpu_gain, gpu_timing
from benchmarks.gpu_gain import FittedCosts
from benchmarks.gpu_kernels import Batch, Heads, kernels, library, library_in_one_piece, library_takes, reads, room
from benchmarks.gpu_surface import Point, Surface, cells, fitted
from benchmarks.gpu_text import table, targets
from benchmarks.gpu_timing import Record, Size, Timer

SMOKE, FULL = Size.of(True), Size(False, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every section in this process, in order."""
    rows: dict[str, list[dict[str, Any]]] = {}
    place = tmp_path_factory.mktemp("gpu")
    for name in gpu.SECTIONS:
        before = rows.get("surface", [])
        rows[name] = gpu.run_section(name, SMOKE, place / name, 60, before, [])
        assert rows[name] == [json.loads(line) for line in (place / name).read_text(encoding="utf-8").splitlines()]
    return rows


def test_a_smoke_run_measures_everything(found: dict[str, list[dict[str, Any]]]) -> None:
    kinds = {name: {row["what"] for row in rows} for name, rows in found.items()}
    assert kinds == {
        "attention": {"state", "attention"},
        "copies": {"state", "copy"},
        "steps": {"state", "model", "step", "host", "prefetch"},
        "surface": {"state", "surface", "composition"},
        "gain": {"state", "layers", "gain"},
    }
    assert all(row["error"] < 1e-5 for row in found["attention"] if row["what"] == "attention")
    assert {row["way"] for row in found["copies"] if row["what"] == "copy"} == {
        "host->device", "device->host", "both ways",
    }  # fmt: skip
    assert {row["members"] for row in found["steps"] if row["what"] == "host"} == {1, 3}
    beside = [row for row in found["steps"] if row["what"] == "prefetch"]
    assert {(row["way"], row["chunk_bytes"], row["default"]) for row in beside} == {
        (way, chunk, default) for way in ("host->device", "device->host")
        for chunk, default in ((16 << 20, True), (1 << 14, False))
    }  # fmt: skip
    assert {row["kv_heads"] for row in found["surface"] if row["what"] == "surface"} == {2, 1}
    assert all(row["throughput_tok_s"]["fcfs"] > 0 for row in found["gain"] if row["what"] == "gain")


def test_a_result_is_shown_whatever_is_missing(found: dict[str, list[dict[str, Any]]]) -> None:
    for kept in ([], ["attention"], list(found)):
        sections = {name: {"status": "done", "seconds": 1.0, "rows": found[name]} for name in kept}
        result = {"what": "x", "machine": {"processor": "p"}, "sections": sections, "targets": targets({})}
        shown = table(result)
        assert shown.count("not measured") == len(result["targets"]) == 10


def test_the_command_runs_a_section_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    assert gpu.main(["--smoke", "--only", "copies", "--json", str(path)]) == 0
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["smoke"]
    assert result["sections"]["copies"]["status"] == "done"
    assert {"copy", "state"} == {row["what"] for row in result["sections"]["copies"]["rows"]}
    assert "its figures mean nothing" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "--smoke" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit('broken')", "failed: broken"), ("time.sleep(60)", "its time was over")]
)
def test_a_section_that_dies_or_hangs_leaves_what_it_had(
    monkeypatch: pytest.MonkeyPatch, end: str, status: str
) -> None:
    rows = '\'{"what": "x"}\\n{"wh\''
    script = f"import sys, time; open(sys.argv[sys.argv.index('--out') + 1], 'w').write({rows}); {end}"
    run = subprocess.run
    monkeypatch.setattr(gpu, "SMOKE_SECONDS", 2 - gpu.GRACE)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **how: run([sys.executable, "-c", script, *command[3:]], **how)
    )
    part = gpu.in_process("copies", Namespace(smoke=True, trace=[]), [])
    assert status in part["status"]
    assert part["rows"] == [{"what": "x"}]


def test_a_part_that_fails_is_a_finding_and_late_ones_are_left_out(tmp_path: Path) -> None:
    record = Record(tmp_path / "rows", time.monotonic() + 60)

    def broken() -> None:
        raise RuntimeError("illegal memory access")

    record.attempt("one", broken)
    record.attempt("two", lambda: record.put("fine"))
    record.deadline = time.monotonic() - 1
    record.attempt("three", broken)
    assert [row["what"] for row in record.rows] == ["failed", "fine", "left out"]
    assert "illegal memory access" in record.rows[0]["error"]


def test_targets_hold_or_not_by_what_was_found() -> None:
    state = {"what": "state", "copy_bytes_per_s": 4e12}
    rows = [
        {"what": "attention", "kernel": kernel, "batch": batch, "page": 64, "reads": "KV in one piece", "seconds": s,
         "bytes_per_s": b, "big": big}
        for kernel, batch, s, b, big in (
            ("balanced", "a", 1.0, 3.6e12, True), ("balanced", "small", 1.0, 1e12, False),
            ("library", "a", 1.2, 3e12, True), ("flashinfer", "a", 0.9, 4e12, True),
        )
    ]  # fmt: skip
    ways = (("one copy", 1 << 30, 50e9), ("copies", 8 << 20, 49e9), ("copies", 4096, 1e9))
    copies = [{"what": "copy", "way": "host->device", "how": how, "piece_bytes": size, "bytes_per_s": speed}
              for how, size, speed in ways]  # fmt: skip
    steps = [{"what": "step", "members": 64, "ratio": 1.2}, {"what": "host", "members": 256, "seconds": 9e-5},
             *({"what": "prefetch", "slower": slower, "default": default, "way": way} for slower, default, way in (
                 (0.02, True, "host->device"), (0.2, False, "host->device"), (0.3, True, "device->host")))]  # fmt: skip
    sections = {"attention": {"rows": [state, *rows, state]}, "copies": {"rows": copies}, "steps": {"rows": steps}}
    assert targets(sections)[1]["target"] == (
        "decode attention, times as fast as library (KV in one piece), worst batch"
    )
    holds = [(target["found"], target["holds"]) for target in targets(sections)]
    assert holds == [
        (0.9, True), (1.2, True), (0.9, False), (0.98, True), (None, None), (0.02, True), (None, None), (1.2, False),
        (None, None), (9e-5, True),
    ]  # fmt: skip


class Counting:
    """A clock by which a layer takes 1 s, everything else of a model's pass 10 s, and anything else half a second."""

    layers, passes = 0, 0

    def __init__(self, size: Size) -> None:
        pass

    def seconds(self, work: Callable[[], object]) -> float:
        Counting.layers = Counting.passes = 0
        work()
        return 10.0 * self.passes + self.layers if self.passes else 0.5


def test_what_comes_once_a_step_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend, hidden = Decoder._attend, Decoder.hidden

    def attended(*given: Any) -> torch.Tensor:
        Counting.layers += 1
        return attend(*given)

    def passed(*given: Any) -> torch.Tensor:
        Counting.passes += 1
        return hidden(*given)

    monkeypatch.setattr(Decoder, "_attend", attended)
    monkeypatch.setattr(Decoder, "hidden", passed)
    monkeypatch.setattr(gpu_gain, "Timer", Counting)
    layers, rows, _ = gpu_gain._linear(Record(tmp_path / "rows", time.monotonic() + 60), SMOKE)
    assert layers == 4
    assert [rows.at(n) for n in (1, 64)] == [10.0 + 4 * 1.0 + 0.5] * 2


def test_the_cache_is_emptied_by_reading_so_that_nothing_is_left_to_be_written_back() -> None:
    timer = Timer(SMOKE)
    written = timer._scratch._version
    timer._flush()
    assert timer._scratch._version == written
    assert timer._flushed.device == timer._scratch.device


def test_clocks_are_read_after_the_gpu_was_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Told:
        def __init__(self, size: Size) -> None:
            pass

        def copy_bandwidth(self) -> float:
            seen.append("copies")
            return 1e12

    def clocks(device: torch.device) -> dict[str, str]:
        seen.append("clocks")
        return {"clocks.sm": "1980 MHz"}

    monkeypatch.setattr(gpu_timing, "Timer", Told)
    monkeypatch.setattr(gpu_timing, "gpu_state", clocks)
    record = Record(tmp_path / "rows", time.monotonic() + 60)
    record.state(FULL, "begin")
    assert seen == ["copies", "clocks"]
    assert record.rows[0] == {"what": "state", "when": "begin", "copy_bytes_per_s": 1e12, "clocks.sm": "1980 MHz"}


# A tail that never binds among the cells cannot be found: s is a fair share of the bandwidth, as FlashAttention's.
@settings(max_examples=6)
@given(st.sampled_from([None, 1, 8, 32]), st.floats(1.2e-8, 3e-8), st.integers(0, 2**32))
def test_planted_surfaces_are_found_again(gate: int | None, s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    planted, points = Surface(1e-5, 2e-8, 1e-9, s if gate else 0.0, gate), []
    for cell in cells(FULL):
        drawn = lengths(cell, rng)
        taken = planted.seconds(cell.n, sum(drawn), max(drawn)) * float(rng.lognormal(0, 0.01))
        points.append(Point(cell.n, sum(drawn), max(drawn), cell.stretch, taken))
    fit = fitted(points)
    assert fit.name == planted.name
    assert fit.d == pytest.approx(1e-9, rel=0.05)
    if gate is not None:
        assert fit.gate == gate
        assert fit.s == pytest.approx(s, rel=0.1)


@given(st.integers(1, 300), st.integers(1, 3000), st.integers(1, 40), st.sampled_from([None, 1, 26]))
def test_fitted_costs_foresee_their_own_steps(n: int, mean: int, steps: int, gate: int | None) -> None:
    costs = FittedCosts(4, Curve((1.0, 64.0), (1e-3, 2e-3)), Surface(1e-5, 1e-7, 1e-9, 2e-8, gate), 1e-9)
    load = Load(n, n * mean, 3 * mean)
    each = [costs.step_seconds(Load(n, load.total + n * j, load.longest + j)) for j in range(steps)]
    assert costs.finishing_times(load, steps) == pytest.approx(np.cumsum(each))
    assert costs.balanced_seconds(load) <= costs.step_seconds(load)


def paged_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """What torch's documentation says ``varlen_attn`` does with pages, one query a request."""
    assert enable_gqa
    assert seqused_k is not None
    assert block_table is not None
    assert (max_q, max_k) == (1, int(seqused_k.max()))
    assert cu_seq_q.tolist() == list(range(len(query) + 1))
    out = torch.empty_like(query)
    for row, length in enumerate(seqused_k.tolist()):
        pages = block_table[row, : -(-length // key.shape[1])].long()
        k, v = (side[pages].flatten(0, 1)[:length].transpose(0, 1) for side in (key, value))
        repeat = query.shape[1] // k.shape[0]
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        out[row] = torch.nn.functional.scaled_dot_product_attention(query[row][:, None], k, v)[:, 0]
    return out


@functools.wraps(paged_reference)
def wrong_reference(*given: Any, **how: Any) -> torch.Tensor:
    return paged_reference(*given, **how) + 1


@pytest.mark.parametrize("lengths", [[700, 3, 256], [1]])
def test_the_library_is_given_the_pages_that_it_asks_for(monkeypatch: pytest.MonkeyPatch, lengths: list[int]) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    heads = Heads(4, 2, 16)
    batch = Batch(np.array(lengths), heads, 16, SMOKE, room(2000, heads, SMOKE))
    monkeypatch.setattr(varlen, "varlen_attn", paged_reference)
    work, out = library(batch)
    assert torch.equal(out, cast(torch.Tensor, work()))
    monkeypatch.setattr(varlen, "varlen_attn", wrong_reference)
    with pytest.raises(RuntimeError, match="row 0 is off"):
        library(batch)


def packed_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """The same before torch 2.12: no pages, one request's keys behind another's."""
    assert window_size == (-1, -1)
    ends = cu_seq_k.tolist()
    assert (max_q, max_k, ends[-1]) == (1, int(cu_seq_k.diff().max()), len(key))
    out = torch.empty_like(query)
    for row in range(len(query)):
        k, v = (side[ends[row] : ends[row + 1]].transpose(0, 1) for side in (key, value))
        k, v = (side.repeat_interleave(query.shape[1] // side.shape[0], 0) for side in (k, v))
        out[row] = torch.nn.functional.scaled_dot_product_attention(query[row][:, None], k, v)[:, 0]
    return out


def test_a_torch_without_pages_is_compared_with_over_kv_in_one_piece_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    heads = Heads(4, 2, 16)
    batch = Batch(np.array([70, 3, 25]), heads, 16, SMOKE, room(200, heads, SMOKE))
    for reference, made, words in (
        (packed_reference, library_in_one_piece, "KV in one piece"), (paged_reference, library, "pages of 256"),
    ):  # fmt: skip
        library_takes.cache_clear()
        monkeypatch.setattr(varlen, "varlen_attn", reference)
        assert kernels(FULL)["library"] is made
        assert reads("library", 64) == words
        work, out = made(batch)
        assert torch.equal(out, cast(torch.Tensor, work()))
    library_takes.cache_clear()
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert "library" not in kernels(FULL)
    library_takes.cache_clear()
    assert reads("balanced", 64) == "pages of 64"

"""The headline cell in small: every setting runs, times count the right way round, the page says what came out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import headline


def test_the_headline_runs_and_writes_what_came_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, docs = tmp_path / "headline.json", tmp_path / "headline.md"
    options = ["--requests", "30", "--seeds", "1", "--surfaces", "gated", "--traces", str(tmp_path)]
    assert headline.main([*options, "--out", str(out), "--docs", str(docs)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["about"]["azure"] == "drawn from a fit"
    ran = {entry["setting"] for entry in report["cells"]}
    assert {"fcfs", "fcfs, both GPUs do both", "density_first", "density_first, no staging"} <= ran
    for entry in report["cells"]:
        if entry["setting"] == "fcfs":
            assert entry["throughput"] == entry["tpot_p99"] == [1.0, 0.0]
    text = docs.read_text(encoding="utf-8")
    assert "1.98×" in text
    assert "7.4×" in text
    assert "40 KV heads / 132 SMs" in text
    assert "Beside the paper" in capsys.readouterr().out


def test_above_one_is_better_for_throughput_and_for_times() -> None:
    plain = {"workload": "w", "surface": "gated", "load": "offline", "seed": 0, "setting": "fcfs", "preemptions": 0,
             "iteration_bubble": 0.0, "throughput": 100.0, "tpot_decoding_p99": 0.4, "tpot_p99": 0.8, "e2e_mean": 3.0,
             "e2e_p99": 9.0}  # fmt: skip
    other = plain | {"setting": "x", "throughput": 150.0, "tpot_decoding_p99": 0.1, "tpot_p99": 1.6}
    entry = next(entry for entry in headline.ratios([plain, other]) if entry["setting"] == "x")
    assert (entry["throughput"][0], entry["tpot_decoding_p99"][0], entry["tpot_p99"][0]) == (1.5, 4.0, 0.5)

"""The closed forms stay close to published measurements, where these are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import fidelity_tables


def test_absent_tables_are_skipped_with_a_clear_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fidelity_tables.main(["--profiles", str(tmp_path / "none"), "--json", str(tmp_path / "out.json")]) == 0
    assert "skipped: no measured tables at" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


def test_decode_of_mixed_lengths_is_predicted_within_10_percent(tmp_path: Path) -> None:
    """2,295 decode-only cases: `gated` beats the other surfaces, and the measured uniform time leaves 3 % or less."""
    if not (fidelity_tables.PROFILES / "llmservingsim_decode_skew.csv.gz").exists():
        pytest.skip("the measured tables are not at ../shared/profiles")
    only = {"llmservingsim_decode_skew": fidelity_tables.TABLES["llmservingsim_decode_skew"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity_tables, "TABLES", only)
        assert fidelity_tables.main(["--json", str(tmp_path / "out.json")]) == 0
    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    errors = {result["subset"]: result for result in results}
    gated, balanced = errors["decode only, gated"], errors["decode only, balanced"]
    assert gated["cases"] == 2295
    assert gated["p50"] <= 0.10
    assert gated["p50"] < balanced["p50"] < errors["decode only, unsplit"]["p50"]
    assert gated["p90"] < balanced["p90"]
    assert errors["decode only, gated, uniform time as measured"]["p50"] <= 0.03

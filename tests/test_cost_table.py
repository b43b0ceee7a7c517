"""Measured cost tables: their points come back, what lies outside is counted, wrong files are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.costs import Load, ModelCosts, Prefill, Sheet, TableCosts
from alignedsched.errors import ConfigError
from alignedsched.hardware import gpu_named
from alignedsched.models import model_named

TRUTH = ModelCosts(gpu_named("h200"), model_named("llama-3.1-8b"), 1, "unsplit")


def table() -> TableCosts:
    """Points of a closed form: members and mean lengths in steps of 8 and 16, longest up to 12 times the mean."""
    points = []
    for n in (1, 8, 64):
        for mean in (64, 1024, 16_384):
            for stretch in (1, 3, 12):
                load = Load(n, n * mean, mean * stretch)
                points.append((n, load.total, load.longest, TRUTH.step_seconds(load)))
    return TableCosts.from_points(points, Prefill(4e-3, 1e-5, 1e-10), "closed form")


@given(members=st.lists(st.integers(1, 60_000), min_size=1, max_size=80))
def test_a_table_returns_its_points_and_counts_what_lies_outside(members: list[int]) -> None:
    costs = table()
    for load in (Load(8, 8 * 1024, 3 * 1024), Load(64, 64 * 64, 12 * 64), Load(1, 16_384, 16_384)):
        assert costs.step_seconds(load) == pytest.approx(TRUTH.step_seconds(load), rel=1e-9)
    assert costs.extrapolated == 0
    load = Load(len(members), sum(members), max(members))
    inside = load.n <= 64 and 64 <= load.total / load.n <= 16_384 and load.longest * load.n / load.total <= 12
    costs.step_seconds(load)
    assert costs.extrapolated == (0 if inside else 1)
    costs.finishing_times(Load(65, 65 * 100, 100), 7)
    assert costs.extrapolated == (7 if inside else 8)


def test_a_table_reads_between_and_beyond_its_points() -> None:
    costs = TableCosts((Sheet(2, (100, 200), (1, 2), ((1.0, 2.0), (3.0, 5.0))), Sheet(4, (100,), (1,), ((8.0,),))))
    assert costs.step_seconds(Load(2, 300, 225)) == pytest.approx((1.5 + 4.0) / 2)
    assert costs.step_seconds(Load(3, 450, 225)) == pytest.approx((2.75 + 8.0) / 2)
    assert costs.step_seconds(Load(2, 600, 300)) == pytest.approx(5.0)  # mean 300: 3 + (3 - 1)
    assert costs.step_seconds(Load(2, 20, 10)) == 1.0  # below: level
    assert costs.step_seconds(Load(6, 600, 100)) == pytest.approx(8.0 + (8.0 - 1.0))
    assert costs.balanced_seconds(Load(2, 300, 225)) == pytest.approx(2.0)
    assert costs.extrapolated == 4


def test_a_table_survives_saving(tmp_path: Path) -> None:
    costs = table()
    costs.save(tmp_path / "costs.json")
    again = TableCosts.load(tmp_path / "costs.json")
    assert (again.sheets, again.prefill, again.source) == (costs.sheets, costs.prefill, costs.source)


GOOD: dict[str, Any] = {"format": "alignedsched-cost-table", "version": 1, "prefill": {}}
SHEET: dict[str, Any] = {"n": 1, "means": [1, 2], "stretches": [1], "seconds": [[1], [2]]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "format must be"),
        (GOOD | {"version": 3}, "version must be 1 to 2, got 3"),
        (GOOD, "sheets must be a list"),
        (GOOD | {"sheets": []}, "at least one sheet"),
        (GOOD | {"sheets": [3]}, r"sheets\[0\] must be an object"),
        (GOOD | {"sheets": [SHEET | {"n": "1"}]}, r"sheets\[0\].n must be an integer"),
        (GOOD | {"sheets": [SHEET | {"means": [2, 1]}]}, r"sheets\[0\].means must ascend"),
        (GOOD | {"sheets": [SHEET | {"stretches": [2]}]}, r"sheets\[0\].stretches must begin at 1"),
        (GOOD | {"sheets": [SHEET | {"seconds": [[1]]}]}, r"sheets\[0\].seconds must have 2 rows of 1"),
        (GOOD | {"sheets": [SHEET | {"seconds": [[1], ["2"]]}]}, r"seconds\[1\] must be a list of finite numbers"),
        (GOOD | {"sheets": [SHEET | {"seconds": [[1], [-2]]}]}, r"seconds must be positive"),
        (GOOD | {"sheets": [SHEET, SHEET]}, "n of the sheets must ascend"),
        (GOOD | {"sheets": [SHEET], "prefill": {"t0": -1}}, r"prefill.t0 must be a finite number"),
    ],
)
def test_a_wrong_table_file_names_file_and_field(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"wrong\.json.*" + message):
        TableCosts.load(path)


def test_unsound_points_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"points\[1\]: needs n >= 1"):
        TableCosts.from_points([(1, 5, 5, 1.0), (2, 9, 4, 1.0)])
    with pytest.raises(ConfigError, match=r"n=2 was not measured at mean length 20, longest/mean 1\.5"):
        TableCosts.from_points([(2, 20, 10, 1.0), (2, 20, 15, 2.0), (2, 40, 20, 3.0)])

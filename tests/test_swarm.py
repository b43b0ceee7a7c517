"""Random lives under every policy and fault: nothing is ever wrong, everything rare happens; failures are cut down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignedsched import registry
from alignedsched.errors import TraceError
from alignedsched.testing import shrink as shrinking
from alignedsched.testing import swarm
from alignedsched.testing.life import ACTIONS, Life
from alignedsched.testing.shrink import Failure, shrink
from alignedsched.testing.sometimes import GOALS

EVENTS, SEED = 100_000, 1


@pytest.mark.timeout(300)
def test_a_hundred_thousand_events_without_a_violation_reach_every_goal(tmp_path: Path) -> None:
    result = tmp_path / "swarm.json"
    code = swarm.main(
        ["--events", str(EVENTS), "--seed", str(SEED), "--json", str(result), "--failures", str(tmp_path)]
    )
    plain = json.loads(result.read_text())
    assert (code, plain["failed_seeds"], plain["missing"]) == (0, [], [])
    assert plain["events"] >= EVENTS
    assert set(plain["sometimes"]) == set(GOALS)
    assert set(plain["policies"]) == {*registry.policy_names(), "erratic", "stager"}


def test_the_same_seed_lives_the_same_life() -> None:
    one, two = Life(17), Life(17)
    one.lead(60)
    two.play(one.acts)
    assert (one.events, one.calls, list(one.log)) == (two.events, two.calls, list(two.log))


class Forgetful(Life):
    """A world whose executor forgets the KV of whoever decodes when a lane is lost: a failure to cut down."""

    def lane_trouble(self, rng: object) -> list[object]:  # type: ignore[override]
        raise AssertionError(f"lane trouble with {len(self.adversary.requests)} requests")


def test_a_failure_is_cut_down_and_its_file_plays_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shrinking, "Life", Forgetful)
    monkeypatch.setattr(swarm, "Life", Forgetful)
    seed = next(seed for seed in range(100) if "lane_trouble" in Life(seed).features)
    code = swarm.main(["--events", "3000", "--seed", str(seed), "--calls", "150", "--failures", str(tmp_path)])
    assert code == 1
    path = tmp_path / f"life-{seed}.json"
    small = Failure.read(path)
    assert [name for _, names in small.acts for name in names] == ["lane_trouble"], "one action is enough"
    assert f"seed {seed}" in capsys.readouterr().out
    assert swarm.main(["--replay", str(path)]) == 1
    monkeypatch.undo()
    assert swarm.main(["--replay", str(path)]) == 0, "mended, it plays to the end"


def test_what_does_not_fail_again_is_left_as_it_is() -> None:
    failure = Failure(3, ((1, ("arrive",)), (2, ("step",))), "something else")
    assert shrink(failure) is failure


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 1}',
        '{"version": 2, "seed": 1, "error": "", "acts": []}',
        '{"version": 1, "seed": 1, "error": "", "acts": [[1, ["__init__"]]]}',
        '{"version": 1, "seed": 1.5, "error": "", "acts": []}',
        '{"version": 1, "seed": 1, "error": "", "acts": [[1]]}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_event_file_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "life.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"life\.json"):
        Failure.read(path)
    assert swarm.main(["--replay", str(path)]) == 2
    assert "life.json" in capsys.readouterr().out


def test_every_action_exists() -> None:
    assert all(callable(getattr(Life, name)) for name in ACTIONS)


@pytest.mark.parametrize("jobs", [2])
def test_several_processes_live_the_same_lives(jobs: int) -> None:
    alone = swarm.live(500, swarm.BATCH, 20)
    together = swarm.run(500, 1, 20, jobs=jobs)
    assert together.lives >= alone.lives
    assert not together.failures


@pytest.mark.parametrize("seed", [5, 12, 69, 2566, 200040, 201727])
def test_lives_that_once_failed_end_well(seed: int) -> None:
    Life(seed).lead(200)

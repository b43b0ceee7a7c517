"""``generate --attention``: the kernels answer as torch does, and what cannot be had is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignedsched_torch.cli import main
from alignedsched_torch.tiny import write_tiny
from tests.kernels.paged import PLACE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "model", "llama", vocab=64, hidden=32, layers=1)
    (tmp_path / "prompts").write_text('{"tokens": [3, 4, 5]}\n{"tokens": [6], "max_new_tokens": 2}\n')
    return tmp_path


def answers(model: Path, attention: str) -> list[list[int]]:
    out = model / f"{attention}.json"
    code = main(
        ["generate", "--model", str(model / "model"), "--prompts", str(model / "prompts"), "--dtype", "float32",
         "--max-new-tokens", "4", "--kv-tokens", "256", "--device", PLACE.type,
         "--attention", attention, "--json", str(out)]
    )  # fmt: skip
    assert code == 0
    return [answer["tokens"] for answer in json.loads(out.read_text())["answers"]]


def test_generate_makes_the_same_tokens_with_every_attention(model: Path) -> None:
    assert answers(model, "triton") == answers(model, "torch")


def test_an_attention_that_cannot_be_had_is_an_error_that_names_it(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generate", "--model", str(model / "model"), "--prompts", str(model / "prompts")]
    assert main([*given, "--attention", "flash"]) == 2
    assert "attention 'flash' is not known; known: auto, torch, triton" in capsys.readouterr().err
    assert main([*given, "--dtype", "float64", "--attention", "triton"]) == 2
    assert "'triton' computes in float32 at most" in capsys.readouterr().err

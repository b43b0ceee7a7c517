"""The command: answers on stdout, everything else on stderr, each mistake named, exit codes that can be relied on."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from alignedsched_torch import cli
from alignedsched_torch.engine import Engine
from alignedsched_torch.tiny import write_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "tiny"
    assert cli.main(["tiny", "--arch", "qwen3", "-o", str(folder)]) == 0
    return folder


def ask(model: Path, *options: str) -> list[str]:
    return ["generate", "--model", str(model), "--max-new-tokens", "6", *options]


def test_answers_are_those_of_the_engine_and_figures_those_of_compare(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        'one\n\n{"tokens": [5, 6, 7], "max_new_tokens": 3}\n{"prompt": "two", "temperature": 1, "seed": 4}\n'
    )
    out = tmp_path / "result.json"
    options = ["--prompts", str(prompts), "--policy", "density_first", "--topology", "disaggregated"]
    assert cli.main(ask(model, *options, "--kv-tokens", "4096", "--host-tokens", "512", "--json", str(out))) == 0
    result = json.loads(out.read_text())
    said = capsys.readouterr()
    with Engine(model) as engine:
        wanted = engine.generate(["one", [5, 6, 7]], max_new_tokens=6)
    assert [answer["line"] for answer in result["answers"]] == [1, 3, 4]
    assert result["answers"][0]["tokens"] == list(wanted[0].tokens)
    assert result["answers"][1]["tokens"] == list(wanted[1].tokens[:3])
    assert {answer["reason"] for answer in result["answers"]} == {"length"}
    assert [line[:4] for line in said.out.splitlines() if line.startswith("[")] == ["[1] ", "[3] ", "[4] "]
    assert "\x1b" not in said.out
    for words in ("3 of 3 prompts, 15 tokens", "throughput", "TTFT p50", "density_first", "requests finished"):
        assert words in said.err
    assert result["runs"][0]["requests"]["finished"] == 3
    assert "simulated" not in said.err


@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux: memfd, eventfd, SEQPACKET")
def test_two_ranks_give_the_answers_of_one_process(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_text('one\n{"prompt": "two", "temperature": 1, "seed": 4}\n{bad\n')
    options = ["--prompts", str(tmp_path / "p"), "--dtype", "float64"]
    assert cli.main(ask(model, *options)) == 2
    alone = capsys.readouterr().out
    assert cli.main(ask(model, *options, "--tensor-parallel", "2", "--json", str(tmp_path / "r.json"))) == 2
    said = capsys.readouterr()
    assert said.out == alone
    for words in ("3 of 3 prompts, 12 tokens", "batch bubble", "of the lower bound"):
        assert words in said.err
    assert json.loads((tmp_path / "r.json").read_text())["topology"] == "colocated"


def test_a_bad_line_is_named_and_stops_no_other(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        b"good", b"{bad", b'{"prompt": 3}', b'{"tokens": [1, 999]}', b'{"prompt": "a", "tokens": [1]}', b"\xff\xfe",
        b'{"prompt": "a", "top_p": 7}', b'{"prompt": "a", "max_new_tokens": 0}', b'{"prompt": "a", "best_of": 2}',
        b'{"tokens": "abc"}', b'{"prompt": "a", "seed": "x"}', b"x" * 9000, b'{"prompt": "\\ud800"}',
        b'{"tokens": [1e400]}', b'{"prompt": "a", "temperature": NaN}', b'{"tokens": []}', b"good too",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))
    assert cli.main(ask(model, "--prompts", "-")) == 2
    said = capsys.readouterr()
    answers = {line.partition("]")[0]: line for line in said.out.splitlines() if line.startswith("[")}
    assert len(answers) == len(lines)
    assert all(("(error: " in line) == (number not in ("[1", f"[{len(lines)}")) for number, line in answers.items())
    wanted = [
        "no JSON object", "prompt must be text", "token 1 of the prompt is 999", "either prompt", "not UTF-8", "top_p",
        "max_new_tokens", "unknown field 'best_of'", "tokens must be a list", "seed must be a number", "9000 tokens",
        "half a surrogate", "must be a whole number, got inf", "temperature must be a finite", "the prompt is empty",
    ]  # fmt: skip
    for number, words in enumerate(wanted, 2):
        assert any(f"line {number}: " in line and words in line for line in said.err.splitlines()), words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to do"),
        (["generate"], "--model"),
        (["generate", "--model", "gone", "--prompts", "P"], "gone/config.json: no such file"),
        (["generate", "--model", "M", "--prompts", "gone.txt"], "'gone.txt': No such file"),
        (["generate", "--model", "M", "--prompts", "EMPTY"], "has no prompts"),
        (["generate", "--model", "M", "--prompts", "P", "--dtype", "int8"], "dtype 'int8'"),
        (["generate", "--model", "M", "--prompts", "P", "--policy", "best"], "unknown policy 'best'"),
        (["generate", "--model", "M", "--prompts", "P", "--device", "cuda:77"], "torch sees"),
        (["generate", "--model", "M", "--prompts", "P", "--top-p", "3"], "top_p"),
        (["generate", "--model", "M", "--prompts", "P", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "--model", "M", "--prompts", "P", "--json", "gone/x.json"], "cannot be written"),
        (["tiny", "--arch", "gpt2", "-o", "x"], "family 'gpt2'"),
        (
            ["generate", "--model", "M", "--prompts", "P", "--workers", "0"],
            "lanes must be a whole number of at least 1",
        ),
        (["generate", "--model", "M", "--prompts", "P", "--tensor-parallel", "3"], "tensor_parallel 3"),
        (["generate", "--model", "M", "--prompts", "P", "--listen", "P"], "to wait at: Address already in use"),
        (
            ["generate", "--model", "M", "--prompts", "P", "--workers", "1", "--topology", "colocated"],
            "--topology is of one process",
        ),
        (["generat"], "generat"),
    ],
)
def test_wrong_use_is_said_in_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "p").write_text("hello\n")
    (tmp_path / "empty").write_text("\n")
    names = {"M": str(model), "P": str(tmp_path / "p"), "EMPTY": str(tmp_path / "empty")}
    assert cli.main([names.get(option, option) for option in options]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("alignedsched-torch: error: ")
    assert not said.out


def test_a_model_cut_short_or_of_another_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").write_text("hello\n")
    write_tiny(tmp_path, layers=1, hidden=16)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert cli.main(ask(tmp_path, "--prompts", str(tmp_path / "p"))) == 2
    assert "model.safetensors: not a whole safetensors file" in capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert cli.main(ask(tmp_path, "--prompts", str(tmp_path / "p"))) == 2
    assert "model_type 'gpt2' is not supported" in capsys.readouterr().err


def test_without_a_tokenizer_ids_come_and_go(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((model / file).read_bytes())
    (tmp_path / "p").write_text('{"tokens": [1, 2]}\nwords\n')
    assert cli.main(ask(tmp_path, "--prompts", str(tmp_path / "p"))) == 2
    said = capsys.readouterr()
    first = said.out.splitlines()[0].split()
    assert first[0] == "[1]"
    assert len([int(token) for token in first[1:]]) == 6
    assert "needs tokenizer.json" in said.err

"""The documentation runs: every python block of README.md and docs/, and every doctest of a module."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest
from attrs import frozen

import alignedsched
from alignedsched.report import schema

NEED_VLLM = ("alignedsched.adapters.vllm.connector", "alignedsched.adapters.vllm.scheduler")
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("README.md"), *(ROOT / "docs").glob("*.md")])
NO_RUN = "<!-- no-run -->"
_FENCE = re.compile(r"^(?P<mark>`{3,}|~{3,})[ ]*(?P<language>\S*)")


@frozen
class Block:
    """One fenced python block: its first line's number in the page, its text, and whether it is to be run."""

    line: int
    source: str
    runs: bool


def blocks(page: str) -> list[Block]:
    """The fenced python blocks of a Markdown page, in order; `NO_RUN` on the line before spares a block."""
    found: list[Block] = []
    lines = page.splitlines()
    number, spared = 0, False
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            spared = lines[number].strip() == NO_RUN or (spared and not lines[number].strip())
            number += 1
            continue
        start = number + 1
        end = start
        while end < len(lines) and lines[end].strip() != fence["mark"]:
            end += 1
        assert end < len(lines), f"the block that begins in line {start} has no end"
        if fence["language"] == "python":
            found.append(Block(start + 1, "\n".join(lines[start:end]), not spared))
        number, spared = end + 1, False
    return found


def run(page: Path) -> int:
    """Run a page's blocks in one namespace and return how many ran; an error shows the page's own line."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.runs:
            exec(compile("\n" * (block.line - 1) + block.source, str(page), "exec"), namespace)
            ran += 1
    return ran


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in ("torch.md", "workers.md", "calibrate.md") and importlib.util.find_spec("safetensors") is None:
        pytest.skip("needs the extra alignedsched[torch]")
    if page.name == "transformers.md" and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the extra alignedsched[transformers]")
    monkeypatch.chdir(tmp_path)  # an example that writes a file does not write it here
    run(page)


def module_names() -> list[str]:
    found = pkgutil.walk_packages(alignedsched.__path__, "alignedsched.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", module_names())
def test_doctests_of_a_module(name: str) -> None:
    if name in NEED_VLLM and importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM, which is not installed: make test-engines")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_blocks_are_found_spared_and_share_a_namespace(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n```python\nx = 1\n```\ntext\n```sh\nexit 1\n```\n"
        "<!-- no-run -->\n\n```python\nraise SystemExit\n```\n```python\nassert x == 1\ny = x / 0\n```\n"
    )
    assert [block.runs for block in blocks(page.read_text())] == [True, False, True]
    with pytest.raises(ZeroDivisionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno + 1 == 16  # the page's own line
    with pytest.raises(AssertionError, match="line 1 has no end"):
        blocks("```python\nx")


def test_the_json_page_explains_every_field_and_no_other() -> None:
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert rows
    assert sorted(rows) == sorted(schema.paths())

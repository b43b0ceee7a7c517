"""Write docs/states.md: diagrams of the legal states, made from the tables the library itself goes by.

python -m benchmarks.states_page
"""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path

from alignedsched import states

Table = Mapping[enum.Enum, frozenset[enum.Enum]]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "states.md"
TABLES: dict[str, Table] = {
    "Requests": states.REQUEST_TRANSITIONS,  # type: ignore[dict-item]
    "Copies": states.COPY_TRANSITIONS,  # type: ignore[dict-item]
    "Orders": states.ORDER_TRANSITIONS,  # type: ignore[dict-item]
}
INTRODUCTION = """# Legal states

Requests, copies and orders go through the states below and no others. The diagrams are written from the tables in
`alignedsched/states.py` by `python -m benchmarks.states_page`; a test fails when they differ. A transition that is not
drawn raises `InvariantError` with both names.
"""


def diagram(table: Table) -> str:
    """A Mermaid state diagram of a table; its first row is where everything begins."""
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(table)).value}"]
    for old, following in table.items():
        lines += [f"    {old.value} --> {new.value}" for new in type(old) if new in following]
        if not following:
            lines.append(f"    {old.value} --> [*]")
    return "\n".join(lines)


def meanings(kind: type[enum.Enum]) -> list[str]:
    """A line per state, from the comment beside it in the source; a state without one has its name only."""
    lines = []
    for line in inspect.getsource(kind).splitlines():
        name, equals, rest = line.strip().partition(" = ")
        if equals and name in kind.__members__:
            comment = rest.partition("  # ")[2]
            lines.append(f"- `{kind[name].value}`" + (f": {comment}" if comment else ""))
    return lines


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, table in TABLES.items():
        kind = type(next(iter(table)))
        about = inspect.getdoc(kind) or ""
        parts += [f"## {name}\n", f"{about}\n", *meanings(kind), f"\n```mermaid\n{diagram(table)}\n```\n"]
    return "\n".join(parts)


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

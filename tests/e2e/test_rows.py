"""``docs/rows.md``: every row is there, and every test it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROW = re.compile(r"\| ([RDX]\d+) \| (.+?) \| (.+?) \| (.+?) \|")

ROWS = [
    found.groups() for line in (ROOT / "docs" / "rows.md").read_text("utf-8").splitlines() if (found := ROW.fullmatch(line))
]


def functions() -> set[str]:
    """The names of all end-to-end tests."""
    return {
        node.name
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_row_is_there_once_and_in_order() -> None:
    wanted = [f"{letter}{number}" for letter, last in (("R", 62), ("D", 7), ("X", 24)) for number in range(1, last + 1)]
    assert [row for row, *_ in ROWS] == wanted


def test_every_named_test_exists() -> None:
    named = {name for _, _, tests, _ in ROWS for name in re.findall(r"`(\w+)`", tests)}
    assert named - functions() == set()


def test_every_row_has_a_test_or_says_what_will_bring_it() -> None:
    assert [row for row, _, tests, later in ROWS if "`" not in tests and later == "–"] == []


def test_every_test_named_for_a_row_stands_in_its_row() -> None:
    listed = {(row.lower(), name) for row, _, tests, _ in ROWS for name in re.findall(r"`(\w+)`", tests)}
    named = {(found[1], name) for name in functions() if (found := re.match(r"test_([rdx]\d+)_", name))}
    assert named - listed == set()

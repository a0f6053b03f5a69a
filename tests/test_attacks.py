"""``docs/attacks.md``: every row is there, says what shows it or why nothing does, and names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"\| ([ARGC]\d+) \| (.+?) \| (.+?) \| (.+?) \|")
ROWS = [found.groups() for line in (ROOT / "docs/attacks.md").read_text().splitlines() if (found := ROW.fullmatch(line))]


def written_tests() -> set[str]:
    """But for those of the demo's GitLab, which show nothing of the gateway."""
    return {
        node.name
        for file in (ROOT / "tests").rglob("*.py")
        if not {"node_modules", "demo"} & set(file.parts)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_row_is_there_once_and_in_order() -> None:
    wanted = [f"{letter}{n}" for letter, last in (("A", 58), ("R", 28), ("G", 21), ("C", 14)) for n in range(1, last + 1)]
    assert [row for row, *_ in ROWS] == wanted


def test_every_named_test_exists() -> None:
    named = {name for _, _, shown, later in ROWS for name in re.findall(r"`(test_\w+)`", shown + later)}
    assert named - written_tests() == set()


def test_what_nothing_shows_says_why() -> None:
    assert [row for row, _, shown, later in ROWS if "`" not in shown and later == "–"] == []


def test_every_category_named_is_in_a_corpus() -> None:
    corpora = "".join(path.read_text() for path in (ROOT / "tests/conformance").glob("malformed_*.jsonl"))
    named = {word for _, _, shown, _ in ROWS for group in re.findall(r"\(([^)]*)\)", shown) for word in group.split(", ")}
    assert {word for word in named if f'"category": "{word}"' not in corpora} == set()


def test_every_fuzz_target_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/attacks.md").read_text(), flags=re.MULTILINE)
    assert rows == list(TARGETS)

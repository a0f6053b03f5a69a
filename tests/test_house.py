"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway"

TOP_LEVEL = {
    "pyproject.toml",
    "gateway",
    "config",
    "deploy",
    "tests",
    "Dockerfile",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "docs",
    "benchmarks",
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-build.lock",
}

WITHOUT_A_TEST_FILE = {
    "gateway/__main__.py": "tests/e2e/test_start.py tests it as what it is: the beginning of a process",
    "gateway/demo/__main__.py": "three lines; tests/demo/test_gitlab.py starts the demo through it",
    "gateway/stages.py": "protocols and the struct that holds them; tests/test_pipeline.py walks it",
    "gateway/progress.py": "a value without behaviour; tests/test_pipeline.py walks what fills it",
    "gateway/ports.py": "protocols without behaviour; the contract suites test whatever implements them",
    "gateway/upstream/contract.py": "protocols without behaviour; connections and pools are tested as what they are",
    "gateway/pending_answer.py": "protocols without behaviour; the tests of both lanes walk them",
    "gateway/core/admin_permission.py": "words; tests/app/test_admin_api.py tries each at every endpoint",
    "gateway/edge/settings.py": "numbers; tests/edge/test_connection.py tests each",
}

FOREIGN_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc", "service", "processor"}

AT_HOME = {
    "aiohttp": ("gateway.edge", "gateway.upstream", "gateway.demo"),
    "hiredis": ("gateway.stores",),
    "prometheus_client": ("gateway.telemetry",),
    "redis": ("gateway.stores",),
    "sqlite3": ("gateway.stores",),
    "structlog": ("gateway.telemetry",),
}


def tracked(*patterns: str) -> list[str]:
    """Files of the checkout: committed, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted({name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()})


MODULES = tracked("gateway/*.py")


def test_there_are_modules() -> None:
    assert len(MODULES) > 10


def mirror(module: str) -> Path:
    """Where a module's tests are: gateway/core/x.py in tests/core/test_x.py, a package's own code in tests/x/test_x.py."""
    path = Path(module).relative_to("gateway")
    return ROOT / "tests" / path.parent / f"test_{path.parent.name if path.stem == '__init__' else path.stem}.py"


def behaves(module: str) -> bool:
    """Whether there is anything to test: a package's file that only says what lives there needs no tests."""
    idle = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    return not module.endswith("__init__.py") or not all(
        isinstance(node, idle) for node in ast.parse((ROOT / module).read_text()).body
    )


@pytest.mark.parametrize("module", [name for name in MODULES if behaves(name)])
def test_each_module_has_its_own_test_file(module: str) -> None:
    wanted = mirror(module).relative_to(ROOT)
    if module in WITHOUT_A_TEST_FILE:
        assert not mirror(module).exists(), f"{module} has {wanted}: it is no exception any more"
    else:
        assert mirror(module).is_file(), f"{module} wants {wanted}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_grows_past_500_lines(module: str) -> None:
    assert len((ROOT / module).read_text().splitlines()) <= 500


@pytest.mark.parametrize("module", MODULES)
def test_each_module_says_what_lives_there(module: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / module).read_text()))


@pytest.mark.parametrize("module", MODULES)
def test_no_group_is_repeated_possessively(module: str) -> None:
    """Before Python 3.11.5 (Debian 12 has 3.11.2) what a group's last, failed turn has read may stay read (gh-106052).
    ``(?>(?:…)*)`` means the same, and is right everywhere; a single class may be possessive."""
    assert not re.search(r"(?<![(\\])\)[*+?]\+", (ROOT / module).read_text())


@pytest.mark.parametrize("module", MODULES)
def test_comments_name_files_that_are_there(module: str) -> None:
    """A reader follows them. ``doc/…`` is GitLab's own documentation."""
    with (ROOT / module).open("rb") as source:
        tokens = list(tokenize.tokenize(source.readline))
    prose = [token.string for token in tokens if token.type == tokenize.COMMENT or token.string.startswith('"""')]
    named = {name for text in prose for name in re.findall(r"(?<![\w/.-])[\w/.-]+\.(?:py|lua|md)\b", text)}
    places = (ROOT, PACKAGE, (ROOT / module).parent)
    assert not {name for name in named if not name.startswith("doc/") and not any((at / name).exists() for at in places)}


def test_no_file_is_named_for_what_it_is_not() -> None:
    words = {name: set(re.split(r"[_.]", Path(name).name)) for name in tracked("gateway", "tests", "benchmarks")}
    assert not [name for name, parts in words.items() if parts & FOREIGN_NAMES]


def test_nothing_else_stands_at_the_top() -> None:
    found = {name.split("/")[0] for name in tracked()}
    assert not {name for name in found if not name.startswith(".")} - TOP_LEVEL


def test_layers_hold() -> None:
    linted = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("library", AT_HOME)
def test_each_library_has_one_home(library: str) -> None:
    graph = grimp.build_graph("gateway", include_external_packages=True, cache_dir=None)
    importers = graph.find_modules_that_directly_import(library) if library in graph.modules else set()
    strays = {name for name in importers if not any(f"{name}.".startswith(f"{home}.") for home in AT_HOME[library])}
    assert not strays


def test_what_is_tested_is_what_is_deployed() -> None:
    """The environment made for tests serves as well (.ci/setup), so it holds exactly the deployed versions."""
    deployed, tested = (
        set(re.findall(r"^[\w.-]+==[^\s;]+", (ROOT / name).read_text(), flags=re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    )
    assert deployed
    assert deployed <= tested


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "requirements-build.lock"])
def test_every_pin_has_hashes_and_no_lock_names_a_registry(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text
    for pin in re.split(r"\n(?=\S)", text.strip()):
        assert re.fullmatch(r"\S+==\S+[^\n]*\\\n(\s+--hash=sha256:[0-9a-f]{64}( \\\n)?)+", pin), pin


def test_the_node_lock_names_no_registry() -> None:
    lock = (ROOT / "tests/e2e/package-lock.json").read_text()
    assert '"integrity"' in lock
    assert '"resolved"' not in lock

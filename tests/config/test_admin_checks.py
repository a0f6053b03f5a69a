"""Each finding has its file in ``bad/``; here stands what must not be found."""

from __future__ import annotations

import pytest

from gateway.config import load
from gateway.config.admin_checks import admin_findings
from gateway.core.admin_permission import Permission

from .world import ENV, read_file

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.mark.parametrize(
    ("keys", "may"),
    [
        pytest.param("", [], id="none"),
        pytest.param(f"{{id: ops, sha256: {HASH}}}", [set(Permission)], id="everything, as if nothing were said"),
        pytest.param(f"{{id: ops, sha256: {HASH}, may: [keys, keys]}}", [{Permission.KEYS}], id="one, said twice"),
        pytest.param(
            f"{{id: a, sha256: {HASH}, may: [read, keys]}}, {{id: b, sha256: {HASH}, may: [keys, read]}}",
            [{Permission.READ, Permission.KEYS}] * 2,
            id="one key, twice the same",
        ),
    ],
)
def test_nothing_is_found(keys: str, may: list[set[Permission]]) -> None:
    loaded = load(f"version: 1\nupstream: {{url: 'https://g'}}\nadmin: {{keys: [{keys}]}}\n", ENV, read_file)
    assert loaded.problems == ()
    assert loaded.config is not None
    assert list(admin_findings(loaded.config)) == []
    assert [set(key.may) for key in loaded.config.admin.keys] == may

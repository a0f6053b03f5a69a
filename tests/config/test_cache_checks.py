"""Each finding has its file in ``bad/``; here stands what must not be found, and the edges of what is."""

from __future__ import annotations

import pytest

from gateway.config import load
from gateway.config.cache_checks import cache_findings

from .world import ENV, read_file

HEAD = "version: 1\nupstream: {url: 'https://g'}\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("cache: {mode: shared}", id="a plain shared cache"),
        pytest.param("cache: {mode: 'off'}", id="none"),
        pytest.param("cache: {ttl: 30s, access_ttl: 30s}", id="as long as access is believed"),
        pytest.param("cache: {max_entry: 1MiB, max_bytes: 1MiB}", id="one entry fills it"),
        pytest.param("cache: {routes: [{match: 'GET /api/v4/projects/:id', ttl: 5s}]}", id="a route's own lifetime"),
    ],
)
def test_nothing_is_found(text: str) -> None:
    loaded = load(HEAD + text, ENV, read_file)
    assert loaded.problems == ()
    assert loaded.config is not None
    assert list(cache_findings(loaded.config)) == []


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("cache: {ttl: 31s, access_ttl: 30s}", ["cache.ttl"]),
        ("cache: {max_entry: 2MiB, max_bytes: 1MiB}", ["cache.max_entry"]),
        (
            "cache: {mode: shared}\nlimits: [{id: l, by: address, rate: 1/s}]\ncosts: [{match: 'GET /x', cost: 2}]",
            ["limits", "costs"],
        ),
    ],
)
def test_what_is_found(text: str, paths: list[str]) -> None:
    loaded = load(HEAD + text, ENV, read_file)
    config = loaded.config
    found = {problem.path for problem in loaded.problems}
    assert set(paths) <= found
    assert config is None or {".".join(map(str, path)) for path, _, _ in cache_findings(config)} >= set(paths)

"""Each finding has its file in ``bad/``; here stands what must not be found, and the edges of what is."""

from __future__ import annotations

import pytest

from gateway.config import load
from gateway.config.limit_checks import cost_findings, limit_findings

from .world import ENV, read_file

HEAD = "version: 1\nupstream: {url: 'https://g'}\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("limits: [{id: l, by: address, rate: 1/s}]", id="one limit"),
        pytest.param("limits: [{id: l, by: address, rate: 1/d, burst: 1}]", id="a day's wait for the next"),
        pytest.param("limits: [{id: l, by: caller, concurrent: 1}]", id="one at a time"),
        pytest.param("limits: [{id: l, by: caller, bandwidth: 16KiB/s}]", id="the narrowest pipe"),
        pytest.param("limits: [{id: l, by: caller, rate: 1/s, absorb: 1m}]", id="the longest wait"),
        pytest.param(
            "limits: [{id: l, by: caller, rate: 1/s, cost: weighted}]\ncosts: [{match: 'GET /api/v4/projects', cost: 0}]",
            id="what costs nothing",
        ),
        pytest.param(
            "limits: [{id: l, by: caller, rate: 9/s, settle: {cached: 0, not_modified: 1}}]", id="shares of all and of none"
        ),
    ],
)
def test_nothing_is_found(text: str) -> None:
    loaded = load(HEAD + text, ENV, read_file)
    assert loaded.problems == ()
    assert loaded.config is not None
    assert [*limit_findings(loaded.config), *cost_findings(loaded.config)] == []


@pytest.mark.parametrize(
    ("limit", "key"),
    [
        ("rate: 1/d", None),
        ("rate: 0.5/s", "burst"),
        ("concurrent: 0", "concurrent"),
        ("bandwidth: 16383B/s", "bandwidth"),
        ("rate: 1/s, absorb: 61s", "absorb"),
        ("rate: 1/s, settle: {cached: 1.1}", "cached"),
    ],
)
def test_just_beyond_what_is_allowed(limit: str, key: str | None) -> None:
    loaded = load(f"{HEAD}limits: [{{id: l, by: caller, {limit}}}]", ENV, read_file)
    assert [problem.path.rpartition(".")[2] for problem in loaded.errors] == ([] if key is None else [key])

"""Limits as they are written, and as the limiter takes them."""

from __future__ import annotations

import pytest

from gateway.config import Config, load
from gateway.config.compile import bandwidths, costs, limits
from gateway.core.catalogue import Access, Surface
from gateway.core.cost import Settlement
from gateway.core.limits import Limit, Match, OnOutage, Scope

from .world import ENV, read_file


def config(text: str) -> Config:
    loaded = load("version: 1\nupstream: {url: https://g}\n" + text, ENV, read_file)
    assert not loaded.errors
    assert loaded.config is not None
    return loaded.config


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        pytest.param("{id: a, by: caller, rate: 600/min}", Limit("a", Scope.CALLER, 10.0, 600.0, 60.0), id="rate"),
        pytest.param(
            "{id: a, by: caller, concurrent: 20}",
            Limit("a", Scope.CALLER, 20.0, 20.0, 1.0, concurrent=True),
            id="concurrent",
        ),
        pytest.param(
            "{id: a, by: project, rate: 9/s, match: {access: write, methods: [POST], routes: [/x], surfaces: [git]}}",
            Limit(
                "a",
                Scope.PROJECT,
                9.0,
                9.0,
                1.0,
                match=Match(Access.WRITE, (Surface.GIT,), ("/x",), ("POST",)),
            ),
            id="match",
        ),
        pytest.param(
            "{id: a, by: team, rate: 9/s, cost: weighted, absorb: 5s, on_error: closed}",
            Limit("a", Scope.TEAM, 9.0, 9.0, 1.0, weighted=True, absorb_s=5.0, on_outage=OnOutage.CLOSED),
            id="behaviour",
        ),
        pytest.param(
            "{id: a, by: team, rate: 9/s, settle: {cached: 0, not_modified: 0.5, second: 3, mebibyte: 2}}",
            Limit("a", Scope.TEAM, 9.0, 9.0, 1.0, settlement=Settlement(0.0, 0.5, 3.0, 2.0)),
            id="settle",
        ),
        pytest.param(
            "{id: a, by: caller, rate: 9/s, mode: shadow}",
            Limit("a", Scope.CALLER, 9.0, 9.0, 1.0, shadow=True),
            id="shadow",
        ),
    ],
)
def test_a_limit(text: str, limit: Limit) -> None:
    assert limits(config(f"limits: [{text}]\nidentities: [{{id: p, gitlab_token: true, team: t}}]")) == (limit,)


def test_shadow_for_all() -> None:
    found = limits(
        config("limits_mode: shadow\nlimits: [{id: a, by: caller, rate: 9/s}, {id: b, by: caller, concurrent: 2}]")
    )
    assert [limit.shadow for limit in found] == [True, True]


def test_a_bandwidth_takes_no_part_in_what_requests_take() -> None:
    text = "limits: [{id: a, by: caller, rate: 9/s}, {id: b, by: team, bandwidth: 20MiB/s, match: {surfaces: [git]}}]"
    found = config(text + "\nidentities: [{id: p, gitlab_token: true, team: t}]")
    assert [limit.id for limit in limits(found)] == ["a"]
    rate = 20 * 1024.0 * 1024
    assert bandwidths(found) == (Limit("b", Scope.TEAM, rate, rate / 4, 1.0, match=Match(surfaces=(Surface.GIT,))),)


@pytest.mark.parametrize("text", ["limits_mode: shadow\n", ""])
def test_a_bandwidth_in_shadow_mode_is_off(text: str) -> None:
    own = "" if text else ", mode: shadow"
    assert bandwidths(config(f"{text}limits: [{{id: b, by: caller, bandwidth: 1MiB/s{own}}}]")) == ()


def test_costs() -> None:
    text = "limits: [{id: a, by: caller, rate: 9/s, cost: weighted}]\ncosts: [{match: GET /api/v4/user, cost: 0.5}]"
    assert costs(config(text)) == {"GET /api/v4/user": 0.5}

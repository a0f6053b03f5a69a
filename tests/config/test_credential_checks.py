"""Each finding has its file in ``bad/``; here stands what must not be found, and what is found of many."""

from __future__ import annotations

import pytest

from gateway.config import load
from gateway.config.credential_checks import credential_findings, managers

from .world import ENV, read_file

HEAD = (
    "version: 1\nupstream: {url: 'https://g'}\nidentities: [{id: k, key: issued}]\n"
    "rules: [{id: r, for: [k], use: c, allow: [{access: read}]}]\n"
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[{id: c, token: '${env:TOKEN}', rotate: {}}]", id="a token that rotates itself"),
        pytest.param(
            "[{id: c, pool: [{token: '${env:TOKEN}'}, {token: '${env:OTHER_TOKEN}'}],"
            " same_view: true, pick: most_remaining}]",
            id="a pool",
        ),
        pytest.param(
            "[{id: c, token: '${env:TOKEN}', rotate: {manager: m, group: a/b, before: 7d, lifetime: 30d, overlap: 0s}},"
            " {id: m, token: '${env:OTHER_TOKEN}'}]",
            id="a manager is in use though no rule names it",
        ),
    ],
)
def test_nothing_is_found(text: str) -> None:
    loaded = load(f"{HEAD}credentials: {text}", ENV, read_file)
    assert loaded.problems == ()
    assert loaded.config is not None
    assert list(credential_findings(loaded.config)) == []


def test_a_pool_has_a_bound() -> None:
    tokens = {f"T{number}": f"glpat-number-{number}" for number in range(65)}
    members = ", ".join(f"{{token: '${{env:{name}}}'}}" for name in tokens)
    loaded = load(f"{HEAD}credentials: [{{id: c, pool: [{members}]}}]", {**ENV, **tokens}, read_file)
    assert [str(problem.message) for problem in loaded.errors] == ["has more than 64 members"]


def test_who_manages() -> None:
    text = "[{id: c, token: '${env:TOKEN}', rotate: {manager: m}}, {id: m, token: '${env:OTHER_TOKEN}'}]"
    loaded = load(f"{HEAD}credentials: {text}", ENV, read_file)
    assert loaded.config is not None
    assert managers(loaded.config) == {"m"}


def test_a_shared_store_of_rotated_tokens_asks_for_its_key() -> None:
    stores = "stores: {credentials: 'redis://r/0', keys: 'sqlite:///k'}"
    loaded = load(f"{HEAD}credentials: [{{id: c, token: '${{env:TOKEN}}'}}]\n{stores}", ENV, read_file)
    assert "secrets.encryption_key" in {problem.path for problem in loaded.errors}


def test_a_password_in_its_url_stands_elsewhere() -> None:
    loaded = load(f"{HEAD}stores: {{credentials: 'redis://u:p@r/0'}}", ENV, read_file)
    assert "stores.credentials" in {problem.path for problem in loaded.errors}

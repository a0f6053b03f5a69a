"""Each finding has its file in ``bad/`` (see ``test_load.py``); here stands what must not be found."""

from __future__ import annotations

import pytest

from gateway.config import load

from .world import ENV, read_file

GOOD = [
    pytest.param("version: 1\nupstream: {url: 'http://127.0.0.1:3000'}", id="clear-text-on-loopback"),
    pytest.param("version: 1\nupstream: {url: 'http://[::1]:3000'}", id="clear-text-on-loopback-v6"),
    pytest.param(
        "version: 1\nupstream: {url: 'http://localhost:8080'}\nlisten: {address: '10.0.0.1:8080'}", id="another-address"
    ),
    pytest.param("version: 1\nupstream: {url: 'https://g'}\nlisten: {address: 'a:0', admin: 'a:0'}", id="two-free-ports"),
    pytest.param(
        "version: 1\nupstream: {url: 'https://g/gitlab'}\nlisten: {public_url: 'https://p/gitlab'}", id="one-prefix"
    ),
    pytest.param(
        "version: 1\nupstream: {url: 'https://g'}\nidentities: [{id: p, gitlab_token: true}]\n"
        "rules: [{id: r, for: [p, passthrough], deny: [{routes: [/api/v4/admin/**]}]}]",
        id="a-rule-that-only-denies",
    ),
    pytest.param(
        "version: 1\nupstream: {url: 'https://g'}\nidentities: [{id: k, key: issued}]\n"
        "credentials: [{id: c, token: '${env:TOKEN}', sudo: true}]\n"
        "rules: [{id: r, for: [k], use: c, sudo: [alice, 7], allow: [{access: write}]}]",
        id="sudo-with-its-credential",
    ),
]


@pytest.mark.parametrize("text", GOOD)
def test_nothing_is_found(text: str) -> None:
    assert load(text, ENV, read_file).problems == ()

"""Each finding has its file in ``bad/``; here stands what must not be found, and what is found of many."""

from __future__ import annotations

import pytest

from gateway.config import load, redacted
from gateway.config.secret_checks import secret_findings

from .world import ENV, SECRETS, read_file

HEAD = (
    "version: 1\nupstream: {url: 'https://g'}\nidentities: [{id: k, key: issued}]\n"
    "rules: [{id: r, for: [k], use: c, allow: [{access: read}]}]\n"
    "credentials: [{id: c, token: '${env:TOKEN}', rotate: {}}]\n"
)
OTHERS = {"FORMER": "c3d1a2b49e8f70615243f6e7d8c9ba0b", "NEXT": "71f0c5d2e6b3a4987d6c5b4a39281706"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{}", id="none"),
        pytest.param("{decryption_keys: ['${env:FORMER}']}", id="beside one that is made in the state directory"),
        pytest.param("{encryption_key: '${env:GW_KEY}', decryption_keys: ['${env:FORMER}', '${env:NEXT}']}", id="several"),
        pytest.param("{encryption_key: '${env:GW_KEY}', decryption_keys: []}", id="an empty list"),
    ],
)
def test_nothing_is_found(text: str) -> None:
    loaded = load(f"{HEAD}secrets: {text}", ENV | OTHERS, read_file)
    assert loaded.problems == ()
    assert loaded.config is not None
    assert list(secret_findings(loaded.config)) == []


def test_a_key_that_decrypts_is_no_other_secret() -> None:
    text = (
        "{pepper: '${env:GW_PEPPER}', decryption_keys: ['${env:GW_PEPPER}', '${env:NEXT}', '${env:NEXT}', '${env:WEAK}']}"
    )
    loaded = load(f"{HEAD}secrets: {text}", ENV | OTHERS, read_file)
    assert [(problem.path, problem.message) for problem in loaded.problems] == [
        ("secrets.decryption_keys[0]", "is the same as `secrets.pepper`: each should have its own"),
        ("secrets.decryption_keys[2]", "is the same as `secrets.decryption_keys[1]`: each should have its own"),
        ("secrets.decryption_keys[3]", "is weak: `openssl rand -hex 32` makes a strong one"),
    ]
    assert loaded.errors == ()


def test_no_key_that_decrypts_is_shown() -> None:
    loaded = load(f"{HEAD}secrets: {{decryption_keys: ['${{env:FORMER}}']}}", ENV | OTHERS, read_file)
    assert loaded.config is not None
    shown = redacted(loaded.config)
    assert shown["secrets"] == {"decryption_keys": ["(hidden)"]}
    assert not [secret for secret in (*SECRETS, *OTHERS.values()) if secret in f"{shown} {loaded.config!r}"]

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import load, redacted, rendered

from .world import ENV, SECRETS, read_file

EXAMPLES = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_no_secret_is_shown(file: Path) -> None:
    config = load(file.read_text("utf-8"), ENV, read_file).config
    assert config is not None
    text = rendered(config) + repr(config) + str(redacted(config))
    assert not [secret for secret in SECRETS if secret in text]


def test_what_is_shown_can_be_read_again() -> None:
    file = Path(__file__).parents[2] / "config" / "embedded.yaml"
    config = load(file.read_text("utf-8"), ENV, read_file).config
    assert config is not None
    again = load(rendered(config), ENV, read_file).config
    # Store URLs hold a Secret, which compares by value.
    assert again == config


def test_values_are_shown_as_an_operator_writes_them() -> None:
    text = (
        "version: 1\nupstream: {url: https://gitlab.internal}\npassthrough: [runner]\n"
        "identities: [{id: bot, key: issued, bind: {cidr: [10.0.0.0/8]}}]\n"
        "credentials: [{id: sa, token: '${env:TOKEN}'}]\n"
        "rules: [{id: r, for: [bot], use: sa, allow: [{projects: {under_group: g}}, {projects: [a/b]}]}]\n"
        "limits: [{id: l, by: caller, rate: 600/min}]\ncache: {ttl: 90s, max_entry: 1MiB}\n"
        f"admin: {{keys: [{{id: ops, sha256: {'a' * 64}, may: [read, limits]}}]}}\n"
    )
    config = load(text, ENV, read_file).config
    assert config is not None
    shown = redacted(config)
    assert shown["passthrough"] == ["runner"]
    assert shown["identities"][0]["bind"] == {"cidr": ["10.0.0.0/8"]}
    (credential,) = shown["credentials"]
    assert (credential["id"], credential["token"], credential["sudo"]) == ("sa", "(hidden)", False)
    assert shown["admin"] == {"keys": [{"id": "ops", "sha256": "(hidden)", "may": ["read", "limits"]}]}
    assert shown["rules"][0]["allow"] == [{"projects": {"under_group": "g"}}, {"projects": ["a/b"]}]
    assert shown["rules"][0]["sudo"] == "never"
    assert shown["limits"][0]["rate"] == "600/min"
    assert (shown["cache"]["ttl"], shown["cache"]["max_entry"]) == ("90s", "1MiB")

"""Credentials as they are written, and as the broker takes them."""

from __future__ import annotations

from gateway.config import Config, load
from gateway.config.compile import credentials
from gateway.config.credential_model import Pick, Rotate
from gateway.core.secret import Secret

from .world import ENV, read_file


def config(text: str) -> Config:
    loaded = load(f"version: 1\nupstream: {{url: https://g}}\n{text}", ENV, read_file)
    assert not loaded.errors
    assert loaded.config is not None
    return loaded.config


def test_members_of_a_pool_are_called_by_their_place() -> None:
    made = config(
        "credentials: [{id: one, token: '${env:TOKEN}', sudo: true}, {id: p, pool: [{token: '${env:OTHER_TOKEN}'}]}]"
    )
    one, member = credentials(made)
    assert (one.id, one.pool, one.sudo, one.view, one.token) == ("one", "", True, None, Secret(ENV["TOKEN"]))
    assert (member.id, member.pool, member.sudo, member.view) == ("p/1", "p", False, None)


def test_one_view_is_that_of_the_pool_with_these_very_tokens() -> None:
    one, other = "{token: '${env:TOKEN}'}", "{token: '${env:OTHER_TOKEN}'}"

    def views(name: str, *members: str) -> set[Secret | None]:
        text = f"credentials: [{{id: {name}, same_view: true, pool: [{', '.join(members)}]}}]"
        return {credential.view for credential in credentials(config(text))}

    assert len(views("p", one, other)) == 1
    assert views("p", one, other) == views("p", other, one)
    assert views("p", one, other).isdisjoint(views("p", one) | views("q", one, other))


def test_what_holds_where_nothing_is_said() -> None:
    (credential,) = config("credentials: [{id: c, token: '${env:TOKEN}', rotate: {}}]").credentials
    assert credential.rotate == Rotate(before=14 * 86_400.0, lifetime=90 * 86_400.0, overlap=120.0)
    assert credential.pick is Pick.MOST_REMAINING


def test_rotated_tokens_lie_with_what_is_shared_or_in_a_file() -> None:
    alone = config("state_dir: /s")
    assert alone.stores.credentials is not None
    assert alone.stores.credentials.url.reveal() == "sqlite:///s/credentials.db"
    secrets = "secrets: {pepper: '${env:GW_PEPPER}', encryption_key: '${env:GW_KEY}', audit_key: '${env:GW_AUDIT}'}"
    shared = config(f"stores: {{shared: '${{env:REDIS_URL}}'}}\n{secrets}")
    assert shared.stores.credentials is shared.stores.shared

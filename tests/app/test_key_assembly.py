"""The key store, wired: who is judged by it, who changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app.assembly import assemble
from gateway.app.key_admin import Actor
from gateway.app.key_assembly import KeyAssembly, key_store, no_keys, with_token_endpoint
from gateway.config import compile as compiled
from gateway.core.access import Principal
from gateway.core.client_address import TrustedPeers
from gateway.core.secret import Secret
from gateway.identity.key_issuer import KeyTerms
from gateway.stores.keys_sqlite import SqliteKeys
from tests.fakes.world import configured

TEXT = """\
version: 1
upstream: {url: "http://gitlab.test"}
identities:
  - {id: reader, key: issued}
  - {id: ci, oidc: {issuer: "https://issuer.example.com", audience: gateway, claims: {sub: x}}}
"""


async def test_what_it_issues_is_judged_and_what_it_ends_is_reported(tmp_path: Path) -> None:
    config = configured(TEXT, tmp_path)
    assembly = KeyAssembly(config, compiled.identity_settings(config), lambda: b"pepper", None)
    keys, ended = assembly.gateway_keys(b"f" * 32), list[str]()
    key_admin = assembly.key_admin(None, ended.append)
    key, record = await key_admin.issue(Actor("admin:x", "admin"), "reader")
    found = await keys.look_up(b"1", key)
    assert isinstance(found, Principal)
    assert found.identity == "reader"
    exchanged, _ = await assembly.issuer.issue_exchanged("ci", KeyTerms())
    assert (await keys.look_up(b"2", exchanged)) is not None
    await key_admin.revoke(Actor("admin:x", "admin"), record.id)
    assert ended == [record.id]
    await keys.close()
    await assembly.store.close()


async def test_the_store_is_the_configured_one(tmp_path: Path) -> None:
    store, register = key_store(configured(TEXT, tmp_path), None)
    assert store is register
    assert isinstance(store, SqliteKeys)


async def test_a_pepper_made_anew_beside_keys_is_reported_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(TEXT, tmp_path)
    for lost in (False, True, False):
        if lost:
            (tmp_path / "pepper").unlink()
        caplog.clear()
        parts = await assemble(config)
        async with parts.stack:
            assert ("keys issued before no longer work (1 live)" in caplog.text) is lost
            if not lost and parts.key_admin is not None and not await parts.key_admin.list():
                await parts.key_admin.issue(Actor("admin:x", "admin"), "reader")


async def test_where_nobody_has_keys_none_is_known() -> None:
    assert await no_keys(b"k" * 32, b"f" * 32).look_up(b"1", Secret("ggw_x")) is None


async def test_tokens_are_exchanged_only_where_there_are_workloads(tmp_path: Path) -> None:
    for text, there in ((TEXT, True), (TEXT[: TEXT.index("  - {id: ci")], False)):
        parts = await assemble(configured(text, tmp_path))
        async with parts.stack:
            assert (parts.exchange is not None) is there
            handle = with_token_endpoint(parts.exchange, parts.gateway, TrustedPeers(), frozenset())
            assert (handle == parts.gateway.handle) is not there

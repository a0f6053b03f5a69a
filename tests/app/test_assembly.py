"""The composition root: what is made, and what is closed again when something can't be."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from gateway.app.assembly import assemble
from gateway.cache import NoCache, PrivateCache, SharedCache
from gateway.config import Config
from gateway.ports import StoreUnavailable
from gateway.state_dir import StateRefused
from gateway.stores.bucket_redis import RedisBuckets
from tests.fakes.world import SECRETS, configured

OWN = """\
version: 1
upstream: {url: "http://127.0.0.1:9"}
identities: [{id: people, gitlab_token: true}]
"""
KEYED = """\
version: 1
upstream: {url: "http://127.0.0.1:9"}
identities: [{id: reader, key: issued}]
credentials: [{id: sa, token: "${env:SA}"}]
rules: [{id: reads, for: [reader], use: sa, allow: [{access: read}]}]
"""


def audit_threads() -> int:
    return sum(thread.name == "audit" and thread.is_alive() for thread in threading.enumerate())


async def opened_and_closed(config: Config) -> object:
    parts = await assemble(config)
    async with parts.stack:
        cache = parts.gateway.stages.cache
    assert audit_threads() == 0
    return cache


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("private", PrivateCache), ("shared", SharedCache), ("off", NoCache)],
    ids=["private", "shared", "off"],
)
async def test_each_cache_mode(tmp_path: Path, mode: str, kind: type) -> None:
    text = "version: 1\nupstream: {url: 'http://127.0.0.1:9'}\n" if mode == "shared" else OWN
    assert isinstance(await opened_and_closed(configured(f"{text}cache: {{mode: {mode}}}\n", tmp_path)), kind)


@pytest.mark.parametrize("text", [OWN, KEYED], ids=["own", "keyed"])
async def test_memory_and_file(tmp_path: Path, text: str) -> None:
    await opened_and_closed(configured(text, tmp_path))


@pytest.mark.parametrize("text", [OWN, KEYED], ids=["own", "keyed"])
async def test_redis(tmp_path: Path, redis_url: str, text: str) -> None:
    config = configured(f'{text}{SECRETS}stores: {{shared: "{redis_url}"}}\n', tmp_path)
    parts = await assemble(config)
    async with parts.stack:
        assert {link.name.rpartition("-")[2] for link in parts.links} >= {"buckets", "cache"}


async def test_a_cache_in_memory_beside_buckets_in_redis(tmp_path: Path, redis_url: str) -> None:
    text = f'{KEYED}{SECRETS}stores: {{shared: "{redis_url}"}}\ncache: {{store: memory, ttl: 1m}}\n'
    parts = await assemble(configured(text, tmp_path))
    async with parts.stack:
        assert isinstance(parts.buckets, RedisBuckets)
        assert (parts.cache_assembly.redis, parts.cache_assembly.levels) == (None, None)
        assert parts.cache_assembly.memory is not None
        assert "gitlab-gateway-cache" not in {link.name for link in parts.links}


async def test_a_redis_that_is_away_delays_nobodys_start(tmp_path: Path) -> None:
    """Each dependency has its own failure policy; starting is not one of them."""
    config = configured(f'{KEYED}{SECRETS}stores: {{shared: "redis://127.0.0.1:9/0"}}\n', tmp_path)
    parts = await assemble(config)
    async with parts.stack:
        assert parts.links


# What can't be started closes what was opened


async def test_a_sink_that_cannot_be_written(tmp_path: Path) -> None:
    config = configured(OWN, tmp_path)
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(OSError, match="directory"):
        await assemble(config)
    assert audit_threads() == 0


async def test_a_state_dir_that_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    config = configured(KEYED, state)
    state.chmod(0o777)
    with pytest.raises(StateRefused):
        await assemble(config)
    assert audit_threads() == 0


async def test_a_key_store_that_is_no_database(tmp_path: Path) -> None:
    config = configured(KEYED, tmp_path)
    (tmp_path / "keys.db").write_bytes(b"\x01" * 4096)
    (tmp_path / "keys.db").chmod(0o600)
    with pytest.raises(StoreUnavailable, match="not a database"):
        await assemble(config)
    assert audit_threads() == 0


async def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    bad = tmp_path / "ca.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nnot base64 at all\n-----END CERTIFICATE-----\n")
    text = OWN.replace('url: "http://127.0.0.1:9"', f'url: "https://127.0.0.1:9", ca_file: {bad}')
    with pytest.raises(OSError):
        await assemble(configured(text, tmp_path))
    gc.collect()
    assert audit_threads() == 0

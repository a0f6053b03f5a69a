"""What the configuration makes of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app.cache_assembly import CacheAssembly, private_policy
from gateway.cache import NoCache, PrivateCache, SharedCache
from gateway.core.client_address import TrustedPeers
from gateway.core.exchange import Exchange
from gateway.core.messages import ResponseHead
from gateway.ports import Downstream, UpstreamRequest
from gateway.reply import Reply
from gateway.stores.redis_link import RedisLink
from tests.conftest import RedisServer
from tests.fakes.world import SECRETS, configured, world
from tests.stores.cache_contract import ENTRY

TEXT = 'version: 1\nupstream: {url: "http://gitlab.test/root"}\n'


class Recorder:
    def monotonic(self) -> float:
        return 0.0

    def mint_id(self) -> str:
        return ""

    def observe(self, x: Exchange) -> None:
        raise AssertionError("nothing came")


async def handle(down: Downstream) -> None:
    raise AssertionError("nothing came")


def assembled(tmp_path: Path, cache: str) -> CacheAssembly:
    return CacheAssembly(configured(TEXT + cache, tmp_path), None, lambda: b"")


@pytest.mark.parametrize(
    ("cache", "kind"),
    [("", PrivateCache), ("cache: {mode: shared}\n", SharedCache), ("cache: {mode: off}\n", NoCache)],
)
def test_each_mode_has_its_cache_and_no_ear(tmp_path: Path, cache: str, kind: type) -> None:
    assembly = assembled(tmp_path, cache)
    assert type(assembly.cache) is kind
    assert assembly.watch is None
    assert assembly.with_hooks(Recorder(), TrustedPeers(), handle) is handle


def test_hooks_are_received_where_they_are_configured(tmp_path: Path) -> None:
    assembly = assembled(tmp_path, 'cache: {hooks: {secret: "${env:SA}", hold: 5s}}\n')
    assert assembly.watch is not None
    received = assembly.with_hooks(Recorder(), TrustedPeers(), handle)
    assert assembly.receiver is not None
    assert received == assembly.receiver.handle


@pytest.mark.parametrize(
    ("cache", "copies"),
    [
        ("", True),
        ("cache: {mode: shared}\n", True),
        ("cache: {mode: off}\n", False),
        ("cache: {near_bytes: 0B}\n", False),
        ("cache: {immutable: false}\n", False),
        ("cache: {immutable: false, ttl: 1s}\n", True),
        ('cache: {immutable: false, routes: [{match: "GET /api/v4/projects/:id", ttl: 1s}]}\n', True),
    ],
)
def test_copies_stand_in_front_of_redis_where_anything_is_reused(tmp_path: Path, cache: str, copies: bool) -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1", timeout_s=60.0, name="test")
    assembly = CacheAssembly(configured(TEXT + cache, tmp_path), link, lambda: b"k" * 32)
    assert (assembly.levels is not None) is copies
    assert assembly.levels is None or assembly.store is assembly.levels
    assert (assembly.leases is not None) is copies
    assert assembly.memory is None


def test_the_policy_is_the_operators(tmp_path: Path) -> None:
    text = 'cache: {ttl: 5s, immutable: false, hooks: {secret: "${env:SA}", hold: 4s}}\n'
    policy = private_policy(configured(TEXT + text, tmp_path))
    assert (policy.ttl_s, policy.immutable, policy.hold_s, policy.prefix) == (5.0, False, 4.0, "/root")


@pytest.mark.parametrize(("to", "forgets"), [(1000.5, False), (4000.0, False), (1000.0, False), (700.0, True)])
async def test_a_clock_that_goes_back_leaves_nothing_younger_than_it_is(tmp_path: Path, to: float, forgets: bool) -> None:
    assembly = assembled(tmp_path, "cache: {ttl: 60s}\n")
    assert assembly.memory is not None
    assembly.check_clock(1000.0, 5.0)
    stamp = assembly.memory.get_now(b"k", ()).stamp
    assert await assembly.memory.put(b"k", (ENTRY,), 60.0, (), stamp)
    assembly.check_clock(to, 5.5)
    assert bool(assembly.memory.get_now(b"k", ()).entries) is not forgets
    assert await assembly.memory.put(b"late", (ENTRY,), 60.0, (), stamp) is not forgets
    assembly.check_clock(to + 0.5, 6.0)
    assert await assembly.memory.put(b"k", (ENTRY,), 60.0, (), assembly.memory.get_now(b"k", ()).stamp)
    assert assembly.memory.get_now(b"k", ()).entries


async def test_copies_of_redis_are_forgotten_as_well(tmp_path: Path) -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1", timeout_s=60.0, name="test")
    assembly = CacheAssembly(configured(TEXT + "cache: {ttl: 60s}\n", tmp_path), link, lambda: b"k" * 32)
    assert assembly.levels is not None
    assembly.start()
    try:
        assert await assembly.levels.near.put(b"k", (ENTRY,), 60.0, (), assembly.levels.near.get_now(b"k", ()).stamp)
        assembly.check_clock(1000.0, 5.0)
        assembly.check_clock(700.0, 5.5)
        assert not len(assembly.levels.near)
    finally:
        await assembly.close()
        await assembly.cache.close()


ETAG = (b"Etag", b'W/"0123456789abcdef0123456789abcdef"')


async def gitlab(request: UpstreamRequest, octets: bytes) -> Reply:
    """The project is as it was, whoever asks."""
    if (b"If-None-Match", ETAG[1]) in request.fields:
        return Reply(ResponseHead(304, (ETAG,)), whole=b"")
    fields = ((b"Content-Type", b"application/json"), ETAG)
    return Reply(ResponseHead(200, fields), whole=b'{"web_url":"http://gitlab.test/g/p"}')


async def test_answers_stored_before_addresses_were_turned_are_none_of_now(
    tmp_path: Path, redis_url: str, redis_server: RedisServer
) -> None:
    """A body in Redis outlives the process, and each 304 would have prolonged its life."""
    stores = f'stores: {{shared: "redis://127.0.0.1:{redis_server.port}/0", keys: "sqlite:///{tmp_path}/keys.db"}}\n'
    said = []
    for rewrite in ("false", "true", "true"):
        text = (
            f'version: 1\nupstream: {{url: "http://gitlab.test", rewrite_json: {rewrite}}}\n'
            'listen: {public_url: "http://git.example.com"}\nidentities: [{id: people, gitlab_token: true}]\n'
        )
        async with world(tmp_path, text + SECRETS + stores, gitlab) as made:
            down = await made.ask("GET", "/api/v4/projects/1")
            said.append((down.written, made.last.cache_status))
    assert said == [
        (b'{"web_url":"http://gitlab.test/g/p"}', "miss"),
        (b'{"web_url":"http://git.example.com/g/p"}', "miss"),
        (b'{"web_url":"http://git.example.com/g/p"}', "revalidated"),
    ]

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from gateway.core.key_record import KEEP_EXCHANGED_S, KeyOrigin
from gateway.ports import NotDone, StoreUnavailable
from gateway.stores import redis_wire
from gateway.stores.keys_redis import RedisKeys
from gateway.stores.redis_link import RedisLink

from .key_contract import KeyContract, T, record
from .patience import LONG_S, waits


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="keys-test")
    yield link
    await link.close()


class TestRedisKeys(KeyContract):
    @pytest.fixture
    async def keys(self, link: RedisLink) -> AsyncIterator[RedisKeys]:
        store = RedisKeys(link)
        yield store
        await store.close()


KEYS = (b"ggw:{keys}:ids", b"ggw:{keys}:of:backstage", b"ggw:{keys}:records")


async def test_nothing_in_redis_tells_the_key_or_names_its_digest_as_a_redis_key(link: RedisLink) -> None:
    await RedisKeys(link).put(record())
    names = await link.execute("KEYS", "*")
    assert sorted(names) == [*KEYS, b"ggw:{keys}:revision"]  # type: ignore[type-var, arg-type]


async def test_a_record_of_another_version_admits_nobody_and_is_not_touched(link: RedisLink) -> None:
    store = RedisKeys(link)
    await store.put(record())
    text = await link.execute("HGET", "ggw:{keys}:records", record().digest.hex())
    assert isinstance(text, bytes)
    later = msgspec.json.encode({**msgspec.json.decode(text), "v": 3})
    await link.execute("HSET", "ggw:{keys}:records", record().digest.hex(), later)
    assert await store.find(record().digest) is None
    assert await store.list() == []
    with pytest.raises(StoreUnavailable, match="another gateway version"):
        await store.revoke("key_1", T)


@pytest.mark.parametrize("text", [b"", b"{", b"null", b'{"v":1}', b"\xff"], ids=repr)
async def test_a_broken_record_admits_nobody(link: RedisLink, text: bytes) -> None:
    await link.execute("HSET", "ggw:{keys}:records", bytes(32).hex(), text)
    assert await RedisKeys(link).find(bytes(32)) is None


async def test_a_wrong_type_is_an_outage_not_a_miss(link: RedisLink) -> None:
    await link.execute("SET", "ggw:{keys}:records", "x")
    with pytest.raises(StoreUnavailable):
        await RedisKeys(link).find(bytes(32))


async def test_a_revocation_shows_to_another_gateway_at_once(link: RedisLink, redis_url: str) -> None:
    there = RedisLink.from_url(redis_url, timeout_s=60.0, name="other")
    await RedisKeys(link).put(record())
    await RedisKeys(there).revoke("key_1", T)
    found = await RedisKeys(link).find(record().digest)
    assert found is not None
    assert found.revoked_at == T
    await there.close()


async def test_an_outage_is_said_to_be_one(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="keys-test")
    store = RedisKeys(link)
    await store.put(record())
    server.stop()
    for call in (store.find(bytes(32)), store.put(record(2)), store.list(), store.revoke("key_1", T), store.touch("k", T)):
        with pytest.raises(StoreUnavailable):
            await call
    await link.close()


async def test_a_refusal_says_why_and_that_nothing_was_done(
    start_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "CONNECT_TIMEOUT_S", 60.0)  # on a busy machine to be turned away takes its time
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="keys-test")
    store = RedisKeys(link)
    await store.put(record())
    await link.execute("CONFIG", "SET", "maxmemory", "1")
    for call in (store.put(record(2)), store.revoke("key_1", T)):
        with pytest.raises(NotDone, match="refuses: OOM"):
            await call
    assert [one.id for one in await store.list()] == ["key_1"]
    await link.execute("CONFIG", "SET", "requirepass", "another")
    await link.close()
    turned_away = RedisLink.from_url(server.url, timeout_s=60.0, name="keys-test")
    with pytest.raises(NotDone, match=r"did not answer \(NOAUTH\)"):
        await RedisKeys(turned_away).put(record(2))
    await turned_away.close()


async def test_what_was_asked_and_not_answered_may_have_been_done(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="keys-test")
    store, other = RedisKeys(link), RedisLink.from_url(server.url, timeout_s=60.0, name="other")
    await store.list()
    waits(link, 0.2)
    await other.execute("CLIENT", "PAUSE", "60000")
    with pytest.raises(StoreUnavailable, match=r"did not answer \(timeout\)") as silence:
        await store.put(record())
    assert not isinstance(silence.value, NotDone)
    await link.close()
    await other.close()


@pytest.mark.parametrize("text", ["", "{", "5", "null", '{"expires_at":"soon","revoked_at":null}', "\xff"], ids=repr)
async def test_what_is_no_record_is_in_nobodys_way(link: RedisLink, text: str) -> None:
    """Neither of a bot that gets a further key nor of the exchange, which forgets it when it is due."""
    store = RedisKeys(link)
    over = record(2, origin=KeyOrigin.EXCHANGED, expires_at=T - KEEP_EXCHANGED_S)
    for one in (record(1), over):
        await store.put(one)
        await link.execute("HSET", "ggw:{keys}:records", one.digest.hex(), text)
    await store.put(record(3))
    await store.put(record(4, origin=KeyOrigin.EXCHANGED, expires_at=T + 60))
    assert await store.list() == [record(3), record(4, origin=KeyOrigin.EXCHANGED, expires_at=T + 60)]
    assert await link.execute("HEXISTS", "ggw:{keys}:records", record(1).digest.hex()) == 1
    assert await link.execute("HEXISTS", "ggw:{keys}:records", over.digest.hex()) == 0


@pytest.mark.parametrize("name", [b"zz", b"\xff", b"abc"])
async def test_a_record_under_no_digest_is_not_listed(link: RedisLink, name: bytes) -> None:
    store = RedisKeys(link)
    await store.put(record())
    text = await link.execute("HGET", "ggw:{keys}:records", record().digest.hex())
    assert isinstance(text, bytes)
    await link.execute("HSET", "ggw:{keys}:records", name, text)
    assert await store.list() == [record()]


async def test_a_last_use_that_is_no_instant_tells_nothing_and_makes_room(link: RedisLink) -> None:
    store = RedisKeys(link)
    await store.put(record())
    await link.execute("HSET", "ggw:{keys}:used", "key_1", "yesterday")
    assert await store.list() == [record()]
    assert await store.get("key_1") == record()
    await store.touch("key_1", T)
    assert await store.get("key_1") == record(last_used_at=T)


@pytest.mark.parametrize("digest", ["", "zz", record(2).digest.hex()], ids=["lost", "none", "of another"])
async def test_a_key_whose_id_leads_nowhere_can_be_revoked(link: RedisLink, digest: str) -> None:
    store = RedisKeys(link)
    for number in (1, 2):
        await store.put(record(number))
    await link.execute("HSET", "ggw:{keys}:ids", "key_1", digest)
    if not digest:
        await link.execute("DEL", "ggw:{keys}:ids")
    assert await store.get("key_1") == record(1)
    assert await store.revoke("key_1", T)
    assert await store.find(record(1).digest) == record(1, revoked_at=T)
    assert await store.find(record(2).digest) == record(2)
    assert not await store.revoke("key_3", T)


@pytest.mark.parametrize("act", [("DEL", "ggw:{keys}:revision"), ("LPUSH", "ggw:{keys}:revision", "x"), ("FLUSHALL",)])
async def test_a_revision_that_was_lost_is_another_one(link: RedisLink, act: tuple[str, ...]) -> None:
    keys = RedisKeys(link)
    before = await keys.revision()
    if act[0] == "LPUSH":
        await link.execute("DEL", act[1])
    await link.execute(*act)
    after = await keys.revision()
    assert after != before
    assert await keys.revision() == after


@pytest.mark.parametrize(
    "refusing", [("REPLICAOF", "127.0.0.1", "1"), ("CONFIG", "SET", "maxmemory", "1")], ids=["read-only", "full"]
)
async def test_a_redis_that_takes_no_revision_can_still_be_read(
    start_redis: Callable[..., Any], refusing: tuple[str, ...]
) -> None:
    """Its keys are read one by one then: none is turned away because there is no telling whether any changed."""
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="keys-test")
    keys = RedisKeys(link)
    await keys.put(record())
    await link.execute("DEL", "ggw:{keys}:revision")
    await link.execute(*refusing)
    assert await keys.revision() != await keys.revision(), "nobody knows what changed"
    assert await keys.find(record().digest) == record()
    await link.close()

"""``rediss://``: a real connection by TLS to a real Redis, and every way it must not come about."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop

from gateway.core.limits import Limit, Scope, Take
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.redis_address import parse_address
from gateway.stores.redis_endpoint import RedisEndpoint
from gateway.stores.redis_link import RedisLink, RedisUnavailable
from gateway.stores.redis_subscriber import RedisSubscriber
from tests.fakes.certificates import Authority
from tests.fakes.redis_sentinel import NAME, Sentinel, until

TIMEOUT_S = 20.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Place:
    """A Redis that speaks TLS at ``port``, on two loopback addresses; its certificate names the first."""

    def __init__(self, start_redis: Callable[..., Any], directory: Path, clients: str = "no", *more: str) -> None:
        self.authority = Authority(directory)
        pair = self.authority.issue("redis")
        self.port = free_port()
        self.plain = start_redis(
            *("--bind", "127.0.0.1 127.0.0.2", "--tls-port", str(self.port), "--tls-auth-clients", clients),
            *("--tls-cert-file", str(pair.cert), "--tls-key-file", str(pair.key)),
            *("--tls-ca-cert-file", str(self.authority.file)),
            *more,
        )

    def plain_get(self, name: str) -> object:
        with redis.Redis(port=self.plain.port) as client:
            return client.get(name)

    def url(self, *options: str, host: str = "127.0.0.1", credential: str = "") -> str:
        return f"rediss://{credential}{host}:{self.port}/0?{'&'.join(options)}"

    def trusting(self, *options: str, host: str = "127.0.0.1", credential: str = "") -> str:
        return self.url(f"ssl_ca_certs={self.authority.file}", *options, host=host, credential=credential)


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(url, timeout_s=TIMEOUT_S, name="secret")
    yield link
    await link.close()


async def refused(url: str) -> str:
    """Why no connection came about."""
    async with linked(url) as link:
        with pytest.raises(RedisUnavailable) as failed:
            await asyncio.wait_for(link.execute("PING"), 2 * TIMEOUT_S)
        assert not link.healthy
        assert "s3cr3t" not in f"{failed.value!r} {link.trouble}"
        return link.trouble


@pytest.fixture
def place(start_redis: Callable[..., Any], tmp_path: Path) -> Place:
    return Place(start_redis, tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_commands_travel_by_tls(place: Place, host: str) -> None:
    async with linked(place.trusting(host=host)) as link:
        assert await link.execute("SET", "k", b"\x00" * 300_000) == b"OK"
        assert await link.execute("STRLEN", "k") == 300_000
        replies = await asyncio.gather(*[link.execute("ECHO", f"{number}") for number in range(500)])
        assert replies == [b"%d" % number for number in range(500)]
        listed = await link.execute("CLIENT", "LIST")
        assert isinstance(listed, bytes)
        (here,) = [line for line in listed.splitlines() if b"name=gitlab-gateway:secret" in line]
        assert b":%d " % place.port in here.partition(b"laddr=")[2][:40]
        assert link.healthy


def test_the_loop_that_serves_speaks_tls_too(place: Place) -> None:
    async def ask() -> object:
        async with linked(place.trusting()) as link:
            return await link.execute("ECHO", "x" * 100_000)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == b"x" * 100_000


async def test_buckets_and_the_subscriber_come_by_tls(place: Place) -> None:
    limit = Limit("l", Scope.CALLER, 0.001, 3.0)
    store = RedisBuckets(RedisLink.from_url(place.trusting(), timeout_s=TIMEOUT_S, name="buckets"))
    decisions = [await store.take([Take("{gw}:b:l:x", limit)]) for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True] * 3 + [False] * 2
    assert not any(decision.degraded for decision in decisions)
    await store.close()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    stands = asyncio.Event()
    endpoint = RedisEndpoint(parse_address(place.trusting()))
    subscriber = RedisSubscriber(endpoint, channel="c", name="subscriber", clock=asyncio.get_running_loop().time)
    subscriber.listen(heard.put_nowait, stands.set)
    await asyncio.wait_for(stands.wait(), 30)
    async with linked(place.trusting()) as link:
        await link.execute("PUBLISH", "c", "hello")
    assert await asyncio.wait_for(heard.get(), 30) == b"hello"
    await subscriber.close()


async def test_another_authoritys_certificate_is_refused_before_a_password_is_sent(place: Place, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    url = place.url(f"ssl_ca_certs={stranger.file}", credential="gw:s3cr3t@")
    assert await refused(url) == "SSLCertVerificationError"
    assert await refused(place.url(credential="gw:s3cr3t@")) == "SSLCertVerificationError"  # the system knows no such one
    with redis.Redis(port=place.plain.port) as client:
        assert client.acl_log() == []
        assert client.info("commandstats").get("cmdstat_auth") is None


async def test_a_certificate_of_another_name_is_refused_unless_told_otherwise(place: Place) -> None:
    assert await refused(place.trusting(host="127.0.0.2")) == "SSLCertVerificationError"
    async with linked(place.trusting("ssl_check_hostname=false", host="127.0.0.2")) as link:
        assert await link.execute("PING") == b"PONG"


async def test_a_refused_redis_is_an_outage_whose_policy_decides(place: Place, tmp_path: Path) -> None:
    url = place.url(f"ssl_ca_certs={Authority(tmp_path, 'stranger').file}")
    store = RedisBuckets(RedisLink.from_url(url, timeout_s=TIMEOUT_S, name="buckets"))
    decision = await asyncio.wait_for(store.take([Take("{gw}:b:l:x", Limit("l", Scope.CALLER, 0.001, 3.0))]), 2 * TIMEOUT_S)
    assert decision.degraded
    assert decision.allowed
    await store.close()


async def test_clients_that_must_show_a_certificate(start_redis: Callable[..., Any], tmp_path: Path) -> None:
    place = Place(start_redis, tmp_path, clients="yes")
    mine = place.authority.issue("gateway")
    shown = (f"ssl_certfile={mine.cert}", f"ssl_keyfile={mine.key}")
    async with linked(place.trusting(*shown)) as link:
        assert await link.execute("PING") == b"PONG"
    assert await refused(place.trusting()) != ""


async def test_one_side_alone_speaking_tls_is_an_outage_and_no_more(place: Place) -> None:
    assert await refused(place.url().replace(str(place.port), str(place.plain.port))) != ""
    assert await refused(f"redis://127.0.0.1:{place.port}/0") != ""


async def test_sentinels_and_the_primary_they_tell_of_are_asked_by_tls(place: Place, tmp_path: Path) -> None:
    """The port that they tell is the one that speaks it; the Sentinel's own is another."""
    pair = place.authority.issue("sentinel")
    port = free_port()
    tls = (f"tls-port {port}", "tls-replication yes", "tls-auth-clients no", f"tls-ca-cert-file {place.authority.file}")
    lines = (*tls, f"tls-cert-file {pair.cert}", f"tls-key-file {pair.key}")
    sentinel = Sentinel(tmp_path / "sentinel", place.port, *lines)
    try:
        until(lambda: sentinel.ask("PING") in {True, b"PONG"})
        options = f"ssl_ca_certs={place.authority.file}"
        async with linked(f"rediss+sentinel://127.0.0.1:{port}/{NAME}?{options}") as link:
            await link.execute("SET", "k", "v")
            assert place.plain_get("k") == b"v"
            assert link.endpoint.at == ("127.0.0.1", place.port)
        assert await refused(f"rediss+sentinel://127.0.0.1:{port}/{NAME}") == "Sentinel: SSLCertVerificationError"
    finally:
        sentinel.close()


async def test_nodes_of_a_cluster_tell_where_they_speak_tls(start_redis: Callable[..., Any], tmp_path: Path) -> None:
    place = Place(
        start_redis, tmp_path, "no", "--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", str(free_port())
    )
    with redis.Redis(port=place.plain.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        client.execute_command("CONFIG", "SET", "cluster-announce-ip", "127.0.0.1")
        until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
    async with linked(f"rediss+cluster://127.0.0.1:{place.port}?ssl_ca_certs={place.authority.file}") as link:
        assert await link.execute("SET", "{gw}:k", "v") == b"OK"
        assert link.endpoint.at == ("127.0.0.1", place.port)

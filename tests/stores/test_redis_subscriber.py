"""The subscriber hears everything, or knows that it may not have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from gateway.stores.redis_address import parse_address
from gateway.stores.redis_endpoint import RedisEndpoint
from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber
from gateway.stores.redis_wire import Receive, RedisUnavailable, Wire
from tests.fakes.line import TcpRelay
from tests.fakes.redis_cluster import start_cluster

from .patience import comes_unread

CHANNEL = "subscriber-test"


class Listener:
    """A subscriber, and what came to it."""

    def __init__(self, url: str) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.begun: asyncio.Queue[int] = asyncio.Queue()
        self.subscriber = RedisSubscriber(
            RedisEndpoint(parse_address(url)),
            channel=CHANNEL,
            name="subscriber-test",
            clock=asyncio.get_running_loop().time,
        )
        self.listen()

    def listen(self) -> None:
        self.subscriber.listen(self.heard.put_nowait, lambda: self.begun.put_nowait(1))

    async def stands(self) -> None:
        await asyncio.wait_for(self.begun.get(), 30)

    async def hears(self) -> bytes:
        return await asyncio.wait_for(self.heard.get(), 30)

    async def until(self, holds: Callable[[float], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds(self.subscriber.heard_until):
                await asyncio.sleep(0.01)


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="subscriber-test-publisher")
    yield link
    await link.close()


@pytest.fixture
async def listener(redis_url: str) -> AsyncIterator[Listener]:
    listener = Listener(redis_url)
    yield listener
    await listener.subscriber.close()


async def test_everything_published_is_heard_in_order(listener: Listener, link: RedisLink) -> None:
    await listener.stands()
    listener.listen()  # more calls change nothing
    for number in range(3):
        assert await link.execute("PUBLISH", CHANNEL, b"%d\r\n\x00" % number) == 1
    await link.execute("PUBLISH", "another", b"x")
    assert [await listener.hears() for _ in range(3)] == [b"0\r\n\x00", b"1\r\n\x00", b"2\r\n\x00"]
    assert listener.heard.empty()
    assert listener.begun.empty()


async def test_it_knows_until_when_it_has_heard_everything(listener: Listener) -> None:
    assert listener.subscriber.heard_until == float("-inf")
    await listener.stands()
    first = listener.subscriber.heard_until
    assert first <= asyncio.get_running_loop().time()
    await listener.until(lambda heard_until: heard_until > first)
    await listener.subscriber.close()
    assert listener.subscriber.heard_until == float("-inf")
    listener.listen()
    assert listener.subscriber._keeper is None, "closed for good"


@pytest.mark.parametrize("turns", range(6))
async def test_it_closes_though_its_connection_ends_at_the_same_moment(redis_url: str, turns: int) -> None:
    """A Redis that is told to go together with its gateway."""
    kept: list[Wire] = []

    class Endpoint(RedisEndpoint):
        async def connect(self, name: str, timeout_s: float, receive: Receive) -> Wire:
            kept.append(await super().connect(name, timeout_s, receive))
            return kept[-1]

    stands = asyncio.Event()
    subscriber = RedisSubscriber(
        Endpoint(parse_address(redis_url)), channel=CHANNEL, name="subscriber-test", clock=asyncio.get_running_loop().time
    )
    subscriber.listen(lambda _: None, stands.set)
    await asyncio.wait_for(stands.wait(), 30)
    kept[0].abort()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await subscriber.close()


async def test_it_knows_that_something_waits_to_be_read(listener: Listener, redis_server: Any) -> None:
    assert not listener.subscriber.has_unread
    await listener.stands()
    with redis.Redis(port=redis_server.port) as client:
        client.publish(CHANNEL, b"unread")
    comes_unread(listener.subscriber)
    assert listener.heard.empty()
    await listener.hears()
    assert not listener.subscriber.has_unread
    await listener.subscriber.close()
    assert not listener.subscriber.has_unread


async def test_a_redis_that_went_and_came_is_listened_to_anew(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    listener = Listener(server.url)
    await listener.stands()
    server.stop()
    await listener.until(lambda heard_until: heard_until == float("-inf"))
    assert listener.subscriber.trouble
    server.start()
    await listener.stands()
    assert not listener.subscriber.trouble
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="subscriber-test-publisher")
    await link.execute("PUBLISH", CHANNEL, b"again")
    assert await listener.hears() == b"again"
    await link.close()
    await listener.subscriber.close()


async def test_a_line_that_died_without_a_word_is_noticed_and_left(redis_server: Any) -> None:
    line = TcpRelay(redis_server.port)
    await line.open()
    listener = Listener(f"redis://127.0.0.1:{line.port}/0")
    await listener.stands()
    line.hold()
    await listener.until(lambda heard_until: heard_until == float("-inf"))
    assert listener.subscriber.trouble == "timeout"
    line.release()
    await listener.stands()
    await listener.subscriber.close()
    await line.cut()


async def test_who_may_not_listen_hears_nothing_and_says_why(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="subscriber-test-admin")
    await link.execute("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "resetchannels", "+@all")
    listener = Listener(server.url.replace("redis://", "redis://deaf:secret@"))
    async with asyncio.timeout(30):
        while listener.subscriber.trouble != "NOPERM":
            await asyncio.sleep(0.01)
    assert listener.begun.empty()
    assert listener.subscriber.heard_until == float("-inf")
    await listener.subscriber.close()
    await link.close()


async def test_a_link_goes_where_its_subscriber_was_led(start_redis: Callable[..., Any]) -> None:
    """Nodes that are cut off from each other tell of different owners; none hears what is published at another."""
    old, new = start_cluster(start_redis), start_cluster(start_redis)
    url = f"redis+cluster://127.0.0.1:{new.port},127.0.0.1:{old.port}"
    link = RedisLink.from_url(url, timeout_s=60.0, name="subscriber-test-publisher")
    await link.execute("PING")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    stands: asyncio.Queue[int] = asyncio.Queue()
    subscriber = RedisSubscriber(
        link.endpoint, channel=CHANNEL, name="subscriber-test", clock=asyncio.get_running_loop().time
    )
    subscriber.listen(heard.put_nowait, lambda: stands.put_nowait(1))
    await asyncio.wait_for(stands.get(), 30)
    link.endpoint.rotate_guides()  # who was asked first did not answer in time, say
    with redis.Redis(port=new.port) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.wait_for(stands.get(), 30)
    async with asyncio.timeout(30):
        while heard.empty():
            with contextlib.suppress(RedisUnavailable):
                await link.execute("PUBLISH", CHANNEL, b"x")
            await asyncio.sleep(0.02)
    await subscriber.close()
    await link.close()

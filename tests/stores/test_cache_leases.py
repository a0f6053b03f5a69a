"""Leases: one gateway asks, the others wait, and nobody waits for the dead."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.stores.cache_leases import LEASE_PREFIX, LEASE_S, RedisLeases
from gateway.stores.cache_levels import TwoLevelCacheStore
from gateway.stores.cache_redis import GONE_CHANNEL, RedisCacheStore
from gateway.stores.codec import Codec
from gateway.stores.redis_link import RedisLink, RedisUnavailable
from gateway.stores.redis_subscriber import RedisSubscriber
from tests.fakes.line import TcpRelay

CODEC = Codec(b"k" * 32)
NAMES = "{ggw:cache}:lease:*"


class Gateway:
    def __init__(self, url: str, wait_s: float = 20.0, heard: Callable[[], bool] | None = None) -> None:
        self.link = RedisLink.from_url(url, timeout_s=60.0 if heard is None else 0.2, name="leases-test")
        self.subscriber = RedisSubscriber(
            self.link.endpoint, channel=GONE_CHANNEL, name="leases-test-subscriber", clock=time.monotonic
        )
        self.leases = RedisLeases(self.link, CODEC, heard or (lambda: self.subscriber.listening), wait_s=wait_s)
        far = RedisCacheStore(self.link, CODEC)
        self.store = TwoLevelCacheStore(far, self.subscriber, max_bytes=1 << 20, clock=time.monotonic, leases=self.leases)

    async def listening(self) -> Gateway:
        self.store.start()
        async with asyncio.timeout(30):
            while not self.subscriber.listening:
                await asyncio.sleep(0.005)
        return self

    async def waiting(self) -> None:
        """Until one of its own waits for another's."""
        async with asyncio.timeout(30):
            while not self.leases.followed:
                await asyncio.sleep(0.005)

    async def answered(self) -> None:
        """Until Redis answers, and with that everything that was asked before."""
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.link.execute("PING")
                except RedisUnavailable:
                    await asyncio.sleep(0.01)
                else:
                    return

    async def held(self) -> int:
        names = await self.link.execute("KEYS", NAMES)
        assert isinstance(names, list)
        return len(names)


Pair = tuple[Gateway, Gateway]


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[Pair]:
    here, there = await Gateway(redis_url).listening(), await Gateway(redis_url).listening()
    yield here, there
    await here.store.close()
    await there.store.close()


async def test_one_leads_and_the_others_are_told_when_it_is_done(pair: Pair) -> None:
    here, there = pair
    done = await here.leases.lead(b"q")
    assert done is not None
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(there.leases.lead(b"q"))
        also = tasks.create_task(there.leases.lead(b"q"))
        await there.waiting()
        done()
    assert (following.result(), also.result()) == (None, None)
    assert (here.leases.led, there.leases.followed) == (1, 2)
    assert not there.leases._waiting
    assert await here.held() == 0
    assert await there.leases.lead(b"q") is not None, "the next one leads"


async def soon(gateway: Gateway, question: bytes = b"q") -> Callable[[], None] | None:
    """``lead_soon``, waited for."""
    heard: asyncio.Future[Callable[[], None] | None] = asyncio.get_running_loop().create_future()
    assert gateway.leases.lead_soon(question, heard.set_result) is not None
    async with asyncio.timeout(30):
        return await heard


async def test_in_callbacks_one_leads_and_the_others_do_not(pair: Pair) -> None:
    here, there = pair
    done = await soon(here)
    assert done is not None
    assert await soon(there) is None
    async with asyncio.timeout(30):
        following = asyncio.ensure_future(there.leases.lead(b"q"))
        await there.waiting()
        done()
        assert await following is None
    assert (here.leases.led, there.leases.followed) == (1, 1)
    assert await here.held() == 0
    assert await soon(there) is not None


async def test_who_leaves_before_the_lease_is_there_does_not_keep_it(pair: Pair) -> None:
    here, there = pair
    asked = here.leases.lead_soon(b"q", pytest.fail)
    assert asked is not None
    asked.cancel()
    await here.answered()
    assert await here.held() == 0
    assert await soon(there) is not None


async def test_in_callbacks_without_redis_each_asks_alone(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    gateway = Gateway(server.url, heard=lambda: True)
    await gateway.answered()
    server.process.send_signal(signal.SIGSTOP)
    done = await soon(gateway)
    assert done is not None
    done()
    server.process.send_signal(signal.SIGCONT)
    await gateway.store.close()
    assert gateway.leases.lead_soon(b"q", pytest.fail) is None
    assert gateway.leases.led == 0


async def test_an_end_is_told_in_full_to_a_redis_that_never_heard_of_it(pair: Pair) -> None:
    here, _ = pair
    for _ in range(2):
        await here.link.execute("SCRIPT", "FLUSH")
        done = await soon(here)
        assert done is not None
        done()
        async with asyncio.timeout(30):
            while await here.held():
                await asyncio.sleep(0)


async def test_no_two_leases_are_ended_by_the_same_token(pair: Pair) -> None:
    tokens = {gateway.leases._name_and_token(b"q")[1] for gateway in pair for _ in range(100)}
    assert len(tokens) == 200


async def test_in_callbacks_who_hears_nothing_asks_nobody(redis_url: str) -> None:
    gateway = Gateway(redis_url, heard=lambda: False)
    assert gateway.leases.lead_soon(b"q", pytest.fail) is None
    await gateway.store.close()


async def test_an_end_that_nobody_waits_for_is_told_to_nobody(pair: Pair) -> None:
    here, _ = pair
    heard: list[bytes] = []
    standing = asyncio.Event()
    subscriber = RedisSubscriber(
        here.link.endpoint, channel=GONE_CHANNEL, name="leases-test-listener", clock=time.monotonic
    )
    subscriber.listen(heard.append, standing.set)
    async with asyncio.timeout(30):
        await standing.wait()
        for question in (b"q", b"r"):
            done = await here.leases.lead(question)
            assert done is not None
            done()
        await here.store.purge((b"t",))
        while not heard:
            await asyncio.sleep(0.005)
    assert [name.startswith(LEASE_PREFIX) for name in heard] == [False]
    await subscriber.close()


async def test_nobody_waits_for_a_lease_that_has_no_end(pair: Pair) -> None:
    """Nor for one that is over when Redis hears that somebody waits: both have no time left there."""
    here, _ = pair
    await here.link.execute("SET", LEASE_PREFIX + CODEC.hidden_name(b"q"), "somebody")
    async with asyncio.timeout(30):
        assert await here.leases.lead(b"q") is None
    assert (here.leases.followed, await here.held()) == (1, 1)


async def test_other_questions_are_nobody_elses(pair: Pair) -> None:
    here, there = pair
    assert await here.leases.lead(b"1\nq") is not None
    assert await there.leases.lead(b"2\nq") is not None


async def test_a_lease_tells_nothing_and_ends_by_itself(pair: Pair) -> None:
    here, _ = pair
    await here.leases.lead(b"private\n/api/v4/projects/42")
    names = await here.link.execute("KEYS", NAMES)
    assert isinstance(names, list)
    (name,) = names
    assert isinstance(name, bytes)
    assert name.startswith(LEASE_PREFIX)
    assert b"projects" not in name
    left = await here.link.execute("PTTL", name)
    assert isinstance(left, int)
    assert 0 < left <= LEASE_S * 1000


async def test_a_leader_that_died_holds_nobody_up_for_long(redis_url: str) -> None:
    here, there = await Gateway(redis_url).listening(), await Gateway(redis_url, wait_s=0.05).listening()
    assert await here.leases.lead(b"q") is not None
    await here.store.close()
    assert await there.leases.lead(b"q") is None, "waited for as long as one waits"
    assert not there.leases._waiting
    await there.store.close()


async def test_nobody_waits_for_a_message_that_would_not_come(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    here, there = await Gateway(server.url).listening(), await Gateway(server.url, wait_s=600.0).listening()
    assert await here.leases.lead(b"q") is not None
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(there.leases.lead(b"q"))
        await there.waiting()
        server.stop()
    assert following.result() is None
    await here.store.close()
    await there.store.close()


async def test_who_lost_the_lease_does_not_end_anothers(pair: Pair) -> None:
    here, there = pair
    late = await here.leases.lead(b"q")
    assert late is not None
    (name,) = await here.link.execute("KEYS", NAMES)  # type: ignore[misc]
    await here.link.execute("DEL", name)  # type: ignore[arg-type]
    assert await there.leases.lead(b"q") is not None
    late()
    await here.link.execute("PING")  # in order behind it
    assert await there.held() == 1


async def test_who_leaves_while_waiting_leaves_nothing_behind(pair: Pair) -> None:
    here, there = pair
    await here.leases.lead(b"q")
    waiting = asyncio.ensure_future(there.leases.lead(b"q"))
    await there.waiting()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not there.leases._waiting


async def test_without_redis_everybody_goes_alone(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    gateway = await Gateway(server.url).listening()
    done = await gateway.leases.lead(b"q")
    assert done is not None
    server.stop()
    while gateway.link.healthy:
        await asyncio.sleep(0.005)
    alone = await gateway.leases.lead(b"r")
    assert alone is not None
    alone()
    done()
    done()
    await gateway.store.close()


async def test_a_lease_whose_answer_came_too_late_holds_nobody_up(redis_server: Any, redis_url: str) -> None:
    """It was taken all the same: Redis did what nobody waited for any more."""
    line = TcpRelay(redis_server.port)
    await line.open()
    late = Gateway(f"redis://127.0.0.1:{line.port}/0", heard=lambda: True)
    there = await Gateway(redis_url).listening()
    await late.answered()
    line.hold_answers()
    alone = await late.leases.lead(b"q")
    assert alone is not None
    assert late.leases.led == 0
    line.release()
    await late.answered()
    assert await there.held() == 0
    await late.store.close()
    await there.store.close()
    await line.cut()


async def test_who_does_not_hear_the_others_goes_alone(redis_url: str) -> None:
    here, deaf = await Gateway(redis_url).listening(), Gateway(redis_url)
    assert await here.leases.lead(b"q") is not None
    alone = await deaf.leases.lead(b"q")
    assert alone is not None
    alone()
    assert await here.held() == 1
    await here.store.close()
    await deaf.store.close()


async def test_a_redis_that_takes_no_writes_leads_nobody(start_redis: Callable[..., Any]) -> None:
    server = start_redis()
    gateway = await Gateway(server.url).listening()
    await gateway.link.execute("CONFIG", "SET", "min-replicas-to-write", "1")
    alone = await gateway.leases.lead(b"q")
    assert alone is not None
    alone()
    assert gateway.leases.led == 0
    await gateway.store.close()

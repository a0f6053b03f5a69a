"""A store's coming and going, told once each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

import pytest

from gateway.app.store_watch import StoreWatch
from gateway.stores.redis_link import RedisLink, RedisUnavailable
from tests.stores.patience import LONG_S, waits


async def until(link: RedisLink, *, healthy: bool) -> None:
    """Ask until the answer, or its absence, has been noticed; each turn lets the link's own task go on."""
    while link.healthy is not healthy:
        with contextlib.suppress(RedisUnavailable):
            await link.execute("PING")
        await asyncio.sleep(0)


async def test_a_store_that_is_there_is_connected_before_anybody_asks(redis_url: str) -> None:
    link = RedisLink.from_url(redis_url, timeout_s=60.0, name="cache")
    watch = StoreWatch([link])
    assert not link.healthy
    await watch.start()
    assert link.healthy
    await watch.close()
    await link.close()


async def test_its_going_and_coming_are_reported_once_each(
    start_redis: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=60.0, name="buckets")  # type: ignore[attr-defined]
    watch = StoreWatch([link])
    await watch.start()
    caplog.set_level(logging.WARNING, "gateway.stores")
    server.stop()  # type: ignore[attr-defined]
    await until(link, healthy=False)
    watch.look()
    watch.look()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "store buckets does not answer" in caplog.text
    server.start()  # type: ignore[attr-defined]
    await until(link, healthy=True)
    watch.look()
    assert "store buckets answers again" in caplog.text
    await watch.close()
    await link.close()


async def test_one_that_was_late_once_is_asked_where_nobody_else_does(
    start_redis: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=0.5, name="keys")  # type: ignore[attr-defined]
    watch = StoreWatch([link])
    await watch.start()
    caplog.set_level(logging.WARNING, "gateway.stores")
    server.process.send_signal(signal.SIGSTOP)  # type: ignore[attr-defined]
    with pytest.raises(RedisUnavailable):
        await link.execute("PING")
    server.process.send_signal(signal.SIGCONT)  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        while "store keys answers again" not in caplog.text:
            await asyncio.sleep(0.01)
    assert link.healthy
    await watch.close()
    await link.close()


async def test_one_that_others_ask_is_left_to_them(start_redis: Callable[..., object]) -> None:
    """It may well answer that, and nothing that is of use."""
    server = start_redis()
    link = RedisLink.from_url(server.url, timeout_s=LONG_S, name="buckets")  # type: ignore[attr-defined]
    watch = StoreWatch([link])
    await link.execute("PING")
    waits(link, 0.1)
    server.process.send_signal(signal.SIGSTOP)  # type: ignore[attr-defined]
    with pytest.raises(RedisUnavailable):
        await link.execute("PING")
    server.process.send_signal(signal.SIGCONT)  # type: ignore[attr-defined]
    waits(link, LONG_S)
    watch.ask()
    await asyncio.sleep(0.2)
    assert not link.healthy
    watch.ask()
    async with asyncio.timeout(20):
        while not link.healthy:
            await asyncio.sleep(0.01)
    await watch.close()
    await link.close()


async def test_one_that_is_away_at_start_is_reported_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    link = RedisLink.from_url("redis://127.0.0.1:1", timeout_s=0.2, name="keys")
    watch = StoreWatch([link])
    caplog.set_level(logging.WARNING, "gateway.stores")
    await watch.start()
    assert "store keys does not answer" in caplog.text
    await watch.close()
    await link.close()


async def test_without_shared_stores_there_is_nothing_to_watch() -> None:
    watch = StoreWatch([])
    await watch.start()
    await watch.close()

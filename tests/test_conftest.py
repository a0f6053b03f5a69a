"""The fence around the tests, and their Redis, do what they say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import redis

from gateway import __version__

OUTSIDE = "192.0.2.1"  # TEST-NET-1: nobody's address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1"])
def test_loopback_may_be_reached(host: str) -> None:
    with (
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server,
        socket.create_connection((host, server.getsockname()[1])) as client,
    ):
        assert client.getpeername()[0] == host


def test_another_machine_may_not(strays: list[str]) -> None:
    with pytest.raises(Exception, match=OUTSIDE):
        socket.create_connection((OUTSIDE, 80), timeout=0.1)
    assert strays
    strays.clear()


async def test_asyncio_may_not_reach_another_machine_either(strays: list[str]) -> None:
    with pytest.raises(Exception, match=OUTSIDE):
        await asyncio.open_connection(OUTSIDE, 80)
    assert strays
    strays.clear()


def test_a_name_is_not_looked_up(strays: list[str]) -> None:
    with pytest.raises(Exception, match=r"gitlab\.example\.com"):
        socket.getaddrinfo("gitlab.example.com", 443)
    assert strays
    strays.clear()


def test_redis_is_real_and_empty(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")
        assert client.info("persistence")["aof_enabled"] == 0


def test_redis_is_empty_again(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("left") is None


def test_a_redis_of_ones_own_can_stop_and_come_back(start_redis: Callable[..., Any]) -> None:
    server = start_redis("--maxmemory", "8mb")
    port = server.port
    with redis.Redis(port=port) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(8 * 1024 * 1024)}
    server.stop()
    with redis.Redis(port=port, retry=None) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    server.start()
    assert server.port == port
    with redis.Redis(port=port) as client:
        assert client.ping()


def test_the_package_is_importable_from_the_checkout() -> None:
    assert __version__

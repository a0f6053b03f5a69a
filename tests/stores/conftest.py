"""Parts that several stores' tests use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hiredis
import pytest
import redis

from tests.fakes.redis_cluster import start_cluster


@pytest.fixture(scope="session")
def cluster_node(redis_server: Any) -> Iterator[Any]:
    """The worker's Redis Cluster of one node."""
    server = start_cluster(type(redis_server))
    yield server
    server.close()


@pytest.fixture
def cluster(cluster_node: Any) -> Any:
    """The same, empty."""
    with redis.Redis(port=cluster_node.port) as client:
        client.flushall()
    return cluster_node


@pytest.fixture
async def scriptless() -> AsyncIterator[str]:
    """The address of something like a Redis, that lets no scripts through."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = hiredis.Reader()
        while octets := await reader.read(65536):
            asked.feed(octets)
            while command := asked.gets():
                writer.write(b"-ERR bad lua script\r\n" if command[0].startswith(b"EVAL") else b"+OK\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"

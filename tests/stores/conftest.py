"""Parts that several stores' tests use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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

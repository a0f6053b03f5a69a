"""A Redis Cluster of one node that owns every slot: it refuses what crosses slots, as a large one would."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import redis

_UP_S = 20.0


def start_cluster(start: Callable[..., Any]) -> Any:
    """The server, when it says that the cluster is up. ``start``: the fixture ``start_redis``, or its servers' class."""
    with socket.socket() as bus:
        bus.bind(("127.0.0.1", 0))
        port = bus.getsockname()[1]
    # By default the bus is 10,000 above the port, which a port of the system's choice leaves no room for.
    server = start("--cluster-enabled", "yes", "--cluster-port", str(port))
    with redis.Redis(port=server.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        end = time.monotonic() + _UP_S
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < end, "the cluster does not come up"
            time.sleep(0.02)
    return server


def slot(name: bytes | str) -> int:
    """The hash slot of a key (Redis Cluster specification: CRC16 of what stands in the first braces)."""
    key = name.encode() if isinstance(name, str) else name
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    if start >= 0 and end > start + 1:
        key = key[start + 1 : end]
    crc = 0
    for octet in key:
        crc ^= octet << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc % 16384

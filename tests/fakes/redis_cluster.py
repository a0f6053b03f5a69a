"""A Redis Cluster of one node that owns every slot: it refuses what crosses slots, as a large one would. Or of two."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import redis

_UP_S = 20.0


def start_cluster(start: Callable[..., Any]) -> Any:
    """The server, when it says that the cluster is up. ``start``: the fixture ``start_redis``, or its servers' class."""
    server, _ = _start(start)
    with redis.Redis(port=server.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    _up(server)
    return server


def start_divided_cluster(start: Callable[..., Any], name: str) -> tuple[Any, Any]:
    """Two servers: the first owns the slot of ``name`` and nothing else, the second everything else."""
    mine = slot(name)
    (owner, bus), (other, _) = _start(start), _start(start)
    with redis.Redis(port=owner.port) as first, redis.Redis(port=other.port) as second:
        first.execute_command("CLUSTER", "ADDSLOTS", mine)
        second.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, mine - 1, mine + 1, 16383)
        second.execute_command("CLUSTER", "MEET", "127.0.0.1", owner.port, bus)
    _up(owner)
    _up(other)
    return owner, other


def start_node(start: Callable[..., Any]) -> Any:
    """A node that owns nothing, and knows no other."""
    return _start(start)[0]


def _start(start: Callable[..., Any]) -> tuple[Any, int]:
    """A node that owns nothing yet, and the port of its bus."""
    with socket.socket() as bus:
        bus.bind(("127.0.0.1", 0))
        port: int = bus.getsockname()[1]
    # By default the bus is 10,000 above the port, which a port of the system's choice leaves no room for.
    return start("--cluster-enabled", "yes", "--cluster-port", str(port)), port


def _up(server: Any) -> None:
    with redis.Redis(port=server.port) as client:
        end = time.monotonic() + _UP_S
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            assert time.monotonic() < end, "the cluster does not come up"
            time.sleep(0.02)


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


def migrate_slot(name: str, owner: Any, other: Any) -> None:
    """The slot of ``name``, with all that is in it, from one server to another of its cluster."""
    with redis.Redis(port=owner.port) as first, redis.Redis(port=other.port) as second:
        mine, theirs = (client.execute_command("CLUSTER", "MYID") for client in (first, second))
        second.execute_command("CLUSTER", "SETSLOT", slot(name), "IMPORTING", mine)
        first.execute_command("CLUSTER", "SETSLOT", slot(name), "MIGRATING", theirs)
        for key in first.execute_command("CLUSTER", "GETKEYSINSLOT", slot(name), 1000):
            first.execute_command("MIGRATE", "127.0.0.1", other.port, key, 0, 5000)
        second.execute_command("CLUSTER", "SETSLOT", slot(name), "NODE", theirs)
        with contextlib.suppress(redis.ResponseError):  # who has given its last slot away may be a replica by now
            first.execute_command("CLUSTER", "SETSLOT", slot(name), "NODE", theirs)

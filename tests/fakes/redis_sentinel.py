"""A primary and a replica watched by a Sentinel, all of them real."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

NAME = "main"
_UP_S = 20.0


class Sentinel:
    """A process of its own that watches one primary, alone sufficient for a failover.

    Args:
        directory: For its configuration, which it writes to.
        primary: Port.
        lines: More of its configuration.
    """

    def __init__(self, directory: Path, primary: int, *lines: str) -> None:
        program = shutil.which("redis-server")
        assert program is not None, "`.ci/setup test` installs redis-server"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        directory.mkdir()
        settings = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"sentinel monitor {NAME} 127.0.0.1 {primary} 1",
            f"sentinel down-after-milliseconds {NAME} 300",
            f"sentinel failover-timeout {NAME} 2000",
            *lines,
        ]
        file = directory / "sentinel.conf"
        file.write_text("\n".join(settings) + "\n")
        self._process = subprocess.Popen([program, str(file), "--sentinel"], stdout=subprocess.DEVNULL)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, *words: str, password: str | None = None) -> Any:
        with redis.Redis(port=self.port, password=password) as client:
            return client.execute_command(*words)

    def primary(self) -> int:
        """The port of whom it tells."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])

    def answered(self) -> int:
        """How many commands, these questions included."""
        with redis.Redis(port=self.port) as client:
            return int(client.info("stats")["total_commands_processed"])

    def clients(self) -> list[dict[str, str]]:
        """Who is connected to it."""
        with redis.Redis(port=self.port) as client:
            return list(client.client_list())

    def close(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)


def start_pair(start: Callable[..., Any]) -> tuple[Any, Any]:
    """Two servers, the second of which has all that the first has. ``start``: the fixture ``start_redis``."""
    primary = start("--repl-diskless-sync-delay", "0")
    replica = start("--replicaof", "127.0.0.1", str(primary.port))
    with redis.Redis(port=replica.port) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    return primary, replica


def until(so: Callable[[], bool]) -> None:
    """Wait for something that comes in time."""
    end = time.monotonic() + _UP_S
    while not _is(so):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def _is(so: Callable[[], bool]) -> bool:
    try:
        return so()
    except redis.RedisError:
        return False

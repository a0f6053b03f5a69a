"""What every test may use: a Redis of its own, and a world that ends at the loopback interface.

With xdist each worker has its own session, so each has its own Redis.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis
from hypothesis import settings

# A run that fails should fail for whoever repeats it, so each draws the same examples; `make roam` draws others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("roaming", max_examples=1000, deadline=None)
settings.load_profile("same")


_MEMORY = "/dev/shm"
_ROOM_BYTES = 4 << 30


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put the tests' files into memory where there is room. Much of what they wait for is a disk that confirms what a store
    or an audit wrote; ``--basetemp`` puts them, and leaves them, elsewhere."""
    if config.option.basetemp is None and not hasattr(config, "workerinput") and _has_room(_MEMORY):
        directory = tempfile.mkdtemp(prefix="gateway-tests-", dir=_MEMORY)
        config.option.basetemp = directory
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def _has_room(directory: str) -> bool:
    """Whether files in ``directory`` may be many, and be executed, which containers often forbid."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize >= _ROOM_BYTES and not room.f_flag & os.ST_NOEXEC


class RedisServer:
    """A real redis-server on a loopback port of its own, without persistence; ended by its own process handle."""

    def __init__(self, *arguments: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not on PATH: `.ci/setup test` installs it", pytrace=False)
        self._directory = tempfile.TemporaryDirectory(prefix="gateway-redis-")
        self._command = [program, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", self._directory.name]
        self._command += ["--loglevel", "notice", *arguments]
        self.port = 0
        self.process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, or start again on the same port after ``stop``."""
        for _ in range(5):
            port = self.port or _free_port()
            log = self._run(port)
            if "Ready to accept connections" in log:
                self.port = port
                return
            if self.port or "Address already in use" not in log:  # another process may take a free port before Redis does
                break
        pytest.fail(f"redis-server did not start:\n{log}", pytrace=False)

    def _run(self, port: int) -> str:
        """Its log up to the line that says it is ready, or to its end."""
        self.process = subprocess.Popen(
            [*self._command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if "Ready to accept connections" in line:
                with redis.Redis(port=port) as client:
                    client.config_set("loglevel", "warning")  # nobody reads the pipe any more: it must not fill up
                break
        else:
            self.stop()
        return "".join(lines)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()  # nothing is persisted, so there is nothing to end gently
            process.wait(timeout=10)
            assert process.stdout is not None
            process.stdout.close()

    def close(self) -> None:
        self.stop()
        self._directory.cleanup()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The worker's shared Redis. A test that stops or floods one takes ``start_redis`` instead."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty, real Redis."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """Start a Redis for this test alone, with further command-line arguments."""
    with ExitStack() as servers:

        def start(*arguments: str) -> RedisServer:
            server = RedisServer(*arguments)
            servers.callback(server.close)
            return server

        yield start


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Scores that tests recorded, on whichever worker they ran."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") != "call":
                continue
            for name, value in report.user_properties:
                if name == "score":
                    terminalreporter.write_line(str(value))


# The world ends at the loopback interface. An audit hook sees every socket that Python opens, asyncio's too; uvloop's
# connections go round it, so tests run on asyncio's own loop.

_strays: list[str] = []


class OutsideLoopback(Exception):  # noqa: N818 — what happened, not who erred
    """A test tried to reach another machine."""


def _refuse_outside_loopback(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in {"socket.connect", "socket.sendto"}:
        address = arguments[1]
        if not isinstance(address, tuple):  # a Unix socket's path
            return
        host = address[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is not None and not _is_loopback(str(host), binding=event == "socket.getaddrinfo"):
        _strays.append(f"{event} {host}")
        raise OutsideLoopback(f"{event} {host}")


def _is_loopback(host: str, *, binding: bool) -> bool:
    if host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == ""  # any interface, to listen on
    return address.is_loopback or (binding and address.is_unspecified)


sys.addaudithook(_refuse_outside_loopback)


@pytest.fixture(autouse=True)
def _inside_loopback() -> Iterator[None]:
    """Fail a test that strayed, even when its code swallowed the refusal."""
    _strays.clear()
    yield
    strays, _strays[:] = list(_strays), []
    assert not strays, f"reached outside loopback: {strays}"


@pytest.fixture
def strays() -> list[str]:
    """What this test tried to reach outside loopback; for the tests of this very fence, which empty it."""
    return _strays

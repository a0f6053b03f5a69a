"""TLS on both sides of a real gateway, and certificates exchanged under it."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.running import GatewayProcess, LoopThread
from tests.fakes.certificates import Authority, CertificatePair


class Upstream:
    """A GitLab over TLS that says ``ok``."""

    def __init__(self, pair: CertificatePair) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair.cert, pair.key)
        self.server: asyncio.Server

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)

    async def close(self) -> None:
        self.server.close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


class Client:
    """One TLS connection to the gateway."""

    def __init__(self, port: int, authority: Authority, clients: ExitStack) -> None:
        context = ssl.create_default_context(cafile=str(authority.file))
        self.socket = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="localhost")
        clients.callback(self.socket.close)
        subject = self.socket.getpeercert()["subject"]  # type: ignore[index]
        self.name = dict(pair[0] for pair in subject)["commonName"]  # type: ignore[index, misc]

    def get(self) -> int:
        self.socket.sendall(b"GET /api/v4/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        octets = b""
        while not octets.endswith(b"\r\n\r\nok") and (more := self.socket.recv(65536)):
            octets += more
            if b" 502 " in octets:
                break
        return int(octets.split(b" ")[1])


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes what a test connected."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def upstream(authority: Authority, upstreams: LoopThread) -> Iterator[Upstream]:
    found = Upstream(authority.issue("gitlab"))
    upstreams.run(found.start())
    yield found
    upstreams.run(found.close())


def replace(file: Path, octets: bytes) -> None:
    fresh = file.with_suffix(".fresh")
    fresh.write_bytes(octets)
    os.replace(fresh, file)


def reloaded(gateway: GatewayProcess, line: str) -> None:
    seen = len(gateway.log.all)
    gateway.process.send_signal(signal.SIGHUP)
    gateway.log.find(lambda found: True if line in found else None, start=seen)


def left_s(gateway: GatewayProcess) -> float:
    return float(gateway.metrics().partition("\ngitlab_gateway_certificate_expires_seconds ")[2].split()[0])


def test_certificates_are_exchanged_while_connections_live(
    authority: Authority, upstream: Upstream, clients: ExitStack, tmp_path: Path
) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    old, new = authority.issue("old", until=soon), authority.issue("new")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.file.read_bytes())
    gateway = GatewayProcess(
        {
            "upstream": {"url": upstream.url, "ca_file": str(ca)},
            "identities": [{"id": "anyone", "anonymous": True}],
            "listen": {
                "address": "127.0.0.1:0",
                "admin": "127.0.0.1:0",
                "tls": {"cert_file": str(old.cert), "key_file": str(old.key)},
            },
        },
        tmp_path / "gateway",
    )
    try:
        before = Client(gateway.port, authority, clients)
        assert (before.name, before.get()) == ("old", 200)
        assert 2 * 86_400 < left_s(gateway) < 3 * 86_400

        replace(old.key, new.key.read_bytes())
        reloaded(gateway, "the previous one stays in use")
        assert Client(gateway.port, authority, clients).name == "old"

        replace(old.cert, new.cert.read_bytes())
        reloaded(gateway, "certificates reloaded")
        after = Client(gateway.port, authority, clients)
        assert (after.name, after.get()) == ("new", 200)
        assert before.get() == 200
        assert left_s(gateway) > 3 * 86_400

        # Another authority: connections to come no longer believe the upstream.
        replace(ca, Authority(tmp_path, "stranger").file.read_bytes())
        reloaded(gateway, "certificates reloaded")
        assert after.get() == 502
    finally:
        gateway.stop()

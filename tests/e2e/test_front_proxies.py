"""The real nginx and HAProxy in front of a gateway, with the configurations of deploy/."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.e2e.running import ROOT, GatewayProcess, LoopThread
from tests.e2e.wire import Reply, curl, stranger
from tests.fakes.certificates import Authority
from tests.fakes.gitlab import Answer, FakeGitLab, Then, When, response

FORGED = ("X-Forwarded-For: 10.9.9.9", "X-Forwarded-Proto: http", "X-Forwarded-Host: evil.example", "X-Request-Id: forged")
LARGE = 3 << 20
"""More than nginx takes, or keeps in memory, unless told otherwise."""


class Front:
    """One of them, before one gateway."""

    def __init__(self, kind: str, gateway: GatewayProcess, directory: Path) -> None:
        self.gateway = gateway
        self.authority = Authority(directory)
        pair = self.authority.issue("localhost")
        with socket.create_server(("127.0.0.1", 0)) as held:
            self.port = held.getsockname()[1]
        both = directory / "both.pem"
        both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
        settings = {
            "nginx": {
                "listen 443": f"listen 127.0.0.1:{self.port}",
                "127.0.0.1:8080": f"127.0.0.1:{gateway.port}",
                "/etc/nginx/tls/git.example.com.pem": str(pair.cert),
                "/etc/nginx/tls/git.example.com.key": str(pair.key),
                "git.example.com;": "localhost;",
            },
            "haproxy": {
                "bind :443": f"bind 127.0.0.1:{self.port}",
                "127.0.0.1:8080": f"127.0.0.1:{gateway.port}",
                "port 9901": f"port {gateway.admin_port}",
                "/etc/haproxy/tls/git.example.com.pem": str(both),
            },
        }[kind]
        file = ROOT / "deploy" / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[kind]
        text = file.read_text()
        for ours, here in settings.items():
            assert text.count(ours) == 1, ours
            text = text.replace(ours, here)
        (directory / file.name).write_text(text)
        command = ["haproxy", "-db", "-f", str(directory / file.name)]
        if kind == "nginx":
            places = "".join(
                f"{part}_temp_path {directory}/{part}; " for part in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            http = f"http {{ access_log off; {places} include {directory}/{file.name}; }}"
            (directory / "main.conf").write_text(f"pid {directory}/pid; daemon off; events {{}} {http}")
            command = ["nginx", "-p", str(directory), "-e", str(directory / "log"), "-c", str(directory / "main.conf")]
        self._said = (directory / "said").open("wb")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said)
        try:
            self._wait(directory)
        except BaseException:
            self.close()
            raise
        self.url = f"https://localhost:{self.port}"

    def _wait(self, directory: Path) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError((directory / "said").read_text())

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._said.close()

    def ask(self, target: str, *arguments: str) -> Reply:
        resolve = f"localhost:{self.port}:127.0.0.1"
        trust = ("--cacert", str(self.authority.file), "--resolve", resolve)
        return curl("--path-as-is", "--globoff", *trust, *arguments, self.url + target)

    def head(self, line: str, *fields: str) -> bytes:
        return "\r\n".join([f"{line} HTTP/1.1", f"Host: localhost:{self.port}", *fields, "", ""]).encode()

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority.file))

    def dial(self) -> ssl.SSLSocket:
        return self.context().wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), 20), server_hostname="localhost"
        )


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def kind(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@contextmanager
def before(kind: str, url: str, directory: Path) -> Iterator[Front]:
    """Ready when a request comes through: HAProxy sends none before it has asked `/readyz`."""
    config = {
        "upstream": {"url": url},
        "listen": {"address": "127.0.0.1:0", "admin": "127.0.0.1:0", "trusted_proxies": ["127.0.0.1/32"]},
        "identities": [{"id": "anyone", "anonymous": True}],
    }
    gateway = GatewayProcess(config, directory)
    try:
        front = Front(kind, gateway, directory)
        try:
            deadline = time.monotonic() + 20
            while front.ask("/-/health").status == 503 and time.monotonic() < deadline:
                time.sleep(0.1)
            yield front
        finally:
            front.close()
    finally:
        assert gateway.stop() == 0


@pytest.fixture(scope="module")
def gitlab(upstreams: LoopThread) -> Iterator[FakeGitLab]:
    fake = FakeGitLab()
    upstreams.run(fake.__aenter__())
    yield fake
    upstreams.run(fake.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def front(kind: str, gitlab: FakeGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with before(kind, gitlab.url, tmp_path_factory.mktemp(kind)) as made:
        yield made


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize(
    "target",
    [
        "/api/v4/projects/group%2Fproject/repository/files/a%2fb%2Ejson?ref=feature%2Fx&y=a+b%20c",
        "/api/v4/projects/1/issues?labels=a//b&x=%5B%5D&y[]=../1",
        "/group/project/-/blob/main/%C3%A4%20~.md",
    ],
)
def test_targets_come_through_octet_for_octet(front: Front, gitlab: FakeGitLab, target: str, version: str) -> None:
    gitlab.script(response(200, b"ok"))
    assert front.ask(target, version).status == 200
    assert gitlab.requests[-1].target == target.encode()


def test_the_client_is_who_the_proxy_saw(front: Front, gitlab: FakeGitLab) -> None:
    gitlab.script(response(200, b"ok"))
    fields = [part for field in FORGED for part in ("--header", field)]
    source = stranger()
    reply = front.ask("/api/v4/version", "--interface", source, *fields)
    line = front.gateway.audited(reply.value("X-Gateway-Request-Id") or "")
    assert (reply.status, line["peer"]) == (200, source)
    assert "forged" not in json.dumps(line)
    received = gitlab.requests[-1]
    assert [*received.values("X-Forwarded-Proto"), *received.values("X-Forwarded-Host")] == [
        b"https",
        f"localhost:{front.port}".encode(),
    ]


def test_a_large_body_goes_up_before_it_is_whole(front: Front, gitlab: FakeGitLab) -> None:
    gitlab.script(Answer(*response(201, b"early").pieces, when=When.HEAD, then=Then.STALL))
    with front.dial() as client:
        client.sendall(front.head("PUT /api/v4/projects/1/packages/generic/p/1/f", f"Content-Length: {LARGE}"))
        client.sendall(b"x" * (LARGE // 2))
        assert client.recv(12) == b"HTTP/1.1 201"


def test_a_large_answer_comes_down_before_it_is_whole(front: Front, gitlab: FakeGitLab, upstreams: LoopThread) -> None:
    rest = asyncio.Event()
    half = b"x" * (LARGE // 2)
    gitlab.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE, half, rest, half))
    with front.dial() as client, client.makefile("rb") as answer:
        client.sendall(front.head("GET /api/v4/projects/1/repository/archive.tar.gz"))
        while answer.readline() != b"\r\n":
            pass
        assert answer.read(len(half)) == half
        upstreams.call(rest.set)
        assert answer.read(len(half)) == half


def test_a_head_as_large_as_the_gateway_takes_one_passes(front: Front, gitlab: FakeGitLab) -> None:
    gitlab.script(response(200, b"ok"))
    target = "/api/v4/projects?search=" + "x" * 15_000
    reply = front.ask(target, "--http1.1", "--header", "X-Long: " + "y" * 15_000)
    assert (reply.status, gitlab.requests[-1].target) == (200, target.encode())


async def test_a_websocket_opens(kind: str, tmp_path: Path) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        made = before(kind, url, tmp_path)
        front = await asyncio.to_thread(made.__enter__)
        try:
            async with connect(f"wss://localhost:{front.port}/-/cable", ssl=front.context()) as client:
                await client.send("hello")
                assert await client.recv() == "hello"
        finally:
            await asyncio.to_thread(made.__exit__, None, None, None)

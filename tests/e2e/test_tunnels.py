"""WebSockets through the gateway: the ``websockets`` library on both ends, and raw sockets where it is too polite."""

from __future__ import annotations

import asyncio
import http
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response

from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer
from tests.fakes.git_gitlab import peak_rss_bytes
from tests.fakes.gitlab import Answer, FakeGitLab, Then

OWN = "glpat-of-a-person-000000"
BROKER = "glpat-of-the-broker-0000"


class Cable:
    """A GitLab of WebSockets: echoes, and keeps each handshake."""

    def __init__(self) -> None:
        self.handshakes: list[Request] = []
        self.server: Server
        self.closed: list[int | None] = []

    async def start(self) -> None:
        self.server = await serve(
            self._serve,
            "127.0.0.1",
            0,
            process_request=self._look,
            max_size=64 << 20,
            select_subprotocol=lambda _, offered: offered[0] if offered else None,
        )

    async def close(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def _look(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/api/v4/personal_access_tokens/self":
            body = json.dumps({"id": 1, "user_id": 7, "active": True, "revoked": False, "scopes": ["api"]}).encode()
            headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
            return Response(200, "OK", headers, body)
        self.handshakes.append(request)
        if "forbidden" in request.path:
            return connection.respond(http.HTTPStatus.NOT_FOUND, "404\n")
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        try:
            async for message in connection:
                if message == "close":
                    await connection.close(4321, "as you wish")
                elif message == "cut":
                    connection.transport.abort()
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        self.closed.append(connection.close_code)


def config(url: str, **more: Any) -> dict[str, Any]:
    return {
        "upstream": {"url": url, **more},
        "identities": [
            {"id": "people", "gitlab_token": True},
            {"id": "bot", "key": "issued"},
            {"id": "reader", "key": "issued"},
        ],
        "credentials": [{"id": "broker", "token": "${env:BROKER}"}],
        "rules": [
            {"id": "bot", "for": ["bot"], "use": "broker", "allow": [{"access": "write"}]},
            {"id": "reader", "for": ["reader"], "use": "broker", "allow": [{"access": "read"}]},
        ],
    }


@pytest.fixture(scope="module")
def cable(upstreams: LoopThread) -> Iterator[Cable]:
    found = Cable()
    upstreams.run(found.start())
    yield found
    upstreams.run(found.close())


@pytest.fixture(scope="module")
def gateway(cable: Cable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(config(cable.url), tmp_path_factory.mktemp("gateway"), {"BROKER": BROKER})
    yield process
    assert process.stop() == 0


@pytest.fixture(autouse=True)
def _fresh(cable: Cable) -> None:
    cable.handshakes.clear()


def at(gateway: GatewayProcess, path: str = "/-/cable") -> str:
    return f"ws://127.0.0.1:{gateway.port}{path}"


def token(value: str) -> dict[str, str]:
    return {"PRIVATE-TOKEN": value}


def metric(gateway: GatewayProcess, name: str) -> float:
    line = next(line for line in gateway.metrics().splitlines() if line.startswith(name + " "))
    return float(line.split(" ")[1])


async def test_messages_both_ways_some_of_them_big(gateway: GatewayProcess, cable: Cable) -> None:
    async with connect(at(gateway), additional_headers=token(OWN), max_size=64 << 20, compression=None) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
        big = os.urandom(9 << 20)
        await client.send(big)
        assert await client.recv() == big
    assert cable.handshakes[0].headers["PRIVATE-TOKEN"] == OWN


async def test_a_close_and_its_code_pass(gateway: GatewayProcess) -> None:
    async with connect(at(gateway), additional_headers=token(OWN)) as client:
        await client.send("close")
        with pytest.raises(ConnectionClosed):
            await client.recv()
    assert (client.close_code, client.close_reason) == (4321, "as you wish")


async def test_subprotocol_and_origin_pass(gateway: GatewayProcess, cable: Cable) -> None:
    async with connect(
        at(gateway),
        additional_headers=token(OWN),
        subprotocols=["actioncable-v1-json"],  # type: ignore[list-item]
        origin="https://gitlab.example.com",  # type: ignore[arg-type]
    ) as client:
        assert client.subprotocol == "actioncable-v1-json"
    assert cable.handshakes[0].headers["Origin"] == "https://gitlab.example.com"
    assert cable.handshakes[0].headers.get_all("Connection") == ["Upgrade"]
    assert cable.handshakes[0].headers.get_all("Upgrade") == ["websocket"]


async def test_a_session_passes_to_the_cable(gateway: GatewayProcess, cable: Cable) -> None:
    async with connect(at(gateway), additional_headers={"Cookie": "_gitlab_session=0123456789abcdef"}):
        pass
    assert cable.handshakes[0].headers["Cookie"] == "_gitlab_session=0123456789abcdef"


async def test_an_agent_connects_with_its_own_token(gateway: GatewayProcess, cable: Cable) -> None:
    path = at(gateway, "/-/kubernetes-agent/")
    async with connect(path, additional_headers={"Authorization": "Bearer glagent-0000000000"}):
        pass
    assert cable.handshakes[0].headers["Authorization"] == "Bearer glagent-0000000000"


async def test_a_key_that_may_write_is_brokered_at_the_handshake(gateway: GatewayProcess, cable: Cable) -> None:
    async with connect(at(gateway), additional_headers=token(gateway.new_key("bot"))) as client:
        await client.send("x")
        assert await client.recv() == "x"
    assert cable.handshakes[0].headers["PRIVATE-TOKEN"] == BROKER


async def test_it_ends_with_the_key_that_opened_it(gateway: GatewayProcess) -> None:
    """GitLab sees the broker's token, which goes on: nobody else could end it."""
    key = gateway.new_key("bot")
    listed = json.loads(gateway.command("keys", "list", "bot", "--json").stdout)
    async with connect(at(gateway), additional_headers=token(key)) as client:
        await client.send("x")
        assert await client.recv() == "x"
        for one in listed:
            gateway.command("keys", "revoke", one["id"])
        with pytest.raises(ConnectionClosed):
            await client.recv()
    ended = gateway.audit.find(lambda line: dict(json.loads(line)) if '"aborted":"gateway"' in line else None)
    assert (ended["identity"], ended["aborted"]) == ("bot", "gateway")


@pytest.mark.parametrize(
    ("path", "who", "status"),
    [
        ("/-/cable", None, 401),
        ("/-/cable", "reader", 403),
        ("/api/v4/version", OWN, 400),
        ("/team/app/-/jobs/1/terminal.ws", None, 401),
    ],
)
async def test_who_may_not_or_where_nothing_is_gets_a_refusal(
    gateway: GatewayProcess, cable: Cable, path: str, who: str | None, status: int
) -> None:
    if who == "reader":
        who = gateway.new_key("reader")
    with pytest.raises(InvalidStatus) as refusal:
        await connect(at(gateway, path), additional_headers=token(who) if who else {})
    assert refusal.value.response.status_code == status
    assert "X-Gateway-Error" in refusal.value.response.headers
    assert cable.handshakes == []


async def test_gitlabs_own_refusal_passes(gateway: GatewayProcess) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(at(gateway, "/team/forbidden/-/jobs/1/terminal.ws"), additional_headers=token(OWN))
    assert refusal.value.response.status_code == 404
    assert "X-Gateway-Error" not in refusal.value.response.headers


async def test_a_tunnel_is_counted_and_audited(gateway: GatewayProcess) -> None:
    async with connect(at(gateway), additional_headers=token(OWN)) as client:
        assert client.response is not None
        number = client.response.headers["X-Gateway-Request-Id"]
        await client.send(os.urandom(1001))  # which no extension makes smaller
        await client.recv()
        assert metric(gateway, "gitlab_gateway_tunnels_open") == 1
        assert metric(gateway, 'gitlab_gateway_tunnel_bytes_total{direction="in"}') > 1000
    line = await asyncio.to_thread(gateway.audited, number)
    text = json.dumps(line)
    assert "101" in text
    assert OWN not in text
    assert metric(gateway, "gitlab_gateway_tunnels_open") == 0


async def test_a_client_that_vanishes_frees_both_sides(gateway: GatewayProcess, cable: Cable) -> None:
    client = await connect(at(gateway), additional_headers=token(OWN))
    assert client.response is not None
    number = client.response.headers["X-Gateway-Request-Id"]
    client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()  # with a reset: otherwise it has said that it was done
    line = await asyncio.to_thread(gateway.audited, number)
    assert line["aborted"] == "client"
    assert metric(gateway, "gitlab_gateway_tunnels_open") == 0


async def test_gitlab_that_dies_ends_the_tunnel(gateway: GatewayProcess) -> None:
    async with connect(at(gateway), additional_headers=token(OWN)) as client:
        await client.send("cut")
        with pytest.raises(ConnectionClosed):
            await client.recv()
    assert client.close_code == 1006


async def test_a_slow_client_holds_gitlab_back(gateway: GatewayProcess) -> None:
    """32 MB to a client that does not read: they wait at GitLab, not in the gateway."""
    before = peak_rss_bytes(gateway.process.pid)
    async with connect(at(gateway), additional_headers=token(OWN), max_size=64 << 20, compression=None) as client:
        client.transport.pause_reading()
        sending = asyncio.ensure_future(client.send(os.urandom(32 << 20)))
        await asyncio.wait([sending], timeout=0.5)
        assert peak_rss_bytes(gateway.process.pid) - before < 32 << 20
        client.transport.resume_reading()
        assert len(await client.recv()) == 32 << 20
        await sending


# At the socket

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: " + OWN + "\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
    "Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)


def handshake(path: str = "/-/cable", protocol: str = "websocket", version: str = "13", more: str = "") -> bytes:
    return HANDSHAKE.format(path=path, protocol=protocol, version=version, more=more).encode()


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (handshake(version="777"), 426),
        (handshake(more="Content-Length: 31\r\n") + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n", 400),
        (handshake(more="Transfer-Encoding: chunked\r\n") + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", 400),
        (handshake(protocol="websocket, h2c"), 400),
        (handshake(protocol="SPDY/3.1"), 400),
        (handshake("/api/v4/version") + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (
            b"POST /gitlab.agent.rpc/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n",
            501,
        ),
    ],
)
def test_smuggled_upgrades_never_reach_gitlab(gateway: GatewayProcess, cable: Cable, octets: bytes, status: int) -> None:
    with Peer(gateway.port) as peer:
        peer.send(octets)
        reply = peer.read_reply()
        assert reply.status == status
        assert reply.value("Connection") == "close"
        assert peer.read_to_end() == b""
    assert cable.handshakes == []


@pytest.fixture
def recorded(upstreams: LoopThread, tmp_path: Any) -> Iterator[tuple[GatewayProcess, FakeGitLab]]:
    gitlab = FakeGitLab()
    upstreams.run(gitlab.__aenter__())
    more = {"identities": [{"id": "anyone", "anonymous": True}], "credentials": [], "rules": []}
    process = GatewayProcess({**config(gitlab.url), **more}, tmp_path / "gateway")
    yield process, gitlab
    assert process.stop() == 0
    upstreams.run(gitlab.__aexit__(None, None, None))


def anonymous(path: str = "/-/cable", protocol: str = "websocket") -> bytes:
    return handshake(path, protocol).replace(b"PRIVATE-TOKEN: " + OWN.encode() + b"\r\n", b"")


def test_h2c_is_ignored_and_gitlab_never_sees_it(
    recorded: tuple[GatewayProcess, FakeGitLab], upstreams: LoopThread
) -> None:
    gateway, gitlab = recorded
    upstreams.call(lambda: gitlab.script(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")))
    octets = anonymous("/api/v4/version", "h2c").replace(
        b"Upgrade\r\n", b"Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n", 1
    )
    with Peer(gateway.port) as peer:
        peer.send(octets + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        reply = peer.read_reply()
        assert (reply.status, reply.value("Connection")) == (200, "close")
    sent = gitlab.requests[0].octets.lower()
    assert b"upgrade" not in sent
    assert b"http2-settings" not in sent
    assert b"pri *" not in sent


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
def test_an_unchecked_101_opens_nothing(
    recorded: tuple[GatewayProcess, FakeGitLab], upstreams: LoopThread, answer: bytes
) -> None:
    gateway, gitlab = recorded
    upstreams.call(lambda: gitlab.script(Answer(answer, then=Then.STALL)))
    with Peer(gateway.port) as peer:
        peer.send(anonymous())
        assert peer.read_reply().status == 502
        assert peer.read_to_end() == b""


def test_a_101_nobody_asked_for(recorded: tuple[GatewayProcess, FakeGitLab], upstreams: LoopThread) -> None:
    gateway, gitlab = recorded
    upstreams.call(lambda: gitlab.script(Answer(SWITCHING, then=Then.STALL)))
    with Peer(gateway.port) as peer:
        peer.send(b"GET /api/v4/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.read_reply().status == 502


SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def test_early_octets_and_half_close(recorded: tuple[GatewayProcess, FakeGitLab], upstreams: LoopThread) -> None:
    gateway, gitlab = recorded
    go = asyncio.Event()
    upstreams.call(lambda: gitlab.script(Answer(SWITCHING + b"first", go, b"last", then=Then.CLOSE)))
    with Peer(gateway.port) as peer:
        peer.send(anonymous() + b"early")
        assert peer.read_head()[0] == 101
        assert peer.read_exactly(5) == b"first"
        peer.socket.shutdown(socket.SHUT_WR)
        upstreams.call(go.set)
        assert peer.read_to_end() == b"last"


def test_draining_closes_tunnels_at_once(cable: Cable, tmp_path: Any) -> None:
    gateway = GatewayProcess(config(cable.url), tmp_path / "gateway", {"BROKER": BROKER})
    with Peer(gateway.port) as peer:
        peer.send(handshake())
        assert peer.read_head()[0] == 101
        assert gateway.stop() == 0
        peer.socket.settimeout(5)
        assert peer.read_to_end() == b""


def test_a_silent_tunnel_ends_and_too_many_are_refused(cable: Cable, tmp_path: Any) -> None:
    more = {"max_tunnels": 1, "timeouts": {"tunnel_idle": "4s"}}
    gateway = GatewayProcess(config(cable.url, **more), tmp_path / "gateway", {"BROKER": BROKER})
    try:
        with Peer(gateway.port) as peer, Peer(gateway.port) as second:
            peer.send(handshake())
            assert peer.read_head()[0] == 101
            second.send(handshake())
            assert second.read_reply().status == 503
            assert peer.read_to_end() == b""
    finally:
        gateway.stop()

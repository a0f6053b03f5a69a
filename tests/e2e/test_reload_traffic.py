"""A reload under what takes its time: TLS, bodies half sent, WebSockets, slow readers, pipelines, and other reloads."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from gateway.demo.gitlab import DemoGitLab
from tests.e2e.running import LoopThread
from tests.e2e.test_lifecycle import until
from tests.e2e.test_reload import LISTEN, SOON_S, VERSION, Reloading, Start, limited, rate_of
from tests.e2e.test_tunnels import OWN, SWITCHING, Cable, anonymous, at, token
from tests.e2e.test_workers import starting
from tests.e2e.wire import TIMEOUT_S, Peer, Reply
from tests.fakes.certificates import Authority
from tests.fakes.gitlab import Answer, FakeGitLab, Then, response

QUICK = {**LISTEN, "limits": {"idle": "1s", "request_head": "1s"}}
"""A worker that is replaced waits two seconds for its clients, and then as long as the drain lasts."""
PATIENT = {**LISTEN, "limits": {"idle": "60s", "request_head": "60s", "body_idle": "60s"}}
"""A worker that is replaced is there until its last client has left."""
OPEN: dict[str, Any] = {"identities": [{"id": "anyone", "anonymous": True}], "credentials": [], "rules": []}
MIB = 1 << 20
BODY = os.urandom(4 * MIB)
HALF = len(BODY) // 2
DOWNLOAD = b"GET /api/v4/projects/1/jobs/1/artifacts HTTP/1.1\r\nHost: x\r\n\r\n"
UPLOAD = b"PUT /api/v4/projects/1/packages/generic/a/1/%b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n"
_AT_MOST = 200


class Slow(Peer):
    """A client with little room for what it has not read, over TLS with an authority."""

    def __init__(self, port: int, authority: Authority | None = None) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(("127.0.0.1", port))
        self._unread = bytearray()
        if authority is not None:
            self.shake_hands(authority)

    def __enter__(self) -> Slow:
        return self

    def shake_hands(self, authority: Authority) -> None:
        context = ssl.create_default_context(cafile=str(authority.file))
        # An end that TLS does not tell of is none: what came may be cut.
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost", suppress_ragged_eofs=False)
        subject: Any = self.socket.getpeercert()
        self.name = dict(pair[0] for pair in subject["subject"])["commonName"]

    def upload(self, name: bytes, *, chunked: bool) -> Callable[[], None]:
        """Send half of ``BODY``; what comes back sends the rest."""
        self.send(UPLOAD % (name, b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(BODY)))
        self.send(b"%x\r\n%b" % (len(BODY), BODY[:HALF]) if chunked else BODY[:HALF])
        return lambda: self.send(BODY[HALF:] + b"\r\n0\r\n\r\n" * chunked)

    def read_body(self, *, chunked: bool) -> bytes:
        """As long as ``BODY``."""
        return b"".join(self._chunks()) if chunked else self.read_exactly(len(BODY))


class Upstream(FakeGitLab):
    """A GitLab in a thread of its own. Of downloads it sends the second half when it is told to."""

    def __init__(self, upstreams: LoopThread) -> None:
        super().__init__()
        self.run, self.call = upstreams.run, upstreams.call
        self._rest: list[asyncio.Event] = []

    def answers(self, *answers: Answer) -> None:
        self.call(lambda: self.script(*answers))

    def holds(self, fact: Callable[[FakeGitLab], bool]) -> None:
        """Waits until it does."""
        self.run(self.until(fact))

    def begin(self, peer: Peer, *, chunked: bool = False) -> None:
        """Half of a download."""
        rest = asyncio.Event()
        self._rest.append(rest)
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(BODY)
        first = b"%x\r\n%b" % (len(BODY), BODY[:HALF]) if chunked else BODY[:HALF]
        last = BODY[HALF:] + b"\r\n0\r\n\r\n" * chunked
        self.answers(Answer(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing, first, rest, last))
        peer.send(DOWNLOAD)
        assert peer.read_head()[0] == 200

    def go_on(self) -> None:
        for rest in self._rest:
            self.call(rest.set)
        self._rest.clear()


@pytest.fixture
def start(demo: DemoGitLab, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    with starting(Reloading, PATIENT, demo, redis_url, tmp_path) as begin:
        yield begin


@pytest.fixture
def gitlab(upstreams: LoopThread) -> Iterator[Upstream]:
    found = Upstream(upstreams)
    upstreams.run(found.__aenter__())
    yield found
    upstreams.run(found.__aexit__(None, None, None))


@pytest.fixture
def peers() -> Iterator[ExitStack]:
    """Closes what a test connected."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def secured(authority: Authority, name: str = "old", listen: dict[str, Any] = PATIENT) -> dict[str, Any]:
    pair = authority.issue(name)
    return {**listen, "tls": {"cert_file": str(pair.cert), "key_file": str(pair.key)}}


def renew(gateway: Reloading, rate: int = 200_002, **more: Any) -> None:
    gateway.change(limits=limited(rate), **more)
    start = len(gateway.log.all)
    gateway.reloaded()
    for worker in range(2):
        gateway.log.find(
            lambda line: ("is its last here" in line and f'"worker": {worker}' in line) or None,  # noqa: B023
            start=start,
        )


def ended(peer: Peer, reply: Reply, status: int = 200) -> None:
    """That was the last answer of its connection, and says so."""
    assert (reply.status, reply.value("Connection")) == (status, "close")
    assert peer.read_to_end() == b""
    peer.socket.close()


def uploaded(peer: Slow, gitlab: Upstream, name: bytes) -> None:
    """Answered, and GitLab has all of it."""
    ended(peer, peer.read_reply("PUT"), 201)
    (received,) = [one for one in gitlab.requests if one.target.endswith(b"/" + name)]
    assert received.body == BODY


def test_a_kept_tls_connection_outlives_its_certificate(start: Start, authority: Authority, peers: ExitStack) -> None:
    gateway = start(limits=limited(200_001), listen=secured(authority))
    kept, idle = (peers.enter_context(Slow(gateway.port, authority)) for _ in range(2))
    for peer in (kept, idle):
        peer.send(VERSION)
        assert rate_of(peer.read_reply()) == 200_001
    renew(gateway, listen=secured(authority, "new"))
    for _ in range(5):
        fresh = peers.enter_context(Slow(gateway.port, authority))
        fresh.send(VERSION)
        assert (fresh.name, rate_of(fresh.read_reply())) == ("new", 200_002)
    kept.send(VERSION)
    reply = kept.read_reply()
    assert rate_of(reply) == 200_001
    ended(kept, reply)
    idle.socket.close()
    gateway.settled()


def test_hands_may_be_shaken_while_a_worker_is_replaced(start: Start, authority: Authority, peers: ExitStack) -> None:
    """What was accepted is served, though TLS tells of it late; a second reload gives the old workers time to go wrong."""
    gateway = start(limits=limited(200_001), listen=secured(authority))
    slow = [peers.enter_context(Slow(gateway.port)) for _ in range(3)]
    for rate in (200_002, 200_003):
        renew(gateway, rate)
    for peer in slow:
        peer.shake_hands(authority)
        peer.send(VERSION)
        reply = peer.read_reply()
        assert rate_of(reply) == 200_001
        ended(peer, reply)
    gateway.settled()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("together", [1, 3])
def test_every_request_on_a_kept_connection_is_answered(
    start: Start, authority: Authority, peers: ExitStack, tls: bool, together: int
) -> None:
    """They ask in step, some of them seldom, until each was told that it was its last; or several requests in one go."""
    gateway = start(limits=limited(200_001), listen=secured(authority) if tls else PATIENT)
    asking = [peers.enter_context(Slow(gateway.port, authority if tls else None)) for _ in range(12)]
    gateway.change(limits=limited(200_002))
    gateway.hang_up()
    rounds = 0
    while asking:
        rounds += 1
        turn = [peer for number, peer in enumerate(asking) if rounds % (1 + number % 4) == 0]
        for peer in turn:
            peer.send(VERSION * together)
        for peer in turn:
            for _ in range(together):
                reply = peer.read_reply()
                assert (reply.status, rate_of(reply)) == (200, 200_001)
                if reply.value("Connection") == "close":
                    ended(peer, reply)
                    asking.remove(peer)
                    break
    assert rounds > 1
    until(lambda: gateway.count("applied") == 1, SOON_S)
    gateway.settled()


def test_what_stands_behind_the_last_answer_is_not_taken(start: Start, gitlab: Upstream, peers: ExitStack) -> None:
    """Of pipelined requests GitLab has only those that were answered: the others may be sent again."""
    gateway = start(gitlab.url, **OPEN)
    first, second = (peers.enter_context(Peer(gateway.port)) for _ in range(2))
    begun = asyncio.Event()
    gitlab.answers(Answer(begun, *response(200, b"one").pieces))
    first.send(b"GET /api/v4/projects/1/variables HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    gitlab.holds(lambda fake: len(fake.requests) == 1)
    gitlab.begin(second)
    second.send(DOWNLOAD)
    renew(gateway)
    gitlab.call(begun.set)
    reply = first.read_reply()
    assert reply.body == b"one"
    ended(first, reply)
    # Here the head had gone out before, and said nothing of an end: so there is one answer more.
    gitlab.answers(response(200, b"two"))
    gitlab.go_on()
    assert second.read_exactly(len(BODY)) == BODY
    reply = second.read_reply()
    assert reply.body == b"two"
    ended(second, reply)
    gateway.settled()


def test_bodies_half_way_arrive_whole(start: Start, gitlab: Upstream, authority: Authority, peers: ExitStack) -> None:
    gateway = start(gitlab.url, listen=secured(authority), **OPEN)
    before = gateway.workers
    getting = [peers.enter_context(Slow(gateway.port, authority)) for _ in range(4)]
    for number, peer in enumerate(getting):
        gitlab.begin(peer, chunked=number > 1)
    putting = [peers.enter_context(Slow(gateway.port, authority)) for _ in range(4)]
    gitlab.answers(*[response(201, b"{}") for _ in putting])
    rests = [peer.upload(b"%d" % number, chunked=number > 1) for number, peer in enumerate(putting)]
    gitlab.holds(lambda fake: fake.open_connections == 8)
    renew(gateway)
    gitlab.go_on()
    for number, (peer, rest) in enumerate(zip(putting, rests, strict=True)):
        rest()
        uploaded(peer, gitlab, b"%d" % number)
    for number, peer in enumerate(getting):
        assert peer.read_body(chunked=number > 1) == BODY
        peer.socket.close()
    gateway.settled()
    assert set(before).isdisjoint(gateway.workers)


@pytest.mark.parametrize("tls", [False, True])
def test_bodies_may_take_longer_than_an_idle_client(
    start: Start, gitlab: Upstream, authority: Authority, peers: ExitStack, tls: bool
) -> None:
    """Past `idle` WebSockets are ended, requests go on, and nobody's last octets end with the worker."""
    listen = secured(authority, listen=QUICK) if tls else QUICK
    gateway = start(gitlab.url, listen=listen, **OPEN)
    whose: set[str] = set()
    tunnels: list[Slow] = []
    while len(whose) < 2:
        assert len(tunnels) < _AT_MOST
        gitlab.answers(Answer(SWITCHING, then=Then.STALL))
        tunnels.append(peers.enter_context(Slow(gateway.port, authority if tls else None)))
        tunnels[-1].send(anonymous())
        _, fields = tunnels[-1].read_head()
        whose.add(dict(fields)["X-Gateway-Request-Id"].partition("-")[0])
    reading, putting = (peers.enter_context(Slow(gateway.port, authority if tls else None)) for _ in range(2))
    size = len(BODY) + 30_000
    gitlab.answers(Answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, BODY, bytes(30_000)))
    reading.send(DOWNLOAD)
    assert reading.read_head()[0] == 200
    gitlab.answers(response(201, b"{}"))
    rest = putting.upload(b"slow", chunked=True)
    renew(gateway)
    for tunnel in tunnels:
        assert tunnel.read_to_end() == b""
        tunnel.socket.close()
    rest()
    uploaded(putting, gitlab, b"slow")
    octets = bytearray()
    while len(octets) < size:
        time.sleep(0.001)  # a slow reader is what is tested: the worker is done with it long before it has all
        octets += reading.read_exactly(min(8192, size - len(octets)))
    assert (bytes(octets), reading.read_to_end()) == (BODY + bytes(30_000), b"")
    reading.socket.close()
    gateway.settled()


async def test_a_websocket_goes_on_at_the_worker_that_has_it(start: Start, upstreams: LoopThread) -> None:
    cable = Cable()
    upstreams.run(cable.start())
    try:
        people = {"identities": [{"id": "people", "gitlab_token": True}], "credentials": [], "rules": []}
        # Longer than ``BODY`` takes there and back, however busy the machine is.
        listen = {**LISTEN, "limits": {"idle": "10s", "request_head": "10s"}}
        gateway = await asyncio.to_thread(lambda: start(cable.url, listen=listen, **people))
        async with connect(at(gateway), additional_headers=token(OWN), max_size=8 * MIB) as client:
            await client.send("before")
            assert await client.recv() == "before"
            await asyncio.to_thread(renew, gateway)
            await client.send(BODY)
            assert await client.recv() == BODY
            async with connect(at(gateway), additional_headers=token(OWN)) as fresh:
                await fresh.send("fresh")
                assert await fresh.recv() == "fresh"
                await client.wait_closed()
                await asyncio.to_thread(gateway.settled)
                await fresh.send("still")
                assert await fresh.recv() == "still"
        await asyncio.to_thread(until, lambda: sorted(map(str, cable.closed)) == ["1000", "1006"], SOON_S)
    finally:
        await asyncio.to_thread(gateway.stop)
        upstreams.run(cable.close())


def test_bodies_outlive_reloads_that_come_during_reloads(start: Start, gitlab: Upstream, peers: ExitStack) -> None:
    gateway = start(gitlab.url, **OPEN)
    get, put = (peers.enter_context(Slow(gateway.port)) for _ in range(2))
    gitlab.begin(get)
    gitlab.answers(response(201, b"{}"))
    rest = put.upload(b"first", chunked=True)
    gateway.change(limits=limited(200_002))
    gateway.hang_up()
    until(lambda: len(gateway.workers) > 2, SOON_S)
    good = gateway.file.read_text()
    gateway.write("version: 1\nupstream: [\n")
    gateway.reloaded("failed")
    assert gateway.count("applied") == 1
    gateway.write(good)
    gateway.change(limits=limited(200_003))
    known = gateway.workers
    gateway.hang_up()
    until(lambda: not set(gateway.workers).issubset(known), SOON_S)
    gateway.change(limits=limited(200_004))
    gateway.hang_up()
    until(lambda: gateway.count("applied") == 3, SOON_S)
    rest()
    uploaded(put, gitlab, b"first")
    gitlab.go_on()
    assert get.read_exactly(len(BODY)) == BODY
    get.socket.close()
    gateway.settled()


def test_a_third_set_of_workers_waits_for_the_first(start: Start, gitlab: Upstream, peers: ExitStack) -> None:
    gateway = start(gitlab.url, **OPEN)
    kept = []
    for rate in (200_002, 200_003):
        kept.append(peers.enter_context(Slow(gateway.port)))
        gitlab.begin(kept[-1])
        renew(gateway, rate)
    gateway.settled(4)  # the two that serve, and of each set before the one that has a client
    gateway.change(limits=limited(200_004))
    gateway.hang_up()
    gateway.log.find(lambda line: "a new configuration waits" in line or None)
    assert len(gateway.workers) == 4
    gitlab.go_on()
    for peer in kept:
        assert peer.read_exactly(len(BODY)) == BODY
        peer.socket.close()
    until(lambda: gateway.count("applied") == 3, SOON_S)
    gateway.settled()


@pytest.mark.parametrize("replaced", [False, True])
def test_sigterm_lets_bodies_end_whatever_a_reload_has_done(
    start: Start, gitlab: Upstream, peers: ExitStack, replaced: bool
) -> None:
    gateway = start(gitlab.url, **OPEN)
    get, put = (peers.enter_context(Slow(gateway.port)) for _ in range(2))
    gitlab.begin(get)
    gitlab.answers(response(201, b"{}"))
    rest = put.upload(b"last", chunked=False)
    gitlab.holds(lambda fake: fake.open_connections == 2)
    gateway.change(limits=limited(200_002))
    if replaced:
        gateway.reloaded()
    else:
        gateway.hang_up()
        until(lambda: len(gateway.workers) > 2, SOON_S)
    gateway.process.terminate()
    gateway.log.find(lambda line: ("draining" in line and '"gateway.workers"' in line) or None)
    rest()
    uploaded(put, gitlab, b"last")
    gitlab.go_on()
    assert get.read_to_end() == BODY
    assert gateway.process.wait(SOON_S) == 0

"""Whoever is connected is counted, and has all of his answer before the gateway ends, if he takes it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.core.messages import ResponseHead
from gateway.edge import client_connections as module
from gateway.edge.client_connections import _CLOSE_S, ClientConnections
from gateway.edge.downstream import AiohttpDownstream
from gateway.edge.settings import EdgeSettings
from tests.fakes.certificates import Authority

from .wire import SOON_S, Client, Traffic, echo, request, traffic

SIZE = 8 << 20
"""More than the kernel takes for a client that reads nothing."""


class ClientConnection:
    def __init__(self, peer: str = "192.0.2.1") -> None:
        self.peer = peer
        self.ticket = -1
        self.left = False

    def has_pending_answer(self, transport: asyncio.Transport) -> bool:
        return False


class Clock:
    """A loop's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[tuple[float, Any, tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, in_s: float, call: Any, *given: Any) -> object:
        self.calls.append((in_s, call, given))
        return self

    def fire(self) -> None:
        (_, call, given) = self.calls.pop()
        call(*given)


class Wire:
    """A transport that holds so much at each look."""

    def __init__(self, *holds: int) -> None:
        self._holds = list(holds)
        self.closed = self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self._holds[0]

    def get_extra_info(self, _name: str) -> None:
        return None

    def next(self) -> None:
        del self._holds[0]

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def client_connections(clock: Clock, **settings: Any) -> ClientConnections:
    return ClientConnections(clock, EdgeSettings(**settings))  # type: ignore[arg-type]


def test_a_port_is_deserted_when_nobody_is_there_or_coming() -> None:
    """TLS tells of a connection when hands are shaken, and of none where that fails."""
    clock = Clock()
    here, one, other = client_connections(clock, request_head_s=15.0), ClientConnection(), ClientConnection()
    assert here.is_empty
    one.ticket = here.accept()
    assert not here.is_empty
    assert here.admit(one)
    clock.now += 20.0
    assert not here.is_empty
    other.ticket = here.accept()
    here.leave(one)
    assert one.left
    assert not here.is_empty
    clock.now += 14.9
    assert not here.is_empty
    clock.now += 0.2
    assert here.is_empty, "by now that handshake has failed"
    assert (here.open, here.refused) == (0, 0)


def test_whoever_never_shakes_hands_leaves_a_number_for_a_while() -> None:
    """And nothing of his connection: a storm of them costs no memory worth a word."""
    clock = Clock()
    here = client_connections(clock, request_head_s=15.0)
    for _ in range(1000):
        here.accept()
        clock.now += 0.1
    assert len(here._handshaking) <= 151
    assert {type(kept) for kept in (*here._handshaking, *here._handshaking.values())} == {int, float}


def test_one_too_many_is_refused_and_counted_out_again() -> None:
    here = client_connections(
        Clock(), max_connections=3, max_connections_per_peer=2, uncounted_peer=lambda peer: peer == "lb"
    )
    first, second, third = ClientConnection(), ClientConnection(), ClientConnection()
    assert [here.admit(one) for one in (first, second, third)] == [True, True, False]
    assert (here.open, here.refused) == (3, 1)
    here.leave(third)
    assert here.admit(ClientConnection("lb"))
    assert not here.admit(ClientConnection("lb")), "not by its peer, but in all"
    here.leave(first)
    assert (here.open, here.refused) == (3, 2)


def test_a_peer_has_the_places_back_that_it_leaves_and_is_forgotten_with_the_last() -> None:
    here = client_connections(Clock(), max_connections_per_peer=2)
    first, second, third = ClientConnection(), ClientConnection(), ClientConnection()
    assert [here.admit(one) for one in (first, second, third)] == [True, True, False]
    here.leave(third)
    assert not here.admit(third)
    here.leave(third)
    assert here.admit(ClientConnection("192.0.2.2")), "each has his own"
    here.leave(first)
    assert [here.admit(one) for one in (first, third)] == [True, False]
    for one in (first, second, third):
        here.leave(one)
    assert here._per_peer == {"192.0.2.2": 1}


def test_a_load_balancer_has_as_many_places_as_there_are() -> None:
    here = client_connections(Clock(), max_connections_per_peer=1, uncounted_peer=lambda peer: peer == "lb")
    assert [here.admit(ClientConnection("lb")) for _ in range(3)] == [True, True, True]


@pytest.mark.parametrize(
    ("holds", "looks", "cut"),
    [((0,), 0, False), ((9, 0), 1, False), ((9, 8, 1, 0), 3, False), ((9, 9), 1, True), ((9, 4, 4), 2, True)],
)
def test_whoever_takes_nothing_is_cut_off(holds: tuple[int, ...], looks: int, cut: bool) -> None:
    clock, wire, one = Clock(), Wire(*holds), ClientConnection()
    here = client_connections(clock, write_stall_s=20.0)
    one.ticket = here.accept()
    here.close_gracefully(one, wire)  # type: ignore[arg-type]
    assert wire.closed
    for _ in range(looks):
        assert not wire.aborted
        assert clock.calls[-1][0] == 20.0
        wire.next()
        clock.fire()
    assert (wire.aborted, [in_s for in_s, _, _ in clock.calls]) == (cut, [] if cut else [_CLOSE_S])


def test_who_has_left_is_looked_at_no_more() -> None:
    """What is known of his transport then means nothing."""
    clock, wire, one = Clock(), Wire(9, 4), ClientConnection()
    here = client_connections(clock)
    one.ticket = here.accept()
    here.admit(one)
    here.close_gracefully(one, wire)  # type: ignore[arg-type]
    here.leave(one)
    wire.next()
    clock.fire()
    assert (wire.aborted, clock.calls, len(here._closing)) == (False, [], 0)


def test_who_has_it_all_and_never_leaves_is_cut_off() -> None:
    """TLS says goodbye, and a client that keeps connections for later does not look for that."""
    clock = Clock()
    here = client_connections(clock)
    wires, ones = [Wire(0) for _ in range(3)], [ClientConnection() for _ in range(3)]
    for one, wire in zip(ones, wires, strict=True):
        one.ticket = here.accept()
        here.admit(one)
        here.close_gracefully(one, wire)  # type: ignore[arg-type]
        clock.now += 1.0
    here.leave(ones[0])
    assert len(clock.calls) == 1, "one timer for all"
    clock.now += _CLOSE_S - 2.0
    clock.fire()
    assert [wire.aborted for wire in wires] == [False, True, False]
    assert [in_s for in_s, _, _ in clock.calls] == [1.0]
    clock.now += 1.0
    clock.fire()
    assert [wire.aborted for wire in wires] == [False, True, True]
    assert (clock.calls, len(here._closing)) == ([], 0)
    late, last = Wire(0), ClientConnection()
    last.ticket = here.accept()
    here.close_gracefully(last, late)  # type: ignore[arg-type]
    clock.now += _CLOSE_S
    clock.fire()
    assert late.aborted


def test_a_handshake_that_failed_hides_none_that_goes_on() -> None:
    clock = Clock()
    here = client_connections(clock, request_head_s=15.0)
    here.accept()
    clock.now += 10.0
    here.accept()
    clock.now += 5.1
    assert not here.is_empty
    assert len(here._handshaking) == 1
    clock.now += 10.0
    assert here.is_empty


@pytest.mark.parametrize("pending", [True, False])
async def test_whoever_is_owed_octets_is_waited_for_and_all_others_a_moment(
    pending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer out of the cache is handed to the transport, and nobody waits for it: no request is in progress then."""
    loop, one, other = asyncio.get_running_loop(), ClientConnection(), ClientConnection()
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    monkeypatch.setattr(module, "_LAST_OCTETS_S", 0.0 if pending else 3600.0)
    here, ends_at = ClientConnections(loop, EdgeSettings()), loop.time() + (3600.0 if pending else 0.0)
    going = asyncio.ensure_future(here.wait_closed([one], [one, other], ends_at))
    for left in (one, other):
        for _ in range(5):
            await asyncio.sleep(0)
        assert going.done() == (pending and one.left)
        left.left = True
    await asyncio.wait_for(going, SOON_S)


async def test_a_drain_ends_in_its_time_though_nobody_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, one = asyncio.get_running_loop(), ClientConnection()
    monkeypatch.setattr(module, "_LAST_OCTETS_S", 0.0)
    await asyncio.wait_for(ClientConnections(loop, EdgeSettings()).wait_closed([one], [one], loop.time()), SOON_S)


# Over real sockets


async def large(down: AiohttpDownstream) -> None:
    """Written whole, whether or not anybody takes it."""
    await down.respond(ResponseHead(200, ()), bytes(SIZE), close=b"close" in down.head.target)


async def slow(port: Traffic, target: str, tls: ssl.SSLContext | None = None) -> Client:
    """A client who has asked, has little room, and reads nothing yet; the gateway is done with him."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port.port))
    named = {"ssl": tls, "server_hostname": "127.0.0.1"} if tls is not None else {}
    client = Client(*await asyncio.open_connection(sock=raw, limit=4096, **named))  # type: ignore[arg-type]
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(request(target))
    async with asyncio.timeout(SOON_S):
        while not any(transport.get_write_buffer_size() for transport in port.server._connections.values()):
            await asyncio.sleep(0)
    return client


@pytest.mark.parametrize("target", ["/kept", "/close"])
async def test_a_drain_waits_for_what_is_on_its_way_out(target: str) -> None:
    async with traffic(large) as port:
        client = await slow(port, target)
        port.server.pre_shutdown()
        ending = asyncio.ensure_future(port.server.shutdown(SOON_S))
        await asyncio.sleep(0.05)
        assert not ending.done()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        _, _, body = await client.answer()
        assert (len(body), await client.rest()) == (SIZE, b"")
        await asyncio.wait_for(ending, SOON_S)
        client.writer.close()


async def test_no_longer_than_it_may_last() -> None:
    """And who did not take it in time finds his answer cut, not ended."""
    async with traffic(large) as port:
        client = await slow(port, "/kept")
        port.server.pre_shutdown()
        await asyncio.wait_for(port.server.shutdown(0.05), SOON_S)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()
        client.writer.close()


@pytest.mark.parametrize("target", ["/kept", "/close"])
async def test_an_answer_that_nobody_reads_holds_no_place_for_ever(target: str) -> None:
    async with traffic(large, write_stall_s=0.05, idle_s=0.05) as port:
        client = await slow(port, target)
        async with asyncio.timeout(SOON_S):
            while port.server.client_connections.open:
                await asyncio.sleep(0.01)
        client.writer.close()


async def test_a_drain_waits_for_nobody_who_is_at_rest() -> None:
    async with traffic(large) as port:
        for _ in range(3):
            await port.connect()
        async with asyncio.timeout(SOON_S):
            while port.server.client_connections.open < 3:
                await asyncio.sleep(0)
            port.server.pre_shutdown()
        await asyncio.wait_for(port.server.shutdown(1000.0), SOON_S)
        assert port.server.client_connections.is_empty


@pytest.mark.parametrize(("goodbye_s", "whole"), [(0.2, False), (60.0, True)])
async def test_over_tls_a_closing_connection_waits_for_a_slow_reader(goodbye_s: float, whole: bool, tmp_path: Path) -> None:
    """The library's own patience is 30 s, however much of the answer is still to come."""
    authority = Authority(tmp_path)
    pair = authority.issue("gateway")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(pair.cert, pair.key)
    async with traffic(large, tls=theirs, goodbye_s=goodbye_s) as port:
        client = await slow(port, "/close", ssl.create_default_context(cafile=authority.file))
        await asyncio.sleep(0.5)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        if whole:
            _, _, body = await client.answer()
            assert len(body) == SIZE
        else:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ssl.SSLError)):
                await client.answer()
        client.writer.close()


async def test_over_tls_who_keeps_a_connection_that_is_over_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLOSE_S", 0.1)
    authority = Authority(tmp_path)
    pair = authority.issue("gateway")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(pair.cert, pair.key)
    async with traffic(echo, tls=theirs, idle_s=0.05) as port:
        tls = ssl.create_default_context(cafile=authority.file)
        client = Client(*await asyncio.open_connection("127.0.0.1", port.port, ssl=tls))
        await client.send(request("/kept"))
        assert (await client.answer())[0] == 200
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(SOON_S):
            while port.server.client_connections.open:
                await asyncio.sleep(0.01)
        client.writer.transport.abort()
        await asyncio.sleep(0)

"""The data port: how many connections it takes, and how it drains."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.messages import ResponseHead
from gateway.edge.downstream import AiohttpDownstream
from gateway.edge.server import TrafficServer
from tests.edge.wire import SOON_S, Client, echo, request, traffic


async def gone(server: TrafficServer) -> None:
    async with asyncio.timeout(SOON_S):
        while server.client_connections.open:
            await asyncio.sleep(0)


async def told(client: Client) -> bool:
    """Ask; returns whether the answer is the last on this connection."""
    await client.send(request())
    _, fields, _ = await client.answer()
    return (b"Connection", b"close") in fields


async def test_connections_per_peer_are_limited() -> None:
    async with traffic(echo, max_connections_per_peer=2) as port:
        clients = [await port.connect() for _ in range(2)]
        for client in clients:
            await client.send(request())
            assert (await client.answer())[0] == 200
        assert await (await port.connect()).is_cut()
        assert port.server.client_connections.refused == 1
        clients[0].writer.close()
        async with asyncio.timeout(SOON_S):
            while port.server.client_connections.open > 1:
                await asyncio.sleep(0)
        again = await port.connect()
        await again.send(request())
        assert (await again.answer())[0] == 200


async def test_a_load_balancer_is_many_clients() -> None:
    async with traffic(echo, max_connections_per_peer=1, uncounted_peer=lambda peer: peer == "127.0.0.1") as port:
        for client in [await port.connect() for _ in range(3)]:
            await client.send(request())
            assert (await client.answer())[0] == 200


async def test_connections_in_all_are_limited() -> None:
    async with traffic(echo, max_connections=1) as port:
        client = await port.connect()
        await client.send(request())
        await client.answer()
        assert await (await port.connect()).is_cut()


# Drain


async def test_clients_that_are_to_go_elsewhere_are_told_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three in all, two for each step: who is told has one more answer, and who is not, as many as ever."""
    monkeypatch.setattr("gateway.edge.server.DRAIN_STEP_S", 60)
    monkeypatch.setattr("gateway.edge.server.MOST_DRAIN_S", 90)
    steps, at_once = asyncio.Semaphore(0), asyncio.Event()
    monkeypatch.setattr(at_once, "wait", steps.acquire)
    async with traffic(echo) as port:
        clients = [await port.connect() for _ in range(4)]
        for client in clients:
            assert await told(client) is False
        clients.pop(1).writer.close()
        async with asyncio.timeout(SOON_S):
            while port.server.client_connections.open > len(clients):
                await asyncio.sleep(0)
        draining = asyncio.ensure_future(port.server.drain_gradually(at_once))
        await asyncio.sleep(0)
        assert [await told(client) for client in clients] == [True, True, False]
        assert not port.server.draining
        steps.release()
        await asyncio.sleep(0)
        assert await told(clients[2])
        steps.release()
        async with asyncio.timeout(SOON_S):
            await draining
        late = await port.connect()  # its TLS handshake took a while, for example
        assert await told(late)


async def test_clients_are_told_at_once_when_there_is_no_time() -> None:
    async with traffic(echo) as port:
        clients = [await port.connect() for _ in range(3)]
        for client in clients:
            await told(client)
        at_once = asyncio.Event()
        at_once.set()
        await port.server.drain_gradually(at_once)
        assert [await told(client) for client in clients] == [True, True, True]


async def test_with_nobody_here_there_is_nobody_to_tell() -> None:
    async with traffic(echo) as port:
        await asyncio.wait_for(port.server.drain_gradually(asyncio.Event()), SOON_S)
        assert port.server.draining


async def test_drain_lets_the_request_in_progress_end() -> None:
    told = asyncio.Event()
    begun = asyncio.Event()

    async def handler(down: AiohttpDownstream) -> None:
        begun.set()
        await told.wait()
        await down.respond(ResponseHead(200, ()), b"whole")

    async with traffic(handler) as port:
        idle, busy = await port.connect(), await port.connect()
        await busy.send(request())
        await begun.wait()
        port.server.drain()
        port.server.pre_shutdown()
        ending = asyncio.ensure_future(port.server.shutdown(SOON_S))
        assert await idle.rest() == b""
        told.set()
        status, fields, body = await busy.answer()
        assert (status, body) == (200, b"whole")
        assert (b"Connection", b"close") in fields
        assert await busy.rest() == b""
        await ending


async def test_drain_takes_the_rest_of_a_body() -> None:
    """An upload that is on its way when the drain begins is a request in progress like any other."""
    begun = asyncio.Event()

    async def handler(down: AiohttpDownstream) -> None:
        assert down.body is not None
        read = await down.body.read()
        begun.set()
        while chunk := await down.body.read():
            read += chunk
        await down.respond(ResponseHead(200, ()), read)

    async with traffic(handler) as port:
        client = await port.connect()
        await client.send(request("/", "Content-Length: 8", method="POST") + b"1234")
        await begun.wait()
        port.server.drain()
        port.server.pre_shutdown()
        ending = asyncio.ensure_future(port.server.shutdown(SOON_S))
        await asyncio.sleep(0)
        await client.send(b"5678" + request("/one-too-many"))
        assert (await client.answer())[2] == b"12345678"
        assert await client.rest() == b""
        await ending


async def test_drain_cuts_what_does_not_end() -> None:
    """After its time, and no later: whoever waits twice as long is killed with everything undone."""
    begun = asyncio.Event()
    cancelled = asyncio.Event()

    async def handler(down: AiohttpDownstream) -> None:
        await down.start(ResponseHead(200, ()))
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with traffic(handler) as port:
        client = await port.connect()
        await client.send(request())
        await begun.wait()
        loop = asyncio.get_running_loop()
        before = loop.time()
        await port.server.shutdown(2.0)
        assert 2.0 <= loop.time() - before < 3.9
        await gone(port.server)
        assert cancelled.is_set()


async def test_a_unix_socket_serves_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")
    peers: list[str] = []

    async def handler(down: AiohttpDownstream) -> None:
        peers.append(down.head.peer)
        await down.respond(ResponseHead(200, ()), b"")

    async with traffic(handler) as port:
        listening = await port.server.listen(None, 0, path=path)
        reader, writer = await asyncio.open_unix_connection(path)
        client = Client(reader, writer)
        await client.send(request())
        assert (await client.answer())[0] == 200
        writer.close()
        listening.close()
    assert peers == ["unix:"]

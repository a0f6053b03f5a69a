"""CPU time of one request to GitLab: this gateway's pool against aiohttp's ``ClientSession``, in interleaved rounds.

    python benchmarks/upstream_client.py [--rounds 7] [--requests 4000] [--concurrency 64]

A trivial origin runs in a process of its own and answers with 1 KB and a dozen GitLab-like fields. Reported are medians of
the client process's CPU time per request, and their ratio: the figure that holds on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import multiprocessing.connection
import statistics
import time
from collections.abc import Awaitable, Callable

import aiohttp
import uvloop
import yarl

from gateway.ports import UpstreamRequest
from gateway.upstream.client import HttpUpstream, UpstreamSettings

_ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sat, 21 Nov 2026 01:42:06 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1024\r\nConnection: keep-alive\r\nCache-Control: max-age=0, private, must-revalidate\r\n"
    b'ETag: W/"0123456789abcdef0123456789abcdef"\r\nVary: Origin\r\nX-Content-Type-Options: nosniff\r\n'
    b'X-Frame-Options: SAMEORIGIN\r\nX-Gitlab-Meta: {"correlation_id":"01HF6GZ","version":"1"}\r\n'
    b"X-Request-Id: 01HF6GZ\r\nX-Runtime: 0.050\r\nStrict-Transport-Security: max-age=63072000\r\n\r\n" + b"x" * 1024
)
_FIELDS = (
    (b"Host", b"gitlab.example.com"),
    (b"User-Agent", b"python-gitlab/8.0.0"),
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"PRIVATE-TOKEN", b"not-a-token"),
    (b"X-Forwarded-For", b"192.0.2.1"),
    (b"Via", b"1.1 gateway"),
)
_TARGET = b"/api/v4/projects/platform%2Fapi/issues?per_page=20&page=2"


class _Origin(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(_ANSWER * data.count(b"\r\n\r\n"))  # type: ignore[attr-defined]


def _serve(port: multiprocessing.connection.Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Origin, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


async def _round(one: Callable[[], Awaitable[None]], requests: int, concurrency: int) -> float:
    """Microseconds of CPU time per request."""

    async def worker() -> None:
        for _ in range(requests // concurrency):
            await one()

    started = time.process_time()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return (time.process_time() - started) / requests * 1e6


async def _compare(port: int, rounds: int, requests: int, concurrency: int) -> None:
    lean = HttpUpstream(UpstreamSettings(url=f"http://127.0.0.1:{port}"))
    request = UpstreamRequest(method="GET", target=_TARGET, own=_FIELDS)
    names = [(name.decode(), value.decode()) for name, value in _FIELDS]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:

        async def ours() -> None:
            reply = await lean.send(request, None)
            assert reply.whole is not None
            assert len(reply.whole) == 1024

        async def theirs() -> None:
            url = yarl.URL(f"http://127.0.0.1:{port}{_TARGET.decode()}", encoded=True)
            async with session.get(url, headers=names, allow_redirects=False) as response:
                assert len(await response.read()) == 1024

        taken: dict[str, list[float]] = {"lean": [], "ClientSession": []}
        for one in (ours, theirs):
            await _round(one, requests, concurrency)  # warm up: connections, memos
        for _ in range(rounds):
            for name, one in (("lean", ours), ("ClientSession", theirs)):
                taken[name].append(await _round(one, requests, concurrency))
    await lean.close()
    middle = {name: statistics.median(values) for name, values in taken.items()}
    for name, values in taken.items():
        print(f"{name:>14}: {middle[name]:7.1f} us per request (from {min(values):.1f} to {max(values):.1f})")
    print(f"ClientSession / lean = {middle['ClientSession'] / middle['lean']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=64)
    given = parser.parse_args()
    here, there = multiprocessing.Pipe()
    origin = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    origin.start()
    try:
        uvloop.run(_compare(here.recv(), given.rounds, given.requests, given.concurrency))
    finally:
        origin.terminate()


if __name__ == "__main__":
    main()

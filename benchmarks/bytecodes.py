"""What a request takes, counted: bytecodes and calls of the gateway's own code, however busy the machine is.

    python -m benchmarks.bytecodes [--clients 16] [--by] [--write]

Everything runs in this process: all clients ask in one turn of the event loop, GitLab's answers come over sockets, and
a Redis keeps the buckets where it is installed. Audit lines are left out, because they are rendered by the clock.
``sys.settrace`` counts; Python 3.12 and later count differently from 3.11. ``--by`` also names the functions with the most.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import uvloop

from tests.test_cost import BODY, BY_THE_CLOCK, OURS, Client, counted

from .inprocess import subject
from .page import replace_section, save_result
from .processes import Program, free_port
from .targets import LOAD_CPU

CLIENTS = 16
ROUNDS = 12
_HEAD = b"\r\n".join(
    [
        b"HTTP/1.1 200 OK",
        b"Server: nginx",
        b"Date: Sat, 21 Nov 2026 01:42:06 GMT",
        b"Content-Type: application/json",
        b"%b",
        b"Cache-Control: max-age=0, private, must-revalidate",
        b'Etag: W/"%032x"',
        b"Vary: Origin",
        b"X-Content-Type-Options: nosniff",
        b"X-Frame-Options: SAMEORIGIN",
        b'X-Gitlab-Meta: {"correlation_id":"%b","version":"1"}',
        b"X-Request-Id: %b",
        b"X-Runtime: 0.%06d",
        b"Strict-Transport-Security: max-age=63072000",
        b"Referrer-Policy: strict-origin-when-cross-origin",
        b"\r\n",
    ]
)
_ETAG = re.compile(rb"\r\nEtag: ([^\r]+)")
_PAUSE_S = 0.002
"""The pause between an answer's two pieces: enough for the first to be read by itself."""


class Line(msgspec.Struct):
    """What one kind of request takes: the median of its rounds."""

    what: str
    bytecodes: int
    calls: int


class Counts(msgspec.Struct):
    """The result as kept in benchmarks/results/bytecodes.json."""

    date: str
    python: str
    buckets: str
    clients: int
    """How many ask in one turn of the event loop."""
    lines: list[Line]


class Origin(asyncio.Protocol):
    """GitLab, as far as the octets of its answers go: a page of issues, in one piece or two, by length or in chunks."""

    chunked = False
    pieces = False

    def __init__(self) -> None:
        self._number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # it is TCP's

    def data_received(self, data: bytes) -> None:
        """Answer a request; requests have no body and come one at a time."""
        _, _, named = data.partition(b"\r\nX-Request-Id: ")
        request_id = named.partition(b"\r\n")[0]
        self._number += 1
        length, body = b"Content-Length: %d" % len(BODY), BODY
        if self.chunked:
            length, body = b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        head = _HEAD % (length, hash((id(self), self._number)) & (1 << 128) - 1, request_id, request_id, self._number)
        if self.pieces:
            self._transport.write(head + body[:100])
            asyncio.get_running_loop().call_later(_PAUSE_S, self._transport.write, body[100:])
        else:
            self._transport.write(head + body)


class Counter:
    """Counts bytecodes by function, within ``counting``."""

    def __init__(self) -> None:
        self.of: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._frame)
        try:
            yield
        finally:
            sys.settrace(before)

    def _frame(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(OURS) or code.co_filename.endswith(BY_THE_CLOCK):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        name = f"{Path(code.co_filename).relative_to(OURS)} {code.co_qualname}"

        def opcode(_frame: FrameType, event: str, _argument: object) -> Any:
            if event == "opcode":
                self.of[name] += 1
            return opcode

        return opcode


async def _ask_all(clients: list[Client], pages: Iterator[int] | None, field: bytes = b"") -> None:
    await asyncio.gather(*[client.ask(next(pages) if pages is not None else 0, field) for client in clients])


async def _line(what: str, clients: list[Client], pages: Iterator[int] | None, field: bytes = b"", *, names: bool) -> Line:
    for _ in range(20):  # so that all is done that is done once, or learnt from hundreds
        await _ask_all(clients, pages, field)
    bytecodes, calls = [], []
    functions: collections.Counter[str] = collections.Counter()
    for _ in range(ROUNDS):
        counter = Counter()
        with counter.counting():
            await _ask_all(clients, pages, field)
        functions.update(counter.of)
        bytecodes.append(sum(counter.of.values()) / len(clients))
        with counted() as count:
            await _ask_all(clients, pages, field)
        calls.append(count[0] / len(clients))
    if names:
        print(f"\n{what}")
        for name, number in functions.most_common(40):
            print(f"{number / ROUNDS / len(clients):8.0f}  {name}")
    return Line(what, round(statistics.median(bytecodes)), round(statistics.median(calls)))


@contextlib.asynccontextmanager
async def _clients(directory: Path, origin: int, store: str, number: int) -> AsyncIterator[list[Client]]:
    one = await subject(directory, origin=origin, store=store)
    clients = [Client(one.assembly, one.client.key) for _ in range(number)]
    for client in clients:
        client.connection.connection_made(client.wire)
    await asyncio.sleep(0)
    try:
        yield clients
    finally:
        for client in clients:
            client.connection.connection_lost(None)
        await one.close()


async def _counts(directory: Path, store: str, number: int, *, names: bool) -> list[Line]:
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", 0)
    origin: int = server.sockets[0].getsockname()[1]
    pages = iter(range(1, 1_000_000))
    lines = []
    async with server:
        async with _clients(directory / "pages", origin, store, number) as clients:
            lines.append(await _line("hit", clients, None, names=names))
            known = b"If-None-Match: %b\r\n" % _ETAG.search(clients[0].wire.answers[-1])[1]  # type: ignore[index]  # found
            lines.append(await _line("304", clients, None, known, names=names))
            for Origin.chunked, Origin.pieces, how in (
                (False, False, "one piece"),
                (False, True, "two pieces"),
                (True, False, "chunks"),
                (True, True, "chunks, two pieces"),
            ):
                lines.append(await _line(f"miss, stored; GitLab's answer in {how}", clients, pages, names=names))
        Origin.chunked = Origin.pieces = False
        async with _clients(directory / "paths", origin, store, number) as clients:
            for client in clients:
                client.path = b"/api/v4/projects/platform%%2Fapi/issues/%d"
            lines.append(await _line("miss, stored, at a path not asked for before", clients, pages, names=names))
    return lines


def table(result: Counts) -> str:
    """The result as Markdown."""
    rows = [f"Python {result.python}, buckets in {result.buckets}.", ""]
    rows += [f"| per request, of {result.clients} in one turn of the event loop | bytecodes | calls |", "|---|---|---|"]
    rows += [f"| {line.what} | {line.bytecodes:,} | {line.calls} |" for line in result.lines]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=CLIENTS, help="how many ask in one turn of the event loop")
    parser.add_argument("--by", action="store_true", help="name the functions that most bytecodes are of")
    parser.add_argument("--write", action="store_true", help="keep the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bytecodes-") as name, contextlib.ExitStack() as stack:
        directory, store = Path(name), "memory:"
        if shutil.which("redis-server"):
            port = free_port()
            argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", name]
            redis = Program(argv, cpu=LOAD_CPU, log=directory / "redis.log", cwd=directory)
            stack.callback(redis.stop)
            redis.wait_for_port(port)
            store = f"redis://127.0.0.1:{port}/0"
        lines = uvloop.run(_counts(directory, store, given.clients, names=given.by))
    buckets = "memory" if store == "memory:" else "Redis"
    result = Counts(time.strftime("%Y-%m-%d"), platform.python_version(), buckets, given.clients, lines)
    print(table(result))
    if given.write:
        save_result("bytecodes", result)
        replace_section("bytecodes", table(result))


if __name__ == "__main__":
    main()

"""An upstream that takes RFC 9112 at its strictest: what it cannot read beyond doubt is an anomaly, and no second guess.

Beside it, what both corpora need: a gateway process with such an upstream of its own (a ``Lane``), and a reader of answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance.import_corpus import KEY, OTHER_KEY, Piece, octets
from tests.e2e.running import GatewayProcess

HERE = Path(__file__).parent
INJECTED = "glpat-corpus-injected-0001"
HOST = b"gateway.test"

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[\x20-\x7e\x80-\xff\t])*?)[ \t]*")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")


class Anomaly(Exception):  # noqa: N818 — what was seen, not who erred
    """Octets that a strict reader refuses."""


@dataclass
class Seen:
    """A request as far as it came."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: bytes = b""
    whole: bool = False
    connection: int = 0

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def head(self) -> bytes:
        return b"\r\n".join([self.line, *(name + b": " + value for name, value in self.fields)]) + b"\r\n"

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field.lower() == name]


Serve = Callable[[Seen, asyncio.StreamWriter], Awaitable[bool]]
"""Answers one request; False ends the connection."""


@dataclass
class StrictUpstream:
    """The server. ``serve`` answers; ``reads_body`` says whether the body is read before that."""

    serve: Serve
    reads_body: Callable[[Seen], bool] = lambda _: True
    seen: list[Seen] = field(default_factory=list)
    anomalies: list[str] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def forget(self) -> None:
        self.seen, self.anomalies = [], []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while await self._request(reader, writer, number):
                pass
        except Anomaly as anomaly:
            self.anomalies.append(str(anomaly))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.LimitOverrunError:
            self.anomalies.append("a line without end")
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        line = await _line(reader)
        if not _REQUEST_LINE.fullmatch(line):
            raise Anomaly(f"request line {line[:80]!r}")
        seen = Seen(line, [], connection=number)
        while line := await _line(reader):
            found = _FIELD.fullmatch(line)
            if found is None:
                raise Anomaly(f"field line {line[:80]!r}")
            seen.fields.append((found[1], found[2]))
        credential_check = seen.target == b"/api/v4/personal_access_tokens/self"
        if not credential_check:
            self.seen.append(seen)
        lengths, codings = seen.values(b"content-length"), seen.values(b"transfer-encoding")
        if len(lengths) + len(codings) > 1 or len(seen.values(b"host")) != 1:
            raise Anomaly(f"ambiguous head {seen.head[:200]!r}")
        if self.reads_body(seen):
            if codings:
                if codings[0] != b"chunked":
                    raise Anomaly(f"transfer coding {codings[0]!r}")
                await _chunks(reader, seen)
            elif lengths:
                if not _SIZE.fullmatch(lengths[0]) or not lengths[0].isdigit():
                    raise Anomaly(f"length {lengths[0][:40]!r}")
                seen.body = await reader.readexactly(int(lengths[0]))
            seen.whole = True
        if credential_check:
            writer.write(_whose_credential())
            return True
        return await self.serve(seen, writer)


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readuntil(b"\n")
    if not line.endswith(b"\r\n") or line.count(b"\r") != 1 or b"\0" in line:
        raise Anomaly(f"line end in {line[:80]!r}")
    return line[:-2]


async def _chunks(reader: asyncio.StreamReader, seen: Seen) -> None:
    while True:
        size = await _line(reader)
        if not _SIZE.fullmatch(size):
            raise Anomaly(f"chunk size {size[:40]!r}")
        if int(size, 16) == 0:
            break
        seen.body += await reader.readexactly(int(size, 16))
        if await reader.readexactly(2) != b"\r\n":
            raise Anomaly("a chunk longer than it says")
    while line := await _line(reader):
        seen.trailers += line + b"\r\n"


def _whose_credential() -> bytes:
    body = b'{"id":1,"user_id":7,"name":"corpus","active":true,"revoked":false,"scopes":["api"]}'
    return answer(body, b"X-Gitlab-Meta: {}")


def answer(body: bytes, *lines: bytes) -> bytes:
    """A 200 with JSON."""
    head = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: %d" % len(body), *lines, b"", b""]
    return b"\r\n".join(head) + body


# One gateway, one upstream


@dataclass
class Lane:
    """A gateway process and the upstream that it alone has."""

    upstream: StrictUpstream
    gateway: GatewayProcess
    key: str
    other_key: str

    def raw(self, folded: list[Piece]) -> bytes:
        """Octets of the corpus with keys that this gateway knows."""
        return octets(folded).replace(KEY, self.key).replace(OTHER_KEY, self.other_key).encode("latin-1")

    async def canary(self, name: str) -> bytes:
        """The answer to a plain request on a connection of its own: nobody else's, if all is well."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        writer.write(f"GET /api/v4/canary/{name} HTTP/1.1\r\nHost: gateway.test\r\nPRIVATE-TOKEN: {self.key}\r\n".encode())
        writer.write(b"Connection: close\r\n\r\n")
        try:
            async with asyncio.timeout(5.0):
                return await reader.read()
        finally:
            writer.close()

    def secrets_told(self) -> list[str]:
        """Live credentials in what the gateway has written; call after ``stop``."""
        told = "".join(self.gateway.audit.all) + "".join(self.gateway.log.all)
        return [secret for secret in (self.key, self.other_key, INJECTED) if secret in told]


@contextlib.asynccontextmanager
async def lanes(count: int, directory: Path, make: Callable[[], StrictUpstream]) -> AsyncIterator[list[Lane]]:
    """So many gateways, started together; all know the same two keys."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [make() for _ in range(count)]
        for upstream in upstreams:
            await stack.enter_async_context(upstream.listening())
        first = await _start(upstreams[0], directory, 0)
        stack.push_async_callback(asyncio.to_thread, first.stop)
        keys = [await asyncio.to_thread(first.new_key, identity) for identity in ("one", "two")]
        rest = await asyncio.gather(*(_start(upstream, directory, 1 + n) for n, upstream in enumerate(upstreams[1:])))
        for process in rest:
            stack.push_async_callback(asyncio.to_thread, process.stop)
        yield [Lane(up, process, keys[0], keys[1]) for up, process in zip(upstreams, [first, *rest], strict=True)]


async def _start(upstream: StrictUpstream, directory: Path, number: int) -> GatewayProcess:
    config = {
        "upstream": {
            "url": f"http://127.0.0.1:{upstream.port}",
            "timeouts": {"connect": "2s", "first_byte": "2s", "idle": "2s"},
            "breaker": {"min_requests": 100000},  # a corpus of failures would open it
        },
        "listen": {
            "address": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "public_url": "http://gateway.test",
            "limits": {"body_idle": "1s", "request_head": "1500ms"},
        },
        "state_dir": str(directory / "state"),
        "identities": [{"id": "one", "key": "issued"}, {"id": "two", "key": "issued"}],
        "credentials": [{"id": "up", "token": "${env:UP}"}],
        "rules": [{"id": "all", "for": ["one", "two"], "use": "up", "allow": [{"access": "write"}]}],
    }
    return await asyncio.to_thread(GatewayProcess, config, directory / str(number), {"UP": INJECTED})


async def over(found: Sequence[Lane], cases: Sequence[Any], work: Callable[[Lane, Any], Awaitable[None]]) -> None:
    """Every case, on whichever lane is free."""
    waiting = list(reversed(cases))

    async def drive(lane: Lane) -> None:
        while waiting:
            await work(lane, waiting.pop())

    async with asyncio.TaskGroup() as group:
        for lane in found:
            group.create_task(drive(lane))


def cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / f"malformed_{name}.jsonl").read_text().splitlines()]


# What a client sees


@dataclass(frozen=True)
class Final:
    """One final answer, and whether all of it came."""

    status: int
    head: bytes
    body: bytes
    whole: bool


def finals(data: bytes, methods: Sequence[bytes]) -> tuple[list[Final], bytes]:
    """The final answers in a connection's octets, and what stands behind them; one that only EOF ends counts as whole."""
    found: list[Final] = []
    while data:
        line = _STATUS_LINE.match(data)
        head, end, rest = data.partition(b"\r\n\r\n")
        if line is None or not end:
            break
        status = int(line[1])
        data = rest
        if status < 200 and status != 101:
            continue
        method = methods[len(found)] if len(found) < len(methods) else b"GET"
        body, whole = b"", True
        if method != b"HEAD" and status not in {204, 304}:
            body, whole, data = _body(head.lower(), rest)
        found.append(Final(status, head, body, whole))
    return found, data


def _body(head: bytes, rest: bytes) -> tuple[bytes, bool, bytes]:
    length = re.search(rb"\r\ncontent-length:[ \t]*(\d+)", head)
    if re.search(rb"\r\ntransfer-encoding:[^\r]*chunked", head):
        body = b""
        while True:
            line, end, rest = rest.partition(b"\r\n")
            if not end or not _SIZE.fullmatch(line):
                return body, False, b""
            size = int(line, 16)
            body += rest[:size]
            if rest[size : size + 2] != b"\r\n":
                return body, False, b""
            rest = rest[size + 2 :]
            if size == 0:
                return body, True, rest
    if length is not None:
        size = int(length[1])
        return rest[:size], len(rest) >= size, rest[size:]
    return rest, True, b""

"""One request on aiohttp's server protocol, and the raw way back to its client.

aiohttp parses (with its C parser) and owns the connection; we write the answer ourselves, as one buffer, so that the fields
GitLab sent leave octet for octet. The objects here stand in for aiohttp's ``BaseRequest`` and ``Response``: the protocol
needs very little of either, and building the real ones costs more than forwarding the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import hdrs
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web import RequestPayloadError

from ..core.body_timeout import BodyTimeout
from ..core.errors import Code, Rejection, bad_request
from ..core.http_date import date_line
from ..core.messages import RequestHead, ResponseHead
from ..core.status import status_line
from ..pending_answer import Handover
from .client_socket import set_reset_on_close
from .tunnel import ClientTunnel

if TYPE_CHECKING:
    from .connection import Connection
    from .settings import EdgeSettings

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODYLESS = frozenset({204, 304})
_as_line = b": ".join
_HTTP_11 = (1, 1)
_VERSIONS = frozenset({(1, 0), (1, 1)})


class ClientGone(ConnectionError):  # noqa: N818 — a state of the world, not a fault
    """The client's connection ended before its answer did."""


class ClientBody:
    """The request's body, pulled from aiohttp's stream reader (framing already undone by its parser)."""

    __slots__ = ("_downstream", "_expects", "_idle_s", "_payload", "_timeout", "content_length")

    def __init__(
        self, downstream: AiohttpDownstream, payload: StreamReader, size: int | None, settings: EdgeSettings
    ) -> None:
        self._downstream = downstream
        self._payload = payload
        self._idle_s = settings.body_idle_s
        self._timeout = BodyTimeout(settings.body_rate, settings.body_slack_s)
        self.content_length = size
        self._expects = downstream.expects_continue

    async def read(self) -> bytes:
        """See ``ports.RequestBody``. The first call answers ``Expect: 100-continue`` (RFC 9110 §10.1.1)."""
        payload = self._payload
        if self._expects:
            # Not earlier than this: credential, permit and limits have been checked, and the body is wanted.
            self._expects = False
            self._downstream.write_interim(_CONTINUE)
        try:
            if payload.at_eof() and payload.exception() is None:
                return b""
            timeout, now = self._timeout, asyncio.get_running_loop().time
            began = now()
            async with asyncio.timeout(min(self._idle_s, timeout.left_s)):
                chunk = await payload.readany()
            timeout.note(now() - began, len(chunk))
        except TimeoutError as error:
            raise Rejection(Code.REQUEST_TIMEOUT, 408, "408 Request Timeout", close=True) from error
        except (RequestPayloadError, HttpProcessingError) as error:
            # The parser's message quotes the offending octets, so it is neither sent nor logged.
            raise bad_request(close=True) from error
        self._downstream.received_bytes += len(chunk)
        return chunk


def build_head(message: RawRequestMessage, payload: StreamReader, protocol: Connection) -> RequestHead:
    """Build the head of a parsed message; its framing is what aiohttp's parser decided."""
    length: int | None = None
    has_body = not payload.at_eof() or message.chunked
    if not message.chunked and hdrs.CONTENT_LENGTH in message.headers:
        length = int(message.headers[hdrs.CONTENT_LENGTH])
        has_body = length > 0
    version = message.version
    return RequestHead(
        method=message.method,
        target=message.path.encode("utf-8", "surrogateescape"),
        fields=message.raw_headers,
        has_body=has_body,
        content_length=length,
        http_10=version < _HTTP_11,
        tls=protocol.is_tls,
        peer=protocol.peer,
        memo=[] if not has_body and version == _HTTP_11 else None,
    )


class AiohttpDownstream:
    """``ports.Downstream`` over one aiohttp ``RequestHandler`` connection."""

    __slots__ = (
        "_chunked",
        "_mute",
        "_payload",
        "_protocol",
        "_tunnel",
        "_until_close",
        "body",
        "expects_continue",
        "handover",
        "head",
        "keep_alive",
        "received_bytes",
        "sent_bytes",
        "started",
        "version_served",
    )

    def __init__(
        self, head: RequestHead, payload: StreamReader, protocol: Connection, message: RawRequestMessage | None = None
    ) -> None:
        """``message``: the parsed message that ``head`` was made of (``build_head``); None where the request only repeats
        octets that were parsed before."""
        self.head = head
        self._protocol = protocol
        self._payload = payload
        self._tunnel: ClientTunnel | None = None
        self.started = False
        self.sent_bytes = 0
        self.received_bytes = 0
        self._chunked = False
        self._mute = False
        self._until_close = False
        """Whether the end of the connection ends the body (HTTP/1.0), unless it is a reset (RFC 9112 §8)."""
        self.keep_alive = True
        self.version_served = True
        self.expects_continue = False
        self.body: ClientBody | None = None
        self.handover: Handover | None = None
        if message is not None:
            # An upgrade is declined by answering as if it had not been asked for (RFC 9110 §7.8). What follows the request
            # may be of the other protocol, and aiohttp's parser loses some of it: nothing more is read from such a
            # connection.
            self.keep_alive = not (message.should_close or message.upgrade)
            self.version_served = message.version in _VERSIONS
            if hdrs.EXPECT in message.headers:
                self.expects_continue = message.headers[hdrs.EXPECT].lower() == "100-continue" and not head.http_10
            if head.has_body:
                self.body = ClientBody(self, payload, head.content_length, protocol.settings)

    @property
    def repeatable(self) -> bool:
        """Whether the same octets would mean the same again: HTTP/1.1, no body, nothing expected, the connection stays."""
        return self.head.memo is not None and self.keep_alive and not self.expects_continue

    @property
    def whole(self) -> bool:
        """Whether all of the request has arrived."""
        return self._payload.is_eof()

    # What aiohttp's RequestHandler calls on the request in progress.

    def _cancel(self, exc: BaseException) -> None:
        # Wakes a pending body read; the handler's task is cancelled by the protocol (handler_cancellation).
        if not self._payload.is_eof():
            self._payload.set_exception(exc)

    def refuse_version(self) -> None:
        """Answer in the handler's place that this HTTP version is not served."""
        self._protocol.refuse_version()

    # ports.Downstream

    async def respond(self, head: ResponseHead, whole: bytes, *, close: bool = False, lines: bytes = b"") -> None:
        if close:
            self.keep_alive = False
        bodyless = self.head.method == "HEAD" or head.status in _BODYLESS
        if bodyless:
            whole = b""
        data = self._serialise(head, None if bodyless else len(whole), lines, whole)
        self.started = True
        await self._send(data)

    @property
    def plain(self) -> bool:
        return self.keep_alive and self.head.memo is not None and not self._protocol.draining

    async def start(self, head: ResponseHead, *, lines: bytes = b"") -> None:
        if self.head.method == "HEAD" or head.status in _BODYLESS:
            self._mute = True
            data = self._serialise(head, None, lines)
        else:
            data = self._serialise(head, -1, lines)
        self.started = True
        transport = self._protocol.transport
        if self._until_close and transport is not None:
            set_reset_on_close(transport, True)
        await self._send(data)

    async def write(self, chunk: bytes) -> None:
        if not chunk or self._mute:
            return
        if self._chunked:
            await self._send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        else:
            await self._send(chunk)

    async def finish(self) -> None:
        if self._chunked:
            await self._send(b"0\r\n\r\n")
        elif self._until_close:
            await self._send_all()

    async def switch(self, head: ResponseHead) -> ClientTunnel:
        tunnel = self._protocol.take_over()
        self.keep_alive = False
        parts = [b"HTTP/1.1 101 Switching Protocols\r\n"]
        for name, value in head.fields:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n")
        self.started = True
        self._tunnel = tunnel
        await self._send(b"".join(parts))
        return tunnel

    def abort(self) -> None:
        self.keep_alive = False
        self._protocol.abort()

    def write_interim(self, data: bytes) -> None:
        """Send an interim (1xx) response, unless the answer has begun or the client speaks HTTP/1.0."""
        transport = self._protocol.transport
        if transport is not None and not self.started and not self.head.http_10:
            transport.write(data)

    # Writing

    def _serialise(self, head: ResponseHead, length: int | None, added: bytes = b"", whole: bytes = b"") -> bytes:
        """Status line, fields, the lines ``added``, an empty line, and ``whole``. ``length``: of a whole body, -1 for a
        streamed one, None where no body can follow."""
        lines = b"\r\n".join(map(_as_line, head.fields))
        if head.shape is not None:
            names = head.shape.place
            dated, measured = b"date" in names, b"content-length" in names
        else:
            # Searching the joined lines for the two names that matter costs half as much as a loop over the fields.
            folded = b"\n" + lines.lower()
            dated, measured = b"\ndate:" in folded, b"\ncontent-length:" in folded
        parts = [status_line(head.status), lines, b"\r\n"] if lines else [status_line(head.status)]
        if added:
            parts.append(added)
        if not dated:
            parts.append(date_line(time.time()))
        if length is not None and not measured:
            if length >= 0:
                parts.append(b"Content-Length: %d\r\n" % length)
            elif self.head.http_10:
                self.keep_alive, self._until_close = False, True  # RFC 9112 §6.3
            else:
                self._chunked = True
                parts.append(b"Transfer-Encoding: chunked\r\n")
        # An unread body may still be on its way: it must never be taken for the next request (RFC 9112 §9.3).
        if not self.keep_alive or self._protocol.draining or not self._payload.is_eof():
            self.keep_alive = False
            parts.append(b"Connection: close\r\n")
        elif self.head.http_10:
            parts.append(b"Connection: keep-alive\r\n")
        parts += (b"\r\n", whole)
        return b"".join(parts)

    async def _send(self, data: bytes) -> None:
        protocol = self._protocol
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise ClientGone("client gone")
        transport.write(data)
        self.sent_bytes += len(data)
        if protocol.writing_paused:
            await protocol.drained()

    async def _send_all(self) -> None:
        """Wait until the kernel has all of an answer that ends with its connection: a cut before that must be a reset, or
        it would pass for the end. What TLS may still hold without telling is ended by its own closing alert."""
        protocol = self._protocol
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise ClientGone("client gone")
        transport.set_write_buffer_limits(high=1, low=0)
        if protocol.writing_paused:
            await protocol.drained()
        set_reset_on_close(transport, False)


Handle = Callable[[AiohttpDownstream], Awaitable[None]]
"""Handles one request; answers it whatever happens."""

"""One client connection: aiohttp's protocol and parser, our loop around them.

Left to itself, aiohttp would do what a gateway must not: answer a parse error with the offending octets, log them, send
``100 Continue`` before anything is checked, wait for ever for a slow head, decompress bodies. Here it is kept from that.

A client that half-closes (sends a FIN after its request) counts as gone, as in nginx: it can't be told from one that left,
and a gateway that went on would keep GitLab busy for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web import PayloadAccessError, RequestPayloadError
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from ..core.errors import Rejection, bad_request, drained
from ..core.messages import RequestHead
from ..pending_answer import Handover, PendingAnswer
from ..ports import DRAINED
from .client_socket import CHECK_EVERY_S, StallTimer, cut, has_left, unsent_bytes
from .downstream import AiohttpDownstream, ClientGone, build_head
from .parsing import rejection_of, render_closing_response, version_not_supported
from .settings import EdgeSettings
from .tunnel import ClientTunnel

if TYPE_CHECKING:
    from .server import TrafficServer

log = logging.getLogger("gateway.edge")

_BLANK_LINE = b"\r\n\r\n"
_REFUSAL_S = 1.0  # how long it may take to refuse a request that draining has ended
_OVER = PayloadAccessError()  # raised to a late reader of an answered request's body


class Connection(RequestHandler):
    """One client connection."""

    __slots__ = (
        "_at_boundary",
        "_first_waiter",
        "_handover",
        "_head_deadline",
        "_idle_waiter",
        "_liveness_timer",
        "_octets",
        "_pending",
        "_server",
        "_tunnel",
        "draining",
        "is_tls",
        "left",
        "peer",
        "settings",
        "ticket",
    )

    def __init__(self, server: TrafficServer, settings: EdgeSettings, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self.settings = settings
        self.peer = ""
        self.is_tls = False
        self.left = False
        self.ticket = 0
        self.draining = False
        """Whether the next answer is to be the last."""
        self._head_deadline: asyncio.TimerHandle | None = None
        self._liveness_timer: asyncio.TimerHandle | None = None
        self._tunnel: ClientTunnel | None = None
        self._at_boundary = True
        """Whether every octet given to the parser belongs to a request that it has reported, and that has no body."""
        self._pending: tuple[PendingAnswer, RequestHead] | None = None
        """A request that ``start`` knows nothing of: buckets or GitLab are being asked on its behalf."""
        self._handover: Handover | None = None
        """The request in the queue, if it has come some way already."""
        self._idle_waiter: asyncio.Future[None] | None = None
        """The waiter during ``_pending``, out of the parser's reach: that request must be answered before any other."""
        self._octets: bytes | None = None
        """All octets of the one request that waits to be served, where they are known."""
        self._first_waiter: asyncio.Future[None] | None = None
        """The first waiter, until ``start`` awaits it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peername = transport.get_extra_info("peername")
        self.peer = peername[0] if isinstance(peername, tuple) else "unix:"
        self.is_tls = transport.get_extra_info("sslcontext") is not None
        # Made here, because the first request may come before the task that waits for it has begun.
        self._first_waiter = self._waiter = self._loop.create_future()
        super().connection_made(transport)
        self.draining = self._server.draining
        if not self._server.client_connections.admit(self):
            self.abort()
            return
        self._arm_head_deadline()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm_head_deadline()
        if self._liveness_timer is not None:
            self._liveness_timer.cancel()
        if self._tunnel is not None:
            self._tunnel.lost()
            self._task_handler = None  # not cancelled: the relay knows, perhaps better, which side ended it
        pending, self._pending = self._pending, None
        if pending is not None:
            pending[0].leave()
        handover, self._handover = self._handover, None
        if handover is not None:
            handover.leave()
        self._server.client_connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.feed(data)
            return
        if self._at_boundary and self._take_known_head(data):
            return
        known_start = self._at_boundary and not self._messages
        if self._close and self._request_in_progress and not self._force_close:
            # Draining: no further request is taken, but the body of the one in progress is still wanted.
            self._close = False
            super().data_received(data)
            self._close = True
        else:
            super().data_received(data)
        self._note_boundary(data, known_start=known_start)
        self._wake_body_reader()
        if self._head_deadline is not None:
            # The waiter is done (or gone) as soon as one whole head has been parsed.
            waiter = self._waiter
            if self._messages or waiter is None or waiter.done():
                self._disarm_head_deadline()
        elif data and self._waiting_for_head():
            self._arm_head_deadline()

    def _take_known_head(self, data: bytes) -> bool:
        """Take a request whose octets were understood before, without the parser; False: the parser must read it."""
        waiter = self._waiter
        if waiter is None or waiter.done() or self._close or self._force_close:
            return False  # a request is being served, and the next one waits its turn in the parser's queue
        server = self._server
        head = server.head_cache.head(data, self.peer, tls=self.is_tls)
        if head is None:
            return False
        if self._head_deadline is not None:
            self._disarm_head_deadline()
        self._request_count += 1
        # ``_paused`` instead of ``writing_paused``, which would cost a call.
        if not (self.draining or self._paused):
            answer = server.try_answer(head, self)
            if isinstance(answer, bytes):
                server.requests_count += 1
                assert self.transport is not None, "octets came over it"
                server.outbox.put(self.transport, answer)
                self._go_idle()
                return True
            if answer is not None:
                self._pending = (answer, head)
                self._idle_waiter, self._waiter = waiter, None
                return True
        self._messages.append((head, EMPTY_PAYLOAD))  # type: ignore[arg-type]  # ``start`` tells the two apart
        waiter.set_result(None)
        return True

    # pending_answer.AnswerSink

    def is_gone(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def deliver(self, octets: bytes | None, handover: Handover | None = None) -> None:
        pending, self._pending = self._pending, None
        waiter = self._waiter = self._idle_waiter
        if pending is None or waiter is None or waiter.done():
            return  # the connection was lost meanwhile
        if octets is None:
            self._handover = handover
            self._messages.appendleft((pending[1], EMPTY_PAYLOAD))  # type: ignore[arg-type]  # as above
            waiter.set_result(None)
            return
        server = self._server
        server.requests_count += 1
        assert self.transport is not None, "nobody is told who is gone"
        server.outbox.put(self.transport, octets)
        if self._close:
            server.outbox.flush()
            server.client_connections.close_gracefully(self, self.transport)
        elif self._messages:
            waiter.set_result(None)
        else:
            self._go_idle()

    def _note_boundary(self, data: bytes, *, known_start: bool) -> None:
        """Note whether the parser has nothing left over: a read that yielded one request without a body, and that ends with
        its first blank line, leaves nothing, whatever was read before it."""
        messages = self._messages
        self._at_boundary = (
            len(messages) == 1
            and messages[0][1] is EMPTY_PAYLOAD
            and not self._upgraded
            and not isinstance(messages[0][0], _ErrInfo)
            and data.find(_BLANK_LINE) == len(data) - len(_BLANK_LINE)
        )
        self._octets = data if self._at_boundary and known_start else None

    def _wake_body_reader(self) -> None:
        """Wake the reader of a broken body: the parser queues its error behind the request in progress, unseen."""
        current = self._current_request
        if current is not None and self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            current._cancel(RequestPayloadError("broken framing"))

    def _waiting_for_head(self) -> bool:
        """Whether octets that came can only be part of a head: no request is in progress, and none is complete."""
        waiter = self._waiter
        return not self._messages and waiter is not None and not waiter.done()

    def _arm_head_deadline(self) -> None:
        self._head_deadline = self._loop.call_later(self.settings.request_head_s, self._head_too_slow)

    def _disarm_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_too_slow(self) -> None:
        self._head_deadline = None
        if self._messages or (self._waiter is None and self._request_count > 0):
            return
        self._server.slow_heads += 1
        self.force_close()

    def eof_received(self) -> bool | None:  # type: ignore[override]  # aiohttp declares less than asyncio's protocol
        self._server.outbox.flush()  # the transport will be closed, and the outbox may hold an answer for this client
        if self._tunnel is None:
            return None
        self._tunnel.end()
        return not self.is_tls

    def _pause_transport_reading(self) -> None:
        """Pause as aiohttp does, for whatever reason; from now on, check now and then whether the client is still there."""
        super()._pause_transport_reading()
        if self._liveness_timer is None:
            self._liveness_timer = self._loop.call_later(CHECK_EVERY_S, self._check_liveness)

    def _check_liveness(self) -> None:
        self._liveness_timer = None
        transport = self.transport
        if transport is None or transport.is_closing() or not (self._reading_paused or self._buffer_paused):
            return
        current: Any = self._current_request
        if has_left(transport, whole=current.whole if current is not None else self._pending is not None):
            self.abort()
        else:
            self._liveness_timer = self._loop.call_later(CHECK_EVERY_S, self._check_liveness)

    def take_over(self) -> ClientTunnel:
        """Make the connection a tunnel: all further octets are the tunnel's, beginning with those behind the handshake."""
        if not self._upgraded or self._messages or self.transport is None:
            raise bad_request(close=True)
        if self.draining:
            raise drained(unsure=False)
        early, self._message_tail = self._message_tail, b""
        if self._buffer_paused:
            self._buffer_paused = False
            self.transport.resume_reading()
        tunnel = self._tunnel = ClientTunnel(self, self._server, early)
        self._server.tunnels.add(tunnel)
        return tunnel

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 — the signature is aiohttp's
        """Let the request in progress end; after ``timeout`` seconds tell its client that it will not, or cut its answer.

        aiohttp's own shutdown waits up to twice that long."""
        self._server.outbox.flush()
        self.close()
        task = self._task_handler
        if task is not None and (self._request_in_progress or self._pending is not None or self._handover is not None):
            done, _ = await asyncio.wait([task], timeout=timeout)
            pending, self._pending = self._pending, None
            if pending is not None:
                octets = pending[0].drained()
                if self.transport is not None:
                    self.transport.write(octets)
            elif not done:
                current = self._current_request
                task.cancel(DRAINED)
                if current is not None and current.started:  # type: ignore[attr-defined]  # a stand-in, see start()
                    self.abort()
                else:
                    await asyncio.wait([task], timeout=_REFUSAL_S)
        self.force_close()

    def has_pending_answer(self, transport: asyncio.Transport) -> bool:
        """See ``client_connections.ClientConnection``."""
        busy = self._request_in_progress or self._pending is not None or self._handover is not None
        return busy or self._task_handler is None or unsent_bytes(transport) > 0

    def force_close(self) -> None:
        """Close at once, except that what is on its way out is still sent."""
        self._server.outbox.flush()
        transport = self.transport
        super().force_close()
        if transport is not None and not self.left:
            self._server.client_connections.close_gracefully(self, transport)

    def abort(self) -> None:
        """Cut the connection; framing or a reset (``client_socket``) keeps an answer cut short from passing for whole."""
        transport = self.transport
        self._force_close = True
        if transport is not None:
            cut(transport)

    async def drained(self) -> None:
        """Wait until there is room for more; a client that takes no octet for ``write_stall_s`` is cut off."""
        while self.writing_paused and self.transport is not None:
            with StallTimer(self._loop, self.transport, self.settings.write_stall_s, self.abort):
                await self._drain_helper()
        if self.transport is None:
            raise ClientGone("client gone")

    async def start(self) -> None:
        """Serve one request after the other: aiohttp's own loop without a task, a writer and a response for each.

        Of that loop remain the queue that the parser fills and its back-pressure, the waiter that data_received wakes, the
        keep-alive timer, and lingering for an unread body. The handler runs in the connection's own task, so that losing
        the connection cancels it.
        """
        loop = self._loop
        server = self._server
        while not self._force_close:
            waiter, self._first_waiter = self._first_waiter, None
            if waiter is None and not self._messages:
                waiter = self._waiter = loop.create_future()
            if waiter is not None:
                try:
                    await waiter
                finally:
                    self._waiter = None
            server.outbox.flush()  # answers made without this task go out before what it will write
            queued: Any = self._messages.popleft()  # what the parser found, or a head that ``_take_known_head`` knew
            message, payload = queued
            repeated = type(message) is RequestHead
            if self._parser is not None and not repeated:
                self._parser.message_consumed()
            if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                self._resume_reading_if_drained()
            server.requests_count += 1
            if isinstance(message, _ErrInfo):
                self._write_early(rejection_of(message.exc, longest_line=self.max_line_size))
                break
            if repeated:
                downstream = AiohttpDownstream(message, payload, self)
                downstream.handover, self._handover = self._handover, None
            else:
                downstream = AiohttpDownstream(build_head(message, payload, self), payload, self, message)
                octets, self._octets = self._octets, None
                if octets is not None and downstream.repeatable:
                    downstream.head = server.head_cache.keep(octets, downstream.head)
            self._current_request = downstream  # type: ignore[assignment]  # our own stand-in for BaseRequest
            self._request_in_progress = True
            try:
                await server.serve(downstream)
            except asyncio.CancelledError:
                self.force_close()
                raise
            except ConnectionError:
                break
            except Exception:
                # The handler answers every expected failure itself.
                log.exception("connection fault")
                self.abort()
                break
            finally:
                self._current_request = None
                self._request_in_progress = False
                if self._tunnel is not None:
                    server.tunnels.discard(self._tunnel)
            if not payload.is_eof() and not self._force_close:
                await self._linger(payload)
                payload.set_exception(_OVER)
            if not downstream.keep_alive or self._close or self._force_close:
                break
            # Otherwise an idle connection would hold on to its last request: some kilobytes, for each of a thousand.
            del queued, message, payload, downstream
            octets = None
            self._go_idle()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self._server.client_connections.close_gracefully(self, self.transport)

    def _go_idle(self) -> None:
        """Let the connection be idle until the next request comes, for ``idle_s`` at most."""
        self._keepalive = True
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    async def _linger(self, payload: StreamReader) -> None:
        """Read the rest of an unwanted body for a while: closing now would cause a reset, and take the answer with it."""
        with contextlib.suppress(TimeoutError, RequestPayloadError, HttpProcessingError):
            async with asyncio.timeout(self._lingering_time):
                while not payload.is_eof():
                    await payload.readany()
        if not payload.is_eof():
            self.close()

    def refuse_version(self) -> None:
        """Answer a request in an HTTP version that is not served."""
        self._write_early(version_not_supported())

    def _write_early(self, rejection: Rejection) -> None:
        head, body = self._server.render_early(rejection, self.peer)
        if self.transport is not None:
            self.transport.write(render_closing_response(head, body))

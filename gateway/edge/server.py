"""The data port: makes a connection for each client, hands requests to the handler, and drains."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Callable
from math import ceil
from typing import Any, cast

from aiohttp import web

from ..core.messages import RequestHead
from ..outbox import Outbox
from ..pending_answer import AnswerSink, PendingAnswer
from .client_connections import ClientConnections
from .client_socket import cut
from .connection import Connection
from .downstream import AiohttpDownstream, Handle
from .head_cache import HeadCache
from .parsing import RenderEarly
from .settings import EdgeSettings
from .tunnel import ClientTunnel

TryAnswer = Callable[[RequestHead, AnswerSink], bytes | PendingAnswer | None]
"""Answers a head like one answered before, without a task: with the whole answer, counted and audited, if nothing has to be
waited for; else with a ``PendingAnswer`` that will hand it to the connection, or with None: the head must be handled."""


DRAIN_STEP_S = 0.05
MOST_DRAIN_S = 10.0
"""How long ``TrafficServer.drain_gradually`` takes at most: one client for each step, or more where there are many."""


def _never(_: RequestHead, __: AnswerSink) -> None:
    return None


class TrafficServer(web.Server):
    """The data port's server: makes the connections, hands their requests to the handler, and owns the drain."""

    def __init__(
        self, handle: Handle, render_early: RenderEarly, settings: EdgeSettings, try_answer: TryAnswer = _never
    ) -> None:
        super().__init__(_no_handler, handler_cancellation=True)
        self._handle = handle
        self.settings = settings
        self.render_early = render_early
        self.try_answer = try_answer
        marked_bytes = settings.field_bytes if settings.sets_correlation_aside else 0
        self.head_cache = HeadCache(target_bytes=settings.target_bytes, marked_bytes=marked_bytes)
        self.outbox = Outbox(self._loop)
        """Holds the answers to requests that needed no task."""
        self.draining = False
        """Whether every answer is the last on its connection."""
        self.client_connections = ClientConnections(self._loop, settings)
        self.slow_heads = 0
        self.tunnels: set[ClientTunnel] = set()
        self.tunnel_bytes_in = 0
        self.tunnel_bytes_out = 0
        self._protocol_options = settings.aiohttp_options()

    def __call__(self) -> Connection:
        connection = Connection(self, self.settings, loop=self._loop, **self._protocol_options)
        connection.ticket = self.client_connections.accept()
        return connection

    def drain(self) -> None:
        """Make each client's next answer the last on its connection, so that it connects anew, elsewhere."""
        self.draining = True
        for connection in self._clients():
            connection.draining = True

    async def drain_gradually(self, at_once: asyncio.Event) -> None:
        """``drain``, a few clients at a time, or the rest ``at_once``: the new connections, and with TLS their handshakes,
        are work for whoever takes them over, and would all come in the same instant."""
        here = [connection for connection in self._clients() if not connection.left]
        each = ceil(len(here) * DRAIN_STEP_S / MOST_DRAIN_S)
        remaining = (connection for connection in here if not connection.left)
        while not at_once.is_set() and (asked := list(itertools.islice(remaining, each))):
            for connection in asked:
                connection.draining = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_STEP_S):
                    await at_once.wait()
        self.drain()

    def _clients(self) -> list[Connection]:
        """The connections, and perhaps some that are over."""
        return cast("list[Connection]", self.connections)

    async def serve(self, downstream: AiohttpDownstream) -> None:
        """Handle one request, or refuse the HTTP version that it claims."""
        if downstream.version_served:
            await self._handle(downstream)
        else:
            downstream.keep_alive = False
            downstream.refuse_version()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 — the signature is aiohttp's
        """Part of draining. Once no request is in progress, what remains of ``timeout`` is for clients that take their
        answers slowly: what a transport still holds would be lost with the process."""
        ends_at = self._loop.time() + (timeout or 0.0)
        here: dict[Any, Any] = dict(self._connections)
        pending = [connection for connection, transport in here.items() if connection.has_pending_answer(transport)]
        await super().shutdown(timeout)
        await self.client_connections.wait_closed(pending, here, ends_at)
        for transport in here.values():
            cut(transport)  # not closed: an answer cut short must not pass for whole

    def stop_tunnels(self) -> None:
        """Part of draining: a tunnel has no end of its own, and its client comes back to another gateway."""
        for tunnel in list(self.tunnels):
            tunnel.stop()

    async def listen(
        self, host: str | None, port: int, *, ssl_context: ssl.SSLContext | None = None, path: str | None = None
    ) -> asyncio.Server:
        """Bind and accept."""
        loop = asyncio.get_running_loop()
        if path is not None:
            return await loop.create_unix_server(self, path, ssl=ssl_context, backlog=1024)
        times = self.settings.tls_timeouts(ssl_context)
        return await loop.create_server(self, host, port, ssl=ssl_context, backlog=1024, reuse_address=True, **times)


async def _no_handler(_request: Any) -> Any:
    """Stand in for the handler that aiohttp requires: ``Connection.start`` calls ours."""
    raise AssertionError("Connection.start serves")

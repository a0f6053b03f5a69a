"""Receives GitLab's webhooks and system hooks at one path of the data port, and purges from the cache what they report.

Every other request goes on to the gateway untouched. A hook's answer is small and quick: GitLab waits ten seconds, and
disables a hook that fails again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..cache.hook_watch import HookWatch
from ..core.cache_tags import ALL
from ..core.client_address import TrustedPeers
from ..core.errors import Code, Rejection
from ..core.exchange import Exchange, note_cut
from ..core.hook_events import HookEvent, read_event
from ..core.hook_verifier import Deliveries, HookVerifier
from ..core.messages import ResponseHead
from ..core.project_names import ProjectNames
from ..ports import DRAINED, CacheStore, Downstream

MAX_BODY_BYTES = 2 << 20
OPERATION = "hook"
"""The name of the operation in audit lines and metrics."""

_JSON = (b"Content-Type", b"application/json")
_LATER = (b"Retry-After", b"5")
_DRAINED = b'{"message":"the gateway is shutting down: send it again"}'


class ExchangeRecorder(Protocol):
    """Where exchanges are recorded (``pipeline.Gateway``)."""

    monotonic: Callable[[], float]

    def mint_id(self) -> str: ...
    def observe(self, x: Exchange) -> None: ...


class HookReceiver:
    """Takes hooks out of the requests, in front of a gateway's ``handle``.

    Args:
        path: The path of the hooks, as configured in GitLab.
        verifier: Checks that a hook comes from GitLab.
        peers: The proxies that are trusted to name the client's address.
        store: The cache's store: a purge there reaches every gateway that shares it.
        watch: Records each hook that arrives.
        names: The project names known: a hook carries both a project's number and its path.
        wall: Unix seconds.
        hold_s: How long after a purge nothing that it removed is stored again.
        recorder: The gateway, which records the exchanges.
        handle: Handles every other request.
    """

    def __init__(
        self,
        path: str,
        verifier: HookVerifier,
        peers: TrustedPeers,
        *,
        store: CacheStore,
        watch: HookWatch,
        names: ProjectNames,
        wall: Callable[[], float],
        hold_s: float,
        recorder: ExchangeRecorder,
        handle: Callable[[Downstream], Awaitable[None]],
    ) -> None:
        self._path = path.encode("ascii")
        self._verifier = verifier
        self._peers = peers
        self._store = store
        self._watch = watch
        self._names = names
        self._wall = wall
        self._hold_s = hold_s
        self._recorder = recorder
        self._handle = handle
        self._seen = Deliveries()
        self.purged_total = 0
        self.refused_total = 0
        self.repeated_total = 0

    async def handle(self, down: Downstream) -> None:
        """Handle a hook, or pass the request on to the gateway."""
        if down.head.target.partition(b"?")[0] != self._path:
            await self._handle(down)
            return
        peer = self._peers.client(down.head.peer, down.head.fields)
        x = Exchange(self._recorder.mint_id(), self._recorder.monotonic(), down.head.method, peer)
        x.operation, x.target = OPERATION, self._path
        try:
            x.status, body, unread = await self._receive(down, x)
            fields = (_JSON, (b"Allow", b"POST")) if x.status == 405 else (_JSON,)
            await down.respond(ResponseHead(x.status, fields, b""), body, close=unread)
        except (ConnectionError, asyncio.CancelledError) as gone:
            if note_cut(x, drained=gone.args == (DRAINED,), started=down.started):
                x.status = 503
                await down.respond(ResponseHead(503, (_JSON, _LATER), b""), _DRAINED, close=True)
            raise
        except Exception:
            x.status, x.code = 500, Code.INTERNAL.value  # our own fault, which ends the connection
            raise
        finally:
            x.bytes_in, x.bytes_out = down.received_bytes, down.sent_bytes
            self._recorder.observe(x)

    async def _receive(self, down: Downstream, x: Exchange) -> tuple[int, bytes, bool]:
        """Status, body of the answer, and whether some of the request may be unread: then its connection ends."""
        if down.head.method != "POST":
            return 405, b'{"message":"405 Method Not Allowed"}', True
        fields, now = down.head.fields, self._wall()
        if not self._verifier.needs_body and not self._verifier.is_authentic(fields, b"", now):
            return self._refused(x)
        try:
            body = await _read_body(down)
        except Rejection as broken:
            x.code = broken.code.value
            return broken.status, b'{"message":"the webhook did not arrive whole"}', True
        if self._verifier.needs_body and (body is None or not self._verifier.is_authentic(fields, body, now)):
            return self._refused(x)
        name = Deliveries.name(fields, body or b"")
        if body is not None and name is not None and name in self._seen:
            self.repeated_total += 1
            return 200, b'{"message":"seen before"}', False
        event = read_event(body, self._names) if body is not None else HookEvent("", (ALL,))
        x.principal, x.rule = "gitlab", f"hook:{event.name}" if event.name.isidentifier() else "hook"
        await self._store.purge(event.tags, self._hold_s)
        await self._watch.record_hook()
        if name is not None:
            self._seen.add(name)
        self.purged_total += 1
        return 200, b'{"message":"purged"}', body is None

    def _refused(self, x: Exchange) -> tuple[int, bytes, bool]:
        self.refused_total += 1
        x.code = "unauthenticated"
        return 401, b'{"message":"401 Unauthorized"}', True


async def _read_body(down: Downstream) -> bytes | None:
    """The body; None: it is longer than ``MAX_BODY_BYTES``."""
    if down.body is None:
        return b""
    if (down.body.content_length or 0) > MAX_BODY_BYTES:
        return None
    pieces = bytearray()
    while piece := await down.body.read():
        pieces += piece
        if len(pieces) > MAX_BODY_BYTES:
            return None
    return bytes(pieces)

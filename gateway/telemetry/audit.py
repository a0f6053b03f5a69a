"""The audit: one JSON line per request, whatever became of it.

The pipeline hands over the finished Exchange. Lines are rendered in batches, after their requests, and written in a thread
of their own (``audit_writer``), so that a slow sink never stalls the event loop. Schema: docs/operations.md, "The audit
line".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import msgspec
import structlog

from ..core.audit_chain import CLOSED, OPENED, Chain
from ..core.errors import Code, Rejection, Source
from ..core.exchange import Exchange
from .audit_line import SCHEMA, Finished, LineRenderer, encode, line_of, timestamp
from .audit_writer import AuditWriter

log = logging.getLogger("gateway.audit")

FLUSH_S = 0.025
"""Half of the time whose lines a killed process may lose; the other half is for the writer's thread."""
CHECKPOINT_S = 60.0
FORWARDING, LOST = "forwarding", "lines_lost"
"""Events other than a request's end: a request is about to go up (``durability: before_write``); lines found no room."""
_NOT_YET = frozenset({"schema", "time", "status", "duration_ms", "bytes_in", "bytes_out"})
_SLICE = 8  # rendered once there are so many: requests that come meanwhile wait some 0.1 ms, not for all of a flush
_MOST_READY_BYTES = 256 << 10
_LINK_BYTES = 128  # what the chain adds to a line, at most


class _Batch:
    """The logger object behind structlog: collects rendered lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def msg(self, lines: list[bytes]) -> None:
        self.lines += lines


class _AuditLogger(structlog.BoundLoggerBase):
    """structlog without levels, context or copies: one processor, one call per batch, bytes out."""

    def lines(self, events: list[Finished]) -> None:
        self._proxy_to_logger("msg", events)  # type: ignore[arg-type]  # its one processor knows what it gets


class AuditLog:
    """Observes finished exchanges, and writes a line for each.

    Args:
        writer: Takes the lines; closed with the log.
        wall: The time in Unix seconds.
        monotonic: The clock of ``Exchange.started_at``.
        chain: Links the lines; None: they are not linked.
        after: The MAC of the last line that the sink, or the spool, already holds.
        before_write: Whether a request that changes something waits until its line is durable.
        blocks_reads: Whether nothing goes up while there is nowhere to put lines; otherwise only requests that change
            something are refused.
    """

    def __init__(
        self,
        writer: AuditWriter,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        chain: Chain | None = None,
        after: str = "",
        before_write: bool = False,
        blocks_reads: bool = False,
    ) -> None:
        self.writer = writer
        self._wall = wall
        self._monotonic = monotonic
        self._pending: list[Finished] = []
        self._ready: list[bytes] = []
        self._ready_bytes = 0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._batch = _Batch()
        self._renderer = LineRenderer()
        self._log = _AuditLogger(self._batch, processors=[self._rendered], context={})
        self._before_write = before_write
        self._blocks_reads = blocks_reads
        self._refused = 0
        self._unreported = 0
        """How many lines found no room, and how many of these no line of the audit reports yet."""
        self.events = 0
        self.closed = False
        """Whether nothing may go up, not even reads. A plain attribute, because every request looks at it."""
        self._chain = chain
        self._checkpoint_at = monotonic() + CHECKPOINT_S
        if chain is not None:
            self._write_event(OPENED, {"after": after} if after else {})

    @property
    def pending(self) -> int:
        """How many exchanges have not been rendered yet."""
        return len(self._pending)

    @property
    def dropped(self) -> int:
        """How many lines are lost."""
        return self._refused + self.writer.dropped

    def observe(self, exchange: Exchange, duration_s: float | None = None) -> None:
        """Take one finished exchange; never blocks, never raises. ``duration_s`` None: it ends now."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)
        pending = self._pending
        pending.append((exchange, self._monotonic() - exchange.started_at if duration_s is None else duration_s))
        if len(pending) == _SLICE:
            asyncio.get_running_loop().call_soon(self._render_ahead)

    def _render_ahead(self) -> None:
        """Render now what the flush would have to. It is offered at the flush, so that the writer is woken only once."""
        batch, self._pending = self._pending, []
        self._render(batch, more=True)

    def _flush(self) -> None:
        self._timer = None
        batch, self._pending = self._pending, []
        self._render(batch)

    def _rendered(
        self, _logger: object, _name: str, event: MutableMapping[str, Any]
    ) -> tuple[tuple[list[bytes]], dict[str, Any]]:
        return (self._renderer.render(event["event"], self._wall() - self._monotonic()),), {}

    def _render(self, batch: list[Finished], *, more: bool = False) -> None:
        """Render ``batch`` and offer it to the writer; if ``more`` is to follow, offer it only once there is much."""
        lines = self._batch.lines
        if batch:
            self._log.lines(batch)
        self.events += len(lines)
        data = self._link_lines(lines) if lines else b""
        lines.clear()
        if data:
            self._ready.append(data)
            self._ready_bytes += len(data)
        if more and self._ready_bytes < _MOST_READY_BYTES:
            return
        if self._ready:
            self.writer.offer(self._take_ready())
        if self._chain is not None and self._monotonic() >= self._checkpoint_at:
            self._checkpoint()
        self.closed = self._blocks_reads and self.writer.blocked

    def _take_ready(self) -> bytes:
        """Take what is linked but not offered yet: it must precede whatever is linked after it."""
        data = b"".join(self._ready)
        self._ready.clear()
        self._ready_bytes = 0
        return data

    def _link_lines(self, lines: list[bytes], *, closing: bool = False) -> bytes:
        """``lines`` in octets, linked as the next of the audit; empty if the writer has no room for them.

        Lines are linked only if there is room, so the chain has no gaps; and it reports how many lines found no room.
        """
        size = self._ready_bytes + sum(map(len, lines)) + _LINK_BYTES * (len(lines) + 1 + closing)
        if not self.writer.has_room(size):
            if not self._unreported:
                log.error("the audit has no room, in its sink or on disk: lines are being dropped")
            self._refused += len(lines)
            self._unreported += len(lines)
            return b""
        if self._unreported:
            lines = [self._event(LOST, {"count": self._unreported}), *lines]
            self._unreported = 0
        if self._chain is not None:
            link, last = self._chain.link, self._chain.close if closing else self._chain.link
            lines = [*map(link, lines[:-1]), last(lines[-1])]
        return b"\n".join(lines) + b"\n"

    def _event(self, event: str, more: Mapping[str, object]) -> bytes:
        """A line for an ``event`` rather than for a request's end."""
        return encode({"schema": SCHEMA, "time": timestamp(self._wall()), "event": event, **more})

    def _write_event(self, event: str, more: Mapping[str, object]) -> None:
        data = self._link_lines([self._event(event, more)], closing=event == CLOSED)
        if data:
            self.writer.offer(self._take_ready() + data)

    def _checkpoint(self) -> None:
        """Log how far the chain is. Kept apart from the audit, that reveals whether lines are missing at its end."""
        assert self._chain is not None
        self._checkpoint_at = self._monotonic() + CHECKPOINT_S
        log.info("the audit's chain is at %s", self._chain.head)

    async def admit(self, x: Exchange) -> None:
        """Let ``x`` go up, with its line on disk first if so configured.

        Raises Rejection AUDIT_UNAVAILABLE if there is no room for lines, or if this line does not get to disk.
        """
        if self.writer.blocked:
            raise _unavailable()
        if not self._before_write:
            return
        took_s = self._monotonic() - x.started_at
        facts = msgspec.to_builtins(line_of(x, self._wall() - took_s, took_s))
        known = {name: value for name, value in facts.items() if name not in _NOT_YET}
        self.events += 1
        data = self._link_lines([self._event(FORWARDING, known)])
        if not data or not await self.writer.write_durably(self._take_ready() + data):
            raise _unavailable()

    def close(self) -> None:
        """Write what is pending, then stop. Blocks until the sink or the spool has it, for at most 5 s."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._pending = self._pending, []
        self._render(batch)
        if self._chain is not None:
            self._write_event(CLOSED, {})
            self._checkpoint()
        self.writer.close()


def _unavailable() -> Rejection:
    return Rejection(
        Code.AUDIT_UNAVAILABLE,
        503,
        "503 Service Unavailable",
        headers=((b"Retry-After", b"5"),),
        source=Source.INTERNAL,
        proxy_error="destination_unavailable",
    )

"""The audit: one JSON line per request, whatever became of it.

The pipeline hands over the finished Exchange; rendering and writing happen in batches off the request's way. A batch is at
most 50 ms old when it is rendered and is written by a thread of its own, so that a slow sink never stalls the event loop.
Schema: docs/operations.md, "The audit line".
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

import msgspec
import structlog

from ..core.audit_chain import CLOSED, OPENED, Chain, mac_of
from ..core.exchange import Exchange
from ..core.redaction import redact

log = logging.getLogger("gateway.audit")

SCHEMA = 1
FLUSH_S = 0.05
CHECKPOINT_S = 60.0
_LONGEST_LINE = 1 << 18
_SLICE = 256  # lines rendered in one turn of the event loop: some 3 ms
_QUEUED_BATCHES = 4096  # batches of at most _SLICE lines waiting for the sink


_LINE_END = ord("\n")


class Sink(Protocol):
    """Where whole lines go."""

    def write(self, lines: bytes) -> None: ...

    def close(self) -> None: ...


class StreamSink:
    """A file descriptor: standard output, or a file opened for appending.

    Nothing is buffered: what failed was dropped and counted, and must not come again at the next write or at the end.
    """

    def __init__(self, descriptor: int, *, owned: bool) -> None:
        self._descriptor = descriptor
        self._owned = owned
        self._torn = False

    def write(self, lines: bytes) -> None:
        """All of it, or OSError. A line that a failure cut short is ended before the next, so that it spoils no other."""
        left = memoryview(b"\n" + lines if self._torn else lines)
        while left:
            written = os.write(self._descriptor, left)
            self._torn = left[written - 1] != _LINE_END
            left = left[written:]

    def close(self) -> None:
        if self._owned:
            os.close(self._descriptor)


class NullSink:
    """No audit asked for."""

    def write(self, lines: bytes) -> None:
        return

    def close(self) -> None:
        return


def open_sink(where: str) -> Sink:
    """``stdout``, ``stderr``, ``off`` or ``file:/path`` (created 0600, appended to).

    Raises OSError when the file can't be opened.
    """
    if where == "stdout":
        return StreamSink(sys.stdout.fileno(), owned=False)
    if where == "stderr":
        return StreamSink(sys.stderr.fileno(), owned=False)
    if where == "off":
        return NullSink()
    path = where.removeprefix("file:")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return StreamSink(descriptor, owned=True)


def last_mac(where: str) -> str:
    """Of the last line of a file sink, for the chain that continues there; empty where there is none, or no file."""
    if not where.startswith("file:"):
        return ""
    with contextlib.suppress(FileNotFoundError), open(where.removeprefix("file:"), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LONGEST_LINE))
        lines = file.read().splitlines()
        return mac_of(lines[-1]) if lines else ""
    return ""


_encode = msgspec.json.Encoder().encode


def _lines(_logger: object, _name: str, event: MutableMapping[str, Any]) -> tuple[tuple[list[bytes]], dict[str, Any]]:
    return ([_encode(one) for one in event["event"]],), {}


class _Batch:
    """structlog's logger object: takes rendered lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def msg(self, lines: list[bytes]) -> None:
        self.lines += lines


class _AuditLogger(structlog.BoundLoggerBase):
    """structlog without levels, context or copies: one processor, one call a batch, bytes out."""

    def lines(self, events: list[AuditLine]) -> None:
        self._proxy_to_logger("msg", events)  # type: ignore[arg-type]  # its one processor knows what it gets


class AuditLog:
    """Observes finished exchanges.

    Args:
        sink: Where the lines go.
        wall: Unix seconds.
        monotonic: The clock of ``Exchange.started_at``.
        chain: Links the lines; None: they stand alone.
        after: ``last_mac`` of what the sink holds already.
        queued_batches: How many batches of at most 256 lines wait for a slow sink before lines are dropped.
    """

    def __init__(
        self,
        sink: Sink,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        chain: Chain | None = None,
        after: str = "",
        queued_batches: int = _QUEUED_BATCHES,
    ) -> None:
        self._sink = sink
        self._wall = wall
        self._monotonic = monotonic
        self._pending: list[tuple[Exchange, float, float]] = []
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._batch = _Batch()
        self._log = _AuditLogger(self._batch, processors=[_lines], context={})
        self._queue: queue.Queue[bytes | None] = queue.Queue(queued_batches)
        self.events = 0
        self.dropped = 0
        self.failing = False
        self._chain = chain
        self._checkpoint_at = monotonic() + CHECKPOINT_S
        if chain is not None:
            self._mark(OPENED, {"after": after} if after else {})
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    def observe(self, exchange: Exchange) -> None:
        """Take one finished exchange; never blocks, never raises."""
        self._pending.append((exchange, self._wall(), self._monotonic()))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        batch, self._pending = self._pending[:_SLICE], self._pending[_SLICE:]
        self._render(batch)
        if self._pending:
            self._timer = asyncio.get_running_loop().call_soon(self._flush)

    def _render(self, batch: list[tuple[Exchange, float, float]]) -> None:
        lines = self._batch.lines
        if batch:
            self._log.lines([line_of(*finished) for finished in batch])
        self.events += len(lines)
        if self._chain is not None:
            lines[:] = [self._chain.link(line) for line in lines]
            if self._monotonic() >= self._checkpoint_at:
                self._checkpoint()
        data = b"\n".join(lines) + b"\n" if lines else b""
        count = len(lines)
        lines.clear()
        if not data:
            return
        try:
            self._queue.put_nowait(data)
        except queue.Full:
            self.dropped += count
            if not self.failing:
                self.failing = True
                log.error("the audit sink does not keep up; lines are being dropped")

    def _mark(self, event: str, more: dict[str, str]) -> None:
        """A line of the chain's own."""
        assert self._chain is not None
        line = self._chain.link(_encode({"schema": SCHEMA, "time": _timestamp(self._wall()), "event": event, **more}))
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(line + b"\n")

    def _checkpoint(self) -> None:
        """Kept apart from the audit, so that lines missing at its end are found."""
        assert self._chain is not None
        self._checkpoint_at = self._monotonic() + CHECKPOINT_S
        log.info("the audit's chain is at %s", self._chain.head)

    def _write(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                self._sink.write(data)
                self.failing = False
            except (OSError, ValueError) as error:
                self.dropped += data.count(b"\n")
                if not self.failing:
                    self.failing = True
                    log.error("the audit sink fails: %s", type(error).__name__)

    def close(self) -> None:
        """Write what is pending, then stop. Blocks until the sink has it, at most 5 s."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._pending:
            batch, self._pending = self._pending[:_SLICE], self._pending[_SLICE:]
            self._render(batch)
        if self._chain is not None:
            self._mark(CLOSED, {})
            self._checkpoint()
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=5)
        self._thread.join(5)
        self._sink.close()


@functools.lru_cache(2048)
def _text(value: bytes) -> str:
    # Remembered, because callers repeat themselves: redacting a target takes as long as the rest of its line.
    return redact(value).decode("utf-8", "backslashreplace")


class AuditLine(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The audit line's members, in their order. Empty facts are left out; names are stable within one ``schema``."""

    schema: int
    time: str
    request_id: str
    peer: str
    method: str
    target: str
    operation: str
    status: int
    duration_ms: float
    bytes_in: int
    bytes_out: int
    code: str = ""
    identity: str = ""
    principal: str = ""
    principal_kind: str = ""
    team: str = ""
    credential_kind: str = ""
    credential_fingerprint: str = ""
    rule: str = ""
    limit_shadow: str = ""
    cache_status: str = ""
    cache_reason: str = ""
    cache_stored: str = ""
    aborted: str = ""
    sudo: str = ""
    upstream_credential: str = ""
    limit: str = ""
    limit_remaining: float | msgspec.UnsetType = msgspec.UNSET
    upstream_status: int | msgspec.UnsetType = msgspec.UNSET
    upstream_ms: float | msgspec.UnsetType = msgspec.UNSET
    upstream_connect_ms: float | msgspec.UnsetType = msgspec.UNSET
    upstream_first_byte_ms: float | msgspec.UnsetType = msgspec.UNSET
    upstream_request_id: str = ""
    user_agent: str = ""


def line_of(x: Exchange, ended_at: float, ended_mono: float) -> AuditLine:
    """What is told of one exchange. Positions instead of names: they are a third of the cost."""
    duration_s = ended_mono - x.started_at
    asked = bool(x.upstream_status or x.upstream_s)
    unset = msgspec.UNSET
    return AuditLine(
        SCHEMA,
        _timestamp(ended_at - duration_s),
        x.request_id,
        x.peer,
        x.method,
        _text(x.target),
        x.operation,
        x.status,
        round(duration_s * 1000, 3),
        x.bytes_in,
        x.bytes_out,
        x.code,
        x.identity,
        x.principal,
        x.principal_kind,
        x.team,
        x.credential_kind,
        x.credential_fingerprint,
        x.rule,
        x.limit_shadow,
        x.cache_status,
        x.cache_reason,
        x.cache_stored,
        x.aborted,
        # A caller's own words, as the target is: a name, or a token put in the wrong field.
        _text(x.sudo.encode("utf-8", "surrogateescape")) if x.sudo else "",
        x.permit_use,
        x.limit_id,
        round(x.limit_remaining, 3) if x.limit_id else unset,
        x.upstream_status if asked else unset,
        round(x.upstream_s * 1000, 3) if asked else unset,
        round(x.upstream_connect_s * 1000, 3) if asked else unset,
        round(x.upstream_first_byte_s * 1000, 3) if asked else unset,
        x.upstream_request_id,
        _text(x.user_agent) if x.user_agent else "",
    )


_second = 0
_prefix = ""


def _timestamp(at: float) -> str:
    """RFC 3339, UTC, milliseconds; the part down to the second is formatted once a second."""
    global _second, _prefix  # noqa: PLW0603 — a one-entry memo
    second = int(at)
    if second != _second:
        _prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        _second = second
    return f"{_prefix}{int((at - second) * 1000):03d}Z"

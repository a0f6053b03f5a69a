"""``ports.Upstream`` over our own connections: admit, connect or reuse, send, retry once where that is safe.

send ── place ── breaker ── idle connection or a new one ── exchange ── Reply
         503       503        502 / 504 (errors.py)          502 / 504
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable

import msgspec

from ..core.breaker import REFUSED, Breaker, BreakerSettings, BreakerState
from ..core.errors import Code, Rejection, bad_request
from ..core.messages import Fields
from ..outbox import Outbox
from ..ports import Admission, Cancellable, RepeatedFields, ReplyCallback, RequestBody, UpstreamRequest
from ..reply import Reply
from .connection import Connection
from .errors import LOCAL_FAILURES, Failure, UpstreamFailure, rejection
from .head_forms import HeadForms
from .origin import Dialer, parse_origin, tls_context
from .parking import parked
from .pool import Pool
from .request import render_get, render_head
from .streams import Body
from .whole_body import collect, is_small

log = logging.getLogger("gateway.upstream")

_CLOSED, _OPEN = BreakerState.CLOSED, BreakerState.OPEN
_RETRYABLE = frozenset({"GET", "HEAD", "OPTIONS"})
# Retries are limited to a tenth of requests: with more, a struggling GitLab would be hit twice. Unused ones are saved, up
# to as many as the keep-alive connections that a restart may break.
_RETRY_BUDGET_MAX = 100.0


class UpstreamSettings(msgspec.Struct, frozen=True):
    """The ``upstream`` section of the configuration. Durations are in seconds."""

    url: str
    connect_s: float = 2.0
    """The time limit for name look-up, TCP and TLS together."""
    first_byte_s: float = 60.0
    """The time limit from the end of the request to a whole final head."""
    idle_s: float = 300.0
    """The time limit between octets of a body, either way."""
    max_in_flight: int = 200
    max_waiting: int = 200
    max_tunnels: int = 1000
    """The most WebSockets at one time, those in the handshake included; once open, they hold no place among the requests.
    Also the most requests that merely wait and hold none meanwhile."""
    wait_s: float = 5.0
    """How long a request may wait for a place."""
    max_idle: int = 100
    keepalive_s: float = 4.0
    """How long a connection is kept unused: shorter than any GitLab's own limit, so that the gateway closes it first."""
    retry_ratio: float = 0.1
    ca_file: str | None = None
    """A PEM file with the authorities to trust, and no others. None: the system's."""
    foreign_codings: bool = False
    """Whether answers in an unregistered transfer coding are relayed until the upstream closes. For a plain cache in front
    of any origin; GitLab sends no such answers."""
    breaker: BreakerSettings | None = BreakerSettings()
    """None: no circuit breaker. An answer is never a failure, whatever GitLab says in it."""


class HttpUpstream:
    """The HTTP client, see ``ports.Upstream``. One per event loop; the figures are for metrics."""

    def __init__(self, settings: UpstreamSettings) -> None:
        """Raises ValueError for a URL that can't be used, OSError for such a ``ca_file``."""
        self._settings = settings
        self.origin = parse_origin(settings.url)
        self._tls = tls_context(settings.ca_file) if self.origin.tls else None
        self._breaker = Breaker(settings.breaker, self._log_change) if settings.breaker is not None else None
        self._last_failure = Failure.RESET
        self._failing = False
        """Whether the log has said that the breaker is open."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: Pool | None = None
        self._dialer: Dialer | None = None
        self._outbox: Outbox | None = None
        self._retry_budget = 1.0
        self._forms = HeadForms()
        self.connects_total = 0
        self.retries_total = 0

    async def send(self, request: UpstreamRequest, body: RequestBody | None, *, counted: bool = False) -> Reply:
        """As ``ports.Upstream.send``. ``counted``: the request is a handshake that is already counted among those under
        way."""
        pool = self._pool or self._start()
        if request.upgrade and not counted:
            return await self._send_handshake(pool, request, body)
        loop: asyncio.AbstractEventLoop = self._loop  # type: ignore[assignment]  # set together with the pool
        octets = render_head(request, has_body=body is not None)
        if body is not None:
            self._refuse_early(pool, loop.time())
        length = request.content_length
        if body is not None and length is not None and is_small(length):
            # Before a place is taken: a client that sends slowly holds none. Head and body then go out in one write.
            octets += await collect(body, length)
            body = None
            retryable = False
        else:
            retryable = body is None and request.method in _RETRYABLE
        if not pool.try_acquire_place():
            self._refuse_early(pool, loop.time())
            await self._acquire_place(pool)
        now = loop.time()
        breaker = self._breaker
        ticket = breaker.admit(now) if breaker is not None else 0
        if ticket == REFUSED:
            pool.release_place()
            raise self._breaker_open(now)
        if self._retry_budget < _RETRY_BUDGET_MAX:
            self._retry_budget += self._settings.retry_ratio
        connection = pool.take_idle(now)
        reused = connection is not None
        connect_s = 0.0
        try:
            while True:
                if connection is None:
                    started_at = time.monotonic()
                    connection = await self._connect(pool)
                    connect_s = time.monotonic() - started_at
                # A request that merely waits may do so for ever: once it is sent, how it ends says nothing about GitLab.
                connection.ticket = REFUSED if request.waits else ticket
                waiter: asyncio.Future[Reply] = loop.create_future()
                connection.begin(
                    octets,
                    waiter,
                    request.first_byte_timeout_s or self._settings.first_byte_s,
                    bodiless=request.method == "HEAD",
                    upgrade=request.upgrade,
                    body_follows=body is not None,
                )
                if request.on_sent is not None and body is None:
                    request.on_sent()
                try:
                    if body is None:
                        reply = await (parked(pool, waiter, _when_over) if request.waits else waiter)
                    else:
                        reply = await _send_body(loop, connection, waiter, body, length, request.on_sent)
                    break
                except UpstreamFailure as failure:
                    if not (retryable and reused and self._may_retry(connection, failure)):
                        raise
                except BaseException:
                    connection.abandon(waiter)
                    raise
                # With a new connection, because the other idle ones are as old as the one that just turned out dead.
                connection = None
                reused = False
                if not pool.try_acquire_place():
                    await pool.acquire_place()
        except UpstreamFailure as failure:
            if request.waits and connection is not None:
                self._forget(ticket)
            else:
                self._record_failure(ticket, failure.failure, loop.time())
            raise rejection(failure.failure, failure.detail) from failure
        except BaseException:
            if breaker is not None:
                breaker.forget(ticket)
            raise
        if breaker is not None:
            breaker.record(ticket, ok=True, now=loop.time())
        reply.connect_s = connect_s
        return reply

    def send_soon(
        self, target: bytes, own: Fields, repeated: RepeatedFields, then: ReplyCallback, admission: Admission | None = None
    ) -> Cancellable | None:
        pool, breaker = self._pool, self._breaker
        if pool is None:
            return None
        ticket = 0
        if breaker is not None:
            if breaker.state is not _CLOSED:
                return None
            ticket = breaker.epoch
        octets = render_get(target, own, repeated)
        connection = pool.try_acquire_connection(self._loop.time())  # type: ignore[union-attr]  # set together with the pool
        if connection is None:
            return None
        connection.ticket = ticket
        if self._retry_budget < _RETRY_BUDGET_MAX:
            self._retry_budget += self._settings.retry_ratio
        exchange = _Exchange(self, connection, ticket, then, admission)
        connection.begin(octets, exchange, self._settings.first_byte_s, collects=True, like=repeated.answered)
        return exchange

    async def try_to_connect(self) -> Code | None:
        """Open a connection and close it unused. Returns why that failed, or None. Takes no place, and says nothing to the
        breaker."""
        if self._dialer is None:
            self._start()
        try:
            unused = await self._dialer.connect(_Unused, self._tls)  # type: ignore[union-attr]  # set by _start
        except UpstreamFailure as failure:
            return rejection(failure.failure).code
        unused.transport.close()
        return None

    def read_tls(self) -> Callable[[], None]:
        """Read the authorities again, in any thread. Raises as the constructor does.

        Returns:
            A function that makes connections to come trust them.
        """
        read = tls_context(self._settings.ca_file) if self.origin.tls else None

        def put() -> None:
            self._tls = read

        return put

    async def close(self) -> None:
        """Close all connections. This breaks off what is in progress: drain first."""
        pool = self._pool or self._start()
        await pool.close()
        if self._dialer is not None:
            await self._dialer.close()

    # Figures

    @property
    def open(self) -> int:
        return self._pool.open if self._pool is not None else 0

    @property
    def idle(self) -> int:
        return self._pool.idle if self._pool is not None else 0

    @property
    def in_flight(self) -> int:
        return self._pool.in_flight - self._pool.parked if self._pool is not None else 0

    @property
    def waiting(self) -> int:
        return self._pool.waiting if self._pool is not None else 0

    @property
    def breaker_state(self) -> BreakerState:
        return self._breaker.state if self._breaker is not None else BreakerState.CLOSED

    # Parts of send

    def _start(self) -> Pool:
        settings = self._settings
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop)
        self._dialer = Dialer(self._loop, self.origin, settings.connect_s)
        self._pool = Pool(
            self._loop,
            max_in_flight=settings.max_in_flight,
            max_parked=settings.max_tunnels,
            max_waiting=settings.max_waiting,
            wait_s=settings.wait_s,
            max_idle=settings.max_idle,
            keepalive_s=settings.keepalive_s,
            on_break=self._on_break,
        )
        return self._pool

    def _refuse_early(self, pool: Pool, now: float) -> None:
        """Refuse, before a body is read or a place waited for, what would be refused afterwards."""
        if pool.is_full():
            raise rejection(Failure.CLOSED if pool.is_closed else Failure.BUSY)
        if self._breaker is not None and self._breaker.is_refusing(now):
            raise self._breaker_open(now)

    def _breaker_open(self, now: float) -> Rejection:
        wait_s = self._breaker.retry_after_s(now) if self._breaker is not None else 0.0
        return rejection(Failure.BREAKER_OPEN, retry_after_s=wait_s)

    async def _send_handshake(self, pool: Pool, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        """Send a handshake. Until GitLab has answered, or it fails, it counts as the tunnel that it may become."""
        if pool.tunnels + pool.handshakes >= self._settings.max_tunnels:
            raise rejection(Failure.BUSY)
        pool.handshakes += 1
        try:
            return await self.send(request, body, counted=True)
        finally:
            pool.handshakes -= 1

    async def _acquire_place(self, pool: Pool) -> None:
        try:
            await pool.acquire_place()
        except UpstreamFailure as failure:
            raise rejection(failure.failure) from failure

    async def _connect(self, pool: Pool) -> Connection:
        """Open a connection for the place that is held; frees the place if that fails."""
        loop: asyncio.AbstractEventLoop = self._loop  # type: ignore[assignment]  # set by _start
        dialer: Dialer = self._dialer  # type: ignore[assignment]  # set by _start
        self.connects_total += 1
        try:
            factory = functools.partial(
                Connection,
                pool,
                loop,
                self._settings.idle_s,
                forms=self._forms,
                outbox=self._outbox,
                foreign_codings=self._settings.foreign_codings,
            )
            return await dialer.connect(factory, self._tls)
        except BaseException:
            pool.release_place()
            raise

    def _may_retry(self, connection: Connection, failure: UpstreamFailure) -> bool:
        if failure.failure is not Failure.RESET or connection.has_received or self._retry_budget < 1.0:
            return False
        self._retry_budget -= 1.0
        self.retries_total += 1
        return True

    def _record_failure(self, ticket: int, failure: Failure, now: float) -> None:
        if self._breaker is None:
            return
        if failure in LOCAL_FAILURES:
            self._breaker.forget(ticket)
        else:
            self._last_failure = failure
            self._breaker.record(ticket, ok=False, now=now)

    def _log_change(self, state: BreakerState) -> None:
        """Log that GitLab fails, and that it answers again, once each: a probe that fails is not worth a line."""
        if state is _OPEN and not self._failing:
            self._failing = True
            code = rejection(self._last_failure).code.value
            log.error("GitLab fails (last with %s): the breaker is open, requests get 503 until a probe succeeds", code)
        elif state is _CLOSED:
            self._failing = False
            log.warning("GitLab answers again: the breaker is closed")

    def _reject_unless_retried(self, connection: Connection, ticket: int, failure: UpstreamFailure) -> Rejection | None:
        """The rejection to answer a failed request with; None: the request may be sent once more."""
        if self._may_retry(connection, failure):
            self._forget(ticket)
            return None
        self._record_failure(ticket, failure.failure, self._loop.time())  # type: ignore[union-attr]  # as above
        return rejection(failure.failure, failure.detail)

    def _forget(self, ticket: int) -> None:
        if self._breaker is not None:
            self._breaker.forget(ticket)

    def _on_break(self, ticket: int) -> None:
        if self._loop is not None:
            self._record_failure(ticket, Failure.INCOMPLETE, self._loop.time())


class _Unused(asyncio.Protocol):
    """A connection that only shows that there can be one."""

    transport: asyncio.BaseTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not closed here: uvloop takes the socket over after this, and would close it again when it may be somebody else's.
        self.transport = transport


class _Exchange(msgspec.Struct, eq=False):
    """A request sent by ``send_soon``: the waiter of its connection, and what its caller may cancel."""

    _upstream: HttpUpstream
    _connection: Connection
    _ticket: int
    _then: ReplyCallback | None
    _admission: Admission | None

    __repr__ = object.__repr__

    def cancel(self) -> None:
        if self._then is not None:
            self._then = None
            self._upstream._forget(self._ticket)
            self._connection.close()  # nobody else can have it before the answer has come
            if self._admission is not None:
                self._admission.request_ended(None)

    # contract.Waiter

    def done(self) -> bool:
        return self._then is None

    def set_result(self, reply: Reply) -> None:
        upstream = self._upstream
        breaker = upstream._breaker
        if breaker is not None:
            breaker.record(self._ticket, True, upstream._loop.time())  # type: ignore[union-attr]  # as above
        self._deliver(reply)

    def set_exception(self, error: BaseException) -> None:
        assert isinstance(error, UpstreamFailure), "there is no body to break off"
        self._deliver(self._upstream._reject_unless_retried(self._connection, self._ticket, error))

    def _deliver(self, answer: Reply | Rejection | None) -> None:
        then = self._then
        assert then is not None, "its connection asks first"
        self._then = None
        if self._admission is not None:
            self._admission.request_ended(answer)
        try:
            then(answer)
        except Exception:
            log.exception("response callback failed")  # not raised: the connection may serve another request by now
            if isinstance(answer, Reply):
                answer.release()


async def _send_body(
    loop: asyncio.AbstractEventLoop,
    connection: Connection,
    waiter: asyncio.Future[Reply],
    body: RequestBody,
    length: int | None,
    sent: Callable[[], None] | None,
) -> Reply:
    """Send the body while the answer is awaited: the only exchange that needs a task, because either may end first.

    If the answer begins early and goes on (`git receive-pack` sends its head before it has the pack), the body goes up
    beside it until the answer is released.
    """
    pump = loop.create_task(_pump(connection, body, length))
    pump.add_done_callback(functools.partial(_after_pump, connection, waiter, sent))
    goes_on = False
    try:
        reply = await waiter
        goes_on = reply.chunks is not None
        return reply if pump.done() or not goes_on else _with_pump(reply, pump)
    finally:
        if not goes_on and not pump.done():
            # Ended before the answer goes down, so that nobody else finds the client's body still being read.
            pump.cancel()
            await asyncio.wait([pump])


def _when_over(reply: Reply, then: Callable[[], None]) -> None:
    """Call ``then`` as soon as GitLab has sent the whole answer, however slowly the client takes it: that is when the
    connection gives its place back."""
    assert isinstance(reply.chunks, Body), "of a connection of ours"
    reply.chunks.on_end(then)


def _with_pump(reply: Reply, pump: asyncio.Task[bool]) -> Reply:
    def release() -> None:
        pump.cancel()
        reply.release()

    return Reply(reply.head, None, reply.chunks, release, reply.connect_s, reply.first_byte_s)


async def _pump(connection: Connection, body: RequestBody, length: int | None) -> bool:
    """Send the body. Returns whether all of it went up; False: the connection ended before."""
    left = length
    while chunk := await body.read():
        if left is None:
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        else:
            left -= len(chunk)
            if left < 0:
                raise bad_request(close=True)
        if not connection.write(chunk):
            return False
        await connection.writable()
    if left:
        raise bad_request(close=True)
    if left is None:
        connection.write(b"0\r\n\r\n")
    connection.end_body()
    return True


def _after_pump(
    connection: Connection,
    waiter: asyncio.Future[Reply],
    sent: Callable[[], None] | None,
    pump: asyncio.Task[bool],
) -> None:
    if pump.cancelled():
        return
    if (error := pump.exception()) is not None:
        connection.abort_upload(error)
    elif sent is not None and pump.result() and not waiter.done():  # answered early, the request has been dealt with
        sent()

"""``ports.Upstream`` over own connections: admit, connect or reuse, send, retry once where that is safe.

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
from ..core.errors import Rejection, bad_request
from ..core.messages import Fields
from ..outbox import Outbox
from ..ports import Asked, Door, Repeated, RequestBody, Then, UpstreamRequest
from ..reply import Reply
from .connection import Connection
from .errors import OUR_OWN, Failure, UpstreamFailure, rejection
from .head_forms import HeadForms
from .origin import Dialer, parse_origin, tls_context
from .parking import parked
from .pool import Pool
from .request import render_get, render_head
from .streams import Body
from .whole_body import collect, is_small

log = logging.getLogger("gateway.upstream")

_CLOSED = BreakerState.CLOSED
_RETRYABLE = frozenset({"GET", "HEAD", "OPTIONS"})
# Retries are a tenth of requests (more, and a struggling GitLab is hit twice), saved up to a restart's worth of broken
# keep-alive connections.
_RETRY_BUDGET_MAX = 100.0


class UpstreamSettings(msgspec.Struct, frozen=True):
    """``upstream`` of the configuration. Durations in seconds."""

    url: str
    connect_s: float = 2.0
    """Name look-up, TCP and TLS together."""
    first_byte_s: float = 60.0
    """From the end of the request to a whole final head."""
    idle_s: float = 300.0
    """Between octets of a body, either way."""
    max_in_flight: int = 200
    max_waiting: int = 200
    max_tunnels: int = 1000
    """WebSockets at one time, handshakes under way among them; once open, they hold no place among the requests. As many
    requests may merely wait without one, too."""
    wait_s: float = 5.0
    """How long a request may wait for a place."""
    max_idle: int = 100
    keepalive_s: float = 4.0
    """How long a connection is kept unused: shorter than any GitLab's own limit, so that it is we who close."""
    retry_ratio: float = 0.1
    ca_file: str | None = None
    """PEM; these authorities and no others. None: the system's."""
    foreign_codings: bool = False
    """Answers in an unregistered transfer coding are relayed until the upstream closes. For a plain cache in front of any
    origin; GitLab has no such answers."""
    breaker: BreakerSettings | None = BreakerSettings()
    """None: off. Whatever GitLab answers is no failure: an answer is an answer."""


class LeanUpstream:
    """See ``ports.Upstream``. One per event loop; the figures are for metrics."""

    def __init__(self, settings: UpstreamSettings) -> None:
        """Raises ValueError for a URL, OSError for a ``ca_file``, that can't be used."""
        self._settings = settings
        self.origin = parse_origin(settings.url)
        self._tls = tls_context(settings.ca_file) if self.origin.tls else None
        self._breaker = Breaker(settings.breaker) if settings.breaker is not None else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: Pool | None = None
        self._dialer: Dialer | None = None
        self._outbox: Outbox | None = None
        self._retry_budget = 1.0
        self._forms = HeadForms()
        self.connects_total = 0
        self.retries_total = 0

    async def send(self, request: UpstreamRequest, body: RequestBody | None, *, counted: bool = False) -> Reply:
        """``counted``: a handshake that is among those under way."""
        pool = self._pool or self._start()
        if request.upgrade and not counted:
            return await self._shake_hands(pool, request, body)
        loop: asyncio.AbstractEventLoop = self._loop  # type: ignore[assignment]  # set together with the pool
        octets = render_head(request, has_body=body is not None)
        if body is not None:
            self._refuse_early(pool, loop.time())
        length = request.content_length
        if body is not None and length is not None and is_small(length):
            # Before a place is taken: a client that sends slowly holds none, and head and body go out in one write.
            octets += await collect(body, length)
            body = None
            retryable = False
        else:
            retryable = body is None and request.method in _RETRYABLE
        if not pool.enter_now():
            self._refuse_early(pool, loop.time())
            await self._enter(pool)
        now = loop.time()
        breaker = self._breaker
        ticket = breaker.admit(now) if breaker is not None else 0
        if ticket == REFUSED:
            pool.freed()
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
                # What merely waits may wait for ever: how it ends, once it was sent, says nothing about GitLab.
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
                if request.sent is not None and body is None:
                    request.sent()
                try:
                    if body is None:
                        reply = await (parked(pool, waiter, _when_over) if request.waits else waiter)
                    else:
                        reply = await _send_body(loop, connection, waiter, body, length, request.sent)
                    break
                except UpstreamFailure as failure:
                    if not (retryable and reused and self._may_retry(connection, failure)):
                        raise
                except BaseException:
                    connection.abandon(waiter)
                    raise
                # A new connection: the other idle ones are as old as the one that just turned out to be dead.
                connection = None
                reused = False
                if not pool.enter_now():
                    await pool.enter()
        except UpstreamFailure as failure:
            if request.waits and connection is not None:
                self._forget(ticket)
            else:
                self._learn(ticket, failure.failure, loop.time())
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
        self, target: bytes, own: Fields, repeated: Repeated, then: Then, door: Door | None = None
    ) -> Asked | None:
        pool, breaker = self._pool, self._breaker
        if pool is None:
            return None
        ticket = 0
        if breaker is not None:
            if breaker.state is not _CLOSED:
                return None
            ticket = breaker.epoch
        octets = render_get(target, own, repeated)
        connection = pool.lend(self._loop.time())  # type: ignore[union-attr]  # set together with the pool
        if connection is None:
            return None
        connection.ticket = ticket
        if self._retry_budget < _RETRY_BUDGET_MAX:
            self._retry_budget += self._settings.retry_ratio
        exchange = _Exchange(self, connection, ticket, then, door)
        connection.begin(octets, exchange, self._settings.first_byte_s, collects=True, like=repeated.answered)
        return exchange

    def read_tls(self) -> Callable[[], None]:
        """In any thread: read the authorities again. What comes back has connections to come trust them. Raises as the
        constructor.
        """
        read = tls_context(self._settings.ca_file) if self.origin.tls else None

        def put() -> None:
            self._tls = read

        return put

    async def close(self) -> None:
        """Breaks off what is in progress; drain first."""
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
        """Before anything of a body is read, or a place is waited for, refuse what would be refused after it."""
        if pool.is_full():
            raise rejection(Failure.CLOSED if pool.is_closed else Failure.BUSY)
        if self._breaker is not None and self._breaker.is_refusing(now):
            raise self._breaker_open(now)

    def _breaker_open(self, now: float) -> Rejection:
        wait_s = self._breaker.retry_after_s(now) if self._breaker is not None else 0.0
        return rejection(Failure.BREAKER_OPEN, retry_after_s=wait_s)

    async def _shake_hands(self, pool: Pool, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        """Until GitLab has answered, however that ends, a handshake counts as the tunnel that may come of it."""
        if pool.tunnels + pool.handshakes >= self._settings.max_tunnels:
            raise rejection(Failure.BUSY)
        pool.handshakes += 1
        try:
            return await self.send(request, body, counted=True)
        finally:
            pool.handshakes -= 1

    async def _enter(self, pool: Pool) -> None:
        try:
            await pool.enter()
        except UpstreamFailure as failure:
            raise rejection(failure.failure) from failure

    async def _connect(self, pool: Pool) -> Connection:
        """A new connection for the place held; frees the place if there is none to be had."""
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
            pool.freed()
            raise

    def _may_retry(self, connection: Connection, failure: UpstreamFailure) -> bool:
        if failure.failure is not Failure.RESET or connection.heard or self._retry_budget < 1.0:
            return False
        self._retry_budget -= 1.0
        self.retries_total += 1
        return True

    def _learn(self, ticket: int, failure: Failure, now: float) -> None:
        if self._breaker is None:
            return
        if failure in OUR_OWN:
            self._breaker.forget(ticket)
        else:
            self._breaker.record(ticket, ok=False, now=now)

    def _unanswered(self, connection: Connection, ticket: int, failure: UpstreamFailure) -> Rejection | None:
        """What is to be said of it; None: that it may be sent once more."""
        if self._may_retry(connection, failure):
            self._forget(ticket)
            return None
        self._learn(ticket, failure.failure, self._loop.time())  # type: ignore[union-attr]  # as above
        return rejection(failure.failure, failure.detail)

    def _forget(self, ticket: int) -> None:
        if self._breaker is not None:
            self._breaker.forget(ticket)

    def _on_break(self, ticket: int) -> None:
        if self._breaker is not None and self._loop is not None:
            self._breaker.record(ticket, ok=False, now=self._loop.time())


class _Exchange(msgspec.Struct, eq=False):
    """What ``send_soon`` sent: to its connection a waiter, to whoever asked something to cancel."""

    _upstream: LeanUpstream
    _connection: Connection
    _ticket: int
    _then: Then | None
    _door: Door | None

    __repr__ = object.__repr__

    def cancel(self) -> None:
        if self._then is not None:
            self._then = None
            self._upstream._forget(self._ticket)
            self._connection.close()  # it is nobody else's before its answer came
            if self._door is not None:
                self._door.passed(None)

    # connection.Waiter

    def done(self) -> bool:
        return self._then is None

    def set_result(self, reply: Reply) -> None:
        upstream = self._upstream
        breaker = upstream._breaker
        if breaker is not None:
            breaker.record(self._ticket, True, upstream._loop.time())  # type: ignore[union-attr]  # it was asked by it
        self._tell(reply)

    def set_exception(self, error: BaseException) -> None:
        assert isinstance(error, UpstreamFailure), "there is no body to break off"
        self._tell(self._upstream._unanswered(self._connection, self._ticket, error))

    def _tell(self, answer: Reply | Rejection | None) -> None:
        then = self._then
        assert then is not None, "its connection asks first"
        self._then = None
        if self._door is not None:
            self._door.passed(answer)
        try:
            then(answer)
        except Exception:
            log.exception("an answer's taker failed")  # the connection is another request's by now
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
    """Body up while the answer is awaited: the only exchange that needs a task, because either may end first.

    An answer that begins early and goes on (`git receive-pack` sends its head before it has the pack) leaves the body
    going up beside it, until the answer is released.
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
            # Settled before the answer goes down, so that nobody else finds the client's body being read.
            pump.cancel()
            await asyncio.wait([pump])


def _when_over(reply: Reply, then: Callable[[], None]) -> None:
    """Its connection gives its place back as soon as GitLab has said all, however slowly a client takes it."""
    assert isinstance(reply.chunks, Body), "of a connection of ours"
    reply.chunks.on_over(then)


def _with_pump(reply: Reply, pump: asyncio.Task[bool]) -> Reply:
    def release() -> None:
        pump.cancel()
        reply.release()

    return Reply(reply.head, None, reply.chunks, release, reply.connect_s, reply.first_byte_s)


async def _pump(connection: Connection, body: RequestBody, length: int | None) -> bool:
    """Whether all of it went up."""
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
        connection.break_off(error)
    elif sent is not None and pump.result() and not waiter.done():  # one that was answered early has been dealt with
        sent()

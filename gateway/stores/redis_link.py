"""One pipelined connection to Redis: what every Redis store writes through.

The commands of one turn of the event loop leave in one write; replies come back in order (RESP2, parsed by hiredis). A
caller that is cancelled or times out leaves its place in the queue behind, so that nobody ever reads another's reply. The
link reconnects by itself. While Redis is known to be down, calls fail at once instead of waiting.

Nothing is retried here: a command that was under way when the connection broke may or may not have run.
A store that moves large values needs a link of its own: replies come in order, and small ones wait behind large ones.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from ..ports import Cancellable
from .redis_address import parse_address
from .redis_endpoint import MAYBE_NOT_PRIMARY_KINDS, NOT_PRIMARY_KINDS, HashTag, RedisEndpoint, describe_error
from .redis_wire import (
    GRACE_S,
    Argument,
    Command,
    RedisError,
    RedisProtocolError,
    RedisUnavailable,
    RedisValue,
    Wire,
    pack_commands,
)

log = logging.getLogger("gateway.stores")

__all__ = ["Argument", "Command", "RedisError", "RedisLink", "RedisUnavailable", "RedisValue"]

OnReplies = Callable[["list[RedisValue | RedisError] | RedisUnavailable"], None]
_MAX_IN_FLIGHT = 4096
"""The most calls under way; beyond that Redis is not keeping up, and more calls would only wait to time out."""
_FAILURES_TO_DROP = 5
"""After so many calls in a row without an answer the connection counts as dead (half-open TCP, a stopped process)."""
_BACKOFF_S = (0.05, 1.0)
"""First and longest pause between attempts to connect; the longest keeps recovery under two seconds."""
_OUTAGES = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS", "OOM", "READONLY"}
    | {"ASK", "CROSSSLOT", "MOVED", "TRYAGAIN", "unknown command"}
)
"""Errors about Redis, not about the command: it is full, a replica, still loading, not the slot's node, not a Redis …"""
STAYS_S = 5.0
"""How long a connection is kept though its server refuses writes, where no guide could name another: the server still
answers, so its name is tried again only this often."""
_REMEMBERED_S = 2.0
"""How long the link counts as unwell after one of ``_OUTAGES``: a Redis that refuses writes goes on answering reads."""


class _FutureSlot:
    """The place of one call in the reply queue: ``want`` replies, then the future is done."""

    __slots__ = ("deadline", "future", "replies", "want")

    def __init__(self, future: asyncio.Future[list[RedisValue | RedisError]], want: int, deadline: float) -> None:
        self.future = future
        self.want = want
        self.deadline = deadline
        self.replies: list[RedisValue | RedisError] = []

    @property
    def waited_for(self) -> bool:
        return not self.future.done()

    def answer(self) -> None:
        self.future.set_result(self.replies)

    def fail(self, reason: str) -> None:
        self.future.set_exception(RedisUnavailable(reason))


class _CallbackSlot(msgspec.Struct, eq=False):
    """As ``_FutureSlot``, but the replies go straight to ``then``."""

    _then: OnReplies | None
    want: int
    deadline: float
    replies: list[RedisValue | RedisError] = []
    waited_for: bool = True

    __repr__ = object.__repr__

    def answer(self) -> None:
        self._deliver(self.replies)

    def fail(self, reason: str) -> None:
        self._deliver(RedisUnavailable(reason))

    def cancel(self) -> None:
        """Forget ``then``: nobody wants the replies any more."""
        self._then = None
        self.waited_for = False

    def _deliver(self, replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
        then, self._then = self._then, None
        self.waited_for = False
        assert then is not None, "told once"
        try:
            then(replies)
        except Exception:
            # Behind this call others wait for their replies: the connection must survive its fault.
            log.exception("Redis reply callback failed")


class RedisLink:
    """One connection, shared by any number of callers of one event loop.

    Construct with :meth:`from_url`; the first call connects. Every call is bounded by ``timeout_s``, connecting included.
    """

    def __init__(self, endpoint: RedisEndpoint, *, timeout_s: float, name: str) -> None:
        self.name = name
        self.trouble = ""
        """What last went wrong, in a word: ``WRONGPASS``, ``ConnectionRefusedError``, ``timeout``, ``OOM`` …"""
        self.failures = 0
        """How many calls got no answer, or one that says Redis is unwell."""
        self.on_connect: Callable[[], None] = _noop
        """Called on each new connection: what it sends comes first, ahead of the calls that waited for a connection."""
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._down = False
        self._closed = False
        self._unanswered = 0
        self._refused_at = float("-inf")
        self._not_primary = False
        """This connection's server says that another has taken its place."""
        self._stays_until = 0.0
        """Until then the connection is kept even so."""
        self._out: list[bytes] = []
        self._slots: deque[_FutureSlot | _CallbackSlot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._grace = False
        self._flushing = False

    @classmethod
    def from_url(cls, url: str, *, timeout_s: float, name: str, tag: HashTag = HashTag.LIMITS) -> RedisLink:
        """Link to ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` or ``unix://[user:password@]/path[?db=n]``.
        ``redis+sentinel://[user:password@]sentinel[:port][,…]/primary[/db][?sentinel_username=…&sentinel_password=…]`` and
        ``redis+cluster://[user:password@]node[:port][,…]``, both also with ``rediss``, ask where the server is (see
        ``redis_endpoint``, also for ``tag``).

        TLS options are redis-py's query parameters ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``,
        ``ssl_check_hostname`` and ``ssl_cert_reqs``. ``name`` is shown by ``CLIENT LIST``.

        Raises:
            ValueError: The URL is not one of these. The message never holds the URL.
            OSError: A certificate that it names can't be read.
        """
        return cls(RedisEndpoint(parse_address(url), tag), timeout_s=timeout_s, name=name)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to Redis."""
        return self._wire is not None

    @property
    def healthy(self) -> bool:
        """Whether there is a connection, the last calls were answered, and Redis has not complained lately."""
        return self._wire is not None and not self._unanswered and not self.refuses

    @property
    def refuses(self) -> bool:
        """Whether Redis has complained lately: its answers may lack writes that it refused to others."""
        return self._loop is not None and self._loop.time() - self._refused_at <= _REMEMBERED_S

    # Calling

    async def execute(self, *args: Argument) -> RedisValue:
        """Send one command and return its reply.

        Raises:
            RedisUnavailable: No answer within the timeout.
            RedisError: Redis refused.
        """
        reply = (await self.submit([args]))[0]
        if isinstance(reply, RedisError):
            raise reply
        return reply

    async def execute_many(self, commands: Sequence[Command]) -> list[RedisValue | RedisError]:
        """Send several commands in one round trip, not as a transaction. Errors come back as values, in place.

        Raises:
            RedisUnavailable: Not all answers came within the timeout.
        """
        return await self.submit(commands)

    def submit(self, commands: Sequence[Command]) -> asyncio.Future[list[RedisValue | RedisError]]:
        """As :meth:`execute_many`, without a coroutine: sent at the end of the event loop's turn, answered by the future.

        Raises:
            RedisUnavailable: At once, when Redis is known to be down or is far behind.
        """
        loop = self._open()
        future: asyncio.Future[list[RedisValue | RedisError]] = loop.create_future()
        if not commands:
            future.set_result([])
            return future
        # Packed before the slot exists: an argument that can't be packed must not leave a place without a command.
        self._out.append(pack_commands(commands))
        self._enqueue(_FutureSlot(future, len(commands), loop.time() + self._timeout_s))
        if not self._flushing and self._wire is not None:
            self._flushing = True
            loop.call_soon(self._flush)
        return future

    def call_now(self, packed: bytes, then: OnReplies) -> None:
        """Send one command, as ``redis_wire.pack_commands`` writes it, without waiting for the turn's end. ``then`` is
        called with the reply, in a list, as soon as it is read, or with RedisUnavailable; what ``then`` raises is logged.

        Raises:
            RedisUnavailable: As ``submit``; ``then`` is not called.
        """
        loop = self._open()
        self._enqueue(_CallbackSlot(then, 1, loop.time() + self._timeout_s))
        if self._wire is not None and not self._out:
            self._wire.write(packed)
        else:
            self._out.append(packed)
            self._flush()

    def call_batched(self, packed: bytes, count: int, then: OnReplies) -> Cancellable:
        """As ``call_now``, for ``count`` commands, sent at the end of the event loop's turn. It may be cancelled."""
        loop = self._open()
        slot = _CallbackSlot(then, count, loop.time() + self._timeout_s)
        self._enqueue(slot)
        self._out.append(packed)
        if not self._flushing and self._wire is not None:
            self._flushing = True
            loop.call_soon(self._flush)
        return slot

    def _open(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None or self._keeper is None:
            loop = self._start()
        if self._down or self._closed:
            self.failures += 1
            raise RedisUnavailable("down")
        if len(self._slots) >= _MAX_IN_FLIGHT or (self._wire is not None and self._wire.full):
            self.failures += 1
            raise RedisUnavailable("busy")
        return loop

    def _enqueue(self, slot: _FutureSlot | _CallbackSlot) -> None:
        self._slots.append(slot)
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(self._timeout_s, self._expire)

    async def close(self) -> None:
        """Fail the calls under way and let go of the connection. Idempotent."""
        self._closed = True
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
        self._fail_all("closed")
        self.endpoint.close()
        if wire is not None:
            await wire.lost.wait()

    def _flush(self) -> None:
        self._flushing = False
        if self._wire is not None and self._out:
            out, self._out = self._out, []
            self._wire.write(b"".join(out))

    # Replies and their absence

    def _on_reply(self, reply: RedisValue | RedisError) -> None:
        """Hand the connection's next reply to the oldest slot."""
        slots = self._slots
        if not slots:
            raise RedisProtocolError
        slot = slots[0]
        replies = slot.replies
        replies.append(reply)
        if isinstance(reply, RedisError) and reply.kind in _OUTAGES and self._loop is not None:
            self._record_outage(reply.kind, self._loop)
            if reply.kind in MAYBE_NOT_PRIMARY_KINDS:
                self.endpoint.suspect()
            self._not_primary = self._not_primary or (
                reply.kind in NOT_PRIMARY_KINDS and self._loop.time() >= self._stays_until
            )
        if len(replies) == slot.want:
            slots.popleft()
            if slot.waited_for:
                self._unanswered = 0
                slot.answer()
            if self._not_primary:
                self.endpoint.generation += 1
                self.endpoint.rotate_guides()
                self._drop(self.trouble, down=False)

    def mark_unwell(self, answer: object) -> None:
        """Count Redis as unwell, unless the answer already made it so: the answer was useless, though any Redis can do what
        was asked. A proxy may run no scripts, for instance."""
        known = isinstance(answer, RedisUnavailable) or (isinstance(answer, RedisError) and answer.kind in _OUTAGES)
        if not known and self._loop is not None:
            self._record_outage(answer.kind if isinstance(answer, RedisError) else "unexpected reply", self._loop)

    def _record_outage(self, kind: str, loop: asyncio.AbstractEventLoop) -> None:
        self.failures += 1
        self.trouble, self._refused_at = kind, loop.time()

    def _expire(self) -> None:
        """Fail what is overdue. One timer serves every call: all have the same timeout."""
        self._timer = None
        loop = self._loop
        assert loop is not None
        now = loop.time()
        overdue = [slot for slot in self._slots if slot.deadline <= now and slot.waited_for]
        if overdue and not self._grace:
            self._grace = True
            self._timer = loop.call_later(GRACE_S, self._expire)
            return
        self._grace = False
        for slot in overdue:
            if slot.waited_for:  # not cancelled on hearing of another's timeout
                slot.fail("timeout")
            self.failures += 1
            self.trouble = "timeout"
        if overdue:
            self._unanswered += len(overdue)
            if self._unanswered >= _FAILURES_TO_DROP or self._wire is None:
                self._drop("timeout", down=True)
                return
        waiting = min((slot.deadline for slot in self._slots if slot.waited_for), default=None)
        if waiting is not None:
            self._reschedule(max(waiting, now), loop)

    def _reschedule(self, moment: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:  # set by a new call, on hearing of a timeout; older calls are due before it
            self._timer.cancel()
        self._timer = loop.call_at(moment, self._expire)

    def _drop(self, reason: str, *, down: bool) -> None:
        """Give the connection up; the keeper makes another. ``down``: calls fail at once until it has."""
        self.trouble = reason
        self._down = self._down or down
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
        self._fail_all(reason)

    def _fail_all(self, reason: str) -> None:
        slots, self._slots, self._out = self._slots, deque(), []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._grace = False
        for slot in slots:
            if slot.waited_for:
                slot.fail(reason)
                self.failures += 1

    # Connecting

    def _start(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise RedisUnavailable("closed")
        loop = self._loop = asyncio.get_running_loop()
        self._keeper = loop.create_task(self._keep(loop), name=f"redis-link {self.name}")
        return loop

    def _begin(self) -> None:
        """Make the first write of a new connection."""
        slots, self._slots = self._slots, deque()
        out, self._out = self._out, []
        try:
            self.on_connect()
        except Exception:
            log.exception("Redis greeting callback failed")  # others wait for this connection
        self._slots.extend(slots)
        self._out.extend(out)
        self._flush()

    async def _keep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hold one connection open until closed."""
        pause = _BACKOFF_S[0]
        while True:
            try:
                wire = await self.endpoint.connect(self.name, self._timeout_s, self._on_reply)
            except (OSError, ValueError, RedisError, RedisUnavailable) as refused:  # ValueError: no resolver takes the name
                self.trouble = describe_error(refused)
                self._fail_all("down")
            else:
                if self._not_primary:
                    self.endpoint.generation += 1
                self._wire, self._down, self._unanswered, self._not_primary = wire, False, 0, False
                since = loop.time()
                self._stays_until = since if self.endpoint.has_guides else since + STAYS_S
                self._begin()
                await self.endpoint.wait_until_left(wire)
                if self._wire is wire:
                    self._drop("connection lost" if wire.lost.is_set() else "moved", down=False)
                if loop.time() - since > _BACKOFF_S[1]:
                    pause = _BACKOFF_S[0]
                    continue
            # During this pause calls fail at once instead of waiting. Jittered, so that a fleet does not come back in step.
            self._down = True
            await asyncio.sleep(pause * (0.5 + random.random() / 2))  # noqa: S311
            pause = min(pause * 2, _BACKOFF_S[1])


def _noop() -> None:
    """The default for ``on_connect``: nothing has to be sent first."""

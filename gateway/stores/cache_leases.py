"""Which of the gateways on one Redis asks GitLab: one at a time for each answer wanted, and for a bounded time.

A lease is a shortcut, never a lock: a holder that fails frees it, one that dies or is slow loses it, and a gateway that
cannot tell (Redis is away, or its messages are not heard) asks GitLab by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
from collections.abc import Callable

import msgspec

from ..ports import Cancellable
from .bucket_script import Script
from .codec import Codec
from .redis_link import RedisError, RedisLink, RedisUnavailable, RedisValue
from .redis_wire import pack_commands

LEASE_S = 2.0
"""How long one gateway may ask on behalf of all, and the longest that any waits for another's answer."""
_LOOK_S = 0.25
"""How often a waiting gateway checks that messages still arrive."""
LEASE_PREFIX = b"{ggw:cache}:lease:"
_WAITED_FOR = b":waited-for"
"""Appended to a lease's name: the key that says somebody waits for its end. An end that nobody waits for is not worth a
message, which goes to every gateway."""
_END, _WAIT = Script.named("cache_lease_end.lua"), Script.named("cache_lease_wait.lua")


class RedisLeases:
    """One gateway's leases.

    Args:
        link: The cache's link to Redis.
        codec: Hides what is asked for.
        is_subscribed: Whether messages of other gateways arrive, as far as is known.
        wait_s: The longest wait for another gateway's lease.
    """

    def __init__(
        self, link: RedisLink, codec: Codec, is_subscribed: Callable[[], bool], *, wait_s: float = LEASE_S
    ) -> None:
        self._link = link
        self._codec = codec
        self._is_subscribed = is_subscribed
        self._wait_s = wait_s
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._own = secrets.token_bytes(12)
        self._numbers = itertools.count()
        self.led = 0
        self.followed = 0

    async def lead(self, flight_key: bytes) -> Callable[[], None] | None:
        """Take the lease to ask GitLab on behalf of all gateways, or wait for the gateway that holds it.

        Returns:
            What must be called once the answer is there for them, or it is clear that there will be none.
            None: another gateway asked. It is done by now, or has taken too long.
        """
        if not self._is_subscribed():
            return _noop
        name, token = self._name_and_token(flight_key)
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Registered before the lease is asked for: another's may be over before we know that there is one.
        self._waiting.setdefault(name, set()).add(end)
        try:
            try:
                taken = await self._link.execute("SET", name, token, "NX", "PX", int(LEASE_S * 1000))
            except (RedisUnavailable, RedisError):
                self._end(name, token)  # the lease may have been taken all the same: a late reply counts as none
                return _noop
            except asyncio.CancelledError:
                self._end(name, token)  # likewise
                raise
            if taken is not None:
                self.led += 1
                return functools.partial(self._end, name, token)
            self.followed += 1
            with contextlib.suppress(RedisUnavailable, RedisError):  # treated as if it were over
                if await self._link.execute("EVAL", _WAIT.text, 2, name, name + _WAITED_FOR):
                    await self._wait(end)
            return None
        finally:
            waiting = self._waiting.get(name, set())
            waiting.discard(end)
            if not waiting:
                self._waiting.pop(name, None)

    def lead_soon(self, flight_key: bytes, then: Callable[[Callable[[], None] | None], None]) -> Cancellable | None:
        """As ``lead``, without a coroutine and without waiting for another's lease: ``then`` is called once, later, with
        None where another gateway asks. Returns None, with nothing sent, where messages are not heard or Redis is away."""
        if not self._is_subscribed():
            return None
        name, token = self._name_and_token(flight_key)
        ended = functools.partial(self._end, name, token)

        def on_reply(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
            if isinstance(replies, RedisUnavailable) or isinstance(replies[0], RedisError):
                ended()  # the lease may have been taken all the same: a late reply counts as none
                then(_noop)
            elif replies[0] is None:
                then(None)
            else:
                self.led += 1
                then(ended)

        try:
            octets = pack_commands([("SET", name, token, "NX", "PX", int(LEASE_S * 1000))])
            return _PendingLease(self._link.call_batched(octets, 1, on_reply), ended)
        except RedisUnavailable:
            return None

    async def _wait(self, end: asyncio.Future[None]) -> None:
        """Wait until the lease is over, for ``wait_s`` at most, and only while messages are heard."""
        ends_at = asyncio.get_running_loop().time() + self._wait_s
        while not end.done() and self._is_subscribed():
            left = ends_at - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.wait((end,), timeout=min(left, _LOOK_S))

    def wake_waiters(self, name: bytes) -> None:
        """Wake those who wait for a lease: Redis says that it is over."""
        for end in self._waiting.pop(name, ()):
            if not end.done():
                end.set_result(None)

    def _name_and_token(self, flight_key: bytes) -> tuple[bytes, bytes]:
        """The name of a lease, and a token that only its holder knows."""
        return LEASE_PREFIX + self._codec.hidden_name(flight_key), b"%b%d" % (self._own, next(self._numbers))

    def _end(self, name: bytes, token: bytes, *, in_full: bool = False) -> None:
        def on_reply(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
            if isinstance(replies, list) and isinstance(replies[0], RedisError) and replies[0].kind == "NOSCRIPT":
                self._end(name, token, in_full=True)

        script = ("EVAL", _END.text) if in_full else ("EVALSHA", _END.sha)
        with contextlib.suppress(RedisUnavailable):  # the lease expires by itself
            self._link.call_batched(pack_commands([(*script, 2, name, name + _WAITED_FOR, token)]), 1, on_reply)


class _PendingLease(msgspec.Struct, eq=False):
    """A lease that was asked for."""

    _asked: Cancellable
    _ended: Callable[[], None]

    __repr__ = object.__repr__

    def cancel(self) -> None:
        self._asked.cancel()
        self._ended()  # the lease may have been taken


def _noop() -> None:
    """Does nothing: there is no lease to end, and no other gateway waits for this answer."""

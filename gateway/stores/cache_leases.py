"""Who asks GitLab, among gateways on one Redis: one at a time for each question, and for a bounded time.

A lease is a shortcut, never a lock: a holder that fails frees it, one that dies or is slow loses it, and whoever cannot
tell (Redis away, its messages not heard) goes up alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
from collections.abc import Callable

import msgspec

from ..ports import Asked
from .bucket_script import Script
from .codec import Codec
from .redis_link import RedisError, RedisLink, RedisUnavailable, RedisValue
from .redis_wire import packed

LEASE_S = 2.0
"""For so long one gateway may ask for all. Nobody waits longer for another's answer."""
_LOOK_S = 0.25
"""While one waits, it is looked so often whether messages still come."""
LEASE_PREFIX = b"{ggw:cache}:lease:"
_WAITED_FOR = b":waited-for"
"""Behind a lease's name. A message goes to every gateway: an end that nobody waits for is not worth one."""
_END, _WAIT = Script.named("cache_lease_end.lua"), Script.named("cache_lease_wait.lua")


class RedisLeases:
    """One gateway's.

    Args:
        link: The cache's.
        codec: Hides what is asked for.
        heard: Whether the messages of others come, as far as is known.
        wait_s: Of another's lease, at most.
    """

    def __init__(self, link: RedisLink, codec: Codec, heard: Callable[[], bool], *, wait_s: float = LEASE_S) -> None:
        self._link = link
        self._codec = codec
        self._heard = heard
        self._wait_s = wait_s
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._own = secrets.token_bytes(12)
        self._numbers = itertools.count()
        self.led = 0
        self.followed = 0

    async def lead(self, question: bytes) -> Callable[[], None] | None:
        """Ask for all gateways: what must be called when the answer is there for them, or there will be none.

        None: another one asked. It is done now, or has taken too long.
        """
        if not self._heard():
            return _nothing
        name, token = self._named(question)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Listened for before it is asked for: it may be over before we know that there is one.
        self._waiting.setdefault(name, set()).add(over)
        try:
            try:
                taken = await self._link.execute("SET", name, token, "NX", "PX", int(LEASE_S * 1000))
            except (RedisUnavailable, RedisError):
                self._end(name, token)  # it may have been taken all the same: a late answer is none
                return _nothing
            except asyncio.CancelledError:
                self._end(name, token)  # likewise
                raise
            if taken is not None:
                self.led += 1
                return functools.partial(self._end, name, token)
            self.followed += 1
            with contextlib.suppress(RedisUnavailable, RedisError):  # it is as if it were over
                if await self._link.execute("EVAL", _WAIT.text, 2, name, name + _WAITED_FOR):
                    await self._wait(over)
            return None
        finally:
            waiting = self._waiting.get(name, set())
            waiting.discard(over)
            if not waiting:
                self._waiting.pop(name, None)

    def lead_soon(self, question: bytes, then: Callable[[Callable[[], None] | None], None]) -> Asked | None:
        """As ``lead``, without a coroutine, for who does not wait for another's: ``then`` is called once, later, with None
        where another asks. None, and nothing was sent, where that cannot be said at once."""
        if not self._heard():
            return None
        name, token = self._named(question)
        ended = functools.partial(self._end, name, token)

        def taken(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
            if isinstance(replies, RedisUnavailable) or isinstance(replies[0], RedisError):
                ended()  # it may have been taken all the same: a late answer is none
                then(_nothing)
            elif replies[0] is None:
                then(None)
            else:
                self.led += 1
                then(ended)

        try:
            octets = packed([("SET", name, token, "NX", "PX", int(LEASE_S * 1000))])
            return _Taking(self._link.ask(octets, 1, taken), ended)
        except RedisUnavailable:
            return None

    async def _wait(self, over: asyncio.Future[None]) -> None:
        """Until it is over, for too long, or nobody would be told of it."""
        ends_at = asyncio.get_running_loop().time() + self._wait_s
        while not over.done() and self._heard():
            left = ends_at - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.wait((over,), timeout=min(left, _LOOK_S))

    def ended(self, name: bytes) -> None:
        """A lease is over, as Redis tells."""
        for over in self._waiting.pop(name, ()):
            if not over.done():
                over.set_result(None)

    def _named(self, question: bytes) -> tuple[bytes, bytes]:
        """A lease, and what only its holder knows."""
        return LEASE_PREFIX + self._codec.name(question), b"%b%d" % (self._own, next(self._numbers))

    def _end(self, name: bytes, token: bytes, *, in_full: bool = False) -> None:
        def told(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
            if isinstance(replies, list) and isinstance(replies[0], RedisError) and replies[0].kind == "NOSCRIPT":
                self._end(name, token, in_full=True)

        script = ("EVAL", _END.text) if in_full else ("EVALSHA", _END.sha)
        with contextlib.suppress(RedisUnavailable):  # it ends by itself
            self._link.ask(packed([(*script, 2, name, name + _WAITED_FOR, token)]), 1, told)


class _Taking(msgspec.Struct, eq=False):
    """A lease that was asked for."""

    _asked: Asked
    _ended: Callable[[], None]

    __repr__ = object.__repr__

    def cancel(self) -> None:
        self._asked.cancel()
        self._ended()  # it may have been taken


def _nothing() -> None:
    """Nobody waits for this answer."""

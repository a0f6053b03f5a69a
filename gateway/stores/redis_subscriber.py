"""Listens to what Redis publishes on one channel, on a connection of its own that reconnects by itself.

Silence proves nothing: a connection can be dead without a sign of it. So the subscriber keeps asking for a sign of life,
and knows up to which instant it has heard everything.
"""

from __future__ import annotations

import asyncio
import random
import select
from collections.abc import Callable

from .redis_endpoint import RedisEndpoint, describe_error
from .redis_wire import RedisError, RedisProtocolError, RedisUnavailable, RedisValue, Wire, pack_commands

_ASK_S = 0.25
_DEAD_S = 2.0
"""If a sign of life takes longer, the connection is given up."""
_PAUSE_S = (0.05, 1.0)
"""First and longest pause between attempts to connect."""
_NEVER = float("-inf")


class RedisSubscriber:
    """One subscription, for one event loop.

    Args:
        endpoint: Where Redis is, shared with whoever publishes: what is published on another server may come late.
        channel: Redis tells channels apart by name alone, whatever the database.
        name: Shown by ``CLIENT LIST``.
        clock: Monotonic seconds.
    """

    def __init__(self, endpoint: RedisEndpoint, *, channel: str, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.trouble = ""
        """What last went wrong, in a word."""
        self.heard_until = _NEVER
        """Everything published before this instant has been heard; what was published later may not have been."""
        self._endpoint = endpoint
        self._channel = channel
        self._clock = clock
        self._on_message: Callable[[bytes], None]
        self._on_subscribed: Callable[[], None]
        self._on_alive: Callable[[], None]
        self._keeper: asyncio.Task[None] | None = None
        self._asked_at: float | None = None
        self._unread = select.poll()
        self._closed = False

    @property
    def listening(self) -> bool:
        """Whether the subscription stands, as far as is known."""
        return self.heard_until > _NEVER

    def heard_within(self, age_s: float) -> bool:
        """Whether everything published up to ``age_s`` seconds ago has been heard."""
        return self._clock() - self.heard_until < age_s

    @property
    def has_unread(self) -> bool:
        """Whether something has arrived that is still unread: the event loop may have got to a request first."""
        return bool(self._unread.poll(0))

    def listen(
        self,
        on_message: Callable[[bytes], None],
        on_subscribed: Callable[[], None],
        on_alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to listen; further calls change nothing.

        Args:
            on_message: Called with each message.
            on_subscribed: Called when a subscription stands, before its first message: earlier ones may have been missed.
            on_alive: Called at each sign of life.
        """
        if self._keeper is None and not self._closed:
            self._on_message, self._on_subscribed, self._on_alive = on_message, on_subscribed, on_alive
            self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"redis-ear {self.name}")

    async def close(self) -> None:
        self._closed, self.heard_until = True, _NEVER
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            self._endpoint.close()

    async def _keep(self) -> None:
        pause = _PAUSE_S[0]
        while True:
            try:
                wire = await self._endpoint.connect(self.name, _DEAD_S, self._on_reply)
            except (OSError, ValueError, RedisError, RedisUnavailable) as refused:  # ValueError: no resolver takes the name
                self.trouble = describe_error(refused)
            else:
                try:
                    if await self._follow(wire):
                        pause = _PAUSE_S[0]
                finally:
                    self.heard_until, self._asked_at, self._unread = _NEVER, None, select.poll()
                    wire.abort()
            # Jittered, so that a fleet does not come back in step.
            await asyncio.sleep(pause * (0.5 + random.random() / 2))  # noqa: S311
            pause = min(pause * 2, _PAUSE_S[1])

    async def _follow(self, wire: Wire) -> bool:
        """Subscribe, and ask for signs of life until none comes or the connection ends. True: the subscription stood."""
        self._unread = select.poll()
        self._unread.register(wire.descriptor(), select.POLLIN)
        self._ask(wire, "SUBSCRIBE", self._channel)
        stood = False
        while True:
            try:
                async with asyncio.timeout(_ASK_S):  # Python 3.11's `wait_for` can forget that it was cancelled
                    await wire.lost.wait()
            except TimeoutError:
                stood = stood or self.listening
                if self._endpoint.has_moved(wire):
                    self.trouble = "moved"
                    return stood
                if self._asked_at is None:
                    self._ask(wire, "PING")
                elif self._clock() - self._asked_at > _DEAD_S:
                    self.trouble = "timeout"
                    return stood
            else:
                self.trouble = self.trouble or "connection lost"
                return stood

    def _ask(self, wire: Wire, *command: str) -> None:
        self._asked_at = self._clock()
        wire.write(pack_commands([command]))

    def _on_reply(self, reply: RedisValue | RedisError) -> None:
        match reply:
            case [b"message", _, bytes() as message]:
                self._on_message(message)
            case [b"pong", _]:
                self._alive()
            case [b"subscribe", _, _]:
                self.trouble = ""
                self._on_subscribed()
                self._alive()
            case RedisError():
                self.trouble = reply.kind
                raise RedisProtocolError
            case _:
                raise RedisProtocolError

    def _alive(self) -> None:
        """Note a sign of life. Redis answers in order, so what it published before it was asked has been heard."""
        if self._asked_at is not None:
            self.heard_until, self._asked_at = self._asked_at, None
            self._on_alive()

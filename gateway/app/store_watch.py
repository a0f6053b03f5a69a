"""Watches the shared stores: connects to them before the first request needs them, and logs each outage and return once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from ..stores.redis_link import RedisError, RedisLink, RedisUnavailable, RedisValue
from ..stores.redis_wire import pack_commands

log = logging.getLogger("gateway.stores")

_CHECK_EVERY_S = 1.0
_PING = pack_commands([("PING",)])


class StoreWatch:
    """Pings each store at start, then checks its link once a second and logs every change."""

    def __init__(self, links: Sequence[RedisLink]) -> None:
        self._links = tuple(links)
        self._was_healthy = dict.fromkeys(self._links, True)
        self._failures = dict.fromkeys(self._links, 0)
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect to the stores that are up, and begin to watch. A store that is down delays the start by no more than its
        own timeout."""
        for link in self._links:
            with contextlib.suppress(RedisUnavailable, RedisError):
                await link.execute("PING")
        self.look()
        if self._links:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="store watch")

    def look(self) -> None:
        """Compare each link with the last check, and log what has changed."""
        for link in self._links:
            healthy = link.healthy
            if healthy is self._was_healthy[link]:
                continue
            self._was_healthy[link] = healthy
            if healthy:
                log.warning("store %s answers again", link.name)
            else:
                log.error(
                    "store %s does not answer (%s): its failure policy decides", link.name, link.trouble or "no reply"
                )

    def ask(self) -> None:
        """Ping each store that left a call unanswered and has not been asked since: no request may ask it for hours."""
        for link in self._links:
            quiet = link.failures == self._failures[link]
            self._failures[link] = link.failures
            if quiet and link.connected and not link.healthy:
                with contextlib.suppress(RedisUnavailable):
                    link.call_batched(_PING, 1, _ignore)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            self.look()
            self.ask()

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)


def _ignore(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
    """Ignore the replies: the link has already drawn its conclusions."""
    del replies

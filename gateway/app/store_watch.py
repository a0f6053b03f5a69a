"""Watching the shared stores: connected before the first request needs them, and their coming and going told once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from ..stores.redis_link import RedisError, RedisLink, RedisUnavailable, RedisValue
from ..stores.redis_wire import packed

log = logging.getLogger("gateway.stores")

_LOOK_S = 1.0
_PING = packed([("PING",)])


class StoreWatch:
    """Greets each link at start, then looks at it once a second and logs every change."""

    def __init__(self, links: Sequence[RedisLink]) -> None:
        self._links = tuple(links)
        self._was = dict.fromkeys(self._links, True)
        self._failures = dict.fromkeys(self._links, 0)
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, as far as the stores are there; a store that is away delays nobody beyond its own timeout."""
        for link in self._links:
            with contextlib.suppress(RedisUnavailable, RedisError):
                await link.execute("PING")
        self.look()
        if self._links:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="store watch")

    def look(self) -> None:
        """Compare with the last look, and say what changed."""
        for link in self._links:
            healthy = link.healthy
            if healthy is self._was[link]:
                continue
            self._was[link] = healthy
            if healthy:
                log.warning("store %s answers again", link.name)
            else:
                log.error(
                    "store %s does not answer (%s): its failure policy decides", link.name, link.trouble or "no reply"
                )

    def ask(self) -> None:
        """One that left a call unanswered, and that nobody has asked since: nobody may for hours."""
        for link in self._links:
            quiet = link.failures == self._failures[link]
            self._failures[link] = link.failures
            if quiet and link.connected and not link.healthy:
                with contextlib.suppress(RedisUnavailable):
                    link.ask(_PING, 1, _heard)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()
            self.ask()

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)


def _heard(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
    """The link has drawn its conclusions."""
    del replies

"""Two levels of cache: copies in this process in front of the cache that all gateways share.

A copy is made only of what was just read from Redis, and serves only where GitLab need not be asked: before it goes
upstream, a gateway looks in Redis itself. Redis publishes what is purged or dropped; what a gateway purges or drops itself
takes effect on its copies at once. A purge is complete when its message is on its way to every gateway, and a gateway looks
for unread messages before it uses a copy: a client that wrote through one gateway may read through another the next moment.
A read that was under way when such a message arrived makes no copy. A gateway that cannot be sure to have heard everything
up to a moment ago leaves its copies unused; when it listens anew, it begins with none.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.cache_entry import Entry, LazyEntry
from ..ports import Cancellable, Lookup
from .cache_leases import LEASE_PREFIX, RedisLeases
from .cache_memory import MemoryCacheStore
from .cache_redis import PURGED_PREFIX, RedisCacheStore
from .redis_subscriber import RedisSubscriber

TRUST_S = 1.0
"""The longest that copies are served after a purge that went unheard."""
_LONGEST_S = 60.0
"""A copy is read from Redis again at least this often, so that what an operator flushes there disappears here, too."""


class TwoLevelCacheStore:
    """A CacheStore in front of another; as ``RedisCacheStore``, it can also be asked without waiting.

    Args:
        far: The shared level; closed with this one.
        subscriber: Listens on ``GONE_CHANNEL``; closed with this one.
        max_bytes: Bound on all copies together, as ``MemoryCacheStore`` counts them.
        clock: Monotonic seconds; also the subscriber's clock.
        leases: Notified which leases are over: those messages share the channel.
    """

    copies = True

    def __init__(
        self,
        far: RedisCacheStore,
        subscriber: RedisSubscriber,
        *,
        max_bytes: int,
        clock: Callable[[], float],
        leases: RedisLeases | None = None,
    ) -> None:
        self._far = far
        self._subscriber = subscriber
        self._max_bytes = max_bytes
        self._clock = clock
        self._leases = leases
        self._reading: dict[bytes, object] = {}
        self.near = MemoryCacheStore(max_bytes, clock)
        self.hits = 0
        far.on_publish_refused = self._reset

    @property
    def trusted(self) -> bool:
        """Whether every purge up to a moment ago has been heard, and no message waits to be read. Where Redis refuses
        purges, or refuses to publish them, nothing is heard of them."""
        subscriber, far = self._subscriber, self._far
        return subscriber.heard_within(TRUST_S) and not subscriber.has_unread and not far.refuses and far.publishes

    @property
    def trouble(self) -> str | None:
        """Why no copy is used; None while this gateway listens to Redis, and Redis publishes."""
        if not self._subscriber.listening:
            return self._subscriber.trouble or "not listening yet"
        return None if self._far.publishes else "PUBLISH is refused"

    def start(self) -> None:
        """Begin to listen; copies are made once Redis has confirmed it. Needs a running loop."""
        self._subscriber.listen(self._on_message, self._reset, self._far.probe)

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        near, far = self.near, self._far
        name, names = far.value_name(key), far.tag_names(tags)
        if not self.trusted:
            self.start()
            if anew:  # what Redis answers may be newer than the copy
                self._drop(name)
            return await far.read(key, name, names)
        copy = near.get_now(name, names)
        if anew:
            if not copy.entries:  # where Redis is asked every time, a copy would never be used
                return await far.read(key, name, names)
        elif copy.entries:
            self.hits += 1
            return Lookup(copy.entries, near=True)
        reading = self._reading[name] = object()
        try:
            lookup = await far.read(key, name, names)
            if lookup.entries and self._reading.get(name) is reading:
                # Refused if one of the tags was purged since. If copies were dropped meanwhile, nobody reads this `near`.
                await near.put(name, lookup.entries, _LONGEST_S, names, copy.stamp)
        finally:
            if self._reading.get(name) is reading:
                del self._reading[name]
        return lookup

    def get_soon(self, key: bytes, tags: tuple[bytes, ...], then: Callable[[Lookup], None]) -> Cancellable | None:
        """As ``get`` where there is no copy here, without a coroutine; no copy is made of what is read."""
        far = self._far
        if not self.trusted or self.near.find(far.value_name(key), far.tag_names(tags)) is not None:
            return None
        return far.get_soon(key, tags, then)

    def put_now(self, key: bytes, entry: LazyEntry, ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        self._drop(self._far.value_name(key))
        return self._far.put_now(key, entry, ttl_s, tags, stamp)

    def delete_now(self, key: bytes) -> None:
        self._drop(self._far.value_name(key))
        self._far.delete_now(key)

    def finder_for(self, key: bytes, tags: tuple[bytes, ...]) -> Callable[[], Entry | None]:
        """A function that returns the copy's first entry, however often it is called; None: no copy may be used."""
        name, names = self._far.value_name(key), self._far.tag_names(tags)

        def look() -> Entry | None:
            if not self.trusted:
                return None
            entry = self.near.find(name, names)
            if entry is not None:
                self.hits += 1
            return entry

        return look

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        del tags  # readers name them
        name = self._far.value_name(key)
        self._drop(name)
        return await self._far.write(key, name, entries, ttl_s, stamp)

    async def delete(self, key: bytes) -> None:
        self._drop(self._far.value_name(key))
        await self._far.delete(key)

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        self.near.purge_now(self._far.tag_names(tags))
        purged = await self._far.purge(tags, hold_s)
        if purged:
            await self._far.wait_published()
        return purged

    async def close(self) -> None:
        await self._subscriber.close()
        await self._far.close()

    # Messages from Redis

    def _on_message(self, name: bytes) -> None:
        if name.startswith(PURGED_PREFIX):
            self.near.purge_now((name,))
        elif name.startswith(LEASE_PREFIX):
            if self._leases is not None:
                self._leases.wake_waiters(name)
        else:
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        self._reading.pop(name, None)
        self.near.delete_now(name)

    def forget(self) -> None:
        """Drop all copies, and those that are being made."""
        self._reset()

    def _reset(self) -> None:
        self._reading.clear()
        self.near = MemoryCacheStore(self._max_bytes, self._clock)

"""A miss whose answer can be stored at once: what ``PrivateAsking`` does for one that nobody has to wait for.

The flight is the same, and so are the entries: whoever asks the same meanwhile, on whichever way, waits for this answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..core.cache_entry import Entry
from ..core.messages import ResponseHead
from ..ports import Lookup
from .contract import Like
from .mould import Told, saying
from .private_asking import Joined, PrivateAsking


class AtHand(Protocol):
    """A store in this process: ``ports.CacheStore`` without its waits."""

    def peek(self, key: bytes, tags: tuple[bytes, ...]) -> Lookup: ...
    def place(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool: ...
    def drop(self, key: bytes) -> None: ...


class PrivateLeading:
    """See ``contract.Leading``.

    Args:
        asking: Of the same cache.
        store: Where the answer goes.
        target: That is asked for.
        like: What is known of it.
        key: Of its answer.
        stamp: The store's, of when nothing was there.
        flight: That it leads.
        now: Unix seconds.
    """

    __slots__ = ("_asking", "_flight", "_key", "_like", "_now", "_stamp", "_store", "_target")

    def __init__(
        self,
        asking: PrivateAsking,
        store: AtHand,
        target: bytes,
        like: Like,
        key: bytes,
        stamp: int,
        flight: Joined,
        now: Callable[[], float],
    ) -> None:
        self._asking = asking
        self._store = store
        self._target = target
        self._like = like
        self._key = key
        self._stamp = stamp
        self._flight = flight
        self._now = now

    def abandon(self) -> None:
        self._flight.abandon()

    def overtaken(self) -> bool:
        return self._store.peek(self._key, self._like.tags).version > self._stamp

    def answered(self, head: ResponseHead, whole: bytes) -> Told | None:
        shape, asking, like = head.shape, self._asking, self._like
        if shape is None or len(whole) > asking.max_entry_bytes:
            return None
        mould = like.moulds.get((shape, saying(shape)(head.fields)))
        if mould is None:
            mould = asking.moulded(head, like)
            if mould is None:
                return None
        if mould.keep is None:
            self._flight.land(None)  # nothing to share: each asks for itself
            return mould.told
        fresh = mould.entry(head, whole, self._now())
        if fresh is None:
            return None
        if not like.taught:
            asking.tagging.learn(self._target, head, whole)
        stored = self._store.place(self._key, (fresh,), like.keep_s, like.tags, self._stamp)
        if not stored:
            self._store.drop(self._key)
        asking.landed(self._flight, fresh, 200)
        return mould.told if stored else mould.overtaken

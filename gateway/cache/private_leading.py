"""A miss whose answer can be stored at once: does what ``PrivateAsking`` does, where nothing has to be waited for.

The flights are the same, and so are the entries: whoever asks the same meanwhile, by either way, waits for this answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from ..core.cache_entry import LateEntry
from ..core.head_form import Blanks, Values
from ..core.messages import Fields, ResponseHead
from ..ports import Asked, Lookup
from ..reply import Reply
from .contract import CacheOutcome, Found, Like
from .mould import Cast, Mould, Told, saying
from .private_asking import Joined, Landing, PrivateAsking


class Placing(Protocol):
    """A store that is written to without waiting: as ``put`` and ``delete`` of ``ports.CacheStore``."""

    def place(self, key: bytes, entry: LateEntry, ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool: ...
    def drop(self, key: bytes) -> None: ...


class AtHand(Placing, Protocol):
    """A store in this process, which is read without waiting, too."""

    def peek(self, key: bytes, tags: tuple[bytes, ...]) -> Lookup: ...


class Afar(Placing, Protocol):
    """A store elsewhere, which answers through a callback. What is written is sent, and its arrival not waited for."""

    copies: bool
    """Whether ``get`` makes copies of what it reads, for the next request."""

    def look(self, key: bytes, tags: tuple[bytes, ...], then: Callable[[Lookup], None]) -> Asked | None:
        """As ``get``; ``then`` is called once, later. Returns None, with nothing asked, where only ``get`` will do: a copy
        is here, or the store can't be asked."""
        ...


class PrivateLeading(msgspec.Struct, eq=False):  # a struct is made in a third of the time
    """Leads a miss; see ``contract.Leading``."""

    _asking: PrivateAsking
    """That of the same cache."""
    _store: Placing
    """Where the answer goes."""
    _target: bytes
    _like: Like
    _key: bytes
    """The answer's key."""
    _lookup: Lookup
    """The lookup that found nothing."""
    flight: Joined
    """The flight that it leads."""
    _now: Callable[[], float]
    """Unix seconds."""
    _version: int
    """The version of ``_like`` at the lookup."""
    conditions: Fields = ()

    __repr__ = object.__repr__

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome] | None:
        del head
        return None

    def abandon(self) -> None:
        self.flight.abandon()

    def found(self) -> Found:
        return Found(self._lookup, self._version)

    def answered(self, head: ResponseHead, whole: bytes) -> Told | None:
        mould = self._mould(head)
        if mould is None or len(whole) > self._asking.max_entry_bytes:
            return None
        if mould.keep is None:
            return self._unshared(mould)
        fresh = mould.entry(head, whole, self._now())
        if fresh is None:
            return None
        if not self._like.taught:
            self._asking.tagging.learn(self._target, head, whole)
        return self._stored(mould, fresh)

    def cast(self, blanks: Blanks, head: ResponseHead) -> Cast | None:
        mould = self._mould(head)
        return Cast(mould, self._like.reuse_s, blanks, head) if mould is not None else None

    def likewise(self, cast: Cast, values: Values, whole: bytes) -> Told | None:
        mould = cast.mould
        like = self._like
        if cast.reuse_s != like.reuse_s or len(whole) > self._asking.max_entry_bytes:
            return None
        if mould.keep is None:
            return self._unshared(mould)
        late = cast.late(values, whole, self._now())
        if late is None:
            return None
        if not like.taught:
            self._asking.tagging.learn_coded(self._target, cast.coding, whole)
        return self._stored(mould, late)

    def _mould(self, head: ResponseHead) -> Mould | None:
        shape, like = head.shape, self._like
        if shape is None:
            return None
        return like.moulds.get((shape, saying(shape)(head.fields), like.reuse_s)) or self._asking.moulded(head, like)

    def _unshared(self, mould: Mould) -> Told:
        self.flight.land(None)  # each asks for itself
        return mould.told

    def _stored(self, mould: Mould, late: LateEntry) -> Told:
        like = self._like
        stored = self._store.place(self._key, late, like.keep_s, like.tags, self._lookup.stamp)
        if not stored:
            self._store.drop(self._key)
        self.flight.land(Landing(late.made(), 200) if self.flight.waiters else None)
        return mould.told if stored else mould.overtaken

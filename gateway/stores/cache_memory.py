"""The cache in this process: bounded by octets, evicted by S3-FIFO.

S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023): new keys enter a
small queue with a tenth of the space; only those asked for again before they reach its end move to the main queue, so a
scan of things nobody asks for twice flushes nothing. A queue of ghosts (keys without values) lets a key that comes back
soon enter the main queue at once. A hit only counts; nothing is moved.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from ..core.cache_entry import Entry, LazyEntry
from ..ports import Lookup

SMALL_SHARE = 0.1
"""The small queue's share of the space, as in the paper."""
_MOST_HITS = 3  # the paper counts in two bits
_LARGEST_SHARE = 8  # nothing larger than an eighth of the space: one answer must not flush the rest
_PURGES_KEPT = 65_536
_FEWEST_GHOSTS = 64  # kept, however small the main queue is


class _Slot(msgspec.Struct, gc=False):
    """One key's entries."""

    key: bytes
    entries: tuple[Entry, ...]
    tags: tuple[bytes, ...]
    stamp: int
    expires_at: float
    size: int
    main: bool
    """Whether it is in the main queue, that of keys that were asked for again."""
    hits: int = 0
    late: LazyEntry | None = None
    """What the only entry is made from when it is first needed; None: ``entries`` holds them all."""

    __repr__ = object.__repr__

    def materialise(self) -> tuple[Entry, ...]:
        if self.late is not None:
            self.entries, self.late = (self.late.materialise(),), None
        return self.entries


class MemoryCacheStore:
    """A CacheStore of one process; no operation awaits, so each is atomic.

    Args:
        max_bytes: Bound on all entries together, by the cost that ``Entry.size_bytes`` counts.
        clock: Monotonic seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._most_small_bytes = max_bytes * SMALL_SHARE
        self._largest_bytes = max_bytes // _LARGEST_SHARE
        self._clock = clock
        self._slots: dict[bytes, _Slot] = {}
        self._small: OrderedDict[bytes, _Slot] = OrderedDict()
        self._main: OrderedDict[bytes, _Slot] = OrderedDict()
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._small_bytes = 0
        self.used_bytes = 0
        self.evictions = 0
        # Each tag's last purge is remembered; what is older than the latest forgotten purge counts as purged, too. Instants
        # are microseconds, pushed on by each purge, so that no two events whose order matters share one.
        self._purges: OrderedDict[bytes, int] = OrderedDict()
        self._latest = 0
        self._forgotten = 0

    def __len__(self) -> int:
        return len(self._slots)

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        del anew  # there is no other store behind this one
        return self.get_now(key, tags)

    def finder_for(self, key: bytes, tags: tuple[bytes, ...]) -> Callable[[], Entry | None]:
        """``find`` as a function of no arguments, to be called any number of times."""
        return functools.partial(self.find, key, tags)

    def find(self, key: bytes, tags: tuple[bytes, ...]) -> Entry | None:
        """The first entry that ``get`` would return, at once; None where there is none."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        version = self._purged_at(tags) if self._purges else self._forgotten
        if version > slot.stamp or slot.expires_at <= self._clock():
            self._remove(slot)
            return None
        if slot.hits < _MOST_HITS:
            slot.hits += 1
        entries = slot.entries if slot.late is None else slot.materialise()
        return entries[0] if entries else None

    def get_now(self, key: bytes, tags: tuple[bytes, ...]) -> Lookup:
        """As ``get``, at once."""
        version = self._purged_at(tags) if self._purges else self._forgotten
        slot = self._slots.get(key)
        clock = self._clock()
        stamp = max(int(clock * 1_000_000), self._latest)
        if slot is None:
            return Lookup((), stamp, version)
        if version > slot.stamp or slot.expires_at <= clock:
            self._remove(slot)
            return Lookup((), stamp, version)
        if slot.hits < _MOST_HITS:
            slot.hits += 1
        return Lookup(slot.materialise(), stamp, version)

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        return self._put(key, entries, None, sum([entry.size_bytes for entry in entries]), ttl_s, tags, stamp)

    def put_now(self, key: bytes, entry: LazyEntry, ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        """As ``put`` of one entry, at once."""
        return self._put(key, (), entry, entry.size_bytes, ttl_s, tags, stamp)

    def _put(
        self,
        key: bytes,
        entries: tuple[Entry, ...],
        late: LazyEntry | None,
        size: int,
        ttl_s: float,
        tags: tuple[bytes, ...],
        stamp: int,
    ) -> bool:
        if (self._purged_at(tags) if self._purges else self._forgotten) > stamp or ttl_s <= 0:
            return False
        size += len(key)
        old = self._slots.get(key)
        if size > self._largest_bytes:
            if old is not None:  # the stored answer is no longer the latest
                self._remove(old)
            return False
        expires_at = self._clock() + ttl_s
        if old is not None:
            self._count(old, size - old.size)
            old.entries, old.late, old.size = entries, late, size
            old.tags, old.stamp, old.expires_at = tags, stamp, expires_at
        else:
            main = key in self._ghosts
            slot = self._slots[key] = _Slot(key, entries, tags, stamp, expires_at, size, main, 0, late)
            if main:
                del self._ghosts[key]
                self._main[key] = slot
            else:
                self._small[key] = slot
                self._small_bytes += size
            self.used_bytes += size
        if self.used_bytes <= self._max_bytes:
            return True
        self._make_room()
        return key in self._slots

    async def delete(self, key: bytes) -> None:
        self.delete_now(key)

    def delete_now(self, key: bytes) -> None:
        """As ``delete``, at once."""
        slot = self._slots.get(key)
        if slot is not None:
            self._remove(slot)

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        self.purge_now(tags, hold_s)
        return True

    def purge_now(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> None:
        """As ``purge``, at once."""
        self._latest = max(int(self._clock() * 1_000_000), self._latest) + 1
        at = self._latest + int(hold_s * 1_000_000)
        for tag in tags:
            self._purges[tag] = max(at, self._purges.get(tag, 0))
            self._purges.move_to_end(tag)
        while len(self._purges) > _PURGES_KEPT:
            self._forgotten = max(self._forgotten, self._purges.popitem(last=False)[1])

    def forget(self) -> None:
        """Drop everything, answers that are still on their way here included."""
        self._latest = self._forgotten = max(int(self._clock() * 1_000_000), self._latest, self._forgotten) + 1
        for slot in list(self._slots.values()):
            self._remove(slot)

    async def close(self) -> None:
        self._slots.clear()
        self._small.clear()
        self._main.clear()

    def _purged_at(self, tags: tuple[bytes, ...]) -> int:
        latest = self._forgotten
        purges = self._purges
        for tag in tags:
            at = purges.get(tag, 0)
            latest = max(latest, at)
        return latest

    # The queues

    def _count(self, slot: _Slot, octets: int) -> None:
        self.used_bytes += octets
        if not slot.main:
            self._small_bytes += octets

    def _remove(self, slot: _Slot) -> None:
        del self._slots[slot.key]
        del (self._main if slot.main else self._small)[slot.key]
        self._count(slot, -slot.size)

    def _make_room(self) -> None:
        """Evict keys until the others fit; a key that was asked for again gets another round instead."""
        small, main, ghosts = self._small, self._main, self._ghosts
        while self.used_bytes > self._max_bytes:
            if small and (self._small_bytes > self._most_small_bytes or not main):
                key, slot = small.popitem(last=False)
                self._small_bytes -= slot.size
                if slot.hits:
                    slot.main, slot.hits = True, 0
                    main[key] = slot
                    continue
                ghosts[key] = None
                most_ghosts = max(len(main), _FEWEST_GHOSTS)
                while len(ghosts) > most_ghosts:
                    ghosts.popitem(last=False)
            else:
                key, slot = main.popitem(last=False)
                if slot.hits:
                    slot.hits -= 1
                    main[key] = slot
                    continue
            del self._slots[key]
            self.used_bytes -= slot.size
            self.evictions += 1

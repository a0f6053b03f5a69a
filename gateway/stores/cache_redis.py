"""The cache shared by several gateways: one value per key, one number per purged tag, a TTL on both.

A lookup is one round trip and one MGET: the value, and when each of its tags was last purged. A value carries the moment
at which its request was about to go up; what was purged since is dead wherever it is read. So a purge costs one write,
needs no list of members, reaches every gateway at once, and also beats answers that are still on their way.

When an answer came is said by Redis's clock there, and by a gateway's own once it is read: of two gateways whose clocks are
minutes apart, one would take the other's answers for fresh for minutes more.

All names share one hash slot of a Redis Cluster, so that what is asked in one round trip lives on one node, under one
clock. What is purged or dropped is published, too, for the copies that gateways keep in memory (``cache_levels``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..core.cache_entry import Entry, LateEntry
from ..core.lately import Lately
from ..ports import Asked, Lookup
from .codec import Codec
from .redis_link import Command, RedisError, RedisLink, RedisUnavailable, RedisValue
from .redis_wire import packed

log = logging.getLogger("gateway.stores")

_LUA = Path(__file__).parent / "lua"
_PURGE = (_LUA / "cache_purge.lua").read_text("utf-8")
_DROP = (_LUA / "cache_drop.lua").read_text("utf-8")
_PROBING = (_LUA / "cache_probe.lua").read_text("utf-8")
GONE_CHANNEL = "ggw:cache:gone"
"""Where the scripts publish the names of what they purged or dropped."""
PURGED_PREFIX = b"{ggw:cache}:purged:"
_VALUE_PREFIX = b"{ggw:cache}:value:"
_MOST_OWED = 4096
_OWED_BATCH = 256
"""Confirmed or not together: what is much is struck off bit by bit."""
_PAY_EVERY_S = 0.5
"""What Redis refused, or did not confirm in time, is sent again so often."""
_PROBE_EVERY_S = 0.75
_PROBE = packed([("EVAL", _PROBING, 1, PURGED_PREFIX)])
"""Refused as a purge would be, by an ACL, too, and changes nothing: no tag has that name."""
_MOST_DIGITS = 20
_APART_S = 1.0
"""Clocks closer than this are taken for one: most are, and an entry need not be copied then."""
_TAG_NAMES_KEPT = 16_384
_TAG_SETS_KEPT = 4096
_NAMES_KEPT = 1024
"""Of values: a name is asked for several times while one request is under way."""
_LONGEST_KEPT_BYTES = 1024
_LONGEST_S = 7 * 86_400.0
"""No value lives longer, and a purge is remembered for longer than that."""
_REMEMBERED_MS = int((_LONGEST_S + 3600) * 1000)


class RedisCacheStore:
    """A CacheStore in Redis or Valkey, on a link of its own (large values would hold up the buckets').

    Args:
        link: Its timeout bounds every call.
        codec: Encrypts values and hides names.
        largest_bytes: Larger values are not sent.
        wall: Unix seconds, by which entries say when they came.
    """

    copies = False

    def __init__(
        self, link: RedisLink, codec: Codec, *, largest_bytes: int = 8 << 20, wall: Callable[[], float] = time.time
    ) -> None:
        self._link = link
        self._codec = codec
        self._largest_bytes = largest_bytes
        # What Redis did not confirm goes first in the next round trip, before anything is read: at once on a new
        # connection, now and then while it is refused. Should it become too much to remember, nothing that was stored
        # before Redis answered again is believed.
        self._owed: dict[bytes, Command] = {}
        self._payment: asyncio.TimerHandle | None = None
        self._closed = False
        self._probed_at = float("-inf")
        self._tag_names: Lately[bytes, bytes] = Lately(_TAG_NAMES_KEPT)
        self._tag_sets: Lately[tuple[bytes, ...], tuple[bytes, ...]] = Lately(_TAG_SETS_KEPT)
        self._names: Lately[bytes, bytes] = Lately(_NAMES_KEPT)
        self._wall = wall
        self._ahead_s = 0.0
        """Redis's clock of ours, by what it told."""
        self._lost_count = False
        self._believed_from = 0
        self.outages = 0
        self.tells = True
        """What is purged is published, as far as is known: an ACL may allow the one and not the other."""
        self.silenced: Callable[[], None] = _nothing
        """Called when it turns out not to be."""
        link.greet = self._greet

    @property
    def refuses(self) -> bool:
        """Redis takes no writes, by what it last said: purges of others may be missing from what it answers."""
        return self._link.refuses

    def probe(self) -> None:
        """Find out whether Redis takes writes, once in a while. Nothing else tells a gateway that only reads."""
        now = time.monotonic()
        if now - self._probed_at >= _PROBE_EVERY_S and not self._closed:
            self._probed_at = now
            with contextlib.suppress(RedisUnavailable):  # whoever reads finds that out
                self._link.ask(_PROBE, 1, self._probed)

    def _probed(self, replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
        self._placed(replies)
        if isinstance(replies, RedisUnavailable):
            return
        if not isinstance(replies[0], int):
            self._link.complain(replies[0])
            return
        self.tells = bool(replies[0])
        if not self.tells:
            self.silenced()

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        del anew  # nothing else is ever read
        return await self.read(key, self.value_name(key), self.tag_names(tags))

    async def read(self, key: bytes, name: bytes, tag_names: tuple[bytes, ...]) -> Lookup:
        """As ``get``, by the names of key and tags in Redis."""
        self.probe()
        if self._link.refuses:
            self.outages += 1
            return Lookup(available=False)
        owed, asked_at = dict(self._owed), self._wall()
        try:
            replies = await self._link.execute_many([*owed.values(), ("TIME",), ("MGET", *tag_names, name)])
        except RedisUnavailable:
            self.outages += 1
            return Lookup(available=False)
        if owed and not self._settle(owed, replies[: len(owed)]):
            return Lookup(available=False)
        return self._lookup(key, asked_at, *replies[len(owed) :])

    def look(self, key: bytes, tags: tuple[bytes, ...], then: Callable[[Lookup], None]) -> Asked | None:
        """As ``get``, without a coroutine: ``then`` is called once, later. None, and nothing was asked, where Redis is to
        be told something first, or cannot be asked."""
        self.probe()
        if self._owed or self._link.refuses:
            return None
        asked_at = self._wall()

        def looked(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
            lookup = Lookup(available=False)
            try:
                if not isinstance(replies, RedisUnavailable):
                    lookup = self._lookup(key, asked_at, *replies)
                else:
                    self.outages += 1
            except Exception:
                log.exception("fault in the cache's store")  # whoever asked would wait for ever
            then(lookup)

        octets = packed([("TIME",), ("MGET", *self.tag_names(tags), self.value_name(key))])
        with contextlib.suppress(RedisUnavailable):  # whoever waits for it finds that out
            return self._link.ask(octets, 2, looked)
        return None

    def _lookup(
        self, key: bytes, asked_at: float, clock: RedisValue | RedisError, values: RedisValue | RedisError
    ) -> Lookup:
        """What Redis answered to TIME and MGET."""
        stamp = _microseconds(clock)
        if stamp is None or not isinstance(values, list) or self._link.refuses:  # a probe went before
            self.outages += 1
            return Lookup(available=False)
        told_at = stamp / 1_000_000
        # It was told some time between: what is believed stays, unless that can't be. Of a gateway that was stopped for a
        # while (a machine that is moved), the way back alone would make stored answers younger by that while.
        self._ahead_s = max(min(self._ahead_s, told_at - asked_at), told_at - self._wall())
        if self._lost_count:
            self._lost_count, self._believed_from = False, stamp
        *purges, value = values
        version = self._believed_from
        for at in purges:
            if isinstance(at, bytes) and at.isdigit() and len(at) <= _MOST_DIGITS:
                version = max(version, int(at))
        stored = self._codec.decode(key, value) if isinstance(value, bytes) else None
        if stored is None or version >= stored[0]:
            return Lookup((), stamp, version)
        return Lookup(_shifted(stored[1], -self._ahead_s), stamp, version)

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        del tags  # whoever reads asks for them
        return await self.write(key, self.value_name(key), entries, ttl_s, stamp)

    async def write(self, key: bytes, name: bytes, entries: tuple[Entry, ...], ttl_s: float, stamp: int) -> bool:
        """As ``put``, by the name of the key in Redis."""
        if ttl_s <= 0:
            return False
        value = self._codec.encode(key, stamp, _shifted(entries, self._ahead_s))
        if len(value) > self._largest_bytes:
            await self.delete(key)
            return False
        try:
            await self._link.execute("SET", name, value, "PX", _milliseconds(ttl_s))
        except (RedisUnavailable, RedisError):
            self.outages += 1
            return False
        return True

    def place(self, key: bytes, entry: LateEntry, ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        """As ``put`` of one, without a wait: True says that it is on its way, to a Redis that took what it was told of
        late. Whatever this gateway asks next comes behind it."""
        del tags
        if ttl_s <= 0 or not self._link.healthy:
            return False
        value = self._codec.encode(key, stamp, _shifted((entry.made(),), self._ahead_s))
        if len(value) > self._largest_bytes:
            self.drop(key)
            return False
        try:
            # At once: who is told the answer may ask another gateway the next moment.
            self._link.call(packed([("SET", self.value_name(key), value, "PX", _milliseconds(ttl_s))]), self._placed)
        except RedisUnavailable:
            self.outages += 1
            return False
        return True

    def _placed(self, replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
        self.outages += isinstance(replies, RedisUnavailable) or isinstance(replies[0], RedisError)

    def drop(self, key: bytes) -> None:
        """As ``delete``, without a wait."""
        name = self.value_name(key)
        command: Command = ("EVAL", _DROP, 1, name)
        owed = {name: command}
        self._owe(owed)
        with contextlib.suppress(RedisUnavailable):  # it goes first in the next round trip
            self._link.call(packed([command]), functools.partial(self._paid, owed))

    async def delete(self, key: bytes) -> None:
        name = self.value_name(key)
        await self._insist({name: ("EVAL", _DROP, 1, name)})

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        names = self.tag_names(tags)
        hold_us = int(hold_s * 1_000_000)
        return await self._insist({name: ("EVAL", _PURGE, 1, name, _REMEMBERED_MS, hold_us) for name in names})

    async def sent(self) -> None:
        """What scripts published before this is on its way to all who listen: Redis writes to each of them before it
        reads another command."""
        with contextlib.suppress(RedisUnavailable, RedisError):
            await self._link.execute("PING")

    async def close(self) -> None:
        self._closed = True
        if self._payment is not None:
            self._payment.cancel()
        await self._link.close()

    def value_name(self, key: bytes) -> bytes:
        """Where its value is, in Redis."""
        name = self._names.get(key)
        if name is None:
            name = _VALUE_PREFIX + self._codec.name(key)
            if len(key) <= _LONGEST_KEPT_BYTES:
                self._names.put(key, name)
        return name

    def tag_names(self, tags: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Where their last purges are, in Redis."""
        names = self._tag_sets.get(tags)
        if names is None:
            names = tuple(map(self._tag_name, tags))
            if sum(map(len, tags)) <= _LONGEST_KEPT_BYTES:
                self._tag_sets.put(tags, names)
        return names

    def _tag_name(self, tag: bytes) -> bytes:
        name = self._tag_names.get(tag)
        if name is None:
            name = PURGED_PREFIX + self._codec.name(tag)
            if len(tag) <= _LONGEST_KEPT_BYTES:
                self._tag_names.put(tag, name)
        return name

    async def _insist(self, commands: dict[bytes, Command]) -> bool:
        """Commands that must take effect before this gateway reads again, now or later."""
        self._owe(commands)
        try:
            replies = await self._link.execute_many(list(commands.values()))
        except RedisUnavailable:
            self.outages += 1
            return False
        return self._settle(commands, replies)

    def _owe(self, commands: dict[bytes, Command]) -> None:
        self._owed.update(commands)
        if len(self._owed) > _MOST_OWED:
            self._owed.clear()
            self._lost_count = True
        self._pay_later()

    def _greet(self) -> None:
        """Before anything is asked on a new connection."""
        self._probed_at = float("-inf")
        self._pay()

    def _pay_later(self) -> None:
        """Whoever waits for a confirmation may leave, and this gateway may read nothing for long: others do."""
        if self._payment is None and self._owed and not self._closed:
            self._payment = asyncio.get_running_loop().call_later(_PAY_EVERY_S, self._pay)

    def _pay(self) -> None:
        """Send what is owed, and again later until nothing is."""
        if self._payment is not None:
            self._payment.cancel()
            self._payment = None
        owed = list(self._owed.items()) if self._link.connected else []
        for start in range(0, len(owed), _OWED_BATCH):
            batch = dict(owed[start : start + _OWED_BATCH])
            with contextlib.suppress(RedisUnavailable):
                self._link.ask(packed(list(batch.values())), len(batch), functools.partial(self._paid, batch))
        self._pay_later()

    def _paid(self, owed: dict[bytes, Command], replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
        if isinstance(replies, RedisUnavailable):
            self.outages += 1
        else:
            self._settle(owed, replies)

    def _settle(self, owed: dict[bytes, Command], replies: list[RedisValue | RedisError]) -> bool:
        """Strike off what Redis confirmed; False while anything is left owing (a read-only replica, say)."""
        failed = False
        for (name, command), reply in zip(owed.items(), replies, strict=True):
            if isinstance(reply, RedisError):
                failed = True
            elif self._owed.get(name) is command:  # what came to be owed since is another
                del self._owed[name]
        self.outages += failed
        return not failed


def _nothing() -> None:
    """Nobody has copies."""


def _shifted(entries: tuple[Entry, ...], by_s: float) -> tuple[Entry, ...]:
    """``entries`` as of another clock."""
    if -_APART_S < by_s < _APART_S:
        return entries
    return tuple([msgspec.structs.replace(entry, received_at=entry.received_at + by_s) for entry in entries])


def _milliseconds(ttl_s: float) -> int:
    return max(1, int(min(ttl_s, _LONGEST_S) * 1000))


def _microseconds(clock: RedisValue | RedisError) -> int | None:
    """Redis's TIME reply as one number."""
    if isinstance(clock, list) and len(clock) == 2:
        seconds, micros = clock
        if isinstance(seconds, bytes) and isinstance(micros, bytes):
            return int(seconds) * 1_000_000 + int(micros)
    return None

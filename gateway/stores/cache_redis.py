"""The cache shared by several gateways: one value per key, one number per purged tag, a TTL on both.

A lookup is one round trip and one MGET: the value, and when each of its tags was last purged. A value carries the moment
just before its request was sent upstream; if a tag was purged since, the value is dead wherever it is read. So a purge
costs one write, needs no list of members, reaches every gateway at once, and also beats answers that are still on their
way.

The time at which an answer arrived is stored by Redis's clock, and converted to a gateway's own when it is read: otherwise,
of two gateways whose clocks are minutes apart, one would take the other's answers for fresh for minutes too long.

All names share one hash slot of a Redis Cluster, so that whatever is asked for in one round trip lives on one node, under
one clock. Purges and drops are also published, for the copies that gateways keep in memory (``cache_levels``).
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

from ..core.cache_entry import Entry, LazyEntry
from ..core.generation_cache import GenerationCache
from ..ports import Cancellable, Lookup
from .codec import Codec
from .redis_link import Command, RedisError, RedisLink, RedisUnavailable, RedisValue
from .redis_wire import pack_commands, server_time_us

log = logging.getLogger("gateway.stores")

_LUA = Path(__file__).parent / "lua"
_PURGE = (_LUA / "cache_purge.lua").read_text("utf-8")
_DROP = (_LUA / "cache_drop.lua").read_text("utf-8")
_PROBE_SCRIPT = (_LUA / "cache_probe.lua").read_text("utf-8")
GONE_CHANNEL = "ggw:cache:gone"
"""Where the scripts publish the names of what they purged or dropped."""
PURGED_PREFIX = b"{ggw:cache}:purged:"
_VALUE_PREFIX = b"{ggw:cache}:value:"
_MAX_UNCONFIRMED = 4096
_RESEND_BATCH = 256
"""Commands that are sent, and confirmed or not, together: a long list is confirmed bit by bit."""
_RESEND_EVERY_S = 0.5
"""How often what Redis refused, or did not confirm in time, is sent again."""
_PROBE_EVERY_S = 0.75
_PROBE = pack_commands([("EVAL", _PROBE_SCRIPT, 1, PURGED_PREFIX)])
"""Refused where a purge would be, by an ACL, too, but changes nothing: no tag has that name."""
_MOST_DIGITS = 20
_APART_S = 1.0
"""Clocks closer than this are taken for one: most are, and then no entry need be copied."""
_TAG_NAMES_KEPT = 16_384
_TAG_SETS_KEPT = 4096
_NAMES_KEPT = 1024
"""How many names of values are kept: each is asked for several times while one request is under way."""
_LONGEST_KEPT_BYTES = 1024
_LONGEST_S = 7 * 86_400.0
"""No value lives longer than this, and a purge is remembered for longer."""
_REMEMBERED_MS = int((_LONGEST_S + 3600) * 1000)


class RedisCacheStore:
    """A CacheStore in Redis or Valkey, on a link of its own (large values would hold up the buckets' link).

    Args:
        link: Its timeout bounds every call.
        codec: Encrypts values and hides names.
        largest_bytes: Larger values are not sent.
        wall: Unix seconds: the clock by which entries say when they arrived.
    """

    copies = False

    def __init__(
        self, link: RedisLink, codec: Codec, *, largest_bytes: int = 8 << 20, wall: Callable[[], float] = time.time
    ) -> None:
        self._link = link
        self._codec = codec
        self._largest_bytes = largest_bytes
        # Commands that Redis did not confirm go first in the next round trip, before anything is read: at once on a new
        # connection, now and then while Redis refuses them. Should they become too many to remember, nothing that was
        # stored before Redis answered again is believed.
        self._unconfirmed: dict[bytes, Command] = {}
        self._resend_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._probed_at = float("-inf")
        self._tag_names: GenerationCache[bytes, bytes] = GenerationCache(_TAG_NAMES_KEPT)
        self._tag_sets: GenerationCache[tuple[bytes, ...], tuple[bytes, ...]] = GenerationCache(_TAG_SETS_KEPT)
        self._names: GenerationCache[bytes, bytes] = GenerationCache(_NAMES_KEPT)
        self._wall = wall
        self._ahead_s = 0.0
        """How far Redis's clock is ahead of ours, by its answers."""
        self._lost_count = False
        self._believed_from = 0
        self.outages = 0
        self.publishes = True
        """Whether purges are published, as far as is known: an ACL may allow purging and not publishing."""
        self.on_publish_refused: Callable[[], None] = _noop
        """Called when purges turn out not to be published."""
        link.on_connect = self._on_connect

    @property
    def refuses(self) -> bool:
        """Whether Redis refuses writes, by what it last said: purges of others may be missing from its answers."""
        return self._link.refuses

    def probe(self) -> None:
        """Find out, once in a while, whether Redis accepts writes. A gateway that only reads has no other way to know."""
        now = time.monotonic()
        if now - self._probed_at >= _PROBE_EVERY_S and not self._closed:
            self._probed_at = now
            with contextlib.suppress(RedisUnavailable):  # the next read finds that out
                self._link.call_batched(_PROBE, 1, self._on_probe)

    def _on_probe(self, replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
        self._count_outage(replies)
        if isinstance(replies, RedisUnavailable):
            return
        if not isinstance(replies[0], int):
            self._link.mark_unwell(replies[0])
            return
        self.publishes = bool(replies[0])
        if not self.publishes:
            self.on_publish_refused()

    async def get(self, key: bytes, tags: tuple[bytes, ...], *, anew: bool = False) -> Lookup:
        del anew  # Redis is always read
        return await self.read(key, self.value_name(key), self.tag_names(tags))

    async def read(self, key: bytes, name: bytes, tag_names: tuple[bytes, ...]) -> Lookup:
        """As ``get``, by the names of key and tags in Redis."""
        self.probe()
        if self._link.refuses:
            return self._outage()
        unconfirmed, asked_at = dict(self._unconfirmed), self._wall()
        try:
            replies = await self._link.execute_many([*unconfirmed.values(), ("TIME",), ("MGET", *tag_names, name)])
        except RedisUnavailable:
            return self._outage()
        if unconfirmed and not self._confirm(unconfirmed, replies[: len(unconfirmed)]):
            return Lookup(available=False)
        return self._parse_lookup(key, asked_at, *replies[len(unconfirmed) :])

    def _outage(self) -> Lookup:
        self.outages += 1
        return Lookup(available=False)

    def get_soon(self, key: bytes, tags: tuple[bytes, ...], then: Callable[[Lookup], None]) -> Cancellable | None:
        """As ``get``, without a coroutine: ``then`` is called once, later. Returns None, with nothing asked, where Redis
        must confirm something first, or cannot be asked."""
        self.probe()
        if self._unconfirmed or self._link.refuses:
            return None
        asked_at = self._wall()

        def on_replies(replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
            lookup = Lookup(available=False)
            try:
                if not isinstance(replies, RedisUnavailable):
                    lookup = self._parse_lookup(key, asked_at, *replies)
                else:
                    self.outages += 1
            except Exception:
                log.exception("fault in the cache's store")  # whoever asked would wait for ever
            then(lookup)

        octets = pack_commands([("TIME",), ("MGET", *self.tag_names(tags), self.value_name(key))])
        with contextlib.suppress(RedisUnavailable):  # a `get` instead finds that out
            return self._link.call_batched(octets, 2, on_replies)
        return None

    def _parse_lookup(
        self, key: bytes, asked_at: float, clock: RedisValue | RedisError, values: RedisValue | RedisError
    ) -> Lookup:
        """Interpret Redis's answers to TIME and MGET."""
        try:
            stamp = server_time_us(clock)
        except RedisUnavailable:
            return self._outage()
        if not isinstance(values, list) or self._link.refuses:  # a probe was answered before
            return self._outage()
        redis_at = stamp / 1_000_000
        # Redis read its clock some time between question and answer: the difference believed so far stays, unless that
        # rules it out. By the answer's arrival alone, stored answers would look younger by any time for which this gateway
        # was stopped meanwhile (its machine was moved, say).
        self._ahead_s = max(min(self._ahead_s, redis_at - asked_at), redis_at - self._wall())
        if self._lost_count:
            self._lost_count, self._believed_from = False, stamp
        *purges, value = values
        version = self._believed_from
        for at in purges:
            if isinstance(at, bytes) and at.isdigit() and len(at) <= _MOST_DIGITS:
                version = max(version, int(at))
        stored = self._codec.decode(key, value) if isinstance(value, bytes) else None
        # What Redis's clock has yet to reach was stored before somebody set it back: it would look new for as long, and no
        # purge until then would count.
        if stored is None or not version < stored[0] <= stamp:
            return Lookup((), stamp, version)
        return Lookup(_shifted(stored[1], -self._ahead_s), stamp, version)

    async def put(self, key: bytes, entries: tuple[Entry, ...], ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        del tags  # readers name them
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

    def put_now(self, key: bytes, entry: LazyEntry, ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        """As ``put`` of one entry, without waiting. True: it is on its way, to a Redis that has answered well lately.
        Whatever this gateway asks next comes behind it."""
        del tags
        if ttl_s <= 0 or not self._link.healthy:
            return False
        value = self._codec.encode(key, stamp, _shifted((entry.materialise(),), self._ahead_s))
        if len(value) > self._largest_bytes:
            self.delete_now(key)
            return False
        try:
            # Sent at once: the client that gets this answer may ask another gateway the next moment.
            self._link.call_now(
                pack_commands([("SET", self.value_name(key), value, "PX", _milliseconds(ttl_s))]), self._count_outage
            )
        except RedisUnavailable:
            self.outages += 1
            return False
        return True

    def _count_outage(self, replies: list[RedisValue | RedisError] | RedisUnavailable) -> None:
        self.outages += isinstance(replies, RedisUnavailable) or isinstance(replies[0], RedisError)

    def delete_now(self, key: bytes) -> None:
        """As ``delete``, without waiting."""
        name = self.value_name(key)
        command: Command = ("EVAL", _DROP, 1, name)
        unconfirmed = {name: command}
        self._add_unconfirmed(unconfirmed)
        with contextlib.suppress(RedisUnavailable):  # it goes first in the next round trip
            self._link.call_now(pack_commands([command]), functools.partial(self._on_confirmation, unconfirmed))

    async def delete(self, key: bytes) -> None:
        name = self.value_name(key)
        await self._send_confirmed({name: ("EVAL", _DROP, 1, name)})

    async def purge(self, tags: tuple[bytes, ...], hold_s: float = 0.0) -> bool:
        names = self.tag_names(tags)
        hold_us = int(hold_s * 1_000_000)
        return await self._send_confirmed({name: ("EVAL", _PURGE, 1, name, _REMEMBERED_MS, hold_us) for name in names})

    async def wait_published(self) -> None:
        """Wait until what scripts published before is on its way to all listeners: Redis writes to each of them before it
        reads another command."""
        with contextlib.suppress(RedisUnavailable, RedisError):
            await self._link.execute("PING")

    async def close(self) -> None:
        self._closed = True
        if self._resend_timer is not None:
            self._resend_timer.cancel()
        await self._link.close()

    def value_name(self, key: bytes) -> bytes:
        """The name of the key's value in Redis."""
        name = self._names.get(key)
        if name is None:
            name = _VALUE_PREFIX + self._codec.hidden_name(key)
            if len(key) <= _LONGEST_KEPT_BYTES:
                self._names.put(key, name)
        return name

    def tag_names(self, tags: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The names in Redis under which the tags' last purges are remembered."""
        names = self._tag_sets.get(tags)
        if names is None:
            names = tuple(map(self._tag_name, tags))
            if sum(map(len, tags)) <= _LONGEST_KEPT_BYTES:
                self._tag_sets.put(tags, names)
        return names

    def _tag_name(self, tag: bytes) -> bytes:
        name = self._tag_names.get(tag)
        if name is None:
            name = PURGED_PREFIX + self._codec.hidden_name(tag)
            if len(tag) <= _LONGEST_KEPT_BYTES:
                self._tag_names.put(tag, name)
        return name

    async def _send_confirmed(self, commands: dict[bytes, Command]) -> bool:
        """Send commands that must take effect, now or later, before this gateway reads again."""
        self._add_unconfirmed(commands)
        try:
            replies = await self._link.execute_many(list(commands.values()))
        except RedisUnavailable:
            self.outages += 1
            return False
        return self._confirm(commands, replies)

    def _add_unconfirmed(self, commands: dict[bytes, Command]) -> None:
        self._unconfirmed.update(commands)
        if len(self._unconfirmed) > _MAX_UNCONFIRMED:
            self._unconfirmed.clear()
            self._lost_count = True
        self._schedule_resend()

    def _on_connect(self) -> None:
        """Send what is unconfirmed before anything is asked on a new connection, and let the next probe be due."""
        self._probed_at = float("-inf")
        self._resend()

    def _schedule_resend(self) -> None:
        """Schedule another attempt: whoever waits for the confirmation may leave, and this gateway may read nothing for
        long, but others do read."""
        if self._resend_timer is None and self._unconfirmed and not self._closed:
            self._resend_timer = asyncio.get_running_loop().call_later(_RESEND_EVERY_S, self._resend)

    def _resend(self) -> None:
        """Send what is unconfirmed, and again later, until all of it is confirmed."""
        if self._resend_timer is not None:
            self._resend_timer.cancel()
            self._resend_timer = None
        unconfirmed = list(self._unconfirmed.items()) if self._link.connected else []
        for start in range(0, len(unconfirmed), _RESEND_BATCH):
            batch = dict(unconfirmed[start : start + _RESEND_BATCH])
            with contextlib.suppress(RedisUnavailable):
                self._link.call_batched(
                    pack_commands(list(batch.values())), len(batch), functools.partial(self._on_confirmation, batch)
                )
        self._schedule_resend()

    def _on_confirmation(
        self, unconfirmed: dict[bytes, Command], replies: list[RedisValue | RedisError] | RedisUnavailable
    ) -> None:
        if isinstance(replies, RedisUnavailable):
            self.outages += 1
        else:
            self._confirm(unconfirmed, replies)

    def _confirm(self, unconfirmed: dict[bytes, Command], replies: list[RedisValue | RedisError]) -> bool:
        """Strike off what Redis confirmed; False if it refused any of it (as a read-only replica does)."""
        failed = False
        for (name, command), reply in zip(unconfirmed.items(), replies, strict=True):
            if isinstance(reply, RedisError):
                failed = True
            elif self._unconfirmed.get(name) is command:  # a command added since then is another one
                del self._unconfirmed[name]
        self.outages += failed
        return not failed


def _noop() -> None:
    """The default for ``on_publish_refused``: nobody has copies."""


def _shifted(entries: tuple[Entry, ...], by_s: float) -> tuple[Entry, ...]:
    """``entries`` with their times moved to another clock."""
    if -_APART_S < by_s < _APART_S:
        return entries
    return tuple([msgspec.structs.replace(entry, received_at=entry.received_at + by_s) for entry in entries])


def _milliseconds(ttl_s: float) -> int:
    return max(1, int(min(ttl_s, _LONGEST_S) * 1000))

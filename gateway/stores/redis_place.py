"""Where the Redis of a URL is now: the server it names, the primary that Sentinels know, or who owns a cluster's slot.

    redis://           HOST                                                                 ─► that server
    redis+sentinel://  a Sentinel ── SENTINEL GET-MASTER-ADDR-BY-NAME ─► the primary ── HELLO ─► if it says so itself
    redis+cluster://   a node     ── CLUSTER SLOTS ────────────────────► the owner ──── HELLO ─► if it says so itself

It is asked for at each connection, so a failover is followed by whoever connects again. All keys of one store are in one
slot of a cluster (they share a hash tag), so one node at a time serves it; no redirection is followed in between.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from itertools import islice

import msgspec

from ..names import Names
from .redis_address import RedisAddress
from .redis_wire import (
    CONNECT_TIMEOUT_S,
    Command,
    Receive,
    RedisError,
    RedisUnavailable,
    RedisValue,
    Wire,
    connected,
    nobody,
    opened,
)

ELSEWHERE = frozenset({"MASTERDOWN", "MOVED", "READONLY"})
"""Errors of a server that is no primary any more, or whose slot went to another."""
PERHAPS_ELSEWHERE = frozenset({"CLUSTERDOWN", "NOREPLICAS"})
"""Errors of a primary that may be cut off from the others: they may have made another, which it will not hear of."""


class Tag(StrEnum):
    """What stands in braces in every key of one store: a cluster keeps them in one slot."""

    LIMITS = "gw"
    """Buckets, paces, what operators changed."""
    CACHE = "ggw:cache"
    KEYS = "keys"
    CREDENTIALS = "credentials"


_SLOTS = 16384
_LOOK_S = 0.5
"""How often Sentinels are asked while all is well."""
_TELLERS = 3
"""Who is asked in turn where what one told led nowhere: a Sentinel that is cut off tells of a primary that is none."""
_MOST_GUIDES = 32
"""Nodes of a cluster that are remembered beside those of the URL."""


class RedisPlace:
    """Of one URL, and one event loop.

    Args:
        address: As parsed.
        tag: Of the keys that are kept there: which node of a cluster that is.
    """

    def __init__(self, address: RedisAddress, tag: Tag = Tag.LIMITS) -> None:
        self.at = (address.host, address.port)
        """Where it was last found. Who is connected elsewhere had better come back."""
        self.turn = 0
        """Goes up when a server is left that takes no writes any more, and again when another was found. One address may
        lead to many servers: who was connected before, to listen only, would hear nothing against the old one."""
        self._address = address
        self._named = self.at
        self._names = Names(address.host, address.port)
        self._slot = binascii.crc_hqx(tag.encode(), 0) % _SLOTS  # CRC-16/XMODEM, as the cluster's specification asks
        self._name = ""
        self._asking = asyncio.Lock()
        self._doubtful = False
        self._talk: Wire | None = None
        """With the first guide, a question at a time."""
        self._guides = deque((guide, Names(guide.host, guide.port)) for guide in address.guides)

    @property
    def follows(self) -> bool:
        """The server may be another one next time."""
        return bool(self._guides)

    async def connected(self, name: str, timeout_s: float, receive: Receive) -> Wire:
        """As ``redis_wire.connected``. RedisUnavailable also where nobody knows the primary, or it says that it is none."""
        if not self.follows:
            turn = self.turn
            wire, _ = await connected(self._address, name, timeout_s, receive, self._names)
            wire.at, wire.turn = self.at, turn
            return wire
        self._name, turn = name, self.turn
        trouble: Exception | None = None
        tried: set[tuple[str, int]] = set()
        for _ in range(min(len(self._guides), _TELLERS)):
            try:
                found = await self._told()
                if found not in tried:
                    tried.add(found)
                    wire = await self._primary_at(found, name, timeout_s, receive)
                    wire.at, wire.turn = found, turn
                    return wire
            except (OSError, ValueError, RedisError, RedisUnavailable) as refused:
                trouble = trouble or refused
            except BaseException:
                self.doubt()
                raise
            if not tried:  # nobody tells of any
                break
            self.doubt()
        assert trouble is not None, "a place is tried once"
        raise trouble

    async def _primary_at(self, found: tuple[str, int], name: str, timeout_s: float, receive: Receive) -> Wire:
        """A connection to the server there, which says itself that it is one."""
        if found != self._named:
            self._named, self._names = found, Names(*found)
        at = msgspec.structs.replace(self._address, host=found[0], port=found[1])
        wire, hello = await connected(at, name, timeout_s, receive, self._names, last=("HELLO", "2"))
        if _role(hello) != b"master":
            wire.abort()
            raise RedisUnavailable("not the primary")
        self.at = found
        return wire

    def left(self, wire: Wire) -> bool:
        """The others that share this place are elsewhere since, or were told to go."""
        return wire.at != self.at or wire.turn != self.turn

    def doubt(self) -> None:
        """What was told led nowhere: whoever told it may be the one that knows no better, and is asked last."""
        self.close()
        self._guides.rotate(-1)

    def suspect(self) -> None:
        """The server may be cut off, and whoever told of it with it: let the next one be asked, too."""
        self._doubtful = True

    async def lost(self, wire: Wire) -> None:
        """Wait until that connection is, or an ear was led elsewhere since: there it hears nothing of what is told here.
        Or until Sentinels tell of another primary: the one before it goes on as one for ten seconds where it was not away,
        and loses what is written to it meanwhile. (A cluster's refuses at once: it is asked while the server is
        suspect.)"""
        self._doubtful = False
        while True:
            try:
                async with asyncio.timeout(_LOOK_S if self.follows else None):
                    await wire.lost.wait()
                return
            except TimeoutError:
                if wire.at != self.at:
                    return
                if self._doubtful:
                    self._doubtful = False
                    self.doubt()
                elif not self._address.primary:
                    continue
                with contextlib.suppress(RedisUnavailable):
                    if await self._told() != wire.at:
                        return

    def close(self) -> None:
        """The conversation with a guide, if there is one."""
        talk, self._talk = self._talk, None
        if talk is not None:
            talk.abort()

    async def _told(self) -> tuple[str, int]:
        """By the first guide that knows: it is the first to be asked next time."""
        trouble: Exception | None = None
        async with self._asking:
            for _ in range(len(self._guides)):
                guide, names = self._guides[0]
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S / 2):
                        if self._talk is None or self._talk.lost.is_set():
                            self._talk = await opened(guide, self._name, nobody, names)
                        reply = await self._talk.greet([self._question])
                    return self._primary(reply) if self._address.primary else self._owner(reply, guide)
                except (OSError, ValueError, RedisError, RedisUnavailable) as refused:
                    # What one said weighs more than that another is away.
                    trouble = refused if trouble is None or isinstance(trouble, OSError) else trouble
                    self.doubt()
                except asyncio.CancelledError:
                    self.close()  # the reply is still to come: it must not be taken for that to another question
                    raise
                finally:
                    if not self._address.primary:
                        self.close()
        who = "Sentinel" if self._address.primary else "cluster"
        assert trouble is not None, "there is one at least"
        raise RedisUnavailable(f"{who}: {word_for(trouble)}") from trouble

    @property
    def _question(self) -> Command:
        primary = self._address.primary
        return ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", primary) if primary else ("CLUSTER", "SLOTS")

    def _primary(self, reply: RedisValue) -> tuple[str, int]:
        """``[host, port]``, or nil where that name is not watched."""
        match reply:
            case [bytes() as host, bytes() as port]:
                return _place(host, port)
            case _:
                raise RedisUnavailable(f"no primary {self._address.primary}")

    def _owner(self, reply: RedisValue, guide: RedisAddress) -> tuple[str, int]:
        """``[[first slot, last slot, [host, port, …], replicas …], …]``."""
        owner, told, whose = None, [], "nobody owns slot"
        for shard in reply if isinstance(reply, list) else ():
            match shard:
                case [int() as first, int() as last, *nodes]:
                    places = [_node(node, guide) for node in nodes]
                    told += [place for place in places if place is not None]
                    if first <= self._slot <= last and places:
                        owner, whose = places[0], "no address of who owns slot"
        if owner is None:
            raise RedisUnavailable(f"{whose} {self._slot}")
        self._remember(guide, told)
        return owner

    def _remember(self, asked: RedisAddress, told: Iterable[tuple[str, int]]) -> None:
        """All that the URL names may go in time, while the cluster lives on. Who was asked stays the first, and is there
        once: after a doubt it is to be the last."""
        first = (asked.host, asked.port)
        known = {(guide.host, guide.port): (guide, names) for guide, names in self._guides}
        wanted = {(guide.host, guide.port) for guide in self._address.guides} | set(islice(told, _MOST_GUIDES))
        places = [place for place in known if place in wanted] + [place for place in wanted if place not in known]
        self._guides = deque(
            known.get(place) or (msgspec.structs.replace(asked, host=place[0], port=place[1]), Names(*place))
            for place in [first, *(place for place in places if place != first)]
        )


def word_for(error: Exception) -> str:
    """Why there is no connection, for people: ``WRONGPASS``, ``ConnectionRefusedError``, ``not the primary`` …"""
    if isinstance(error, RedisError):
        return error.kind
    return str(error.args[0]) if isinstance(error, RedisUnavailable) and error.args else type(error).__name__


def _node(node: RedisValue, guide: RedisAddress) -> tuple[str, int] | None:
    """A node of a shard; one without a name of its own is where the guide was reached. None: nobody can be there, as at
    port 0, which a node that speaks nothing but TLS has for whoever does not."""
    with contextlib.suppress(RedisUnavailable):
        match node:
            case [bytes() as host, int() as port, *_] if host not in {b"", b"?"}:
                return _place(host, b"%d" % port)
            case [None | b"", int() as port, *_]:
                return _place(guide.host.encode(), b"%d" % port)
    return None


def _place(host: bytes, port: bytes) -> tuple[str, int]:
    try:
        name, number = host.decode("ascii"), int(port)
    except ValueError:
        name, number = "", 0
    if not name or not 0 < number < 65536:  # no socket takes them, and what is raised for it depends on the event loop
        raise RedisUnavailable("an address that is none")
    return name, number


def _role(hello: RedisValue) -> RedisValue:
    """Of a flat list of names and values."""
    fields = hello if isinstance(hello, list) else []
    for name, value in zip(fields[::2], fields[1::2], strict=False):
        if name == b"role":
            return value
    return None

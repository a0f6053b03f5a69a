"""Where the Redis of a URL is now: the server it names, the primary that Sentinels know, or the owner of a cluster's slot.

    redis://           HOST                                                                 ─► that server
    redis+sentinel://  a Sentinel ── SENTINEL GET-MASTER-ADDR-BY-NAME ─► the primary ── HELLO ─► if it says so itself
    redis+cluster://   a node     ── CLUSTER SLOTS ────────────────────► the owner ──── HELLO ─► if it says so itself

The address is asked for at each connection, so whoever connects again follows a failover. All keys of one store are in one
slot of a cluster (they share a hash tag), so one node at a time serves the store; redirections are not followed.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import socket
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from itertools import islice

import msgspec

from ..host_resolver import HostResolver
from .redis_address import RedisAddress
from .redis_wire import (
    CONNECT_TIMEOUT_S,
    Command,
    Receive,
    RedisError,
    RedisUnavailable,
    RedisValue,
    Wire,
    connect,
    ignore_reply,
    open_wire,
)

NOT_PRIMARY_KINDS = frozenset({"MASTERDOWN", "MOVED", "READONLY"})
"""Errors of a server that is no longer the primary, or whose slot has moved to another."""
MAYBE_NOT_PRIMARY_KINDS = frozenset({"CLUSTERDOWN", "NOREPLICAS"})
"""Errors of a primary that may be cut off from the others: they may have promoted another, and it would not hear of it."""


class HashTag(StrEnum):
    """The hash tag, in braces in every key of one store: a cluster keeps those keys in one slot."""

    LIMITS = "gw"
    """Buckets, paces and operators' changes."""
    CACHE = "ggw:cache"
    KEYS = "keys"
    CREDENTIALS = "credentials"


_SLOTS = 16384
_LOOK_S = 0.5
"""How often Sentinels are asked while all is well."""
_MAX_GUIDES_ASKED = 3
"""The most guides asked in turn where an answer led nowhere: a Sentinel that is cut off may name a former primary."""
_MOST_GUIDES = 32
"""The most nodes of a cluster that are remembered besides those of the URL."""


class RedisEndpoint:
    """Where the Redis of one URL is, for one event loop.

    Args:
        address: The parsed URL.
        tag: The hash tag of the keys that are kept there; it decides which node of a cluster that is.
    """

    def __init__(self, address: RedisAddress, tag: HashTag = HashTag.LIMITS) -> None:
        self.at = (address.host, address.port)
        """Where the server was last found. Connections to anywhere else should be given up."""
        self.generation = 0
        """Counts up when a server that no longer accepts writes is left, and again when another has been found. One address
        may lead to many servers: a connection that only listens would not learn that its server is the old one."""
        self._address = address
        self._resolved = self.at
        self._resolver = HostResolver(address.host, address.port)
        self._slot = binascii.crc_hqx(tag.encode(), 0) % _SLOTS  # CRC-16/XMODEM, as the cluster's specification asks
        self._name = ""
        self._asking = asyncio.Lock()
        self._doubtful = False
        self._guide_wire: Wire | None = None
        """The connection to the first guide, for one command at a time."""
        self._guides = deque((guide, HostResolver(guide.host, guide.port)) for guide in address.guides)

    @property
    def has_guides(self) -> bool:
        """Whether guides say where the server is, so that it may be another one next time."""
        return bool(self._guides)

    async def connect(self, name: str, timeout_s: float, receive: Receive) -> Wire:
        """As ``redis_wire.connect``. Raises RedisUnavailable also where no guide knows the primary, or where the server
        says that it is not a primary."""
        if not self.has_guides:
            generation = self.generation
            wire, _ = await connect(self._address, name, timeout_s, receive, self._resolver)
            wire.at, wire.generation = self.at, generation
            return wire
        self._name, generation = name, self.generation
        trouble: Exception | None = None
        tried: set[tuple[str, int]] = set()
        for _ in range(min(len(self._guides), _MAX_GUIDES_ASKED)):
            try:
                primary = await self._ask_guides()
                if primary not in tried:
                    tried.add(primary)
                    wire = await self._connect_primary(primary, name, timeout_s, receive)
                    wire.at, wire.generation = primary, generation
                    return wire
            except (OSError, ValueError, RedisError, RedisUnavailable) as refused:
                trouble = trouble or refused
            except BaseException:
                self.rotate_guides()
                raise
            if not tried:  # no guide names a server
                break
            self.rotate_guides()
        assert trouble is not None, "a place is tried once"
        raise trouble

    async def _connect_primary(self, primary: tuple[str, int], name: str, timeout_s: float, receive: Receive) -> Wire:
        """Connect to the server there, which must say itself that it is a primary."""
        if primary != self._resolved:
            self._resolved, self._resolver = primary, HostResolver(*primary)
        at = msgspec.structs.replace(self._address, host=primary[0], port=primary[1])
        wire, hello = await connect(at, name, timeout_s, receive, self._resolver, last=("HELLO", "2"))
        if _role(hello) != b"master":
            wire.abort()
            raise RedisUnavailable("not the primary")
        self.at = primary
        return wire

    def has_moved(self, wire: Wire) -> bool:
        """Whether the others that share this endpoint have connected elsewhere since, or were told to leave."""
        return wire.at != self.at or wire.generation != self.generation

    def rotate_guides(self) -> None:
        """Ask the first guide last from now on: what it said led nowhere, and it may be the one that knows no better."""
        self.close()
        self._guides.rotate(-1)

    def suspect(self) -> None:
        """The server may be cut off, and the guide that named it as well: have the next guide asked, too."""
        self._doubtful = True

    async def wait_until_left(self, wire: Wire) -> None:
        """Wait until the connection is lost, or has to be left.

        It has to be left once a subscriber was led elsewhere, where it hears nothing of what is published here, and once
        Sentinels name another primary: the former one, unless it was down, goes on as a primary for ten seconds, and what
        is written to it meanwhile is lost. (A cluster's former primary refuses at once: a cluster is asked only while the
        server is suspect.)
        """
        self._doubtful = False
        while True:
            try:
                async with asyncio.timeout(_LOOK_S if self.has_guides else None):
                    await wire.lost.wait()
                return
            except TimeoutError:
                if wire.at != self.at:
                    return
                if self._doubtful:
                    self._doubtful = False
                    self.rotate_guides()
                elif not self._address.primary:
                    continue
                with contextlib.suppress(RedisUnavailable):
                    if await self._ask_guides() != wire.at:
                        return

    def close(self) -> None:
        """End the conversation with a guide, if there is one."""
        wire, self._guide_wire = self._guide_wire, None
        if wire is not None:
            wire.abort()

    async def _ask_guides(self) -> tuple[str, int]:
        """What the first guide that knows says; that guide is the first to be asked next time."""
        trouble: Exception | None = None
        async with self._asking:
            for _ in range(len(self._guides)):
                guide, resolver = self._guides[0]
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S / 2):
                        if self._guide_wire is None or self._guide_wire.lost.is_set():
                            self._guide_wire = await open_wire(guide, self._name, ignore_reply, resolver)
                        reply = await self._guide_wire.greet([self._guide_command])
                    return self._parse_primary(reply) if self._address.primary else self._parse_owner(reply, guide)
                except (OSError, ValueError, RedisError, RedisUnavailable) as refused:
                    # What one guide said matters more than that another is away.
                    trouble = refused if trouble is None or isinstance(trouble, OSError) else trouble
                    self.rotate_guides()
                except asyncio.CancelledError:
                    self.close()  # the reply is still to come: it must not be taken for the answer to another command
                    raise
                finally:
                    if not self._address.primary:
                        self.close()
        who = "Sentinel" if self._address.primary else "cluster"
        assert trouble is not None, "there is one at least"
        raise RedisUnavailable(f"{who}: {describe_error(trouble)}") from trouble

    @property
    def _guide_command(self) -> Command:
        primary = self._address.primary
        return ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", primary) if primary else ("CLUSTER", "SLOTS")

    def _parse_primary(self, reply: RedisValue) -> tuple[str, int]:
        """The address in a Sentinel's reply: ``[host, port]``, or nil where that name is not watched."""
        match reply:
            case [bytes() as host, bytes() as port]:
                return _parse_address(host, port)
            case _:
                raise RedisUnavailable(f"no primary named {self._address.primary}")

    def _parse_owner(self, reply: RedisValue, guide: RedisAddress) -> tuple[str, int]:
        """The owner in a cluster's reply: ``[[first slot, last slot, [host, port, …], replicas …], …]``."""
        owner, named, why = None, [], "nobody owns slot {}"
        for shard in reply if isinstance(reply, list) else ():
            match shard:
                case [int() as first, int() as last, *nodes]:
                    addresses = [_parse_node(node, guide) for node in nodes]
                    named += [address for address in addresses if address is not None]
                    if first <= self._slot <= last and addresses:
                        owner, why = addresses[0], "the owner of slot {} has no usable address"
        if owner is None:
            raise RedisUnavailable(why.format(self._slot))
        self._remember(guide, named)
        return owner

    def _remember(self, asked: RedisAddress, named: Iterable[tuple[str, int]]) -> None:
        """Remember a cluster's nodes as guides: all those that the URL names may go in time, while the cluster lives on.
        The guide that was asked stays the first and appears once, so that a doubt makes it the last."""
        first = (asked.host, asked.port)
        known = {(guide.host, guide.port): (guide, resolver) for guide, resolver in self._guides}
        wanted = {(guide.host, guide.port) for guide in self._address.guides} | set(islice(named, _MOST_GUIDES))
        addresses = [address for address in known if address in wanted] + [
            address for address in wanted if address not in known
        ]
        self._guides = deque(
            known.get(address) or (msgspec.structs.replace(asked, host=address[0], port=address[1]), HostResolver(*address))
            for address in [first, *(address for address in addresses if address != first)]
        )


def describe_error(error: Exception) -> str:
    """Why there is no connection, in words for people: ``WRONGPASS``, ``ConnectionRefusedError``, ``not the primary`` …"""
    if isinstance(error, RedisError):
        return error.kind
    if isinstance(error, socket.gaierror):
        return "its host name can't be resolved"
    return str(error.args[0]) if isinstance(error, RedisUnavailable) and error.args else type(error).__name__


def _parse_node(node: RedisValue, guide: RedisAddress) -> tuple[str, int] | None:
    """Where a shard's node is; one without a name of its own is where the guide was reached. None: nowhere that can be
    reached, as at port 0, which a node that speaks only TLS gives to a client that does not."""
    with contextlib.suppress(RedisUnavailable):
        match node:
            case [bytes() as host, int() as port, *_] if host not in {b"", b"?"}:
                return _parse_address(host, b"%d" % port)
            case [None | b"", int() as port, *_]:
                return _parse_address(guide.host.encode(), b"%d" % port)
    return None


def _parse_address(host: bytes, port: bytes) -> tuple[str, int]:
    try:
        name, number = host.decode("ascii"), int(port)
    except ValueError:
        name, number = "", 0
    if not name or not 0 < number < 65536:  # no socket takes these, and what it raises depends on the event loop
        raise RedisUnavailable("not a valid address")
    return name, number


def _role(hello: RedisValue) -> RedisValue:
    """The value of ``role`` in HELLO's reply, a flat list of names and values."""
    fields = hello if isinstance(hello, list) else []
    for name, value in zip(fields[::2], fields[1::2], strict=False):
        if name == b"role":
            return value
    return None

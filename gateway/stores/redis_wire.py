"""One connection to Redis: greets, writes, and hands on the replies in order (RESP2, parsed by hiredis).

``redis_link`` asks on it and waits for the replies; ``redis_subscriber`` only listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import hiredis

from ..host_resolver import Address, HostResolver
from .redis_address import RedisAddress

RedisValue: TypeAlias = "int | bytes | list[RedisValue] | None"
Argument = bytes | str | int | float
Command = Sequence[Argument]

CONNECT_TIMEOUT_S = 1.0
GRACE_S = 0.002
"""How much longer to wait when a timeout is due: uvloop runs timers before it reads sockets, so after a stall of our own
the reply may have arrived unread."""
_MAX_UNSENT_BYTES = 8 * 1024 * 1024
_SCRIPT = r"ERR Error running script \(call to f_[0-9a-f]{40}\): @user_script:[0-9]+: (?:@user_script: [0-9]+: )?"
"""What Redis 6 puts before the error of a command in a script."""
_KINDS = (
    (re.compile(rf"(?:{_SCRIPT})?ERR value is not an integer"), "the stored value is not an integer"),
    (re.compile(_SCRIPT + r"-?([A-Z]+) "), ""),
    (re.compile(r"ERR max number of clients (?:\+ cluster connections )?reached"), "too many clients"),
    (re.compile(r"ERR (?:AUTH <password> called without|Client sent AUTH, but no password)"), "no password is set there"),
    (re.compile(r"ERR (?:DB index is out of range|invalid DB index|SELECT is not allowed)"), "no such database"),
    (re.compile(r"ERR This instance has cluster support disabled"), "cluster support is disabled there"),
    # The latter form since Redis 7.2, and in Valkey.
    (re.compile(rf"(?:{_SCRIPT}|ERR )(?:The user executing the script can't |ACL failure in script: )"), "NOPERM"),
    (
        re.compile(rf"ERR unknown (?:sub)?command|(?:{_SCRIPT}|ERR )Unknown (?:Redis )?command called from "),
        "unknown command",
    ),
)


class RedisUnavailable(Exception):  # noqa: N818 — a state of the world the caller acts on
    """No answer in time, or no connection. Whether the command ran is unknown, unless it was never ``sent``."""

    @property
    def sent(self) -> bool:
        """Whether the command may have been sent."""
        return self.args not in {("down",), ("busy",)}


class RedisError(Exception):
    """Redis answered with an error. ``kind`` is its first word: ``NOSCRIPT``, ``READONLY``, ``OOM``, ``WRONGTYPE`` …
    Where that would say too little, it is a phrase: ``unknown command`` from a server that cannot serve us, for one.

    The text is kept out of ``str()``: Redis quotes arguments in some of its messages.
    """

    def __init__(self, text: str = "ERR") -> None:
        self.kind = _kind(text)
        self.detail = text[:200]
        super().__init__(self.kind)


def _kind(text: str) -> str:
    for form, kind in _KINDS:
        if found := form.match(text):
            return kind or found[1]
    return text.partition(" ")[0][:32]


class RedisProtocolError(Exception):
    """Not RESP, or a reply nobody asked for."""


Receive: TypeAlias = "Callable[[RedisValue | RedisError], None]"
"""Given each reply in turn; raises RedisProtocolError to have the connection dropped."""


class Wire(asyncio.Protocol):
    """One TCP, TLS or Unix connection. It handles the replies to its greeting itself; later ones go to its owner."""

    def __init__(self, receive: Receive) -> None:
        self._receive: Receive = self._receive_greeting
        self._owner = receive
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(protocolError=RedisProtocolError, replyError=RedisError)
        self._greeting: asyncio.Future[RedisValue] | None = None
        self._greetings = 0
        self._unasked: RedisError | None = None
        """The error of a server that refuses connections without being asked anything."""
        self.full = False
        self.lost = asyncio.Event()
        self.at = ("", 0)
        """Where the server was found; set by whoever looked for it."""
        self.generation = 0
        """What ``RedisEndpoint.generation`` was then."""

    def descriptor(self) -> int:
        """The file descriptor of the socket; -1: it is gone."""
        return self._transport.get_extra_info("socket").fileno() if self._transport is not None else -1

    def write(self, octets: bytes) -> None:
        if self._transport is not None:
            self._transport.write(octets)

    def abort(self) -> None:
        if self._greeting is None:
            self._receive = ignore_reply
        if self._transport is not None:
            self._transport.abort()

    async def greet(self, commands: Sequence[Command]) -> RedisValue:
        """Send the commands and return the reply to the last. Raises RedisError, or RedisUnavailable when the connection
        ends first."""
        if self._transport is None:
            raise self._refused()
        self._greeting = asyncio.get_running_loop().create_future()
        self._greetings = len(commands)
        self.write(pack_commands(commands))
        return await self._greeting

    def end_greeting(self) -> None:
        self._greeting = None
        self._receive = self._owner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Cast, not checked: uvloop's transports are not of a subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_MAX_UNSENT_BYTES)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            next_reply = self._reader.gets
            while (reply := next_reply()) is not False:
                self._receive(reply)
        except RedisProtocolError:
            # Out of step for good: whatever comes next would answer somebody else's command.
            self.abort()

    def _receive_greeting(self, reply: RedisValue | RedisError) -> None:
        greeting = self._greeting
        self._greetings -= 1
        if greeting is None or greeting.done():
            self._unasked = reply if isinstance(reply, RedisError) else None
            return
        if isinstance(reply, RedisError):
            greeting.set_exception(reply)
        elif self._greetings == 0:
            greeting.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(self._refused())
        self.lost.set()

    def _refused(self) -> RedisError | RedisUnavailable:
        return self._unasked or RedisUnavailable("connection lost")


def ignore_reply(reply: RedisValue | RedisError) -> None:
    """Ignore a reply that nobody waits for any more."""
    del reply


async def connect(
    at: RedisAddress,
    name: str,
    timeout_s: float,
    receive: Receive,
    resolver: HostResolver | None = None,
    *,
    last: Command = ("PING",),
) -> tuple[Wire, RedisValue]:
    """Open a connection and greet Redis; return it and the reply to the ``last`` greeting. ``CLIENT LIST`` shows it as
    ``name``. ``resolver`` resolves the host; a caller that connects again keeps it.

    The last greeting must be answered within ``timeout_s``, the owner's timeout for calls: a Redis too slow for calls is no
    better than none, and not every caller should have to find that out again. Raises OSError, RedisError, RedisUnavailable,
    or ValueError where no resolver takes the name.
    """
    wire = await open_wire(at, name, receive, resolver)
    try:
        async with asyncio.timeout(max(timeout_s, GRACE_S * 5)):
            reply = await wire.greet([last])
    except BaseException:
        wire.abort()
        raise
    wire.end_greeting()
    return wire, reply


async def open_wire(at: RedisAddress, name: str, receive: Receive, resolver: HostResolver | None = None) -> Wire:
    """As ``connect``, but without the last greeting."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if at.path:
            _, wire = await loop.create_unix_connection(lambda: Wire(receive), at.path, ssl=at.tls)
        else:
            wire = await _connect_any(at, receive, await (resolver or HostResolver(at.host, at.port)).addresses())
    try:
        greeting: list[Command] = []
        if at.username or at.password:
            greeting.append(("AUTH", at.username, at.password) if at.username else ("AUTH", at.password))
        greeting.append(("CLIENT", "SETNAME", f"gitlab-gateway:{name}"))
        if at.db:
            greeting.append(("SELECT", at.db))
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await wire.greet(greeting)
    except BaseException:
        wire.abort()
        raise
    return wire


async def _connect_any(at: RedisAddress, receive: Receive, addresses: Sequence[Address]) -> Wire:
    """Connect to the first address that answers; none but the last may take more than its share of the time."""
    loop = asyncio.get_running_loop()
    server_name = at.host if at.tls is not None else None

    async def connect_to(address: Address) -> Wire:
        host, port, *_ = address[4]
        opening = loop.create_connection(lambda: Wire(receive), host, port, ssl=at.tls, server_hostname=server_name)
        return (await opening)[1]

    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S / len(addresses)):
                return await connect_to(address)
    return await connect_to(addresses[-1])


def server_time_us(reply: RedisValue | RedisError) -> int:
    """Microseconds since 1970, as Redis's TIME tells them. Raises RedisUnavailable for any other reply."""
    if isinstance(reply, list) and len(reply) == 2:
        seconds, micros = reply
        if isinstance(seconds, bytes) and isinstance(micros, bytes):
            with contextlib.suppress(ValueError):
                return int(seconds) * 1_000_000 + int(micros)
    raise RedisUnavailable("no clock")


def pack_commands(commands: Sequence[Command]) -> bytes:
    """The commands as octets for one write."""
    # hiredis annotates the argument as a tuple of exactly one element; it takes any.
    return b"".join([hiredis.pack_command((*command,)) for command in commands])  # type: ignore[arg-type]

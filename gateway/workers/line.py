"""The line between the supervisor and one worker: messages, each with its length before it.

Its end says that the other one is gone: a worker whose supervisor was killed leaves, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from ..config.given import Given

_LENGTH = struct.Struct(">I")
_MOST_BYTES = 1 << 30
_END_S = 2.0


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all."""


# From the supervisor


class Begin(Message, frozen=True):
    """The first: what to be. Descriptors are the process's own, inherited."""

    number: int
    of: int
    seat: int
    """What it goes by at the supervisor: of this run, where a number is of one configuration."""
    given: Given
    key: bytes
    """Random, of this run and all its workers."""
    traffic: tuple[int, ...]
    admin: tuple[int, ...]
    turns: int
    """An empty file whose lock says whose turn it is to write the audit."""
    counts: int
    """A file that says how many connections each worker has (``connection_counts``)."""

    @property
    def crew(self) -> range:
        """The seats of all with this configuration: they are taken in one go."""
        return range(self.seat - self.number, self.seat - self.number + self.of)

    def __repr__(self) -> str:
        return f"Begin({self.number} of {self.of})"  # never the key, nor what was given


class Reload(Message, frozen=True):
    """Read certificates again."""


class Leave(Message, frozen=True):
    """Drain and end; ``at_once``: without the notice."""

    at_once: bool = False


class Retire(Message, frozen=True):
    """Others accept at the same sockets: accept no more, and end when no client is left, or has been idle for too long."""


class Question(Message, frozen=True):
    """Some worker wants to know something from all."""

    id: int
    what: str
    about: bytes


class Reloads(msgspec.Struct, frozen=True):
    """How often the configuration was asked to be read again, by what became of it."""

    applied: int = 0
    unchanged: int = 0
    failed: int = 0
    failing: bool = False
    """The last one failed."""


class Staff(msgspec.Struct, frozen=True):
    """What the supervisor knows of the workers of the present configuration."""

    up: tuple[bool, ...]
    """By number: started, and not ended."""
    restarts: tuple[int, ...]
    begun: bool
    """All were up at some time: the start is over."""
    seats: tuple[int, ...] = ()
    """By number: what their answers go by."""
    reloads: Reloads = Reloads()


class Answers(Message, frozen=True):
    """What they said, by their seats; who did not in time is missing."""

    id: int
    answers: dict[int, bytes]
    staff: Staff


# From a worker


class Ready(Message, frozen=True):
    """It serves."""


class Ask(Message, frozen=True):
    """Ask all workers, the asking one among them. ``id`` is the asker's own."""

    id: int
    what: str
    about: bytes
    patience_s: float
    """For who is slow to answer."""


class Reply(Message, frozen=True):
    """To the Question of that id."""

    id: int
    octets: bytes


class Farewell(Message, frozen=True):
    """The last: what it has counted, to the end."""

    figures: bytes


ToWorker = Begin | Reload | Retire | Leave | Question | Answers
ToSupervisor = Ready | Ask | Reply | Farewell
_Heard = TypeVar("_Heard")
_encode = msgspec.msgpack.Encoder().encode
at_worker: Callable[[bytes], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
at_supervisor: Callable[[bytes], ToSupervisor] = msgspec.msgpack.Decoder(ToSupervisor).decode


class Line(Generic[_Heard]):
    """One end. ``decode`` knows what may be heard there: ``at_worker``, ``at_supervisor``."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decode: Callable[[bytes], _Heard]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = decode

    def send(self, message: Message) -> None:
        """Never waits; of no effect once the other end is gone."""
        if not self._writer.is_closing():
            octets = _encode(message)
            self._writer.write(_LENGTH.pack(len(octets)) + octets)

    async def hear(self) -> _Heard | None:
        """The next message; None when the other end is gone, however it went."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if size <= _MOST_BYTES:
                return self._decode(await self._reader.readexactly(size))
        return None

    def close(self) -> None:
        self._writer.close()

    async def end(self) -> None:
        """Close, once the other end has taken what was sent; one that takes nothing is not waited for for long."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._writer.wait_closed()


async def open_line(end: socket.socket, decode: Callable[[bytes], _Heard]) -> Line[_Heard]:
    """Over one end of a stream socket pair, which is the line's from now on."""
    end.setblocking(False)
    return Line(*await asyncio.open_unix_connection(sock=end), decode)

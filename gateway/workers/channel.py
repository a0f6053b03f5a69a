"""The channel between the supervisor and one worker: messages, each preceded by its length.

When the channel ends, the other side is gone: a worker whose supervisor was killed leaves, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from ..config.source import ConfigSource

_LENGTH = struct.Struct(">I")
_MOST_BYTES = 1 << 30
_END_S = 2.0


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages."""


# From the supervisor


class Begin(Message, frozen=True):
    """The first message: what the worker is to be. The descriptors are the process's own, inherited."""

    number: int
    of: int
    worker_id: int
    """Unique in this run, where a number is unique in one configuration only."""
    source: ConfigSource
    key: bytes
    """Random; the same for all workers of this run."""
    traffic: tuple[int, ...]
    admin: tuple[int, ...]
    turns: int
    """An empty file whose lock says whose turn it is to write the audit."""
    counts: int
    """A file that says how many connections each worker has (``connection_counts``)."""
    new_tokens: tuple[str, ...] = ()
    """Ids of credentials whose tokens the configuration in force does not have."""
    restarted: bool = False
    """It takes the place of a worker of a group that serves."""

    @property
    def group(self) -> range:
        """The ids of all workers with this configuration, which are consecutive."""
        return range(self.worker_id - self.number, self.worker_id - self.number + self.of)

    def __repr__(self) -> str:
        return f"Begin({self.number} of {self.of})"  # never the key, nor the configuration


class Reload(Message, frozen=True):
    """Read certificates again."""


class Leave(Message, frozen=True):
    """Drain and end; ``at_once``: without the notice."""

    at_once: bool = False


class Retire(Message, frozen=True):
    """Others accept at the same sockets: accept no more, and end when no client is left, or all have been idle too long."""


class WorkerQuestion(Message, frozen=True):
    """Some worker wants to know something from all workers."""

    id: int
    what: str
    about: bytes


class Reloads(msgspec.Struct, frozen=True):
    """How often the configuration was to be read again, by what became of it."""

    applied: int = 0
    unchanged: int = 0
    failed: int = 0
    failing: bool = False
    """Whether the last reload failed."""


class GroupStatus(msgspec.Struct, frozen=True):
    """What the supervisor knows of the workers of the present configuration."""

    up: tuple[bool, ...]
    """By number: whether the worker has started, and not ended."""
    restarts: tuple[int, ...]
    begun: bool
    """Whether all have served at some time, so that the start is over."""
    worker_ids: tuple[int, ...] = ()
    """By number: the id under which the worker's answers are given."""
    reloads: Reloads = Reloads()


class AllAnswers(Message, frozen=True):
    """What the workers answered, by worker id; those that did not answer in time are missing."""

    id: int
    answers: dict[int, bytes]
    group_status: GroupStatus


# From a worker


class Ready(Message, frozen=True):
    """The worker serves."""


class AskAll(Message, frozen=True):
    """Ask all workers, the asking one included. ``id`` is chosen by the worker that asks."""

    id: int
    what: str
    about: bytes
    patience_s: float
    """How long to wait for workers that are slow to answer."""


class WorkerReply(Message, frozen=True):
    """The worker's reply to the ``WorkerQuestion`` of that id."""

    id: int
    octets: bytes


class FinalFigures(Message, frozen=True):
    """The last message: what the worker has counted, to the end."""

    figures: bytes


ToWorker = Begin | Reload | Retire | Leave | WorkerQuestion | AllAnswers
ToSupervisor = Ready | AskAll | WorkerReply | FinalFigures
_Received = TypeVar("_Received")
_encode = msgspec.msgpack.Encoder().encode
decode_at_worker: Callable[[bytes], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
decode_at_supervisor: Callable[[bytes], ToSupervisor] = msgspec.msgpack.Decoder(ToSupervisor).decode


class Channel(Generic[_Received]):
    """One end of the channel. ``decode`` knows what may arrive there: ``decode_at_worker`` or ``decode_at_supervisor``."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decode: Callable[[bytes], _Received]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decode = decode

    def send(self, message: Message) -> None:
        """Send a message, without waiting; has no effect once the other end is gone."""
        if not self._writer.is_closing():
            octets = _encode(message)
            self._writer.write(_LENGTH.pack(len(octets)) + octets)

    async def receive(self) -> _Received | None:
        """The next message; None when the other end is gone, however that happened."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if size <= _MOST_BYTES:
                return self._decode(await self._reader.readexactly(size))
        return None

    def close(self) -> None:
        self._writer.close()

    async def flush_and_close(self) -> None:
        """Close once the other end has taken what was sent; an end that takes nothing is waited for no longer than
        ``_END_S``."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._writer.wait_closed()


async def open_channel(end: socket.socket, decode: Callable[[bytes], _Received]) -> Channel[_Received]:
    """Open the channel over one end of a stream socket pair, which belongs to the channel from now on."""
    end.setblocking(False)
    return Channel(*await asyncio.open_unix_connection(sock=end), decode)

"""One worker's place among several: what it was given, and its share of what one process counts by itself."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

from ..config import Config

if TYPE_CHECKING:
    from ..workers.connection_counts import Place
    from .siblings import Siblings


class Post(msgspec.Struct, frozen=True):
    """A gateway that stands alone has none."""

    number: int
    of: int
    key: bytes
    """Random, of this run and all its workers: what is hashed with it is the same at each."""
    traffic: tuple[socket.socket, ...]
    admin: tuple[socket.socket, ...]
    turns: int
    """Whose turn it is to write the audit (``telemetry.turns``)."""
    place: Place
    """What it says of its connections, and sees of the others'."""
    siblings: Siblings

    def __repr__(self) -> str:
        return f"Post({self.number} of {self.of})"

    def share(self, config: Config) -> Config:
        """What this worker goes by. The shares of all come to what was configured, where it is enough for one each."""
        listen, upstream = config.listen, config.upstream
        limits = msgspec.structs.replace(listen.limits, connections=self._of(listen.limits.connections))
        return msgspec.structs.replace(
            config,
            listen=msgspec.structs.replace(listen, limits=limits),
            upstream=msgspec.structs.replace(
                upstream, max_in_flight=self._of(upstream.max_in_flight), max_tunnels=self._of(upstream.max_tunnels)
            ),
        )

    def _of(self, whole: int) -> int:
        return max(1, whole // self.of + (self.number < whole % self.of)) if whole else 0

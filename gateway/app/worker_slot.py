"""One worker's slot among several: what it was given, and its share of limits that each process counts by itself."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec

from ..config import Config

if TYPE_CHECKING:
    from ..workers.connection_counts import WorkerCounts
    from .siblings import Siblings


class WorkerSlot(msgspec.Struct, frozen=True):
    """What one worker of several was given. A gateway that runs as one process has none."""

    number: int
    of: int
    key: bytes
    """A random key that all workers of this run share: what is hashed with it is the same in each."""
    traffic: tuple[socket.socket, ...]
    admin: tuple[socket.socket, ...]
    turns: int
    """The descriptor of the file whose lock says whose turn it is to write the audit (``telemetry.turns``)."""
    counts: WorkerCounts
    """Where this worker publishes its number of connections, and reads the others'."""
    siblings: Siblings
    new_tokens: frozenset[str] = frozenset()
    """Credentials whose tokens, or GitLab, come with this configuration: if GitLab refuses one, the configuration before it
    stays in force. What was refused before stops nothing."""
    restarted: bool = False
    """Its configuration is in force, and others serve it already: no credential stops it."""

    def __repr__(self) -> str:
        return f"WorkerSlot({self.number} of {self.of})"

    def share(self, config: Config) -> Config:
        """The configuration with this worker's share of the limits. All shares add up to what was configured, where that
        is enough for one each."""
        listen, upstream = config.listen, config.upstream
        limits = msgspec.structs.replace(listen.limits, connections=self._share_of(listen.limits.connections))
        return msgspec.structs.replace(
            config,
            listen=msgspec.structs.replace(listen, limits=limits),
            upstream=msgspec.structs.replace(
                upstream,
                max_in_flight=self._share_of(upstream.max_in_flight),
                max_tunnels=self._share_of(upstream.max_tunnels),
            ),
        )

    def _share_of(self, whole: int) -> int:
        return max(1, whole // self.of + (self.number < whole % self.of)) if whole else 0

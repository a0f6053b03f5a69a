"""What the data port allows."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, TypedDict

import msgspec

from ..core.patience import MOST_S


def _no_peer(_: str) -> bool:
    return False


class TLSTimes(TypedDict, total=False):
    """Seconds, as asyncio names them."""

    ssl_handshake_timeout: float
    ssl_shutdown_timeout: float


class EdgeSettings(msgspec.Struct, frozen=True):
    """What the data port allows (configuration: ``listen.limits``)."""

    target_bytes: int = 16 * 1024
    field_bytes: int = 16 * 1024
    max_fields: int = 200
    request_head_s: float = 15.0
    body_idle_s: float = 10.0
    body_rate: int = 1024
    """Octets a second; 0: any."""
    body_slack_s: float = MOST_S
    """How far behind that a body may be."""
    idle_s: float = 75.0
    write_stall_s: float = 30.0
    goodbye_s: float = 300.0
    """Of TLS: for a closing connection's last octets, however slowly they are taken (who takes none is cut before)."""
    lingering_s: float = 2.0
    max_connections: int = 0
    """0: bounded by the process's file descriptors alone."""
    max_connections_per_peer: int = 0
    """0: no limit."""
    uncounted_peer: Callable[[str], bool] = _no_peer
    """Whether a peer stands for many: a load balancer is not held to the limit of one client."""
    sets_correlation_aside: bool = True
    """No answer depends on the fields that mark a single request (``core.correlation``)."""

    def of_aiohttp(self) -> dict[str, Any]:
        """As its protocol takes them."""
        return {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": self.idle_s,
            "lingering_time": self.lingering_s,
            # A little more than our own limits, which core judges exactly, and never equal: the parser's error names only
            # the number.
            "max_line_size": self.target_bytes + 1,
            "max_field_size": self.field_bytes + (2 if self.field_bytes == self.target_bytes else 1),
            "max_headers": self.max_fields,
            "read_bufsize": 64 * 1024,
        }

    def of_tls(self, context: ssl.SSLContext | None) -> TLSTimes:
        """As ``create_server`` takes them, where there is a context. Its own goodbye, of 30 s, cuts who reads slowly."""
        if context is None:
            return {}
        return {"ssl_handshake_timeout": self.request_head_s, "ssl_shutdown_timeout": self.goodbye_s}

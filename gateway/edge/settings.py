"""The settings of the data port."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, TypedDict

import msgspec

from ..core.body_timeout import MOST_S


def _no_peer(_: str) -> bool:
    return False


class TLSTimeouts(TypedDict, total=False):
    """TLS timeouts in seconds, by the names of asyncio's parameters."""

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
    """The octets per second that a request's body must reach; 0: no minimum."""
    body_slack_s: float = MOST_S
    """How many seconds a body may be behind that rate."""
    idle_s: float = 75.0
    write_stall_s: float = 30.0
    goodbye_s: float = 300.0
    """How long a closing TLS connection's last octets may take, however slowly the client takes them (one that takes none
    is cut off earlier)."""
    lingering_s: float = 2.0
    max_connections: int = 0
    """0: bounded only by the process's file descriptors."""
    max_connections_per_peer: int = 0
    """0: no limit."""
    uncounted_peer: Callable[[str], bool] = _no_peer
    """Whether a peer stands for many clients: a load balancer is not held to the limit of one client."""
    sets_correlation_aside: bool = True
    """Whether fields that mark a single request, on which no answer depends, are set aside (``core.correlation``)."""

    def aiohttp_options(self) -> dict[str, Any]:
        """These settings as arguments of aiohttp's protocol."""
        return {
            "access_log": None,
            "auto_decompress": False,
            "keepalive_timeout": self.idle_s,
            "lingering_time": self.lingering_s,
            # A little more than our own limits, which are checked exactly in core, and never equal to each other: the
            # parser's error names only the number.
            "max_line_size": self.target_bytes + 1,
            "max_field_size": self.field_bytes + (2 if self.field_bytes == self.target_bytes else 1),
            "max_headers": self.max_fields,
            "read_bufsize": 64 * 1024,
        }

    def tls_timeouts(self, context: ssl.SSLContext | None) -> TLSTimeouts:
        """TLS timeouts as arguments of ``create_server``, where there is a context. asyncio's own timeout for the shutdown,
        30 s, would cut off a client that reads slowly."""
        if context is None:
            return {}
        return {"ssl_handshake_timeout": self.request_head_s, "ssl_shutdown_timeout": self.goodbye_s}

"""Every way in which the upstream can fail, and the one table that says what the caller is told.

Statuses and ``Proxy-Status`` tokens follow RFC 9209 §2.3. Foreign exceptions stop here: nothing above this package
knows of sockets.
"""

from __future__ import annotations

import enum
import errno
import math
import socket
import ssl

from ..core.errors import Code, Rejection, Source


class Failure(enum.Enum):
    """What went wrong between the gateway and GitLab."""

    DNS = enum.auto()
    DNS_TIMEOUT = enum.auto()
    REFUSED = enum.auto()
    UNROUTABLE = enum.auto()
    CONNECT_TIMEOUT = enum.auto()
    TLS_CERTIFICATE = enum.auto()
    TLS = enum.auto()
    RESET = enum.auto()
    """Closed before the head of an answer was complete."""
    INCOMPLETE = enum.auto()
    """Closed inside a body."""
    FIRST_BYTE_TIMEOUT = enum.auto()
    READ_TIMEOUT = enum.auto()
    """A body that stopped growing."""
    WRITE_TIMEOUT = enum.auto()
    """GitLab stopped taking the request's body."""
    PROTOCOL = enum.auto()
    NO_SOCKETS = enum.auto()
    """This process ran out of file descriptors or memory for one more connection."""
    BUSY = enum.auto()
    """All ``max_in_flight`` places are taken, and the queue is full or the wait in it took too long."""
    BREAKER_OPEN = enum.auto()
    CLOSED = enum.auto()
    """The gateway is shutting down."""


_502 = (502, "502 Bad Gateway")
_503 = (503, "503 Service Unavailable")
_504 = (504, "504 Gateway Timeout")

# failure → (code, (status, message), RFC 9209 error token)
_TABLE: dict[Failure, tuple[Code, tuple[int, str], str]] = {
    Failure.DNS: (Code.UPSTREAM_DNS, _502, "dns_error"),
    Failure.DNS_TIMEOUT: (Code.UPSTREAM_DNS, _504, "dns_timeout"),
    Failure.REFUSED: (Code.UPSTREAM_REFUSED, _502, "connection_refused"),
    Failure.UNROUTABLE: (Code.UPSTREAM_REFUSED, _502, "destination_ip_unroutable"),
    Failure.CONNECT_TIMEOUT: (Code.UPSTREAM_CONNECT_TIMEOUT, _504, "connection_timeout"),
    Failure.TLS_CERTIFICATE: (Code.UPSTREAM_TLS, _502, "tls_certificate_error"),
    Failure.TLS: (Code.UPSTREAM_TLS, _502, "tls_protocol_error"),
    Failure.RESET: (Code.UPSTREAM_RESET, _502, "connection_terminated"),
    Failure.INCOMPLETE: (Code.UPSTREAM_RESET, _502, "http_response_incomplete"),
    Failure.FIRST_BYTE_TIMEOUT: (Code.UPSTREAM_TIMEOUT, _504, "http_response_timeout"),
    Failure.READ_TIMEOUT: (Code.UPSTREAM_TIMEOUT, _504, "connection_read_timeout"),
    Failure.WRITE_TIMEOUT: (Code.UPSTREAM_TIMEOUT, _504, "connection_write_timeout"),
    Failure.PROTOCOL: (Code.UPSTREAM_PROTOCOL, _502, "http_protocol_error"),
    Failure.NO_SOCKETS: (Code.UPSTREAM_BUSY, _503, "connection_limit_reached"),
    Failure.BUSY: (Code.UPSTREAM_BUSY, _503, "connection_limit_reached"),
    Failure.BREAKER_OPEN: (Code.UPSTREAM_BREAKER_OPEN, _503, "destination_unavailable"),
    Failure.CLOSED: (Code.DRAINING, _503, "destination_unavailable"),
}

# These say nothing about GitLab's health: the breaker does not count them.
LOCAL_FAILURES = frozenset({Failure.NO_SOCKETS, Failure.BUSY, Failure.BREAKER_OPEN, Failure.CLOSED})

_ERRNOS: dict[int, Failure] = {
    errno.ECONNREFUSED: Failure.REFUSED,
    errno.ENOENT: Failure.REFUSED,  # a Unix socket that is not there
    errno.EACCES: Failure.REFUSED,
    errno.ENETUNREACH: Failure.UNROUTABLE,
    errno.EHOSTUNREACH: Failure.UNROUTABLE,
    errno.EADDRNOTAVAIL: Failure.UNROUTABLE,
    errno.ETIMEDOUT: Failure.CONNECT_TIMEOUT,
    errno.ECONNRESET: Failure.RESET,
    errno.ECONNABORTED: Failure.RESET,
    errno.EPIPE: Failure.RESET,
    errno.EMFILE: Failure.NO_SOCKETS,
    errno.ENFILE: Failure.NO_SOCKETS,
    errno.ENOBUFS: Failure.NO_SOCKETS,
    errno.ENOMEM: Failure.NO_SOCKETS,
    errno.EAGAIN: Failure.NO_SOCKETS,  # a Unix socket whose backlog is full
}


class UpstreamFailure(Exception):  # noqa: N818 — the cause inside this package; callers see a Rejection
    """Carries a :class:`Failure` from a callback to whoever awaits; ``detail`` is for the operator's log alone."""

    def __init__(self, failure: Failure, detail: str = "") -> None:
        super().__init__(failure.name)
        self.failure = failure
        self.detail = detail


def classify(error: OSError) -> Failure:
    """Classify an error in connecting. The order matters: TLS and DNS errors are OSErrors, too."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure.TLS_CERTIFICATE
    if isinstance(error, ssl.SSLError):
        return Failure.TLS
    if isinstance(error, socket.gaierror):
        return Failure.DNS
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return Failure.RESET  # the loop raises these without a number
    return _ERRNOS.get(error.errno or 0, Failure.REFUSED)


def rejection(failure: Failure, detail: str = "", retry_after_s: float = 1.0) -> Rejection:
    """The refusal that a failure becomes. Every 503 has ``Retry-After``, in whole seconds, never 0."""
    code, (status, message), token = _TABLE[failure]
    headers = ((b"Retry-After", b"%d" % max(1, math.ceil(retry_after_s))),) if status == 503 else ()
    return Rejection(
        code,
        status,
        message,
        headers=headers,
        source=Source.INTERNAL if failure is Failure.CLOSED else Source.UPSTREAM,
        proxy_error=token,
        detail=detail,
    )

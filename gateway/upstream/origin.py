"""Where GitLab is, and how a connection to it is opened: names, TLS, Unix sockets. Proxy variables are not read."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar, cast
from urllib.parse import urlsplit

import aiohappyeyeballs
import msgspec

from .errors import Failure, UpstreamFailure, classify

_P = TypeVar("_P", bound=asyncio.Protocol)

# RFC 8305 §5: long enough for a healthy path to answer first, short enough that a dead IPv6 route goes unnoticed.
_EYEBALLS_DELAY_S = 0.25
_TLS_SHUTDOWN_S = 1.0


class Origin(msgspec.Struct, frozen=True):
    """A parsed ``upstream.url``. Its path, where there is one, is the pipeline's business."""

    host: str = ""
    port: int = 0
    tls: bool = False
    socket_path: str = ""
    """Of a Unix socket; then there is no host."""

    @property
    def authority(self) -> bytes:
        """For a Host field; ``localhost`` for a Unix socket."""
        if self.socket_path:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.tls else 80
        return (host if self.port == default else f"{host}:{self.port}").encode("idna" if not host.isascii() else "ascii")


def parse_origin(url: str) -> Origin:
    """``http://`` ``https://`` ``unix:/path`` ``http+unix:///path``. Raises ValueError, quoting nothing of the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme in ("unix", "http+unix"):
        path = parts.netloc.replace("%2F", "/").replace("%2f", "/") or parts.path
        if not path.startswith("/"):
            raise ValueError("a Unix socket needs an absolute path, e.g. unix:/run/gitlab.socket")
        return Origin(socket_path=path)
    if parts.scheme not in ("http", "https"):
        raise ValueError("the scheme must be http, https or unix")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials don't belong in the URL")
    if parts.query or parts.fragment:
        raise ValueError("no query and no fragment")
    if not parts.hostname or port == 0:
        raise ValueError("a host is missing" if not parts.hostname else "port 0 can't be connected to")
    tls = parts.scheme == "https"
    return Origin(host=parts.hostname, port=port or (443 if tls else 80), tls=tls)


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A verifying client context: TLS 1.2 or later, HTTP/1.1. With ``ca_file`` these authorities and no others.

    Made by hand, because the library's shortcut also writes session keys to where ``SSLKEYLOGFILE`` says. Raises OSError
    or ssl.SSLError for a file that can't be read or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cafile=ca_file)
    return context


async def connect(
    loop: asyncio.AbstractEventLoop, origin: Origin, tls: ssl.SSLContext | None, factory: Callable[[], _P], connect_s: float
) -> _P:
    """Name look-up, TCP, TLS: all within ``connect_s``. Looked up anew each time, so that a moved GitLab is found.

    Raises UpstreamFailure.
    """
    resolving = False
    try:
        async with asyncio.timeout(connect_s):
            if origin.socket_path:
                return (await loop.create_unix_connection(factory, origin.socket_path))[1]
            resolving = True
            addresses = await _resolve(loop, origin)
            resolving = False
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=_EYEBALLS_DELAY_S, interleave=1, loop=loop
            )
            try:
                if tls is None:
                    return (await loop.create_connection(factory, sock=sock))[1]
                made = await loop.create_connection(
                    factory, sock=sock, ssl=tls, server_hostname=origin.host, ssl_shutdown_timeout=_TLS_SHUTDOWN_S
                )
                return made[1]
            except BaseException:
                sock.close()
                raise
    except TimeoutError as error:
        raise UpstreamFailure(Failure.DNS_TIMEOUT if resolving else Failure.CONNECT_TIMEOUT) from error
    except OSError as error:
        raise UpstreamFailure(classify(error), type(error).__name__) from error
    except UnicodeError as error:  # a name that IDNA can't express
        raise UpstreamFailure(Failure.DNS, "name") from error


_Address = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]


async def _resolve(loop: asyncio.AbstractEventLoop, origin: Origin) -> list[_Address]:
    try:
        literal = ipaddress.ip_address(origin.host)
    except ValueError:
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        return [cast("_Address", address) for address in found]  # TCP only: never the form that holds bytes
    # A literal needs no look-up, and none of the resolver's threads.
    if literal.version == 4:
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (origin.host, origin.port))]
    return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (origin.host, origin.port, 0, 0))]

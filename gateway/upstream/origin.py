"""Where GitLab is, and how a connection to it is opened: names, TLS, Unix sockets. Proxy variables are not read."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from typing import TypeVar
from urllib.parse import urlsplit

import aiohappyeyeballs
import msgspec

from ..host_resolver import HostResolver
from .errors import Failure, UpstreamFailure, classify

log = logging.getLogger("gateway.upstream")

_P = TypeVar("_P", bound=asyncio.Protocol)

# RFC 8305 §5: long enough for a healthy path to answer first, short enough that a dead IPv6 route goes unnoticed.
_EYEBALLS_DELAY_S = 0.25
_TLS_SHUTDOWN_S = 1.0
_LOG_EVERY_S = 60.0
"""The least time between two log messages about failing TLS, since every request may fail."""


class Origin(msgspec.Struct, frozen=True):
    """A parsed ``upstream.url``, without its path, if there is one: that is the pipeline's business."""

    host: str = ""
    port: int = 0
    tls: bool = False
    socket_path: str = ""
    """The path of a Unix socket; then there is no host."""

    @property
    def authority(self) -> bytes:
        """The value for a Host field; ``localhost`` for a Unix socket."""
        if self.socket_path:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.tls else 80
        return (host if self.port == default else f"{host}:{self.port}").encode("idna" if not host.isascii() else "ascii")


def parse_origin(url: str) -> Origin:
    """Parse ``http://…``, ``https://…``, ``unix:/path`` or ``http+unix:///path``.

    Raises ValueError, which quotes nothing of the URL.
    """
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
    """A verifying client context: TLS 1.2 or later, HTTP/1.1. With a ``ca_file``, its authorities and no others.

    Made by hand, because the library's shortcut also writes session keys to the file that ``SSLKEYLOGFILE`` names. Raises
    OSError or ssl.SSLError for a file that can't be read or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(cafile=ca_file)
        except ssl.SSLError as error:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, f"{ca_file} holds no certificate that can be read") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, ca_file) from error
    return context


class Dialer:
    """Opens connections to one origin."""

    def __init__(self, loop: asyncio.AbstractEventLoop, origin: Origin, connect_s: float) -> None:
        self._loop = loop
        self._origin = origin
        self._connect_s = connect_s
        self._resolver = HostResolver(origin.host, origin.port)
        self._logged_at = float("-inf")
        self._opening: set[asyncio.Task[tuple[asyncio.Transport, asyncio.Protocol]]] = set()

    async def connect(self, factory: Callable[[], _P], tls: ssl.SSLContext | None) -> _P:
        """Open a connection: name look-up, TCP and TLS, all within ``connect_s``. The name is looked up each time, or a
        look-up under way is shared: a GitLab that moved is found.

        Raises UpstreamFailure.
        """
        loop, origin = self._loop, self._origin
        ends_at = loop.time() + self._connect_s
        resolving = False
        try:
            if origin.socket_path:
                return await self._open(loop.create_unix_connection(factory, origin.socket_path))
            async with asyncio.timeout_at(ends_at):
                resolving = True
                addresses = await self._resolver.addresses()
                resolving = False
                sock = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=_EYEBALLS_DELAY_S, interleave=1, loop=loop
                )
            if tls is None:
                return await self._open(loop.create_connection(factory, sock=sock))
            return await self._open(
                loop.create_connection(
                    factory,
                    sock=sock,
                    ssl=tls,
                    server_hostname=origin.host,
                    ssl_handshake_timeout=max(0.001, ends_at - loop.time()),
                    ssl_shutdown_timeout=_TLS_SHUTDOWN_S,
                )
            )
        except TimeoutError as error:
            raise UpstreamFailure(Failure.DNS_TIMEOUT if resolving else Failure.CONNECT_TIMEOUT) from error
        except OSError as error:
            failure = classify(error)
            if failure is Failure.RESET and loop.time() >= ends_at:
                failure = Failure.CONNECT_TIMEOUT  # how the loop reports a handshake that took too long
            if isinstance(error, ssl.SSLError):
                self._log_tls_failure(error)
            raise UpstreamFailure(failure, type(error).__name__) from error
        except UnicodeError as error:  # a name that IDNA can't express
            raise UpstreamFailure(Failure.DNS, "name") from error

    def _log_tls_failure(self, error: ssl.SSLError) -> None:
        """Log why TLS failed: an error code can't tell a certificate's wrong name from its expiry or its authority."""
        now = self._loop.time()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            why = getattr(error, "verify_message", "") or error.reason or type(error).__name__
            log.error("TLS with %s failed: %s", self._origin.authority.decode("ascii"), why)

    async def close(self) -> None:
        """Wait until the connections still being opened are open or have failed, for ``connect_s`` at most."""
        if self._opening:
            await asyncio.wait(self._opening, timeout=self._connect_s)

    async def _open(self, opening: Coroutine[object, object, tuple[asyncio.Transport, _P]]) -> _P:
        """Run ``opening`` to its end, even if the caller is cancelled: a socket changes hands in it, and event loops differ
        in who closes that when it is cancelled (uvloop: twice, or never). The handshake's timeout bounds it; a connection
        that nobody waits for any more is dropped then."""
        task = self._loop.create_task(opening)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        try:
            return (await asyncio.shield(task))[1]
        except asyncio.CancelledError:
            task.add_done_callback(_drop)
            raise


def _drop(opened: asyncio.Task[tuple[asyncio.Transport, _P]]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result()[0].abort()

"""Where a Redis is and how to greet it, from its URL."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..core.target import percent_decode


class RedisAddress(msgspec.Struct, frozen=True):
    """One server and one database. ``repr`` is short on purpose: this holds the password.

    With ``guides`` the server is the one that they name, and ``host`` and ``port`` mean nothing yet.
    """

    host: str
    port: int
    path: str
    db: int
    username: str
    password: str
    tls: ssl.SSLContext | None
    guides: tuple[RedisAddress, ...] = ()
    """Sentinels, or nodes of a cluster."""
    primary: str = ""
    """The Sentinels' name for the primary; empty for a cluster."""

    def __repr__(self) -> str:
        return "RedisAddress(…)"


def parse_address(url: str) -> RedisAddress:
    """Parse a ``redis://``, ``rediss://``, ``unix://``, ``+sentinel`` or ``+cluster`` URL; see :meth:`RedisLink.from_url`.

    Raises:
        ValueError: The URL is none of these. The message never holds the URL.
        OSError: A file that it names can't be read.
    """
    found = _GUIDED.fullmatch(url)
    if found is None:
        return _server(url)
    scheme, kind, userinfo, hosts, path, query = found.groups(default="")
    if kind == "cluster":
        server = _server(f"{scheme}://{userinfo}localhost/{path}{query}")
        if server.db:
            raise ValueError("a Redis URL with +cluster has only database 0")
        return msgspec.structs.replace(server, guides=_guides(hosts, server))
    name, _, db = path.partition("/")
    if not name:
        raise ValueError("a Redis URL with +sentinel must name the primary after the hosts")
    theirs = dict(_SENTINEL_OPTION.findall(query))
    query = _SENTINEL_OPTION.sub("", query).replace("?&", "?").removesuffix("?")
    server = _server(f"{scheme}://{userinfo}localhost/{db}{query}")
    # Sentinels for which the URL has no password of their own are not sent that of Redis.
    username, password = (_decoded(theirs.get(f"sentinel_{one}", "")) for one in ("username", "password"))
    sentinel = msgspec.structs.replace(server, port=26379, db=0, username=username, password=password)
    return msgspec.structs.replace(server, guides=_guides(hosts, sentinel), primary=name)


def _server(url: str) -> RedisAddress:
    """Parse the URL of one server."""
    from redis.asyncio.connection import parse_url  # a tenth of the start-up time, and the embedded default never needs it

    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("a Redis URL must start with redis://, rediss:// or unix://")
    try:
        # redis-py's parser also decodes the password; its class arguments are dropped, its options kept.
        # A plus sign stands for itself: in the name of a file nobody would take it for a form's blank.
        server, mark, query = url.partition("?")
        options: Mapping[str, Any] = dict(parse_url(server + mark + query.replace("+", "%2B")))
        # The parser also ignores a database that is not a number, and would put our keys into database 0.
        if not url.startswith("unix:") and not _DATABASE.fullmatch(urlsplit(url).path):
            raise ValueError
        port = int(options.get("port", 6379))
        db = int(options.get("db", 0))
    except ValueError:
        raise ValueError("not a valid Redis URL") from None
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise ValueError(f"unknown option in the Redis URL: {unknown[0][:32]!r}")
    return RedisAddress(
        host=str(options.get("host") or "localhost"),
        port=port,
        path=str(options.get("path") or "") if url.startswith("unix://") else "",
        db=db,
        username=str(options.get("username") or ""),
        password=str(options.get("password") or ""),
        tls=_tls(options) if url.startswith("rediss://") else None,
    )


def _decoded(text: str) -> str:
    return percent_decode(text.encode()).decode("utf-8", "replace")


def _guides(hosts: str, like: RedisAddress) -> tuple[RedisAddress, ...]:
    places = [_place(host, like.port) for host in hosts.split(",")]
    return tuple(msgspec.structs.replace(like, host=host, port=port) for host, port in places)


def _place(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        if not parts.hostname or parts.path or parts.username is not None:
            raise ValueError
        return parts.hostname, parts.port or port
    except ValueError:
        raise ValueError("not a valid Redis URL: its hosts are HOST:PORT, joined by commas") from None


_GUIDED = re.compile(r"(rediss?)\+(sentinel|cluster)://([^/?#]*@)?([^@/?#]*)(?:/([^?#]*))?(\?.*)?")
_SENTINEL_OPTION = re.compile(r"(?:(?<=\?)|&)(sentinel_username|sentinel_password)=([^&]*)")
_DATABASE = re.compile(r"/?[0-9]*")
_OPTIONS = frozenset(
    {"host", "port", "path", "db", "username", "password", "connection_class"}
    | {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
)


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    authorities, certificate = options.get("ssl_ca_certs"), options.get("ssl_certfile")
    key = options.get("ssl_keyfile") or certificate
    # An SSLError is an OSError; its text, and a FileNotFoundError's, would not say whose file it is.
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError:
        raise OSError(
            f"ssl_ca_certs of the Redis URL names {authorities}, which holds no certificate that can be read"
        ) from None
    try:
        if certificate:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
    except OSError:
        pair = f"the certificate {certificate} and the key {key}"
        words = f"name {pair}: they can't be read, or don't match, or the key is encrypted"
        raise OSError(f"ssl_certfile and ssl_keyfile of the Redis URL {words}") from None
    if str(options.get("ssl_check_hostname", "true")).lower() in {"0", "false", "no"}:
        context.check_hostname = False
    if str(options.get("ssl_cert_reqs", "required")).lower() == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_passphrase() -> str:
    # OpenSSL would ask for one at a terminal that nobody watches.
    raise OSError("a passphrase is wanted")

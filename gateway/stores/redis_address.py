"""Where a Redis is and how to greet it, from its URL."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec


class RedisAddress(msgspec.Struct, frozen=True):
    """One server and one database. ``repr`` is short on purpose: this holds the password."""

    host: str
    port: int
    path: str
    db: int
    username: str
    password: str
    tls: ssl.SSLContext | None

    def __repr__(self) -> str:
        return "RedisAddress(…)"


def parse_address(url: str) -> RedisAddress:
    """``redis://``, ``rediss://`` or ``unix://``, as :meth:`RedisLink.from_url` tells.

    Raises:
        ValueError: The URL is none of these. The message never holds the URL.
        OSError: A file that it names can't be read.
    """
    from redis.asyncio.connection import parse_url  # a tenth of the start-up, and the embedded default never asks for it

    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("a Redis URL starts with redis://, rediss:// or unix://")
    try:
        # redis-py's parser also decodes the password; its class arguments are dropped, its options kept.
        options: Mapping[str, Any] = dict(parse_url(url))
        # It also passes over a database that is no number, and would leave our keys in database 0.
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
        words = f"name {pair}: they can't be read, or don't fit, or the key is encrypted"
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

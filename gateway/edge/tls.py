"""TLS at the data port: one context that lives as long as the listener and passes each connection to the newest one."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Callable
from typing import Self

_NOT_A_PAIR = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})


class ListenerTls:
    """The listener's TLS: 1.2 or later, for HTTP/1.1 only. Raises OSError or ssl.SSLError for files that can't be used."""

    def __init__(self, cert_file: str, key_file: str) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self.context = _SwappableContext(self._load())
        self.expires_at = certificate_end(cert_file)
        """When the certificate that new connections are shown expires, in Unix seconds; ``inf``: not known."""

    def read(self) -> Callable[[], None]:
        """Read certificate and key again, in any thread. On an error nothing changes.

        Returns:
            A function that puts the pair into use for handshakes to come. Open connections keep what they have.
        """
        read, expires_at = self._load(), certificate_end(self._cert_file)

        def put() -> None:
            self.context.newest, self.expires_at = read, expires_at

        return put

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # An encrypted key would have the process wait for a passphrase at a terminal that nobody watches.
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password=_no_passphrase)
        except _PassphraseWanted:
            message = f"the key {self._key_file} is encrypted: put one there that needs no passphrase"
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, message) from None
        except ssl.SSLError as error:
            why = f"is not the key of the certificate {self._cert_file}"
            if error.reason not in _NOT_A_PAIR:
                why = (
                    f"and the certificate {self._cert_file} can't be read: {error.reason or 'one of them is not whole PEM'}"
                )
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, f"the key {self._key_file} {why}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, _unreadable(self._cert_file, self._key_file)) from error
        return context


def certificate_end(file: str) -> float:
    """When the first certificate in ``file``, the one shown to clients, expires, in Unix seconds; ``inf``: unknown."""
    from cryptography import x509  # some megabytes, which gateways without TLS need not load

    try:
        with open(file, "rb") as pem:
            return x509.load_pem_x509_certificates(pem.read())[0].not_valid_after_utc.timestamp()
    except (OSError, ValueError, OverflowError, x509.InvalidVersion):
        return math.inf


def _unreadable(*files: str) -> str:
    """Which of the files can't be read: the library does not say."""
    return next((file for file in files if not os.access(file, os.R_OK)), " or ".join(files))


class _SwappableContext(ssl.SSLContext):
    """The context that event loops make connections with; it has no certificate itself.

    A single context that loaded a new pair would keep the old one beside it where the two keys are of different types, and
    go on showing it to clients that prefer that type. ``sni_callback`` could change contexts, too, but decodes the name
    first: one that is not ASCII causes a traceback on standard error, and nobody may have to wait for that to be written.
    """

    newest: ssl.SSLContext

    def __new__(cls, newest: ssl.SSLContext) -> Self:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context.newest = newest
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.newest.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


class _PassphraseWanted(Exception):  # noqa: N818 — a question, and nobody to answer it
    pass


def _no_passphrase() -> str:
    raise _PassphraseWanted

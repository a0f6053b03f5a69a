"""TLS at the traffic port: one context that lives as long as the listener, and takes a new certificate while it serves."""

from __future__ import annotations

import ssl
from collections.abc import Callable


class ListenerTls:
    """TLS 1.2 or later, HTTP/1.1 alone. Raises OSError or ssl.SSLError for files that can't be used."""

    def __init__(self, cert_file: str, key_file: str) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self.context = self._load()

    def read(self) -> Callable[[], None]:
        """In any thread: look whether the pair can serve. What comes back has it serve handshakes to come; connections that
        are open keep what they have. On an error nothing changes.
        """
        self._load()  # A pair that does not fit must not get as far as the context that serves.
        return self._put

    def _put(self) -> None:
        # Read anew, in the event loop's thread: handshakes must not meet a context that is being changed.
        self.context.load_cert_chain(self._cert_file, self._key_file, password=_no_passphrase)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # A key that asks for a passphrase would stop the process at a terminal nobody watches.
        try:
            context.load_cert_chain(self._cert_file, self._key_file, password=_no_passphrase)
        except _PassphraseWanted:
            message = f"the key {self._key_file} is encrypted: put one there that needs no passphrase"
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, message) from None
        except ssl.SSLError as error:
            why = f"is not the key of the certificate {self._cert_file}"
            if error.reason != "KEY_VALUES_MISMATCH":
                why = f"and the certificate {self._cert_file} can't be read: {error.reason or error}"
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, f"the key {self._key_file} {why}") from error
        return context


class _PassphraseWanted(Exception):  # noqa: N818 — a question, and nobody to answer it
    pass


def _no_passphrase() -> str:
    raise _PassphraseWanted

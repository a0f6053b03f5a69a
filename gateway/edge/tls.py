"""TLS at the data port: one context that lives as long as the listener, and hands each handshake to the newest one."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

_NOT_A_PAIR = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})


class ListenerTls:
    """TLS 1.2 or later, HTTP/1.1 alone. Raises OSError or ssl.SSLError for files that can't be used."""

    def __init__(self, cert_file: str, key_file: str) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self.context = self._newest = self._load()
        # Whether or not the client names a server. A context that took another pair would keep the one before beside it
        # where their keys are of different kinds, and go on showing it to whoever prefers that kind.
        self.context.sni_callback = self._hand_over

    def read(self) -> Callable[[], None]:
        """In any thread: look whether the pair can serve. What comes back has it serve handshakes to come; connections that
        are open keep what they have. On an error nothing changes.
        """
        read = self._load()

        def put() -> None:
            self._newest = read

        return put

    def _hand_over(self, handshake: ssl.SSLObject | ssl.SSLSocket, _name: str, _context: ssl.SSLContext) -> None:
        handshake.context = self._newest

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
            if error.reason not in _NOT_A_PAIR:
                why = (
                    f"and the certificate {self._cert_file} can't be read: {error.reason or 'one of them is no whole PEM'}"
                )
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, f"the key {self._key_file} {why}") from error
        except OSError as error:
            raise OSError(error.errno, error.strerror, _unreadable(self._cert_file, self._key_file)) from error
        return context


def _unreadable(*files: str) -> str:
    """Which of them it is: the library does not say."""
    return next((file for file in files if not os.access(file, os.R_OK)), " or ".join(files))


class _PassphraseWanted(Exception):  # noqa: N818 — a question, and nobody to answer it
    pass


def _no_passphrase() -> str:
    raise _PassphraseWanted

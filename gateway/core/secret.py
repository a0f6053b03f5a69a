"""Secrets that can't be printed, and the keyed fingerprints that stand for them everywhere."""

from __future__ import annotations

import hashlib
import hmac


class Secret:
    """A credential's value. ``repr``, ``str``, ``format`` and pickling never show it; ``reveal()`` is the only way out."""

    __slots__ = ("_keyed", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._keyed: tuple[bytes, bytes] | None = None

    def reveal(self) -> str:
        """The value itself, for the wire and for hashing only."""
        return self._value

    def keyed(self, key: bytes) -> bytes:
        """The ``keyed_hash`` of the value; the last one is kept, because a repeated request presents the same object."""
        kept = self._keyed
        if kept is None or kept[0] is not key:
            kept = self._keyed = (key, keyed_hash(key, self._value))
        return kept[1]

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is never serialised")

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._value.encode("utf-8", "surrogateescape"), other._value.encode("utf-8", "surrogateescape")
        )

    def __hash__(self) -> int:
        return hash(self._value)


def keyed_hash(key: bytes, value: str | bytes, size: int = 32) -> bytes:
    """BLAKE2b of ``value`` keyed by ``key`` (16 to 64 octets), ``size`` octets: a MAC (RFC 7693 §2.9)."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return hashlib.blake2b(data, key=key, digest_size=size).digest()


def fingerprint(key: bytes, secret: Secret) -> str:
    """What logs and the audit show of a credential: ``tok:`` and 12 hex digits of its keyed hash."""
    return "tok:" + keyed_hash(key, secret.reveal(), 6).hex()

"""Upstream tokens that rotation made, encrypted wherever they are stored, and the store behind them.

    format (1) · nonce (12) · AES-256-GCM( msgpack of the record )

The record's id and version are the associated data: a value moved to another credential, or put back from an older version,
does not decrypt. A value that does not decrypt is reported, never overwritten.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..core.secret import Secret, keyed_hash
from ..core.token_record import Rotation, TokenRecord

_FORMAT = 1
_NONCE_BYTES = 12


class SealedRecord(msgspec.Struct, frozen=True):
    """A record as a store holds it."""

    id: str
    version: int
    octets: bytes

    def __repr__(self) -> str:
        return f"SealedRecord({self.id}, version {self.version})"


class SealedSnapshot(msgspec.Struct, frozen=True):
    """Everything a store holds, at one moment of its own clock."""

    records: tuple[SealedRecord, ...]
    now: float
    readers: dict[str, float]
    """Gateway → when it last read."""


class SealedStore(Protocol):
    """Stores sealed records. Every method raises StoreUnavailable in an outage; calls may overlap and be cancelled."""

    async def read(self, reader: str) -> SealedSnapshot:
        """Read all records; the store notes for the others that ``reader`` has read them."""
        ...

    async def put(self, record: SealedRecord, expect: int, fence: int | None) -> bool:
        """Store durably, in place of version ``expect`` (0: of no record). False, and nothing has changed: another version
        is there, or ``fence`` is not the latest that ``lead`` gave. Without a fence (None) only the version counts."""
        ...

    async def lead(self, holder: str, lease_s: float) -> int | None:
        """Become, or stay, the gateway that rotates. Returns the fence, which is higher for every new leader; None where
        another leads."""
        ...

    async def resign(self, holder: str) -> None:
        """Let another lead at once."""
        ...

    async def durability_warning(self) -> str:
        """Why the store may lose what is put here, in a restart or when it is full; empty: it won't, or nobody can tell."""
        ...

    async def close(self) -> None: ...


class TokenSnapshot(msgspec.Struct, frozen=True):
    """A ``SealedSnapshot``, decrypted."""

    tokens: dict[str, TokenRecord]
    broken: tuple[str, ...]
    """Ids of records that do not decrypt: a key wrote them that is not there, or somebody changed them."""
    under_other_keys: tuple[str, ...]
    """Ids of those among ``tokens`` that were not sealed under the key that seals now."""
    now: float
    readers: dict[str, float]


class _Content(msgspec.Struct, frozen=True):
    token: str | None
    token_id: int
    user_id: int
    scopes: tuple[str, ...]
    expires_at: float | None
    rotation: Rotation | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Content).decode


class CredentialVault:
    """Seals under ``key`` what ``store`` keeps, and opens it with that or one of ``other_keys``. A key has at least 16
    octets."""

    def __init__(self, store: SealedStore, key: bytes, other_keys: Iterable[bytes] = ()) -> None:
        self._store = store
        self._cipher = _cipher(key)
        self._other_ciphers = tuple(_cipher(other) for other in other_keys)
        self.lead = store.lead
        self.resign = store.resign
        self.durability_warning = store.durability_warning
        self.close = store.close

    async def read(self, reader: str) -> TokenSnapshot:
        """As ``SealedStore.read``."""
        sealed = await self._store.read(reader)
        tokens: dict[str, TokenRecord] = {}
        broken: list[str] = []
        under_other_keys: list[str] = []
        for record in sealed.records:
            token = _open(record, self._cipher)
            if token is None:
                tries = (_open(record, cipher) for cipher in self._other_ciphers)
                token = next((opened for opened in tries if opened is not None), None)
                (broken if token is None else under_other_keys).append(record.id)
            if token is not None:
                tokens[record.id] = token
        return TokenSnapshot(tokens, tuple(sorted(broken)), tuple(sorted(under_other_keys)), sealed.now, sealed.readers)

    async def put(self, token: TokenRecord, expect: int, fence: int | None) -> bool:
        """As ``SealedStore.put``; ``token.version`` must be above ``expect``."""
        if token.version <= expect:
            raise ValueError("a version never goes back")
        return await self._store.put(self._seal(token), expect, fence)

    def _seal(self, token: TokenRecord) -> SealedRecord:
        content = _encode(
            _Content(
                token.token.reveal() if token.token is not None else None,
                token.token_id,
                token.user_id,
                token.scopes,
                token.expires_at,
                token.rotation,
            )
        )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        octets = bytes((_FORMAT,)) + nonce + self._cipher.encrypt(nonce, content, _associated_data(token.id, token.version))
        return SealedRecord(token.id, token.version, octets)


def _cipher(key: bytes) -> AESGCM:
    if len(key) < 16:
        raise ValueError("an encryption key has at least 16 octets")
    return AESGCM(keyed_hash(key[:64], b"credentials: values", 32))


def _open(record: SealedRecord, cipher: AESGCM) -> TokenRecord | None:
    octets = record.octets
    if len(octets) <= 1 + _NONCE_BYTES or octets[0] != _FORMAT:
        return None
    nonce, rest = octets[1 : 1 + _NONCE_BYTES], octets[1 + _NONCE_BYTES :]
    try:
        content = _decode(cipher.decrypt(nonce, rest, _associated_data(record.id, record.version)))
    except (InvalidTag, msgspec.MsgspecError):
        return None
    return TokenRecord(
        record.id,
        record.version,
        Secret(content.token) if content.token is not None else None,
        content.token_id,
        content.user_id,
        content.scopes,
        content.expires_at,
        content.rotation,
    )


def _associated_data(name: str, version: int) -> bytes:
    return b"%d\0%d\0%b" % (_FORMAT, version, name.encode())

"""Makes, imports and replaces gateway keys, for the command line, the admin API and the token exchange."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import msgspec

from ..core.gateway_key import RANDOM_BYTES, digest, digest_of_hash, new_key
from ..core.key_record import LAST_INSTANT, LONGEST_NOTE, KeyOrigin, KeyRecord, Replacement, is_representable
from ..core.secret import Secret
from ..ports import KeyRefused, KeyRegister

LONGEST_OVERLAP_S = 30 * 86_400.0
_ID_BYTES = 6
_HASH_BYTES = 32
_MOST_NETWORKS = 32


class TermsRefused(KeyRefused):
    """What was asked for makes no key that could be used; nothing has changed."""


class NoSuchKey(KeyRefused):
    """There is no key with that id."""


class KeyTerms(msgspec.Struct, frozen=True):
    """When and from where a key may be used. Instants are Unix seconds."""

    not_before: float | None = None
    expires_at: float | None = None
    cidr: tuple[str, ...] = ()
    """The networks that it may be used from, on top of its identity's own restriction; empty: only that one applies."""
    note: str = ""

    def validated(self, now: float) -> KeyTerms:
        """The same terms, with networks in their usual spelling. Raises TermsRefused."""
        for instant in (self.expires_at, self.not_before):
            if instant is not None and not is_representable(instant):
                raise TermsRefused("a key must begin and end in the years 1 to 9999, in UTC")
        if self.expires_at is not None and self.expires_at <= max(now, self.not_before or now):
            raise TermsRefused("a key must not expire before it becomes valid")
        if len(self.note) > LONGEST_NOTE or not (self.note.isprintable() or not self.note):
            raise TermsRefused(f"a note is at most {LONGEST_NOTE} printable characters")
        if len(self.cidr) > _MOST_NETWORKS:
            raise TermsRefused(f"a key has at most {_MOST_NETWORKS} networks")
        return msgspec.structs.replace(self, cidr=tuple(_network(text) for text in self.cidr))


UNRESTRICTED = KeyTerms()

BeforePut = Callable[[KeyRecord], None]
"""Called with a record right before the store is: the store may write it, and then fail to say so."""


class KeyIssuer:
    """Issues, imports, rotates, lists and revokes keys in ``register``. Ids are ASCII: no others get to the store, which
    could not encode what a shell makes of stray octets.

    ``random(n)`` gives n unpredictable octets; ``wall`` gives Unix seconds.
    """

    def __init__(
        self, register: KeyRegister, *, pepper: bytes, wall: Callable[[], float], random: Callable[[int], bytes]
    ) -> None:
        self._register = register
        self._pepper = pepper
        self._wall = wall
        self._random = random

    async def issue(
        self, identity: str, terms: KeyTerms = UNRESTRICTED, *, before_put: BeforePut = lambda _: None
    ) -> tuple[Secret, KeyRecord]:
        """Make a new key. Returns the key, which is for the caller to show once and is kept nowhere, and its record.

        Raises TermsRefused if it could never be used, KeyRefused if the identity has two live keys already.
        """
        return await self._new(identity, terms, KeyOrigin.ISSUED, before_put=before_put)

    async def issue_exchanged(self, identity: str, terms: KeyTerms) -> tuple[Secret, KeyRecord]:
        """As ``issue``, for a workload's token: the key is none of the two. Raises KeyRefused if there are too many."""
        return await self._new(identity, terms, KeyOrigin.EXCHANGED)

    async def import_key(
        self, identity: str, sha256: bytes, terms: KeyTerms = UNRESTRICTED, *, before_put: BeforePut = lambda _: None
    ) -> KeyRecord:
        """Import a gateway key made elsewhere, by its SHA-256. Raises as ``issue``."""
        if len(sha256) != _HASH_BYTES:
            raise TermsRefused("the SHA-256 of a key has 32 octets")
        hashed = digest_of_hash(self._pepper, sha256)
        record = self._record(identity, hashed, terms.validated(self._wall()), KeyOrigin.IMPORTED)
        before_put(record)
        await self._register.put(record)
        return record

    async def rotate(
        self, key_id: str, overlap_s: float, *, expires_at: float | None = None, before_put: BeforePut = lambda _: None
    ) -> tuple[Secret, KeyRecord]:
        """Make a new key in place of a live one, which ends ``overlap_s`` from now. The new key is bound like the old one,
        also to a beginning that is yet to come. Without ``expires_at``, it lives as long as the old one was to live, or to
        the end of the year 9999.

        Raises NoSuchKey; TermsRefused; KeyRefused if the old key is dead, or being replaced already.
        """
        if not 0 <= overlap_s <= LONGEST_OVERLAP_S:
            raise TermsRefused("the overlap is from 0 s to 30 days")
        older = await self.get(key_id)
        if older is None:
            raise NoSuchKey(f"no key has the id {key_id}")
        now = self._wall()
        not_before = older.not_before if older.not_before is not None and older.not_before > now else None
        if expires_at is None and older.expires_at is not None:
            lifetime_s = older.expires_at - max(older.created_at, older.not_before or 0.0)
            expires_at = min((not_before or now) + lifetime_s, LAST_INSTANT.timestamp())
        terms = KeyTerms(not_before, expires_at, older.cidr, older.note)
        replacing = Replacement(key_id, now + overlap_s)
        return await self._new(older.identity, terms, KeyOrigin.ISSUED, replacing, before_put=before_put)

    async def get(self, key_id: str) -> KeyRecord | None:
        """The record of a key; of a dead one too, for a while."""
        return await self._register.get(key_id) if key_id.isascii() else None

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        """All records, or those of one identity, oldest first; of dead keys too, for a while."""
        return await self._register.list(identity) if identity is None or identity.isascii() else []

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key at once; False: there is no such key."""
        return key_id.isascii() and await self._register.revoke(key_id, self._wall())

    async def _new(
        self,
        identity: str,
        terms: KeyTerms,
        origin: KeyOrigin,
        replacing: Replacement | None = None,
        *,
        before_put: BeforePut = lambda _: None,
    ) -> tuple[Secret, KeyRecord]:
        terms = terms.validated(self._wall())
        key = new_key(self._random(RANDOM_BYTES))
        record = self._record(identity, digest(self._pepper, key), terms, origin)
        before_put(record)
        await self._register.put(record, replacing)
        return key, record

    def _record(self, identity: str, hashed: bytes, terms: KeyTerms, origin: KeyOrigin) -> KeyRecord:
        return KeyRecord(
            id=f"key_{self._random(_ID_BYTES).hex()}",
            identity=identity,
            digest=hashed,
            created_at=self._wall(),
            not_before=terms.not_before,
            expires_at=terms.expires_at,
            note=terms.note,
            cidr=terms.cidr,
            origin=origin,
        )


def _network(text: str) -> str:
    try:
        if "%" in text:
            raise ValueError  # a scope may be any text at all, and no peer's address has one
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise TermsRefused("a network is written like 10.20.0.0/16 or 2001:db8::/32, without host bits") from None

"""Gateway keys as people change them, on the command line and the admin port: one way in, a line of audit for each change.

What is refused changes nothing and is not written down; whoever is not who they say never gets here.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from ..core.errors import Code, Rejection
from ..core.exchange import Exchange
from ..core.key_record import KeyRecord
from ..core.secret import Secret
from ..identity.issuing import UNBOUND, Asking, KeyIssuer, KeyTerms, NoSuchKey, TermsRefused
from ..ports import NotDone, StoreUnavailable
from ..telemetry.audit import AuditLog


class Actor(msgspec.Struct, frozen=True):
    """Who changes something, as the audit names them."""

    name: str
    """``admin:`` and the first digits of the admin key's SHA-256; ``command:`` and the system's user."""
    kind: str
    """``admin`` or ``command``."""
    peer: str = ""
    method: str = ""


class RecordFull(StoreUnavailable):
    """What is changed could not be written down."""


class Unsaid(StoreUnavailable):
    """The store was asked for a change, and did not say whether it made it."""


class KeyOffice:
    """Of one key store.

    Args:
        issuer: What makes and keeps keys.
        identities: Those with ``key: issued``: no other gets a key.
        audit: Where each change is written down; None: nowhere.
        changed: Told the id of a key that ended or will end, so that this process forgets what it remembers.
    """

    def __init__(
        self,
        issuer: KeyIssuer,
        identities: Iterable[str],
        audit: AuditLog | None,
        *,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._issuer = issuer
        self._identities = tuple(identities)
        self._audit = audit
        self._changed = changed

    async def issue(self, actor: Actor, identity: str, terms: KeyTerms = UNBOUND) -> tuple[Secret, KeyRecord]:
        """Raises KeyRefused, StoreUnavailable; RecordFull where it could not be written down. As do the others."""
        deed = await self._admitted(actor, "key issued")
        with self._telling(deed) as asking:
            key, record = await self._issuer.issue(self._known(identity), terms, asking=asking)
        self._note(deed, record)
        return key, record

    async def take_in(self, actor: Actor, identity: str, sha256: str, terms: KeyTerms = UNBOUND) -> KeyRecord:
        """Import; ``sha256`` of the key in hex."""
        try:
            hashed = bytes.fromhex(sha256)
        except ValueError:
            raise TermsRefused("the SHA-256 of a key is written as 64 hex digits") from None
        deed = await self._admitted(actor, "key imported")
        with self._telling(deed) as asking:
            record = await self._issuer.take_in(self._known(identity), hashed, terms, asking=asking)
        self._note(deed, record)
        return record

    async def rotate(
        self, actor: Actor, key_id: str, overlap_s: float, *, expires_at: float | None = None
    ) -> tuple[Secret, KeyRecord]:
        """A key in place of another, which ends after the overlap."""
        older = await self.get(key_id)
        if older.counted:  # what was exchanged is refused in words of its own
            self._known(older.identity)
        deed = await self._admitted(actor, "key rotated")
        replaces = f"replaces={key_id}", f"overlap_s={overlap_s:g}"
        with self._telling(deed, *replaces) as asking:
            key, record = await self._issuer.rotate(key_id, overlap_s, expires_at=expires_at, asking=asking)
        self._changed(key_id)
        self._note(deed, record, *replaces)
        return key, record

    async def revoke(self, actor: Actor, key_id: str) -> KeyRecord:
        """At once. Raises NoSuchKey. Revoking twice is no failure."""
        deed = _begun(actor, "key revoked")
        # Never refused for the record's sake: a key that must end ends.
        with self._telling(deed) as asking:
            record = await self.get(key_id)
            asking(record)
            if not await self._issuer.revoke(key_id):
                raise NoSuchKey(f"no key has the id {key_id}")
            self._changed(key_id)
            try:
                record = await self.get(key_id)
            except NotDone as silence:
                raise StoreUnavailable(str(silence)) from silence  # the key has ended all the same
        self._note(deed, record)
        return record

    async def get(self, key_id: str) -> KeyRecord:
        """Raises NoSuchKey."""
        record = await self._issuer.get(key_id)
        if record is None:
            raise NoSuchKey(f"no key has the id {key_id}")
        return record

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        """Oldest first."""
        return await self._issuer.list(identity)

    def _known(self, identity: str) -> str:
        if identity not in self._identities:
            there_are = f"there are {', '.join(self._identities)}" if self._identities else "the configuration has none"
            raise TermsRefused(f"`{identity}` is no identity with `key: issued`; {there_are}")
        return identity

    async def _admitted(self, actor: Actor, what: str) -> Exchange:
        """A change that the record has room for."""
        deed = _begun(actor, what)
        if self._audit is not None:
            try:
                await self._audit.admit(deed)
            except Rejection:
                raise RecordFull("the audit has no room: nothing was changed") from None
        return deed

    @contextlib.contextmanager
    def _telling(self, deed: Exchange, *more: str) -> Iterator[Asking]:
        """A change that the store may have made without saying so is a line, too, and is told by the key's name."""
        asked: list[KeyRecord] = []
        try:
            yield asked.append
        except (StoreUnavailable, asyncio.CancelledError) as silence:
            if not asked or isinstance(silence, NotDone):
                raise
            deed.code = Code.IDENTITY_UNAVAILABLE.value
            self._note(deed, asked[0], *more, status=503)
            if isinstance(silence, asyncio.CancelledError):
                raise
            words = f"{silence}: whether this was done, `keys list` tells, by {asked[0].id}"
            raise Unsaid(words) from silence

    def _note(self, deed: Exchange, record: KeyRecord, *more: str, status: int = 200) -> None:
        if self._audit is None:
            return
        deed.status, deed.identity = status, record.identity
        bounds = [f"{name}={at:.0f}" for name, at in _bounds(record) if at is not None]
        words = [f"origin={record.origin.value}", *bounds, *(f"cidr={one}" for one in record.cidr), *more]
        deed.target = f"/-/keys/{record.id}?{'&'.join(words)}".encode()
        self._audit.observe(deed)


def _begun(actor: Actor, what: str) -> Exchange:
    x = Exchange(f"key-{secrets.token_hex(8)}", time.monotonic(), actor.method, actor.peer)
    x.operation, x.principal, x.principal_kind = what, actor.name, actor.kind
    return x


def _bounds(record: KeyRecord) -> tuple[tuple[str, float | None], ...]:
    return ("not_before", record.not_before), ("expires_at", record.expires_at), ("revoked_at", record.revoked_at)


def state_of(record: KeyRecord, now: float) -> str:
    """``live``, ``pending`` (its time is yet to come), ``expired`` or ``revoked``. ``now`` is Unix seconds."""
    if record.revoked_at is not None:
        return "revoked"
    if not record.is_live(now):
        return "expired"
    return "live" if record.is_usable(now) else "pending"

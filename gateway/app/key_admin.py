"""Changes to gateway keys, from the command line and the admin port: one way in, and one audit line per change.

A refused change alters nothing and is not recorded. Callers have been authenticated before they get here.
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
from ..identity.key_issuer import UNRESTRICTED, BeforePut, KeyIssuer, KeyTerms, NoSuchKey, TermsRefused
from ..ports import NotDone, StoreUnavailable
from ..telemetry.audit import AuditLog


class Actor(msgspec.Struct, frozen=True):
    """The person or process that makes a change, as the audit names them."""

    name: str
    """``admin:`` and the first digits of the admin key's SHA-256; or ``command:`` and the operating system's user."""
    kind: str
    """``admin`` or ``command``."""
    peer: str = ""
    method: str = ""


class AuditFull(StoreUnavailable):
    """The change could not be recorded, and so was not made."""


class Unconfirmed(StoreUnavailable):
    """The store was asked for a change, and did not confirm whether it made it."""


class KeyAdmin:
    """Issues, imports, rotates and revokes the keys of one key store.

    Args:
        issuer: Makes and keeps the keys.
        identities: Ids of the identities with ``key: issued``; no other gets a key.
        audit: Where each change is recorded; None: nowhere.
        changed: Called with the id of a key that has ended or will end, so that this process forgets what it remembers.
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

    async def issue(self, actor: Actor, identity: str, terms: KeyTerms = UNRESTRICTED) -> tuple[Secret, KeyRecord]:
        """Make a key. Raises KeyRefused, StoreUnavailable; AuditFull where the change could not be recorded. So do
        ``import_key`` and ``rotate``."""
        event = await self._admit(actor, "key issued")
        with self._recording(event) as before_put:
            key, record = await self._issuer.issue(self._check_identity(identity), terms, before_put=before_put)
        self._write_audit(event, record)
        return key, record

    async def import_key(self, actor: Actor, identity: str, sha256: str, terms: KeyTerms = UNRESTRICTED) -> KeyRecord:
        """Import a key by its ``sha256``, in hex."""
        try:
            hashed = bytes.fromhex(sha256)
        except ValueError:
            raise TermsRefused("the SHA-256 of a key is written as 64 hex digits") from None
        event = await self._admit(actor, "key imported")
        with self._recording(event) as before_put:
            record = await self._issuer.import_key(self._check_identity(identity), hashed, terms, before_put=before_put)
        self._write_audit(event, record)
        return record

    async def rotate(
        self, actor: Actor, key_id: str, overlap_s: float, *, expires_at: float | None = None
    ) -> tuple[Secret, KeyRecord]:
        """Make a key in place of another, which ends after the overlap."""
        older = await self.get(key_id)
        if older.counted:  # an exchanged credential is refused below, with a message of its own
            self._check_identity(older.identity)
        event = await self._admit(actor, "key rotated")
        replaces = f"replaces={key_id}", f"overlap_s={overlap_s:g}"
        with self._recording(event, *replaces) as before_put:
            key, record = await self._issuer.rotate(key_id, overlap_s, expires_at=expires_at, before_put=before_put)
        self._changed(key_id)
        self._write_audit(event, record, *replaces)
        return key, record

    async def revoke(self, actor: Actor, key_id: str) -> KeyRecord:
        """End a key at once. Revoking it a second time is not an error. Raises NoSuchKey."""
        event = _new_event(actor, "key revoked")
        # Never refused because the audit has no room: a key that must end ends.
        with self._recording(event) as before_put:
            record = await self.get(key_id)
            before_put(record)
            if not await self._issuer.revoke(key_id):
                raise NoSuchKey(f"no key has the id {key_id}")
            self._changed(key_id)
            try:
                record = await self.get(key_id)
            except NotDone as silence:
                raise StoreUnavailable(str(silence)) from silence  # the key has ended all the same
        self._write_audit(event, record)
        return record

    async def get(self, key_id: str) -> KeyRecord:
        """The record of a key. Raises NoSuchKey."""
        record = await self._issuer.get(key_id)
        if record is None:
            raise NoSuchKey(f"no key has the id {key_id}")
        return record

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        """The records of all keys, or of one identity's, oldest first."""
        return await self._issuer.list(identity)

    def _check_identity(self, identity: str) -> str:
        if identity not in self._identities:
            there_are = f"there are {', '.join(self._identities)}" if self._identities else "the configuration has none"
            raise TermsRefused(f"`{identity}` is not an identity with `key: issued`; {there_are}")
        return identity

    async def _admit(self, actor: Actor, what: str) -> Exchange:
        """Begin a change, once the audit has room for its line. Raises AuditFull."""
        event = _new_event(actor, what)
        if self._audit is not None:
            try:
                await self._audit.admit(event)
            except Rejection:
                raise AuditFull("the audit has no room: nothing was changed") from None
        return event

    @contextlib.contextmanager
    def _recording(self, event: Exchange, *more: str) -> Iterator[BeforePut]:
        """Record a change even if the store may have made it without confirming it, and name the key in the error."""
        put: list[KeyRecord] = []
        try:
            yield put.append
        except (StoreUnavailable, asyncio.CancelledError) as silence:
            if not put or isinstance(silence, NotDone):
                raise
            event.code = Code.IDENTITY_UNAVAILABLE.value
            self._write_audit(event, put[0], *more, status=503)
            if isinstance(silence, asyncio.CancelledError):
                raise
            words = f"{silence}: to see whether this was done, look for {put[0].id} in `keys list`"
            raise Unconfirmed(words) from silence

    def _write_audit(self, event: Exchange, record: KeyRecord, *more: str, status: int = 200) -> None:
        if self._audit is None:
            return
        event.status, event.identity = status, record.identity
        bounds = [f"{name}={at:.0f}" for name, at in _bounds(record) if at is not None]
        words = [f"origin={record.origin.value}", *bounds, *(f"cidr={one}" for one in record.cidr), *more]
        event.target = f"/-/keys/{record.id}?{'&'.join(words)}".encode()
        self._audit.observe(event)


def _new_event(actor: Actor, what: str) -> Exchange:
    x = Exchange(f"key-{secrets.token_hex(8)}", time.monotonic(), actor.method, actor.peer)
    x.operation, x.principal, x.principal_kind = what, actor.name, actor.kind
    return x


def _bounds(record: KeyRecord) -> tuple[tuple[str, float | None], ...]:
    return ("not_before", record.not_before), ("expires_at", record.expires_at), ("revoked_at", record.revoked_at)


def state_of(record: KeyRecord, now: float) -> str:
    """``live``, ``pending`` (not valid yet), ``expired`` or ``revoked``. ``now`` is in Unix seconds."""
    if record.revoked_at is not None:
        return "revoked"
    if not record.is_live(now):
        return "expired"
    return "live" if record.is_usable(now) else "pending"

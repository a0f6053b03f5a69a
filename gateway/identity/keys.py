"""Gateway keys → principals, with a memory so short that a revocation takes effect everywhere within two seconds.

The store is asked at most once per second, for all keys together, whether any was revoked or changed; if so, each is looked
up again, and otherwise once a minute. For that second, a key revoked by another process goes on working.
While the store is away, keys found lately go on working for a bounded time (last known good); others cannot be judged.

No timing tells an unknown key from a dead one: the store searches by HMAC, which nobody without the pepper can steer, and
both then take the same steps to the same refusal.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable

import msgspec

from ..core.access import Principal, PrincipalKind
from ..core.gateway_key import digest, same_digest
from ..core.key_record import KeyOrigin, KeyRecord
from ..core.secret import Secret, fingerprint
from ..ports import KeyStore, StoreUnavailable
from .lookups import LATELY_S, Lookups, Memo, Recall
from .settings import KeyIdentity, WorkloadIdentity

log = logging.getLogger("gateway.identity")

TTL_S = 1.0
"""How long a lookup is believed: half of the two seconds a revocation may take."""
TOUCH_S = 60.0
"""How coarsely last use is recorded."""
REREAD_S = 60.0
"""How long a record is believed while the store says that no key was changed. Last use is recorded when it is read."""
_LOG_EVERY_S = 60.0
"""How often, at most, the log says that the store is away."""

_UNKNOWN = "no such key: issued elsewhere, forgotten 30 days after its end, or made under another pepper"
_NO_RECORD = KeyRecord(id="", identity="", digest=bytes(32), created_at=0.0, revoked_at=0.0)


class _Epoch:
    """A time during which the store's revision stayed the same."""

    __slots__ = ("revision",)

    def __init__(self, revision: object) -> None:
        self.revision = revision


class _Known(msgspec.Struct, frozen=True, gc=False):
    """A good key. Instants are monotonic."""

    principal: Principal
    record: KeyRecord
    found_at: float
    fresh_until: float
    touched_at: float
    epoch: _Epoch | None
    """The epoch that lasted when the record was asked for; None: that was not known."""
    unbounded: bool
    """Whether its record sets no time at which it would not be usable."""


class GatewayKeys:
    """Judges gateway keys. ``wall`` gives Unix seconds (a key's time bounds), ``monotonic`` this process's (the
    memory's)."""

    def __init__(
        self,
        store: KeyStore,
        identities: Iterable[KeyIdentity | WorkloadIdentity],
        *,
        pepper: bytes,
        fingerprint_key: bytes,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        stale_s: float = 600.0,
        remembered: int = 10_000,
    ) -> None:
        self._store = store
        self._identities = {identity.id: identity for identity in identities}
        self._pepper = pepper
        self._fingerprint_key = fingerprint_key
        self._wall = wall
        self._monotonic = monotonic
        self._stale_s = stale_s
        self._lately_s = max(stale_s, LATELY_S)
        self._known: Memo[bytes, _Known] = Memo(remembered)
        # Separate from the good ones, which a flood of bad keys must not push out.
        self._bad: Memo[bytes, tuple[float, str]] = Memo(remembered)
        """Until when each is refused unasked, and why it is."""
        self._touches: Lookups[str, None] = Lookups()
        self._epoch: _Epoch | None = None
        self._epoch_until = float("-inf")
        """Until then the epoch counts as lasting."""
        self._revision_flights: Lookups[None, None] = Lookups()
        self._revocations = 0
        self._away = False
        """Whether the store is away, and the log has said so."""
        self._logged_at = float("-inf")

    def recall(self, key: bytes) -> Principal | Recall:
        """The principal from memory, or why there is none; ``key`` is a keyed hash of the gateway key."""
        now = self._monotonic()
        known = self._known.get(key)
        if known is not None and (now < known.fresh_until or self._is_current(known, now)):
            return known.principal if known.unbounded or known.record.is_usable(self._wall()) else Recall.REFUSED
        if known is not None and now < known.found_at + self._lately_s:
            return Recall.STALE
        bad = self._bad.get(key)
        return Recall.REFUSED if bad is not None and now < bad[0] else Recall.UNKNOWN

    def why_refused(self, key: bytes) -> str:
        """Why a key was refused a moment ago, for the audit."""
        known, bad = self._known.get(key), self._bad.get(key)
        if known is not None:
            return known.record.why_unusable(self._wall())
        return bad[1] if bad is not None else ""

    async def look_up(self, key: bytes, secret: Secret) -> Principal | None:
        """The principal from the store; None: the key is bad. Raises StoreUnavailable if the store is away and no answer
        known lately stands in."""
        while True:
            revocations = self._revocations
            try:
                known = self._known.get(key)
                if known is not None:
                    await self._refresh_epoch()
                    if known is self._known.get(key) and self._is_current(known, self._monotonic()):
                        self._log_outage(None)
                        if known.record.is_usable(self._wall()):
                            return known.principal
                wanted, epoch = digest(self._pepper, secret), self._present_epoch()
                record = await self._store.find(wanted)
            except StoreUnavailable as outage:
                self._log_outage(outage)
                return self.last_known_good(key)
            self._log_outage(None)
            if revocations == self._revocations:
                return self._judge(key, secret, wanted, record, epoch)
            # A key was revoked here while the store answered: the answer may be older than that.

    def last_known_good(self, key: bytes) -> Principal | None:
        """The last known good answer, while the store is away. Raises StoreUnavailable if there is none."""
        now = self._monotonic()
        known = self._known.get(key)
        if known is None or now >= known.found_at + self._stale_s:
            raise StoreUnavailable("the key store is away, and this key was not seen lately")
        # The store is asked again in a second, not by each request: an outage must not cost every one of them a timeout.
        self._known.put(key, msgspec.structs.replace(known, fresh_until=now + TTL_S))
        return known.principal if known.record.is_usable(self._wall()) else None

    def _log_outage(self, outage: StoreUnavailable | None) -> None:
        """Log that the store is away, or back: while keys seen lately go on working, nothing else shows that none can be
        revoked."""
        now = self._monotonic()
        if outage is None:
            if self._away:
                log.warning("the key store can be read again")
            self._away = False
        elif not self._away and now - self._logged_at >= _LOG_EVERY_S:
            self._away, self._logged_at = True, now
            log.error("the key store can't be read, so revocations go unnoticed: %s", outage)

    def forget(self, key_id: str) -> None:
        """Forget a key after its revocation in this process: it is dead when this call returns."""
        self._revocations += 1
        self._known.drop_where(lambda known: known.record.id == key_id)

    async def close(self) -> None:
        await self._touches.close()
        await self._revision_flights.close()

    def _is_current(self, known: _Known, now: float) -> bool:
        """Whether the store said, not long ago, that no key was revoked or changed since this one was found."""
        return now < self._epoch_until and known.epoch is self._epoch and now < known.found_at + REREAD_S

    def _present_epoch(self) -> _Epoch | None:
        """The epoch, if it was seen to last not long ago: a restored backup may end one, and another bring it back."""
        return self._epoch if self._monotonic() < self._epoch_until else None

    async def _refresh_epoch(self) -> None:
        """See whether the epoch lasts, at most once per ``TTL_S`` for all keys. Raises StoreUnavailable."""
        if self._monotonic() >= self._epoch_until:
            await self._revision_flights.share(None, self._read_revision)

    async def _read_revision(self) -> None:
        asked_at = self._monotonic()
        revision = await self._store.revision()
        if self._epoch is None or self._epoch.revision != revision:
            self._epoch = _Epoch(revision)
        self._epoch_until = asked_at + TTL_S

    def _judge(
        self, key: bytes, secret: Secret, wanted: bytes, record: KeyRecord | None, epoch: _Epoch | None
    ) -> Principal | None:
        now = self._monotonic()
        before = self._known.get(key)
        found = record if record is not None else _NO_RECORD
        identity = self._identities.get(found.identity)
        is_ours = same_digest(found.digest, wanted)
        why_unusable = found.why_unusable(self._wall())
        # An identity that has become one of another sort admits no key from before.
        of_its_sort = isinstance(identity, WorkloadIdentity) is (found.origin is KeyOrigin.EXCHANGED)
        if identity is None or not is_ours or why_unusable or not of_its_sort:
            changed = "which the configuration no longer has" if identity is None else "now an identity of another kind"
            why = why_unusable or f"{found.id} is for {found.identity}, {changed}"
            self._known.drop(key)
            self._bad.put(key, (now + TTL_S, why if is_ours else _UNKNOWN))
            return None
        if before is not None and _same_holder(before.record, found):
            principal, touched_at = before.principal, before.touched_at
        else:
            principal = Principal(
                id=identity.id,
                kind=PrincipalKind.KEY if found.origin is not KeyOrigin.EXCHANGED else PrincipalKind.OIDC,
                identity=identity.id,
                fingerprint=fingerprint(self._fingerprint_key, secret),
                credential_id=found.id,
                credential_subject=found.note if found.origin is KeyOrigin.EXCHANGED else "",
                team=identity.team,
                priority=identity.priority,
                cidr=found.cidr,
            )
            touched_at = now - TOUCH_S
        if now - touched_at >= TOUCH_S:
            touched_at = now
            self._touches.start(found.id, lambda: self._touch(found.id))
        self._bad.drop(key)
        self._known.put(key, _Known(principal, found, now, now + TTL_S, touched_at, epoch, found.is_unbounded))
        return principal

    async def _touch(self, key_id: str) -> None:
        with contextlib.suppress(StoreUnavailable):  # last use is worth less than the request
            await self._store.touch(key_id, self._wall())


def _same_holder(one: KeyRecord, other: KeyRecord) -> bool:
    """Whether the same principal is made of both: a restored backup or a hand may give a key to another, another name or
    other networks."""
    return (
        one.identity == other.identity
        and one.id == other.id
        and one.cidr == other.cidr
        and one.origin is other.origin
        and one.note == other.note
    )

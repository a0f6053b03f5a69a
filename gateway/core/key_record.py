"""A gateway key as a store holds it: whose it is, when and from where it is valid, and how it ends. The key itself is
stored nowhere."""

from __future__ import annotations

import datetime
import enum

import msgspec

LIVE_KEYS = 2
"""How many live keys an identity may have: the one in use and the one that replaces it. Exchanged ones are not counted."""

LONGEST_NOTE = 200
"""Characters that a key's note may have."""

KEEP_DEAD_S = 30 * 86_400.0
"""How long a revoked or expired key stays listed, in seconds."""

KEEP_EXCHANGED_S = 3600.0
"""The same for an exchanged key: there are many of them, and each says little."""

MOST_EXCHANGED = 100_000
"""How many exchanged credentials one store holds, those that died recently included."""

FIRST_INSTANT = datetime.datetime.min.replace(tzinfo=datetime.UTC)
LAST_INSTANT = datetime.datetime.max.replace(microsecond=0, tzinfo=datetime.UTC)
"""The bounds of what RFC 3339 can express: the years 1 to 9999, in UTC."""


def is_representable(at: float) -> bool:
    """Whether these Unix seconds are an instant that RFC 3339 can express; a number that is not finite isn't."""
    try:
        datetime.datetime.fromtimestamp(at, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return False
    return True


def format_instant(at: float, timespec: str = "seconds") -> str:
    """These Unix seconds in RFC 3339 format; beyond what that can express, its first or last instant."""
    if is_representable(at):
        instant = datetime.datetime.fromtimestamp(at, datetime.UTC)
    else:
        instant = LAST_INSTANT if at > 0 else FIRST_INSTANT
    return instant.isoformat(timespec=timespec).replace("+00:00", "Z")


class KeyOrigin(enum.StrEnum):
    """How a key came to be."""

    ISSUED = "issued"
    IMPORTED = "imported"
    """Made elsewhere; only its hash ever came here."""
    EXCHANGED = "exchanged"
    """Given in exchange for a workload's token, for a short time."""


class KeyRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One key. Instants are Unix seconds."""

    id: str
    """The public id, shown in lists and in the audit log."""
    identity: str
    digest: bytes
    """``gateway_key.digest``."""
    created_at: float
    not_before: float | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    """The key is revoked as soon as this is set, whatever its value: another host's clock must not delay a revocation."""
    last_used_at: float | None = None
    """Coarse: to the minute or so."""
    note: str = ""
    cidr: tuple[str, ...] = ()
    """The networks it may be used from, on top of its identity's own restriction; empty: only that one applies."""
    origin: KeyOrigin = KeyOrigin.ISSUED
    replaced_by: str = ""
    """The id of the key that a rotation put in its place; empty: none."""

    @property
    def counted(self) -> bool:
        """Whether it counts towards ``LIVE_KEYS`` while it lives."""
        return self.origin is not KeyOrigin.EXCHANGED

    @property
    def is_unbounded(self) -> bool:
        """Whether it is usable at any time."""
        return self.revoked_at is None and self.expires_at is None and self.not_before is None

    def is_live(self, now: float) -> bool:
        """Whether it is neither revoked nor expired; its time may be yet to come."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def is_usable(self, now: float) -> bool:
        """Whether it is live and its time has come."""
        return self.is_live(now) and (self.not_before is None or now >= self.not_before)

    def why_unusable(self, now: float) -> str:
        """Why it is not usable, for the operator; empty: it is."""
        if self.revoked_at is not None:
            return f"{self.id} of {self.identity} is revoked"
        if not self.is_live(now):
            return f"{self.id} of {self.identity} has expired"
        return "" if self.is_usable(now) else f"{self.id} of {self.identity} is not valid yet"

    def is_forgettable(self, now: float) -> bool:
        """Whether it has been dead for so long that listing it serves nobody."""
        ends = [instant for instant in (self.revoked_at, self.expires_at) if instant is not None]
        return bool(ends) and min(ends) <= now - (KEEP_DEAD_S if self.counted else KEEP_EXCHANGED_S)

    def replaced(self, by: str, until: float, now: float) -> KeyRecord:
        """The record as a rotation leaves it: the key ends at ``until``, or earlier if it would have done so anyway. It is
        revoked if ``until`` is not later than ``now``."""
        if until <= now:
            return msgspec.structs.replace(self, replaced_by=by, revoked_at=now)
        expires_at = until if self.expires_at is None else min(until, self.expires_at)
        return msgspec.structs.replace(self, replaced_by=by, expires_at=expires_at)

    def __repr__(self) -> str:
        return f"KeyRecord({self.id}, {self.identity})"


class Replacement(msgspec.Struct, frozen=True):
    """What a rotation does to the key that it replaces."""

    id: str
    until: float
    """Unix seconds."""

    def refusal_reason(self, older: KeyRecord | None, newer: KeyRecord) -> str | None:
        """Why ``older`` cannot make room for ``newer``; None: it can."""
        if older is None or older.identity != newer.identity:
            return f"{newer.identity} has no key {self.id}"
        if not older.is_live(newer.created_at):
            return f"{self.id} is dead: issue a new key instead"
        if not older.counted:
            return f"{self.id} was exchanged for a token: exchange another"
        if older.replaced_by:
            return f"{self.id} is being replaced already, by {older.replaced_by}"
        return None

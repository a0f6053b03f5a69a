"""An upstream token that rotation made, and how far a rotation has come: what the credential store keeps, and when to act.

A record is written ahead of every call to GitLab that can't be taken back, so that whoever reads it after a crash knows
what may have happened. Instants are Unix seconds.
"""

from __future__ import annotations

import enum

import msgspec

from .secret import Secret, keyed_hash

ALARM_DAYS = (14, 7, 1)
"""Before the end of a credential: an alarm at each, louder at the last."""
DAY_S = 86_400.0


class Step(enum.StrEnum):
    """What a rotation was about to do when it was last written down."""

    CREATING = "creating"
    """GitLab may have made a token that nobody holds: it is found by its name, and revoked."""
    SETTLING = "settling"
    """The new token is kept; the old one is yet to be revoked."""
    ROTATING = "rotating"
    """GitLab may have replaced the token. Nobody may ask again: a token used twice revokes its whole family."""
    LOST = "lost"
    """As ``ROTATING``, and its answer will not come any more: a person must look."""


class Rotation(msgspec.Struct, frozen=True):
    """One under way."""

    step: Step
    names: tuple[str, ...]
    """What each token is called that this rotation asked GitLab for; the last is the latest."""
    old_id: int
    """GitLab's number of the token that is replaced."""
    since: float


class KeptToken(msgspec.Struct, frozen=True):
    """One record."""

    id: str
    """``record_id`` of the configured token it stands for."""
    version: int
    """Raised by every change; 0: not in the store yet."""
    token: Secret | None = None
    """None: the configured one is still in use."""
    token_id: int = 0
    user_id: int = 0
    scopes: tuple[str, ...] = ()
    expires_at: float | None = None
    rotation: Rotation | None = None

    def __repr__(self) -> str:
        return f"KeptToken({self.id}, version {self.version})"


def record_id(key: bytes, credential: str, configured: Secret) -> str:
    """What the record for a configured token is called: the credential, and which token it began with. A token that an
    operator puts in its place has a record of its own, and wins."""
    return f"{credential}/{keyed_hash(key[:64], b'credentials: seeds' + configured.reveal().encode(), 8).hex()}"


def is_due(expires_at: float | None, now: float, before_s: float) -> bool:
    """Whether it is time to replace what ends then; what never ends never is."""
    return expires_at is not None and expires_at - now <= before_s


def alarm_days(expires_at: float | None, now: float) -> int | None:
    """The nearest of ``ALARM_DAYS`` that has come; None: there is time. An ended one is at the last."""
    if expires_at is None:
        return None
    reached = [days for days in ALARM_DAYS if expires_at - now <= days * DAY_S]
    return min(reached, default=None)

"""What the credential store keeps of an upstream token: the token that rotation made, and how far a rotation has come.

A record is written before every call to GitLab that can't be undone, so that a gateway that reads it after a crash knows
what may have happened. Instants are Unix seconds.
"""

from __future__ import annotations

import enum

import msgspec

from .secret import Secret, keyed_hash

ALARM_DAYS = (14, 7, 1)
"""How many days before a credential expires an alarm is raised; the last one is louder."""
DAY_S = 86_400.0


class RotationStep(enum.StrEnum):
    """What a rotation was about to do when it was last written down."""

    CREATING = "creating"
    """GitLab may have made a token that nobody holds: it is to be found by its name and revoked."""
    SETTLING = "settling"
    """The new token is in the store; the old one has yet to be revoked."""
    ROTATING = "rotating"
    """GitLab may have replaced the token. The call must not be repeated: a token used twice revokes its whole family."""
    LOST = "lost"
    """As ``ROTATING``, but GitLab's answer will never come: a person must look into it."""


class Rotation(msgspec.Struct, frozen=True):
    """A rotation that is under way."""

    step: RotationStep
    names: tuple[str, ...]
    """The names of the tokens that this rotation has asked GitLab for; the latest is last."""
    old_id: int
    """GitLab's id of the token that is being replaced."""
    since: float


class TokenRecord(msgspec.Struct, frozen=True):
    """One record of the credential store."""

    id: str
    """The ``record_id`` of the configured token that the record stands for."""
    version: int
    """Raised by every change; 0: not in the store yet."""
    token: Secret | None = None
    """The token that rotation made; None: the configured one is still in use."""
    token_id: int = 0
    user_id: int = 0
    scopes: tuple[str, ...] = ()
    expires_at: float | None = None
    rotation: Rotation | None = None

    def __repr__(self) -> str:
        return f"TokenRecord({self.id}, version {self.version})"


def record_id(credential: str, configured: Secret) -> str:
    """The id of the record for a configured token, made of the credential's name and a hash of the token. If an operator
    configures another token, that one has a record of its own, and wins.

    The hash has no secret key: under another one the record would have another id, and the token be rotated twice."""
    return f"{credential}/{keyed_hash(b'credentials: seeds', configured.reveal(), 8).hex()}"


def is_due(expires_at: float | None, now: float, before_s: float) -> bool:
    """Whether it is time to replace a credential that ends at ``expires_at``; one that never ends is never due."""
    return expires_at is not None and expires_at - now <= before_s


def alarm_days(expires_at: float | None, now: float) -> int | None:
    """The smallest of ``ALARM_DAYS`` that has been reached; None: there is time. An expired credential has reached all."""
    if expires_at is None:
        return None
    reached = [days for days in ALARM_DAYS if expires_at - now <= days * DAY_S]
    return min(reached, default=None)

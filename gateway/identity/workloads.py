"""Workload tokens → principals: the issuer's signature, then the first configured identity whose requirements hold.

A verified token is believed until it is over, a minute at most; a refused one is refused for five seconds without work.
Memory is keyed by a per-process keyed hash, never by the token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from ..core.access import Principal, PrincipalKind
from ..core.secret import Secret, fingerprint
from ..core.workload_token import MAX_LENGTH, Peeked, held_in, looks_like_one, peek
from .issuers import Issuer
from .lookups import Memo, Recall
from .settings import WorkloadIdentity

TTL_S = 60.0
NEGATIVE_TTL_S = 5.0
_MOST_HELD = 16
"""Of what looks like a token in one credential: reading each costs as much as the rest of the request, and GitLab's
credentials hold one at most."""


class _Known(msgspec.Struct, frozen=True, gc=False):
    """``over_at`` is Unix time, ``fresh_until`` monotonic."""

    principal: Principal
    fresh_until: float
    over_at: float


class Workloads:
    """``issuers`` by the id of the identity: two may believe one issuer under different terms. ``wall`` is Unix seconds."""

    def __init__(
        self,
        identities: Iterable[WorkloadIdentity],
        issuers: Mapping[str, Issuer],
        *,
        fingerprint_key: bytes,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        remembered: int = 10_000,
    ) -> None:
        self._identities = tuple(identities)
        self._issuers = issuers
        self._urls = frozenset(identity.requirement.issuer for identity in self._identities)
        self._fingerprint_key = fingerprint_key
        self._wall = wall
        self._monotonic = monotonic
        self._known: Memo[bytes, _Known] = Memo(remembered)
        self._bad_until: Memo[bytes, float] = Memo(remembered)

    def may_be_one(self, text: str) -> bool:
        """Cheap, and wrong only in that more may look like one."""
        return looks_like_one(text) and bool(self._identities)

    def is_ours(self, text: str) -> bool:
        """It speaks of a configured issuer, or is too long to tell: GitLab is never asked about it, nor sees it."""
        if len(text) > MAX_LENGTH:
            return True
        peeked = peek(text)
        return peeked is not None and not self._urls.isdisjoint(peeked.issuers)

    def is_held(self, text: str) -> bool:
        """One of a configured issuer is in it, in quotes or so, or so many that look like one that nobody reads them all:
        it is not believed there, and must not go up."""
        found = held_in(text)
        return len(found) > _MOST_HELD or any(map(self.is_ours, found))

    def waits_for(self, text: str) -> str:
        """The issuer whose keys judging it may have to wait for; empty: none, it is refused unasked."""
        peeked = peek(text)
        said = peeked.claims.get("iss") if peeked is not None else None
        return said if isinstance(said, str) and said in self._urls else ""

    def recall(self, key: bytes) -> Principal | Recall:
        """From memory; ``key`` is a keyed hash of the token."""
        now = self._monotonic()
        known = self._known.get(key)
        if known is not None:
            if self._wall() >= known.over_at:
                return Recall.BAD
            return known.principal if now < known.fresh_until else Recall.REFRESH
        bad_until = self._bad_until.get(key)
        return Recall.BAD if bad_until is not None and now < bad_until else Recall.ASK

    async def look_up(self, key: bytes, secret: Secret) -> Principal | None:
        """By the issuer's keys. Raises NotAnswering when it is silent and its keys of old do not tell."""
        text = secret.reveal()
        peeked = peek(text)
        found = await self._judge(text, peeked) if peeked is not None and peeked.sound else None
        now = self._monotonic()
        if found is None or peeked is None:
            self._known.drop(key)
            self._bad_until.put(key, now + NEGATIVE_TTL_S)
            return None
        principal = Principal(
            id=found.id,
            kind=PrincipalKind.OIDC,
            identity=found.id,
            fingerprint=fingerprint(self._fingerprint_key, secret),
            team=found.team,
            priority=found.priority,
        )
        self._known.put(key, _Known(principal, now + TTL_S, found.requirement.over_at(peeked.claims)))
        return principal

    async def close(self) -> None:
        for issuer in self._issuers.values():
            await issuer.close()

    async def _judge(self, text: str, peeked: Peeked) -> WorkloadIdentity | None:
        """The first in the order of the file. Signature first: how long a refusal takes says nothing about the claims."""
        signed: dict[int, bool] = {}
        for identity in self._identities:
            if peeked.claims.get("iss") != identity.requirement.issuer:
                continue
            issuer = self._issuers[identity.id]
            if id(issuer) not in signed:
                signed[id(issuer)] = await issuer.has_signed(text, peeked.algorithm, peeked.key_id)
            if signed[id(issuer)] and identity.requirement.admits(peeked.claims, self._wall()):
                return identity
        return None

"""Workload tokens → principals: the issuer's signature, then the first configured identity whose requirements hold.

A verified token is believed until it expires, but at most for a minute; a refused one is refused again without work for
five seconds. Memory is keyed by a per-process keyed hash, never by the token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from ..core.access import Principal, PrincipalKind
from ..core.secret import Secret, fingerprint
from ..core.workload_token import MAX_LENGTH, UnverifiedToken, describe_bearer, find_jwts, looks_like_jwt, peek, token_id
from .lookups import Memo, Recall
from .oidc_issuer import Issuer
from .settings import WorkloadIdentity

TTL_S = 60.0
NEGATIVE_TTL_S = 5.0
_MOST_HELD = 16
"""How many parts of one credential that look like a token are read: each costs as much as the rest of the request, and
GitLab's credentials hold at most one."""


class _Known(msgspec.Struct, frozen=True, gc=False):
    """A good token. ``valid_until`` is in Unix time, ``fresh_until`` is monotonic."""

    principal: Principal
    fresh_until: float
    valid_until: float


class WorkloadTokens:
    """Judges workload tokens. ``issuers`` has one for each identity's id: two identities may believe one issuer under
    different terms. ``wall`` gives Unix seconds."""

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
        self._bad: Memo[bytes, tuple[float, str]] = Memo(remembered)
        """Until when each is refused unasked, and why it is."""

    def may_be_token(self, text: str) -> bool:
        """Whether ``text`` may be a workload token. Cheap, and wrong only in that other text may look like one."""
        return looks_like_jwt(text) and bool(self._identities)

    def is_ours(self, text: str) -> bool:
        """Whether ``text`` names a configured issuer, or is too long to tell: GitLab is never asked about it, and never
        sees it."""
        if len(text) > MAX_LENGTH:
            return True
        peeked = peek(text)
        return peeked is not None and not self._urls.isdisjoint(peeked.issuers)

    def holds_token(self, text: str) -> bool:
        """Whether ``text`` contains a configured issuer's token (in quotes, perhaps), or more lookalikes than are read:
        such a token is not believed there, and must not go up."""
        found = find_jwts(text)
        return len(found) > _MOST_HELD or any(map(self.is_ours, found))

    def issuer_to_ask(self, text: str) -> str:
        """The issuer whose keys may have to be waited for to judge ``text``; empty: none, it is refused without asking."""
        peeked = peek(text)
        said = peeked.claims.get("iss") if peeked is not None else None
        return said if isinstance(said, str) and said in self._urls else ""

    def recall(self, key: bytes) -> Principal | Recall:
        """The principal from memory, or why there is none; ``key`` is a keyed hash of the token."""
        now = self._monotonic()
        known = self._known.get(key)
        if known is not None:
            if self._wall() >= known.valid_until:
                return Recall.REFUSED
            return known.principal if now < known.fresh_until else Recall.STALE
        bad = self._bad.get(key)
        return Recall.REFUSED if bad is not None and now < bad[0] else Recall.UNKNOWN

    def why_refused(self, key: bytes) -> str:
        """Why a token was refused a moment ago, for the audit: claims are named, but not quoted."""
        bad = self._bad.get(key)
        return bad[1] if bad is not None else "the workload token has expired"

    async def look_up(self, key: bytes, secret: Secret) -> Principal | None:
        """The principal by the issuer's keys; None: the token is bad. Raises NotAnswering if the issuer is silent and its
        known keys cannot tell."""
        text = secret.reveal()
        peeked = peek(text)
        found = (
            await self._judge(text, peeked) if peeked is not None and peeked.sound else "it can't be read in one way only"
        )
        now = self._monotonic()
        if isinstance(found, str) or peeked is None:
            self._known.drop(key)
            self._bad.put(key, (now + NEGATIVE_TTL_S, f"a workload token: {found}"))
            return None
        principal = Principal(
            id=found.id,
            kind=PrincipalKind.OIDC,
            identity=found.id,
            fingerprint=fingerprint(self._fingerprint_key, secret),
            credential_id=token_id(peeked.claims),
            credential_subject=describe_bearer(peeked.claims, found.audit_claims),
            team=found.team,
            priority=found.priority,
        )
        self._known.put(key, _Known(principal, now + TTL_S, found.requirement.valid_until(peeked.claims)))
        return principal

    async def close(self) -> None:
        for issuer in self._issuers.values():
            await issuer.close()

    async def _judge(self, text: str, peeked: UnverifiedToken) -> WorkloadIdentity | str:
        """The first identity in the order of the file that admits the token, or why none does. The signature is judged
        first, so how long a refusal takes says nothing about the claims."""
        signed: dict[int, bool] = {}
        nearest: tuple[WorkloadIdentity, list[str]] | None = None
        for identity in self._identities:
            if peeked.claims.get("iss") != identity.requirement.issuer:
                continue
            issuer = self._issuers[identity.id]
            if id(issuer) not in signed:
                signed[id(issuer)] = await issuer.has_signed(text, peeked.algorithm, peeked.key_id)
            if signed[id(issuer)]:
                unmet = identity.requirement.unmet(peeked.claims, self._wall())
                if not unmet:
                    return identity
                if nearest is None or len(unmet) < len(nearest[1]):
                    nearest = identity, unmet
        if nearest is None:
            return "none of its issuer's keys has signed it"
        return f"it fits no identity; nearest is {nearest[0].id}, but for {', '.join(nearest[1])}"

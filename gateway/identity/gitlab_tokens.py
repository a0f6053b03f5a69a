"""The callers' own GitLab tokens → principals: GitLab judges, and its judgement is believed for a stated time.

A good verdict is believed for ``ttl_s``, a bad one for ``negative_ttl_s``. While GitLab does not answer, tokens that it
vouched for within ``stale_s`` go on working, and others are refused as *cannot tell* (503): silence is never read as no,
and never as yes.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..core.access import Principal, PrincipalKind
from ..core.credentials import Carrier, Claim, CredentialKind
from ..core.secret import Secret, fingerprint, keyed_hash
from ..ports import NotAnswering, Presentation, TokenVerifier
from .lookups import LATELY_S, Memo, Recall
from .settings import TokenIdentity

_RETRY_S = 10.0
"""How long a stale token is used before a silent GitLab is asked again: each try may take the verifier's whole timeout."""
_KEEP_S = 1.0
"""A judgement this young outlives an upstream 401: some routes answer 401 to good tokens, which must not cost a
verification each time."""

# Bound once: this runs for each request, and looking up an enum's member is not free.
_JOB_TOKEN, _BASIC, _BEARER = CredentialKind.JOB_TOKEN, CredentialKind.BASIC, Carrier.BEARER
_AS_JOB, _AS_BEARER, _AS_PRIVATE = Presentation.JOB, Presentation.BEARER, Presentation.PRIVATE

_CI_USER = "gitlab-ci-token"
_BEARER_PARAMETERS = frozenset({"access_token", "bearer_token"})


def presentation(claim: Claim) -> Presentation:
    """How GitLab would read this claim: its carrier decides, never its text."""
    kind = claim.kind
    if kind is _JOB_TOKEN or (kind is _BASIC and claim.username == _CI_USER):
        return _AS_JOB
    if claim.carrier is _BEARER or claim.parameter in _BEARER_PARAMETERS:
        return _AS_BEARER
    return _AS_PRIVATE


class _Known(msgspec.Struct, frozen=True, gc=False):
    """A good token. ``expires_at`` is in Unix time, the other instants are monotonic."""

    principal: Principal
    verified_at: float
    fresh_until: float
    expires_at: float | None


class GitlabTokens:
    """Judges callers' own tokens. ``wall`` gives Unix seconds (a token's expiry), ``monotonic`` this process's (the
    memory's)."""

    def __init__(
        self,
        verifier: TokenVerifier,
        identity: TokenIdentity,
        *,
        fingerprint_key: bytes,
        partition_key: bytes,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        remembered: int = 10_000,
    ) -> None:
        self._verifier = verifier
        self._identity = identity
        self._lately_s = max(identity.stale_s, LATELY_S)
        self._fingerprint_key = fingerprint_key
        self._partition_key = partition_key
        self._wall = wall
        self._monotonic = monotonic
        self._known: Memo[bytes, _Known] = Memo(remembered)
        # Separate from the good ones, which a flood of bad tokens must not push out.
        self._bad_until: Memo[tuple[bytes, bool], float] = Memo(remembered)

    def recall(self, key: bytes, *, may_be_job: bool) -> Principal | Recall:
        """The principal from memory, or why there is none; ``key`` is a keyed hash of the token and its presentation."""
        now = self._monotonic()
        known = self._known.get(key)
        if known is not None and now < known.fresh_until and not self._is_expired(known):
            return known.principal
        if known is not None and now < known.verified_at + self._lately_s and not self._is_expired(known):
            return Recall.STALE
        bad_until = self._bad_until.get((key, may_be_job))
        return Recall.REFUSED if bad_until is not None and now < bad_until else Recall.UNKNOWN

    async def look_up(self, key: bytes, secret: Secret, presented: Presentation, *, may_be_job: bool) -> Principal | None:
        """The principal from GitLab; None: the token is bad. Raises NotAnswering if GitLab cannot tell, and has not vouched
        for the token lately."""
        try:
            verified = await self._verifier.verify(secret, presented, may_be_job=may_be_job)
        except NotAnswering:
            return self.last_known_good(key)
        now = self._monotonic()
        if verified is None or (verified.expires_at is not None and verified.expires_at <= self._wall()):
            self._known.drop(key)
            self._bad_until.put((key, may_be_job), now + self._identity.negative_ttl_s)
            return None
        principal = Principal(
            id=verified.subject,
            kind=PrincipalKind.GITLAB_TOKEN,
            identity=self._identity.id,
            fingerprint=fingerprint(self._fingerprint_key, secret),
            credential_id=verified.credential_id,
            team=self._identity.team,
            token_hash=keyed_hash(self._partition_key, f"{presented.value} {secret.reveal()}"),
            priority=self._identity.priority,
        )
        self._known.put(key, _Known(principal, now, now + self._identity.ttl_s, verified.expires_at))
        return principal

    def last_known_good(self, key: bytes) -> Principal:
        """The last judgement, while GitLab is silent. Raises NotAnswering if there is none, or if it is too old."""
        now = self._monotonic()
        known = self._known.get(key)
        if known is None or not self._may_serve_stale(known, now):
            raise NotAnswering("GitLab does not answer, and has not vouched for this token lately")
        fresh_until = min(now + _RETRY_S, known.verified_at + self._identity.stale_s)
        self._known.put(key, msgspec.structs.replace(known, fresh_until=fresh_until))
        return known.principal

    def forget(self, key: bytes) -> None:
        """Forget a token that GitLab has refused on a request: GitLab is asked before it is believed again."""
        known = self._known.get(key)
        if known is not None and self._monotonic() - known.verified_at >= _KEEP_S:
            self._known.drop(key)

    def _may_serve_stale(self, known: _Known, now: float) -> bool:
        return not self._is_expired(known) and now < known.verified_at + self._identity.stale_s

    def _is_expired(self, known: _Known) -> bool:
        return known.expires_at is not None and known.expires_at <= self._wall()

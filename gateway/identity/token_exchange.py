"""Exchanges a workload's token for a short-lived credential of the gateway's (RFC 8693): who may have one, for how long.

The token is judged as it would be on a request. The credential is a gateway key that is not one of the two an identity may
have, ends by itself, and is listed and revoked like any other. It cannot be exchanged again: it is no workload's token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ..core.errors import Code, Rejection
from ..core.peer_guard import PeerGuard, subject
from ..core.token_request import TokenGrant, TokenRequest
from .authenticator import PrincipalAuthenticator
from .key_issuer import KeyIssuer, KeyTerms
from .settings import WorkloadIdentity

MOST_PER_MINUTE = 120
"""How many credentials one address may get per minute: a runner's host starts many jobs, but not two per second."""


class TokenExchange:
    """Exchanges tokens for credentials. ``wall`` gives Unix seconds; ``monotonic`` is this process's clock."""

    def __init__(
        self,
        authenticator: PrincipalAuthenticator,
        issuer: KeyIssuer,
        identities: Iterable[WorkloadIdentity],
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._authenticator = authenticator
        self._issuer = issuer
        self._session_s = {identity.id: identity.session_s for identity in identities}
        self._wall = wall
        self._monotonic = monotonic
        self._issued = PeerGuard(failures=MOST_PER_MINUTE, window_s=60.0)

    async def exchange(self, request: TokenRequest, peer: str) -> TokenGrant:
        """Exchange a token; ``peer`` is the client's own address.

        Raises Rejection as authenticating does, and RATE_LIMITED; KeyRefused if the store is full; StoreUnavailable.
        """
        client = subject(peer)
        self._refuse_excess(client)
        principal = await self._authenticator.authenticate_workload(request.subject, peer)
        self._refuse_excess(client)  # once more: many may have been judged at once
        self._issued.note_failure(client, self._monotonic())
        longest_s = self._session_s[principal.identity]
        lifetime_s = longest_s if request.lifetime_s is None else min(request.lifetime_s, longest_s)
        terms = KeyTerms(expires_at=self._wall() + lifetime_s, note=principal.credential_subject)
        key, record = await self._issuer.issue_exchanged(principal.identity, terms)
        return TokenGrant(key, record.id, principal, lifetime_s)

    def _refuse_excess(self, client: str) -> None:
        wait_s = self._issued.wait_s(client, self._monotonic())
        if wait_s > 0:
            retry_after = str(max(1, math.ceil(wait_s))).encode("ascii")
            raise Rejection(Code.RATE_LIMITED, 429, "429 Too Many Requests", headers=((b"Retry-After", retry_after),))

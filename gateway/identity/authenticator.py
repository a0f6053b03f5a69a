"""Claim → Principal: which source may judge a credential, and what a failure costs.

    gateway key (any carrier) ──→ key store          never shown to GitLab, never passed through
    workload token (the same) ──→ its issuer's keys  if an `oidc` identity names that issuer; never shown to GitLab
    GitLab token, job token ────→ GitLab             if a `gitlab_token` identity is configured
    what GitLab alone can judge → passes, by address on its own surfaces only
    nothing ────────────────────→ anonymous          if configured

Memory answers first. Only then, and before anything is looked up, the peer's failed logins count: callers known to be good
are not locked out by a bad neighbour behind the same address. Every refusal reads alike.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from ..core.access import Principal, PrincipalKind
from ..core.catalogue import Operation
from ..core.credentials import Claim, CredentialKind, is_second_token, two_credentials
from ..core.errors import Code, Rejection, Source, unauthenticated
from ..core.gateway_key import holds_gateway_key, is_gateway_key, is_well_formed
from ..core.messages import RequestHead
from ..core.peer_guard import PeerGuard, subject
from ..core.secret import Secret, fingerprint, keyed_hash
from ..ports import NotAnswering, StoreUnavailable
from .gitlab_tokens import GitlabTokens, presentation
from .keys import GatewayKeys
from .lookups import Lookups, Memo, Recall
from .passthrough import fallback_passthrough, passthrough_for
from .settings import IdentitySettings, Networks, Passthrough

if TYPE_CHECKING:  # a JOSE library, for those who configured an issuer
    from .workloads import WorkloadTokens

_MAX_FLIGHTS = 1000
"""How many credentials may be looked up or wait for their turn; beyond that, nobody would be answered in time."""
_MAX_NETWORK_LISTS = 1000
"""How many different lists of keys' networks are remembered in parsed form."""
_RETRY_AFTER_S = 5
_SHOWN = "a gateway key or a workload's token where GitLab would be shown it"
_NOT_ACCEPTED = "GitLab does not accept this token"
_NONE = CredentialKind.NONE  # bound once: looking up an enum's member takes as long as looking into memory
_VERIFIABLE = frozenset({CredentialKind.TOKEN, CredentialKind.JOB_TOKEN, CredentialKind.BASIC})


class _PeerExhausted(Exception):  # noqa: N818 — never leaves this module
    """The peer that started a lookup had used up its failed logins when its turn came."""


class _Lookup(msgspec.Struct, frozen=True):
    """How one credential is looked up, and what stands in when nobody answers in time."""

    flight: tuple[bytes, bool]
    ask: Callable[[], Coroutine[Any, Any, Principal | None]]
    last_known_good: Callable[[], Principal | None]
    slots: asyncio.Semaphore
    counts_as_failure: bool = True
    """Whether finding nothing is a failed login."""


class PrincipalAuthenticator:
    """An Authenticator.

    ``process_key`` is 32 random octets of this process alone: the keys of its memory mean nothing elsewhere. At most
    ``in_flight`` lookups of each sort run at once, and nobody waits longer than ``timeout_s`` for one.
    """

    def __init__(
        self,
        settings: IdentitySettings,
        keys: GatewayKeys,
        tokens: GitlabTokens | None,
        guard: PeerGuard,
        workloads: WorkloadTokens | None = None,
        *,
        process_key: bytes,
        fingerprint_key: bytes,
        monotonic: Callable[[], float],
        in_flight: int = 20,
        timeout_s: float = 10.0,
    ) -> None:
        self._settings = settings
        self._networks = {identity.id: identity.networks for identity in settings.keys}
        self._networks |= {identity.id: identity.networks for identity in settings.workloads}
        self._keys = keys
        self._key_networks: Memo[tuple[str, ...], Networks] = Memo(_MAX_NETWORK_LISTS)
        self._tokens = tokens
        self._token_networks = Networks() if settings.gitlab_token is None else settings.gitlab_token.networks
        self._guard = guard
        self._workloads = workloads
        self._process_key = process_key
        self._fingerprint_key = fingerprint_key
        self._monotonic = monotonic
        # Separate, so that a slow GitLab doesn't hold up keys, nor strangers' tokens those that were good lately.
        self._key_slots = asyncio.Semaphore(in_flight)
        self._token_slots = asyncio.Semaphore(in_flight)
        # By issuer, and whether the token is a stranger's: so neither a slow issuer nor strangers hold up other tokens.
        self._workload_slots = collections.defaultdict[tuple[str, bool], asyncio.Semaphore](
            lambda: asyncio.Semaphore(in_flight)
        )
        self._refresh_slots = asyncio.Semaphore(in_flight)
        self._timeout_s = timeout_s
        self._flights: Lookups[tuple[bytes, bool], Principal | None] = Lookups()

    async def authenticate(self, claim: Claim, operation: Operation, head: RequestHead) -> Principal:
        kind = claim.kind
        if claim.other_tokens:
            self._judge_query_tokens(claim, operation, head.peer)
        if kind is _NONE:
            return self._without_credential(operation, head.peer)
        text = claim.secret.reveal()
        if claim.stays_in_target and self._is_ours(text):
            raise self._failure(head.peer, _SHOWN)
        if is_gateway_key(text):
            return await self._by_key(claim, head.peer)
        if self._workloads is not None and self._workloads.may_be_token(text):
            found = await self._by_workload(self._workloads, claim, head.peer)
            if found is not None:
                return found
        if self._allows_passthrough(passthrough_for(kind, operation)):
            if self._holds_ours(claim):
                raise self._failure(head.peer, _SHOWN)
            if kind is CredentialKind.BASIC:
                # GitLab bans an address, here ours, after some thirty failed Basic logins: our own limit must come first.
                self._refuse_repeated_failure(head.peer)
            return self._pass_through(claim, head.peer)
        if self._tokens is not None and kind in _VERIFIABLE:
            return await self._by_token(self._tokens, claim, operation, head.peer)
        raise self._failure(head.peer, "neither an identity nor passthrough is for such a credential here")

    def proof(self, claim: Claim, operation: Operation, principal: Principal) -> Callable[[], object] | None:
        if claim.other_tokens:
            return None
        if claim.kind is _NONE:
            is_anonymous = principal.kind is PrincipalKind.ANONYMOUS and not self._allows_passthrough(
                passthrough_for(_NONE, operation)
            )
            return (lambda: principal) if is_anonymous else None
        text = claim.secret.reveal()
        if is_gateway_key(text):
            return functools.partial(self._keys.recall, claim.secret.keyed(self._process_key))
        if self._workloads is not None and self._workloads.may_be_token(text):
            return functools.partial(self._workloads.recall, keyed_hash(self._process_key, text))
        if (
            self._tokens is None
            or claim.kind not in _VERIFIABLE
            or self._allows_passthrough(passthrough_for(claim.kind, operation))
        ):
            return None
        return functools.partial(self._tokens.recall, self._token_key(claim), may_be_job=operation.job_token)

    async def authenticate_workload(self, token: Secret, peer: str) -> Principal:
        """The principal of a workload's token; nothing else will do. Raises as ``authenticate``."""
        found = None
        if self._workloads is not None and self._workloads.may_be_token(token.reveal()):
            found = await self._by_workload(self._workloads, Claim(CredentialKind.TOKEN, token), peer)
        if found is None:
            raise self._failure(peer, "no token of a configured issuer")
        return found

    async def still_accepts(self, claim: Claim) -> bool:
        text = claim.secret.reveal()
        if is_gateway_key(text):
            key = claim.secret.keyed(self._process_key)
            found, lookup = self._keys.recall(key), functools.partial(self._key_lookup, key, claim)
        elif self._workloads is not None:
            key = keyed_hash(self._process_key, text)
            found = self._workloads.recall(key)
            lookup = functools.partial(self._workload_lookup, self._workloads, key, claim, is_stranger=False)
        else:
            return False
        if found is Recall.UNKNOWN or found is Recall.STALE:
            try:
                found = await self._look_up(lookup(), "", is_stranger=False)
            except Rejection:
                return True
        return isinstance(found, Principal)

    def report_401(self, claim: Claim, principal: Principal, head: RequestHead) -> None:
        if principal.kind is PrincipalKind.GITLAB_TOKEN and self._tokens is not None:
            self._tokens.forget(self._token_key(claim))
        elif principal.kind is PrincipalKind.PASSTHROUGH and self._was_a_login(claim):
            self._guard.note_failure(subject(head.peer), self._monotonic())

    def forget_key(self, key_id: str) -> None:
        """Forget a key that this very process has revoked: it is dead when this returns."""
        self._keys.forget(key_id)

    async def close(self) -> None:
        await self._flights.close()
        await self._keys.close()
        if self._workloads is not None:
            await self._workloads.close()

    def _judge_query_tokens(self, claim: Claim, operation: Operation, peer: str) -> None:
        """Judge the query's tokens beside the claim. They go up, so none may be one of ours, or a second credential."""
        if any(self._is_ours(token.reveal()) or self._holds_workloads(token.reveal()) for token in claim.other_tokens):
            raise self._failure(peer, _SHOWN)
        if is_second_token(claim.kind, operation, brokered=self._is_ours(claim.secret.reveal())):
            raise two_credentials()

    # The sources

    def _without_credential(self, operation: Operation, peer: str) -> Principal:
        if self._allows_passthrough(passthrough_for(CredentialKind.NONE, operation)):
            return Principal(id=f"passthrough:{subject(peer)}", kind=PrincipalKind.PASSTHROUGH, identity="passthrough")
        anonymous = self._settings.anonymous
        if anonymous is None or peer not in anonymous.networks:
            # Asking without a credential is how clients learn to bring one: no failed login.
            raise unauthenticated("no credential" if anonymous is None else _elsewhere(anonymous.id))
        return Principal(
            id=f"anonymous:{subject(peer)}",
            kind=PrincipalKind.ANONYMOUS,
            identity=anonymous.id,
            team=anonymous.team,
            priority=anonymous.priority,
        )

    async def _by_key(self, claim: Claim, peer: str) -> Principal:
        key = claim.secret.keyed(self._process_key)
        found = self._keys.recall(key)
        # What cannot be a key costs no lookup; one that is remembered does not even cost the checksum.
        if found is Recall.STALE or (found is Recall.UNKNOWN and is_well_formed(claim.secret.reveal())):
            found = await self._look_up(self._key_lookup(key, claim), peer, is_stranger=found is Recall.UNKNOWN)
            if not isinstance(found, Principal):
                raise unauthenticated(self._keys.why_refused(key))
        if not isinstance(found, Principal):
            raise self._failure(peer, self._keys.why_refused(key) or "no gateway key: mistyped or cut off")
        if peer not in self._networks[found.identity]:
            raise self._failure(peer, _elsewhere(found.identity, found.credential_id))
        if found.cidr and peer not in self._networks_for(found.cidr):
            raise self._failure(peer, _elsewhere(f"this key of {found.identity}", found.credential_id))
        return found

    def _key_lookup(self, key: bytes, claim: Claim) -> _Lookup:
        return _Lookup(
            flight=(key, False),
            ask=lambda: self._keys.look_up(key, claim.secret),
            last_known_good=lambda: self._keys.last_known_good(key),
            slots=self._key_slots,
        )

    def _networks_for(self, cidr: tuple[str, ...]) -> Networks:
        """The networks of one key. Remembered with a bound; ``cidr`` was judged when the key was made."""
        networks = self._key_networks.get(cidr)
        if networks is None:
            networks = Networks(cidr)
            self._key_networks.put(cidr, networks)
        return networks

    async def _by_workload(self, workloads: WorkloadTokens, claim: Claim, peer: str) -> Principal | None:
        """The principal of a workload's token; None: a JWT of somebody else's, which may mean something to GitLab."""
        key = keyed_hash(self._process_key, claim.secret.reveal())
        found = workloads.recall(key)
        if found is Recall.UNKNOWN and not workloads.is_ours(claim.secret.reveal()):
            return None
        if found is Recall.UNKNOWN or found is Recall.STALE:
            is_stranger = found is Recall.UNKNOWN
            if is_stranger:
                self._refuse_repeated_failure(peer)  # before the token is read to find its queue
            lookup = self._workload_lookup(workloads, key, claim, is_stranger=is_stranger)
            found = await self._look_up(lookup, peer, is_stranger=is_stranger)
            if not isinstance(found, Principal):
                raise unauthenticated(workloads.why_refused(key))
        if not isinstance(found, Principal):
            raise self._failure(peer, workloads.why_refused(key))
        if peer not in self._networks[found.identity]:
            raise self._failure(peer, _elsewhere(found.identity))
        return found

    def _workload_lookup(self, workloads: WorkloadTokens, key: bytes, claim: Claim, *, is_stranger: bool) -> _Lookup:
        return _Lookup(
            flight=(key, False),
            ask=lambda: workloads.look_up(key, claim.secret),
            last_known_good=_raise_not_answering,
            slots=self._workload_slots[workloads.issuer_to_ask(claim.secret.reveal()), is_stranger],
        )

    async def _by_token(self, tokens: GitlabTokens, claim: Claim, operation: Operation, peer: str) -> Principal:
        key = self._token_key(claim)
        may_be_job = operation.job_token
        found = tokens.recall(key, may_be_job=may_be_job)
        if isinstance(found, Principal) and peer in self._token_networks:
            return found
        may_be_deploy = self._allows_passthrough(fallback_passthrough(claim.kind, operation))
        if found is Recall.UNKNOWN or found is Recall.STALE:
            if self._holds_ours(claim):
                raise self._failure(peer, _SHOWN)
            presented = presentation(claim)
            lookup = _Lookup(
                flight=(key, may_be_job),
                ask=lambda: tokens.look_up(key, claim.secret, presented, may_be_job=may_be_job),
                last_known_good=lambda: tokens.last_known_good(key),
                slots=self._token_slots if found is Recall.UNKNOWN else self._refresh_slots,
                counts_as_failure=not may_be_deploy,
            )
            found = await self._look_up(lookup, peer, is_stranger=found is Recall.UNKNOWN)
            if not isinstance(found, Principal) and not may_be_deploy:
                raise unauthenticated(_NOT_ACCEPTED)
        if isinstance(found, Principal) and peer in self._token_networks:
            return found
        if not isinstance(found, Principal) and may_be_deploy:
            return self._pass_through(claim, peer)
        why = _elsewhere(found.identity, found.credential_id) if isinstance(found, Principal) else _NOT_ACCEPTED
        raise self._failure(peer, why)

    def _pass_through(self, claim: Claim, peer: str) -> Principal:
        return Principal(
            id=f"passthrough:{subject(peer)}",
            kind=PrincipalKind.PASSTHROUGH,
            identity="passthrough",
            # A credential in a body that nobody has read yet has none.
            fingerprint=fingerprint(self._fingerprint_key, claim.secret) if claim.secret else "",
        )

    def _is_ours(self, text: str) -> bool:
        """Whether ``text`` is a gateway key or a workload's token, by its looks alone."""
        workloads = self._workloads
        return is_gateway_key(text) or (workloads is not None and workloads.may_be_token(text) and workloads.is_ours(text))

    def _holds_ours(self, claim: Claim) -> bool:
        """Whether GitLab would see one of ours: in quotes, after a scheme, or as the user name."""
        text = claim.secret.reveal()
        if holds_gateway_key(text):  # as a user name, it was refused when the claim was read
            return True
        return self._holds_workloads(text) or self._holds_workloads(claim.username)

    def _holds_workloads(self, text: str) -> bool:
        return self._workloads is not None and self._workloads.holds_token(text)

    def _allows_passthrough(self, passthrough: Passthrough | None) -> bool:
        return passthrough is not None and passthrough in self._settings.passthrough

    def _token_key(self, claim: Claim) -> bytes:
        return keyed_hash(self._process_key, presentation(claim) + " " + claim.secret.reveal())

    def _was_a_login(self, claim: Claim) -> bool:
        """Whether GitLab's 401 to what was passed through is a failed login; to a cookie or registry token it isn't."""
        if claim.kind is CredentialKind.TOKEN and self._tokens is not None:
            # Passed on a package route after GitLab had not recognised it as a person's: so it is no deploy token either.
            key = self._token_key(claim)
            return any(self._tokens.recall(key, may_be_job=may_be) is Recall.REFUSED for may_be in (False, True))
        return claim.kind is CredentialKind.BASIC

    # Looking up, bounded

    async def _look_up(self, lookup: _Lookup, peer: str, *, is_stranger: bool) -> Principal | Recall:
        try:
            while True:
                if is_stranger:
                    self._refuse_repeated_failure(peer)
                    if len(self._flights) >= _MAX_FLIGHTS:
                        raise _unavailable("too many credentials are being looked up")
                try:
                    found = await self._flights.share(
                        lookup.flight, lambda: self._take_turn(lookup, peer if is_stranger else None)
                    )
                except _PeerExhausted:
                    continue  # perhaps because of another peer's failures: this peer's are judged next
                return Recall.REFUSED if found is None else found
        except (StoreUnavailable, NotAnswering) as error:
            raise _unavailable(str(error)) from error

    async def _take_turn(self, lookup: _Lookup, stranger: str | None) -> Principal | None:
        try:
            async with asyncio.timeout(self._timeout_s), lookup.slots:
                # Once more, as other lookups of this peer may have failed meanwhile: those made in vain stay bounded by
                # the failures allowed plus the lookups that run at once.
                if stranger is not None and self._guard.wait_s(subject(stranger), self._monotonic()) > 0:
                    raise _PeerExhausted
                found = await lookup.ask()
                if found is None and stranger is not None and lookup.counts_as_failure:
                    # Before the slot is free again: the lookup that gets it next must see this failure.
                    self._guard.note_failure(subject(stranger), self._monotonic())
                return found
        except TimeoutError:
            return lookup.last_known_good()

    def _refuse_repeated_failure(self, peer: str) -> None:
        wait_s = self._guard.wait_s(subject(peer), self._monotonic())
        if wait_s > 0:
            retry_after = str(max(1, math.ceil(wait_s))).encode("ascii")
            raise Rejection(
                Code.TOO_MANY_FAILED_LOGINS, 429, "429 Too Many Requests", headers=((b"Retry-After", retry_after),)
            )

    def _failure(self, peer: str, why: str) -> Rejection:
        """Count a failed login. Returns the one refusal; raises the 429 if this peer has failed too often."""
        self._refuse_repeated_failure(peer)
        self._guard.note_failure(subject(peer), self._monotonic())
        return unauthenticated(why)


def _elsewhere(whose: str, credential_id: str = "") -> str:
    return f"{credential_id} from outside the networks of {whose}".lstrip()


def _raise_not_answering() -> None:
    raise NotAnswering("the issuer does not answer in time")


def _unavailable(detail: str) -> Rejection:
    return Rejection(
        Code.IDENTITY_UNAVAILABLE,
        503,
        "503 Service Unavailable",
        headers=((b"Retry-After", str(_RETRY_AFTER_S).encode("ascii")),),
        source=Source.INTERNAL,
        detail=detail,
    )

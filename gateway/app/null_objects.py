"""Null objects for a plain shared cache, which authenticates nobody, forbids nothing and brokers nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from ..core.access import Permit, Principal, PrincipalKind
from ..core.catalogue import Operation
from ..core.credentials import Claim
from ..core.messages import RequestHead
from ..core.rule_match import PlaceLookup, Resolved
from ..core.target import Target
from ..ports import UpstreamCredential


class NoAuthentication:
    """An authenticator to which every caller is the same principal."""

    _principal = Principal(id="anyone", kind=PrincipalKind.ANONYMOUS, identity="anyone")

    async def authenticate(self, claim: Claim, operation: Operation, head: RequestHead) -> Principal:
        return self._principal

    def proof(self, claim: Claim, operation: Operation, principal: Principal) -> None:
        del claim, operation

    async def still_accepts(self, claim: Claim) -> bool:
        del claim
        return True

    def report_401(self, claim: Claim, principal: Principal, head: RequestHead) -> None:
        return None

    async def close(self) -> None:
        return None


class AllowAll:
    """Access rules that allow everything."""

    _permit = Permit("shared")

    def lookups(
        self, principal: Principal, operation: Operation, target: Target, method: str, *, screened: bool = False
    ) -> tuple[PlaceLookup, ...]:
        return ()

    def credentials_of(self, identity: str) -> tuple[str, ...]:
        return ()

    def authorise(
        self,
        principal: Principal,
        operation: Operation,
        target: Target,
        method: str,
        sudo: str | None = None,
        *,
        resolved: Resolved | None = None,
        screened: bool = False,
    ) -> Permit:
        return self._permit


class NoPlaces:
    """A resolver that is never asked: no rule names a project or group."""

    async def resolve(
        self,
        lookups: Sequence[PlaceLookup],
        credential: UpstreamCredential,
        room: Callable[[], Awaitable[None]] | None = None,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Resolved:
        raise AssertionError("a shared cache asks nothing")


class NoTokens:
    """A token source without credentials: there is nothing to broker."""

    has_unchecked = False

    def gitlab_answered(self) -> None:
        return None

    async def credential(self, permit: Permit, operation: Operation) -> UpstreamCredential:
        raise AssertionError("no permit of a shared cache names a credential")

    def credential_now(self, permit: Permit, operation: Operation) -> UpstreamCredential | None:
        raise AssertionError("no permit of a shared cache names a credential")

    async def refused(self, credential: UpstreamCredential) -> bool:
        return False

    async def close(self) -> None:
        return None

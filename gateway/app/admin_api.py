"""What an admin key gives access to: the configuration, limits, gateway keys, and why a request is allowed or denied.

    GET /-/config · GET /-/limits/top · POST /-/limits · /-/keys … · /-/credentials … · POST /-/explain

All have one shape (``edge.admin.Endpoint``), which names the permission that a key needs, and every change is a line of the
audit. Described in ``docs/openapi.yaml``.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from ..config import Config, redacted
from ..config.vocabulary import CacheMode
from ..core.admin_permission import Permission
from ..core.catalogue import Catalogue
from ..core.exchange import Exchange
from ..edge.admin import AdminRequest, AdminResponse, Endpoint
from .admin_keys import key_endpoints
from .explaining import PASSTHROUGH, Explained, trace
from .key_admin import KeyAdmin
from .limit_admin import LimitAdmin
from .limit_levels import describe
from .recent_requests import MOST, RecentRequests
from .recent_requests import describe as describe_request

_LONGEST_TARGET = 16_384
_LONGEST_CALLER = 256


class Hypothetical(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /-/explain``: a hypothetical request, which is never made."""

    identity: str
    method: str
    target: str
    caller: str = ""


class PastRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /-/explain``: a request that was made a moment ago."""

    request_id: str


class CredentialAdmin(Protocol):
    """What operators may ask of upstream credentials while the gateway runs; a token is never shown."""

    def list(self) -> object:
        """Every credential, as JSON."""
        ...

    async def rotate(self, who: str, peer: str, credential_id: str) -> object:
        """Replace a token now, and return its new state as JSON. Raises ValueError for what can't be done."""
        ...


class NamedCredential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /-/credentials/rotate``."""

    credential: str


def admin_endpoints(
    config: Config,
    catalogue: Catalogue,
    limits: LimitAdmin | None,
    keys: KeyAdmin | None,
    credentials: CredentialAdmin | None = None,
    recent: RecentRequests | None = None,
) -> tuple[Endpoint, ...]:
    """The endpoints that this configuration needs: without limits or issued keys there is nothing to ask about them."""

    async def show(_: AdminRequest) -> AdminResponse:
        return AdminResponse(redacted(config))

    async def explain(request: AdminRequest) -> AdminResponse:
        past: dict[str, object] = {}
        if recent is not None and "request_id" in request.body:
            x = _find_past(recent, msgspec.convert(request.body, PastRequest))
            past = {"request": describe_request(x)}
            if not x.identity or not x.target:
                return AdminResponse(past)  # refused before the caller or the target was known
            asked = Hypothetical(x.identity, x.method, x.target.decode("utf-8", "surrogateescape"), x.principal)
        else:
            asked = msgspec.convert(request.body, Hypothetical)
        found = _explain_hypothetical(config, catalogue, asked)
        now = describe(found, await limits.levels(found)) if found.allowed and limits is not None else []
        return AdminResponse(past | _shown(found, now))

    endpoints = [Endpoint("GET", "/-/config", show, (Permission.READ,))]
    if config.cache.mode is not CacheMode.SHARED:
        endpoints.append(Endpoint("POST", "/-/explain", explain, (Permission.EXPLAIN,)))
    if limits is not None:
        endpoints += _limit_endpoints(limits)
    if keys is not None:
        endpoints += key_endpoints(keys)
    if credentials is not None:
        endpoints += _credential_endpoints(credentials)
    return tuple(endpoints)


def _limit_endpoints(limit_admin: LimitAdmin) -> tuple[Endpoint, ...]:
    async def top(request: AdminRequest) -> AdminResponse:
        count = request.query.get("count", "20")
        if not (count.isascii() and count.isdecimal() and 0 < len(count) <= 3):
            raise ValueError("count must be a number below 1000")
        return AdminResponse(await limit_admin.top(int(count)))

    async def change(request: AdminRequest) -> AdminResponse:
        return AdminResponse(await limit_admin.change(request.who, request.peer, request.body))

    return (
        Endpoint("GET", "/-/limits/top", top, (Permission.READ, Permission.LIMITS), frozenset({"count"})),
        Endpoint("POST", "/-/limits", change, (Permission.LIMITS,)),
    )


def _credential_endpoints(credential_admin: CredentialAdmin) -> tuple[Endpoint, ...]:
    async def show(_: AdminRequest) -> AdminResponse:
        return AdminResponse(credential_admin.list())

    async def rotate(request: AdminRequest) -> AdminResponse:
        named = msgspec.convert(request.body, NamedCredential)
        return AdminResponse(await credential_admin.rotate(request.who, request.peer, named.credential))

    return (
        Endpoint("GET", "/-/credentials", show, (Permission.READ, Permission.CREDENTIALS)),
        Endpoint("POST", "/-/credentials/rotate", rotate, (Permission.CREDENTIALS,)),
    )


def _explain_hypothetical(config: Config, catalogue: Catalogue, asked: Hypothetical) -> Explained:
    known = [identity.id for identity in config.identities]
    if asked.identity not in (*known, PASSTHROUGH):
        raise ValueError(f"identity: is not one of those configured ({', '.join(known)}), nor `{PASSTHROUGH}`")
    if len(asked.target) > _LONGEST_TARGET:
        raise ValueError(f"target: is longer than {_LONGEST_TARGET} characters")
    if len(asked.caller) > _LONGEST_CALLER:
        raise ValueError(f"caller: is longer than {_LONGEST_CALLER} characters")
    return trace(config, asked.identity, asked.method, asked.target, catalogue, caller=asked.caller)


def _find_past(recent: RecentRequests, past: PastRequest) -> Exchange:
    x = recent.find(past.request_id)
    if x is None:
        raise ValueError(
            f"request_id: is not one of the last {MOST} requests at this gateway; look for older ones in the audit"
        )
    return x


def _shown(found: Explained, now: list[tuple[str, str]]) -> dict[str, object]:
    answer: dict[str, object] = {"allowed": found.allowed}
    if not found.allowed:
        answer |= {"status": found.status, "code": found.code}
    return answer | {"stages": [{"stage": stage, "said": said} for stage, said in (*found.stages, *now)]}

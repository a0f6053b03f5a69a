"""What the configuration says about callers, as identity needs it."""

from __future__ import annotations

import enum
import ipaddress

import msgspec

from ..core.access import Priority
from ..core.workload_token import Requirement

_MEMO_BOUND = 4096


class Passthrough(enum.StrEnum):
    """Credentials that GitLab alone can judge, by the surface they are meant for: members of ``passthrough:``."""

    RUNNER = "runner"
    DEPLOY = "deploy"
    TRIGGER = "trigger"
    SCIM = "scim"
    REGISTRY = "registry"
    LFS = "lfs"
    GIT = "git"
    SESSION = "session"
    FEED = "feed"
    OAUTH = "oauth"
    AGENT = "agent"
    UNLEASH = "unleash"
    GEO = "geo"
    OBSERVABILITY = "observability"


class Networks:
    """``bind.cidr``: where an identity may come from; empty means anywhere. Judgements are memoised with a bound."""

    __slots__ = ("_allowed", "_networks")

    def __init__(self, cidr: tuple[str, ...] = ()) -> None:
        """Raises ValueError for text that is not a network."""
        self._networks = tuple(ipaddress.ip_network(text) for text in cidr)
        self._allowed: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return True
        allowed = self._allowed.get(address)
        if allowed is None:
            if len(self._allowed) >= _MEMO_BOUND:
                self._allowed.clear()
            allowed = self._allowed[address] = self._judge(address)
        return allowed

    def _judge(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed.version == network.version and parsed in network for network in self._networks)


class KeyIdentity(msgspec.Struct, frozen=True):
    """An identity with ``key: issued``."""

    id: str
    team: str = ""
    networks: Networks = Networks()
    priority: Priority = Priority.INTERACTIVE


class WorkloadIdentity(msgspec.Struct, frozen=True):
    """An identity with ``oidc:``."""

    id: str
    requirement: Requirement
    team: str = ""
    networks: Networks = Networks()
    priority: Priority = Priority.INTERACTIVE
    jwks_uri: str = ""
    """Empty: it is found by discovery."""
    algorithms: tuple[str, ...] = ()
    """Empty: all of ``oidc_issuer.ALGORITHMS``."""
    ca_file: str | None = None
    session_s: float = 900.0
    """How long, at most, a credential given in exchange lives."""
    audit_claims: tuple[str, ...] = ()
    """Claims that say, beside ``sub``, whose token it is."""


class TokenIdentity(msgspec.Struct, frozen=True):
    """An identity with ``gitlab_token: true``, and its ``verify:``."""

    id: str
    team: str = ""
    networks: Networks = Networks()
    ttl_s: float = 30.0
    negative_ttl_s: float = 5.0
    stale_s: float = 600.0
    priority: Priority = Priority.INTERACTIVE


class AnonymousIdentity(msgspec.Struct, frozen=True):
    """An identity with ``anonymous: true``."""

    id: str
    team: str = ""
    networks: Networks = Networks()
    priority: Priority = Priority.INTERACTIVE


class IdentitySettings(msgspec.Struct, frozen=True):
    """Everything configured about who may call."""

    keys: tuple[KeyIdentity, ...] = ()
    workloads: tuple[WorkloadIdentity, ...] = ()
    """In the order of the configuration file: the first that fits is the caller's."""
    gitlab_token: TokenIdentity | None = None
    anonymous: AnonymousIdentity | None = None
    passthrough: frozenset[Passthrough] = frozenset(Passthrough)
    keys_stale_s: float = 600.0
    """How long ``stores.on_error.keys: last_known_good`` lasts; 0 for ``closed``."""

"""The configuration, translated for the packages that act on it: access, limiter, identity, broker."""

from __future__ import annotations

from ..broker.token_pool import StaticCredential
from ..core import rule_match
from ..core.limits import Limit
from ..core.secret import Secret
from ..core.workload_token import Pattern, Requirement
from ..identity.settings import (
    AnonymousIdentity,
    IdentitySettings,
    KeyIdentity,
    Networks,
    TokenIdentity,
    WorkloadIdentity,
)
from .model import Clause, Config, Identity, Verify, Within
from .oidc_model import Oidc, Session
from .vocabulary import Mode, OnKeys

_LAST_KNOWN_GOOD_S = 600.0
"""How long keys seen before go on working while their store is unavailable; as long as `verify.stale`, for its reason."""


def rules(config: Config) -> tuple[rule_match.Rule, ...]:
    """The rules, as `core.access` compiles them."""
    return tuple(
        rule_match.Rule(
            id=rule.id,
            identities=rule.for_,
            use=rule.use,
            allow=tuple(_clause(clause) for clause in rule.allow),
            deny=tuple(_clause(clause) for clause in rule.deny),
            sudo=rule.sudo,
            shadow=rule.mode is Mode.SHADOW,
        )
        for rule in config.rules
    )


def credentials(config: Config) -> tuple[StaticCredential, ...]:
    """Every upstream token, including the members of pools, in the order of the file."""
    found: list[StaticCredential] = []
    for one in config.credentials:
        if one.token is not None:
            found.append(StaticCredential(one.id, one.token, one.sudo))
            continue
        # Tokens that see the same share a cache partition, for as long as the pool holds the same configured tokens.
        tokens = "\n".join(sorted(member.token.reveal() for member in one.pool))
        view = Secret(f"pool\n{one.id}\n{tokens}") if one.same_view else None
        for place, member in enumerate(one.pool, 1):
            found.append(StaticCredential(f"{one.id}/{place}", member.token, one.sudo, one.id, view))
    return tuple(found)


def limits(config: Config) -> tuple[Limit, ...]:
    """The limits on requests, in the order of the file."""
    shadow = config.limits_mode is Mode.SHADOW
    return tuple(limit.limit(shadow=shadow) for limit in config.limits if limit.bandwidth is None)


def bandwidths(config: Config) -> tuple[Limit, ...]:
    """The limits on bandwidth. Those in shadow mode are left out: a wait that does not take place can't be measured."""
    if config.limits_mode is Mode.SHADOW:
        return ()
    return tuple(limit.limit() for limit in config.limits if limit.bandwidth is not None and limit.mode is not Mode.SHADOW)


def costs(config: Config) -> dict[str, float]:
    """Operation → weight, for the operations that the configuration names."""
    return {entry.match: entry.cost for entry in config.costs}


def identity_settings(config: Config) -> IdentitySettings:
    """Who may call, and from which networks."""
    keys, workloads, gitlab_token, anonymous = [], [], None, None
    for identity in config.identities:
        networks = _networks(identity)
        if identity.gitlab_token:
            verify = identity.verify or Verify()
            gitlab_token = TokenIdentity(
                identity.id,
                identity.team,
                networks,
                verify.ttl,
                verify.negative_ttl,
                verify.stale,
                identity.priority,
            )
        elif identity.oidc is not None:
            workloads.append(_workload(identity, identity.oidc, networks))
        elif identity.anonymous:
            anonymous = AnonymousIdentity(identity.id, identity.team, networks, identity.priority)
        else:
            keys.append(KeyIdentity(identity.id, identity.team, networks, identity.priority))
    return IdentitySettings(
        keys=tuple(keys),
        workloads=tuple(workloads),
        gitlab_token=gitlab_token,
        anonymous=anonymous,
        passthrough=frozenset(config.passthrough),
        keys_stale_s=_LAST_KNOWN_GOOD_S if config.stores.on_error.keys is OnKeys.LAST_KNOWN_GOOD else 0.0,
    )


def _workload(identity: Identity, oidc: Oidc, networks: Networks) -> WorkloadIdentity:
    claims = tuple((name, Pattern(pattern)) for name, pattern in oidc.pins.items())
    return WorkloadIdentity(
        identity.id,
        Requirement(oidc.issuer, oidc.audience, claims, oidc.skew),
        identity.team,
        networks,
        identity.priority,
        oidc.jwks_uri or "",
        tuple(algorithm.value for algorithm in oidc.algorithms),
        oidc.ca_file,
        (identity.session or Session()).ttl,
        oidc.audited,
    )


def _networks(identity: Identity) -> Networks:
    return Networks(tuple(str(network) for network in identity.bind.cidr) if identity.bind else ())


def _clause(clause: Clause) -> rule_match.Clause:
    return rule_match.Clause(
        access=clause.access,
        methods=clause.methods,
        routes=clause.routes,
        permissions=clause.permissions,
        surfaces=clause.surfaces,
        projects=None if clause.projects is None else _projects(clause.projects),
        lists=clause.lists or rule_match.Lists.REFUSE,
    )


def _projects(projects: tuple[str, ...] | Within) -> rule_match.Projects:
    if isinstance(projects, tuple):
        return rule_match.Projects(named=projects)
    groups = projects.under_group
    return rule_match.Projects(under_group=groups if isinstance(groups, tuple) else (groups,))

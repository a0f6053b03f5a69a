"""Checks that need more than one value: names that refer to nothing, contradictory settings, ones that admit anybody."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence

from ..core.access import PrincipalKind
from ..core.catalogue import Access
from ..core.headers import is_free
from ..core.redaction import MASK, redact
from ..core.rule_findings import suggestion
from ..core.workload_token import LONGEST_SUBJECT
from .admin_checks import admin_findings
from .cache_checks import cache_findings
from .credential_checks import credential_findings, managers
from .limit_checks import cost_findings, limit_findings
from .model import Clause, Config, Rule
from .oidc_model import Oidc
from .problems import Finding, Path, error, warning
from .secret_checks import secret_findings
from .units import BaseUrl, HostPort
from .worker_checks import worker_findings

PASSTHROUGH = "passthrough"
_RESERVED_RULES = frozenset({"own-token", "passthrough", "anonymous"})
_CHECKED_CLAIMS = frozenset({"iss", "aud", "exp", "nbf", "iat"})
_LONGEST_SESSION_S = 86_400.0
_LONGEST_SKEW_S = 300.0


def findings(config: Config) -> Iterator[Finding]:
    """Every contradiction in ``config``, in the order of the file."""
    for check in _CHECKS:
        yield from check(config)


# where things are


def _version(config: Config) -> Iterator[Finding]:
    if config.version not in {0, 1}:  # 0 stands in for a version that was already reported
        yield error(("version",), "is not 1, the version this gateway reads")


def _upstream(config: Config) -> Iterator[Finding]:
    upstream, listen = config.upstream, config.listen
    if upstream.url.scheme == "http" and not _is_loopback(upstream.url.host):
        yield warning(("upstream", "url"), "is plain http: every token crosses the network in clear text")
    if _points_at(upstream.url, listen.address) or _points_at(upstream.url, listen.admin):
        yield error(("upstream", "url"), "is the gateway's own address: requests would go in circles")
    if upstream.ca_file is not None and upstream.url.scheme == "http":
        yield warning(("upstream", "ca_file"), "has no effect: `upstream.url` is plain http")
    attribution = upstream.attribution
    if attribution is not None and attribution.header is not None and not is_free(attribution.header.encode("ascii")):
        yield error(
            ("upstream", "attribution", "header"), "is taken, or does not begin with `X-`: use one like `X-Gateway-Caller`"
        )
    if attribution is not None and attribution.header is None and not attribution.user_agent:
        yield warning(("upstream", "attribution"), "has no effect: give `header`, `user_agent: true`, or both")
    if upstream.rewrite_json and listen.public_url is None:
        yield warning(("upstream", "rewrite_json"), "has no effect without `listen.public_url`")
    for key, url in (("upstream", "external_url"), upstream.external_url), (("listen", "public_url"), listen.public_url):
        if url is not None and url.path != upstream.url.path:
            yield error(
                key,
                f"has the prefix `{url.path or '/'}` and `upstream.url` has `{upstream.url.path or '/'}`: "
                "targets are forwarded as they come, so the prefixes must be the same",
            )
    for name in ("connect", "first_byte", "idle"):
        if getattr(upstream.timeouts, name) <= 0:
            yield error(("upstream", "timeouts", name), "must be more than 0")
    if upstream.max_in_flight < 1:
        yield error(("upstream", "max_in_flight"), "must be at least 1")
    breaker = upstream.breaker
    if not 0 < breaker.error_ratio <= 1:
        yield error(("upstream", "breaker", "error_ratio"), "must be a share: more than 0, at most 1")
    if breaker.min_requests < 1:
        yield error(("upstream", "breaker", "min_requests"), "must be at least 1")
    for name in ("window", "open_for"):
        if getattr(breaker, name) <= 0:
            yield error(("upstream", "breaker", name), "must be more than 0")


def _listen(config: Config) -> Iterator[Finding]:
    listen = config.listen
    if listen.address.port and _same_address(listen.address, listen.admin):
        yield error(("listen", "admin"), "is the data port too: probes and metrics are not for clients")
    if listen.hosts and listen.public_url is None:
        yield error(("listen", "hosts"), "is given without `listen.public_url`: the list would shut out the main name")
    for index, network in enumerate(listen.trusted_proxies):
        if network.prefixlen == 0:
            yield error(("listen", "trusted_proxies", index), "covers everybody: any client could forge its address")
    limits = listen.limits
    for name in ("target_bytes", "field_bytes", "header_bytes"):
        if getattr(limits, name) < 1024:
            yield error(("listen", "limits", name), "is below 1KiB: ordinary clients would be refused")
    if limits.header_bytes < limits.field_bytes:
        yield error(("listen", "limits", "header_bytes"), "is below `field_bytes`, which is a part of it")
    if limits.headers < 16:
        yield error(("listen", "limits", "headers"), "is below 16: ordinary clients would be refused")
    for name in ("request_head", "body_idle", "idle"):
        if getattr(limits, name) <= 0:
            yield error(("listen", "limits", name), "must be more than 0")


def _stores(config: Config) -> Iterator[Finding]:
    stores = config.stores
    if stores.shared.scheme == "sqlite":
        yield error(("stores", "shared"), "is SQLite: buckets and the cache can live in memory or in Redis only")
    if stores.keys is not None and stores.keys.scheme == "memory":
        yield error(("stores", "keys"), "is memory: issued keys must survive a restart; use sqlite:///PATH or Redis")
    if stores.credentials is not None and stores.credentials.scheme == "memory":
        yield error(("stores", "credentials"), "is memory: a rotated token is nowhere else; use sqlite:///PATH or Redis")
    for name, store in ("shared", stores.shared), ("keys", stores.keys), ("credentials", stores.credentials):
        twice = name != "shared" and store is stores.shared
        if store is not None and not twice and store.shared and not store.encrypted and store.password:
            yield warning(("stores", name), "sends its password in clear text: rediss:// encrypts")


# who may do what


def _unique_ids(config: Config) -> Iterator[Finding]:
    sections: tuple[tuple[Path, Sequence[str]], ...] = (
        (("admin", "keys"), [key.id for key in config.admin.keys]),
        (("identities",), [identity.id for identity in config.identities]),
        (("credentials",), [credential.id for credential in config.credentials]),
        (("rules",), [rule.id for rule in config.rules]),
        (("limits",), [limit.id for limit in config.limits]),
    )
    for path, ids in sections:
        first: dict[str, int] = {}
        for index, name in enumerate(ids):
            if name and name in first:
                yield error((*path, index, "id"), f"is taken: `{name}` is already item {first[name]}")
            first.setdefault(name, index)
    for index, rule in enumerate(config.rules):
        if rule.id in _RESERVED_RULES:
            yield error(("rules", index, "id"), f"is reserved: the audit says `{rule.id}` where no rule is needed")


def _identities(config: Config) -> Iterator[Finding]:
    allowed = {name for rule in config.rules if rule.allow for name in rule.for_}
    single: dict[PrincipalKind, str] = {}
    for index, identity in enumerate(config.identities):
        path: Path = ("identities", index)
        ways = (identity.key is not None) + (identity.oidc is not None) + identity.gitlab_token + identity.anonymous
        if ways != 1:
            problem = "has more than one" if ways else "has none"
            yield error(
                path, f"{problem} of `key: issued`, `oidc`, `gitlab_token: true`, `anonymous: true`; it needs exactly one"
            )
            continue
        if identity.id == PASSTHROUGH:
            yield error((*path, "id"), "is reserved for credentials that only GitLab can judge")
        if identity.verify is not None and not identity.gitlab_token:
            yield error((*path, "verify"), "belongs to `gitlab_token` identities")
        if identity.verify is not None and identity.verify.ttl <= 0:
            yield error((*path, "verify", "ttl"), "must be more than 0: every request would cost GitLab two")
        if identity.session is not None and identity.oidc is None:
            yield error((*path, "session"), "belongs to `oidc` identities")
        if identity.session is not None and not 60 <= identity.session.ttl <= _LONGEST_SESSION_S:
            yield error((*path, "session", "ttl"), "must be from 1m to 1d: for anything longer, issue a key")
        if identity.bind is not None and not identity.bind.cidr:
            yield error((*path, "bind", "cidr"), "is empty: nobody could call")
        if identity.oidc is not None:
            yield from _oidc(identity.oidc, (*path, "oidc"))
        if identity.key is not None or identity.oidc is not None:
            if identity.id not in allowed:
                yield warning(path, f"may do nothing: no rule allows `{identity.id}` anything")
            continue
        if identity.kind in single:
            yield error(
                path, f"is a second `{identity.kind}` identity beside `{single[identity.kind]}`; only one is allowed"
            )
        single.setdefault(identity.kind, identity.id)


def _audit_claims(names: Sequence[str], path: Path) -> Iterator[Finding]:
    for index, name in enumerate(names):
        if name == "sub":
            yield warning((*path, index), "is `sub`, which the audit shows in any case")
        elif not name.isprintable() or " " in name:
            yield error((*path, index), "holds a blank or a character that can't be shown: it would look like two claims")
        elif name in names[:index]:
            yield error((*path, index), "is given twice")
        elif redact(b"?" + name.encode() + b"=x").endswith(MASK):
            yield warning((*path, index), "is named like a secret: the audit and the list of keys would show it")
    if sum(len(name) + 3 for name in names) > LONGEST_SUBJECT:
        yield error(path, f"is too long: the audit shows {LONGEST_SUBJECT} characters of names and values")


def _oidc(oidc: Oidc, path: Path) -> Iterator[Finding]:
    for key, url in ("issuer", oidc.issuer), ("jwks_uri", oidc.jwks_uri):
        if url is not None and url.startswith("http:") and not _is_loopback(_host_of(url)):
            yield error((*path, key), "is plain http: anybody on the network could answer with keys of their own")
    if not oidc.claims:
        yield error((*path, "claims"), "is empty: everybody this issuer knows would be this caller")
    for name, pattern in oidc.claims.items():
        if name in _CHECKED_CLAIMS:
            yield error((*path, "claims", name), "is checked already, by `issuer`, `audience` and the clock")
        elif not pattern.strip("*"):
            yield warning((*path, "claims", name), "matches any value")
    yield from _audit_claims(oidc.audit_claims or (), (*path, "audit_claims"))
    if oidc.preset is not None:
        project = oidc.claims.get("job_project_id")
        if project is None:
            yield error((*path, "claims"), "lacks `job_project_id`: the preset is for the jobs of one project")
        elif not project.isdecimal():
            yield error(
                (*path, "claims", "job_project_id"), 'is not a number ("7"): a path can be registered anew by somebody else'
            )
        for name in sorted(name for name in oidc.claims if name.endswith("_path") and name != "ref_path"):
            yield warning(
                (*path, "claims", name), f"is a path, which can be registered anew: pin `{name.removesuffix('path')}id`"
            )
    if {"project_id", "project_path"} & oidc.claims.keys() and not {
        "job_project_id",
        "job_project_path",
    } & oidc.claims.keys():
        yield warning(
            (*path, "claims"),
            "pins the pipeline's project, but not the job's: pin `job_project_id`, which no fork can borrow",
        )
    if not oidc.algorithms:
        yield error((*path, "algorithms"), "is an empty list: no token could be signed")
    if oidc.skew > _LONGEST_SKEW_S:
        yield error((*path, "skew"), "is above 5m: synchronise the clocks instead")


def _host_of(url: str) -> str:
    authority = url.partition("://")[2].partition("/")[0]
    return authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]


def _rules(config: Config) -> Iterator[Finding]:
    kinds = {identity.id: identity.kind for identity in config.identities}
    credentials = {credential.id: credential for credential in config.credentials}
    for index, rule in enumerate(config.rules):
        path: Path = ("rules", index)
        if not rule.allow and not rule.deny:
            yield error(path, "neither allows nor denies anything")
        if not rule.for_:
            yield error((*path, "for"), "is empty: the rule would apply to nobody")
        yield from _rule_callers(rule, path, kinds)
        if rule.use and rule.use not in credentials:
            yield error((*path, "use"), f"names no credential: `{rule.use}`{suggestion(rule.use, credentials)}")
        if rule.allow and not rule.use:
            yield error((*path, "use"), "is missing: an `allow` needs the credential that GitLab is to see")
        if rule.use and not rule.allow:
            yield warning((*path, "use"), "has no effect: the rule allows nothing")
        if rule.sudo and rule.use in credentials and not credentials[rule.use].sudo:
            yield error((*path, "sudo"), f"needs a credential with `sudo: true`; `{rule.use}` has none")
        if rule.sudo and not rule.allow:
            yield warning((*path, "sudo"), "has no effect: the rule allows nothing")
        for name, clauses in ("allow", rule.allow), ("deny", rule.deny):
            for number, clause in enumerate(clauses):
                yield from _clause(clause, (*path, name, number), name)
    used = {rule.use for rule in config.rules} | managers(config)
    for index, credential in enumerate(config.credentials):
        if credential.id and credential.id not in used:
            yield warning(("credentials", index), f"is used by no rule: `{credential.id}`")


def _rule_callers(rule: Rule, path: Path, kinds: dict[str, PrincipalKind]) -> Iterator[Finding]:
    for position, name in enumerate(rule.for_):
        where: Path = (*path, "for", position)
        if name == PASSTHROUGH:
            if rule.allow:
                yield error(where, "needs no allow: GitLab judges what passes through; only a rule that denies narrows it")
        elif name not in kinds:
            yield error(where, f"names no identity: `{name}`{suggestion(name, kinds)}")
        elif rule.allow and kinds[name] not in {PrincipalKind.KEY, PrincipalKind.OIDC}:
            yield error(where, f"needs no allow: GitLab judges `{name}`; only a rule that denies narrows it")


def _clause(clause: Clause, path: Path, name: str) -> Iterator[Finding]:
    conditions = {condition: getattr(clause, condition) for condition in clause.__struct_fields__ if condition != "lists"}
    if all(value is None for value in conditions.values()):
        if name == "allow":
            yield error(path, "has no condition, so it would allow everything: if that is meant, say `access: write`")
        else:
            yield error(path, "has no condition, so it would deny everything: if that is meant, say `methods` or `routes`")
    for condition, value in conditions.items():
        if value == ():
            yield error((*path, condition), "is an empty list, which nothing matches: remove the key or fill it")
    if name == "deny" and clause.access is Access.WRITE:
        yield warning(
            (*path, "access"), "denies reads too, because `write` includes `read`; for writes alone list `methods`"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _same_address(one: HostPort, other: HostPort) -> bool:
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 — compared with, not bound to
    overlap = one.host == other.host or one.host in everywhere or other.host in everywhere
    return overlap and one.port == other.port


def _points_at(url: BaseUrl, address: HostPort) -> bool:
    if not address.port or url.port != address.port:
        return False
    return url.host == address.host or (
        _is_loopback(url.host) and (_is_loopback(address.host) or address.host in {"0.0.0.0", "::"})  # noqa: S104
    )


_CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _version,
    _upstream,
    _listen,
    worker_findings,
    admin_findings,
    _stores,
    secret_findings,
    _unique_ids,
    _identities,
    credential_findings,
    _rules,
    limit_findings,
    cost_findings,
    cache_findings,
)

"""``explain``: what each stage would decide about a request, without sending it or asking GitLab anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from .. import routes
from ..cache.tagging import Tagging
from ..config import Config
from ..config import compile as compiled
from ..config.model import Identity
from ..config.units import Rate, show_rate
from ..config.vocabulary import CacheMode
from ..core.access import Explanation, Principal, PrincipalKind, Rules, Verdict
from ..core.cache_tags import ANONYMOUS, answer_tags
from ..core.caching import SAFE_METHODS
from ..core.catalogue import Access, Catalogue, Operation
from ..core.credentials import read_claim
from ..core.errors import Code, Rejection
from ..core.immutable import KEEP_S, is_immutable
from ..core.limit_plan import Limits
from ..core.limits import Limit, Scope, Take
from ..core.narrowing import item_kind_of
from ..core.private_caching import PrivatePolicy, bypass_reason
from ..core.project_names import ProjectNames
from ..core.redaction import escape_unprintable, redact
from ..core.request_intent import is_decided_by_body
from ..core.request_validation import METHODS, TUNNELS
from ..core.target import parse_target
from ..core.token_answers import check_token_service
from ..identity.passthrough import all_passthroughs

PASSTHROUGH = "passthrough"


class Explained(msgspec.Struct, frozen=True):
    """What would become of a request."""

    allowed: bool
    stages: tuple[tuple[str, str], ...]
    """Each stage and what it says, in the order in which a request passes them."""
    status: int = 0
    """The status of the refusal; 0 where the request would go up to GitLab."""
    code: str = ""
    takes: tuple[Take, ...] = ()
    """What the request would take from its buckets."""
    unnamed: frozenset[str] = frozenset()
    """Keys of those buckets that would be different ones for another caller of the same identity."""
    credentials: tuple[str, ...] = ()
    """Ids of the credentials that GitLab may see: one, or the members of a pool."""


LevelLookup = Callable[[Explained], Iterable[tuple[str, str]]]
"""From what would become of a request to further stages, about its buckets as they are now."""


def explain(
    config: Config, identity: str, method: str, target: str, *, caller: str = "", level_lookup: LevelLookup | None = None
) -> str:
    """``trace`` as text, one line per stage. ``level_lookup`` adds what the buckets hold now."""
    found = trace(config, identity, method, target, caller=caller)
    held = found.allowed and (found.takes or found.credentials)
    stages = (*found.stages, *level_lookup(found)) if level_lookup is not None and held else found.stages
    # Of what a target holds when it is decoded, some would move the terminal of whoever asks.
    return "\n".join(escape_unprintable(f"{stage:<10}  {words}") for stage, words in stages)


def trace(
    config: Config, identity: str, method: str, target: str, catalogue: Catalogue | None = None, *, caller: str = ""
) -> Explained:
    """What each stage would decide. Nothing is sent, and neither GitLab nor a store is asked.

    Args:
        config: The configuration to explain.
        identity: Id of a configured identity, or ``passthrough``.
        method: As in a request line.
        target: As in a request line; octets beyond ASCII as they would be sent.
        catalogue: The gateway's catalogue; absent: it is read anew, which takes a while.
        caller: One of the identity's callers, named as ``limits top`` names them; empty: any.
    """
    lines: list[tuple[str, str]] = []
    raw = target.encode("utf-8", "surrogateescape")
    if config.cache.mode is CacheMode.SHARED:
        return _plain_cache(config, method, raw)
    if method not in METHODS:
        words = f"refused: 405, GitLab serves {', '.join(sorted(METHODS))}"
        return Explained(False, (("method", words),), 405, Code.METHOD_NOT_ALLOWED.value)
    try:
        parsed = parse_target(raw, max_bytes=config.listen.limits.target_bytes, prefix=config.upstream.url.path.encode())
    except Rejection as rejection:
        return _refused("target", rejection, f" ({rejection.detail})")
    operation = (catalogue or routes.catalogue()).match(method, parsed)
    try:
        claim = read_claim((), method, parsed, operation)
    except Rejection as rejection:
        return _refused("claim", rejection)
    lines.append(("target", f"forwarded as {redact(claim.target).decode('utf-8', 'backslashreplace')}"))
    lines.append(("operation", _operation(operation)))
    principal, address = _principal(config, identity, caller)
    lines.append(
        ("principal", f"{principal.id} ({principal.kind.value})" + (f", team {principal.team}" * bool(principal.team)))
    )
    if principal.kind is PrincipalKind.PASSTHROUGH and not operation.blocked:
        kinds = all_passthroughs(operation)
        if kinds.isdisjoint(config.passthrough):
            why = f"`passthrough` does not list {' or '.join(sorted(kinds))}" if kinds else "nothing passes through here"
            lines.append(("principal", f"refused: 401 {Code.UNAUTHENTICATED.value} ({why})"))
            return Explained(False, tuple(lines), 401, Code.UNAUTHENTICATED.value)
        lines.append(("principal", f"lets through: {', '.join(sorted(kinds.intersection(config.passthrough)))}"))
    rules = Rules.compile(compiled.rules(config))
    explanation = rules.explain(principal, operation, parsed, method, claim.sudo, screened=True)
    lines += _permit(explanation, principal)
    try:
        permit = rules.authorise(principal, operation, parsed, method, claim.sudo, screened=True)
        if principal.brokered:
            check_token_service(operation, parsed, has_body=False)
    except Rejection as rejection:
        message = rejection.message.removeprefix(f"{rejection.status} ")
        lines.append(("answer", f"{rejection.status} {message}, code {rejection.code.value}"))
        return Explained(False, tuple(lines), rejection.status, rejection.code.value)
    if permit.narrowing is not None:
        if item_kind_of(operation, parsed) is None:
            lines.append(("list", "refused: 403, this list can't be filtered"))
            return Explained(False, tuple(lines), 403, Code.FORBIDDEN.value)
        lines.append(("list", "filtered: GitLab's page, less what the rules hide"))
    lines.append(("credential", f"GitLab sees `{permit.use}`" if permit.use else "GitLab sees the caller's own credential"))
    takes = Limits.compile(compiled.limits(config), compiled.costs(config)).takes_for(
        principal, operation, parsed, method, address
    )
    lines.append(
        (
            "limits",
            "; ".join(
                f"{take.limit.id}: {take.cost:g} of {take.limit.burst:g}{_rate(take.limit)}"
                + (" (shadow)" if take.limit.shadow else "")
                for take in takes
            )
            or "none applies",
        )
    )
    lines += [("cache", words) for words in _cache(config, principal, operation, method, claim.target, permit.use)]
    lines.append(("upstream", f"{method} to {config.upstream.url}"))
    unnamed = frozenset[str]() if caller else _unnamed(principal, takes)
    return Explained(True, tuple(lines), takes=takes, unnamed=unnamed, credentials=_credentials(config, permit.use))


def _plain_cache(config: Config, method: str, raw: bytes) -> Explained:
    """The road of ``cache.mode: shared``: no routes, no credentials, no rules, no limits."""
    if method in TUNNELS:
        words = f"refused: 405, {method} is never forwarded"
        return Explained(False, (("method", words),), 405, Code.METHOD_NOT_ALLOWED.value)
    try:
        parsed = parse_target(raw, max_bytes=config.listen.limits.target_bytes)
    except Rejection as rejection:
        return _refused("target", rejection, f" ({rejection.detail})")
    lines = [
        ("target", f"forwarded as {redact(parsed.raw).decode('utf-8', 'backslashreplace')}"),
        ("principal", "anyone: `cache.mode: shared` asks for no credential, no rule and no limit"),
        *(("cache", words) for words in _shared_cache(config, method, parsed.raw)),
        ("upstream", f"{method} to {config.upstream.url}"),
    ]
    return Explained(True, tuple(lines))


def _rate(limit: Limit) -> str:
    """The rate of a limit as the operator wrote it."""
    if limit.concurrent:
        return " at one time"
    return f", {show_rate(Rate(limit.rate * limit.period_s, limit.period_s))}"


def _refused(stage: str, rejection: Rejection, more: str = "") -> Explained:
    words = f"refused: {rejection.status} {rejection.code.value}{more}"
    return Explained(False, ((stage, words),), rejection.status, rejection.code.value)


def _operation(operation: Operation) -> str:
    words = f"{operation.name}, {operation.access.value}, surface {operation.surface.value}"
    if operation.permissions:
        words += f", permissions {', '.join(operation.permissions)}"
    if not operation.known:
        words += " (not in the catalogue: counts as write for brokered callers)"
    if is_decided_by_body(operation):
        words += " (its body decides: only queries and downloads count as reads; judged as a write here)"
    return words


def _principal(config: Config, identity: str, caller: str) -> tuple[Principal, str]:
    """A caller of the identity, and the address that it calls from."""
    address = caller.removeprefix("anonymous:").removeprefix("passthrough:") or "203.0.113.1"
    if identity == PASSTHROUGH:
        return Principal(f"passthrough:{address}", PrincipalKind.PASSTHROUGH, PASSTHROUGH), address
    found: Identity = next(one for one in config.identities if one.id == identity)
    ids = {PrincipalKind.GITLAB_TOKEN: caller or "user:1", PrincipalKind.ANONYMOUS: f"anonymous:{address}"}
    token_hash = b"\0" if found.kind is PrincipalKind.GITLAB_TOKEN else b""  # any token: whose it is does not matter here
    principal = Principal(
        ids.get(found.kind, found.id), found.kind, found.id, team=found.team, token_hash=token_hash, priority=found.priority
    )
    return principal, address


def _credentials(config: Config, use: str) -> tuple[str, ...]:
    found = next((one for one in config.credentials if one.id == use), None)
    if found is None or not found.pool:
        return (use,) if use else ()
    return tuple([f"{use}/{place}" for place in range(1, len(found.pool) + 1)])


def _unnamed(principal: Principal, takes: Sequence[Take]) -> frozenset[str]:
    """Keys of the buckets that would be different ones for another caller of the same identity."""
    if principal.kind in {PrincipalKind.KEY, PrincipalKind.OIDC}:
        return frozenset()
    return frozenset([take.key for take in takes if take.limit.by in {Scope.CALLER, Scope.ADDRESS}])


def _permit(explanation: Explanation, principal: Principal) -> list[tuple[str, str]]:
    lines = [
        (
            "clause",
            f"{considered.rule} {'deny' if considered.deny else 'allow'}[{considered.position}]: "
            + ("holds" if considered.holds else "does not hold")
            + (f" ({considered.why})" if considered.why else "")
            + (" (shadow)" if considered.shadow else ""),
        )
        for considered in explanation.considered
    ]
    by = f" by `{explanation.rule}`" if explanation.rule else ""
    lines.append(("permit", f"{explanation.verdict.value.replace('_', ' ')}{by}"))
    if explanation.lookups:
        places = ", ".join(f"{lookup.kind.value} {lookup.spelt}" for lookup in explanation.lookups)
        if explanation.verdict is Verdict.ALLOWED:
            lines.append(("unresolved", f"{places}: may have moved: GitLab will be asked where it is now"))
        elif principal.brokered:
            why = "GitLab will be asked which one it is; nobody is asked here, so it counts as not allowed"
            lines.append(("unresolved", f"{places}: spelt differently from the rules: {why}"))
        else:
            lines.append(("unresolved", f"{places}: spelt differently from the rules, which counts as not allowed"))
    return lines


def _cache(config: Config, principal: Principal, operation: Operation, method: str, target: bytes, use: str) -> list[str]:
    """Whether the answer would be cached, for whom, for how long and under which tags; or why not."""
    settings = config.cache
    if settings.mode is CacheMode.OFF:
        return ["off"]
    if method != "GET":
        words = [f"not looked up: {method} goes up"]
        if method not in SAFE_METHODS and operation.access is not Access.READ:
            purged = ANONYMOUS if principal.kind is PrincipalKind.ANONYMOUS and not use else b"caller"
            tags = Tagging(ProjectNames(), config.upstream.url.path).tags_of_write(target, operation, purged)
            words.append(f"purges, unless refused: {_tags(tags)}")
        return words
    partition = use.encode() or principal.token_hash or (ANONYMOUS * (principal.kind is PrincipalKind.ANONYMOUS))
    refused = bypass_reason(operation, b"", partition=partition, has_body=False, session=False)
    if refused is not None:
        return [f"not looked up: {refused.value}"]
    ttl_s = next((route.ttl for route in settings.routes if route.match == operation.name), settings.ttl)
    reuse_s = min(ttl_s, settings.access_ttl)
    keep_s = PrivatePolicy().keep_s
    immutable = settings.immutable and is_immutable(operation.name, target)
    if immutable:
        reuse_s, keep_s = settings.access_ttl, KEEP_S
    how = f"reused for {reuse_s:g} s without asking" if reuse_s else "validated with GitLab at every reuse"
    whose = (
        f"credential `{use}` and rule set" if use else "this very token" if principal.token_hash else "anonymous callers"
    )
    words = [f"one partition for {whose}; {how}; kept for {keep_s:g} s to be validated"]
    if immutable:
        words.append("named by a full commit SHA: with or without hooks")
    elif settings.hooks is not None and reuse_s:
        words.append("while hooks come; validated at every reuse when they are silent")
    if operation.may_hold_secret:
        words.append("not stored when the answer has a `runners_token`")
    if settings.stale_if_error:
        words.append(f"served stale for {settings.stale_if_error:g} s while GitLab fails")
    words.append(f"tags {_tags(answer_tags(b'', target, ProjectNames())[1:])}")
    return words


def _shared_cache(config: Config, method: str, target: bytes) -> list[str]:
    """What can be said under RFC 9111 before there is an answer."""
    if method not in SAFE_METHODS:
        return [
            f"shared: {method} goes up; an answer below 400 purges {redact(target).decode('utf-8', 'backslashreplace')}"
        ]
    if method not in {"GET", "HEAD"}:
        return [f"shared: not looked up: {method} goes up"]
    words = ["shared: looked up; stored, and for how long, as the origin's answer says (RFC 9111)"]
    if config.cache.stale_if_error:
        words.append(f"served stale for {config.cache.stale_if_error:g} s while the origin fails, where its answer allows")
    return words


def _tags(tags: tuple[bytes, ...]) -> str:
    return " ".join(tag.decode("utf-8", "backslashreplace") for tag in tags)

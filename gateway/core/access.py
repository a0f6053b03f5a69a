"""Compiled rules: who may do what, with which upstream credential. Default deny; any deny wins over any allow."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from .catalogue import Access, Operation, ReferenceKind
from .errors import Code, Rejection
from .narrowing import Narrowing, is_list
from .place_index import PlaceIndex
from .rule_match import (
    Clause,
    Fit,
    Matcher,
    NamedPlace,
    PlaceLookup,
    Resolved,
    Rule,
    access_of,
    keeps_to_place,
    named,
    named_places_key,
    reaches_beyond,
)
from .target import Target


class PrincipalKind(enum.StrEnum):
    """How the caller was authenticated."""

    KEY = "key"
    OIDC = "oidc"
    GITLAB_TOKEN = "gitlab_token"  # noqa: S105
    PASSTHROUGH = "passthrough"
    ANONYMOUS = "anonymous"


class Priority(enum.StrEnum):
    """Which requests go first when there is not enough capacity for all."""

    CRITICAL = "critical"
    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class Principal(msgspec.Struct, frozen=True, gc=False):
    """An authenticated person or bot. Limits `by: caller` and the audit use ``id``."""

    id: str
    """The gateway identity, ``user:42`` for a caller's own GitLab token, ``anonymous:ADDR`` or ``passthrough:ADDR``."""
    kind: PrincipalKind
    identity: str
    """The configured identity that the caller authenticated as; ``passthrough`` where none is needed."""
    fingerprint: str = ""
    """Fingerprint of the presented credential, ``tok:…``; empty without one."""
    credential_id: str = ""
    """The name by which whoever issued the credential knows it: ``key_…``, ``token:5``, a ``jti``; empty if it has none."""
    credential_subject: str = ""
    """What a workload's token says of its bearer, also after an exchange; empty for others."""
    team: str = ""
    token_hash: bytes = b""
    """Keyed hash of the caller's own token, which is its cache partition."""
    priority: Priority = Priority.INTERACTIVE
    cidr: tuple[str, ...] = ()
    """Networks that this credential is bound to, in addition to those of its identity."""

    @property
    def brokered(self) -> bool:
        """Whether GitLab sees one of the gateway's credentials instead of the caller's."""
        return self.kind in _BROKERED


_BROKERED = (PrincipalKind.KEY, PrincipalKind.OIDC)


class Permit(msgspec.Struct, frozen=True, gc=False):
    """Permission to forward one request. Nothing is forwarded, looked up or stored without one."""

    rule: str
    """The rule's id; ``own-token``, ``passthrough`` or ``anonymous`` where none is needed."""
    use: str = ""
    """Id of the upstream credential; if empty, the caller's own (or none) goes up."""
    sudo: str = ""
    """The GitLab user to act as upstream."""
    digest: bytes = b""
    """Hash of what this permit may see: part of a brokered cache partition."""
    narrowing: Narrowing | None = None
    """Which items of a list stay, where GitLab's list shows more than the caller may see."""
    confined: bool = False
    """A rule of the caller's names projects, so the body must not name a project or group that the path and the query don't
    (the parameters in ``rule_match.PARAMETERS``)."""
    shadow: str = ""
    """The shadow rule that would have decided otherwise."""


OWN_TOKEN, PASSTHROUGH, ANONYMOUS = "own-token", "passthrough", "anonymous"
"""Stand-ins for a rule's id where no rule is needed."""

_UNRULED = {
    PrincipalKind.GITLAB_TOKEN: Permit(OWN_TOKEN),
    PrincipalKind.PASSTHROUGH: Permit(PASSTHROUGH),
    PrincipalKind.ANONYMOUS: Permit(ANONYMOUS),
}


class Verdict(enum.StrEnum):
    """What the rules decide about a request."""

    ALLOWED = "allowed"
    NOT_ALLOWED = "not_allowed"
    """No allow holds."""
    DENIED = "denied"
    """A deny holds."""
    UNKNOWN_PLACE = "unknown_place"
    """The operation would be allowed, but not on this project or group: answered as if the place did not exist."""
    BLOCKED = "blocked"
    NO_SUDO = "no_sudo"


_READ, _ALLOWED = Access.READ, Verdict.ALLOWED
_MEMO_BOUND = 16384
_MEMO_TARGET_BYTES = 1024
_NOTHING: Resolved = {}
_EVERYTHING = Matcher(Clause())


class ClauseResult(msgspec.Struct, frozen=True):
    """One clause, and why it did or did not hold."""

    rule: str
    deny: bool
    position: int
    holds: bool
    why: str
    """The condition that did not hold; ``unresolved`` where GitLab would have to be asked; for a deny by project ``beyond``
    where the request may reach more than it names, and ``filters`` where what the deny hides is left out of a list; empty
    when all conditions held."""
    shadow: bool = False


class Explanation(msgspec.Struct, frozen=True):
    """A decision and everything that led to it."""

    verdict: Verdict
    considered: tuple[ClauseResult, ...]
    rule: str = ""
    """The rule that decided; empty when none did."""
    lookups: tuple[PlaceLookup, ...] = ()
    """Look-ups at GitLab whose answers could change the decision."""


class _Compiled:
    __slots__ = ("allow", "confined", "deny", "free", "rule", "sudo")

    def __init__(self, rule: Rule, digest: bytes) -> None:
        self.rule = rule
        self.allow = tuple(Matcher(clause) for clause in rule.allow)
        self.deny = tuple(Matcher(clause) for clause in rule.deny)
        self.sudo = frozenset(user.lower() for user in rule.sudo)
        self.free = Permit(rule.id, rule.use, digest=digest)
        self.confined = Permit(rule.id, rule.use, digest=digest, confined=True)

    @property
    def paths(self) -> list[str] | None:
        """The only places that the rule is about; None if it may be about others, or must be considered in any case."""
        paths = [clause.paths for clause in self.allow]
        if self.rule.shadow or self.deny or None in paths:
            return None
        return [path for known in paths if known is not None for path in known]


class _RuleSet:
    """All rules of one identity."""

    __slots__ = ("by_project", "credentials", "denies_by_project", "index", "narrows", "rules")

    def __init__(self, rules: Sequence[Rule]) -> None:
        # What may be seen depends on everything in the rules except their ids, their order and their callers.
        content = sorted(
            msgspec.json.encode((rule.use, rule.allow, rule.deny, sorted(rule.sudo))) for rule in rules if not rule.shadow
        )
        digest = hashlib.blake2b(b"\n".join(content), digest_size=16).digest()
        self.rules = tuple(_Compiled(rule, digest) for rule in rules)
        self.index = PlaceIndex([(rule, rule.paths) for rule in self.rules])
        self.by_project = any(clause.by_project for rule in self.rules for clause in (*rule.allow, *rule.deny))
        self.narrows = any(clause.narrows for rule in self.rules for clause in rule.allow)
        self.denies_by_project = any(clause.by_project for rule in self.rules for clause in rule.deny)
        self.credentials = tuple(dict.fromkeys(rule.use for rule in rules if rule.use and not rule.shadow))


class _Outcome(msgspec.Struct, frozen=True):
    verdict: Verdict
    grants: tuple[tuple[_Compiled, bool, Narrowing | None], ...] = ()
    """The enforced rules that allow, in the order configured; for each, whether it does so for certain projects only, and
    which items of a list it shows."""
    rule: str = ""
    shadow: str = ""
    considered: tuple[ClauseResult, ...] = ()
    lookups: tuple[PlaceLookup, ...] = ()
    narrowing: Narrowing | None = None
    """Which items of a list stay, for a caller who needs no grant."""


class Rules:
    """Every rule, compiled. A decision looks only at the rules of its identity; decisions are remembered up to a bound."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        grouped: dict[str, list[Rule]] = {}
        for rule in self._rules:
            for identity in dict.fromkeys(rule.identities):
                grouped.setdefault(identity, []).append(rule)
        self._sets = {identity: _RuleSet(own) for identity, own in grouped.items()}
        self._memo: dict[object, _Outcome] = {}
        self.by_group_id = any(
            group.isdigit()
            for rule in self._rules
            for clause in (*rule.allow, *rule.deny)
            if clause.projects is not None
            for group in clause.projects.under_group
        )
        """Whether some rule names a group by number, so that the ids of the groups around a place matter."""

    @classmethod
    def compile(cls, rules: Iterable[Rule]) -> Rules:
        """Compile ``rules``. Raises ValueError for a malformed route, or for an allow without a credential."""
        rules = tuple(rules)
        for rule in rules:
            if rule.allow and not rule.use:
                raise ValueError(f"rule `{rule.id}` allows, but names no credential to `use`")
        return cls(rules)

    def authorise(
        self,
        principal: Principal,
        operation: Operation,
        target: Target,
        method: str,
        sudo: str | None = None,
        *,
        resolved: Resolved = _NOTHING,
        screened: bool = False,
    ) -> Permit:
        """Permission to forward ``method`` (the effective one) on ``target``, or a Rejection.

        ``sudo`` is the user that the caller wants to act as. ``resolved`` holds GitLab's answers to :meth:`lookups`; what
        depends on an unanswered look-up is not allowed. ``screened`` is the pipeline's promise to refuse a body that names
        another project wherever the permit is ``confined``: without it, a clause with projects allows no operation whose
        body could name one.
        """
        if operation.blocked:
            raise Rejection(Code.BLOCKED_ROUTE, 404, "404 Not Found")
        own = self._sets.get(principal.identity)
        brokered = principal.brokered
        if own is None:
            if brokered:
                raise _refusal(Verdict.NOT_ALLOWED, "")
            permit = _UNRULED[principal.kind]
            return permit if not sudo else msgspec.structs.replace(permit, sudo=sudo)
        if resolved:
            outcome = _judge_indexed(own, brokered, operation, target, method, screened, resolved)
        else:
            outcome = self._judge_memoised(principal, own, operation, target, method, screened)
        if outcome.verdict is not _ALLOWED:
            raise _refusal(outcome.verdict, outcome.shadow, operation, outcome.rule)
        return _permit(outcome, own, principal, sudo)

    def lookups(
        self, principal: Principal, operation: Operation, target: Target, method: str, *, screened: bool = False
    ) -> tuple[PlaceLookup, ...]:
        """The look-ups at GitLab that must be answered before the decision is final; usually none."""
        own = self._sets.get(principal.identity)
        if own is None or not own.by_project or operation.blocked:
            return ()
        return self._judge_memoised(principal, own, operation, target, method, screened).lookups

    def credentials_of(self, identity: str) -> tuple[str, ...]:
        """The upstream credentials of an identity's rules, with which GitLab may be asked about the places they name."""
        own = self._sets.get(identity)
        return own.credentials if own is not None else ()

    def explain(
        self,
        principal: Principal,
        operation: Operation,
        target: Target,
        method: str,
        sudo: str | None = None,
        *,
        resolved: Resolved = _NOTHING,
        screened: bool = False,
    ) -> Explanation:
        """The same decision as :meth:`authorise`, with every clause considered and why it did or did not hold."""
        if operation.blocked:
            return Explanation(Verdict.BLOCKED, ())
        own = self._sets.get(principal.identity)
        if own is None:
            if principal.brokered:
                return Explanation(Verdict.NOT_ALLOWED, ())
            return Explanation(Verdict.ALLOWED, (), _UNRULED[principal.kind].rule)
        things = named(operation, target)
        outcome = _judge(own, principal.brokered, operation, target, method, things, resolved, screened)
        verdict, rule = outcome.verdict, outcome.rule
        if verdict is Verdict.ALLOWED:
            try:
                rule = _permit(outcome, own, principal, sudo).rule
            except Rejection:
                verdict = Verdict.NO_SUDO
        return Explanation(verdict, outcome.considered, rule, outcome.lookups)

    def _judge_memoised(
        self,
        principal: Principal,
        own: _RuleSet,
        operation: Operation,
        target: Target,
        method: str,
        screened: bool,
    ) -> _Outcome:
        brokered = principal.brokered
        # An unknown route has no name of its own, so its path is used instead.
        operation_key = operation.name if operation.known else target.segments
        places_key = named_places_key(operation, target) if own.by_project else None
        key = (principal.identity, brokered, operation_key, operation.access is _READ, method, places_key, screened)
        outcome = self._memo.get(key)
        if outcome is None:
            outcome = _judge_indexed(own, brokered, operation, target, method, screened)
            if len(self._memo) >= _MEMO_BOUND:
                self._memo.clear()
            if len(target.raw) <= _MEMO_TARGET_BYTES:
                # The clauses considered are for `explain`; thousands of remembered copies would only cost memory.
                self._memo[key] = outcome = msgspec.structs.replace(outcome, considered=())
        return outcome


def _judge_indexed(
    own: _RuleSet,
    brokered: bool,
    operation: Operation,
    target: Target,
    method: str,
    screened: bool,
    resolved: Resolved = _NOTHING,
) -> _Outcome:
    """The outcome of :func:`_judge` over every rule, without looking at rules that only allow other places.

    A place given by number may have any path, so then every rule is considered. The same goes for a refusal, which says
    whether the operation would have been allowed elsewhere.
    """
    things = named(operation, target)
    places = [thing.spelt for thing in things if thing.spelt is not None and not thing.spelt.isdigit()]
    if places and len(places) == len(things):
        few = own.index.candidates([*places, *(place.path.lower() for place in resolved.values())])
        outcome = _judge(own, brokered, operation, target, method, things, resolved, screened, few)
        if outcome.verdict is _ALLOWED:
            return outcome
    return _judge(own, brokered, operation, target, method, things, resolved, screened)


def _judge(
    own: _RuleSet,
    brokered: bool,
    operation: Operation,
    target: Target,
    method: str,
    things: tuple[NamedPlace, ...],
    resolved: Resolved,
    screened: bool,
    rules: tuple[_Compiled, ...] | None = None,
) -> _Outcome:
    """Judge every clause of the identity, or of these ``rules`` only; denies first. A deny that holds or may hold wins."""
    rules = own.rules if rules is None else rules
    access = access_of(operation, method, brokered=brokered)
    considered: list[ClauseResult] = []
    refusal: _Outcome | None = None
    grants: list[tuple[_Compiled, bool, Narrowing | None]] = []
    listed = (own.narrows or own.denies_by_project) and is_list(operation)
    beyond = own.denies_by_project and reaches_beyond(operation)
    forbids = permits = ""  # in shadow
    elsewhere = unsure = False

    for compiled in rules:
        rule = compiled.rule
        for position, clause in enumerate(compiled.deny):
            why = clause.refuses(operation, access, target, method, deny=True)
            fit = Fit.NO if why else clause.may_touch(operation, target, things, resolved, screened)
            touches = fit is not Fit.NO
            further = beyond and clause.by_project and not (why or touches)
            holds = touches or (further and not listed)
            unsure |= fit is Fit.UNSURE
            if further:
                note = "filters" if listed else "beyond"
            else:
                note = "unresolved" if fit is Fit.UNSURE else "" if holds else why or "projects"
            considered.append(ClauseResult(rule.id, True, position, holds, note, rule.shadow))
            if holds and rule.shadow:
                forbids = forbids or rule.id
            elif holds and refusal is None:
                # A place that the request does not name need not be hidden: the refusal is about the operation.
                verdict = Verdict.UNKNOWN_PLACE if touches and clause.hides_place else Verdict.DENIED
                refusal = _Outcome(verdict, rule=rule.id)
    hidden = _place_denies(own, operation, access, target, method) if listed else ()

    for compiled in rules if brokered else ():
        rule = compiled.rule
        free = confined = False
        shown: list[Matcher] = []
        for position, clause in enumerate(compiled.allow):
            why = clause.refuses(operation, access, target, method, deny=False)
            fit = Fit.NO if why else clause.may_reach(operation, things, resolved, screened)
            filters = False
            if fit is not Fit.YES and listed and not why:
                fit = clause.may_narrow(things, resolved)
                filters = fit is Fit.YES
            holds = fit is Fit.YES
            unsure |= fit is Fit.UNSURE
            note = "unresolved" if fit is Fit.UNSURE else "" if holds else why or "projects"
            considered.append(ClauseResult(rule.id, False, position, holds, note, rule.shadow))
            if rule.shadow:
                permits = permits or (rule.id if holds else "")
            else:
                free |= holds and not clause.by_project
                confined |= holds and clause.by_project and not filters
                if holds:
                    shown.append(clause)
                elsewhere |= not holds and not why and (keeps_to_place(operation, screened) or (listed and clause.narrows))
        if shown:
            narrowing = Narrowing(tuple(shown), hidden) if hidden or not (free or confined) else None
            grants.append((compiled, not free, narrowing))

    shadow = "" if refusal is not None else forbids
    if refusal is None and brokered and not grants:
        shadow = "" if forbids else permits
        refusal = _Outcome(Verdict.UNKNOWN_PLACE if elsewhere else Verdict.NOT_ALLOWED)
    narrowing = Narrowing((_EVERYTHING,), hidden) if hidden and not brokered else None
    outcome = refusal or _Outcome(Verdict.ALLOWED, tuple(grants), narrowing=narrowing)
    # GitLab is asked about a place that may have moved, although its path as spelt is allowed. If the credential may not
    # know the place, that decision stands.
    moves = outcome is not refusal and brokered and own.by_project
    needed = dict.fromkeys(thing.lookup for thing in things if unsure or (moves and thing.follows))
    open_lookups = tuple(lookup for lookup in needed if lookup is not None and lookup not in resolved)
    return msgspec.structs.replace(outcome, shadow=shadow, considered=tuple(considered), lookups=open_lookups)


def _place_denies(own: _RuleSet, operation: Operation, access: Access, target: Target, method: str) -> tuple[Matcher, ...]:
    """The denies by project that apply to this operation: what they hide is hidden in its answer, too."""
    return tuple(
        clause
        for compiled in own.rules
        if not compiled.rule.shadow
        for clause in compiled.deny
        if clause.by_project and not clause.refuses(operation, access, target, method, deny=True)
    )


def _permit(outcome: _Outcome, own: _RuleSet, principal: Principal, sudo: str | None) -> Permit:
    """The permit of the first rule that allows the request and lets the caller act as ``sudo``. Raises Rejection."""
    if not principal.brokered:
        permit = _UNRULED[principal.kind]
        if own.denies_by_project:
            permit = msgspec.structs.replace(permit, confined=True, narrowing=outcome.narrowing)
    else:
        user = sudo.strip().lower() if sudo else ""
        for compiled, confined, narrowing in outcome.grants:
            if not user or user in compiled.sudo:
                # A deny by project, too, is only effective if the body can't reach what the path does not name.
                permit = compiled.confined if confined or own.denies_by_project else compiled.free
                if narrowing is not None:
                    permit = msgspec.structs.replace(permit, narrowing=narrowing)
                break
        else:
            raise Rejection(Code.SUDO_FORBIDDEN, 403, "403 Forbidden - Must be admin to use sudo")
    if sudo or outcome.shadow:
        return msgspec.structs.replace(permit, sudo=sudo or "", shadow=outcome.shadow)
    return permit


_PLACES = {ReferenceKind.PROJECT: "Project", ReferenceKind.GROUP: "Group", ReferenceKind.NAMESPACE: "Namespace"}


def _refusal(verdict: Verdict, shadow: str, operation: Operation | None = None, rule: str = "") -> Rejection:
    if verdict is Verdict.UNKNOWN_PLACE:
        kinds = [reference.kind for reference in operation.references] if operation is not None else []
        place = next((_PLACES[kind] for kind in kinds if kind in _PLACES), "Project")
        return Rejection(Code.PROJECT_UNKNOWN, 404, f"404 {place} Not Found", rule=rule, shadow=shadow)
    return Rejection(
        Code.FORBIDDEN,
        403,
        "403 Forbidden - Not allowed by the gateway's rules",
        proxy_error="http_request_denied",
        rule=rule,
        shadow=shadow,
    )

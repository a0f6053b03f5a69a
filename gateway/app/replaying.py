"""``replay``: what a configuration would have decided about past requests, from their audit lines alone.

Only the rules are applied anew, to callers as they were recognised then. A line does not tell what was in a body, under
what other names GitLab knows a project, or what a workload's token said; where that could matter, the result is
``Unclear``.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from .. import routes
from ..config import Config
from ..config import compile as compiled
from ..core.access import Permit, Principal, PrincipalKind, Rules
from ..core.catalogue import SAFE_METHODS, Access, Operation
from ..core.errors import Code, Rejection
from ..core.narrowing import item_kind_of
from ..core.redaction import MASK
from ..core.request_intent import is_decided_by_body
from ..core.rule_match import named
from ..core.target import Target, parse_target
from ..core.token_answers import check_token_service
from ..identity.settings import Networks, Passthrough

ALLOWED, UNAUTHENTICATED = "allowed", Code.UNAUTHENTICATED.value
_OF_RULES = frozenset({Code.FORBIDDEN.value, Code.PROJECT_UNKNOWN.value, Code.SUDO_FORBIDDEN.value})
_OF_BODIES = frozenset({Code.PROJECT_UNKNOWN.value, Code.SUDO_FORBIDDEN.value})
_KINDS_BOUND = 10_000


class Unclear(enum.StrEnum):
    """Why an audit line does not suffice to tell what would be decided."""

    TARGET = "its target was not written down whole"
    BODY = "its body decides"
    PLACE = "GitLab would have to say which project or group it names"
    CREDENTIAL = "not every credential passes through any more"


class Decision(msgspec.Struct, frozen=True):
    """What became of a request, or would become of it."""

    verdict: str
    """``allowed``, or an error code."""
    rule: str = ""
    credential: str = ""
    """The credential that GitLab sees instead of the caller's."""

    def __str__(self) -> str:
        how = " ".join(
            part for part in (self.rule and f"by {self.rule}", self.credential and f"as {self.credential}") if part
        )
        return f"{self.verdict} {how}".rstrip()

    def differs(self, other: Decision) -> bool:
        """Whether the caller or GitLab would notice a difference: another rule that decides the same makes none."""
        return (self.verdict, self.credential) != (other.verdict, other.credential)


class Kind(msgspec.Struct, frozen=True):
    """Requests whose decision would differ or is unclear, and which are alike in everything reported about them."""

    identity: str
    method: str
    operation: str
    project: str
    was: Decision
    now: Decision | Unclear


class Found(msgspec.Struct):
    """How many requests of a kind were found, and the first of them."""

    kind: Kind
    times: int
    request_id: str
    at: str


class _Line(msgspec.Struct):
    """The fields that are read from an audit line. The operator's log is JSON, too, but has no ``schema``."""

    schema: Literal[1]
    method: str = ""
    target: str = ""
    event: str = ""
    time: str = ""
    request_id: str = ""
    peer: str = ""
    identity: str = ""
    principal: str = ""
    principal_kind: str = ""
    rule: str = ""
    code: str = ""
    sudo: str = ""
    upstream_credential: str = ""


_decode = msgspec.json.Decoder(_Line).decode


class Replay:
    """Judges any number of audit lines by one configuration, in bounded memory."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._prefix = config.upstream.url.path.encode()
        self._rules = Rules.compile(compiled.rules(config))
        self._catalogue = routes.catalogue()
        self._identities = {one.id: one for one in config.identities}
        self._networks = {
            one.id: Networks(tuple(map(str, one.bind.cidr)) if one.bind is not None else ()) for one in config.identities
        }
        self._kinds: dict[Kind, Found] = {}
        self.same = 0
        self.different = 0
        self.bodies_searched = 0
        """Of those that would be allowed: their bodies would be searched for other projects, and they might be refused for
        one."""
        self.unclear: Counter[Unclear] = Counter()
        self.unjudged = 0
        """Lines about requests that never got as far as the rules, about the audit itself, hooks and operators' changes."""
        self.unreadable = 0

    def run(self, lines: Iterable[bytes]) -> Iterator[Found]:
        """Yield what differs or is unclear, each kind once; where there are more than 10,000 kinds, some come again."""
        for line in lines:
            self._take(line)
            if len(self._kinds) >= _KINDS_BOUND:
                yield from self._flush()
        yield from self._flush()

    def _flush(self) -> Iterator[Found]:
        kinds, self._kinds = self._kinds, {}
        yield from kinds.values()

    def _take(self, line: bytes) -> None:
        try:
            past = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.unreadable += 1
            return
        was = _past_decision(past)
        if was is None:
            self.unjudged += 1
            return
        target, operation = self._parsed(past)
        now = self._decide(past, was, target, operation) if target is not None and operation is not None else Unclear.TARGET
        if isinstance(now, Unclear):
            self.unclear[now] += 1
        elif was.differs(now):
            self.different += 1
        else:
            self.same += 1
            return
        places = [thing.spelt for thing in named(operation, target)] if operation is not None and target is not None else []
        kind = Kind(
            past.identity, past.method, operation.name if operation is not None else "", (places or [""])[0] or "", was, now
        )
        found = self._kinds.setdefault(kind, Found(kind, 0, past.request_id, past.time))
        found.times += 1

    def _parsed(self, past: _Line) -> tuple[Target | None, Operation | None]:
        path = past.target.partition("?")[0]
        if MASK.decode() in path:
            return None, None
        try:
            target = parse_target(past.target.encode("utf-8", "surrogateescape"), prefix=self._prefix)
        except Rejection:
            return None, None
        return target, self._catalogue.match(past.method, target)

    def _decide(self, past: _Line, was: Decision, target: Target, operation: Operation) -> Decision | Unclear:
        principal = self._principal(past)
        if principal is None:
            return Decision(UNAUTHENTICATED)
        decided = self._decide_by_rules(past, principal, target, operation)
        if isinstance(decided, Unclear):
            return decided
        permit, now = decided
        if permit is None:
            return now
        if principal.kind is PrincipalKind.PASSTHROUGH and len(set(self._config.passthrough)) < len(Passthrough):
            return Unclear.CREDENTIAL
        if past.method not in SAFE_METHODS:
            if was.verdict in _OF_BODIES and was.rule == permit.rule:
                return Unclear.BODY  # refused for what its body named, by a rule that allowed the rest
            self.bodies_searched += permit.confined and operation.names_in_body
        return now

    def _decide_by_rules(
        self, past: _Line, principal: Principal, target: Target, operation: Operation
    ) -> tuple[Permit | None, Decision] | Unclear:
        if is_decided_by_body(operation):
            # A query reads and everything else writes, and only the body says which it was.
            decisions = {
                self._judge(past, principal, target, msgspec.structs.replace(operation, access=access)) for access in Access
            }
            return decisions.pop() if len(decisions) == 1 else Unclear.BODY
        permit, now = self._judge(past, principal, target, operation)
        open_ = permit is None or past.code == Code.PROJECT_UNKNOWN.value  # either may hang on GitLab's answer
        if open_ and self._rules.lookups(principal, operation, target, past.method, screened=True):
            return Unclear.PLACE
        return permit, now

    def _judge(
        self, past: _Line, principal: Principal, target: Target, operation: Operation
    ) -> tuple[Permit | None, Decision]:
        try:
            permit = self._rules.authorise(principal, operation, target, past.method, past.sudo or None, screened=True)
            if principal.brokered:
                check_token_service(operation, target, has_body=False)
        except Rejection as rejection:
            return None, Decision(rejection.code.value, rejection.rule)
        if permit.narrowing is not None and item_kind_of(operation, target) is None:
            return None, Decision(Code.FORBIDDEN.value)
        return permit, Decision(ALLOWED, permit.rule, permit.use)

    def _principal(self, past: _Line) -> Principal | None:
        """The caller as this configuration knows them; None: it does not know them."""
        kind = PrincipalKind(past.principal_kind)
        if kind is PrincipalKind.PASSTHROUGH:
            return Principal(past.principal, kind, "passthrough")
        if kind in {PrincipalKind.KEY, PrincipalKind.OIDC}:
            identity = self._identities.get(past.identity)
        else:  # there is at most one identity of each of these kinds, whatever its id is now
            identity = next((one for one in self._config.identities if one.kind is kind), None)
        if identity is None or identity.kind is not kind or past.peer not in self._networks[identity.id]:
            return None
        return Principal(past.principal, kind, identity.id)


def _past_decision(past: _Line) -> Decision | None:
    """What was decided then; None: the rules were not consulted, or the line is not about a request."""
    if past.event or not past.target or past.principal_kind not in _PRINCIPALS:
        return None
    if past.code in _OF_RULES:
        return Decision(past.code, past.rule)
    use = past.upstream_credential.partition("/")[0]  # a line names the member of a pool, but a rule names the pool
    return Decision(ALLOWED, past.rule, use) if past.rule else None


_PRINCIPALS = frozenset(kind.value for kind in PrincipalKind)

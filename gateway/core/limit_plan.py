"""Which buckets a request takes from, and at what cost: the configured limits, compiled."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping

from .access import Principal, PrincipalKind
from .catalogue import Operation, ReferenceKind
from .cost import Weights
from .limits import EVERY, MOST_BURST, MOST_RATE, Limit, Scope, Take, Takes, Validity
from .peer_guard import subject as address_subject
from .project_names import ProjectNames
from .rule_match import Clause, Matcher, spelt_in_path
from .target import Target

KEY_BYTES = 200
"""No bucket's key is longer than this."""
_PREFIX = "{gw}:b:"
# One hash tag for all buckets: a request's buckets must all be in one slot of a Redis Cluster to be taken from in one step,
# and the organisation's bucket is part of every request. Other data of the gateway is free to live elsewhere.
_LIMIT_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN_SUBJECT = re.compile(r"(?!#)[\x21-\x7e]{1,100}")
_MEMO_BOUND = 4096
_MEMO_NAME = 512
"""The most characters of a project's name in the memo: the takes for a longer one are worked out anew each time."""
_OVER = Validity(over=True)
_PLACES = (ReferenceKind.PROJECT,)


class _Tariff:
    """The limits that apply to one class of requests, each with its cost."""

    __slots__ = ("by_project", "charges")

    def __init__(self, charges: tuple[tuple[Limit, float], ...]) -> None:
        self.charges = charges
        self.by_project = any(limit.by is Scope.PROJECT for limit, _ in charges)


class _LimitMatcher:
    __slots__ = ("access", "limit", "matcher")

    def __init__(self, limit: Limit) -> None:
        match = limit.match
        self.limit = limit
        self.access = match.access
        self.matcher = Matcher(Clause(methods=match.methods, routes=match.routes, surfaces=match.surfaces))

    def holds(self, operation: Operation, target: Target, method: str) -> bool:
        if self.access is not None and operation.access is not self.access:
            return False
        return not self.matcher.refuses(operation, operation.access, target, method, deny=False)


class Limits:
    """The configured limits, compiled. ``takes_for`` costs two dictionary look-ups for a recently seen caller."""

    def __init__(self, limits: tuple[Limit, ...], weights: Weights, names: ProjectNames) -> None:
        self.limits = limits
        self._weights = weights
        self._names = names
        self._matched = tuple(_LimitMatcher(limit) for limit in limits)
        self._alike = all(limit.match == EVERY and not limit.weighted for limit in limits)
        enforced = [limit for limit in limits if not limit.shadow and not limit.concurrent]
        ranked = sorted(enforced, key=_rank)
        self.rank = {limit.id: place for place, limit in enumerate(ranked)}
        """Limit id → its rank in the choice of the rate that is sent as a caller's quota, best first: the limit that
        advertises, then those by caller, then the rest in order; limits on some requests rank behind those on all."""
        self.advertised: Limit | None = ranked[0] if ranked else None
        self._tariffs: dict[tuple[str, str, str, str], _Tariff] = {}
        self._memo: dict[tuple[str, str, str, str, str, _Tariff], Takes] = {}
        self._shared: dict[tuple[tuple[Limit, float], ...], _Tariff] = {}
        self._changed: dict[str, Limit | None] = {}
        self._validity = Validity()
        self._everything = _Tariff(tuple([(limit, 1.0) for limit in limits]))

    @classmethod
    def compile(
        cls, limits: Iterable[Limit], weights: Mapping[str, float] | None = None, names: ProjectNames | None = None
    ) -> Limits:
        """Compile the limits. ``names``, which others fill, tell which path is which project.

        Raises ValueError for a limit that no bucket can hold, and for a malformed route.
        """
        compiled = tuple(limits)
        seen = set[str]()
        for limit in compiled:
            if not _LIMIT_ID.fullmatch(limit.id):
                raise ValueError(f"limit {limit.id[:64]!r}: an id is letters, digits, '_', '.', '-', at most 64")
            if limit.id in seen:
                raise ValueError(f"limit {limit.id}: the id is taken")
            seen.add(limit.id)
            if not (0 < limit.rate <= MOST_RATE and 1 <= limit.burst <= MOST_BURST and 0 < limit.period_s < math.inf):
                most = f"at most {MOST_RATE:.0f}, the burst from 1 to {MOST_BURST:.0f}"
                raise ValueError(f"limit {limit.id}: the rate must be above 0 and {most}")
        return cls(compiled, Weights(weights or {}), ProjectNames() if names is None else names)

    def takes_for(self, principal: Principal, operation: Operation, target: Target, method: str, peer: str) -> Takes:
        """The takes of one request, in the configured order; empty if no limit applies."""
        tariff = self._everything if self._alike else self._tariff(operation, target, method)
        unnamed = principal.kind is PrincipalKind.ANONYMOUS or principal.kind is PrincipalKind.PASSTHROUGH
        project = self._project(operation, target) if tariff.by_project else ""
        seen = (peer if unnamed else principal.id, principal.kind, principal.team, principal.identity, project, tariff)
        takes = self._memo.get(seen)
        if takes is None:
            found = _takes(tariff, principal, address_subject(peer) if unnamed else "", project)
            # Which project a path names may be learnt at any moment, so those takes are looked up anew for each request.
            takes = Takes(
                self._as_changed(found) if self._changed else found, _OVER if tariff.by_project else self._validity
            )
            if len(self._memo) >= _MEMO_BOUND:
                self._memo.clear()
            if len(project) <= _MEMO_NAME:
                self._memo[seen] = takes
        return takes

    def change(self, key: str, limit: Limit | None) -> None:
        """Apply ``limit`` to one bucket instead of the configured one, until ``restore``; None: no limit at all."""
        self._changed[key] = limit
        self._expire_takes()

    def restore(self, key: str) -> None:
        """Apply the configured limit to a bucket again."""
        self._changed.pop(key, None)
        self._expire_takes()

    def _expire_takes(self) -> None:
        self._memo.clear()
        self._validity.over = True
        self._validity = Validity()

    def _project(self, operation: Operation, target: Target) -> str:
        """The project of the path by its number, or as it is spelt there until an answer has told the number: GitLab is not
        asked only for a limit. All spellings that can't be a project's share one bucket."""
        for reference in operation.references:
            if reference.kind in _PLACES:
                spelt = spelt_in_path(reference, target.segments) or "?"
                number = self._names.number_of(spelt.encode())
                return number.decode() if number is not None else spelt
        return ""

    def _as_changed(self, takes: list[Take]) -> list[Take]:
        found = [(take, self._changed.get(take.key, take.limit)) for take in takes]
        return [Take(take.key, limit, take.cost) for take, limit in found if limit is not None]

    def _tariff(self, operation: Operation, target: Target, method: str) -> _Tariff:
        key = (operation.name, method, operation.access.value, operation.surface.value)
        tariff = self._tariffs.get(key) if operation.known else None
        if tariff is None:
            weight = self._weights.of(operation, method)
            tariff = _Tariff(
                tuple(
                    [
                        (one.limit, weight if one.limit.weighted else 1.0)
                        for one in self._matched
                        if one.holds(operation, target, method)
                    ]
                )
            )
            # Operations that the catalogue doesn't know match by their path: few different tariffs, however many paths.
            tariff = self._shared.setdefault(tariff.charges, tariff)
            if operation.known:
                if len(self._tariffs) >= _MEMO_BOUND:
                    self._tariffs.clear()
                self._tariffs[key] = tariff
        return tariff


def bucket_key(limit_id: str, subject: str) -> str:
    """The key of ``subject``'s bucket under a limit: short, printable, and different for each subject."""
    if not _PLAIN_SUBJECT.fullmatch(subject):
        subject = "#" + hashlib.blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{_PREFIX}{limit_id}:{subject}"


def parse_bucket_key(key: str) -> tuple[str, str]:
    """The limit's id and the subject (or its hash) in a bucket's key; two empty strings if it is not such a key."""
    if not key.startswith(_PREFIX) or len(key) > KEY_BYTES:
        return "", ""
    limit_id, _, subject = key[len(_PREFIX) :].partition(":")
    return limit_id, subject


def _rank(limit: Limit) -> tuple[bool, bool, bool]:
    return (not limit.advertise, limit.match != EVERY, limit.by is not Scope.CALLER)


def _takes(tariff: _Tariff, principal: Principal, address: str, project: str) -> list[Take]:
    subjects = {
        Scope.CALLER: f"{principal.kind.value}:{address}" if address else principal.id,
        Scope.IDENTITY: principal.identity,
        Scope.TEAM: principal.team,
        Scope.ADDRESS: address,
        Scope.ORGANISATION: "all",
        Scope.PROJECT: project,
    }
    return [
        Take(bucket_key(limit.id, subjects[limit.by]), limit, cost) for limit, cost in tariff.charges if subjects[limit.by]
    ]

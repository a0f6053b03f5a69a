"""What an operator should look at in valid rules: clauses without effect, and rules that get in each other's way."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from operator import itemgetter

import msgspec

from .catalogue import Catalogue, Operation
from .narrowing import is_list
from .route_tree import split
from .rule_match import Clause, Lists, Matcher, Projects, Rule, names_place, parse_route, reaches_beyond, shapes_of
from .target import Target

_NOWHERE = Target(b"/", b"/", None, ())
_BEST_KNOWN = ("POST /api/graphql", "GET /api/v4/events")


class RuleFinding(msgspec.Struct, frozen=True):
    """One thing to look at, and the clause it is about."""

    rule: int
    """The index of the rule."""
    deny: bool
    clause: int
    """The index of the clause among the rule's allows or denies."""
    message: str


def review_rules(rules: Sequence[Rule], catalogue: Catalogue) -> list[RuleFinding]:
    """All things to look at, in the order of the rules."""
    return list(_Review(catalogue).look(rules))


def suggestion(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message about ``name``, suggesting which of ``names`` may be meant; empty if none resembles it."""
    found = difflib.get_close_matches(name, list(names), 1, cutoff)
    return f"; did you mean `{found[0]}`?" if found else ""


def unmatched_route_message(route: str, catalogue: Catalogue, hint: str) -> str:
    """Why a route, of a rule or a limit, holds for no operation of the catalogue; empty if it holds for one. ``hint``:
    where to put the projects that the route names."""
    method, template = parse_route(route)
    probe = Matcher(Clause(routes=(route,)))
    if any(not one.blocked and not _refused(probe, one, deny=False) for one in catalogue.operations()):
        return ""
    found = catalogue.find("GET" if method == "ANY" else method, split(template))
    if found is None or template.endswith("/**"):
        known = () if template.endswith("/**") else catalogue.operations()
        names = [one.name.partition(" ")[2] if method == "ANY" else one.name for one in known]
        return f"route `{route}` is not in the catalogue: it matches only if GitLab adds it{suggestion(route, names, 0.9)}"
    return f"route `{route}` never matches: the catalogue calls it `{found.name}`; {hint}"


class _Review:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._operations = [operation for operation in catalogue.operations() if not operation.blocked]
        self._permissions = sorted({name for operation in self._operations for name in operation.permissions})
        self._selected: dict[tuple[bytes, bool], frozenset[str]] = {}
        self._picked: dict[tuple[bytes, bool], tuple[Operation, ...]] = {}
        self._unmatched_route = cache(
            partial(unmatched_route_message, catalogue=catalogue, hint="name projects in `projects`")
        )
        self._suggestion = cache(partial(suggestion, names=self._permissions))
        self._far = frozenset(one.name for one in self._operations if reaches_beyond(one) and not is_list(one))
        """Names of the operations that a deny by project always refuses, if its other conditions hold for them."""

    def look(self, rules: Sequence[Rule]) -> Iterator[RuleFinding]:
        numbered = list(enumerate(rules))
        for number, rule in numbered:
            for deny, position, clause in _clauses(rule):
                yield from (RuleFinding(number, deny, position, message) for message in self._clause(clause, deny))
        by_identity: dict[str, list[tuple[int, Rule]]] = {}
        for number, rule in numbered:
            for identity in dict.fromkeys(rule.identities):
                by_identity.setdefault(identity, [])
                if not rule.shadow:
                    by_identity[identity].append((number, rule))
        reported: set[RuleFinding] = set()
        for together in by_identity.values():
            for finding in self._review_identity(together):
                if finding not in reported:
                    reported.add(finding)
                    yield finding

    # One clause

    def _clause(self, clause: Clause, deny: bool) -> Iterator[str]:
        for permission in clause.permissions or ():
            if permission not in self._permissions:
                yield f"permission `{permission}` belongs to no operation of the catalogue{self._suggestion(permission)}"
        for route in clause.routes or ():
            found = self._unmatched_route(route)
            if found:
                yield found
        if clause.lists is Lists.FILTER:
            yield from self._lists(clause, deny)
        if deny:
            groups = clause.projects.under_group if clause.projects is not None else ()
            if any(group.isdigit() for group in groups) and any(is_list(one) for one in self._chosen(clause, deny)):
                yield "leaves nothing of the lists that it filters: name groups by path, not by number"
            return
        unbounded = clause.access is None and clause.methods is None and clause.permissions is None
        if unbounded and any(parse_route(route)[0] == "ANY" for route in clause.routes or ("/",)):
            yield "allows writes too: say `access: read` if only reading is meant"
        if (
            clause.projects is not None
            and clause.lists is not Lists.FILTER
            and not any(names_place(operation) and not operation.wide for operation in self._chosen(clause, deny))
        ):
            yield "never holds: no operation that it selects stays within a project or group named in its path"

    def _lists(self, clause: Clause, deny: bool) -> Iterator[str]:
        if deny or clause.projects is None:
            yield "`lists: filter` has no effect: it narrows what an allow with `projects` lets through"
        elif not any(is_list(operation) for operation in self._chosen(clause, deny)):
            yield "`lists: filter` has no effect: it selects no list that can be filtered"
        elif any(group.isdigit() for group in clause.projects.under_group):
            yield "`lists: filter` shows nothing of a group named by number: name it by path"

    # The rules of one identity

    def _review_identity(self, rules: Sequence[tuple[int, Rule]]) -> Iterator[RuleFinding]:
        clauses = [(number, rule, *clause) for number, rule in rules for clause in _clauses(rule)]
        allows = [(number, rule, position, clause) for number, rule, deny, position, clause in clauses if not deny]
        denies = [(rule, clause) for _, rule, deny, _, clause in clauses if deny]
        before = _EarlierAllows()
        for number, rule, position, clause in allows:
            mine = self._select(clause, deny=False)
            for other, refusal in denies:
                if mine and refusal.projects is None and mine <= self._select(refusal, deny=True):
                    yield RuleFinding(number, False, position, f"never holds: rule `{other.id}` denies all of it")
                    break
            hidden = before.hides(mine, rule, clause)
            if hidden:
                yield RuleFinding(number, False, position, hidden)
            before.add(mine, rule, clause)
        for number, _, position, clause in allows:
            lost = self._lost_to_denies(self._select(clause, deny=False), denies) if clause.projects is None else ""
            if lost:
                yield RuleFinding(number, False, position, lost)

    def _lost_to_denies(self, mine: frozenset[str], denies: Sequence[tuple[Rule, Clause]]) -> str:
        """What an allow without projects loses to the first deny by project that takes any of it away; empty: nothing."""
        for other, refusal in denies:
            lost = mine & self._far & self._select(refusal, deny=True) if refusal.projects is not None else frozenset()
            if lost:
                example = next((name for name in _BEST_KNOWN if name in lost), min(lost))
                much = f"{len(lost)} of its operations, `{example}` among them," if lost < mine else "all of it"
                return f"rule `{other.id}` denies {much} because more may be reached than the path names"
        return ""

    def _select(self, clause: Clause, *, deny: bool) -> frozenset[str]:
        key = _key(clause, deny)
        if key not in self._selected:
            self._selected[key] = frozenset(operation.name for operation in self._chosen(clause, deny))
        return self._selected[key]

    def _chosen(self, clause: Clause, deny: bool) -> Iterable[Operation]:
        key = _key(clause, deny)
        if key not in self._picked:
            probe = Matcher(clause)
            self._picked[key] = tuple(one for one in self._operations if not _refused(probe, one, deny=deny))
        return self._picked[key]


class _EarlierAllows:
    """The allows of an identity that precede another: only the first of each kind, since thousands may select the same."""

    def __init__(self) -> None:
        self._count = 0
        self._by_projects: dict[Projects | None, dict[frozenset[str], tuple[int, Rule]]] = {}
        self._by_use: dict[str, dict[frozenset[str], tuple[int, Rule]]] = {}

    def add(self, selected: frozenset[str], rule: Rule, clause: Clause) -> None:
        place = (self._count, rule)
        self._by_projects.setdefault(clause.projects, {}).setdefault(selected, place)
        self._by_use.setdefault(rule.use, {}).setdefault(selected, place)
        self._count += 1

    def hides(self, mine: frozenset[str], rule: Rule, clause: Clause) -> str:
        """What the first of them that matters does to an allow that selects ``mine``; empty: nothing."""
        covering = [
            place
            for projects in {None, clause.projects}
            for theirs, place in self._by_projects.get(projects, {}).items()
            if mine and mine <= theirs
        ]
        others = [places for use, places in self._by_use.items() if use != rule.use]
        overlapping = [place for places in others for theirs, place in places.items() if mine & theirs]
        first = min(covering + overlapping, key=itemgetter(0), default=None)
        if first is None:
            return ""
        other = first[1]
        if first in covering:
            return f"never decides: rule `{other.id}` before it allows all of it"
        return f"overlaps rule `{other.id}`, whose credential `{other.use}` is used where both hold"


def _key(clause: Clause, deny: bool) -> tuple[bytes, bool]:
    """A key shared by all clauses that select the same operations, in whichever projects."""
    return msgspec.json.encode(msgspec.structs.replace(clause, projects=None, lists=Lists.REFUSE)), deny


def _clauses(rule: Rule) -> Iterator[tuple[bool, int, Clause]]:
    for deny, clauses in ((False, rule.allow), (True, rule.deny)):
        for position, clause in enumerate(clauses):
            yield deny, position, clause


def _refused(probe: Matcher, operation: Operation, *, deny: bool) -> str:
    method = shapes_of(operation.name)[0]
    return probe.refuses(operation, operation.access, _NOWHERE, method, deny=deny)

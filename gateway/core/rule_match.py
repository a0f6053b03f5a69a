"""Matching one clause of a rule against one request: the conditions that an operator writes, compiled.

Conditions on *what is asked* (class, method, route, permission, surface) are decided by the operation. Conditions on *which
project* have three outcomes: a number can't be compared with a path without asking GitLab, and what can't be decided is
allowed by no ``allow`` and caught by every ``deny``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from .catalogue import SAFE_METHODS, Access, Operation, Reference, ReferenceKind, Surface
from .globs import Globs
from .query import query_parameters
from .route_tree import RouteTree, expand, split, template_shape
from .target import Target


class Projects(msgspec.Struct, frozen=True):
    """Which projects a clause is about; one entry that fits is enough."""

    named: tuple[str, ...] = ()
    """Numbers, full paths, or paths with ``*`` (within one segment) and ``**`` (across)."""
    under_group: tuple[str, ...] = ()
    """Groups by number or full path: the group itself, its subgroups at any depth, and every project in them."""


class Lists(enum.StrEnum):
    """What happens to lists that show more than a clause's projects."""

    REFUSE = "refuse"
    FILTER = "filter"


class Clause(msgspec.Struct, frozen=True):
    """Conditions that must all hold. One that is left out (None) holds."""

    access: Access | None = None
    """``write`` includes read."""
    methods: tuple[str, ...] | None = None
    routes: tuple[str, ...] | None = None
    """``/template`` or ``METHOD /template``, matched as a whole; a final ``**`` stands for any remainder."""
    permissions: tuple[str, ...] | None = None
    surfaces: tuple[Surface, ...] | None = None
    projects: Projects | None = None
    lists: Lists = Lists.REFUSE
    """For an allow with projects: ``filter`` passes the lists that ``narrowing`` knows, without other projects' items."""


class Rule(msgspec.Struct, frozen=True):
    """Who may do what, and as whom GitLab sees them."""

    id: str
    identities: tuple[str, ...]
    use: str = ""
    allow: tuple[Clause, ...] = ()
    deny: tuple[Clause, ...] = ()
    sudo: tuple[str, ...] = ()
    """Users (names or numbers) that a caller may act as; empty: none."""
    shadow: bool = False


class PlaceLookup(msgspec.Struct, frozen=True):
    """What only GitLab can tell: the other name of this project or group."""

    kind: ReferenceKind
    spelt: str
    """Digits without leading zeros, or a full path in lower case."""


class Place(msgspec.Struct, frozen=True):
    """GitLab's answer to a :class:`PlaceLookup`."""

    id: str
    path: str
    """The full path, in any case."""
    group_ids: tuple[str, ...] = ()
    """The numbers of the groups around it, for rules that name a group by number."""


Resolved = Mapping[PlaceLookup, Place]


class Fit(enum.Enum):
    """Whether a reference is one of a clause's projects."""

    YES = "yes"
    NO = "no"
    UNSURE = "unsure"


class NamedPlace(msgspec.Struct, frozen=True):
    """Something that a request names, read from its path or its query."""

    kind: ReferenceKind
    spelt: str | None
    """The name as a :class:`PlaceLookup` spells it; None if it is neither a number nor a path that GitLab could know."""
    follows: bool = False
    """GitLab silently accepts a former path here, as for Git and LFS: only GitLab can tell where the project is now."""

    @property
    def lookup(self) -> PlaceLookup | None:
        """Its look-up at GitLab; None if there is nothing to look up."""
        return None if self.spelt is None else PlaceLookup(self.kind, self.spelt)


# What a request names ------------------------------------------------------------------------------------------------

_PATH = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
_FORMAT = re.compile(r"\.[A-Za-z0-9]+")
_FOLLOWING = frozenset({Surface.GIT, Surface.LFS})
_POLICED = frozenset({ReferenceKind.PROJECT, ReferenceKind.GROUP, ReferenceKind.NAMESPACE})

PARAMETERS: Mapping[bytes, ReferenceKind] = {
    b"project_id": ReferenceKind.PROJECT,
    b"project_ids": ReferenceKind.PROJECT,
    b"project": ReferenceKind.PROJECT,
    b"projects": ReferenceKind.PROJECT,
    b"project_path": ReferenceKind.PROJECT,
    b"source_project_id": ReferenceKind.PROJECT,
    b"target_project_id": ReferenceKind.PROJECT,
    b"target_project": ReferenceKind.PROJECT,
    b"from_project_id": ReferenceKind.PROJECT,
    b"to_project_id": ReferenceKind.PROJECT,
    b"start_project": ReferenceKind.PROJECT,
    b"forked_from_id": ReferenceKind.PROJECT,
    b"template_project_id": ReferenceKind.PROJECT,
    b"source_template_project_id": ReferenceKind.PROJECT,
    b"group_id": ReferenceKind.GROUP,
    b"group_ids": ReferenceKind.GROUP,
    b"group": ReferenceKind.GROUP,
    b"group_path": ReferenceKind.GROUP,
    b"target_group_id": ReferenceKind.GROUP,
    b"group_with_project_templates_id": ReferenceKind.GROUP,
    b"namespace": ReferenceKind.NAMESPACE,
    b"namespace_id": ReferenceKind.NAMESPACE,
    b"namespace_path": ReferenceKind.NAMESPACE,
}
"""The parameters by which an operation reaches a project or group other than its path's."""


def normalise_spelling(value: str) -> str | None:
    """``value`` as a :class:`PlaceLookup` spells it; None if GitLab may read it in its own way.

    GitLab takes any line of digits for an id and casts it: ``0042`` is 42, and so is ``42%0Ax``, by a multi-line anchor.
    The first is normalised here; the second is no path and stays undecidable.
    """
    if value.isascii() and value.isdigit():
        return value.lstrip("0") or "0"
    return value.lower() if _PATH.fullmatch(value) else None


def spelt_in_path(reference: Reference, segments: tuple[str, ...]) -> str | None:
    """As :func:`normalise_spelling`, for a reference in the path. If the reference spans segments, GitLab looks up paths
    only: ``/42.git`` is not project 42, and what belongs to a group named 42 is undecidable."""
    spelt = normalise_spelling(reference.value(segments))
    return None if reference.end and spelt is not None and spelt.isdigit() else spelt


def _place_in_path(reference: Reference, spelt: str | None, follows: bool) -> NamedPlace:
    # No project is outside a namespace: ``/platform.wiki.git`` is a group's.
    alone = reference.end and spelt is not None and "/" not in spelt
    return NamedPlace(ReferenceKind.GROUP if alone else reference.kind, spelt, follows)


def named(operation: Operation, target: Target) -> tuple[NamedPlace, ...]:
    """Every project and group that the request names, first those in its path, then those in its query."""
    segments = target.segments
    follows = operation.surface in _FOLLOWING
    found = [
        _place_in_path(reference, spelt_in_path(reference, segments), follows)
        for reference in operation.references
        if reference.kind in _POLICED
    ]
    if target.query and _SUSPECT.search(target.query):
        found += _places_in_query(target.query)
    return tuple(found)


def lookups_of(operation: Operation, target: Target) -> tuple[PlaceLookup, ...]:
    """The look-ups at GitLab of the places that the request names, because its body may use their other names."""
    lookups = dict.fromkeys(thing.lookup for thing in named(operation, target))
    return tuple(lookup for lookup in lookups if lookup is not None)


PlaceSpelling = tuple[bool, str]
"""Whether it is a project, and how it is spelt: 42 may be a project's number or a namespace's, two different things."""


def spellings(operation: Operation, target: Target, resolved: Resolved) -> frozenset[PlaceSpelling]:
    """How a body may spell the places that the request's path and query already name."""
    allowed: set[PlaceSpelling] = set()
    for thing in named(operation, target):
        if thing.spelt is None:
            continue
        is_project = thing.kind is ReferenceKind.PROJECT
        allowed.add((is_project, thing.spelt))
        place = resolved.get(PlaceLookup(thing.kind, thing.spelt))
        if place is not None:
            allowed |= {(is_project, place.id), (is_project, place.path.lower())}
    return frozenset(allowed)


def parameter_spelling(parameter: str, value: str) -> PlaceSpelling | None:
    """What a parameter of ``PARAMETERS`` names by ``value``; None if GitLab may read it in its own way."""
    name = parameter.encode()
    spelt = _spelt_by(name, value)
    return None if spelt is None else (PARAMETERS[name] is ReferenceKind.PROJECT, spelt)


def _spelt_by(parameter: bytes, value: str) -> str | None:
    """As :func:`normalise_spelling`, but digits in a ``…_path`` are a path to GitLab, never a number: undecidable."""
    spelt = normalise_spelling(value)
    return None if spelt is not None and spelt.isdigit() and parameter.endswith(b"_path") else spelt


def named_places_key(operation: Operation, target: Target) -> object:
    """What :func:`named` derives its result from: equal for requests that name the same things, and much cheaper to get."""
    references, segments = operation.references, target.segments
    query = tuple(_places_in_query(target.query)) if target.query and _SUSPECT.search(target.query) else ()
    if len(references) == 1 and not query:
        return references[0].value(segments)
    return (query, *(reference.value(segments) for reference in references))


# Most queries contain neither a name of the table nor an escape that could hide one.
_SUSPECT = re.compile(rb"project|group|namespace|fork|%", re.IGNORECASE)


def _places_in_query(query: bytes) -> Iterable[NamedPlace]:
    for parameter in query_parameters(query):
        name = parameter.name.encode("utf-8", "surrogateescape")
        kind = PARAMETERS.get(name)
        if kind is not None and parameter.value:
            yield NamedPlace(kind, _spelt_by(name, parameter.value.decode("latin-1")))


# Projects ------------------------------------------------------------------------------------------------------------


class _ProjectTest:
    """A compiled :class:`Projects`."""

    def __init__(self, projects: Projects) -> None:
        entries = [entry.lower().strip("/") for entry in projects.named]
        self.ids = frozenset(entry for entry in entries if entry.isdigit())
        self.paths = frozenset(entry for entry in entries if not entry.isdigit() and "*" not in entry)
        globs = [entry for entry in entries if "*" in entry]
        self.globs = Globs(globs) if globs else None
        groups = [group.lower().strip("/") for group in projects.under_group]
        self.group_ids = frozenset(group for group in groups if group.isdigit())
        self.groups = tuple(group for group in groups if not group.isdigit())
        self.by_path = bool(self.paths or globs or self.groups)
        self.by_id = bool(self.ids or self.group_ids)

    def fit(self, thing: NamedPlace, resolved: Resolved) -> Fit:
        if thing.spelt is None:
            return Fit.UNSURE
        numeric = thing.spelt.isdigit()
        place = resolved.get(PlaceLookup(thing.kind, thing.spelt))
        as_spelt = place is None or not thing.follows
        if as_spelt and self._fits(thing.kind, thing.spelt if numeric else "", "" if numeric else thing.spelt):
            return Fit.YES
        if place is not None:
            fits = self._fits(thing.kind, place.id, place.path.lower()) or not self.group_ids.isdisjoint(place.group_ids)
            return Fit.YES if fits else Fit.NO
        # A number may stand for any path; a path for any of the numbers, or for a place in any of the numbered groups.
        unsure = (self.by_path or bool(self.group_ids)) if numeric else self.by_id
        return Fit.UNSURE if unsure else Fit.NO

    def touch(self, thing: NamedPlace, resolved: Resolved) -> Fit:
        """As :meth:`fit`, but a group also touches those of the projects that lie in it: its lists show them."""
        found = self.fit(thing, resolved)
        if found is not Fit.NO or thing.kind is ReferenceKind.PROJECT or thing.spelt is None:
            return found
        place = resolved.get(PlaceLookup(thing.kind, thing.spelt))
        path = place.path.lower() if place is not None else thing.spelt
        if any(inner.startswith(path + "/") for inner in (*self.paths, *self.groups)):
            return Fit.YES
        return Fit.UNSURE if self.globs or self.by_id else Fit.NO

    def _fits(self, kind: ReferenceKind, number: str, path: str) -> bool:
        if kind is ReferenceKind.PROJECT:
            if number in self.ids or path in self.paths or (self.globs and path and self.globs.match(path)):
                return True
        elif number in self.group_ids or path in self.groups:
            return True
        return any(path.startswith(group + "/") for group in self.groups)


# Operations ----------------------------------------------------------------------------------------------------------

_METHOD_AND_ROUTE = re.compile(r"(?:(?P<method>[A-Z]+) +)?(?P<template>/.*)")


class _RouteTest:
    """Compiled ``routes``: compared by shape if the catalogue knows the operation, by segments if it doesn't."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._shapes: set[tuple[str, str]] = set()
        self._prefixes: list[tuple[str, str]] = []
        self._tree: RouteTree[bool] = RouteTree()
        for route in routes:
            method, template = parse_route(route)
            if template.endswith("/**"):
                template = template.removesuffix("**")
                self._prefixes += [(method, template_shape(path) + "/") for path in expand(template)]
                template += "*rest"
            else:
                self._shapes |= {(method, template_shape(path)) for path in expand(template)}
            if "?" not in template:  # a row for one particular query is known
                for path in expand(template):
                    self._tree.add(method, split(path), True)

    def holds(self, operation: Operation, target: Target, method: str) -> bool:
        if not operation.known:
            return self._tree.find(method, target.segments) is not None
        listed, shapes = shapes_of(operation.name)
        wanted = {"ANY", listed, method}
        return any((name, known) in self._shapes for name in wanted for known in shapes) or any(
            name in wanted and known.startswith(prefix) for name, prefix in self._prefixes for known in shapes
        )


@lru_cache(maxsize=4096)
def shapes_of(name: str) -> tuple[str, tuple[str, ...]]:
    """An operation's method, and the shapes of all expansions of its template."""
    method, template = name.split(" ", 1)
    return method, tuple(template_shape(path) for path in expand(template))


def parse_route(route: str) -> tuple[str, str]:
    """Split ``METHOD /template`` or ``/template`` into method (or ``ANY``) and template. Raises ValueError."""
    found = _METHOD_AND_ROUTE.fullmatch(route.strip())
    if found is None:
        raise ValueError(f"`{route}` is not a route: write `/template` or `METHOD /template`")
    return found["method"] or "ANY", found["template"]


class Matcher:
    """A compiled clause."""

    def __init__(self, clause: Clause) -> None:
        self.clause = clause
        self._methods = None if clause.methods is None else frozenset(method.upper() for method in clause.methods)
        self._routes = None if clause.routes is None else _RouteTest(clause.routes)
        self._permissions = None if clause.permissions is None else frozenset(clause.permissions)
        self._surfaces = None if clause.surfaces is None else frozenset(clause.surfaces)
        self._projects = None if clause.projects is None else _ProjectTest(clause.projects)

    @property
    def by_project(self) -> bool:
        """Whether the clause names projects."""
        return self._projects is not None

    @property
    def paths(self) -> frozenset[str] | None:
        """The only places that the clause is about, if it names all of them by full paths; None: it may be about others."""
        test = self._projects
        if test is None or test.globs or test.groups or test.by_id or self.narrows:
            return None
        return test.paths

    @property
    def narrows(self) -> bool:
        """Whether lists that show more than its projects are let through without the rest."""
        return self._projects is not None and self.clause.lists is Lists.FILTER

    @property
    def hides_place(self) -> bool:
        """Whether the clause is about where, not what: as a deny it answers as if the place did not exist."""
        clause = self.clause
        return clause.projects is not None and not (
            clause.methods or clause.routes or clause.permissions or clause.surfaces
        )

    def refuses(self, operation: Operation, access: Access, target: Target, method: str, *, deny: bool) -> str:
        """The name of the condition on the operation that does not hold; empty if all hold."""
        if self.clause.access is Access.READ and access is not Access.READ:
            return "access"
        if self._methods is not None and method not in self._methods and not (method == "HEAD" and "GET" in self._methods):
            return "methods"
        if self._surfaces is not None and operation.surface not in self._surfaces:
            return "surfaces"
        if self._permissions is not None:
            wanted = self._permissions
            # An operation may need several permissions: an allow must name all of them, a deny any one.
            held = not wanted.isdisjoint(operation.permissions) if deny else wanted.issuperset(operation.permissions)
            if not operation.permissions or not held:
                return "permissions"
        if self._routes is not None and not self._routes.holds(operation, target, method):
            return "routes"
        return ""

    def may_reach(self, operation: Operation, things: tuple[NamedPlace, ...], resolved: Resolved, screened: bool) -> Fit:
        """For an allow: whether everything that the request can reach is among the clause's projects."""
        if self._projects is None:
            return Fit.YES
        if not keeps_to_place(operation, screened):
            return Fit.NO
        fits = {self._projects.fit(thing, resolved) for thing in things}
        return Fit.NO if Fit.NO in fits else Fit.UNSURE if Fit.UNSURE in fits else Fit.YES

    def may_narrow(self, things: tuple[NamedPlace, ...], resolved: Resolved) -> Fit:
        """For an allow that filters, and a list: whether what the request itself names is among the clause's projects."""
        if self._projects is None or not self.narrows:
            return Fit.NO
        fits = {self._projects.fit(thing, resolved) for thing in things}
        return Fit.NO if Fit.NO in fits else Fit.UNSURE if Fit.UNSURE in fits else Fit.YES

    def fits(self, thing: NamedPlace, resolved: Resolved) -> Fit:
        """Whether ``thing``, whose number and path are ``resolved``, is among the clause's projects."""
        if self._projects is None:
            return Fit.YES
        found = self._projects.fit(thing, resolved)
        # The items of a list do not state the numbers of the groups around them.
        return Fit.UNSURE if found is Fit.NO and self._projects.group_ids else found

    def may_touch(
        self, operation: Operation, target: Target, things: tuple[NamedPlace, ...], resolved: Resolved, screened: bool
    ) -> Fit:
        """For a deny: whether anything that the request names may be among the clause's projects.

        :func:`reaches_beyond` says whether it may reach more than that.
        """
        if self._projects is None:
            return Fit.YES
        fits = {self._projects.touch(thing, resolved) for thing in (*things, *_alternative_places(operation, target))}
        if Fit.YES in fits:
            return Fit.YES
        unsure = Fit.UNSURE in fits or not operation.known or (operation.names_in_body and not screened)
        return Fit.UNSURE if unsure else Fit.NO


def keeps_to_place(operation: Operation, screened: bool) -> bool:
    """Whether the operation reaches only what its path and query name, and its path names something at all."""
    decidable = operation.known and not operation.wide and (screened or not operation.names_in_body)
    return decidable and names_place(operation)


def reaches_beyond(operation: Operation) -> bool:
    """Whether the operation may show or change what the request doesn't name: GraphQL, a search, an issue by its number."""
    return operation.wide or not (operation.placeless or names_place(operation))


def names_place(operation: Operation) -> bool:
    """Whether its path names a project, a group or a namespace."""
    return any(reference.kind in _POLICED for reference in operation.references)


def _alternative_places(operation: Operation, target: Target) -> Iterable[NamedPlace]:
    """What else GitLab may take a reference for, so that a deny looks at it, too: a reference at the end of the path
    without its ``.json``, which Grape may take for a format, and each leading part of one that may be below a project."""
    segments = target.segments
    for reference in operation.references:
        if reference.below:
            for end in range(reference.index + 2, reference.end):
                yield NamedPlace(reference.kind, normalise_spelling("/".join(segments[reference.index : end])))
        elif reference.kind in _POLICED and not reference.end and reference.index == len(segments) - 1:
            stem, dot, ending = segments[-1].rpartition(".")
            if dot and _FORMAT.fullmatch(dot + ending):
                yield NamedPlace(reference.kind, normalise_spelling(stem))


def access_of(operation: Operation, method: str, *, brokered: bool) -> Access:
    """The class by which a request is judged: an operation that the catalogue doesn't know is a write for brokered callers;
    for others its method decides."""
    if operation.known:
        return operation.access
    if brokered or method not in SAFE_METHODS:
        return Access.WRITE
    return Access.READ

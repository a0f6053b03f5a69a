"""Lists of which a shared credential sees more than the caller may: which items of an answer stay.

This covers only the operations of a reviewed table, which names the members of an item that say whose it is. An item that
can't be attributed is left out. A removed item leaves no trace: no total, no last page, no validator of GitLab's. An item
that stays is not touched, unless it contains another project that must go (the one it was forked from): that member is left
out, as GitLab does for users who may not see it. What the pages still reveal is that there are more of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from .catalogue import Operation, ReferenceKind
from .messages import Field, Fields
from .query import query_parameters
from .rule_match import Fit, Matcher, NamedPlace, Place, PlaceLookup
from .target import Target


class _ProjectItem(msgspec.Struct):
    id: int
    path_with_namespace: str


class _GroupItem(msgspec.Struct):
    id: int
    full_path: str


class _References(msgspec.Struct):
    full: str


class _Issuable(msgspec.Struct):
    project_id: int
    references: _References


class ItemKind(msgspec.Struct, frozen=True):
    """What kind of items a list has."""

    item: type[msgspec.Struct]
    kind: ReferenceKind


_PROJECTS = ItemKind(_ProjectItem, ReferenceKind.PROJECT)
_GROUPS = ItemKind(_GroupItem, ReferenceKind.GROUP)
_ISSUABLES = ItemKind(_Issuable, ReferenceKind.PROJECT)

LISTS: dict[str, ItemKind] = {
    "GET /api/v4/projects": _PROJECTS,
    "GET /api/v4/projects/:id/forks": _PROJECTS,
    "GET /api/v4/groups/:id/projects": _PROJECTS,
    "GET /api/v4/users/:user_id/projects": _PROJECTS,
    "GET /api/v4/users/:user_id/starred_projects": _PROJECTS,
    "GET /api/v4/users/:user_id/contributed_projects": _PROJECTS,
    "GET /api/v4/groups": _GROUPS,
    "GET /api/v4/issues": _ISSUABLES,
    "GET /api/v4/merge_requests": _ISSUABLES,
    "GET /api/v4/projects/:id/issues/:issue_iid/related_merge_requests": _ISSUABLES,
    "GET /api/v4/projects/:id/merge_requests/:merge_request_iid/closes_issues": _ISSUABLES,
}
"""Operation → its items. Reviewed one by one against GitLab 19.3: each item states the number and path of its project or
group at its top level, whatever the parameters."""

SEARCHES = frozenset({"GET /api/v4/search"})
"""Lists whose kind of items depends on ``scope``."""
SCOPES: dict[bytes, ItemKind] = {b"projects": _PROJECTS, b"issues": _ISSUABLES, b"merge_requests": _ISSUABLES}

_FULL = re.compile(r"([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)+)[#!][0-9]+")
_LAST = re.compile(rb'>[^>]*;\s*rel\s*=\s*"?[^"]*\blast\b', re.IGNORECASE)
_GONE = frozenset(
    {
        b"etag",
        b"last-modified",
        b"content-length",
        b"content-md5",
        b"digest",
        b"content-digest",
        b"repr-digest",
        b"accept-ranges",
        b"x-total",
        b"x-total-pages",
    }
)
CONDITIONS = frozenset(
    {b"if-none-match", b"if-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range", b"accept-encoding"}
)
"""Request fields that are not passed on: the caller means the narrowed answer by them, or they would bring an answer that
can't be narrowed."""


class Narrowing(msgspec.Struct, frozen=True, gc=False):
    """Whose items stay: those of any allow, except those of any deny."""

    allow: tuple[Matcher, ...]
    deny: tuple[Matcher, ...] = ()

    def keeps(self, thing: NamedPlace, place: Place) -> bool:
        """Whether an item of ``thing`` certainly stays: one that can't be decided goes."""
        assert thing.spelt is not None
        resolved = {PlaceLookup(thing.kind, thing.spelt): place}
        if any(clause.fits(thing, resolved) is not Fit.NO for clause in self.deny):
            return False
        return any(clause.fits(thing, resolved) is Fit.YES for clause in self.allow)


def is_list(operation: Operation) -> bool:
    """Whether the operation is in the table."""
    return operation.name in LISTS or operation.name in SEARCHES


def item_kind_of(operation: Operation, target: Target) -> ItemKind | None:
    """The kind of the answer's items; None: that answer has not been reviewed."""
    if operation.name not in SEARCHES:
        return LISTS.get(operation.name)
    scopes = [parameter for parameter in query_parameters(target.query or b"") if parameter.name == "scope"]
    return SCOPES.get(scopes[0].value) if len(scopes) == 1 and scopes[0].plain else None


def narrow(body: bytes, item_kind: ItemKind, narrowing: Narrowing) -> bytes | None:
    """The list without what the caller may not see; None if ``body`` is not a list."""
    try:
        kept = [
            _without_hidden_members(item, item_kind, narrowing)
            for item in _items(body)
            if _stays(item, item_kind, narrowing)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return b"[" + b",".join(kept) + b"]"


_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_PROJECT_MEMBER = "path_with_namespace"
"""The member that every project has, wherever in an answer the project stands."""


def _without_hidden_members(raw: msgspec.Raw, item_kind: ItemKind, narrowing: Narrowing) -> bytes:
    """An item that stays, without the members that contain a project that doesn't."""
    octets = bytes(raw)
    if octets.count(_PROJECT_MEMBER.encode()) <= (item_kind is _PROJECTS) and b"\\u00" not in octets:
        return octets
    members = _members(raw)
    left = {name: value for name, value in members.items() if _may_stay(value, narrowing)}
    return octets if len(left) == len(members) else msgspec.json.encode(left)


def _may_stay(value: msgspec.Raw, narrowing: Narrowing) -> bool:
    """Whether a member's value contains no project, or is itself a project that stays. GitLab's items hold no lists of
    projects and no more deeply nested ones, so such values never stay."""
    if bytes(value)[:1] not in {b"{", b"["}:
        return True
    top = msgspec.json.decode(value)
    others, left = 0, [top]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            others += one is not top and _PROJECT_MEMBER in one
            left += one.values()
        elif isinstance(one, list):
            left += one
    if isinstance(top, dict) and _PROJECT_MEMBER in top:
        return not others and _stays(value, _PROJECTS, narrowing)
    return not others


def _stays(raw: msgspec.Raw, item_kind: ItemKind, narrowing: Narrowing) -> bool:
    try:
        item = msgspec.json.decode(raw, type=item_kind.item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    match item:
        case _ProjectItem():
            number, path = item.id, item.path_with_namespace
        case _GroupItem():
            number, path = item.id, item.full_path
        case _Issuable():
            found = _FULL.fullmatch(item.references.full)
            number, path = item.project_id, found[1] if found is not None else ""
        case _:
            raise AssertionError("a shape without a reader")
    if number <= 0 or not path:
        return False
    return narrowing.keeps(NamedPlace(item_kind.kind, str(number)), Place(str(number), path))


def narrowed_fields(fields: Fields) -> Fields:
    """The answer's fields, without those that tell of removed items, or of octets that are no longer there."""
    kept: list[Field] = []
    for name, value in fields:
        lowered = name.lower()
        if lowered in _GONE:
            continue
        if lowered == b"link":
            links = b", ".join(link for link in _links(value) if not _LAST.search(link))
            if links:
                kept.append((name, links))
            continue
        kept.append((name, value))
    return tuple(kept)


def _links(value: bytes) -> Sequence[bytes]:
    """Each ``<address>; parameters`` of a Link field; a comma within an address does not separate."""
    return [link.strip(b" \t") for link in re.split(rb",\s*(?=<)", value)]

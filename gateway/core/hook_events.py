"""GitLab's webhooks and system hooks, read for one question: which stored answers may be stale now?

The body of an event says what it is about, and gives both names of its project. An event that is not in the table below
invalidates everything of its project; one without a project invalidates everything, unless it is about a user or a user's
key.
"""

from __future__ import annotations

import msgspec

from .cache_tags import ALL, PUSH_LISTS, part_tags, project_tags
from .project_names import ProjectNames

# Events that change neither the repository's files nor any merge request but the one they are about, each with the lists
# across projects in which it shows.
_PARTIAL = {
    "issue": ("issues", "todos", "events", "issues_statistics", "user_counts"),
    "work_item": ("issues", "todos", "events", "issues_statistics", "epics"),
    "note": ("issues", "merge_requests", "todos", "events"),
    "merge_request": ("merge_requests", "todos", "events", "user_counts"),
    "pipeline": ("jobs", "merge_requests"),
    "build": ("jobs",),
    "deployment": (),
    "wiki_page": ("events",),
    "emoji": ("issues", "merge_requests"),
    "feature_flag": (),
}
# Tags show their releases, and merge requests their milestones: these events take the whole project, and these lists too.
_WHOLE = {"release": (b"releases",), "milestone": (b"milestones",)}


class _Project(msgspec.Struct):
    id: int | None = None
    path_with_namespace: str | None = None


class _Attributes(msgspec.Struct):
    iid: int | None = None
    source_project_id: int | None = None
    source: _Project | str | None = None
    """For a merge request, its source project; for a pipeline, a word for what triggered it."""


class _MergeRequest(msgspec.Struct):
    iid: int | None = None
    target_project_id: int | None = None


class _Event(msgspec.Struct):
    object_kind: str = ""
    event_name: str = ""
    event_type: str = ""
    project: _Project | None = None
    project_id: int | None = None
    path_with_namespace: str | None = None
    old_path_with_namespace: str | None = None
    project_path_with_namespace: str | None = None
    object_attributes: _Attributes | None = None
    merge_request: _MergeRequest | None = None
    group_id: int | None = None
    user_id: int | None = None


class HookEvent(msgspec.Struct, frozen=True):
    """What an event means to the cache."""

    name: str
    """GitLab's ``object_kind`` or ``event_name``; empty where it has none."""
    tags: tuple[bytes, ...]


_decode = msgspec.json.Decoder(_Event).decode


def read_event(body: bytes, names: ProjectNames) -> HookEvent:
    """Read the event in a hook's body, and learn the project names in it. A body that can't be read is about everything."""
    try:
        event = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return HookEvent("", (ALL,))
    name = (event.object_kind or event.event_name or event.event_type)[:64]
    spelt = _spellings(event, names)
    found: list[bytes] = []
    if spelt:
        found += _project_event_tags(name, event, spelt, names)
    # A group's new name or parent changes the paths of everything in the group; a change of members, what they may see.
    if event.group_id is not None and not spelt:
        return HookEvent(name, (ALL,))
    if event.user_id is not None and name.startswith(("user_", "key_")):
        found += [b"user:%d" % event.user_id, b"kind:users", b"kind:user", b"kind:members"]
    return HookEvent(name, tuple(dict.fromkeys(found)) or (ALL,))


def _spellings(event: _Event, names: ProjectNames) -> tuple[bytes, ...]:
    project = event.project or _Project()
    number = project.id if project.id is not None else event.project_id
    path = project.path_with_namespace or event.path_with_namespace or event.project_path_with_namespace
    found: list[bytes] = []
    if number is not None:
        found.append(b"%d" % number)
        if path:
            names.learn(b"%d" % number, path.encode())
    found += [name.encode().lower() for name in (path, event.old_path_with_namespace) if name]
    return tuple(dict.fromkeys(found))


def _project_event_tags(name: str, event: _Event, spelt: tuple[bytes, ...], names: ProjectNames) -> list[bytes]:
    lists = _PARTIAL.get(name)
    request = _merge_request(name, event)
    if lists is None or (name in {"pipeline", "build", "deployment"} and request is None):
        # A push, or a pipeline of a branch: merge requests show its head.
        return [*project_tags(spelt, names), *(b"kind:" + kind for kind in (*PUSH_LISTS, *_WHOLE.get(name, ())))]
    everyone = tuple(dict.fromkeys(other for one in spelt for other in (one, *names.others(one))))
    if len({other.isdigit() for other in everyone}) == 1:  # answers stored by the other kind of name are unknown
        return [*project_tags(spelt, names), *(b"kind:" + kind.encode() for kind in lists)]
    found = [*part_tags(b"rest", everyone)]
    if request is not None:
        found += part_tags(b"mr", everyone, b"!%d" % request)
    about = event.object_attributes or _Attributes()
    if about.source_project_id is not None:
        source = b"%d" % about.source_project_id
        if isinstance(about.source, _Project) and about.source.path_with_namespace:
            names.learn(source, about.source.path_with_namespace.encode())
        found += part_tags(b"rest", (source, *names.others(source)))
    target = event.merge_request.target_project_id if event.merge_request is not None else None
    if target is not None and b"%d" % target not in everyone:
        # A fork's pipeline runs in the fork, but its merge request belongs to another project.
        known = (b"%d" % target, *names.others(b"%d" % target))
        if len(known) == 1:
            found += project_tags(known, names)
        else:
            found += (*part_tags(b"rest", known), *part_tags(b"mr", known, b"!%d" % (request or 0)))
    return [*found, *(b"kind:" + kind.encode() for kind in lists)]


def _merge_request(name: str, event: _Event) -> int | None:
    if name == "merge_request" and event.object_attributes is not None:
        return event.object_attributes.iid
    return event.merge_request.iid if event.merge_request is not None else None

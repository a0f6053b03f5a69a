"""Tags tie stored answers to the things they show, so that a write or an event can purge all of them.

    partition:…     one credential's           project:42 project:g/p   everything of a project, by each name it has
    all             everything                 mr:42!7   repo:42        one merge request; files, trees, branches, tags
    kind:issues     lists that span projects   rest:42                  all the rest, lists of merge requests included

An answer is dead as soon as one of its tags has been purged after the answer was requested. Purging too much costs a
request; purging too little shows old things, which only a route's own ``ttl`` allows and ``access_ttl`` bounds. Tags are
known before an answer is looked up: they depend on the request, and on the names learnt so far.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from .catalogue import Operation, ReferenceKind, Surface
from .project_names import ProjectNames, may_name_projects, normalise_name
from .target import percent_decode

ANONYMOUS = b"anonymous"
"""The partition of all callers without a credential. A 401 tells them that one is required, not that one has died."""
ALL = b"all"
"""On every answer: purged by events that nobody understands."""
PATH_UNKNOWN = b"unnamed"
"""On answers requested by a project's number whose path is not known: every write by a path purges them."""
NUMBER_UNKNOWN = b"unnumbered"
"""The reverse, on answers requested by a path whose number is not known: every write by a number purges them."""

_OWNERS = {
    b"projects": b"project",
    b"groups": b"group",
    b"users": b"user",
    b"namespaces": b"namespace",
    b"runners": b"runner",
}
"""Collections whose next segment names the thing that everything below belongs to."""


PUSH_LISTS = (b"projects", b"events", b"issues", b"merge_requests", b"search")
"""Lists across projects that differ after a push."""
_SHOWN_IN = {
    b"issues": (b"issues_statistics", b"todos", b"events", b"user_counts"),
    b"labels": (b"issues", b"merge_requests"),
    b"merge_requests": (b"todos", b"events", b"user_counts"),
    b"milestones": (b"issues", b"merge_requests"),
    b"todos": (b"user_counts",),
}
"""Lists and counts across projects that show a thing, besides the lists of its own kind."""
_ANYWHERE = frozenset({Surface.GRAPHQL, Surface.MCP})
# GitLab answers even an anonymous mutation with 200: whoever sent those would empty the partition of all anonymous callers.
_ANONYMOUS_PARTITIONS = frozenset({b"", ANONYMOUS})


class Resource(msgspec.Struct, frozen=True, gc=False):
    """What a target is about, among the things that GitLab holds."""

    owner: bytes
    """``project``, ``group`` …; empty where nothing owns it."""
    spelt: bytes
    area: bytes
    """In a project: what the tag of the part begins with."""
    within: bytes
    """In a merge request: ``!7``."""
    kinds: tuple[bytes, ...]
    """The kinds of thing on the path, in order."""
    segments: tuple[bytes, ...]
    """The segments after ``/api/v4``, with the owner's spelling normalised."""
    names_projects: bool
    """Whether answers from there may name projects."""


def partition_tag(partition: bytes) -> bytes:
    """The tag on every answer of one partition: a revoked credential purges all of them."""
    return b"partition:" + partition


def answer_tags(partition: bytes, target: bytes, names: ProjectNames) -> tuple[bytes, ...]:
    """The tags of a stored answer."""
    resource = resource_of(target)
    everybody = (partition_tag(partition), ALL)
    if resource.owner == b"project":
        number = names.number_of(resource.spelt)
        others = names.others(resource.spelt)
        part = b"%b:%b%b" % (resource.area, number or resource.spelt, resource.within)
        if others:
            return (*everybody, *(b"project:" + name for name in (resource.spelt, *others)), part)
        return (*everybody, b"project:" + resource.spelt, PATH_UNKNOWN if number else NUMBER_UNKNOWN, part)
    kinds = tuple(dict.fromkeys(b"kind:" + kind for kind in (*resource.kinds[:1], *resource.kinds[-1:])))
    if resource.owner:
        return (*everybody, b"%b:%b" % (resource.owner, resource.spelt), *kinds[-1:])
    return (*everybody, *kinds)


def write_tags(target: bytes, names: ProjectNames) -> tuple[bytes, ...]:
    """The tags of what a write to ``target`` makes doubtful, in every partition."""
    resource = resource_of(target)
    shown = [other for kind in resource.kinds for other in _SHOWN_IN.get(kind, ())]
    kinds = tuple(dict.fromkeys([b"kind:" + kind for kind in (*resource.kinds, *shown)]))
    if resource.owner == b"project":
        return (*project_tags((resource.spelt,), names), *kinds)
    return ((b"%b:%b" % (resource.owner, resource.spelt), *kinds)) if resource.owner else kinds


def extra_write_tags(
    operation: Operation, segments: tuple[str, ...], partition: bytes, names: ProjectNames
) -> tuple[bytes, ...]:
    """The tags of what a write makes doubtful besides ``write_tags``: the project that is pushed to, or a second one in the
    path. Where the path doesn't say what is changed, everything the caller has: callers must read what they wrote.

    Args:
        operation: As found in the catalogue.
        segments: ``Target.segments``.
        partition: The caller's. Nothing is purged for callers without a credential: GitLab lets them change nothing.
        names: The names known by now.
    """
    if operation.surface is Surface.LFS:
        return ()  # each clone asks for its objects by POST; no stored answer shows them or their locks
    found: list[bytes] = []
    for reference in operation.references:
        spelt = reference.value(segments).removesuffix(".json").lower().encode("utf-8", "surrogateescape")
        if reference.kind is ReferenceKind.PROJECT:
            found += project_tags((spelt,), names)
        else:
            found.append(b"%b:%b" % (reference.kind.value.encode(), spelt))
    if operation.surface is Surface.GIT:
        found += [b"kind:" + kind for kind in PUSH_LISTS]
    elif partition not in _ANONYMOUS_PARTITIONS and (operation.surface in _ANYWHERE or "/suggestions/" in operation.name):
        found.append(partition_tag(partition))
    return tuple(found)


def project_tags(spelt: tuple[bytes, ...], names: ProjectNames) -> tuple[bytes, ...]:
    """The tags of everything that belongs to a project, by whichever name it was requested."""
    known = dict.fromkeys(name for one in spelt for name in (one, *names.others(one)))
    unlearnt = dict.fromkeys(NUMBER_UNKNOWN if one.isdigit() else PATH_UNKNOWN for one in spelt)
    # If both a number and a path are given, an answer requested by either one carries that one's tag.
    return (*(b"project:" + name for name in known), *(unlearnt if len(unlearnt) == 1 else ()))


def part_tags(area: bytes, spelt: tuple[bytes, ...], within: bytes = b"") -> tuple[bytes, ...]:
    """The tags of one part of a project, by each of the project's names."""
    return tuple(b"%b:%b%b" % (area, name, within) for name in spelt)


def resource_of(target: bytes) -> Resource:
    """The place that a raw target is about."""
    return _place_of(target.partition(b"?")[0])  # pages of one list are one place


@lru_cache(maxsize=4096)
def _place_of(path: bytes) -> Resource:
    spellings = path.split(b"/")
    # Decoded, as GitLab does when it finds its routes: `merge%5Frequests` matches one.
    segments = [percent_decode(segment) for segment in spellings]
    above = segments.index(b"v4") + 1 if b"v4" in segments else 1
    segments = segments[above:]
    owner = spelt = area = within = b""
    if len(segments) > 1 and segments[0] in _OWNERS and segments[1]:
        owner = _OWNERS[segments[0]]
        spelt = segments[1] = normalise_name(spellings[above + 1])
    if owner == b"project":
        area = b"rest"
        if len(segments) > 3 and segments[2] == b"merge_requests":
            area, within = b"mr", b"!" + segments[3].removesuffix(b".json")
        elif len(segments) > 3 and segments[2] == b"repository" and not segments[3].startswith(b"commits"):
            area = b"repo"  # commits show pipelines
    kinds = tuple(dict.fromkeys([segment.removesuffix(b".json") for segment in segments[::2] if segment]))
    below = tuple(segments)
    return Resource(owner, spelt, area, within, kinds, below, may_name_projects(below))

"""Which number is which path: learnt from passing answers and events, so that a write by either name purges the other.

Used for invalidation and for limits by project. Nothing here ever decides who may see what, so a missing pair costs at most
``access_ttl`` of freshness, or a second bucket, and a wrong pair costs a request. Only answers that GitLab composes itself
are believed: what a user wrote into a file, a package or an avatar tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .target import percent_decode

MAX_BODY_BYTES = 256 * 1024
"""Longer answers are not read for names."""
_PATHS_OF_ONE = 4
"""Paths remembered per project. A renamed one keeps its old paths for a while: answers may still be stored under them."""
# Collections below a project whose items are that project's own (related items elsewhere may belong to any project).
_OWN = frozenset({b"issues", b"merge_requests", b"pipelines"})


_COMPOSED = frozenset({b"projects", b"groups", b"users"})
# Answers below these that consist of a user's octets.
_UPLOADED = frozenset({b"avatar"})


class _Thing(msgspec.Struct):
    id: int | str | None = None
    path_with_namespace: str | None = None
    project_id: int | str | None = None
    web_url: str | None = None


_decode = msgspec.json.Decoder(list[_Thing] | _Thing).decode


def normalise_name(segment: bytes) -> bytes:
    """A project's number or path, normalised from any of its spellings: decoded once, in lower case, without ``.json``."""
    return percent_decode(segment).removesuffix(b".json").lower()


class ProjectNames:
    """A bounded memory of pairs of number and path; it forgets everything when it is full.

    Args:
        most: How many projects are remembered.
    """

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._number: dict[bytes, bytes] = {}
        self._paths: dict[bytes, tuple[bytes, ...]] = {}
        self.version = 0
        """Changes whenever a pair is learnt or forgotten."""

    def __len__(self) -> int:
        return len(self._paths)

    def learn(self, number: bytes, path: bytes) -> None:
        """Learn that the project ``number`` is at ``path`` now."""
        path = path.lower()
        if self._number.get(path) == number:
            return
        if len(self._paths) >= self._most or len(self._number) >= 2 * self._most:
            self._paths.clear()
            self._number.clear()
        self.version += 1
        self._number[path] = number
        known = self._paths.get(number, ())
        self._paths[number] = (path, *(other for other in known if other != path))[:_PATHS_OF_ONE]

    def number_of(self, spelt: bytes) -> bytes | None:
        """The project's number, if ``spelt`` is one or is a known path."""
        return spelt if spelt.isdigit() else self._number.get(spelt)

    def others(self, spelt: bytes) -> tuple[bytes, ...]:
        """The project's other names; empty if none is known."""
        if spelt.isdigit():
            return self._paths.get(spelt, ())
        number = self._number.get(spelt)
        if number is None:
            return ()
        return (number, *(path for path in self._paths.get(number, ()) if path != spelt))


def may_name_projects(below: tuple[bytes, ...]) -> bool:
    """Whether an answer of GitLab's to a request for this path may name projects, and can be believed. ``below`` is as for
    ``parse_project_names``."""
    return _own(below) or _composed(below)


def _own(below: tuple[bytes, ...]) -> bool:
    return len(below) in {3, 4} and below[0] == b"projects" and below[2] in _OWN


def _composed(below: tuple[bytes, ...]) -> bool:
    return 1 <= len(below) <= 3 and below[0] in _COMPOSED and below[-1] not in _UPLOADED


def parse_project_names(
    below: tuple[bytes, ...], body: bytes, prefix: str = "", *, written: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """(number, path) of each project that a JSON answer of GitLab's names.

    Args:
        below: The segments after ``/api/v4``, the project's spelling decoded.
        body: The answer's body, not compressed.
        prefix: GitLab's relative URL root, such as ``/gitlab``.
        written: It is the answer to a write. What a write makes may belong to another project than the path's: a merge
            request made in a fork is its target's.
    """
    if len(body) > MAX_BODY_BYTES or body[:1] not in {b"{", b"["}:
        return
    own, composed = _own(below), _composed(below)
    if not (own or composed):
        return
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    for thing in found if isinstance(found, list) else [found]:
        if composed and isinstance(thing.id, int) and thing.path_with_namespace:
            yield b"%d" % thing.id, thing.path_with_namespace.encode()
        elif own and isinstance(thing.project_id, int):
            number = b"%d" % thing.project_id
            by_path = not (written or below[1].isdigit())
            path = below[1] if by_path else _path_in(thing.web_url or "", prefix)
            if path and (by_path or written or below[1] == number):
                yield number, path


class _Part(msgspec.Struct):
    project_id: int | str | None = None


class _Written(_Part):
    source_project_id: int | str | None = None
    target_project_id: int | str | None = None
    source_issue: _Part | None = None
    target_issue: _Part | None = None
    blocking_merge_request: _Part | None = None
    blocked_merge_request: _Part | None = None


_decode_written = msgspec.json.Decoder(_Written).decode


def projects_written(body: bytes) -> tuple[bytes, ...]:
    """The numbers of the projects in which a write changed something, according to its answer: both projects of a fork's
    merge request, the one that an issue was moved to, the other end of a link. ``body`` is not compressed."""
    if len(body) > MAX_BODY_BYTES or body[:1] != b"{":
        return ()
    try:
        said = _decode_written(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    parts = (said.source_issue, said.target_issue, said.blocking_merge_request, said.blocked_merge_request)
    numbers = (
        said.project_id,
        said.source_project_id,
        said.target_project_id,
        *(part.project_id for part in parts if part is not None),
    )
    return tuple(dict.fromkeys([b"%d" % number for number in numbers if isinstance(number, int) and number > 0]))


def _path_in(url: str, prefix: str) -> bytes:
    """``https://host/prefix/group/project/-/issues/1`` → ``group/project``."""
    _, _, rest = url.partition("://")
    _, slash, path = rest.partition("/")
    place, separator, _ = (slash + path).partition("/-/")
    if not separator or not place.startswith(prefix + "/"):
        return b""
    return place.removeprefix(prefix + "/").encode()

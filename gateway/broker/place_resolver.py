"""Which project is that? ``42``, ``group%2Fproject`` and the path before a renaming may all mean one; only GitLab knows.

GitLab is asked with the credential of the rule in question, so that nothing is learnt that the rule's callers may not know.
Answers are remembered for ``ttl_s``: for so long, a path that now belongs to another project may be taken for the old one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from ..core.catalogue import ReferenceKind
from ..core.errors import Code, Rejection, Source
from ..core.messages import Fields, ResponseHead, first
from ..core.rule_match import Place, PlaceLookup, Resolved
from ..ports import Upstream, UpstreamCredential, UpstreamRequest
from ..singleflight import Flights

_MOST_LOOKUPS = 4
"""For a request that names more places than this, GitLab is not asked: what is not resolved is not allowed."""
_MAX_ANSWER_BYTES = 256 * 1024
_LONGEST_MEMO_NAME = 1024
"""The most characters of a name whose place is remembered."""
_DEEPEST = 20
"""GitLab nests groups twenty levels deep."""
_RESOURCES = {
    ReferenceKind.PROJECT: b"projects",
    ReferenceKind.GROUP: b"groups",
    ReferenceKind.NAMESPACE: b"namespaces",
}
_MOVED_TO = re.compile(rb"/(?:projects|groups)/([0-9]+)(?:[/?]|\Z)")


class _Namespace(msgspec.Struct):
    id: int | None = None
    kind: str = ""


class _Answer(msgspec.Struct):
    """What GitLab says of a project, group or namespace, as far as it matters here."""

    id: int
    path_with_namespace: str = ""
    full_path: str = ""
    parent_id: int | None = None
    namespace: _Namespace | None = None


class _Remembered(msgspec.Struct, frozen=True, gc=False):
    place: Place | None
    until: float


_decode = msgspec.json.Decoder(_Answer).decode


class GitlabPlaceResolver:
    """A ``ports.PlaceResolver``.

    Args:
        upstream: GitLab.
        monotonic: A clock, in seconds.
        prefix: GitLab's relative URL root.
        fields: Sent with each request (Host).
        by_group_id: Whether some rule names a group by number: then the groups around a place are asked for as well.
        on_project: Called with the number and the path of each project found.
        on_answer: Called with the id of the credential that GitLab was asked with, and the head of the answer.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        monotonic: Callable[[], float],
        prefix: bytes = b"",
        fields: Fields = (),
        by_group_id: bool = False,
        on_project: Callable[[bytes, bytes], None] | None = None,
        on_answer: Callable[[str, ResponseHead], None] | None = None,
        ttl_s: float = 60.0,
        missing_ttl_s: float = 5.0,
        remembered: int = 10_000,
        timeout_s: float = 5.0,
    ) -> None:
        self._upstream = upstream
        self._monotonic = monotonic
        self._prefix = prefix
        self._fields: Fields = (
            (b"Accept", b"application/json"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"gitlab-gateway"),
            *fields,
        )
        self._by_group_id = by_group_id
        self._on_project = on_project
        self._on_answer = on_answer
        self._ttl_s = ttl_s
        self._missing_ttl_s = missing_ttl_s
        self._bound = remembered
        self._timeout_s = timeout_s
        self._memory: dict[bytes, _Remembered] = {}
        self._flights: Flights[_Remembered] = Flights()

    async def resolve(
        self,
        lookups: Sequence[PlaceLookup],
        credential: UpstreamCredential,
        room: Callable[[], Awaitable[None]] | None = None,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Resolved:
        found: dict[PlaceLookup, Place] = {}
        if len(lookups) > _MOST_LOOKUPS:
            return found
        for lookup in lookups:
            place = await self._resolve_one(lookup, credential, room, turn)
            if place is not None:
                found[lookup] = place
        return found

    async def _resolve_one(
        self,
        lookup: PlaceLookup,
        credential: UpstreamCredential,
        room: Callable[[], Awaitable[None]] | None,
        turn: Callable[[], Awaitable[None]] | None,
    ) -> Place | None:
        key = b"%b/%b/%b" % (credential.partition, lookup.kind.value.encode(), lookup.spelt.encode())
        while True:
            known = self._memory.get(key)
            if known is not None and self._monotonic() < known.until:
                return known.place
            if room is not None:  # first: a request that waits for room must not lead others
                await room()
                room = None
                continue
            leads, flight = self._flights.join(key)
            if leads:
                try:
                    if turn is not None:
                        await turn()
                    known = await self._look_up(lookup, credential)
                    if len(lookup.spelt) <= _LONGEST_MEMO_NAME:
                        self._remember(key, known)
                    flight.land(known)
                finally:
                    flight.abandon()
                return known.place
            settled, landed = await flight.wait(self._timeout_s)
            if settled and landed is not None:
                return landed.place

    def _remember(self, key: bytes, known: _Remembered) -> None:
        if len(self._memory) >= self._bound:
            self._memory.clear()
        self._memory[key] = known

    async def _look_up(self, lookup: PlaceLookup, credential: UpstreamCredential) -> _Remembered:
        answer = await self._ask(lookup.kind, lookup.spelt.encode(), credential)
        if answer is None:
            return _Remembered(None, self._monotonic() + self._missing_ttl_s)
        groups = await self._fetch_ancestors(answer, lookup.kind, credential) if self._by_group_id else ()
        place = Place(str(answer.id), answer.path_with_namespace or answer.full_path, groups)
        if self._on_project is not None and lookup.kind is ReferenceKind.PROJECT and answer.path_with_namespace:
            self._on_project(b"%d" % answer.id, answer.path_with_namespace.encode())
        return _Remembered(place, self._monotonic() + self._ttl_s)

    async def _fetch_ancestors(
        self, answer: _Answer, kind: ReferenceKind, credential: UpstreamCredential
    ) -> tuple[str, ...]:
        """The ids of the groups around a place, nearest first."""
        around: list[str] = []
        parent = answer.parent_id
        if kind is ReferenceKind.PROJECT:
            namespace = answer.namespace
            parent = namespace.id if namespace is not None and namespace.kind == "group" else None
        while parent is not None and len(around) < _DEEPEST:
            around.append(str(parent))
            group = await self._ask(ReferenceKind.GROUP, b"%d" % parent, credential)
            parent = group.parent_id if group is not None else None
        return tuple(around)

    async def _ask(self, kind: ReferenceKind, name: bytes, credential: UpstreamCredential) -> _Answer | None:
        """GitLab's answer; None if, for all the credential may know, there is no such thing. A renamed one is asked for by
        its id."""
        by_path = not name.isdigit()
        status, body, moved_to = await self._get(kind, name, credential)
        if status == 301 and moved_to is not None:
            status, body, _ = await self._get(kind, moved_to, credential)
        # None for a dead credential, too: the path is judged as spelt, and the request that goes up with it finds out.
        if status in {403, 404} or (status == 401 and by_path):
            return None
        if status != 200:
            raise _unavailable(f"GitLab answered {status} about a {kind.value}")
        try:
            return _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _unavailable(f"GitLab's answer about a {kind.value} is not readable") from error

    async def _get(
        self, kind: ReferenceKind, name: bytes, credential: UpstreamCredential
    ) -> tuple[int, bytes, bytes | None]:
        # A lookup's spelling consists of letters, digits, `_`, `-`, `.` and `/`: only the slash needs encoding.
        path = b"%b/api/v4/%b/%b" % (self._prefix, _RESOURCES[kind], name.replace(b"/", b"%2F"))
        request = UpstreamRequest("GET", path, (*self._fields, *credential.fields), 0, self._timeout_s)
        reply = await self._upstream.send(request, None)
        try:
            if self._on_answer is not None:
                self._on_answer(credential.id, reply.head)
            moved = _MOVED_TO.search(first(reply.head.fields, b"location") or b"")
            body = await reply.read_whole(_MAX_ANSWER_BYTES)
            if body is None:
                raise _unavailable("GitLab's answer about a place is too long")
            return reply.head.status, body, moved[1] if moved else None
        finally:
            reply.release()


def _unavailable(detail: str) -> Rejection:
    """The refusal for lack of an answer. Closed, never open: what could not be decided is not allowed, and it is not the
    caller's fault."""
    return Rejection(
        Code.PLACE_UNAVAILABLE,
        503,
        "503 Service Unavailable",
        headers=((b"Retry-After", b"5"),),
        source=Source.UPSTREAM,
        proxy_error="destination_unavailable",
        detail=detail,
    )

"""Request bodies: the credential that one may hold, and the watch over what streams up to GitLab.

``core.body_credentials`` decides what counts as a finding; here bodies are read, held back and handed on.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec

from .core.access import Permit, Principal
from .core.body import (
    MAX_NAMING_BYTES,
    MAX_UNREAD_BYTES,
    BodyScanner,
    BodyVerdict,
    Undecidable,
    UnreadableBody,
    media_type,
    names_method,
)
from .core.body_credentials import MAX_CUT_BYTES, admit_body, admit_page, body_claim, scanner_for
from .core.body_multipart import MultipartScanner
from .core.catalogue import Operation, Surface
from .core.credentials import Claim, CredentialKind, allowed_in_body, is_second_token
from .core.graphql import parse_body_intent, parse_query_intent
from .core.lfs_batch import is_batch, parse_batch_intent
from .core.messages import RequestHead, first
from .core.query import query_parameters
from .core.request_intent import LIGHT_BYTES, MAX_BODY_BYTES, UNCOUNTED, UNKNOWN, ParsingDeferred, RequestIntent
from .core.request_validation import AdmittedRequest
from .core.rule_match import PlaceSpelling
from .core.target import Target
from .ports import RequestBody

# The routes of Workhorse's body uploader (`workhorse/internal/upstream/routes.go`), as it finds them: nothing is decoded.
# Directly after the relative URL root alone: `api/v4/packages/conan` may also stand in another route's last parameter.
_WORKHORSE_UPLOADS = re.compile(
    rb"(?:/(?!api/)[^/?%]+)*/api/v4/"
    rb"(?:packages/conan|projects/[^/?]+/packages/(?:conan|debian|generic|maven|ml_models|terraform/modules))/"
)
# No browser sends a form with these methods, and Rack reads one all the same.
_READ_METHODS = frozenset({"GET", "HEAD"})
# The surfaces to which browsers send Rails' own forms.
_BROWSER_SURFACES = frozenset({Surface.WEB, Surface.WEB_TOKEN, Surface.OAUTH, Surface.WEBSOCKET})


class HeldBody:
    """A body of octets at hand and then of those that are still to come."""

    __slots__ = ("_held", "_rest", "content_length")

    def __init__(self, held: bytes, rest: RequestBody | None, content_length: int | None) -> None:
        self._held = held
        self._rest = rest
        self.content_length = content_length

    async def read(self) -> bytes:
        held, self._held = self._held, b""
        if held:
            return held
        return await self._rest.read() if self._rest is not None else b""


class WatchedBody:
    """A body inspected as it streams: its last chunk goes up only after the whole has been judged, and no chunk of a
    multipart body goes up once what is known of its parts forbids it.

    Args:
        body: The body to be read.
        scanner: The scanner for its kind.
        admit: Called with the scanner's verdict, and whether what it could not read may name what must not be there; raises
            to refuse. Of a multipart body it is given new findings first, and the whole verdict at the end.
        may_name: Whether octets that no scanner reads may name that; None: this is not checked.
    """

    __slots__ = (
        "_admit",
        "_blind",
        "_body",
        "_done",
        "_held",
        "_judged",
        "_may_name",
        "_scanner",
        "_suspect",
        "_tail",
        "content_length",
    )

    def __init__(
        self,
        body: RequestBody,
        scanner: BodyScanner,
        admit: Callable[[BodyVerdict, bool], None],
        may_name: Callable[[bytes], bool] | None,
    ) -> None:
        self._body = body
        self._scanner = scanner
        self._admit = admit
        self._may_name = may_name
        self._held = b""
        self._tail = b""
        self._blind = 0
        self._suspect = False
        self._judged: tuple[int, Undecidable | None, bool] = (0, None, False)
        self._done = False
        self.content_length = body.content_length

    async def read(self) -> bytes:
        """The next chunk. Raises what ``admit`` raises, before the last octet is let go."""
        while not self._done:
            chunk = await self._body.read()
            if not chunk:
                self._done = True
                self._admit(self._scanner.finish(), self._suspect)
                break
            self._scanner.feed(chunk)
            if self._may_name is not None and not self._suspect:
                self._check_unread(chunk, self._may_name)
            # Workhorse reads a multipart body up to its last delimiter, and goes on to GitLab without what follows it.
            # Each finding is judged once: there may be thousands of them, and no end of chunks after them.
            sure = self._scanner.so_far()
            judged = (len(sure.findings), sure.undecidable, self._suspect)
            if judged != self._judged:
                self._admit(BodyVerdict(sure.findings[self._judged[0] :], sure.undecidable), self._suspect)
                self._judged = judged
            held, self._held = self._held, chunk
            if held:
                return held
        held, self._held = self._held, b""
        return held

    def _check_unread(self, chunk: bytes, may_name: Callable[[bytes], bool]) -> None:
        """Check octets that no scanner reads any more: GitLab may read them."""
        blind = self._scanner.blind
        octets = self._tail + chunk if blind or len(chunk) < MAX_UNREAD_BYTES else chunk
        self._tail = octets[-MAX_UNREAD_BYTES:]
        if blind:
            # What was checked before is not checked again, except for a name that continues in this chunk.
            self._suspect = may_name(octets if blind > self._blind else octets[-len(chunk) - MAX_NAMING_BYTES :])
            self._blind = blind


class BodyStage:
    """What is read of a body: its credential, before authentication; what it asks for, where only the body tells; and all
    of it, on its way up."""

    async def claim(self, admitted: AdmittedRequest, head: RequestHead, body: RequestBody) -> tuple[Claim, RequestBody]:
        """The one credential of a body, when the head carries none, and the body without it.

        Only a body of at most 64 KiB is read for that, and none whose client waits for ``100 Continue``, which is sent only
        after authentication (RFC 9110 §10.1.1).
        """
        claim = admitted.claim
        length = body.content_length
        if first(head.fields, b"expect") is not None or (length is not None and length > MAX_CUT_BYTES):
            return claim, body
        scanner = _scanner(head, inflates=False)  # its credential would not be accepted, and nobody is known yet who pays
        if scanner is None:
            return claim, body
        held = b""
        while chunk := await body.read():
            held += chunk
            if len(held) > MAX_CUT_BYTES:
                return claim, HeldBody(held, body, length)
        scanner.feed(held)
        found = body_claim(claim, scanner.finish())
        if found is None:
            return claim, HeldBody(held, None, len(held))
        claim, finding = found
        rest = scanner.cut(held, finding)
        return claim, HeldBody(rest, None, len(rest))

    async def classify(
        self,
        operation: Operation,
        head: RequestHead,
        target: Target,
        body: RequestBody | None,
        reserve: Callable[[int], Awaitable[None]],
        *,
        browser: bool = False,
    ) -> tuple[Operation, RequestBody | None, int]:
        """What a request does according to its body, a GraphQL document or an LFS batch: the operation with its class, the
        body, and how many requests it counts as.

        Bodies are read here for authenticated callers alone, up to 1 MiB; a longer one is a write, and streams on.
        ``reserve`` is awaited with a number of requests, and may refuse them, before a document is parsed. ``browser``:
        what can't be counted counts as one request, such as an upload from GitLab's own pages.
        """
        batch = is_batch(operation)
        unread = UNKNOWN if batch else UNCOUNTED
        if body is None:
            intent = UNKNOWN
            if not batch and head.method in {"GET", "HEAD"}:
                try:
                    intent = parse_query_intent(target, parse=False)
                except ParsingDeferred:
                    await reserve(1)
                    intent = parse_query_intent(target)
        elif head.method != "POST" or (body.content_length or 0) > MAX_BODY_BYTES:
            intent = unread
        else:
            held, reserved = bytearray(), 0
            while len(held) <= MAX_BODY_BYTES and (chunk := await body.read()):
                held += chunk
                if len(held) > LIGHT_BYTES and not reserved:  # a known caller, too, could have a thousand of these held
                    await reserve(1)
                    reserved = 1
            if len(held) > MAX_BODY_BYTES:
                intent = unread
                body = HeldBody(bytes(held), body, body.content_length)
            else:
                document = bytes(held)
                intent = await _parse_intent(
                    parse_batch_intent if batch else parse_body_intent, head, target, document, reserve, reserved
                )
                body = HeldBody(document, None, len(document))
        if intent.access is not operation.access:
            operation = msgspec.structs.replace(operation, access=intent.access)
        return operation, body, 1 if browser and intent is UNCOUNTED else intent.operations

    def guard(
        self,
        claim: Claim,
        principal: Principal,
        permit: Permit,
        head: RequestHead,
        body: RequestBody,
        operation: Operation,
        places: frozenset[PlaceSpelling] | None = None,
        acting: Callable[[str], object] | None = None,
    ) -> RequestBody:
        """``body``, watched. On pages for browsers it is watched for a ``_method`` that reads, and for nothing else: what
        Rails' own forms hold is GitLab's business. Elsewhere a session's body is watched, too: behind a cookie, which
        nobody here judges, a token in the body would go unseen.

        ``places``: what the body may name, for a permit that is confined to some places; None: anything. ``acting`` is told
        the user that the body asks to act as: GitLab reads ``sudo`` there, too.
        """
        # A package sent by PUT is a file, whatever its type: Workhorse keeps it, and Rails reads no parameters from it.
        file = head.method == "PUT" and operation.surface is Surface.PACKAGES
        if file and _WORKHORSE_UPLOADS.match(head.target):
            return body
        surface = operation.surface
        page = (
            surface in _BROWSER_SURFACES
            if claim.kind is CredentialKind.SESSION
            else surface is Surface.WEB and not principal.brokered
        )
        if page and places is None and head.method not in _READ_METHODS:
            return _watched_page(head, body)
        scanner = _scanner(head)
        # The body of a commit, which Workhorse keeps as a file, is to GitLab of the type that a parameter names.
        if places is not None and operation.names_in_body and (scanner is None or _is_retyped(head.target)):
            scanner = UnreadableBody(Undecidable.CONTENT_TYPE)
        if scanner is None:
            return body
        brokered = principal.brokered
        token_counts = not file and is_second_token(claim.kind, operation, brokered=brokered)
        left = allowed_in_body(claim, operation)
        sudo = claim.sudo

        def admit(verdict: BodyVerdict, suspect: bool) -> None:
            nonlocal sudo
            admit_body(
                claim,
                verdict,
                brokered=brokered,
                may_sudo=permit.sudo or None,
                places=places,
                token_counts=token_counts,
                left=left,
                sudo=sudo,
                suspect=suspect,
            )
            for finding in verdict.findings:
                if finding.name == "sudo":
                    sudo = finding.value
                    if sudo and acting is not None:
                        acting(sudo)

        def may_name(octets: bytes) -> bool:
            return scanner.may_name(octets) or (token_counts and b"token" in octets.replace(b"\\", b""))

        # For a brokered caller, and where only some places may be named, whatever can't be read is refused.
        checks_unread = not brokered and places is None
        return WatchedBody(body, scanner, admit, may_name if checks_unread else None)


class UnreadBodyStage(BodyStage):
    """The stage of a plain shared cache, which reads no bodies."""

    async def claim(self, admitted: AdmittedRequest, head: RequestHead, body: RequestBody) -> tuple[Claim, RequestBody]:
        del head
        return admitted.claim, body

    def guard(
        self,
        claim: Claim,
        principal: Principal,
        permit: Permit,
        head: RequestHead,
        body: RequestBody,
        operation: Operation,
        places: frozenset[PlaceSpelling] | None = None,
        acting: Callable[[str], object] | None = None,
    ) -> RequestBody:
        return body


def _watched_page(head: RequestHead, body: RequestBody) -> RequestBody:
    """The body of a browser's page, watched where it may say ``_method``: in the form of a POST, but not in JSON."""
    if head.method != "POST" or "json" in media_type(first(head.fields, b"content-type") or b""):
        return body
    scanner = _scanner(head)
    if scanner is None:
        return body
    # Forms hold Rails' `authenticity_token`, so of what stands in parts that can't be read only the method's name counts.
    parts = isinstance(scanner, MultipartScanner)
    return WatchedBody(body, scanner, admit_page, names_method if parts else scanner.may_name)


def _is_retyped(target: bytes) -> bool:
    return any(parameter.name == "Content-Type" for parameter in query_parameters(target.partition(b"?")[2]))


async def _parse_intent(
    parse: Callable[..., RequestIntent],
    head: RequestHead,
    target: Target,
    document: bytes,
    reserve: Callable[[int], Awaitable[None]],
    reserved: int,
) -> RequestIntent:
    """What ``document`` asks for. Only once a long body is read does it tell how many requests it counts as: then room is
    reserved twice. ``reserved``: for how many there is room already."""
    while True:
        try:
            return parse(head, target, document, room=reserved)
        except ParsingDeferred as deferred:
            await reserve(deferred.operations)
            reserved = deferred.operations


def _scanner(head: RequestHead, *, inflates: bool = True) -> BodyScanner | None:
    content_type, coding = first(head.fields, b"content-type"), first(head.fields, b"content-encoding")
    return scanner_for(content_type, coding, head.method, inflates=inflates)

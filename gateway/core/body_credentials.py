"""Credentials and impersonation in request bodies: how a body will be read upstream, and what may be in it.

The pipeline feeds a body through the scanner while it streams and holds the last chunk back until ``admit_body`` agrees.
"""

from __future__ import annotations

import re
import zlib

import msgspec

from .body import (
    PASSWORDS,
    PLACE_PARAMETERS,
    BodyScanner,
    BodyVerdict,
    Finding,
    Undecidable,
    UnreadableBody,
    keeps_ascii,
    media_type,
)
from .body_form import FormScanner
from .body_json import JsonScanner
from .body_multipart import MultipartScanner, boundary_of
from .credentials import (
    CREDENTIAL_PARAMETERS,
    FEED_PARAMETERS,
    Carrier,
    Claim,
    CredentialKind,
    both_bearer_and_access_token,
    moved_parameter,
    two_credentials,
)
from .errors import Code, Rejection, bad_request, forbidden, unauthenticated
from .gateway_key import holds_gateway_key
from .rule_match import PlaceSpelling, parameter_spelling
from .secret import Secret

MAX_CUT_BYTES = 65536
"""A body credential is accepted only in a body up to this size: it is cut out before anything goes up."""

_MAX_INFLATED_BYTES = 200 * 1024
"""GitLab's own limit. One kilobyte of gzip may inflate to a thousand, and every octet of them is looked at."""

_CREDENTIALS = CREDENTIAL_PARAMETERS | FEED_PARAMETERS
_CARRIERS = _CREDENTIALS | PASSWORDS | {"token"}
_IDENTITY = frozenset({b"", b"identity"})
_VISIBLE = re.compile(r"[!-~\x80-\U0010ffff]+")
_FORM = "application/x-www-form-urlencoded"
_WRITES = frozenset({"", "delete", "patch", "post", "put"})
"""The values of ``_method`` in Rails' own forms."""


def scanner_for(
    content_type: bytes | None, content_encoding: bytes | None, method: str, *, inflates: bool = True
) -> BodyScanner | None:
    """The scanner for a body as Rack, Rails and Grape would read it; None when they read no parameters from it.

    Any method may carry a form: Rack looks at the type alone. Without a type, a POST is a form to Rack and JSON to Grape;
    any other method is only JSON. ``inflates``: JSON in gzip is read, which costs far more than its sender pays.
    """
    coding = (content_encoding or b"").strip().lower()
    media = media_type(content_type) if content_type is not None else ""
    # Workhorse allows Unicode blanks around a type and takes the dotted capital I for an i, so it may see a multipart body
    # here, which it rewrites.
    if not media.isascii():
        return UnreadableBody(Undecidable.BOUNDARY)
    scanner: BodyScanner
    if not media:
        scanner = _Untyped(form=method == "POST")
    elif "json" in media or media == _FORM:
        scanner = FormScanner() if media == _FORM else JsonScanner()
        if not keeps_ascii(content_type or b""):
            return _Encoded(scanner, Undecidable.CHARSET)
    elif media.startswith("multipart/"):
        boundary = boundary_of(content_type or b"")
        if boundary is None:
            return UnreadableBody(Undecidable.BOUNDARY)
        scanner = MultipartScanner(boundary)
    elif "/" not in media:
        return UnreadableBody(Undecidable.CONTENT_TYPE)
    else:
        return None
    if inflates and coding == b"gzip" and isinstance(scanner, JsonScanner):
        return _Gzipped(scanner)
    if coding == b"gzip" and not media and method == "POST":
        return _UntypedGzip(scanner)
    return scanner if coding in _IDENTITY else _Encoded(scanner)


class _Encoded:
    """A body with a content coding or a charset. Rails inflates bodies on a few routes only and parses the coded octets on
    all others: both must be feared. Rails ignores a charset, which other readers may heed."""

    def __init__(self, scanner: BodyScanner, reason: Undecidable = Undecidable.ENCODED) -> None:
        self._scanner = scanner
        self._reason = reason
        self.feed = scanner.feed
        self.cut = scanner.cut
        self.may_name = scanner.may_name

    @property
    def blind(self) -> int:
        return self._scanner.blind

    def so_far(self) -> BodyVerdict:
        parts = isinstance(self._scanner, MultipartScanner)
        return BodyVerdict(self._scanner.so_far().findings, self._reason) if parts else BodyVerdict()

    def finish(self) -> BodyVerdict:
        return BodyVerdict(self._scanner.finish().findings, self._reason)


class _UntypedGzip(_Encoded):
    """A gzipped body without a type: on npm's audit routes GitLab inflates it and reads a form."""

    blind = True

    def __init__(self, scanner: BodyScanner) -> None:
        super().__init__(scanner)
        self.may_name = _anything


def _anything(octets: bytes) -> bool:
    del octets
    return True


class _Gzipped:
    """JSON in gzip: only the inflated octets can be parsed by anybody, because no JSON begins as gzip does.

    GitLab inflates it on npm's audit routes (``lib/gitlab/middleware/compressed_json.rb``): one gzip member, with the same
    limit.
    """

    def __init__(self, raw: BodyScanner) -> None:
        self._raw = raw
        self._inflated = JsonScanner()
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._left = _MAX_INFLATED_BYTES + 1
        self._whole = True

    may_name = staticmethod(_anything)  # compressed octets tell nothing

    @property
    def blind(self) -> bool:
        """Whether reading has stopped. GitLab may read on: it parses without checking a checksum, and accepts comments."""
        return not self._whole or self._inflated.blind

    def feed(self, chunk: bytes) -> None:
        self._raw.feed(chunk)
        if not self._whole:
            return
        try:
            octets = self._inflater.decompress(chunk, self._left)
        except zlib.error:
            self._whole = False
            return
        self._left -= len(octets)
        # A bound of 0 would mean none. What follows the first member may be content to another reader.
        self._whole = self._left > 0 and not self._inflater.unconsumed_tail and not self._inflater.unused_data
        self._inflated.feed(octets)

    def so_far(self) -> BodyVerdict:
        return BodyVerdict()

    def finish(self) -> BodyVerdict:
        inflated = self._inflated.finish()
        findings = tuple(msgspec.structs.replace(each, plain=False) for each in inflated.findings)
        sure = self._whole and self._inflater.eof
        return BodyVerdict(self._raw.finish().findings + findings, inflated.undecidable if sure else Undecidable.ENCODED)

    def cut(self, body: bytes, finding: Finding) -> bytes:
        raise AssertionError("nothing here is plain")


class _Untyped:
    """A body without a content type: what either reading finds, and none of it plain."""

    def __init__(self, *, form: bool) -> None:
        self._json = JsonScanner()
        self._form = FormScanner() if form else None
        self._first = b""

    @property
    def blind(self) -> int:
        return self._json.blind + (self._form is not None and self._form.blind)

    def may_name(self, octets: bytes) -> bool:
        return self._json.may_name(octets) or (self._form is not None and self._form.blind and self._form.may_name(octets))

    def feed(self, chunk: bytes) -> None:
        if not self._first:
            self._first = chunk.lstrip()[:1]
        self._json.feed(chunk)
        if self._form is not None:
            self._form.feed(chunk)

    def so_far(self) -> BodyVerdict:
        return BodyVerdict()

    def finish(self) -> BodyVerdict:
        as_json = self._json.finish()
        as_form = self._form.finish() if self._form is not None else BodyVerdict()
        findings = tuple(msgspec.structs.replace(each, plain=False) for each in as_json.findings + as_form.findings)
        doubt = as_form.undecidable
        # What does not even begin as JSON is refused by Grape, so only the form counts.
        if self._form is None or self._first in {b"{", b"["}:
            doubt = doubt or as_json.undecidable
        return BodyVerdict(findings, doubt)

    def cut(self, body: bytes, finding: Finding) -> bytes:
        raise AssertionError("nothing here is plain")


def body_claim(claim: Claim, verdict: BodyVerdict) -> tuple[Claim, Finding] | None:
    """The one credential in a body that has been read, for a head that carries none; None if the body has none either.

    Raises:
        Rejection: AMBIGUOUS_CREDENTIAL, BODY_CREDENTIAL or BODY_UNDECIDABLE (400); UNAUTHENTICATED (401).
    """
    found = _credentials(verdict)
    if not found:
        return None
    if claim.kind is not CredentialKind.NONE or len(found) > 1:
        raise _second_credential(claim, found)
    finding = found[0]
    if verdict.undecidable is not None:
        raise _undecidable(verdict.undecidable)
    if not finding.plain or finding.value is None:
        raise bad_request("400 Bad Request - credential in the body", Code.BODY_CREDENTIAL)
    if _VISIBLE.fullmatch(finding.value) is None:
        raise unauthenticated("a blank or a control octet in a credential")
    octets = finding.value.encode("utf-8", "surrogateescape")
    kind, upstream_fields = CredentialKind.OPAQUE, claim.upstream_fields
    if finding.name in CREDENTIAL_PARAMETERS:
        kind, upstream_fields = moved_parameter(finding.name, octets)
    moved = msgspec.structs.replace(
        claim,
        kind=kind,
        secret=Secret(finding.value),
        carrier=Carrier.BODY,
        parameter=finding.name,
        upstream_fields=upstream_fields,
    )
    return moved, finding


def admit_body(
    claim: Claim,
    verdict: BodyVerdict,
    *,
    brokered: bool,
    may_sudo: str | None = None,
    places: frozenset[PlaceSpelling] | None = None,
    token_counts: bool = False,
    left: frozenset[str] = frozenset(),
    sudo: str | None = None,
    suspect: bool = False,
) -> None:
    """Check that the whole body may go up, before its last chunk does.

    Args:
        claim: What the head (or ``body_claim``) presented.
        verdict: The verdict on the body.
        brokered: Whether GitLab will see one of the gateway's credentials: then nothing may be left to chance.
        may_sudo: The user that this brokered caller may act as.
        places: The projects and groups that may be named, by ``rule_match.spellings``; None for any.
        token_counts: Whether a ``token`` in the body is one credential too many (``is_second_token``).
        left: The credential parameters that may stay in the body (``allowed_in_body``).
        sudo: The user that the head, or an earlier part of the body, asks to act as.
        suspect: Whether what could not be read may name a credential, a method or ``sudo``.

    Raises:
        Rejection: PROJECT_UNKNOWN (404) for a place that is none of ``places``;
            METHOD_OVERRIDE, AMBIGUOUS_CREDENTIAL, BODY_UNDECIDABLE (400); UNAUTHENTICATED (401) for a gateway key in the
            body; SUDO_FORBIDDEN (403).
    """
    findings = verdict.findings
    if any(finding.name == "_method" for finding in findings):
        raise bad_request(code=Code.METHOD_OVERRIDE)
    credentials = [finding for finding in findings if finding.name in _CREDENTIALS and finding.value != ""]
    if credentials and (brokered or any(finding.name not in left for finding in credentials)):
        raise _second_credential(claim, credentials)
    if token_counts and any(finding.name == "token" and finding.value != "" for finding in findings):
        raise two_credentials()
    if any(finding.name in _CARRIERS and holds_gateway_key(finding.value or "") for finding in findings):
        raise unauthenticated("a gateway key where GitLab would be shown it")
    for finding in findings:
        if finding.name != "sudo":
            continue
        if finding.value != "":
            if brokered and (not finding.plain or finding.value is None or finding.value != may_sudo):
                raise forbidden("Must be admin to use sudo", Code.SUDO_FORBIDDEN)
            # GitLab takes `1.0` for user 1, and ` sudo` for another parameter; the audit must name the user it acts as.
            if finding.value is None or not finding.plain:
                raise _undecidable(verdict.undecidable or Undecidable.MALFORMED)
        # A `null` cancels an earlier `sudo`, even one in the query.
        if sudo is not None and finding.value != sudo:
            raise bad_request("400 Bad Request - more than one sudo", Code.AMBIGUOUS_CREDENTIAL)
        sudo = finding.value
    if places is not None:
        for finding in findings:
            if finding.name in PLACE_PARAMETERS and finding.value != "" and not _names_one_of(places, finding):
                raise Rejection(Code.PROJECT_UNKNOWN, 404, "404 Project Not Found", detail="named in the body")
    if (brokered or places is not None or suspect) and verdict.undecidable is not None:
        raise _undecidable(verdict.undecidable)


def admit_page(verdict: BodyVerdict, suspect: bool) -> None:
    """Check that a form may go up to one of GitLab's pages.

    Anything may be in it except a ``_method`` that makes it a read: GitLab would then take a token out of it, as out of a
    query, and nobody has judged whose token that is.

    Raises:
        Rejection: METHOD_OVERRIDE, BODY_UNDECIDABLE (400), the latter for a body that can't be read and is ``suspect``.
    """
    for finding in verdict.findings:
        if finding.name == "_method" and (finding.value is None or finding.value.lower() not in _WRITES):
            raise bad_request(code=Code.METHOD_OVERRIDE)
    if suspect and verdict.undecidable is not None:
        raise _undecidable(verdict.undecidable)


def _names_one_of(places: frozenset[PlaceSpelling], finding: Finding) -> bool:
    return finding.plain and finding.value is not None and parameter_spelling(finding.name, finding.value) in places


def _credentials(verdict: BodyVerdict) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.name in _CREDENTIALS and finding.value != ""]


def _second_credential(claim: Claim, found: list[Finding]) -> Rejection:
    if claim.carrier is Carrier.BEARER and any(finding.name == "access_token" for finding in found):
        return both_bearer_and_access_token()
    return two_credentials()


def _undecidable(reason: Undecidable) -> Rejection:
    rejection = bad_request("400 Bad Request - body not readable", Code.BODY_UNDECIDABLE)
    rejection.detail = reason.value
    return rejection

"""What fuzzers throw octets at: parsers of the hostile side, each with what must hold whatever comes.

A target takes octets and raises only when the gateway is wrong: an exception that is no verdict, or a broken invariant.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from unittest import mock
from urllib.parse import unquote_to_bytes

from gateway.core import head_form
from gateway.core.body import BodyVerdict
from gateway.core.body_form import FormScanner
from gateway.core.body_json import JsonScanner
from gateway.core.body_multipart import MultipartScanner, boundary_of
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import (
    CREDENTIAL_FIELDS,
    TOKEN_PARAMETERS,
    Carrier,
    CredentialKind,
    credential_fields,
    read_claim,
)
from gateway.core.errors import Rejection
from gateway.core.framing import has_control, is_token, judge_fields, judge_framing, judge_host
from gateway.core.headers import HOP_BY_HOP, RequestHeaderRules, forwarded_fields
from gateway.core.messages import Fields
from gateway.core.query import query_parameters
from gateway.core.response_headers import ResponseHeaderRules
from gateway.core.target import parse_target
from gateway.core.token_request import TokenRefused, read_token_request
from gateway.ports import Answered
from gateway.upstream.gathering import fields_to_learn, with_length
from gateway.upstream.head_forms import HeadForms
from gateway.upstream.response import HeadBuffer, Malformed, body_reader, parse_head

Check = Callable[[bytes], None]

_OPERATIONS = [
    Operation(name="other", access=Access.WRITE, surface=surface, known=False)
    for surface in (Surface.REST, Surface.WEB, Surface.PACKAGES, Surface.RUNNER, Surface.GIT)
]
_REQUEST_RULES = (RequestHeaderRules(bypass=b"X-Bypass"), RequestHeaderRules(shared=True))
_RESPONSE_RULES = ResponseHeaderRules(
    external_urls=("https://gitlab.example.com",), public_url="https://public.example.com"
)
_SHOWN = {
    f"Claim({kind.value}, {carrier})" for kind in CredentialKind for carrier in (None, *(one.value for one in Carrier))
}
_WATCHED = {"private_token", "access_token", "job_token", "token", "sudo", "_method"}


def _is_one_of(rejection: Rejection, statuses: set[int]) -> None:
    assert rejection.status in statuses, rejection.status


def target(octets: bytes) -> None:
    """Forwarded as received or refused; nothing in it decodes into a step up, however often it is decoded."""
    prefix = b"/gitlab" if octets[:1] == b"\x01" else b""
    raw = octets[1:]
    try:
        found = parse_target(raw, prefix=prefix)
    except Rejection as rejection:
        _is_one_of(rejection, {400, 404, 414})
        return
    assert raw.endswith(found.raw) or b"/" + raw.partition(b"://")[2].removeprefix(found.authority or b"") == found.raw
    assert found.authority is not None or found.raw == raw
    assert found.raw == found.path + (b"" if found.query is None else b"?" + found.query)
    assert found.path.startswith(b"/")
    assert not has_control(found.raw)
    assert not any(octet <= 32 or octet >= 127 for octet in found.raw)
    decoded = found.path.split(b"/")
    for _ in range(4):
        assert not any(segment.partition(b";")[0] in {b".", b".."} for segment in decoded), decoded
        assert not any(part.partition(b";")[0] == b".." for segment in decoded for part in segment.split(b"/")), decoded
        decoded = [unquote_to_bytes(segment) for segment in decoded]
    if found.authority is None:
        assert parse_target(found.raw, prefix=prefix) == found
    for parameter in query_parameters(found.query or b""):
        assert 0 <= parameter.start <= parameter.end <= len(found.query or b"")


def _fields(octets: bytes) -> Fields:
    """Lines as names and values: what an HTTP parser may hand over."""
    pairs = [line.partition(b":") for line in octets.split(b"\n")[:40]]
    return tuple((name, value.strip(b" \t")) for name, separator, value in pairs if separator and is_token(name))


def headers(octets: bytes) -> None:
    """Nothing hop-by-hop, nominated or ours to write comes through, and nothing is made up."""
    fields = _fields(octets[1:])
    rules = _REQUEST_RULES[octets[:1] == b"\x01"]
    try:
        judge_fields(fields)
        judge_framing(fields)
        judge_host(fields)
        kept = rules.forwardable(fields)
    except Rejection as rejection:
        _is_one_of(rejection, {400, 413, 431, 501, 508})
        return
    nominated = {
        name.strip(b" \t").lower()
        for field, value in fields
        if field.lower() == b"connection"
        for name in value.split(b",")
    }
    for name, value in kept[:-1]:
        key = name.lower()
        assert (name, value) in fields
        assert key not in HOP_BY_HOP
        assert key not in nominated or key in {b"via", b"traceparent", b"tracestate"} - nominated
        assert not key.startswith((b"proxy-", b"x-forwarded-"))
        assert not has_control(value)
        if not rules.shared:
            assert b"_" not in key
            assert key not in CREDENTIAL_FIELDS
            assert not key.startswith((b"gitlab-workhorse", b"gitlab-shell")), key
    assert kept[-1][0] == b"Via"
    for name, value in forwarded_fields("192.0.2.1", b"gateway.test", tls=True, trusted=True, received=fields):
        assert is_token(name)
        assert not has_control(value)


def credentials(octets: bytes) -> None:
    """One credential or a refusal: never two upstream, never one in what is forwarded or printed."""
    operation = _OPERATIONS[octets[0] % len(_OPERATIONS)] if octets else _OPERATIONS[0]
    line, _, rest = octets[1:].partition(b"\n")
    fields = _fields(rest)
    try:
        judge_fields(fields)
        parsed = parse_target(line)
        claim = read_claim(fields, "GET", parsed, operation)
    except Rejection as rejection:
        _is_one_of(rejection, {400, 401, 403, 404, 414, 431})
        return
    carried = credential_fields(claim)
    assert len({name.lower() for name, _ in claim.upstream_fields} - {b"cookie", b"dpop", b"authorization"}) <= 1
    assert all(is_token(name) and not has_control(value) for name, value in carried)
    forwarded = parse_target(claim.target)
    left = {parameter.name for parameter in query_parameters(forwarded.query or b"")}
    assert left.isdisjoint(TOKEN_PARAMETERS), left
    assert repr(claim) in _SHOWN, "nothing of the caller's"
    if parsed.query is None:
        assert claim.target == parsed.raw


def responses(octets: bytes) -> None:
    """The same answer however it is cut; a verdict on anything; nothing with control octets goes down."""
    cut = octets[0] if octets else 0
    stream = octets[1:]
    whole, pieces = _read(stream, len(stream)), _read(stream, cut)
    assert whole == pieces, (whole, pieces)


@mock.patch.object(head_form, "_OFTEN", 1)  # what came once is expected
def known_heads(octets: bytes) -> None:
    """Heads one behind the other, each with a blank line: what is read in the form of another is what the reader says."""
    forms, like = HeadForms(), Answered()
    for head in octets.split(b"\r\n\r\n"):
        # The last one may lack half of its blank line, and what is put behind it completes that.
        start = forms.match_start(head + b"\r\n\r\n", like) if not head.endswith(b"\r\n") else None
        assert start is None or start[2] == b"", "all of it is the head"
        found = forms.read(head, like)
        try:
            read = parse_head(head, bodiless=False)
        except Malformed:
            assert found is start is None, "a form took what is malformed"
            continue
        has_length = read.length >= 0
        fields = read.fields if has_length else with_length(read.fields, b"0")
        # What is expected may be of a form that is forgotten by now.
        for form, values in [known[:2] for known in (found, start) if known is not None]:
            assert (values[form.length] or b"-1") == (b"%d" % read.length if has_length else b"-1")
            made = form.head(values if has_length else form.with_content_length(values, 0))
            assert (made.status, made.reason, made.fields) == (read.status, read.reason, fields)
            assert (read.persistent, read.upgrade) == (True, False)
        if found is None and (learnt := fields_to_learn(read)) is not None:
            forms.learn(head, learnt, read.reason)


def _read(stream: bytes, cut: int) -> object:
    """(status, fields, body so far, ended, surplus), or that it is malformed."""
    buffer = HeadBuffer()
    chunks = [chunk for chunk in (stream[:cut], stream[cut:]) if chunk]
    found = None
    try:
        while chunks and found is None:
            found = buffer.feed(chunks.pop(0))
        if found is None:
            return None
        head = parse_head(found[0], bodiless=False)
        try:
            kept = _RESPONSE_RULES.forwardable(head.fields).fields
        except Rejection as rejection:
            _is_one_of(rejection, {502})
            return "refused"
        assert 100 <= head.status <= 599
        assert all(is_token(name) and not has_control(value) for name, value in kept)
        reader = body_reader(head.length)
        body = b""
        rest = [found[1], *chunks]
        while rest and not reader.done:
            body += reader.feed(rest.pop(0))
        surplus = reader.surplus or any(rest)
    except Malformed:
        return "malformed"
    return head.status, kept, body, reader.done, surplus


def json_bodies(octets: bytes) -> None:
    """What a parser finds on the top level is found, or the body is undecidable; splits of what is JSON change nothing."""
    body = octets[1:]
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        _verdicts(JsonScanner, octets)  # no parser takes it: whether it reads as malformed may depend on the split
        return
    verdict = _scanned(JsonScanner, octets)
    if verdict.undecidable is None and isinstance(document, dict):
        found = {finding.name for finding in verdict.findings}
        assert {name for name in document if name in _WATCHED - {"_method"}} <= found, (body, found)


def forms(octets: bytes) -> None:
    """The same for urlencoded bodies."""
    verdict = _scanned(FormScanner, octets)
    if verdict.undecidable is None:
        names = {unquote_to_bytes(pair.partition(b"=")[0]).decode("utf-8", "replace") for pair in octets[1:].split(b"&")}
        assert names & _WATCHED <= {finding.name for finding in verdict.findings}, octets


def multiparts(octets: bytes) -> None:
    """The same for multipart bodies."""
    verdict = _scanned(lambda: MultipartScanner(b"b"), octets)
    if verdict.undecidable is None and b"--b--" in octets:
        for name in _WATCHED:
            part = b'--b\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n'
            if octets[1:].startswith(part):
                assert name in {finding.name for finding in verdict.findings}
    boundary_of(octets)


Make = Callable[[], JsonScanner | FormScanner | MultipartScanner]


def _verdicts(make: Make, octets: bytes) -> tuple[BodyVerdict, BodyVerdict]:
    """In one piece, and cut where the first octet says."""
    cut, body = (octets[0] if octets else 0), octets[1:]
    whole, halves = make(), make()
    whole.feed(body)
    halves.feed(body[:cut])
    halves.feed(body[cut:])
    return whole.finish(), halves.finish()


def _scanned(make: Make, octets: bytes) -> BodyVerdict:
    """The verdict, which must be the same either way."""
    body = octets[1:]
    verdict, other = _verdicts(make, octets)
    # Why a body cannot be read may depend on where it was cut; that it cannot, and what was found in one that can, may not.
    assert (verdict.undecidable is None) == (other.undecidable is None), (verdict, other)
    assert verdict.undecidable is not None or verdict == other, (verdict, other)
    for finding in verdict.findings if verdict.undecidable is None else ():
        assert 0 <= finding.start < finding.end <= len(body)
        assert len(make().cut(body, finding)) < len(body)
    return verdict


def _is_oauths(refused: TokenRefused) -> None:
    assert refused.error in {"invalid_request", "unsupported_grant_type", "invalid_scope", "invalid_target"}
    assert str(refused).isprintable()


def token_requests(octets: bytes) -> None:
    """A token and a life, or one of OAuth's errors; what is refused quotes nothing of what was sent."""
    try:
        found = read_token_request("application/x-www-form-urlencoded", octets)
    except TokenRefused as refused:
        _is_oauths(refused)
        return
    assert found.subject.reveal()
    assert found.lifetime_s is None or found.lifetime_s >= 60


TARGETS: dict[str, Check] = {
    check.__name__: check
    for check in (target, headers, credentials, responses, known_heads, json_bodies, forms, multiparts, token_requests)
}

SEEDS: dict[str, list[bytes]] = {
    "target": [
        b"\0/api/v4/projects/a%2Fb?x=%00",
        b"\x01/gitlab/api/v4/%2e%2e/x",
        b"\0https://gitlab.test/a;/..;x",
        b"\0/a/%252e%252e/",
    ],
    "headers": [
        b"\0Host: x\nConnection: close, X-A\nX-A: 1\nTransfer-Encoding: chunked\nVia: 1.1 gateway\nPRIVATE_TOKEN: x",
        b"\x01Host: x\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nForwarded: for=x",
    ],
    "credentials": [
        b"\0/api/v4/x?private_token=abc\nAuthorization: Bearer x\nCookie: _gitlab_session=x",
        b"\x02/api/v4/y\nAuthorization: Basic YTpi\nSudo: root\nJOB-TOKEN: x",
        b"\x01/x?private%5Ftoken[]=a;sudo=b\n",
    ],
    "responses": [
        b"\x05HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"\x30HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\nhello\r\n0\r\nA: b\r\n\r\n",
        b"\x09HTTP/1.0 304 Not Modified\r\nConnection: keep-alive\r\nLink: <https://gitlab.example.com/a>\r\n\r\n",
    ],
    "known_heads": [
        b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nEtag: "1"\r\nX-Page: 1\r\n\r\n'
        b'HTTP/1.1 200 OK\r\nContent-Length: 6\r\nEtag: "2"\r\nX-Page: \r\n\r\n',
        b"HTTP/1.1 200 OK\r\nVary: a\r\nContent-Length: 5\r\nX-T: 1\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nVary: a\r\nContent-Length: 5\r\nX-T: 2\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nVary: a\r\nContent-Length: 5\r\nX-T: 3\r\n\r\n",
    ],
    "json_bodies": [b'\x05{"private_token":"x","a":[1,{"sudo":2}],"\\u0073udo":null}', b'\x03[{"_method":"x"}]'],
    "forms": [b"\x04private_token=x&sudo%5B%5D=1&a=b;c=d", b"\x09%70rivate_token=1&_method=delete"],
    "multiparts": [b'\x14--b\r\nContent-Disposition: form-data; name="sudo"\r\n\r\nroot\r\n--b--\r\n'],
    "token_requests": [
        b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=eyJ.e30.c2ln"
        b"&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt&expires_in=300",
        b"grant_type=password&scope=api&audience=x&actor_token=y",
    ],
}
"""Where mutation starts: one or a few of each kind, with what is interesting in them."""

"""Bodies on the road: what is read before authentication, and what is held back on the way up."""

from __future__ import annotations

import gzip
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.body_stage import BodyStage, HeldBody, UnreadBodyStage, WatchedBody
from gateway.core.access import Permit, Principal, PrincipalKind
from gateway.core.body import MAX_NAMING_BYTES, BodyVerdict, Undecidable, UnreadableBody
from gateway.core.body_credentials import MAX_CUT_BYTES, scanner_for
from gateway.core.body_multipart import MultipartScanner
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Carrier, Claim, CredentialKind
from gateway.core.errors import Code, Rejection
from gateway.core.messages import Field, RequestHead
from gateway.core.request_validation import AdmittedRequest
from gateway.core.rule_match import PlaceSpelling
from gateway.core.secret import Secret
from gateway.core.target import parse_target
from gateway.ports import RequestBody

FORM = (b"Content-Type", b"application/x-www-form-urlencoded")
TARGET = parse_target(b"/api/v4/projects/1/issues")
REST = Operation("POST /api/v4/projects/:id/issues", Access.WRITE, Surface.REST)
WEB = Operation("other", Access.WRITE, Surface.WEB)
NONE = Claim(CredentialKind.NONE, Secret(""))
KEY = Principal("backstage", PrincipalKind.KEY, "backstage")
OWN = Principal("user:1", PrincipalKind.GITLAB_TOKEN, "people")


class Pieces:
    """A client's body."""

    def __init__(self, *pieces: bytes, length: int | None = None) -> None:
        self.pieces = list(pieces)
        self.content_length = length

    async def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


async def whole(body: RequestBody) -> bytes:
    octets = b""
    while chunk := await body.read():
        octets += chunk
    assert await body.read() == b""
    return octets


def head(*fields: Field) -> RequestHead:
    return RequestHead("POST", TARGET.raw, fields, has_body=True)


def admitted(claim: Claim = NONE) -> AdmittedRequest:
    return AdmittedRequest(TARGET, REST, claim, b"git.example.com", "192.0.2.7", False)


# Before authentication


async def test_a_credential_is_cut_out() -> None:
    body = Pieces(b"title=x&priv", b"ate_token=T&a=b", length=27)
    claim, rest = await BodyStage().claim(admitted(), head(FORM), body)
    assert (claim.kind, claim.carrier, claim.secret.reveal()) == (CredentialKind.TOKEN, Carrier.BODY, "T")
    octets = await whole(rest)
    assert octets == b"title=x&a=b"
    assert rest.content_length == len(octets)


@pytest.mark.parametrize("length", [None, 11])
async def test_a_body_without_one_is_handed_on_whole(length: int | None) -> None:
    claim, rest = await BodyStage().claim(admitted(), head(FORM), Pieces(b"title=x", b"&a=b", length=length))
    assert claim is NONE
    assert await whole(rest) == b"title=x&a=b"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ((FORM, (b"Expect", b"100-continue")), 5),
        ((FORM,), MAX_CUT_BYTES + 1),
        (((b"Content-Type", b"application/octet-stream"),), 5),
    ],
    ids=["expect", "long", "not for Rails"],
)
async def test_some_bodies_are_left_alone(fields: tuple[Field, ...], length: int) -> None:
    """Nobody is told to continue before authentication, and nothing beyond 64 KiB is held."""
    body = Pieces(b"private_token=T", length=length)
    claim, rest = await BodyStage().claim(admitted(), head(*fields), body)
    assert claim is NONE
    assert rest is body
    assert body.pieces, "nothing was read"


async def test_a_body_that_turns_out_long_is_handed_on_unread() -> None:
    pieces = [b"a=" + b"x" * 40000, b"x" * 40000, b"x" * 40000]
    body = Pieces(*pieces)
    claim, rest = await BodyStage().claim(admitted(), head(FORM), body)
    assert claim is NONE
    assert len(body.pieces) == 1
    assert await whole(rest) == b"".join(pieces)


async def test_a_credential_that_is_not_plain_is_refused() -> None:
    with pytest.raises(Rejection) as refused:
        await BodyStage().claim(admitted(), head(), Pieces(b"private_token=T"))
    assert refused.value.code is Code.BODY_CREDENTIAL


# On the way up


def guarded(claim: Claim, principal: Principal, operation: Operation, *fields: Field) -> tuple[RequestBody, Pieces]:
    body = Pieces(b"a=b")
    return BodyStage().guard(claim, principal, Permit("r"), head(*fields), body, operation), body


async def test_nothing_is_inflated_before_it_is_known_who_asks() -> None:
    """A kilobyte of it would stop everybody else for a fifth of a second; on its way up it is judged as any other."""
    octets = gzip.compress(b'{"private_token":"x"}')
    fields = (b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip")
    claim, body = await BodyStage().claim(admitted(), head(*fields), Pieces(octets))
    assert claim is NONE
    nobody = Principal("anonymous:::1", PrincipalKind.ANONYMOUS, "anonymous")
    watched = BodyStage().guard(claim, nobody, Permit("anonymous"), head(*fields), body, REST)
    with pytest.raises(Rejection) as refused:
        await whole(watched)
    assert refused.value.code is Code.AMBIGUOUS_CREDENTIAL


def test_who_is_watched() -> None:
    assert isinstance(guarded(SESSION, OWN, WEB, FORM)[0], WatchedBody)
    assert isinstance(guarded(NONE, KEY, REST, FORM)[0], WatchedBody)
    assert isinstance(guarded(NONE, KEY, WEB, FORM)[0], WatchedBody)
    assert isinstance(guarded(NONE, OWN, REST, FORM)[0], WatchedBody)
    assert isinstance(guarded(Claim(CredentialKind.SESSION, Secret("s")), OWN, REST, FORM)[0], WatchedBody)


SESSION = Claim(CredentialKind.SESSION, Secret("s"))
PARTS = (b"Content-Type", b"multipart/form-data; boundary=x")
NO_PARTS = (b"Content-Type", b"multipart/form-data")
JSON = (b"Content-Type", b"application/json")


def part(name: bytes, content: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name, content)


def on_a_page(
    body: bytes,
    field: Field,
    claim: Claim,
    *,
    cut: int = 4096,
    method: str = "POST",
    surface: Surface = Surface.WEB,
    principal: Principal = OWN,
) -> RequestBody:
    pieces = Pieces(*(body[at : at + cut] for at in range(0, len(body), cut)))
    asked = msgspec.structs.replace(head(field), method=method)
    return BodyStage().guard(claim, principal, Permit("r"), asked, pieces, msgspec.structs.replace(WEB, surface=surface))


@pytest.mark.parametrize("claim", [SESSION, NONE], ids=["a browser's", "another's"])
@pytest.mark.parametrize(
    ("field", "body"),
    [
        (FORM, b"_method=delete&authenticity_token=_method&private_token=x&sudo=root"),
        (FORM, b"_method=PATCH"),
        (FORM, b"_method=post"),
        (FORM, b"_method=Put"),
        (FORM, b"_method="),
        (PARTS, part(b"_method", b"put") + part(b"user[private_token]", b"x") + b"--x--\r\n"),
        (PARTS, part(b"file", b'"_method=get"') + b"--x--\r\n"),
        (PARTS, part(b"a\\b", b"authenticity_token sudo") + b"--x--\r\n"),
        (JSON, b'{"_method":"get","private_token":"x"}'),
        (JSON, b'{"\\u005fmethod":"get"/**/}'),
    ],
)
async def test_a_browsers_form_is_gitlabs_to_judge(field: Field, body: bytes, claim: Claim) -> None:
    for cut in (1, 7, 4096):
        assert await whole(on_a_page(body, field, claim, cut=cut)) == body


@pytest.mark.parametrize("claim", [SESSION, NONE], ids=["a browser's", "another's"])
@pytest.mark.parametrize(
    ("field", "body", "code"),
    [
        (FORM, b"_method=get&private_token=x", Code.METHOD_OVERRIDE),
        (FORM, b"private_token=x&%5fmethod=%48ead", Code.METHOD_OVERRIDE),
        (FORM, b"_method=delete&_method=GET", Code.METHOD_OVERRIDE),
        (FORM, b"_method[]=get", Code.METHOD_OVERRIDE),
        (PARTS, part(b"_method", b"get") + b"--x--\r\n", Code.METHOD_OVERRIDE),
        (PARTS, part(b'_method"; filename="get', b"get") + b"--x--\r\n", Code.METHOD_OVERRIDE),
        (PARTS, part(b"a\\b", b"c") + part(b"_me\\thod", b"get") + b"--x--\r\n", Code.BODY_UNDECIDABLE),
        (NO_PARTS, b"%5fmethod=get&private_token=x", Code.BODY_UNDECIDABLE),
    ],
)
async def test_a_form_does_not_make_a_read_of_a_page(field: Field, body: bytes, code: Code, claim: Claim) -> None:
    """GitLab takes a token out of one, for a feed or a raw file, and beside a cookie nobody here has judged it."""
    for cut in (1, 7, 4096):
        with pytest.raises(Rejection) as refused:
            await whole(on_a_page(body, field, claim, cut=cut))
        assert refused.value.code is code
    assert await whole(on_a_page(body, field, claim, method="PUT")) == body, "only a POST is made another method"


@pytest.mark.parametrize("surface", [Surface.WEB, Surface.WEB_TOKEN, Surface.OAUTH, Surface.WEBSOCKET])
async def test_behind_a_cookie_each_kind_of_page_has_forms(surface: Surface) -> None:
    body = b"_method=delete&private_token=x"
    assert await whole(on_a_page(body, FORM, SESSION, surface=surface)) == body


@pytest.mark.parametrize(
    ("principal", "surface"),
    [(KEY, Surface.WEB), (OWN, Surface.WEB_TOKEN), (OWN, Surface.OAUTH), (OWN, Surface.WEBSOCKET)],
)
async def test_without_a_cookie_no_other_page_has_forms_of_its_own(principal: Principal, surface: Surface) -> None:
    for body, code in ((b"_method=delete", Code.METHOD_OVERRIDE), (b"private_token=x", Code.AMBIGUOUS_CREDENTIAL)):
        with pytest.raises(Rejection) as refused:
            await whole(on_a_page(body, FORM, NONE, surface=surface, principal=principal))
        assert refused.value.code is code


@pytest.mark.parametrize("claim", [SESSION, NONE], ids=["a browser's", "another's"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_reads_a_page_has_no_credential_in_a_form(method: str, claim: Claim) -> None:
    """Rack reads one with any method; a feed's page takes a token out of it."""
    with pytest.raises(Rejection) as refused:
        await whole(on_a_page(b"private_token=x", FORM, claim, method=method))
    assert refused.value.code is Code.AMBIGUOUS_CREDENTIAL


def test_what_rails_does_not_read_is_not_watched() -> None:
    watched, body = guarded(NONE, KEY, REST, (b"Content-Type", b"application/octet-stream"))
    assert watched is body


PUT = Operation("PUT /api/v4/projects/:id/packages/x", Access.WRITE, Surface.PACKAGES)


def put(target: bytes, *fields: Field, operation: Operation = PUT) -> bool:
    """Whether its body is watched."""
    body = Pieces(b"\x00\x01")
    asked = msgspec.structs.replace(head(*fields), method="PUT", target=target)
    return BodyStage().guard(NONE, KEY, Permit("r"), asked, body, operation) is not body


@pytest.mark.parametrize(
    "fields", [(), (FORM,), ((b"Content-Type", b"application/json"),)], ids=["untyped", "form", "json"]
)
@pytest.mark.parametrize(
    "target",
    [
        b"/api/v4/projects/1/packages/generic/p/1.0/f.bin",
        b"/api/v4/projects/a%2Fb/packages/maven/com/example/a/1/a-1.jar?x",
        b"/gitlab/api/v4/projects/1/packages/debian/a_1_all.deb",
        b"/api/v4/packages/conan/v1/files/p/1/u/c/0/export/f",
        b"/api/v4/projects/1/packages/terraform/modules/m/s/1.0/file",
    ],
)
def test_a_package_file_is_not_looked_into(target: bytes, fields: tuple[Field, ...]) -> None:
    """Workhorse keeps it as a file. curl, Maven, Conan and dput do not say what is in it."""
    assert not put(target, *fields)


@pytest.mark.parametrize(
    "target",
    [
        b"/api/v4/projects/1/packages/%67eneric/p/1.0/f.bin",
        b"/api/v4/projects/1/packages/%67eneric/api/v4/packages/conan/f",
        b"/api/v4/projects/1/packages/nuget/",
        b"/api/v4/projects/1/packages/npm/-/package/p/dist-tags/latest",
        b"/api/v4/projects/1/packages/npm/-/package/api/v4/packages/conan/dist-tags/latest",
        b"/gitlab/api/v4/projects/1/packages/npm/-/package/api/v4/packages/conan/dist-tags/latest",
        b"/api/v4/packages/generic/p/1.0/f.bin",  # no route of GitLab's today, and Workhorse keeps Conan's alone there
        b"/gitlab/api/v4/packages/terraform/modules/m/s/1.0/file",
    ],
)
def test_a_put_that_workhorse_hands_on_is_watched(target: bytes) -> None:
    assert put(target)


def test_only_package_routes_keep_files() -> None:
    assert put(b"/api/v4/projects/1/packages/generic/p/1.0/f.bin", operation=REST)


def watch(
    *pieces: bytes, brokered: bool = True, may_sudo: str = "", places: frozenset[PlaceSpelling] | None = None
) -> RequestBody:
    permit = Permit("r", sudo=may_sudo)
    return BodyStage().guard(NONE, KEY if brokered else OWN, permit, head(FORM), Pieces(*pieces, length=9), REST, places)


async def test_a_browsers_form_is_watched_where_rules_speak_of_projects() -> None:
    body = Pieces(b"target_project_id=9")
    watched = BodyStage().guard(SESSION, OWN, Permit("r"), head(FORM), body, WEB, places=frozenset({(True, "1")}))
    with pytest.raises(Rejection) as refused:
        await whole(watched)
    assert refused.value.code is Code.PROJECT_UNKNOWN


COMMIT = Operation("POST /api/v4/projects/:id/repository/commits", Access.WRITE, Surface.REST, names_in_body=True)
RETYPED = TARGET.raw + b"?Content-Type=text/plain"
OCTETS = (b"Content-Type", b"application/octet-stream")


@pytest.mark.parametrize(
    ("field", "target", "operation", "confined", "passes"),
    [
        pytest.param(OCTETS, TARGET.raw, COMMIT, True, False, id="of a type that is not read"),
        pytest.param(FORM, RETYPED, COMMIT, True, False, id="of a type that the query tells"),
        pytest.param(FORM, TARGET.raw + b"?content_type=x", COMMIT, True, True, id="read"),
        pytest.param(OCTETS, TARGET.raw, REST, True, True, id="where none is named"),
        pytest.param(FORM, RETYPED, REST, True, True, id="where none is named, and retyped"),
        pytest.param(OCTETS, TARGET.raw, COMMIT, False, True, id="where any may be named"),
        pytest.param(FORM, RETYPED, COMMIT, False, True, id="where any may be named, and retyped"),
    ],
)
async def test_where_a_body_names_places_it_is_read(
    field: Field, target: bytes, operation: Operation, confined: bool, passes: bool
) -> None:
    """Workhorse keeps a commit as a file, and GitLab goes by a parameter for what that file is."""
    asked, places = msgspec.structs.replace(head(field), target=target), frozenset({(True, "1")}) if confined else None
    watched = BodyStage().guard(NONE, KEY, Permit("r"), asked, Pieces(b"a=b"), operation, places)
    if passes:
        assert await whole(watched) == b"a=b"
        return
    with pytest.raises(Rejection) as refused:
        await whole(watched)
    assert refused.value.code is Code.BODY_UNDECIDABLE


async def test_a_body_that_names_another_project_never_passes_whole() -> None:
    passed: list[bytes] = []
    with pytest.raises(Rejection) as refused:
        await passing(watch(b"title=x&", b"target_project", b"_id=9", places=frozenset({(True, "1")})), passed)
    assert refused.value.code is Code.PROJECT_UNKNOWN
    assert b"".join(passed) != b"title=x&target_project_id=9"
    assert await whole(watch(b"target_project_id=1", places=frozenset({(True, "1")}))) == b"target_project_id=1"


async def passing(body: RequestBody, passed: list[bytes]) -> None:
    while chunk := await body.read():
        passed.append(chunk)


async def test_a_watched_body_keeps_its_length() -> None:
    assert watch(b"a=b").content_length == 9


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=5))
async def test_a_forbidden_body_never_passes_whole_however_it_is_split(padding: bytes, cuts: list[int]) -> None:
    body = b"x=" + padding.replace(b"&", b"").replace(b";", b"") + b"&sudo=root"
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(places) if start < end]
    watched = watch(*pieces)
    passed: list[bytes] = []
    with pytest.raises(Rejection):
        await passing(watched, passed)
    assert len(b"".join(passed)) < len(body)


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=6))
async def test_what_is_not_brokered_passes_as_it_came(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    if b"_method" in body or b"token" in body or b"%" in body:
        return
    assert await whole(watch(*pieces, brokered=False)) == body


@pytest.mark.parametrize("cut", [1, 7, 4096])
async def test_where_a_token_counts_none_hides_in_what_can_not_be_read(cut: int) -> None:
    """GitLab takes it in stead of a job's token."""
    route = Operation("GET /api/v4/projects/:id/releases", Access.READ, Surface.REST, job_token=True)
    bodies = b'{/**/"token":"x"}', b'{"t\\oken":"x"}', b'{/**/"name":"x"}'
    for kind, body in itertools.product((CredentialKind.JOB_TOKEN, CredentialKind.TOKEN), bodies):
        pieces = Pieces(*(body[at : at + cut] for at in range(0, len(body), cut)))
        claim = Claim(kind, Secret("t"))
        watched = BodyStage().guard(claim, OWN, Permit("r"), head((b"Content-Type", b"application/json")), pieces, route)
        if kind is CredentialKind.TOKEN or b"name" in body:
            assert await whole(watched) == body
            continue
        with pytest.raises(Rejection) as refused:
            await whole(watched)
        assert refused.value.code is Code.BODY_UNDECIDABLE


@pytest.mark.parametrize("cut", range(6, 17))
async def test_what_could_not_be_read_is_not_forgotten_for_what_comes_behind(cut: int) -> None:
    body = b'{/**/"_token":"x",' + b" " * 30_000
    pieces = Pieces(body[:cut], body[cut:], *[b" " * 30_000] * 2, b"}")
    watched = BodyStage().guard(NONE, OWN, Permit("r"), head(JSON), pieces, REST)
    with pytest.raises(Rejection) as refused:
        await whole(watched)
    assert refused.value.code is Code.BODY_UNDECIDABLE


PUT_TOGETHER = b"--b\r\nContent-Disposition: form-data; name*0=x\r\n"


@pytest.mark.parametrize("cut", [700, 4096, 16_384, 100_000])
@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        (b"", b"title=x&" + b" " * 40_000 + b"sudo=root"),
        (b"; boundary=b", b"--b\r\nContent-ID:" + b" " * 40_000 + b"sudo\r\n\r\nroot\r\n--b--\r\n"),
        (b"; boundary=b", b"--b\r\nContent-ID: sudo" + b"]" * 40_000 + b"\r\n\r\nroot\r\n--b--\r\n"),
        (b"; boundary=b", PUT_TOGETHER + b"Content-ID: sudo" + b" " * 40_000 + b"\r\n\r\nroot\r\n--b--\r\n"),
    ],
)
async def test_no_run_of_blanks_or_brackets_is_too_long_for_a_name(boundary: bytes, body: bytes, cut: int) -> None:
    """To Rack, or to Workhorse before it, each of these is a user to act as."""
    await refused_in_pieces(boundary, *(body[at : at + cut] for at in range(0, len(body), cut)))


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((b"name= sudo" + b" " * 1100, b" " * 300), id="behind"),
        pytest.param((b"name= sudo" + b"\x0b\0" * 550, b"\0" * 300), id="others"),
        pytest.param((b"name=" + b" " * 1300, b"sudo\0"), id="before"),
    ],
)
async def test_nor_is_what_rack_3_takes_off_a_name(pieces: tuple[bytes, ...]) -> None:
    first, last = pieces
    body = (PUT_TOGETHER + b"\r\nx\r\n--b\r\nContent-Disposition: form-data; " + first, last + b"\r\n\r\nroot\r\n--b--\r\n")
    await refused_in_pieces(b"; boundary=b", *body)


async def refused_in_pieces(boundary: bytes, *body: bytes) -> None:
    pieces = Pieces(*body)
    parts = (b"Content-Type", b"multipart/form-data" + boundary)
    with pytest.raises(Rejection) as refused:
        await whole(BodyStage().guard(NONE, OWN, Permit("r"), head(parts), pieces, REST))
    assert refused.value.code is Code.BODY_UNDECIDABLE


async def test_what_was_read_is_not_suspected() -> None:
    pieces = b'{"title":"_token"', b" " * 30_000, b",/**/}"
    watched = BodyStage().guard(NONE, OWN, Permit("r"), head(JSON), Pieces(*pieces), REST)
    assert await whole(watched) == b"".join(pieces)


async def test_of_what_can_not_be_read_a_little_is_kept() -> None:
    looked_at: list[int] = []

    def may_name(octets: bytes) -> bool:
        looked_at.append(len(octets))
        return False

    scanner = UnreadableBody(Undecidable.BOUNDARY)
    body = WatchedBody(Pieces(*[b"x" * 30_000] * 5, *[b"y"] * 50), scanner, lambda verdict, suspect: None, may_name)
    assert len(await whole(body)) == 150_050
    assert looked_at == [30_000, *[30_000 + MAX_NAMING_BYTES] * 4, *[1 + MAX_NAMING_BYTES] * 50]


async def test_what_one_reading_has_left_is_looked_at_when_the_other_ends() -> None:
    """Without a type: as JSON it is nothing from the first octet on, as a form from the last pieces."""
    looked_at: list[int] = []

    def may_name(octets: bytes) -> bool:
        looked_at.append(len(octets))
        return False

    scanner = scanner_for(None, None, "POST")
    assert scanner is not None
    pieces = b"x&sudo" + b" " * 4000, b" " * 50, b" " * 50, b"=root"
    await whole(WatchedBody(Pieces(*pieces), scanner, lambda verdict, suspect: None, may_name))
    assert looked_at == [4006, 50 + MAX_NAMING_BYTES, 4106, 5 + MAX_NAMING_BYTES]


async def test_without_a_type_a_body_is_watched_as_any_other() -> None:
    for principal, body in ((OWN, b"a=b&token=x"), (KEY, b"a=b")):
        watched = BodyStage().guard(NONE, principal, Permit("r"), head(), Pieces(body[:2], body[2:]), REST)
        assert await whole(watched) == body
    with pytest.raises(Rejection) as refused:
        await whole(BodyStage().guard(NONE, KEY, Permit("r"), head(), Pieces(b"a=b", b"&sudo=root"), REST))
    assert refused.value.code is Code.SUDO_FORBIDDEN


async def test_after_its_end_a_watched_body_stays_at_its_end() -> None:
    body = Pieces(b"a=b", b"", b"&sudo=root")
    watched = BodyStage().guard(NONE, KEY, Permit("r"), head(FORM), body, REST)
    assert await whole(watched) == b"a=b"
    assert body.pieces, "it was not asked again"


RELEASES = Operation("POST /api/v4/projects/:id/releases", Access.WRITE, Surface.REST, job_token=True)
REVOKE = Operation("POST /oauth/revoke", Access.WRITE, Surface.OAUTH)
IN_BODY = Claim(CredentialKind.OPAQUE, Secret("x"), carrier=Carrier.BODY)


@pytest.mark.parametrize(
    ("claim", "principal", "operation", "method", "body", "passes"),
    [
        pytest.param(NONE, KEY, RELEASES, "POST", b"token=x", False, id="a token where it counts"),
        pytest.param(NONE, KEY, REST, "POST", b"token=x", True, id="a token where it does not"),
        pytest.param(NONE, KEY, msgspec.structs.replace(PUT, job_token=True), "PUT", b"token=x", True, id="in a file"),
        pytest.param(NONE, KEY, msgspec.structs.replace(PUT, job_token=True), "POST", b"token=x", False, id="in no file"),
        pytest.param(IN_BODY, OWN, REVOKE, "POST", b"access_token=x", True, id="OAuth's own"),
        pytest.param(NONE, OWN, REVOKE, "POST", b"access_token=x", False, id="one more than in the head"),
        pytest.param(IN_BODY, OWN, RELEASES, "POST", b"job_token=x", True, id="a job's, where it is one's"),
        pytest.param(IN_BODY, OWN, REST, "POST", b"job_token=x", False, id="a job's elsewhere"),
    ],
)
async def test_which_tokens_are_too_many(
    claim: Claim, principal: Principal, operation: Operation, method: str, body: bytes, passes: bool
) -> None:
    asked = msgspec.structs.replace(head(FORM), method=method)
    watched = BodyStage().guard(claim, principal, Permit("r"), asked, Pieces(body), operation)
    if passes:
        assert await whole(watched) == body
        return
    with pytest.raises(Rejection) as refused:
        await whole(watched)
    assert refused.value.code is Code.AMBIGUOUS_CREDENTIAL


async def test_who_is_acted_as_is_told_before_the_body_is_up() -> None:
    told: list[str] = []
    body = Pieces(b"token=x&sudo=root&sudo=root")
    watched = BodyStage().guard(NONE, OWN, Permit("r"), head(FORM), body, REST, acting=told.append)
    await whole(watched)
    assert set(told) == {"root"}


async def test_the_granted_user_passes() -> None:
    assert await whole(watch(b"sudo=root", may_sudo="root")) == b"sudo=root"
    with pytest.raises(Rejection):
        await whole(watch(b"sudo=root", may_sudo="admin"))


async def test_held_octets_come_first() -> None:
    assert await whole(HeldBody(b"ab", Pieces(b"c"), 3)) == b"abc"
    assert await whole(HeldBody(b"", None, 0)) == b""


async def test_a_plain_cache_reads_no_body() -> None:
    stage, body = UnreadBodyStage(), Pieces(b"private_token=T")
    claim, rest = await stage.claim(admitted(), head(FORM), body)
    assert claim is NONE
    assert rest is body
    assert stage.guard(NONE, KEY, Permit("r"), head(FORM), body, REST) is body


# GraphQL and LFS: what the body does

LFS = (b"Content-Type", b"application/vnd.git-lfs+json")
GRAPHQL = Operation("POST /api/graphql", Access.WRITE, Surface.GRAPHQL)


async def room(requests: int) -> None:
    """There is."""


async def look(document: bytes, *pieces: bytes, length: int | None = None) -> tuple[Operation, RequestBody, int]:
    body = Pieces(document, *pieces, length=length)
    found, rest, weight = await BodyStage().classify(
        GRAPHQL, head((b"Content-Type", b"application/json")), TARGET, body, room
    )
    assert rest is not None
    return found, rest, weight


async def test_a_document_in_pieces_is_read_and_goes_up_whole() -> None:
    operation, body, weight = await look(b'[{"query":"{ a ', b'}"},{"query":"{ b }"}]')
    assert (operation.access, weight) == (Access.READ, 2)
    assert await whole(body) == b'[{"query":"{ a }"},{"query":"{ b }"}]'


async def test_a_mutation_stays_a_write() -> None:
    operation, body, _ = await look(b'{"query":"mutation { a }"}')
    assert operation is GRAPHQL
    assert await whole(body) == b'{"query":"mutation { a }"}'


async def test_a_long_document_is_a_write_and_streams_on() -> None:
    piece = b" " * 700_000
    operation, body, weight = await look(b'{"query":"{ a }"}', piece, piece, b"end")
    assert (operation, weight) == (GRAPHQL, 100)
    assert len(await whole(body)) == 1_400_020
    operation, body, weight = await look(b'{"query":"{ a }"}', length=2_000_000)
    assert (operation, weight) == (GRAPHQL, 100)


async def test_an_lfs_batch_is_what_it_asks_for_and_one_request() -> None:
    lfs, typed = Operation("POST /*repository_path.git/info/lfs/objects/batch", Access.WRITE, Surface.LFS), head(LFS)
    target = parse_target(b"/g/p.git/info/lfs/objects/batch")
    for pieces, access in (
        ((b'{"operation":"down', b'load"}'), Access.READ),
        ((b'{"operation":"upload"}',), Access.WRITE),
        ((b'{"operation":"download"', b" " * (1 << 20), b"}"), Access.WRITE),
        ((), Access.WRITE),
    ):
        found, body, weight = await BodyStage().classify(lfs, typed, target, Pieces(*pieces) if pieces else None, room)
        assert (found.access, weight) == (access, 1)
        assert body is None or await whole(body) == b"".join(pieces)


async def test_an_upload_counts_as_the_largest_batch_but_for_a_browser() -> None:
    form = head((b"Content-Type", b"multipart/form-data; boundary=x"))
    for browser, weight in ((False, 100), (True, 1)):
        found = await BodyStage().classify(GRAPHQL, form, TARGET, Pieces(b"--x--"), room, browser=browser)
        assert (found[0], found[2]) == (GRAPHQL, weight)
    batch = head((b"Content-Type", b"application/json"))
    two = Pieces(b'[{"query":"{a}"},{"query":"{a}"}]')
    found = await BodyStage().classify(GRAPHQL, batch, TARGET, two, room, browser=True)
    assert found[2] == 2


async def test_a_get_is_judged_by_its_query_string() -> None:
    get = msgspec.structs.replace(GRAPHQL, name="GET /api/graphql")
    target = parse_target(b"/api/graphql?query=%7Ba%7D")
    for method, access in (("GET", Access.READ), ("OPTIONS", Access.WRITE)):
        operation, body, _ = await BodyStage().classify(get, RequestHead(method, target.raw, ()), target, None, room)
        assert (operation.access, body) == (access, None)


async def test_nothing_is_parsed_where_there_is_no_room() -> None:
    """Parsing costs as much as hundreds of requests; what was read lately costs nothing."""
    asked: list[int] = []

    async def none(requests: int) -> None:
        asked.append(requests)
        raise Rejection(Code.RATE_LIMITED, 429, "no room")

    json, target = head((b"Content-Type", b"application/json")), parse_target(b"/api/graphql?query=%7Broomless%7D")
    for _ in range(2):
        with pytest.raises(Rejection):
            await BodyStage().classify(GRAPHQL, json, TARGET, Pieces(b'{"query":"{ without { room } }"}'), none)
        with pytest.raises(Rejection):
            await BodyStage().classify(GRAPHQL, RequestHead("GET", target.raw, ()), target, None, none)
    assert asked == [1] * 4
    await look(b'{"query":"{ without { room } }"}')
    found = await BodyStage().classify(GRAPHQL, json, TARGET, Pieces(b'{"query":"{ without { room } }"}'), none)
    assert found[0].access is Access.READ


async def test_no_more_is_held_than_is_light_where_there_is_no_room() -> None:
    async def none(requests: int) -> None:
        raise Rejection(Code.RATE_LIMITED, 429, "no room")

    body = Pieces(*[b" " * 10_000] * 100)
    with pytest.raises(Rejection):
        await BodyStage().classify(GRAPHQL, head((b"Content-Type", b"application/json")), TARGET, body, none)
    left = 0
    while await body.read():
        left += 1
    assert left == 98


async def test_a_batch_needs_room_for_all_of_it() -> None:
    """A long one tells how many it is when it has been read, which is worth room for one."""
    json = head((b"Content-Type", b"application/json"))
    for padding, asked in (("", [3]), (" " * 20_000, [1, 3])):
        found: list[int] = []

        async def some(requests: int, found: list[int] = found) -> None:
            found.append(requests)

        batch = ",".join(f'{{"query":"{{ b{len(padding)}n{number} }}"}}' for number in range(3))
        await BodyStage().classify(GRAPHQL, json, TARGET, Pieces(f"[{batch}]{padding}".encode()), some)
        assert found == asked


@pytest.mark.parametrize("cut", [1, 7, 4096])
@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ((PARTS,), part(b"sudo", b"root") + b"--x--\r\n"),
        ((PARTS,), part(b"private_token", b"x") + b"--x--\r\n"),
        ((PARTS,), part(b"a\\b", b"") + part(b"_me\\thod", b"get") + b"--x--\r\n"),
        ((PARTS,), b'--x\r\nContent-Disposition: form-data; name="_method"\n\nroot\r\n--x--\r\n'),
        (((b"Content-Type", PARTS[1] + b"; boundary*0=y"),), b"--y" + part(b"_method", b"root")[3:] + b"--y--\r\n"),
        ((PARTS, (b"Content-Encoding", b"gzip")), gzip.compress(part(b"sudo", b"root") + b"--x--\r\n", mtime=0)),
    ],
)
async def test_parts_are_judged_before_their_last_delimiter_goes_up(
    fields: tuple[Field, ...], parts: bytes, cut: int
) -> None:
    """Workhorse acts upon it, and waits for nothing behind it."""
    for principal in (KEY, OWN):
        if principal is OWN and (b"sudo" in parts or len(fields) > 1):
            continue  # GitLab's to judge
        pieces = [parts[at : at + cut] for at in range(0, len(parts), cut)]
        body = BodyStage().guard(NONE, principal, Permit("r"), head(*fields), Pieces(*pieces, b"x", b"y"), REST)
        passed: list[bytes] = []
        with pytest.raises(Rejection):
            await passing(body, passed)
        assert len(b"".join(passed)) < len(parts) - 3


async def test_what_was_found_in_parts_is_judged_once_on_the_way_and_once_at_the_end() -> None:
    """However many chunks a file behind them comes in."""
    asked: list[tuple[str, ...]] = []

    def admit(verdict: BodyVerdict, suspect: bool) -> None:
        assert not suspect
        asked.append(tuple(finding.value or "" for finding in verdict.findings))

    file = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
    pieces = (part(b"project_id", b"1"), part(b"project_id", b"2"), file, *[b"y"] * 50, b"\r\n--x--\r\n")
    await whole(WatchedBody(Pieces(*pieces), MultipartScanner(b"x"), admit, lambda octets: False))
    assert asked == [("1",), ("2",), ("1", "2")]

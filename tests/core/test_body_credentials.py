"""Which bodies are read how, and what may be in them."""

from __future__ import annotations

import gzip
import zlib

import pytest

from gateway.core.body import BodyVerdict, Finding, Undecidable
from gateway.core.body_credentials import admit_body, body_claim, scanner_for
from gateway.core.credentials import Carrier, Claim, CredentialKind
from gateway.core.errors import Code, Rejection
from gateway.core.gateway_key import new_key
from gateway.core.rule_match import PlaceSpelling
from gateway.core.secret import Secret

NONE = Claim(CredentialKind.NONE, Secret(""))
TOKEN = Claim(CredentialKind.TOKEN, Secret("t"), Carrier.PRIVATE_TOKEN)
BEARER = Claim(CredentialKind.TOKEN, Secret("t"), Carrier.BEARER)
OPAQUE = Claim(CredentialKind.OPAQUE, Secret(""), Carrier.BODY)


def _found(name: str, value: str | None = "v", *, plain: bool = True) -> Finding:
    return Finding(name, value, 0, 1, plain)


def _read(
    content_type: bytes | None, body: bytes, *, encoding: bytes | None = None, method: str = "POST"
) -> BodyVerdict | None:
    scanner = scanner_for(content_type, encoding, method)
    if scanner is None:
        return None
    scanner.feed(body)
    return scanner.finish()


JSON, FORM = b'{"sudo":"x"}', b"sudo=x"
PART = b'--b\r\nContent-Disposition: form-data; name="sudo"\r\n\r\nx\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"application/json", JSON),
        (b"Application/JSON; charset=utf-8", JSON),
        (b"application/vnd.api+json", JSON),
        (b"application/scim+json", JSON),
        (b"text/x-json", JSON),
        (b"application/x-www-form-urlencoded", FORM),
        (b"application/x-www-form-urlencoded, text/plain", FORM),
        (b"multipart/form-data; boundary=b", PART),
        (b"multipart/mixed; boundary=b", PART),
        (None, JSON),
        (None, FORM),
        (b"", FORM),
    ],
)
def test_what_rails_reads_is_read(content_type: bytes | None, body: bytes) -> None:
    verdict = _read(content_type, body)
    assert verdict is not None
    assert [finding.name for finding in verdict.findings] == ["sudo"]
    assert verdict.undecidable is None
    assert verdict.findings[0].plain is bool(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        b"\xc2\xa0multipart/form-data; boundary=b",
        b"\xe2\x80\x83multipart/mixed;boundary=b",
        b"mult\xc4\xb0part/form-data; boundary=b",
        b"\xc2\xa0text/plain",
    ],
)
def test_what_workhorse_may_take_for_parts_is_undecidable(content_type: bytes) -> None:
    """Go trims Unicode's blanks, and lower-cases a dotted capital I to an i."""
    assert _read(content_type, PART) == BodyVerdict((), Undecidable.BOUNDARY)


@pytest.mark.parametrize(
    "content_type", [b"text/plain", b"application/octet-stream", b"application/x-git-upload-pack-request"]
)
def test_what_rails_does_not_read_is_left_alone(content_type: bytes) -> None:
    assert _read(content_type, JSON) is None
    assert _read(content_type, JSON, encoding=b"gzip") is None


@pytest.mark.parametrize(
    ("content_type", "encoding", "reason"),
    [
        (b"application/json; charset=utf-16", None, Undecidable.CHARSET),
        (b"multipart/form-data", None, Undecidable.BOUNDARY),
        (b"nonsense", None, Undecidable.CONTENT_TYPE),
        (b"application/json", b"gzip", Undecidable.ENCODED),
        (b"application/x-www-form-urlencoded", b"br", Undecidable.ENCODED),
    ],
)
def test_what_cannot_be_decided(content_type: bytes, encoding: bytes | None, reason: Undecidable) -> None:
    verdict = _read(content_type, b"", encoding=encoding)
    assert verdict is not None
    assert verdict.undecidable is reason


def test_coded_bodies_are_read_as_rack_would_read_them() -> None:
    verdict = _read(b"application/x-www-form-urlencoded", FORM, encoding=b"gzip")
    assert verdict is not None
    assert [finding.name for finding in verdict.findings] == ["sudo"]
    assert _read(b"application/x-www-form-urlencoded", FORM, encoding=b" Identity ") == _read(
        b"application/x-www-form-urlencoded", FORM
    )


AUDIT = b'{"left-pad":["1.0.0"],"@scope/a":["2.0.0"]}'


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_json_in_gzip_is_read_as_it_is_inflated(step: int) -> None:
    """As npm sends what it audits."""
    scanner = scanner_for(b"application/json", b"GZip", "POST")
    assert scanner is not None
    octets = gzip.compress(AUDIT)
    for at in range(0, len(octets), step):
        scanner.feed(octets[at : at + step])
    assert scanner.finish() == BodyVerdict()
    with pytest.raises(AssertionError):
        scanner.cut(b"", _found("sudo"))


def test_what_gzip_hides_is_found_and_is_never_plain() -> None:
    verdict = _read(b"application/json", gzip.compress(JSON), encoding=b"gzip")
    assert verdict is not None
    assert [(finding.name, finding.plain) for finding in verdict.findings] == [("sudo", False)]
    assert verdict.undecidable is None
    broken = _read(b"application/json", gzip.compress(b'{"a":'), encoding=b"gzip")
    assert broken is not None
    assert broken.undecidable is Undecidable.INCOMPLETE


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(gzip.compress(AUDIT)[:-1], id="cut short"),
        pytest.param(gzip.compress(AUDIT) + b"x", id="something behind it"),
        pytest.param(gzip.compress(AUDIT) + gzip.compress(JSON), id="a second member"),
        pytest.param(zlib.compress(AUDIT), id="zlib"),
        pytest.param(AUDIT, id="not coded at all"),
        pytest.param(gzip.compress(b'{"a":"' + b"a" * (200 * 1024 - 7) + b'"}'), id="more than GitLab inflates"),
    ],
)
def test_gzip_that_readers_may_take_differently_stays_undecidable(octets: bytes) -> None:
    verdict = _read(b"application/json", octets, encoding=b"gzip")
    assert verdict is not None
    assert verdict.undecidable is Undecidable.ENCODED


def test_as_much_json_in_gzip_is_read_as_gitlab_inflates() -> None:
    octets = b'{"a":"' + b"a" * (200 * 1024 - 8) + b'"}'
    assert len(octets) == 200 * 1024
    assert _read(b"application/json", gzip.compress(octets), encoding=b"gzip") == BodyVerdict()


def test_gzip_stays_as_it_is_where_it_is_not_to_be_inflated() -> None:
    scanner = scanner_for(b"application/json", b"gzip", "POST", inflates=False)
    assert scanner is not None
    scanner.feed(gzip.compress(JSON))
    assert scanner.finish() == BodyVerdict((), Undecidable.ENCODED)


def test_json_that_only_says_gzip_is_read_as_it_stands() -> None:
    verdict = _read(b"application/json", JSON, encoding=b"gzip")
    assert verdict is not None
    assert [finding.name for finding in verdict.findings] == ["sudo"]


def test_without_a_type_both_readings_count() -> None:
    assert _read(None, b'{"a":', method="POST") == BodyVerdict((), Undecidable.INCOMPLETE)
    assert _read(None, b"a=1", method="POST") == BodyVerdict()
    assert _read(None, b"sudo=1", method="PUT") == BodyVerdict((), Undecidable.MALFORMED)
    assert _read(None, b"", method="PUT") == BodyVerdict()
    scanner = scanner_for(None, None, "POST")
    assert scanner is not None
    for octet in JSON:
        scanner.feed(bytes([octet]))
    assert [finding.name for finding in scanner.finish().findings] == ["sudo"]
    with pytest.raises(AssertionError):
        scanner.cut(b"", _found("sudo"))


@pytest.mark.parametrize(
    ("name", "kind", "upstream_fields"),
    [
        ("private_token", CredentialKind.TOKEN, ((b"PRIVATE-TOKEN", b"v"),)),
        ("access_token", CredentialKind.TOKEN, ((b"Authorization", b"Bearer v"),)),
        ("job_token", CredentialKind.JOB_TOKEN, ((b"JOB-TOKEN", b"v"),)),
        ("feed_token", CredentialKind.OPAQUE, ()),
    ],
)
def test_one_body_credential_becomes_the_claim(
    name: str, kind: CredentialKind, upstream_fields: tuple[tuple[bytes, bytes], ...]
) -> None:
    moved = body_claim(NONE, BodyVerdict((_found("sudo"), _found(name))))
    assert moved is not None
    claim, finding = moved
    assert (claim.kind, claim.carrier, claim.parameter, claim.secret.reveal()) == (kind, Carrier.BODY, name, "v")
    assert claim.upstream_fields == upstream_fields
    assert finding.name == name


def test_a_body_without_a_credential_claims_nothing() -> None:
    assert body_claim(NONE, BodyVerdict((_found("sudo"), _found("private_token", "")))) is None
    assert body_claim(TOKEN, BodyVerdict((), Undecidable.ENCODED)) is None


@pytest.mark.parametrize(
    ("claim", "verdict", "code"),
    [
        (TOKEN, BodyVerdict((_found("private_token"),)), Code.AMBIGUOUS_CREDENTIAL),
        (NONE, BodyVerdict((_found("private_token"), _found("private_token"))), Code.AMBIGUOUS_CREDENTIAL),
        (NONE, BodyVerdict((_found("private_token"),), Undecidable.MALFORMED), Code.BODY_UNDECIDABLE),
        (NONE, BodyVerdict((_found("private_token", plain=False),)), Code.BODY_CREDENTIAL),
        (NONE, BodyVerdict((_found("private_token", None, plain=False),)), Code.BODY_CREDENTIAL),
        (NONE, BodyVerdict((_found("private_token", "a\r\nb"),)), Code.UNAUTHENTICATED),
    ],
)
def test_body_credentials_that_are_refused(claim: Claim, verdict: BodyVerdict, code: Code) -> None:
    with pytest.raises(Rejection) as refused:
        body_claim(claim, verdict)
    assert refused.value.code is code


@pytest.mark.parametrize(
    ("claim", "finding", "brokered", "code"),
    [
        (TOKEN, _found("_method"), False, Code.METHOD_OVERRIDE),
        (TOKEN, _found("private_token"), False, Code.AMBIGUOUS_CREDENTIAL),
        (TOKEN, _found("job_token", None, plain=False), True, Code.AMBIGUOUS_CREDENTIAL),
        (OPAQUE, _found("private_token"), True, Code.AMBIGUOUS_CREDENTIAL),
        (TOKEN, _found("sudo"), True, Code.SUDO_FORBIDDEN),
        (TOKEN, _found("sudo", None, plain=False), True, Code.SUDO_FORBIDDEN),
    ],
)
def test_bodies_that_may_not_go_up(claim: Claim, finding: Finding, brokered: bool, code: Code) -> None:
    with pytest.raises(Rejection) as refused:
        admit_body(claim, BodyVerdict((finding,)), brokered=brokered)
    assert refused.value.code is code


def test_whom_it_asks_to_act_as_is_known() -> None:
    for brokered in (False, True):
        for may_sudo in (None, "v"):
            with pytest.raises(Rejection) as refused:
                admit_body(TOKEN, BodyVerdict((_found("sudo", None),)), brokered=brokered, may_sudo=may_sudo)
            assert refused.value.code is (Code.SUDO_FORBIDDEN if brokered else Code.BODY_UNDECIDABLE)


@pytest.mark.parametrize(
    ("findings", "before", "code"),
    [
        ((_found("sudo"),), "root", Code.AMBIGUOUS_CREDENTIAL),
        ((_found("sudo"), _found("sudo", "w")), None, Code.AMBIGUOUS_CREDENTIAL),
        ((_found("sudo"), _found("sudo", "")), None, Code.AMBIGUOUS_CREDENTIAL),
        ((_found("sudo", ""), _found("sudo")), None, Code.AMBIGUOUS_CREDENTIAL),
        ((_found("sudo", ""),), "v", Code.AMBIGUOUS_CREDENTIAL),
        ((_found("sudo", plain=False),), None, Code.BODY_UNDECIDABLE),
        ((_found("sudo"), _found("sudo", plain=False)), "v", Code.BODY_UNDECIDABLE),
    ],
)
def test_it_asks_to_act_as_one(findings: tuple[Finding, ...], before: str | None, code: Code) -> None:
    """The audit is to name whom GitLab goes by, and readers differ in which one that is."""
    with pytest.raises(Rejection) as refused:
        admit_body(TOKEN, BodyVerdict(findings), brokered=False, sudo=before)
    assert refused.value.code is code


def test_whom_it_may_act_as_is_spelt_plainly() -> None:
    with pytest.raises(Rejection) as refused:
        admit_body(TOKEN, BodyVerdict((_found("sudo", plain=False),)), brokered=True, may_sudo="v")
    assert refused.value.code is Code.SUDO_FORBIDDEN


def test_bodies_that_may_go_up() -> None:
    admit_body(TOKEN, BodyVerdict((_found("sudo"), _found("sudo"))), brokered=False, sudo="v")
    admit_body(TOKEN, BodyVerdict((_found("sudo", ""), _found("sudo", ""))), brokered=False)
    admit_body(TOKEN, BodyVerdict((_found("sudo"),)), brokered=False)
    admit_body(TOKEN, BodyVerdict((_found("sudo"),)), brokered=True, may_sudo="v")
    admit_body(TOKEN, BodyVerdict((_found("sudo", ""), _found("private_token", ""))), brokered=True)
    admit_body(OPAQUE, BodyVerdict((_found("job_token"),)), brokered=False, left=frozenset({"job_token"}))
    for names, brokered in ((("job_token",), True), (("private_token",), False), (("job_token", "private_token"), False)):
        verdict = BodyVerdict(tuple(_found(name) for name in names))
        with pytest.raises(Rejection) as refused:
            admit_body(OPAQUE, verdict, brokered=brokered, left=frozenset({"job_token"}))
        assert refused.value.code is Code.AMBIGUOUS_CREDENTIAL
    admit_body(TOKEN, BodyVerdict((), Undecidable.ENCODED), brokered=False)
    with pytest.raises(Rejection) as refused:
        admit_body(TOKEN, BodyVerdict((), Undecidable.ENCODED), brokered=True)
    assert refused.value.code is Code.BODY_UNDECIDABLE


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"application/json", b'{"ref":"main","token":"x"}'),
        (b"application/json", b'{"ref":"main","t\\u006fken":["x"]}'),
        (b"application/x-www-form-urlencoded", b"ref=main&token=x"),
        (b"application/x-www-form-urlencoded", b"ref=main&[t%6fken]=x"),
        (b"multipart/form-data; boundary=b", PART.replace(b'"sudo"', b'"token"')),
        (None, b"token=x"),
    ],
)
def test_a_token_counts_where_it_is_a_credential(content_type: bytes | None, body: bytes) -> None:
    verdict = _read(content_type, body)
    assert verdict is not None
    admit_body(TOKEN, verdict, brokered=True)
    admit_body(
        TOKEN, _read(b"application/json", b'{"token":"","a":{"token":1}}') or verdict, brokered=True, token_counts=True
    )
    admit_body(TOKEN, BodyVerdict((_found("sudo"), _found("project_id", "7"))), brokered=False, token_counts=True)
    with pytest.raises(Rejection) as refused:
        admit_body(TOKEN, verdict, brokered=True, token_counts=True)
    assert (refused.value.code, refused.value.status) == (Code.AMBIGUOUS_CREDENTIAL, 400)


@pytest.mark.parametrize("name", ["token", "private_token", "job_token", "feed_token", "password", "refresh_token"])
@pytest.mark.parametrize("value", ["ggw_x", f'"{new_key(bytes(32)).reveal()}"'])
def test_a_gateway_key_never_goes_up_in_a_body(name: str, value: str) -> None:
    finding = _found(name, value)
    with pytest.raises(Rejection) as refused:
        admit_body(OPAQUE, BodyVerdict((finding,)), brokered=False, left=frozenset({name}))
    assert refused.value.code is Code.UNAUTHENTICATED
    admit_body(OPAQUE, BodyVerdict((_found("sudo", value), _found(name, None))), brokered=False, left=frozenset({name}))


@pytest.mark.parametrize(
    ("media", "body"),
    [
        (
            b"application/x-www-form-urlencoded",
            b"grant_type=password&username=bot&password=ggw_x&service=container_registry",
        ),
        (b"application/x-www-form-urlencoded", b"pass%77ord=ggw_x"),
        (b"application/json", b'{"grant_type":"refresh_token","refresh_token":"ggw_x"}'),
        (
            b"multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\nggw_x\r\n--b--\r\n',
        ),
    ],
)
def test_nor_as_the_password_of_a_log_in(media: bytes, body: bytes) -> None:
    """Containerd's and BuildKit's first question for a registry's token; a 401 has them ask with Basic."""
    verdict = _read(media, body)
    assert verdict is not None
    with pytest.raises(Rejection) as refused:
        admit_body(OPAQUE, verdict, brokered=False)
    assert (refused.value.code, refused.value.status) == (Code.UNAUTHENTICATED, 401)
    other = _read(media, body.replace(b"ggw_", b"not_"))
    assert other is not None
    admit_body(OPAQUE, other, brokered=True)


def test_bearer_and_access_token_get_gitlabs_own_words() -> None:
    with pytest.raises(Rejection) as refused:
        admit_body(BEARER, BodyVerdict((_found("access_token"),)), brokered=False)
    assert refused.value.oauth_error == "invalid_request"


def test_a_credential_is_cut_by_its_own_scanner() -> None:
    scanner = scanner_for(b"application/json", None, "POST")
    assert scanner is not None
    body = b'{"a":1,"private_token":"x"}'
    scanner.feed(body)
    assert scanner.cut(body, scanner.finish().findings[0]) == b'{"a":1}'


# Places named in bodies


OURS = frozenset({(True, "42"), (True, "platform/api"), (False, "7")})


def screened(
    content_type: bytes, body: bytes, places: frozenset[PlaceSpelling] | None = OURS, *, brokered: bool = True
) -> None:
    scanner = scanner_for(content_type, None, "POST")
    assert scanner is not None
    scanner.feed(body)
    claim = Claim(CredentialKind.TOKEN, Secret("t"), Carrier.PRIVATE_TOKEN)
    admit_body(claim, scanner.finish(), brokered=brokered, places=places)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(b"application/json", b'{"title":"x","target_project_id":42}', id="its-own-number"),
        pytest.param(b"application/json", b'{"target_project_id":"042"}', id="as-gitlab-casts-it"),
        pytest.param(b"application/json", b'{"project":"Platform/API"}', id="its-own-path"),
        pytest.param(b"application/json", b'{"nested":{"target_project_id":9}}', id="below-the-top-level"),
        pytest.param(b"application/json", b'{"target_project_id":""}', id="empty"),
        pytest.param(b"application/json", b'{"namespace_id":7,"group":"7"}', id="its-own-group"),
        pytest.param(b"application/x-www-form-urlencoded", b"title=x&start_project=platform%2Fapi", id="form"),
        pytest.param(b"application/x-www-form-urlencoded; charset=ISO-8859-1", b"title=%E4", id="form-of-java"),
    ],
)
def test_a_confined_body_may_name_its_own_place(content_type: bytes, body: bytes) -> None:
    screened(content_type, body)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(b"application/json", b'{"title":"x","target_project_id":9}', id="number"),
        pytest.param(b"application/json", b'{"namespace_id":42}', id="a-namespace-of-the-projects-number"),
        pytest.param(b"application/json", b'{"namespace":"42"}', id="the-same-as-text"),
        pytest.param(b"application/json", b'{"group_id":42}', id="a-group-of-the-projects-number"),
        pytest.param(b"application/json", b'{"target_project_id":7}', id="a-project-of-the-groups-number"),
        pytest.param(b"application/json", b'{"target\\u005fproject_id":9}', id="escaped-name"),
        pytest.param(b"application/json", b'{"project_ids":[42,9]}', id="list"),
        pytest.param(b"application/json", b'{"namespace_id":{"id":42}}', id="object"),
        pytest.param(b"application/json", b'{"start_project":"other/x"}', id="path"),
        pytest.param(b"application/json", b'{"target_project_id":42,"target_project_id":9}', id="twice"),
        pytest.param(b"application/x-www-form-urlencoded", b"from%5Fproject_id=9", id="form"),
        pytest.param(b"application/x-www-form-urlencoded", b"project_ids[]=42", id="brackets"),
        pytest.param(
            b"multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="namespace_id"\r\n\r\n9\r\n--b--\r\n',
            id="multipart",
        ),
    ],
)
def test_a_confined_body_names_no_other_place(content_type: bytes, body: bytes) -> None:
    with pytest.raises(Rejection) as refused:
        screened(content_type, body)
    assert (refused.value.code, refused.value.status) == (Code.PROJECT_UNKNOWN, 404)
    screened(content_type, body, None)


def test_a_confined_body_that_cannot_be_read_is_refused_to_everybody() -> None:
    with pytest.raises(Rejection) as refused:
        screened(b"application/json", b'{"a":', brokered=False)
    assert refused.value.code is Code.BODY_UNDECIDABLE
    screened(b"application/json", b'{"a":', None, brokered=False)


@pytest.mark.parametrize("content_type", [b"application/json", b"application/x-www-form-urlencoded"])
def test_no_charset_hides_anything(content_type: bytes) -> None:
    scanner = scanner_for(content_type + b"; charset=utf-16", None, "POST")
    assert scanner is not None
    scanner.feed(b'{"private_token":"x"}' if b"json" in content_type else b"private_token=x")
    assert not scanner.blind
    verdict = scanner.finish()
    assert ([finding.name for finding in verdict.findings], verdict.undecidable) == (["private_token"], Undecidable.CHARSET)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_without_a_type_either_reader_may_be_blind(method: str) -> None:
    scanner = scanner_for(None, None, method)
    assert scanner is not None
    assert not scanner.blind
    scanner.feed(b"{/**/")
    assert scanner.blind
    assert scanner.may_name(b'"private_token":"x"}')
    assert not scanner.may_name(b"_method=delete")
    scanner.feed(b"&" + b" " * 5000)
    assert scanner.may_name(b"&_method=delete") is (method == "POST")


@pytest.mark.parametrize(
    ("octets", "blind"),
    [
        pytest.param(gzip.compress(AUDIT), False, id="plain"),
        pytest.param(gzip.compress(b"{/**/}"), True, id="a comment"),
        pytest.param(gzip.compress(AUDIT)[:-8] + bytes(8), True, id="a checksum that GitLab does not ask"),
        pytest.param(gzip.compress(AUDIT) + b"x", True, id="something behind it"),
        pytest.param(gzip.compress(b"[" + b"1," * (1 << 17)), True, id="more than GitLab inflates"),
    ],
)
def test_of_gzip_that_is_not_read_anything_may_be_named(octets: bytes, blind: bool) -> None:
    scanner = scanner_for(b"application/json", b"gzip", "POST")
    assert scanner is not None
    assert not scanner.blind
    scanner.feed(octets)
    assert scanner.blind is blind
    assert scanner.may_name(b"")


def test_gzip_of_no_type_is_not_read() -> None:
    put, scanner = scanner_for(None, b"gzip", "PUT"), scanner_for(None, b"gzip", "POST")
    assert put is not None
    assert not put.blind  # GitLab inflates of a POST alone
    assert scanner is not None
    assert scanner.blind
    assert scanner.may_name(b"")
    scanner.feed(b"private_token=x")
    verdict = scanner.finish()
    assert ([each.name for each in verdict.findings], verdict.undecidable) == (["private_token"], Undecidable.ENCODED)


def test_what_could_not_be_read_is_refused_where_it_may_name_something() -> None:
    own, verdict = Claim(CredentialKind.TOKEN, Secret("t")), BodyVerdict((), Undecidable.MALFORMED)
    admit_body(own, verdict, brokered=False)
    with pytest.raises(Rejection) as refused:
        admit_body(own, verdict, brokered=False, suspect=True)
    assert refused.value.code is Code.BODY_UNDECIDABLE
    admit_body(own, BodyVerdict(), brokered=False, suspect=True)

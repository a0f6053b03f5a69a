"""Every carrier, alone and in company."""

from __future__ import annotations

import base64
import itertools

import pytest

from gateway import routes
from gateway.core import credentials as module
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import (
    CREDENTIAL_FIELDS,
    CREDENTIAL_PARAMETERS,
    Carrier,
    Claim,
    CredentialKind,
    allowed_in_body,
    credential_fields,
    is_second_token,
    read_claim,
    without_carriers,
)
from gateway.core.errors import Code, Rejection
from gateway.core.gateway_key import new_key
from gateway.core.messages import Field
from gateway.core.secret import Secret
from gateway.core.target import parse_target

PRIVATE = (b"Private-Token", b"T1")
BEARER = (b"Authorization", b"Bearer T1")
JOB = (b"JOB-TOKEN", b"T1")
DEPLOY = (b"Deploy-Token", b"T1")
COOKIE = (b"Cookie", b"a=b; _gitlab_session=S1; c=d")


def _basic(text: str) -> Field:
    return (b"Authorization", b"Basic " + base64.b64encode(text.encode()))


def _claim(
    *fields: Field, target: bytes = b"/x", surface: Surface = Surface.REST, name: str = "other", method: str = "GET"
) -> Claim:
    return read_claim(fields, method, parse_target(target), Operation(name, Access.READ, surface))


def _refused(*fields: Field, target: bytes = b"/x", surface: Surface = Surface.REST) -> Rejection:
    with pytest.raises(Rejection) as refused:
        _claim(*fields, target=target, surface=surface)
    return refused.value


@pytest.mark.parametrize(
    ("field", "kind", "carrier", "secret", "username"),
    [
        (PRIVATE, CredentialKind.TOKEN, Carrier.PRIVATE_TOKEN, "T1", ""),
        ((b"private-token", b"a\xff"), CredentialKind.TOKEN, Carrier.PRIVATE_TOKEN, "a\udcff", ""),
        (BEARER, CredentialKind.TOKEN, Carrier.BEARER, "T1", ""),
        ((b"authorization", b"bEARER  ey.x.y "), CredentialKind.TOKEN, Carrier.BEARER, "ey.x.y", ""),
        (JOB, CredentialKind.JOB_TOKEN, Carrier.JOB_TOKEN, "T1", ""),
        (DEPLOY, CredentialKind.DEPLOY_TOKEN, Carrier.DEPLOY_TOKEN, "T1", ""),
        (_basic("me:a:b"), CredentialKind.BASIC, Carrier.BASIC, "a:b", "me"),
        (_basic("me"), CredentialKind.BASIC, Carrier.BASIC, "", "me"),
        ((b"Authorization", b"Negotiate YII="), CredentialKind.OPAQUE, Carrier.AUTHORIZATION, "Negotiate YII=", ""),
        ((b"Authorization", b"rubygems-key"), CredentialKind.OPAQUE, Carrier.AUTHORIZATION, "rubygems-key", ""),
        (COOKIE, CredentialKind.SESSION, Carrier.COOKIE, "S1", ""),
        ((b"Cookie", b"remember_user_token=R1"), CredentialKind.SESSION, Carrier.COOKIE, "R1", ""),
    ],
)
def test_one_field(field: Field, kind: CredentialKind, carrier: Carrier, secret: str, username: str) -> None:
    claim = _claim((b"Accept", b"*/*"), field)
    assert (claim.kind, claim.carrier, claim.secret.reveal(), claim.username) == (kind, carrier, secret, username)
    assert claim.upstream_fields == (field,)
    assert claim.target == b"/x"
    assert credential_fields(claim) == (field,)


def test_none() -> None:
    claim = _claim(
        (b"Accept", b"*/*"), (b"PRIVATE-TOKEN", b""), (b"Cookie", b"theme=dark"), (b"X-Gitlab-Static-Object-Token", b"x")
    )
    assert (claim.kind, claim.carrier, claim.upstream_fields) == (CredentialKind.NONE, None, ())
    assert _claim(target=b"/x?a=1").target == b"/x?a=1"
    for field in (PRIVATE, BEARER, JOB, DEPLOY):
        assert _claim((field[0], b"")).kind is CredentialKind.NONE
    assert _claim(method="POST").kind is CredentialKind.NONE


def test_carriers_are_told_from_other_fields() -> None:
    twin, others = (b"private_token", b"T1"), ((b"Accept", b"*/*"), (b"Accept", b"a/b"))
    assert without_carriers((others[0], PRIVATE, twin, others[1], COOKIE)) == (others, [PRIVATE, twin, COOKIE])
    assert without_carriers(others) == (others, [])


def test_a_web_page_keeps_its_cookies_without_login() -> None:
    assert _claim((b"Cookie", b"theme=dark"), surface=Surface.WEB).upstream_fields == ((b"Cookie", b"theme=dark"),)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations([PRIVATE, BEARER, JOB, DEPLOY, _basic("u:T1")], 2)))
def test_equal_values_in_two_fields_count_once_and_two_values_never(one: Field, other: Field) -> None:
    if one[0] != other[0]:
        claim = _claim(one, other)
        assert claim.secret.reveal() == "T1"
        assert len(claim.upstream_fields) == 1
    different = _basic("u:T2") if other[1].startswith(b"Basic") else (other[0], other[1].replace(b"T1", b"T2"))
    assert _refused(one, different).code is Code.AMBIGUOUS_CREDENTIAL


def test_a_field_twice() -> None:
    assert _claim(PRIVATE, PRIVATE).upstream_fields == (PRIVATE,)
    assert _refused(PRIVATE, (b"PRIVATE-TOKEN", b"T2")).status == 400
    assert _refused(_basic("a:T1"), _basic("b:T1")).status == 400


def test_a_cookie_beside_a_token_is_dropped() -> None:
    assert _claim(COOKIE, PRIVATE).upstream_fields == (PRIVATE,)


@pytest.mark.parametrize(
    "field", [(b"Authorization", b"Bearer"), (b"Authorization", b"Bearer  "), (b"Authorization", b"Basic !!")]
)
def test_what_cannot_be_a_credential_is_401(field: Field) -> None:
    assert _refused(field).status == 401


@pytest.mark.parametrize("name", sorted(name for name in CREDENTIAL_FIELDS if b"_" in name))
def test_underscore_twins_are_refused(name: bytes) -> None:
    assert _refused(PRIVATE, (name.title(), b"x")).status == 400


@pytest.mark.parametrize(
    ("name", "kind", "field"),
    [
        ("private_token", CredentialKind.TOKEN, (b"PRIVATE-TOKEN", b"T1")),
        ("access_token", CredentialKind.TOKEN, (b"Authorization", b"Bearer T1")),
        ("bearer_token", CredentialKind.TOKEN, (b"Authorization", b"Bearer T1")),
        ("job_token", CredentialKind.JOB_TOKEN, (b"JOB-TOKEN", b"T1")),
    ],
)
def test_a_parameter_is_moved_to_a_field(name: str, kind: CredentialKind, field: Field) -> None:
    claim = _claim((b"DPoP", b"p"), COOKIE, target=b"/x?a=%2f&" + name.encode() + b"=%541&b")
    assert (claim.kind, claim.carrier, claim.parameter, claim.secret.reveal()) == (kind, Carrier.QUERY, name, "T1")
    assert claim.target == b"/x?a=%2f&b"
    assert claim.upstream_fields == (field, (b"DPoP", b"p"))
    assert _claim(target=b"/x?%s=" % name.encode()).kind is CredentialKind.NONE


@pytest.mark.parametrize(
    "query",
    [
        b"private_token[]=T1",
        b"private_token%5Bx%5D=T1",
        b"[private_token]=T1",
        b"+private_token=T1",
        b"%20private_token=T1",
        b"a=1;private_token=T1",
        b"private_token=T1;a=1",
        b"private_token=T1&private_token=T1",
        b"private_token=T1&job_token=T1",
        b"private_token=T1&feed_token=T1",
        b"feed_token[]=x",
        b"sudo[]=1",
        b"a;sudo=1",
        b"sudo=1&sudo=2",
    ],
)
def test_a_parameter_spelt_so_that_readers_differ_is_refused(query: bytes) -> None:
    assert _refused(target=b"/x?" + query).code is Code.AMBIGUOUS_CREDENTIAL


@pytest.mark.parametrize("name", [b"private_token", b"%70rivate_token", b"job_token", b"feed_token", b"rss_token"])
@pytest.mark.parametrize("field", [PRIVATE, BEARER, JOB, DEPLOY, _basic("u:T1")])
def test_a_field_and_a_parameter_are_two_even_if_equal(field: Field, name: bytes) -> None:
    assert _refused(field, target=b"/x?" + name + b"=T1").code is Code.AMBIGUOUS_CREDENTIAL


def test_bearer_and_access_token_get_gitlabs_own_words() -> None:
    refused = _refused(BEARER, target=b"/x?access_token=T1")
    assert (refused.status, refused.oauth_error) == (400, "invalid_request")
    assert refused.message == "Both Authorization header and payload includes access token."
    assert _refused(PRIVATE, target=b"/x?access_token=T1").oauth_error == ""
    assert _refused(BEARER, target=b"/x?private_token=T1").oauth_error == ""


@pytest.mark.parametrize("value", [b"a%0d%0aX:1", b"a+b", b"%00", b"a%09"])
def test_a_parameter_that_would_break_a_field_is_no_token(value: bytes) -> None:
    assert _refused(target=b"/x?private_token=" + value).status == 401


def test_a_method_override_in_the_query_is_refused() -> None:
    assert _refused(target=b"/x?%5Fmethod=DELETE").code is Code.METHOD_OVERRIDE


def test_sudo_is_a_capability() -> None:
    claim = _claim(PRIVATE, (b"Sudo", b"root"))
    assert (claim.sudo, claim.sudo_fields, credential_fields(claim)) == (
        "root",
        ((b"Sudo", b"root"),),
        (PRIVATE, (b"Sudo", b"root")),
    )
    claim = _claim(PRIVATE, target=b"/x?a=1&sudo=root&private_token=")
    assert (claim.sudo, claim.sudo_fields) == ("root", ())
    assert claim.target == b"/x?a=1&sudo=root"
    assert _claim(PRIVATE, (b"Sudo", b"root"), target=b"/x?sudo=root").sudo == "root"
    assert _refused(PRIVATE, (b"Sudo", b"1"), target=b"/x?sudo=root").code is Code.AMBIGUOUS_CREDENTIAL
    assert _claim(target=b"/x?private_token=T1&sudo=me").sudo == "me"
    assert _claim((b"Sudo", b""), target=b"/x?sudo=").sudo is None
    assert _claim((b"Sudo", b"me")).sudo == "me"


@pytest.mark.parametrize(
    ("surface", "field", "kind"),
    [
        (Surface.SCIM, BEARER, CredentialKind.OPAQUE),
        (Surface.KAS, BEARER, CredentialKind.OPAQUE),
        (Surface.REGISTRY, BEARER, CredentialKind.OPAQUE),
        (Surface.REGISTRY, _basic("u:T1"), CredentialKind.BASIC),
        (Surface.GIT, _basic("u:T1"), CredentialKind.BASIC),
        (Surface.RUNNER, JOB, CredentialKind.OPAQUE),
        (Surface.RUNNER, (b"Runner-Token", b"R"), CredentialKind.OPAQUE),
        (Surface.PACKAGES, (b"X-NuGet-ApiKey", b"N"), CredentialKind.OPAQUE),
        (Surface.UNLEASH, (b"Unleash-InstanceId", b"U"), CredentialKind.OPAQUE),
        (Surface.WEB_TOKEN, (b"X-Gitlab-Static-Object-Token", b"S"), CredentialKind.OPAQUE),
        (Surface.REST, (b"X-NuGet-ApiKey", b"N"), CredentialKind.NONE),
    ],
)
def test_each_surface_has_its_own(surface: Surface, field: Field, kind: CredentialKind) -> None:
    claim = _claim(field, surface=surface)
    assert claim.kind is kind
    assert claim.upstream_fields == (() if kind is CredentialKind.NONE else (field,))


def test_a_surfaces_own_field_travels_with_the_credential() -> None:
    runner = (b"Runner-Token", b"R")
    assert _claim(JOB, runner, surface=Surface.RUNNER).upstream_fields == (JOB, runner)
    assert _claim(JOB, runner).upstream_fields == (JOB,)
    assert _claim(PRIVATE, (b"DPoP", b"p")).upstream_fields == (PRIVATE, (b"DPoP", b"p"))


def test_what_gitlab_judges_from_the_body_or_a_parameter() -> None:
    trigger = "POST /api/v4/projects/:id/trigger/pipeline"
    claim = _claim(name=trigger, method="POST")
    assert (claim.kind, claim.carrier, claim.secret.reveal()) == (CredentialKind.OPAQUE, Carrier.BODY, "")
    claim = _claim(name=trigger, method="POST", target=b"/x?token=t&ref=main")
    assert (claim.kind, claim.carrier, claim.parameter, claim.target) == (
        CredentialKind.OPAQUE,
        Carrier.QUERY,
        "token",
        b"/x?token=t&ref=main",
    )
    assert _claim(PRIVATE, name=trigger, method="POST", target=b"/x?token=t").kind is CredentialKind.TOKEN
    assert _claim(name=trigger, method="POST", target=b"/x?token=&token=t").secret.reveal() == "t"
    assert _claim(surface=Surface.OAUTH, method="POST").kind is CredentialKind.OPAQUE
    assert _claim(target=b"/x?token=t").kind is CredentialKind.NONE
    claim = _claim(target=b"/x.atom?feed_token=f", surface=Surface.WEB_TOKEN)
    assert (claim.kind, claim.parameter, claim.target, claim.upstream_fields) == (
        CredentialKind.OPAQUE,
        "feed_token",
        b"/x.atom?feed_token=f",
        (),
    )


@pytest.mark.parametrize(
    ("fields", "query", "surface", "other_tokens"),
    [
        ((PRIVATE,), b"token=t", Surface.REST, ["t"]),
        ((PRIVATE,), b"to%6ben[]=t&a=1;token=u&token=", Surface.REST, ["t", "u"]),
        ((), b"private_token=T1&token=t", Surface.REST, ["t"]),
        ((), b"feed_token=f&token=t", Surface.WEB_TOKEN, ["t"]),
        ((), b"token=t", Surface.REST, ["t"]),
        (((b"Runner-Token", b"R"),), b"token=t", Surface.RUNNER, ["t"]),
        ((), b"token=t", Surface.OAUTH, ["t"]),
        ((), b"token=t", Surface.RUNNER, []),
        ((COOKIE,), b"token=t", Surface.PACKAGES, []),
        ((PRIVATE,), b"xtoken=t&token", Surface.REST, []),
    ],
)
def test_a_token_in_the_query_is_noted_beside_another_credential(
    fields: tuple[Field, ...], query: bytes, surface: Surface, other_tokens: list[str]
) -> None:
    claim = _claim(*fields, target=b"/x?" + query, surface=surface)
    assert [secret.reveal() for secret in claim.other_tokens] == other_tokens
    assert "t" in claim.target.decode()


CATALOGUE = routes.catalogue()
TRIGGER = "POST /api/v4/projects/:id/trigger/pipeline"
MODULE = next(one.name for one in CATALOGUE.operations() if one.name.endswith("*module_version/file"))


@pytest.mark.parametrize(
    ("name", "surface", "job", "counts"),
    [
        ("GET /api/v4/projects/:id/hooks", Surface.REST, False, set[str]()),
        ("GET /api/v4/projects/:id/jobs", Surface.REST, True, {"brokered", "job"}),
        (TRIGGER, Surface.REST, False, {"brokered"}),
        ("POST /api/v4/jobs/request", Surface.RUNNER, False, {"brokered", "job"}),
        ("GET /api/v4/packages/x", Surface.PACKAGES, False, {"brokered", "job"}),
        (MODULE, Surface.PACKAGES, False, set[str]()),
        ("GET /*project/-/raw/*ref_path", Surface.WEB_TOKEN, False, {"brokered", "job"}),
        ("other", Surface.WEB, False, {"brokered", "job"}),
    ],
)
def test_where_a_token_is_a_second_credential(name: str, surface: Surface, job: bool, counts: set[str]) -> None:
    operation = Operation(name, Access.READ, surface, job_token=job)
    assert is_second_token(CredentialKind.TOKEN, operation, brokered=True) is ("brokered" in counts)
    assert is_second_token(CredentialKind.JOB_TOKEN, operation, brokered=True) is ("brokered" in counts)
    assert is_second_token(CredentialKind.JOB_TOKEN, operation, brokered=False) is ("job" in counts)
    assert not is_second_token(CredentialKind.TOKEN, operation, brokered=False)
    for kind in (CredentialKind.SESSION, CredentialKind.NONE):
        assert is_second_token(kind, operation, brokered=False) is job
    for kind in (CredentialKind.BASIC, CredentialKind.DEPLOY_TOKEN, CredentialKind.OPAQUE):
        assert not is_second_token(kind, operation, brokered=False)


KEY = new_key(bytes(32)).reveal().encode()


@pytest.mark.parametrize(
    ("fields", "query", "surface"),
    [
        pytest.param((), b"token=KEY", Surface.REST, id="alone"),
        pytest.param((), b"token=KEY", Surface.WEB_TOKEN, id="where-a-token-is-read"),
        pytest.param((), b"t%6fken[]=%67gw_x", Surface.REST, id="escaped"),
        pytest.param((), b"token=x&token=%22KEY%22", Surface.RUNNER, id="the-second-of-two"),
        pytest.param((PRIVATE,), b"token=KEY", Surface.REST, id="beside-an-own-token"),
        pytest.param(((b"PRIVATE-TOKEN", KEY),), b"token=KEY", Surface.REST, id="beside-itself"),
        pytest.param((), b"private_token=KEY&token=KEY", Surface.REST, id="beside-itself-in-the-query"),
        pytest.param((BEARER, (b"X-NuGet-ApiKey", KEY)), b"", Surface.PACKAGES, id="another-field"),
        pytest.param((JOB, (b"Runner-Token", b"x " + KEY)), b"", Surface.RUNNER, id="within-another-field"),
        pytest.param((PRIVATE, (b"DPoP", KEY)), b"", Surface.REST, id="proof"),
        pytest.param(((b"Cookie", b"a=" + KEY),), b"", Surface.WEB, id="cookie"),
        pytest.param((_basic(KEY.decode() + ":"),), b"", Surface.GIT, id="user-name"),
        pytest.param((_basic(KEY.decode() + ":x-oauth-basic"),), b"", Surface.GIT, id="user-name-beside-a-word"),
    ],
)
def test_a_gateway_key_that_would_go_up_is_refused(fields: tuple[Field, ...], query: bytes, surface: Surface) -> None:
    assert _refused(*fields, target=b"/x?" + query.replace(b"KEY", KEY), surface=surface).status == 401


def test_a_gateway_key_that_is_the_credential_may_be_said_again_where_nothing_goes_up() -> None:
    nuget = (b"X-NuGet-ApiKey", KEY)
    for field in ((b"PRIVATE-TOKEN", KEY), _basic(f"{KEY.decode()}:{KEY.decode()}")):
        assert _claim(field, nuget, surface=Surface.PACKAGES).secret.reveal() == KEY.decode()
    assert _claim(nuget, surface=Surface.PACKAGES).secret.reveal() == KEY.decode()
    assert _claim(PRIVATE, nuget).upstream_fields == (PRIVATE,), "dropped elsewhere"
    assert _claim(PRIVATE, target=b"/x?token=xggw_y").kind is CredentialKind.TOKEN, "a word like any other"


def test_no_secret_in_any_text() -> None:
    for claim in (_claim(PRIVATE), _claim(COOKIE), _claim(_basic("u:T1")), _claim(target=b"/x?private_token=T1")):
        assert "T1" not in f"{claim!r}{claim}"
        assert "S1" not in repr(claim)


def test_the_memory_of_names_is_bounded() -> None:
    for number in range(4200):
        _claim((b"X-%d" % number, b""), (b"L" * 65 + b"%d" % number, b""))
    assert len(module._slots) <= 4096


def test_gitlab_alone_judges_what_is_opaque_and_stays_where_it_is() -> None:
    claims = {(kind, carrier): Claim(kind, Secret("s"), carrier) for kind in CredentialKind for carrier in (None, *Carrier)}
    assert [each for each, claim in claims.items() if claim.is_in_body] == [(CredentialKind.OPAQUE, Carrier.BODY)]
    assert [each for each, claim in claims.items() if claim.stays_in_target] == [(CredentialKind.OPAQUE, Carrier.QUERY)]


def test_a_user_s_token_in_a_body_is_left_to_gitlab_for_oauth_alone() -> None:
    in_body = Claim(CredentialKind.OPAQUE, Secret(""), Carrier.BODY)
    for surface in Surface:
        for job_token in (False, True):
            operation = Operation("GET x", Access.READ, surface, job_token=job_token)
            left = allowed_in_body(in_body, operation)
            assert left == (CREDENTIAL_PARAMETERS if surface is Surface.OAUTH else {"job_token"} if job_token else set())
            for other in (
                Claim(CredentialKind.OPAQUE, Secret("s"), Carrier.QUERY),
                Claim(CredentialKind.SESSION, Secret("s"), Carrier.COOKIE),
            ):
                assert allowed_in_body(other, operation) == set()

"""Credentials: every carrier GitLab reads, one credential or a refusal, and never one that was not meant to go up."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import BROKER_TOKEN, OWN_TOKEN, SUDO_TOKEN, Passage
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import ask, curl, stranger
from tests.fakes.gitlab import Answer, Received, Then, response

JSON_BODY = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
CARRIERS = ("private-token", "authorization", "job-token", "deploy-token", "cookie", "sudo")

Keys = SimpleNamespace


def basic(user: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def carried(received: Received) -> list[tuple[bytes, bytes]]:
    """Every field of a request that could be a credential."""
    return [(name, value) for name, value in received.fields if name.lower().replace(b"_", b"-").decode() in CARRIERS]


def test_r7_401_is_gitlabs_octet_for_octet(gateway: GatewayProcess, demo: DemoGitLab) -> None:
    source = stranger()
    for fields in (["PRIVATE-TOKEN: glpat-nobody-knows-this"], ["Authorization: Bearer gwk-nobody"], ["PRIVATE-TOKEN: x"]):
        reply = ask(gateway.port, "/api/v4/projects", *fields, source=source)
        assert (reply.status, reply.body) == (401, b'{"message":"401 Unauthorized"}')
        assert reply.value("Content-Type") == "application/json"
        assert reply.value("X-Gateway-Error") == "unauthenticated"
        assert "www-authenticate" not in reply.names
        assert reply.value("RateLimit-Limit") is not None
    theirs = curl("--header", "PRIVATE-TOKEN: glpat-nobody-knows-this", f"{demo.url}/api/v4/projects")
    assert (theirs.status, theirs.body) == (401, reply.body)


def test_r8_anonymous_callers_see_public_data_and_a_bad_token_stays_401(gateway: GatewayProcess, passage: Passage) -> None:
    assert ask(gateway.port, "/api/v4/projects/open%2Fhandbook").status == 200
    assert ask(gateway.port, "/api/v4/projects/platform%2Fapi").status == 404
    assert ask(gateway.port, "/api/v4/projects/open%2Fhandbook", token="glpat-bad", source=stranger()).status == 401
    assert carried(passage("/api/v4/projects?r8")[1]) == []


@pytest.mark.parametrize("name", ["PRIVATE-TOKEN", "Private-Token", "private-token", "pRIVATE-tOKEN"])
def test_r9_private_token_in_any_spelling(passage: Passage, recorded_keys: Keys, name: str) -> None:
    _, received = passage("/api/v4/user?r9", f"{name}: {OWN_TOKEN}")
    assert [value for _, value in carried(received)] == [OWN_TOKEN.encode()]
    _, received = passage("/api/v4/user?r9", f"{name}: {recorded_keys.bot}")
    assert carried(received) == [(b"PRIVATE-TOKEN", BROKER_TOKEN.encode())]


def test_r9_two_different_values_are_400_and_equal_ones_are_one(passage: Passage) -> None:
    for other in ("PRIVATE-TOKEN: glpat-another", "Authorization: Bearer x", "JOB-TOKEN: x"):
        refused = passage.refused("/api/v4/user", f"PRIVATE-TOKEN: {OWN_TOKEN}", other)
        assert (refused.status, refused.value("X-Gateway-Error")) == (400, "ambiguous_credential")
    for second in (f"Private-Token: {OWN_TOKEN}", f"Authorization: Bearer {OWN_TOKEN}"):
        _, received = passage("/api/v4/user?two", f"PRIVATE-TOKEN: {OWN_TOKEN}", second)
        assert len(carried(received)) == 1
    underscored = passage.refused("/api/v4/user", f"PRIVATE_TOKEN: {OWN_TOKEN}")
    assert underscored.status == 400


@pytest.mark.parametrize("parameter", ["private_token", "access_token", "bearer_token"])
def test_r10_a_token_in_the_query_becomes_a_field(passage: Passage, recorded_keys: Keys, parameter: str) -> None:
    for token, sent in ((OWN_TOKEN, OWN_TOKEN), (recorded_keys.bot, BROKER_TOKEN)):
        reply, received = passage(f"/api/v4/projects?a=%2F&{parameter}={token}&b=c+d&&e=")
        assert received.target == b"/api/v4/projects?a=%2F&b=c+d&&e="
        assert [value.removeprefix(b"Bearer ") for _, value in carried(received)] == [sent.encode()]
        assert token.encode() not in received.octets.replace(sent.encode(), b"")
        assert token not in json.dumps(passage.gateway.audited(reply.request_id))
    alone = passage(f"/api/v4/projects?{parameter}={OWN_TOKEN}")[1]
    assert alone.target in {b"/api/v4/projects", b"/api/v4/projects?"}


@pytest.mark.parametrize("parameter", ["private_token", "access_token"])
def test_r10_a_token_in_a_body_is_the_one_credential_or_a_refusal(
    passage: Passage, recorded_keys: Keys, parameter: str
) -> None:
    for kind, write in (
        (JSON_BODY, lambda token: json.dumps({"name": "x", parameter: token, "y": [1]}).encode()),
        (FORM, lambda token: f"name=x&{parameter}={token}&y[]=%5B1+".encode()),
    ):
        own, received = passage("/api/v4/projects", kind, method="POST", body=write(OWN_TOKEN))
        assert own.status == 200
        assert [value.removeprefix(b"Bearer ") for _, value in carried(received)] == [OWN_TOKEN.encode()]
        assert OWN_TOKEN.encode() not in received.framed_body
        assert received.body in {b'{"name": "x",  "y": [1]}', b"name=x&y[]=%5B1+"}
        # Beside a brokered key a second credential would win over the injected one.
        refused = passage.refused("/api/v4/projects", kind, method="POST", body=write(OWN_TOKEN), token=recorded_keys.bot)
        assert refused.status == 400
        assert refused.value("X-Gateway-Error") == "ambiguous_credential"


def test_r10_a_token_in_a_multipart_body(passage: Passage, recorded_keys: Keys) -> None:
    kind = "Content-Type: multipart/form-data; boundary=b"
    name = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n'
    part = b'--b\r\nContent-Disposition: form-data; name="private_token"\r\n\r\n%b\r\n'
    for token, sent in ((OWN_TOKEN, OWN_TOKEN), (recorded_keys.bot, BROKER_TOKEN)):
        body = name + part % token.encode() + b"--b--\r\n"
        reply, received = passage("/api/v4/projects", kind, method="POST", body=body)
        assert (reply.status, received.body) == (200, name + b"--b--\r\n")
        assert carried(received) == [(b"PRIVATE-TOKEN", sent.encode())]
        beside = passage.refused("/api/v4/projects", kind, method="POST", body=body, token=recorded_keys.sudo)
        assert (beside.status, beside.value("X-Gateway-Error")) == (400, "ambiguous_credential")


def test_r11_bearer_carries_personal_and_oauth_tokens(
    gateway: GatewayProcess, passage: Passage, recorded_keys: Keys
) -> None:
    for token in (TOKENS.oauth, TOKENS.ada):
        assert ask(gateway.port, "/api/v4/user", f"Authorization: Bearer {token}").status == 200
    assert ask(gateway.port, f"/api/v4/user?access_token={TOKENS.oauth}").status == 200
    _, received = passage("/api/v4/user?r11", f"authorization: bearer {recorded_keys.bot}")
    assert carried(received) == [(b"PRIVATE-TOKEN", BROKER_TOKEN.encode())]


def test_r11_bearer_and_access_token_together_are_gitlabs_400(passage: Passage) -> None:
    reply = passage.refused(f"/api/v4/user?access_token={OWN_TOKEN}", f"Authorization: Bearer {OWN_TOKEN}")
    answer = json.loads(reply.body)
    assert reply.status == 400
    assert answer["error"] == "invalid_request"
    assert answer["error_description"] == "Both Authorization header and payload includes access token."


@pytest.mark.parametrize("name", ["ada", "ada_routable", "bot", "ada_read", "oauth", "root_sudo"])
def test_r12_kinds_of_token_come_from_gitlab_not_from_text(gateway: GatewayProcess, name: str) -> None:
    fields = [f"Authorization: Bearer {getattr(TOKENS, name)}"]
    assert ask(gateway.port, "/api/v4/user", *fields).status == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("", b"", id="query"),
        pytest.param(FORM, b"ref=main&token=TOKEN", id="form"),
        pytest.param(JSON_BODY, b'{"ref":"main","token":"TOKEN"}', id="json"),
        pytest.param(
            "Content-Type: multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="ref"\r\n\r\nmain\r\n--b\r\n'
            b'Content-Disposition: form-data; name="token"\r\n\r\nTOKEN\r\n--b--\r\n',
            id="multipart",
        ),
    ],
)
def test_r13_trigger_tokens_pass_and_are_nobodys(gateway: GatewayProcess, demo: DemoGitLab, kind: str, body: bytes) -> None:
    body = body.replace(b"TOKEN", TOKENS.trigger.encode())
    target = "/api/v4/projects/1/trigger/pipeline" + ("" if body else f"?ref=main&token={TOKENS.trigger}")
    reply = ask(gateway.port, target, *([kind] if kind else []), method="POST", body=body)
    assert reply.status == 201, reply.body
    audited = gateway.audited(reply.request_id)
    assert TOKENS.trigger not in json.dumps(audited)
    assert audited["principal_kind"] == "passthrough"


TRIGGER = "/api/v4/projects/1/trigger/pipeline"


@pytest.mark.parametrize(
    ("method", "target", "kind", "body"),
    [
        pytest.param("GET", "/platform/api/-/raw/main/x?token=static", "", b"", id="file"),
        pytest.param("GET", "/platform/api/-/raw/main/x?a;%74oken[]=static", "", b"", id="file-spelt-oddly"),
        pytest.param("POST", f"{TRIGGER}?token=trigger&ref=main", "", b"", id="trigger"),
        pytest.param("POST", TRIGGER, JSON_BODY, b'{"token":"trigger","ref":"main"}', id="trigger-json"),
        pytest.param("POST", TRIGGER, FORM, b"ref=main&token=trigger", id="trigger-form"),
        pytest.param("POST", "/api/v4/jobs/request", JSON_BODY, b'{"token":"glrt-x"}', id="runner"),
        pytest.param("DELETE", "/api/v4/runners?token=glrt-x", "", b"", id="runner-query"),
        pytest.param("GET", "/api/v4/projects/1/jobs?token=glcbt-x", "", b"", id="job"),
    ],
)
def test_a_token_beside_a_key_is_a_second_credential(
    passage: Passage, recorded_keys: Keys, method: str, target: str, kind: str, body: bytes
) -> None:
    fields, options = [kind] if kind else [], {"body": body} if method == "POST" else {}
    # A plan for the key's fields is there.
    for page in (1, 2):
        passage(f"/api/v4/projects/1/issues?page={page}", *fields, token=recorded_keys.bot)
    refused = passage.refused(target, *fields, method=method, token=recorded_keys.bot, **options)
    assert (refused.status, refused.value("X-Gateway-Error")) == (400, "ambiguous_credential")
    # An own token's caller may: python-gitlab triggers pipelines so.
    _, received = passage(target, *fields, method=method, token=OWN_TOKEN, **options)
    assert (received.target, received.body) == (target.encode(), body)
    assert carried(received) == [(b"PRIVATE-TOKEN", OWN_TOKEN.encode())]


def test_a_gateway_key_never_goes_up(passage: Passage, recorded_keys: Keys) -> None:
    """Anonymous callers, own tokens and what passes through are let in here: a key is for the gateway alone."""
    key, source = recorded_keys.bot, stranger()
    for method, target, fields, body in (
        ("GET", f"/api/v4/projects/1?token={key}", [], b""),
        ("GET", f"/api/v4/projects/1?a;t%6fken[]={key}", [f"PRIVATE-TOKEN: {OWN_TOKEN}"], b""),
        ("OPTIONS", f"/api/v4/projects/1?token={key}", ["Origin: https://a.b", "Access-Control-Request-Method: GET"], b""),
        ("GET", f"/platform/api/-/raw/main/x?token={key}", [], b""),
        ("GET", "/platform/api.git/info/refs?service=git-upload-pack", [basic(key, "x-oauth-basic")], b""),
        ("GET", "/platform/api.git/info/refs?service=git-upload-pack", [f"Authorization: token {key}"], b""),
        ("GET", "/api/v4/user", [f'Authorization: Bearer "{key}"'], b""),
        ("GET", "/api/v4/projects/1/packages/nuget/index", ["Deploy-Token: gldt-x", f"X-NuGet-ApiKey: {key}"], b""),
        ("POST", TRIGGER, [FORM], b"ref=main&token=" + key.encode()),
        ("POST", "/api/v4/jobs/request", [JSON_BODY], b'{"token":"%b"}' % key.encode()),
        ("POST", "/api/v4/projects/1/hooks", [JSON_BODY, f"PRIVATE-TOKEN: {OWN_TOKEN}"], b'{"token":"%b"}' % key.encode()),
    ):
        options = {"body": body} if method == "POST" else {}
        refused = passage.refused(target, *fields, method=method, source=source, **options)
        assert (refused.status, refused.value("X-Gateway-Error")) == (401, "unauthenticated"), (target, fields)
        assert key not in json.dumps(passage.gateway.audited(refused.request_id))


def test_a_token_that_is_no_credential_passes_beside_a_key(passage: Passage, recorded_keys: Keys) -> None:
    hook = b'{"url":"https://hook.example.com","token":"a-secret-of-the-hook"}'
    _, received = passage("/api/v4/projects/1/hooks", JSON_BODY, method="POST", body=hook, token=recorded_keys.bot)
    assert received.body == hook


def test_runners_say_their_job_s_token_twice(passage: Passage) -> None:
    body = b'{"token":"glcbt-64_x","state":"success"}'
    _, received = passage("/api/v4/jobs/7", "JOB-TOKEN: glcbt-64_x", JSON_BODY, method="PUT", body=body)
    assert (carried(received), received.body) == ([(b"JOB-TOKEN", b"glcbt-64_x")], body)


def test_r14_job_tokens_pass_where_gitlab_takes_them(gateway: GatewayProcess) -> None:
    for target, fields in (
        ("/api/v4/projects/1", [f"JOB-TOKEN: {TOKENS.job}"]),
        ("/api/v4/job", [f"job-token: {TOKENS.job}"]),
        (f"/api/v4/projects/1?job_token={TOKENS.job}", []),
    ):
        assert ask(gateway.port, target, *fields).status == 200, target
    elsewhere = ask(gateway.port, "/api/v4/user", f"JOB-TOKEN: {TOKENS.job}")
    assert (elsewhere.status, elsewhere.body) == (401, b'{"message":"401 Unauthorized"}')
    assert "x-gateway-error" not in elsewhere.names


@pytest.mark.parametrize(
    "field", ["Deploy-Token: gldt-x", "Authorization: Bearer gldt-x", basic("gitlab+deploy-token-1", "gldt-x")]
)
def test_r15_deploy_tokens_pass_to_package_routes(passage: Passage, field: str) -> None:
    package = "/api/v4/projects/1/packages/generic/a/1/b"
    _, received = passage(package, field, answer=response(200, b"x"), source=stranger())
    assert [b": ".join(one).decode() for one in carried(received)] == [field]
    refused, _ = passage(package, field, answer=response(401, b"no", ("Content-Type", "text/plain")), source=stranger())
    assert (refused.status, refused.body) == (401, b"no")
    elsewhere = passage.refused("/api/v4/projects/1", field, source=stranger())
    assert (elsewhere.status, elsewhere.body) == (401, b'{"message":"401 Unauthorized"}')


def test_r16_session_cookies_pass_alone_and_are_dropped_beside_a_token(passage: Passage, recorded_keys: Keys) -> None:
    cookie = "Cookie: _gitlab_session=0123456789abcdef; theme=dark"
    answer = response(200, b"{}", ("Set-Cookie", "_gitlab_session=new; HttpOnly"), ("ETag", '"r16"'))
    for _ in range(2):
        reply, received = passage("/api/v4/user?r16", cookie, "X-CSRF-Token: abc", answer=answer)
        assert received.values("X-CSRF-Token") == [b"abc"]
        assert received.values("Cookie") == [cookie.removeprefix("Cookie: ").encode()]
        assert not received.values("If-None-Match")
        assert reply.values("Set-Cookie") == ["_gitlab_session=new; HttpOnly"]
    for token in (OWN_TOKEN, recorded_keys.bot):
        _, received = passage("/api/v4/user?r16", cookie, token=token)
        assert received.values("Cookie") == []


@pytest.mark.parametrize("sudo", ["bob", "BOB"])
def test_r18_sudo_is_a_capability_of_rules(
    passage: Passage, recorded_keys: Keys, gateway: GatewayProcess, sudo_key: str, bot_key: str, sudo: str
) -> None:
    _, received = passage("/api/v4/user?r18", f"Sudo: {sudo}", token=recorded_keys.sudo)
    assert carried(received) == [(b"PRIVATE-TOKEN", SUDO_TOKEN.encode()), (b"Sudo", sudo.encode())]
    reply, received = passage(f"/api/v4/user?sudo={sudo}&r18", token=recorded_keys.sudo)
    assert b"sudo=" + sudo.encode() in received.target
    audited = passage.gateway.audited(reply.request_id)
    assert (audited["principal"], audited["sudo"].lower()) == ("impersonator", "bob")
    for target, fields in (("/api/v4/user", [f"Sudo: {sudo}"]), (f"/api/v4/user?sudo={sudo}", [])):
        assert json.loads(ask(gateway.port, target, *fields, token=sudo_key).body)["username"] == "bob"
        refused = ask(gateway.port, target, *fields, token=bot_key)
        assert (refused.status, refused.body) == (403, b'{"message":"403 Forbidden - Must be admin to use sudo"}')
    assert ask(gateway.port, "/api/v4/user", "Sudo: ada", token=sudo_key).status == 403
    assert ask(gateway.port, "/api/v4/user", f"Sudo: {sudo}", token=TOKENS.root_sudo).status == 200


def test_r18_sudo_in_a_body_is_seen(passage: Passage, recorded_keys: Keys) -> None:
    for kind, body in ((JSON_BODY, b'{"sudo":"root"}'), (FORM, b"a=b&sudo=root"), (FORM, b"a=b&s%75do=root")):
        reply = passage.refused("/api/v4/projects", kind, method="POST", body=body, token=recorded_keys.bot)
        assert reply.status in {400, 403}


def test_r20_oauth_refresh_goes_up_once(passage: Passage) -> None:
    body = b"grant_type=refresh_token&refresh_token=r20-refresh&client_id=c&client_secret=r20-secret"
    reply, received = passage("/oauth/token", FORM, method="POST", body=body, answer=response(200, b'{"access_token":"x"}'))
    assert received.body == body
    lost, _ = passage("/oauth/token", FORM, method="POST", body=body, answer=Answer(then=Then.CLOSE))
    assert lost.status == 502
    assert len(passage.recorder.requests) == 2
    assert "r20" not in json.dumps(passage.gateway.audited(reply.request_id))


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "x-http-method-override", "X_HTTP_METHOD_OVERRIDE"])
def test_x1_method_override_never_reaches_gitlab(passage: Passage, name: str) -> None:
    _, received = passage("/api/v4/projects/1/x", f"{name}: DELETE", method="POST", body=b"")
    assert not [field for field, _ in received.fields if b"override" in field.lower()]


def test_x1_form_method_is_refused_or_judged(passage: Passage, gateway: GatewayProcess, reader_key: str) -> None:
    for body in (b"_method=DELETE", b"a=b&%5Fmethod=delete"):
        reply = passage.refused("/api/v4/projects/1/x", FORM, method="POST", body=body)
        assert (reply.status, reply.value("X-Gateway-Error")) == (400, "method_override")
    assert (
        ask(gateway.port, "/api/v4/markdown", FORM, method="POST", body=b"_method=DELETE", token=reader_key).status >= 400
    )
    assert passage.refused("/api/v4/projects/1/x?_method=DELETE", method="POST", body=b"").status == 400


SPOOFED = [
    "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Client-IP", "True-Client-IP", "Forwarded",
    "Gitlab-Workhorse", "Gitlab-Workhorse-Api-Request", "Gitlab-Shell-Api-Request", "Gitlab-Kas-Api-Request",
    "Gitlab-Agent-Api-Request", "Gitlab-Pages-Api-Request", "Gitlab-Mailroom-Api-Request", "Gitlab-Shared-Secret",
    "Gitlab-Storage-Path", "X-Sendfile-Type", "X-Accel-Mapping", "X-Request-Start", "X-GITLAB-DISABLE-SQL-QUERY-LIMIT",
    "X-Gateway-Error", "CF-Connecting-IPv6", "CloudFront-Viewer-Address", "Fastly-Client-IP", "X-Azure-ClientIP",
    "X-Envoy-External-Address", "X-Original-Forwarded-For",
]  # fmt: skip


def test_x3_trusted_fields_of_strangers_are_removed(passage: Passage) -> None:
    spellings: list[Callable[[str], str]] = [str, str.lower, str.upper, lambda name: name.replace("-", "_")]
    for spell in spellings:
        _, received = passage("/api/v4/projects?x3", *[f"{spell(name)}: 203.0.113.9" for name in SPOOFED])
        assert b"203.0.113.9" not in received.octets


def test_x4_gitlab_sees_the_clients_address(passage: Passage) -> None:
    source = stranger()
    _, received = passage("/api/v4/projects?x4", "X-Forwarded-For: 203.0.113.9", source=source)
    assert received.values("X-Forwarded-For") == [source.encode()]
    assert received.values("X-Forwarded-Proto") == [b"http"]


def test_x12_runner_tokens_in_bodies_are_not_swapped(passage: Passage, gateway: GatewayProcess) -> None:
    body = b'{"token":"glrt-t1_0123456789abcdefghij","info":{"name":"r"},"last_update":""}'
    fields = [("Gitlab-Ci-Builds-Polling", "yes"), ("X-GitLab-Last-Update", "abc"), ("Job-Status", "running")]
    for status in (204, 403, 202):
        reply, received = passage(
            "/api/v4/jobs/request",
            JSON_BODY,
            "Runner-Token: glrt-t1_x",
            method="POST",
            body=body,
            answer=response(status, b"", *fields),
        )
        assert received.body == body
        assert [name for name, _ in carried(received)] == []
        assert received.values("Runner-Token") == [b"glrt-t1_x"]
        assert reply.status == status
        for name, value in fields:
            assert reply.value(name) == value


def test_x13_registry_logins_pass(passage: Passage) -> None:
    target = "/jwt/auth?service=container_registry&scope=repository:a/b:pull&scope=repository:a/c:push,pull"
    _, received = passage(target, basic("ada", "secret"), answer=response(200, b'{"token":"ey.x.y"}'))
    assert received.target == target.encode()
    assert [f"{name.decode()}: {value.decode()}" for name, value in carried(received)] == [basic("ada", "secret")]


def test_a_registrys_log_in_by_form_keeps_a_gateway_key_here(passage: Passage, recorded_keys: Keys) -> None:
    """Containerd and BuildKit ask so first; a 401 or 404, but no 403, has them go on to Basic."""
    body = "client_id=containerd-client&grant_type=password&service=container_registry&username=bot&password="
    refused = passage.refused("/jwt/auth", FORM, method="POST", body=(body + recorded_keys.bot).encode())
    assert refused.status == 401
    reply, _ = passage("/jwt/auth", FORM, method="POST", body=(body + OWN_TOKEN).encode(), answer=response(404, b"{}"))
    assert reply.status == 404
    target = "/jwt/auth?account=bot&service=container_registry&scope=repository:a/b:pull"
    _, received = passage(target, basic("bot", recorded_keys.bot), answer=response(200, b'{"token":"ey.x.y"}'))
    assert [f"{name.decode()}: {value.decode()}" for name, value in carried(received)] == [basic("oauth2", BROKER_TOKEN)]


def test_r56_scim_bearer_is_not_swapped(passage: Passage) -> None:
    for method, tail, body in (
        ("GET", 'Users?filter=userName%20eq%20"x"&startIndex=1', None),
        ("GET", "Users/", None),
        ("PATCH", "Users/abc", b'{"Operations":[]}'),
    ):
        target = f"/api/scim/v2/groups/my%2Fgroup/{tail}"
        reply, received = passage(
            target,
            "Authorization: Bearer glsoat-0123456789abcdefghij",
            "Content-Type: application/scim+json",
            method=method,
            body=body,
            answer=response(200, b"{}", ("Content-Type", "application/scim+json; charset=utf-8")),
        )
        assert received.target == target.encode()
        assert received.values("Authorization") == [b"Bearer glsoat-0123456789abcdefghij"]
        assert received.values("Content-Type") == [b"application/scim+json"]
        assert received.body == (body or b"")
        assert reply.value("Content-Type") == "application/scim+json; charset=utf-8"


def broker(demo: DemoGitLab, directory: Path) -> GatewayProcess:
    """A gateway that shows GitLab its bot's token instead of a key, and lets people in with their own."""
    config = {
        "upstream": {"url": demo.url},
        "identities": [{"id": "bot", "key": "issued"}, {"id": "people", "gitlab_token": True}],
        "credentials": [{"id": "sa", "token": "${env:SA}"}],
        "rules": [{"id": "bot", "for": ["bot"], "use": "sa", "allow": [{"access": "write"}]}],
    }
    return GatewayProcess(config, directory, {"SA": TOKENS.bot})


def test_x23_a_brokers_dead_token_is_not_the_callers_401(demo: DemoGitLab, tmp_path: Path) -> None:
    process = broker(demo, tmp_path)
    try:
        key = process.new_key("bot")
        assert ask(process.port, "/api/v4/user", token=key).status == 200
        demo.state.tokens[TOKENS.bot].revoked = True
        reply = ask(process.port, "/api/v4/user", token=key)
        assert (reply.status, reply.value("X-Gateway-Error")) == (502, "broker_credential_refused")
        assert process.log.find(lambda line: "sa" in line if "refuses credential" in line else None)
        assert ask(process.port, "/api/v4/user", token="glpat-unknown").status == 401
    finally:
        demo.state.tokens[TOKENS.bot].revoked = False
        assert process.stop() == 0


def test_a_dead_token_stops_no_start_and_a_check_tells_of_it(demo: DemoGitLab, tmp_path: Path) -> None:
    demo.state.tokens[TOKENS.bot].revoked = True
    try:
        process = broker(demo, tmp_path)
        try:
            reply = ask(process.port, "/api/v4/user", token=process.new_key("bot"))
            assert (reply.status, reply.value("X-Gateway-Error")) == (502, "broker_credential_refused")
            assert ask(process.port, "/api/v4/user", token=TOKENS.ada).status == 200
            ready = json.loads(ask(process.admin_port, "/readyz").body)
            assert (ready["ready"], ready["checks"]["credential sa"]) == (True, "degraded: GitLab refuses it")
            with pytest.raises(subprocess.CalledProcessError) as failed:
                process.command("check", "--ask-gitlab")
            assert failed.value.returncode == 1
            assert "credential `sa` is not accepted by GitLab" in failed.value.stderr
            assert "failed: GitLab can't be asked, or has not taken every token" in failed.value.stderr
            assert "in order" not in failed.value.stderr
            demo.state.tokens[TOKENS.bot].revoked = False
            assert "is in order" in process.command("check", "--ask-gitlab").stderr
        finally:
            assert process.stop() == 0
    finally:
        demo.state.tokens[TOKENS.bot].revoked = False

"""GitLab's order of credentials, shown by who is identified."""

from __future__ import annotations

import base64

import pytest

from gateway.demo.access import Surface, identify
from gateway.demo.answer import Refusal
from gateway.demo.request import Request
from gateway.demo.routing import DEFAULT_SURFACE
from gateway.demo.seed import TOKENS, seed

STATE = seed(0)
JOB = Surface(job_token=True)
PACKAGES = Surface(job_token=True, deploy_token=True, basic=True)
BAD = "glpat-no-such-token-000000"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def who(
    headers: dict[str, str] | None = None,
    params: dict[str, object] | None = None,
    method: str = "GET",
    surface: Surface = DEFAULT_SURFACE,
) -> str | None:
    """The name of the token that counted; None for nobody."""
    caller = identify(STATE, Request(method, "/", (), "", headers or {}, params or {}), surface)
    return caller.token.name if caller.token else None


def refusal(
    headers: dict[str, str] | None = None,
    params: dict[str, object] | None = None,
    method: str = "GET",
    surface: Surface = DEFAULT_SURFACE,
) -> tuple[int, str]:
    with pytest.raises(Refusal) as refused:
        who(headers, params, method, surface)
    return refused.value.answer.status, refused.value.answer.body.decode()


@pytest.mark.parametrize(
    ("headers", "params", "name"),
    [
        pytest.param({}, {}, None, id="nobody"),
        pytest.param({"private-token": TOKENS.ada}, {}, "ada", id="header"),
        pytest.param({"authorization": f"Bearer {TOKENS.ada}"}, {}, "ada", id="Bearer"),
        pytest.param({"authorization": f"bearer {TOKENS.oauth}"}, {}, "oauth", id="OAuth"),
        pytest.param({"private-token": TOKENS.ada_routable}, {}, "ada_routable", id="routable form"),
        pytest.param({"private-token": TOKENS.bot}, {}, "bot", id="project bot"),
        pytest.param({"private-token": TOKENS.ada}, {"private_token": TOKENS.bob}, "bob", id="parameter before header"),
        pytest.param({"private-token": TOKENS.ada}, {"access_token": TOKENS.bob}, "ada", id="header before access_token"),
        pytest.param({"private-token": TOKENS.ada, "authorization": f"Bearer {TOKENS.bob}"}, {}, "ada", id="before Bearer"),
        pytest.param(
            {"authorization": f"Bearer {TOKENS.bob}"}, {"bearer_token": TOKENS.ada}, "bob", id="Bearer before its parameter"
        ),
        pytest.param({}, {"access_token": TOKENS.oauth}, "oauth", id="access_token"),
        pytest.param({}, {"bearer_token": TOKENS.ada}, "ada", id="bearer_token"),
        pytest.param(
            {"private-token": "x", "authorization": f"Bearer {TOKENS.oauth}"}, {}, "oauth", id="OAuth beside a stray"
        ),
        pytest.param({"cookie": f"a=b; _gitlab_session={TOKENS.session}"}, {}, "session", id="cookie"),
        pytest.param({"cookie": "_gitlab_session=x"}, {}, None, id="unknown cookie"),
        pytest.param({"authorization": basic("x", TOKENS.ada)}, {}, None, id="Basic is for other surfaces"),
        pytest.param({"job-token": TOKENS.job}, {}, None, id="a job token is for other routes"),
        pytest.param({"deploy-token": TOKENS.deploy}, {}, None, id="and so is a deploy token"),
    ],
)
def test_usual_routes(headers: dict[str, str], params: dict[str, object], name: str | None) -> None:
    assert who(headers, params) == name


@pytest.mark.parametrize(
    ("headers", "params", "name"),
    [
        pytest.param({"job-token": TOKENS.job}, {}, "job", id="header"),
        pytest.param({"authorization": f"Bearer {TOKENS.job}"}, {}, "job", id="Bearer"),
        pytest.param({}, {"job_token": TOKENS.job}, "job", id="job_token"),
        pytest.param({}, {"token": TOKENS.job}, "job", id="token"),
        pytest.param({"private-token": TOKENS.ada, "job-token": TOKENS.job}, {}, "ada", id="after a personal one"),
    ],
)
def test_routes_for_jobs(headers: dict[str, str], params: dict[str, object], name: str) -> None:
    assert who(headers, params, surface=JOB) == name


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        pytest.param({"deploy-token": TOKENS.deploy}, "deploy", id="header"),
        pytest.param({"authorization": basic("user", TOKENS.deploy)}, "deploy", id="Basic"),
        pytest.param({"authorization": f"Bearer {TOKENS.deploy}"}, "deploy", id="Bearer"),
        pytest.param({"authorization": basic("any", TOKENS.ada)}, "ada", id="a personal token as password"),
        pytest.param({"authorization": basic("gitlab-ci-token", TOKENS.job)}, "job", id="a job token as password"),
        pytest.param({"authorization": "Basic !"}, None, id="no base64"),
    ],
)
def test_package_routes(headers: dict[str, str], name: str | None) -> None:
    assert who(headers, surface=PACKAGES) == name


@pytest.mark.parametrize(
    ("headers", "params", "surface"),
    [
        pytest.param({"private-token": BAD}, {}, Surface(), id="unknown"),
        pytest.param({"private-token": TOKENS.ada}, {"private_token": BAD}, Surface(), id="unknown before known"),
        pytest.param({"private-token": TOKENS.oauth}, {}, Surface(), id="OAuth where only personal ones are looked up"),
        pytest.param({"authorization": f"Bearer {TOKENS.job}"}, {}, Surface(), id="job token elsewhere"),
        pytest.param({"job-token": "glcbt-x"}, {}, JOB, id="unknown job token"),
        pytest.param({"sudo": "bob"}, {}, Surface(), id="sudo by nobody"),
    ],
)
def test_what_is_unknown_is_not_anonymous(headers: dict[str, str], params: dict[str, object], surface: Surface) -> None:
    assert refusal(headers, params, surface=surface) == (401, '{"message":"401 Unauthorized"}')


def test_bearer_and_access_token_are_one_too_many() -> None:
    status, body = refusal({"authorization": f"Bearer {TOKENS.ada}"}, {"access_token": TOKENS.ada})
    assert (status, "invalid_request" in body) == (400, True)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (TOKENS.expired, "Token is expired."),
        (TOKENS.revoked, "Token was revoked."),
        (TOKENS.oauth_expired, "Token is expired."),
    ],
)
def test_tokens_that_have_ended(token: str, text: str) -> None:
    status, body = refusal({"authorization": f"Bearer {token}"})
    assert status == 401
    assert text in body


def test_scopes() -> None:
    assert who({"private-token": TOKENS.ada_read}) == "ada_read"
    assert '"scope":"api"' in refusal({"private-token": TOKENS.ada_read}, method="POST")[1]
    assert '"scope":"api read_api"' in refusal({"private-token": TOKENS.ada_registry})[1]
    assert (
        '"scope":"api read_api read_user"'
        in refusal({"private-token": TOKENS.ada_registry}, surface=Surface(scopes=("read_user",)))[1]
    )
    assert who({"private-token": TOKENS.ada_registry}, surface=Surface(any_scope=True)) == "ada_registry"


def test_a_blocked_user_is_told_so() -> None:
    assert refusal({"private-token": TOKENS.mallory}) == (
        403,
        '{"message":"403 Forbidden - Your account has been blocked."}',
    )


def test_a_cookie_writes_only_with_a_csrf_token() -> None:
    cookie = {"cookie": f"_gitlab_session={TOKENS.session}"}
    assert who(cookie, method="POST") is None
    assert who({**cookie, "x-csrf-token": "t"}, method="POST") == "session"
    assert who(cookie, {"authenticity_token": "t"}, method="POST") == "session"


@pytest.mark.parametrize(
    ("headers", "params"),
    [({"sudo": "BOB"}, {}), ({"sudo": "3"}, {}), ({}, {"sudo": "bob"}), ({"sudo": "eve"}, {"sudo": 3})],
)
def test_an_admin_acts_as_another(headers: dict[str, str], params: dict[str, object]) -> None:
    request = Request("GET", "/", (), "", {"private-token": TOKENS.root_sudo, **headers}, params)
    caller = identify(STATE, request, Surface())
    assert caller.user is not None
    assert caller.actor is not None
    assert (caller.user.username, caller.actor.username) == ("bob", "root")


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"private-token": TOKENS.eve_sudo}, 403, '{"message":"403 Forbidden - Must be admin to use sudo"}'),
        ({"private-token": TOKENS.root}, 403, '"scope":"sudo"'),
        ({"private-token": TOKENS.root_sudo}, 404, '{"message":"404 User with ID or username \'nobody\' Not Found"}'),
    ],
)
def test_sudo_is_refused_in_three_ways(headers: dict[str, str], status: int, body: str) -> None:
    found = refusal({**headers, "sudo": "nobody"})
    assert found[0] == status
    assert body in found[1]


def test_a_cookie_is_no_token_to_act_as_another() -> None:
    state = seed(0)
    state.tokens[TOKENS.session].user = state.users[1]
    request = Request("GET", "/", (), "", {"cookie": f"_gitlab_session={TOKENS.session}", "sudo": "bob"}, {})
    with pytest.raises(Refusal) as refused:
        identify(state, request, Surface())
    assert b"Must be authenticated using an OAuth or personal access token to use sudo" in refused.value.answer.body

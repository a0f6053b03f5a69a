"""Each refusal in the shape that GitLab's clients parse."""

from __future__ import annotations

import json

import pytest

from gateway.core.catalogue import Surface
from gateway.core.errors import Code, Rejection, drained, forbidden, unauthenticated
from gateway.core.messages import first
from gateway.core.refusal import render

LIMITED = Rejection(Code.RATE_LIMITED, 429, "429 Too Many Requests", proxy_error="http_request_denied")


def test_a_rest_401_is_gitlabs_octet_for_octet() -> None:
    """R7: byte-equal, `application/json` without charset, no challenge, and the marker."""
    head, body = render(unauthenticated())
    assert head.status == 401
    assert body == b'{"message":"401 Unauthorized"}'
    assert first(head.fields, b"content-type") == b"application/json"
    assert first(head.fields, b"www-authenticate") is None
    assert first(head.fields, b"x-gateway-error") == b"unauthenticated"


@pytest.mark.parametrize("surface", [Surface.GIT, Surface.LFS, Surface.REGISTRY])
def test_git_lfs_and_registry_are_challenged(surface: Surface) -> None:
    head, _ = render(unauthenticated(), surface=surface)
    assert first(head.fields, b"www-authenticate") == b'Basic realm="GitLab"'


@pytest.mark.parametrize(
    "route",
    [
        "GET /api/v4/projects/:id/packages/maven/*path/:file_name",
        "GET /api/v4/groups/:id/-/packages/maven/*path/:file_name",
        "GET /api/v4/packages/maven/*path/:file_name",
        "GET /api/v4/projects/:id/dependency_proxy/packages/maven/*path/:file_name",
        "PUT /api/v4/projects/:id/packages/nuget",
        "GET /api/v4/projects/:project_id/packages/nuget/v2/Packages()",
        "GET /api/v4/group/:id/-/packages/composer/packages",
        "GET /api/v4/projects/:id/packages/pypi/simple",
        "GET /api/v4/projects/:id/packages/debian/dists/*distribution/InRelease",
        "GET /api/v4/projects/:id/packages/conan/*",
        "GET /api/v4/virtual_registries/packages/maven/*",
        "other",
    ],
)
def test_package_clients_that_keep_their_password_until_asked_are_asked(route: str) -> None:
    head, body = render(unauthenticated(), surface=Surface.PACKAGES, route=route)
    assert first(head.fields, b"www-authenticate") == b'Basic realm="GitLab Packages Registry"'
    assert json.loads(body)["message"] == "401 Unauthorized"
    quiet, _ = render(unauthenticated(), surface=Surface.PACKAGES, route=route, challenge=False)
    assert first(quiet.fields, b"www-authenticate") is None


@pytest.mark.parametrize(
    "route",
    [
        "GET /api/v4/projects/:id/packages/npm/*package_name",
        "PUT /api/v4/projects/:id/packages/npm/*",
        "GET /api/v4/virtual_registries/packages/npm/*",
        "GET /api/v4/projects/:id/packages/generic/:package_name/*package_version/(*path/):file_name",
        "GET /api/v4/projects/:id/packages/rubygems/gems/:file_name",
        "GET /api/v4/projects/:id/packages/:package_id",
        "GET /api/v4/groups/:id/-/debian_distributions",
        "GET /api/v4/virtual_registries/packages/maven/registries/:id",
    ],
)
def test_other_package_routes_are_as_quiet_as_gitlabs(route: str) -> None:
    head, _ = render(unauthenticated(), surface=Surface.PACKAGES, route=route)
    assert first(head.fields, b"www-authenticate") is None


def test_npm_is_told_in_the_member_that_it_shows() -> None:
    """``HttpErrorGeneral`` of npm-registry-fetch adds ``body.error`` to the status, and yarn says it alone."""
    route = "PUT /api/v4/projects/:id/packages/npm/:package_name"
    _, body = render(forbidden("Not allowed"), surface=Surface.PACKAGES, route=route)
    assert json.loads(body) == {"message": "403 Forbidden - Not allowed", "error": "403 Forbidden - Not allowed"}
    _, body = render(forbidden(), surface=Surface.PACKAGES, route="PUT /api/v4/projects/:id/packages/nuget")
    assert json.loads(body) == {"message": "403 Forbidden"}


@pytest.mark.parametrize("accept", [b"*/*", b"application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"])
@pytest.mark.parametrize("route", ["GET /api/v4/groups/:id/-/packages/npm/*package_name", "other"])
def test_npm_is_told_of_a_429_in_that_member_too(accept: bytes, route: str) -> None:
    head, body = render(LIMITED, surface=Surface.PACKAGES, route=route, accept=accept)
    words = "This endpoint has been requested too many times. Try again later."
    assert json.loads(body) == {"message": words, "error": words}
    assert first(head.fields, b"content-type") == b"application/json"
    assert render(LIMITED, surface=Surface.PACKAGES, route="PUT /api/v4/projects/:id/packages/nuget")[1] == b"Retry later\n"


@pytest.mark.parametrize(
    ("rejection", "code"),
    [
        (unauthenticated(), "UNAUTHORIZED"),
        (forbidden(), "DENIED"),
        (Rejection(Code.PROJECT_UNKNOWN, 404, "404 Project Not Found"), "NAME_UNKNOWN"),
        (LIMITED, "TOOMANYREQUESTS"),
        (Rejection(Code.TOO_MANY_FAILED_LOGINS, 429, "429 Too Many Requests"), "TOOMANYREQUESTS"),
        (drained(unsure=False), "UNAVAILABLE"),
        (Rejection(Code.UPSTREAM_RESET, 502, "502 Bad Gateway"), "UNKNOWN"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.code.value,
)
def test_docker_is_told_by_the_code_whether_to_try_again(rejection: Rejection, code: str) -> None:
    """``retryOnError`` of moby's distribution, which reads a 4xx as JSON or not at all."""
    head, body = render(rejection, surface=Surface.REGISTRY)
    assert first(head.fields, b"content-type") == b"application/json"
    assert [error["code"] for error in json.loads(body)["errors"]] == [code]


def test_no_challenge_where_anonymous_access_is_configured() -> None:
    head, _ = render(unauthenticated(), surface=Surface.GIT, challenge=False)
    assert first(head.fields, b"www-authenticate") is None


@pytest.mark.parametrize(
    ("surface", "rejection", "media", "expected"),
    [
        pytest.param(
            Surface.REST,
            forbidden("Must be admin to use sudo", Code.SUDO_FORBIDDEN),
            b"application/json",
            {"message": "403 Forbidden - Must be admin to use sudo"},
            id="sudo",
        ),
        pytest.param(
            Surface.REST,
            Rejection(Code.BLOCKED_ROUTE, 404, "404 Not Found"),
            b"application/json",
            {"error": "404 Not Found"},
            id="blocked-reads-like-an-unknown-route",
        ),
        pytest.param(
            Surface.REST,
            Rejection(Code.AMBIGUOUS_CREDENTIAL, 400, "Both.", oauth_error="invalid_request"),
            b"application/json",
            {"error": "invalid_request", "error_description": "Both."},
            id="oauth",
        ),
        pytest.param(Surface.LFS, forbidden(), b"application/vnd.git-lfs+json", {"message": "403 Forbidden"}, id="lfs"),
        pytest.param(
            Surface.REGISTRY,
            forbidden(),
            b"application/json",
            {"errors": [{"code": "DENIED", "message": "403 Forbidden"}]},
            id="registry",
        ),
        pytest.param(
            Surface.GRAPHQL,
            unauthenticated(),
            b"application/json",
            {"errors": [{"message": "Invalid token"}]},
            id="graphql",
        ),
        pytest.param(
            Surface.SCIM,
            unauthenticated(),
            b"application/scim+json",
            {
                "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
                "detail": "401 Unauthorized",
                "status": 401,
            },
            id="scim",
        ),
    ],
)
def test_shapes(surface: Surface, rejection: Rejection, media: bytes, expected: object) -> None:
    head, body = render(rejection, surface=surface)
    assert first(head.fields, b"content-type") == media
    assert json.loads(body) == expected


def test_git_is_answered_in_text() -> None:
    head, body = render(unauthenticated(), surface=Surface.GIT)
    assert first(head.fields, b"content-type") == b"text/plain"
    assert body.startswith(b"HTTP Basic: Access denied.")
    assert render(forbidden(), surface=Surface.GIT)[1] == b"403 Forbidden\n"


def test_a_429_is_text_and_json_on_request() -> None:
    assert render(LIMITED)[1] == b"Retry later\n"
    head, body = render(LIMITED, accept=b"application/json")
    assert first(head.fields, b"content-type") == b"application/json"
    assert json.loads(body)["message"]["error"].startswith("This endpoint has been requested too many times")


def test_problem_details_on_request() -> None:
    head, body = render(
        LIMITED,
        accept=b"application/problem+json, */*",
        request_id="r1",
        violated=("caller",),
        extra=((b"Retry-After", b"3"),),
    )
    assert first(head.fields, b"content-type") == b"application/problem+json"
    assert first(head.fields, b"retry-after") == b"3"
    assert json.loads(body) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "rate limited",
        "status": 429,
        "detail": "429 Too Many Requests",
        "instance": "urn:gateway:decision:r1",
        "violated-policies": ["caller"],
    }
    assert "instance" not in json.loads(render(forbidden(), accept=b"application/problem+json")[1])


def test_a_browsers_script_may_read_a_refusal() -> None:
    """X15: the gateway's own 401 and 429 carry CORS fields and expose the limits."""
    head, _ = render(LIMITED, cross_origin=True)
    assert first(head.fields, b"access-control-allow-origin") == b"*"
    assert b"RateLimit-Limit" in (first(head.fields, b"access-control-expose-headers") or b"")


def test_proxy_status_names_the_rfc_9209_error() -> None:
    head, _ = render(LIMITED)
    assert first(head.fields, b"proxy-status") == b"gateway; error=http_request_denied"

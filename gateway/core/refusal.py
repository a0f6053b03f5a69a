"""A :class:`Rejection` as the bytes that its caller expects: GitLab's own shape for the surface, or RFC 9457 on request.

Sources: the bodies of GitLab 19.3 for REST, Git, LFS, registry, GraphQL and SCIM; RFC 9457 for problem details; RFC 9209
for ``Proxy-Status``.
"""

from __future__ import annotations

import re

import msgspec

from .catalogue import OTHER, Surface
from .errors import Code, Rejection
from .messages import Field, Fields, ResponseHead

MARKER = b"X-Gateway-Error"
"""The header that distinguishes the gateway's answers from GitLab's; its value is the code."""

# semantic-release compares an error's media type with exactly this: no charset parameter.
_JSON = b"application/json"
_TEXT = b"text/plain"
_PROBLEM = b"application/problem+json"
_LFS = b"application/vnd.git-lfs+json"
_SCIM = b"application/scim+json"

# The surfaces where GitLab itself asks for Basic: git (and git-lfs, docker) send no credential before they are asked.
_CHALLENGED = frozenset({Surface.GIT, Surface.LFS, Surface.REGISTRY})
_CHALLENGE: Field = (b"WWW-Authenticate", b'Basic realm="GitLab"')
# `BasicAuthHelpers` in GitLab's `lib/api`: Maven, Gradle and NuGet hold their password back until they are asked for it.
# GitLab challenges on these formats alone: npm takes a challenge for one that it can't meet. In a virtual registry it does
# so where packages are fetched, which no row of the catalogue describes.
_CHALLENGED_PACKAGES = re.compile(
    r"[A-Z]+ /api/v4/(?:(?:projects|groups?)/:\w+/(?:-/)?)?(?:dependency_proxy/|virtual_registries/(?=.*/\*\Z))?packages/"
    r"(?:cargo|composer|conan|debian|helm|maven|nuget|pypi|rpm|terraform)(?:/.*)?"
)
_NPM = "/packages/npm/"  # npm shows its user the `error` of a body, and nothing else
# OCI's codes, and docker's own: docker does not try again when told "denied", and can't read anything but JSON.
_REGISTRY_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 429: "TOOMANYREQUESTS", 503: "UNAVAILABLE"}
_PACKAGES_CHALLENGE: Field = (b"WWW-Authenticate", b'Basic realm="GitLab Packages Registry"')

_GIT_DENIED = (
    "HTTP Basic: Access denied. The provided password or token is incorrect or your account has 2FA enabled and you "
    "must use a personal access token instead of a password.\n"
)

_PROBLEM_TYPES = {
    Code.RATE_LIMITED: "https://iana.org/assignments/http-problem-types#quota-exceeded",
    Code.TOO_MANY_FAILED_LOGINS: "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
    Code.UPSTREAM_BREAKER_OPEN: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
    Code.UPSTREAM_BUSY: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
    Code.DRAINING: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
}
_RATE_LIMIT_CODES = frozenset({Code.RATE_LIMITED, Code.TOO_MANY_FAILED_LOGINS})
_RATE_LIMIT_JSON = "This endpoint has been requested too many times. Try again later."

# Some of what GitLab exposes (config/application.rb), and the limits, which it leaves out: clients in a browser back off by
# them.
_EXPOSED = b"Link, X-Total, X-Total-Pages, X-Per-Page, X-Page, X-Next-Page, X-Prev-Page, X-Request-Id, ETag, " + (
    b"RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Gateway-Error"
)

_encoder = msgspec.json.Encoder()


def render(
    rejection: Rejection,
    *,
    surface: Surface = Surface.REST,
    route: str = "",
    accept: bytes = b"",
    request_id: str = "",
    violated: tuple[str, ...] = (),
    extra: Fields = (),
    cross_origin: bool = False,
    challenge: bool = True,
) -> tuple[ResponseHead, bytes]:
    """The refusal's head and body.

    Args:
        rejection: What was refused, and why.
        surface: The surface of GitLab that the request was for: decides the shape.
        route: The operation's name: on package routes it tells the package format, and whether GitLab asks for Basic.
        accept: The request's Accept, its lines joined; empty for none.
        request_id: The decision's id: the problem's ``instance``.
        violated: Ids of the limits that refused (a member of the RFC 9457 problem, from the RateLimit draft).
        extra: Rate-limit fields and the like, sent as given.
        cross_origin: The request carried Origin: let a browser's script read the refusal.
        challenge: Ask for Basic where GitLab does (off where anonymous access is configured).
    """
    media, body = _body(rejection, surface, route, accept, request_id, violated)
    fields: list[Field] = [
        (b"Content-Type", media),
        (b"Cache-Control", b"no-store"),
        (b"X-Content-Type-Options", b"nosniff"),
        (MARKER, rejection.code.value.encode("ascii")),
    ]
    if rejection.proxy_error is not None:
        fields.append((b"Proxy-Status", b"gateway; error=" + rejection.proxy_error.encode("ascii")))
    if rejection.status == 401 and challenge:
        fields += _challenge(surface, route)
    if cross_origin:
        fields += ((b"Access-Control-Allow-Origin", b"*"), (b"Access-Control-Expose-Headers", _EXPOSED))
    fields += rejection.headers
    fields += extra
    return ResponseHead(rejection.status, tuple(fields)), body


def _challenge(surface: Surface, route: str) -> Fields:
    if surface is Surface.PACKAGES:
        asked = route == OTHER or _CHALLENGED_PACKAGES.fullmatch(route) is not None
        return (_PACKAGES_CHALLENGE,) if asked else ()
    if surface not in _CHALLENGED:
        return ()
    return (_CHALLENGE, (b"LFS-Authenticate", b'Basic realm="GitLab"')) if surface is Surface.LFS else (_CHALLENGE,)


def _body(
    rejection: Rejection, surface: Surface, route: str, accept: bytes, request_id: str, violated: tuple[str, ...]
) -> tuple[bytes, bytes]:
    accepted = accept.lower()
    if _PROBLEM in accepted:
        return _PROBLEM, _problem(rejection, request_id, violated)
    message = rejection.message
    npm = surface is Surface.PACKAGES and (_NPM in route or route == OTHER)
    if rejection.code in _RATE_LIMIT_CODES:
        if not npm and surface is not Surface.REGISTRY:
            # Rack::Attack's own answer is text; JSON is only for those who ask for it by name.
            if _JSON in accepted:
                return _JSON, _encoder.encode({"message": {"error": _RATE_LIMIT_JSON}})
            return _TEXT, b"Retry later\n"
        message = _RATE_LIMIT_JSON
    match surface:
        case Surface.GIT:
            text = _GIT_DENIED if rejection.code is Code.UNAUTHENTICATED else message + "\n"
            return _TEXT, text.encode()
        case Surface.LFS:
            return _LFS, _encoder.encode({"message": message})
        case Surface.REGISTRY:
            code = _REGISTRY_CODES.get(rejection.status, "UNKNOWN")
            return _JSON, _encoder.encode({"errors": [{"code": code, "message": message}]})
        case Surface.GRAPHQL:
            text = "Invalid token" if rejection.code is Code.UNAUTHENTICATED else message
            return _JSON, _encoder.encode({"errors": [{"message": text}]})
        case Surface.SCIM:
            return _SCIM, _encoder.encode(
                {
                    "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
                    "detail": message,
                    "status": rejection.status,
                }
            )
        case _:
            if rejection.oauth_error:
                return _JSON, _encoder.encode({"error": rejection.oauth_error, "error_description": message})
            if npm:
                return _JSON, _encoder.encode({"message": message, "error": message})
            # GitLab says `error` for an unknown route; a blocked one must read the same, except for the marker header.
            key = "error" if rejection.code is Code.BLOCKED_ROUTE else "message"
            return _JSON, _encoder.encode({key: message})


def _problem(rejection: Rejection, request_id: str, violated: tuple[str, ...]) -> bytes:
    problem: dict[str, object] = {
        "type": _PROBLEM_TYPES.get(rejection.code, "about:blank"),
        "title": rejection.code.value.replace("_", " "),
        "status": rejection.status,
        "detail": rejection.message,
    }
    if request_id:
        problem["instance"] = f"urn:gateway:decision:{request_id}"
    if violated:
        problem["violated-policies"] = list(violated)
    return _encoder.encode(problem)

"""Identifies the caller: GitLab's order of credentials, its scopes, and sudo.

The order is that of lib/api/api_guard.rb and lib/gitlab/auth/auth_finders.rb: parameters (query, form or JSON body) come
before headers, and a credential that is present but unknown leads to a 401, never to an anonymous request.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from .answer import forbidden, insufficient_scope, invalid_request, invalid_token, not_found, unauthorized
from .request import Request
from .seed import PERSONAL_PREFIX
from .state import Kind, State, Token, User

EXPIRED = "Token is expired. You can either do re-authorization or token refresh."
REVOKED = "Token was revoked. You have to re-authorize from the user."

SAFE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Surface:
    """What a route admits beyond the usual tokens."""

    job_token: bool = False
    deploy_token: bool = False
    any_scope: bool = False
    scopes: tuple[str, ...] = ()
    """Scopes that suffice here besides ``api`` and, for reading, ``read_api``."""
    basic: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller: the user (None: anonymous), the token, and the ``actor``, who they were before ``sudo``."""

    user: User | None = None
    token: Token | None = None
    actor: User | None = None

    def require_user(self) -> User:
        """The user. Raises the 401 of a route that needs one."""
        if self.user is None:
            raise unauthorized()
        return self.user


def identify(state: State, request: Request, surface: Surface) -> Caller:
    """Identify the caller of a request. Raises the Refusal that GitLab would answer with."""
    if _bearer(request) and request.text("access_token"):
        raise invalid_request()
    token = _deploy_token(state, request, surface) or _job_bearer(state, request, surface)
    if token is None:
        token = _access_token(state, request, surface) or _job_token(state, request, surface) or _session(state, request)
    if token is None:
        if request.text("sudo") or request.headers.get("sudo"):
            raise unauthorized()
        return Caller()
    _check_state(state, token, request)
    _check_scopes(token, request, surface)
    if token.user.blocked:
        raise forbidden("Your account has been blocked.")
    return _sudo(state, request, token)


# Each place where GitLab looks for a token


def _deploy_token(state: State, request: Request, surface: Surface) -> Token | None:
    if not surface.deploy_token:
        return None
    value = _basic_password(request) or request.headers.get("deploy-token") or _bearer(request)
    found = state.tokens.get(value or "")
    return found if found is not None and found.kind is Kind.DEPLOY else None


def _job_bearer(state: State, request: Request, surface: Surface) -> Token | None:
    found = state.tokens.get(_bearer(request) or "")
    return found if surface.job_token and found is not None and found.kind is Kind.JOB else None


def _access_token(state: State, request: Request, surface: Surface) -> Token | None:
    """A personal or OAuth token. A token that is given but unknown is refused."""
    personal = (
        request.text("private_token")
        or request.headers.get("private-token")
        or request.text("access_token")
        or _bearer(request)
        or request.text("bearer_token")
    )
    if surface.basic and not personal:
        personal = _basic_password(request)
        if personal and not personal.startswith(PERSONAL_PREFIX):
            return None  # perhaps a job token, which is looked for next
    if not personal:
        return None
    if not personal.startswith(PERSONAL_PREFIX):
        oauth = request.text("access_token") or _bearer(request) or request.text("bearer_token")
        found = state.tokens.get(oauth or "")
        if found is not None and found.kind is Kind.OAUTH:
            return found
    found = state.tokens.get(personal)
    if found is None or found.kind is not Kind.PERSONAL:
        raise unauthorized()
    return found


def _job_token(state: State, request: Request, surface: Surface) -> Token | None:
    if not surface.job_token:
        return None
    value = request.text("job_token") or request.text("token") or request.headers.get("job-token")
    if surface.basic and _basic_password(request):
        value = _basic_password(request)
    if not value:
        return None
    found = state.tokens.get(value)
    if found is None or found.kind is not Kind.JOB:
        raise unauthorized()
    return found


def _session(state: State, request: Request) -> Token | None:
    """The session of a browser's cookie; for writes it counts only with a CSRF token."""
    try:
        cookie = SimpleCookie(request.headers.get("cookie", "")).get("_gitlab_session")
    except CookieError:
        return None
    found = state.tokens.get(cookie.value) if cookie is not None else None
    if found is None or found.kind is not Kind.SESSION:
        return None
    verified = request.headers.get("x-csrf-token") or request.text("authenticity_token")
    return found if request.method in SAFE or verified else None


# What is checked about the token


def _check_state(state: State, token: Token, request: Request) -> None:
    if token.revoked:
        if request.path.endswith("/rotate"):
            state.revoke_family(token)
        raise invalid_token(REVOKED)
    if state.is_expired(token):
        raise invalid_token(EXPIRED)


def _check_scopes(token: Token, request: Request, surface: Surface) -> None:
    if token.kind not in {Kind.PERSONAL, Kind.OAUTH} or surface.any_scope:
        return
    enough = ("api", "read_api", *surface.scopes) if request.method in SAFE else ("api", *surface.scopes)
    if not set(enough) & set(token.scopes):
        raise insufficient_scope(*enough)


def _sudo(state: State, request: Request, token: Token) -> Caller:
    """Apply ``sudo``, an id or a username in any case. The parameter takes precedence over the header."""
    wanted = request.text("sudo") or request.headers.get("sudo")
    if not wanted:
        return Caller(token.user, token, token.user)
    if not token.user.admin:
        raise forbidden("Must be admin to use sudo")
    if token.kind not in {Kind.PERSONAL, Kind.OAUTH}:
        raise forbidden("Must be authenticated using an OAuth or personal access token to use sudo")
    if "sudo" not in token.scopes:
        raise insufficient_scope("sudo")
    user = state.find_user(wanted)
    if user is None:
        raise not_found(f"User with ID or username '{wanted}'")
    return Caller(user, token, token.user)


def _bearer(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() or None if scheme.lower() == "bearer" else None


def _basic_password(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None

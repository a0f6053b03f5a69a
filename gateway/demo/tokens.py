"""Personal access tokens: read, created for others, revoked, and rotated with GitLab's detection of reuse.

Tokens expire by the day: from the first second of its day (UTC), a token is dead. A token that was rotated and then asks to
be rotated again has its whole family revoked, because two parties hold it.
"""

from __future__ import annotations

import datetime

from .access import Surface
from .answer import Answer, api_error, as_json, forbidden, framework_error, missing, no_content, not_found, offset_page
from .request import parse_id
from .routing import Call, Route
from .seed import PERSONAL_PREFIX
from .state import Group, Json, Kind, Level, Token, User

LONGEST_DAYS = 365
DEFAULT_DAYS = 7


def show_own(call: Call) -> Answer:
    """The caller's own token. Works for personal tokens of every scope, and for nothing else."""
    return as_json(_token_json(call, _own_token(call)))


def revoke_own(call: Call) -> Answer:
    _own_token(call).revoked = True
    return no_content()


def rotate_own(call: Call) -> Answer:
    return as_json(_rotate(call, _own_token(call)))


def list_tokens(call: Call) -> Answer:
    """List tokens: everybody's for an administrator, the caller's own for others."""
    user = call.caller.require_user()
    wanted = parse_id(call.request.text("user_id") or "") if user.admin else user.id
    return _page(call, [token for token in _all(call) if wanted in {None, token.user.id}])


def show_token(call: Call) -> Answer:
    return as_json(_token_json(call, _find(call, call["id"])))


def revoke(call: Call) -> Answer:
    _revoke(_find(call, call["id"]))
    return no_content()


def rotate(call: Call) -> Answer:
    token = _find(call, call["id"])
    if token.revoked:
        raise api_error(401, "401 Unauthorized")
    return as_json(_rotate(call, token))


def create_for_user(call: Call) -> Answer:
    if not call.caller.require_user().admin:
        raise forbidden()
    user = call.state.users.get(parse_id(call["user_id"]) or 0)
    if user is None:
        raise not_found("User")
    return as_json(_create(call, user), 201)


# A group's service accounts


def list_of_service(call: Call) -> Answer:
    user = _service_account(call)
    return _page(call, [token for token in _all(call) if token.user is user])


def create_for_service(call: Call) -> Answer:
    return as_json(_create(call, _service_account(call)), 201)


def revoke_of_service(call: Call) -> Answer:
    user = _service_account(call)
    token = call.state.find_token(parse_id(call["token_id"]) or 0)
    if token is None or token.user is not user:
        raise not_found("Personal Access Token")
    _revoke(token)
    return no_content()


def _service_account(call: Call) -> User:
    """The service account of a group; only owners of the group may ask."""
    group: Group = call.group()
    if call.state.level(call.caller.require_user(), group.full_path, group.members) < Level.OWNER:
        raise forbidden()
    user = call.state.users.get(parse_id(call["user_id"]) or 0)
    if user is None or not user.bot:
        raise not_found("User")
    return user


# What the endpoints share


def _all(call: Call) -> list[Token]:
    return [token for token in call.state.tokens.values() if token.kind is Kind.PERSONAL]


def _page(call: Call, tokens: list[Token]) -> Answer:
    state = call.request.text("state")
    shown = [_token_json(call, token) for token in tokens]
    if state in {"active", "inactive"}:
        shown = [row for row in shown if row["active"] is (state == "active")]
    return offset_page(call.request, shown, call.base_url)


def _own_token(call: Call) -> Token:
    token = call.caller.token
    call.caller.require_user()
    if token is None or token.kind is not Kind.PERSONAL:
        raise api_error(400, "400 Bad request - This endpoint requires a personal access token")
    return token


def _find(call: Call, reference: str) -> Token:
    """The token with an id: one of the caller's own, or anybody's for an administrator; another's is a 404."""
    user = call.caller.require_user()
    token = call.state.find_token(parse_id(reference) or 0)
    if token is None or (token.user is not user and not user.admin):
        raise not_found()
    return token


def _revoke(token: Token) -> None:
    if token.revoked:
        raise api_error(400, "400 Bad request - The token is revoked already")
    token.revoked = True


def _rotate(call: Call, token: Token) -> Json:
    expires_on = _expiry_date(call, DEFAULT_DAYS)
    token.revoked = True
    created = call.state.mint(token.user, token.name, token.scopes, PERSONAL_PREFIX, expires_on, family=token.family)
    return _token_json(call, created) | {"token": created.value}


def _create(call: Call, user: User) -> Json:
    scopes = call.request.params.get("scopes")
    if not isinstance(scopes, list) or not scopes:
        raise missing("scopes")
    name = call.required("name")
    created = call.state.mint(
        user, name, tuple(str(scope) for scope in scopes), PERSONAL_PREFIX, _expiry_date(call, LONGEST_DAYS)
    )
    return _token_json(call, created) | {"token": created.value}


def _expiry_date(call: Call, days: int) -> datetime.date:
    today = call.state.today()
    given = call.request.text("expires_at")
    if given is None:
        return today + datetime.timedelta(days=days)
    try:
        end = datetime.date.fromisoformat(given)
    except ValueError:
        raise framework_error(400, "expires_at is invalid") from None
    if not today < end <= today + datetime.timedelta(days=LONGEST_DAYS):
        raise api_error(400, "400 Bad request - Expiration date must be in the future and within 365 days")
    return end


def _token_json(call: Call, token: Token) -> Json:
    return {
        "id": token.id,
        "name": token.name,
        "revoked": token.revoked,
        "created_at": "2026-01-01T00:00:00.000Z",
        "description": None,
        "scopes": list(token.scopes),
        "user_id": token.user.id,
        "last_used_at": None,
        "active": not token.revoked and not call.state.is_expired(token),
        "expires_at": token.expires_on.isoformat() if token.expires_on is not None else None,
        "granular": False,
    }


_ANY = Surface(any_scope=True)
_SERVICE = "/api/v4/groups/:id/service_accounts/:user_id/personal_access_tokens"

ROUTES = (
    Route("GET", "/api/v4/personal_access_tokens/self", show_own, _ANY),
    Route("DELETE", "/api/v4/personal_access_tokens/self", revoke_own, _ANY),
    Route("POST", "/api/v4/personal_access_tokens/self/rotate", rotate_own, Surface(scopes=("self_rotate",))),
    Route("GET", "/api/v4/personal_access_tokens", list_tokens),
    Route("GET", "/api/v4/personal_access_tokens/:id", show_token),
    Route("DELETE", "/api/v4/personal_access_tokens/:id", revoke),
    Route("POST", "/api/v4/personal_access_tokens/:id/rotate", rotate),
    Route("POST", "/api/v4/users/:user_id/personal_access_tokens", create_for_user),
    Route("GET", _SERVICE, list_of_service),
    Route("POST", _SERVICE, create_for_service),
    Route("DELETE", f"{_SERVICE}/:token_id", revoke_of_service),
)

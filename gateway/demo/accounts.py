"""Users, OAuth and job tokens, and what GitLab says about itself."""

from __future__ import annotations

from .access import Surface
from .answer import Answer, as_json, invalid_token, not_found, offset_page
from .request import parse_id
from .routing import Call, Route
from .state import Json, Kind, User

VERSION = "19.3.0-demo"
REVISION = "0123456789a"
LIFETIME_S = 7200


def version(call: Call) -> Answer:
    call.caller.require_user()
    return as_json({"version": VERSION, "revision": REVISION})


def metadata(call: Call) -> Answer:
    call.caller.require_user()
    kas = {"enabled": False, "externalUrl": None, "externalK8sProxyUrl": None, "version": None}
    return as_json({"version": VERSION, "revision": REVISION, "kas": kas, "enterprise": False})


def current_user(call: Call) -> Answer:
    user = call.caller.require_user()
    return as_json(
        _profile(call, user) | {"email": f"{user.username}@example.com"} | ({"is_admin": True} if user.admin else {})
    )


def users(call: Call) -> Answer:
    call.caller.require_user()
    wanted = call.request.text("username")
    rows = [_profile(call, user) for user in call.state.users.values() if wanted in {None, user.username}]
    return offset_page(call.request, rows, call.base_url)


def user(call: Call) -> Answer:
    found = call.state.users.get(parse_id(call["id"]) or 0)
    if found is None:
        raise not_found("User")
    return as_json(_profile(call, found))


def oauth_token_info(call: Call) -> Answer:
    token = call.caller.token
    if token is None or token.kind is not Kind.OAUTH:
        raise invalid_token("The access token is invalid")
    return as_json(
        {
            "resource_owner_id": token.user.id,
            "scope": list(token.scopes),
            "expires_in": LIFETIME_S,
            "application": {"uid": "demo-application"},
            "created_at": 1767225600,
            "scopes": list(token.scopes),
            "expires_in_seconds": LIFETIME_S,
        }
    )


def own_job(call: Call) -> Answer:
    """The job of the caller's job token; other tokens have none."""
    token = call.caller.token
    if token is None or token.kind is not Kind.JOB:
        raise not_found("Job")
    owner = call.caller.require_user()
    return as_json(
        {
            "id": 64,
            "status": "running",
            "stage": "test",
            "name": "rspec",
            "ref": "main",
            "tag": False,
            "user": _profile(call, owner),
            "pipeline": {"id": 8, "project_id": token.project_id, "ref": "main", "status": "running"},
            "project": {"id": token.project_id, "ci_job_token_scope_enabled": True},
        }
    )


def graphql(call: Call) -> Answer:
    """Enough of GraphQL to tell callers who they are."""
    user = call.caller.user
    return as_json({"data": {"currentUser": {"username": user.username} if user else None}})


def _profile(call: Call, user: User) -> Json:
    return {
        "id": user.id,
        "username": user.username,
        "name": user.name,
        "state": "blocked" if user.blocked else "active",
        "bot": user.bot,
        "avatar_url": None,
        "web_url": f"{call.base_url}/{user.username}",
    }


_USER = Surface(scopes=("read_user",))

ROUTES = (
    Route("GET", "/api/v4/version", version, _USER),
    Route("GET", "/api/v4/metadata", metadata, _USER),
    Route("GET", "/api/v4/user", current_user, _USER),
    Route("GET", "/api/v4/users", users, _USER),
    Route("GET", "/api/v4/users/:id", user, _USER),
    Route("GET", "/oauth/token/info", oauth_token_info, Surface(any_scope=True)),
    Route("GET", "/api/v4/job", own_job, Surface(job_token=True)),
    Route("GET", "/api/graphql", graphql),
    Route("POST", "/api/graphql", graphql, Surface(scopes=("read_api",))),
)

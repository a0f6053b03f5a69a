"""Releases: what a project says about its tags."""

from __future__ import annotations

from .access import Surface
from .answer import Answer, api_error, as_json, not_found, offset_page
from .routing import Call, Route
from .state import Branch, Json, Level


def releases(call: Call) -> Answer:
    project = call.project()
    return offset_page(call.request, list(reversed(project.releases.values())), call.base_url)


def release(call: Call) -> Answer:
    found = call.project().releases.get(call["tag"])
    if found is None:
        raise not_found()
    return as_json(found)


def create_release(call: Call) -> Answer:
    """Create a release of an existing tag, or of one made now from ``ref``."""
    project, tag = call.project(Level.DEVELOPER), call.required("tag_name")
    if tag in project.releases:
        raise api_error(409, "Release already exists")
    if tag not in project.tags:
        start = project.branches.get(call.request.text("ref") or "")
        if start is None:
            raise api_error(422, "Ref is not specified")
        project.tags[tag] = Branch(dict(start.files), list(start.commits))
    at = call.state.now()
    release: Json = {
        "tag_name": tag,
        "name": call.request.text("name") or tag,
        "description": call.request.text("description"),
        "created_at": at,
        "released_at": at,
        "author": {"id": call.caller.require_user().id, "username": call.caller.require_user().username},
        "commit": {"id": project.tags[tag].commits[0].id},
        "assets": {"links": _links(call)},
    }
    project.releases[tag] = release
    return as_json(release, 201)


def _links(call: Call) -> list[Json]:
    assets = call.request.params.get("assets")
    links = assets.get("links") if isinstance(assets, dict) else None
    return [
        {"id": call.state.number("release_link"), "link_type": "other", **link}
        for link in (links if isinstance(links, list) else [])
        if isinstance(link, dict)
    ]


_RELEASES = "/api/v4/projects/:id/releases"
_JOB = Surface(job_token=True)

ROUTES = (
    Route("GET", _RELEASES, releases, _JOB),
    Route("POST", _RELEASES, create_release, _JOB),
    Route("GET", f"{_RELEASES}/:tag", release, _JOB),
)

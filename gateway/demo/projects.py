"""Projects, groups, CI variables and labels."""

from __future__ import annotations

from dataclasses import replace

from .access import Surface
from .answer import Answer, api_error, as_json, framework_error, missing, next_link, no_content, not_found, offset_page
from .routing import Call, Route
from .state import Branch, Entry, Group, Json, Level, Project, Visibility


def projects(call: Call) -> Answer:
    """All projects that the caller may see, newest first as GitLab lists them; by offset, or by keyset on the id."""
    request = call.request
    rows = list(call.state.visible_projects(call.caller.user))
    if request.flag("membership") or request.flag("owned"):
        user = call.caller.require_user()
        rows = [one for one in rows if call.state.level(user, one.full_path, one.members)]
    if (search := request.text("search")) is not None:
        rows = [one for one in rows if search.lower() in one.path.lower()]
    if (visibility := request.text("visibility")) is not None:
        rows = [one for one in rows if one.visibility.value == visibility]
    ascending = request.text("sort") == "asc"
    rows.sort(key=lambda one: one.id, reverse=not ascending)
    if request.text("pagination") == "keyset":
        return _keyset(call, rows, ascending=ascending)
    return offset_page(request, [_show(call, one) for one in rows], call.base_url, max_offset_of="Project")


def _keyset(call: Call, rows: list[Project], *, ascending: bool) -> Answer:
    request = call.request
    if request.text("order_by") not in {None, "id"}:
        raise framework_error(405, "Keyset pagination is not yet available for this type of request")
    if (after := request.number("id_after", 0)) > 0:
        rows = [one for one in rows if one.id > after]
    if (before := request.number("id_before", 0)) > 0:
        rows = [one for one in rows if one.id < before]
    per_page = min(request.number("per_page", 20), 100)
    page, more = rows[:per_page], len(rows) > per_page
    marker = {("id_after" if ascending else "id_before"): str(page[-1].id)} if more else {}
    return as_json(
        [_show(call, one) for one in page], headers={"Link": next_link(request, call.base_url, marker)} if more else {}
    )


def project(call: Call) -> Answer:
    return as_json(_show(call, call.project()))


def create_project(call: Call) -> Answer:
    user = call.caller.require_user()
    name = call.request.text("name") or call.request.text("path")
    if name is None:
        raise framework_error(400, "name, path are missing, at least one parameter must be provided")
    path = f"{user.username}/{name.lower().replace(' ', '-')}"
    if call.state.find_project(path) is not None:
        raise api_error(400, {"project_namespace.name": ["has already been taken"], "name": ["has already been taken"]})
    visibility = call.request.text("visibility") or "private"
    if visibility not in {one.value for one in Visibility}:
        raise framework_error(400, "visibility does not have a valid value")
    number = max(call.state.projects) + 1
    created = Project(number, path, Visibility(visibility), call.state.now(), {user.id: Level.OWNER})
    created.branches["main"] = Branch({}, [])
    call.state.projects[number] = created
    return as_json(_show(call, created), 201)


def update_project(call: Call) -> Answer:
    changed = call.project(Level.MAINTAINER)
    changed.description = call.request.text("description") or changed.description
    return as_json(_show(call, changed))


def delete_project(call: Call) -> Answer:
    doomed = call.project(Level.OWNER)
    del call.state.projects[doomed.id]
    return as_json({"message": "202 Accepted"}, 202)


def _show(call: Call, project: Project) -> Json:
    base = f"{call.base_url}/{project.full_path}"
    links = f"{call.base_url}/api/v4/projects/{project.id}"
    return {
        "id": project.id,
        "description": project.description,
        "name": project.path,
        "name_with_namespace": project.full_path.replace("/", " / "),
        "path": project.path,
        "path_with_namespace": project.full_path,
        "created_at": project.created_at,
        "default_branch": "main",
        "visibility": project.visibility.value,
        "namespace": {"path": project.namespace.rpartition("/")[2], "full_path": project.namespace},
        "web_url": base,
        "http_url_to_repo": f"{base}.git",
        "_links": {"self": links, "issues": f"{links}/issues", "repo_branches": f"{links}/repository/branches"},
        "archived": False,
        "empty_repo": not any(branch.commits for branch in project.branches.values()),
        "merge_method": "merge",
        "merge_requests_access_level": "enabled",
        "repository_access_level": "enabled",
        **_permissions(call, project),
    }


def _permissions(call: Call, project: Project) -> Json:
    """The caller's role in the project itself and by the groups above it; nothing for anonymous callers."""
    user = call.caller.user
    if user is None:
        return {}
    above = call.state.level(replace(user, admin=False), project.full_path, {})
    levels = {"project_access": project.members.get(user.id, Level.NONE), "group_access": above}
    return {
        "permissions": {
            name: {"access_level": int(level), "notification_level": 3} if level else None for name, level in levels.items()
        }
    }


# Groups


def groups(call: Call) -> Answer:
    rows = [_show_group(call, one) for one in call.state.groups.values() if call.state.may_see(call.caller.user, one)]
    if call.request.text("pagination") == "keyset":
        raise framework_error(405, "Keyset pagination is not yet available for this type of request")
    return offset_page(call.request, rows, call.base_url)


def group(call: Call) -> Answer:
    return as_json(_show_group(call, call.group()))


def group_projects(call: Call) -> Answer:
    inside = f"{call.group().full_path}/"
    rows = [_show(call, one) for one in call.state.visible_projects(call.caller.user) if one.full_path.startswith(inside)]
    return offset_page(call.request, rows, call.base_url)


def _show_group(call: Call, group: Group) -> Json:
    return {
        "id": group.id,
        "name": group.path,
        "path": group.path,
        "full_path": group.full_path,
        "visibility": group.visibility.value,
        "web_url": f"{call.base_url}/groups/{group.full_path}",
    }


# CI variables, whose answers carry secrets


def variables(call: Call) -> Answer:
    return offset_page(call.request, list(call.project(Level.MAINTAINER).variables.values()), call.base_url)


def variable(call: Call) -> Answer:
    return as_json(_variable(call))


def create_variable(call: Call) -> Answer:
    project, key = call.project(Level.MAINTAINER), call.required("key")
    if key in project.variables:
        raise api_error(400, {"key": [f"({key}) has already been taken"]})
    project.variables[key] = {
        "variable_type": "env_var",
        "key": key,
        "value": call.required("value"),
        "protected": call.request.flag("protected"),
        "masked": call.request.flag("masked"),
        "raw": False,
        "environment_scope": call.request.text("environment_scope") or "*",
    }
    return as_json(project.variables[key], 201)


def update_variable(call: Call) -> Answer:
    found = _variable(call)
    found["value"] = call.required("value")
    return as_json(found)


def delete_variable(call: Call) -> Answer:
    _variable(call)
    del call.project().variables[call["key"]]
    return no_content()


def _variable(call: Call) -> Json:
    found = call.project(Level.MAINTAINER).variables.get(call["key"])
    if found is None:
        raise not_found("Variable")
    return found


# Labels


def labels(call: Call) -> Answer:
    return offset_page(call.request, [one.fields for one in call.project().labels.values()], call.base_url)


def label(call: Call) -> Answer:
    return as_json(_label(call, call.project()).fields)


def create_label(call: Call) -> Answer:
    project = call.project(Level.REPORTER)
    name = call.required("name")
    color = call.request.text("color")
    if color is None:
        raise missing("color")
    if name in project.labels:
        raise api_error(409, "Label already exists")
    fields: Json = {"id": call.state.number("label"), "name": name, "color": color, "description": None, "priority": None}
    project.labels[name] = Entry(fields)
    return as_json(fields, 201)


def delete_label(call: Call) -> Answer:
    project = call.project(Level.REPORTER)
    del project.labels[str(_label(call, project).fields["name"])]
    return no_content()


def _label(call: Call, project: Project) -> Entry:
    wanted = call["name"]
    for name, entry in project.labels.items():
        if wanted in {name, str(entry.fields["id"])}:
            return entry
    raise not_found("Label")


_JOB = Surface(job_token=True)

ROUTES = (
    Route("GET", "/api/v4/projects", projects),
    Route("POST", "/api/v4/projects", create_project),
    Route("GET", "/api/v4/projects/:id", project, _JOB),
    Route("PUT", "/api/v4/projects/:id", update_project),
    Route("DELETE", "/api/v4/projects/:id", delete_project),
    Route("GET", "/api/v4/groups", groups),
    Route("GET", "/api/v4/groups/:id", group),
    Route("GET", "/api/v4/groups/:id/projects", group_projects),
    Route("GET", "/api/v4/projects/:id/variables", variables),
    Route("POST", "/api/v4/projects/:id/variables", create_variable),
    Route("GET", "/api/v4/projects/:id/variables/:key", variable),
    Route("PUT", "/api/v4/projects/:id/variables/:key", update_variable),
    Route("DELETE", "/api/v4/projects/:id/variables/:key", delete_variable),
    Route("GET", "/api/v4/projects/:id/labels", labels),
    Route("POST", "/api/v4/projects/:id/labels", create_label),
    Route("GET", "/api/v4/projects/:id/labels/:name", label),
    Route("DELETE", "/api/v4/projects/:id/labels/:name", delete_label),
)

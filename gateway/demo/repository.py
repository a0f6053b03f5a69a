"""What is in a repository: branches, tags, trees, files, commits and archives."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile

from .access import Surface
from .answer import Answer, api_error, as_json, framework_error, matches, no_content, not_found, offset_page
from .routing import Call, Route
from .state import Branch, Commit, Json, Level, Project

UNCACHED = {
    "Cache-Control": "max-age=0, private, must-revalidate, no-store, no-cache",
    "Expires": "Fri, 01 Jan 1990 00:00:00 GMT",
}


def branches(call: Call) -> Answer:
    project, search = call.project(), call.request.text("search") or ""
    rows = [_show_branch(call, project, name) for name in sorted(project.branches) if search in name]
    return offset_page(call.request, rows, call.base_url)


def branch(call: Call) -> Answer:
    return as_json(_show_branch(call, call.project(), call["branch"]))


def create_branch(call: Call) -> Answer:
    project = call.project(Level.DEVELOPER)
    name, ref = call.required("branch"), call.required("ref")
    if name in project.branches:
        raise api_error(400, "Branch already exists")
    if not re.fullmatch(r"[^\s~^:?*\[\\]+", name) or not name.isprintable():
        raise api_error(400, f"Branch name is invalid: {name}")
    start = _find(project, ref)
    if start is None:
        raise api_error(400, f"Invalid reference name: {ref}")
    project.branches[name] = Branch(dict(start.files), list(start.commits))
    return as_json(_show_branch(call, project, name), 201)


def delete_branch(call: Call) -> Answer:
    project = call.project(Level.DEVELOPER)
    if call["branch"] not in project.branches:
        raise not_found("Branch")
    del project.branches[call["branch"]]
    return no_content()


def tags(call: Call) -> Answer:
    project = call.project()
    return offset_page(call.request, [_show_tag(project, name) for name in sorted(project.tags)], call.base_url)


def tag(call: Call) -> Answer:
    project = call.project()
    if call["tag"] not in project.tags:
        raise not_found("Tag")
    return as_json(_show_tag(project, call["tag"]))


def tree(call: Call) -> Answer:
    files, folder = _ref(call).files, (call.request.text("path") or "").strip("/")
    inside = f"{folder}/" if folder else ""
    found: dict[str, Json] = {}
    for path in sorted(files):
        if not path.startswith(inside):
            continue
        parts = path.removeprefix(inside).split("/")
        for depth in range(1, len(parts) + 1 if call.request.flag("recursive") else 2):
            here = inside + "/".join(parts[:depth])
            leaf = here == path
            digest = _blob_id(files[path]) if leaf else _blob_id(here.encode())
            kind, mode = ("blob", "100644") if leaf else ("tree", "040000")
            found[here] = {"id": digest, "name": parts[depth - 1], "type": kind, "path": here, "mode": mode}
    if folder and not found:
        raise not_found("Tree")
    return offset_page(call.request, list(found.values()), call.base_url)


def commits(call: Call) -> Answer:
    project = call.project()
    chosen = _find(project, call.request.text("ref_name") or "main")
    if chosen is None:
        raise not_found("Ref")
    return offset_page(call.request, [_show_commit(one) for one in chosen.commits], call.base_url)


def commit(call: Call) -> Answer:
    project, wanted = call.project(), call["sha"]
    chosen = _find(project, wanted)
    if chosen is not None and chosen.commits:
        return as_json(_show_commit(chosen.commits[0]))
    for one in (each for revision in project.branches.values() for each in revision.commits):
        if len(wanted) >= 7 and one.id.startswith(wanted):
            return as_json(_show_commit(one))
    raise not_found("Commit")


def commit_merge_requests(call: Call) -> Answer:
    """The merge requests that brought a commit in: those whose source branch holds it."""
    project, wanted = call.project(), call["sha"]
    holding = [name for name, revision in project.branches.items() if any(one.id == wanted for one in revision.commits)]
    if not holding:
        raise not_found("Commit")
    rows = [one.fields for one in project.merge_requests.values() if one.fields["source_branch"] in holding]
    return offset_page(call.request, rows, call.base_url)


# Files: their facts travel in headers, and for HEAD only there


def file(call: Call) -> Answer:
    path, content, revision = _file(call)
    file_headers = _file_headers(call, path, content, revision)
    body = {
        "file_name": file_headers["X-Gitlab-File-Name"],
        "file_path": path,
        "size": len(content),
        "encoding": "base64",
        "content_sha256": file_headers["X-Gitlab-Content-Sha256"],
        "ref": file_headers["X-Gitlab-Ref"],
        "blob_id": file_headers["X-Gitlab-Blob-Id"],
        "commit_id": file_headers["X-Gitlab-Commit-Id"],
        "last_commit_id": file_headers["X-Gitlab-Last-Commit-Id"],
        "execute_filemode": False,
        "content": base64.b64encode(content).decode(),
    }
    return as_json(body, headers=file_headers)


def file_head(call: Call) -> Answer:
    path, content, revision = _file(call)
    return Answer(200, b"", {"Content-Type": "application/json", **_file_headers(call, path, content, revision)})


def raw_file(call: Call) -> Answer:
    path, content, revision = _file(call)
    name = path.rpartition("/")[2].encode("ascii", "replace").decode().replace('"', "")
    headers = {
        "Content-Type": "text/plain; charset=utf-8" if b"\0" not in content else "application/octet-stream",
        "Content-Disposition": f'inline; filename="{name}"',
        **UNCACHED,
        **_file_headers(call, path, content, revision),
    }
    return Answer(200, content, headers)


def create_file(call: Call) -> Answer:
    revision, path = _writable(call)
    if path in revision.files:
        raise api_error(400, "A file with this name already exists")
    return _write(call, revision, path, 201)


def update_file(call: Call) -> Answer:
    revision, path = _writable(call)
    if path not in revision.files:
        raise api_error(400, "A file with this name doesn't exist")
    return _write(call, revision, path, 200)


def delete_file(call: Call) -> Answer:
    revision, path = _writable(call)
    if path not in revision.files:
        raise api_error(400, "A file with this name doesn't exist")
    title = call.required("commit_message")
    del revision.files[path]
    call.state.commit(revision, title, call.caller.require_user().username)
    return no_content()


def _writable(call: Call) -> tuple[Branch, str]:
    project, path, name = call.project(Level.DEVELOPER), _file_path(call), call.required("branch")
    if name not in project.branches:
        raise api_error(400, "You can only create or edit files when you are on a branch")
    return project.branches[name], path


def _write(call: Call, revision: Branch, path: str, status: int) -> Answer:
    content, title = call.required("content"), call.required("commit_message")
    try:
        octets = base64.b64decode(content) if call.request.text("encoding") == "base64" else content.encode()
    except ValueError:
        raise framework_error(400, "content is invalid") from None
    revision.files[path] = octets
    call.state.commit(revision, title, call.caller.require_user().username)
    return as_json({"file_path": path, "branch": call.required("branch")}, status)


def _file_path(call: Call) -> str:
    """The path of a file. Refuses ``..`` and paths that are encoded twice, as GitLab's validator does."""
    path = call["file_path"].lstrip("/")
    if ".." in path.split("/") or not path.isprintable() or "%2f" in path.lower() or "%2e" in path.lower():
        raise framework_error(400, "file_path should be a valid file path")
    return path


def _file(call: Call) -> tuple[str, bytes, Branch]:
    path, revision = _file_path(call), _ref(call)
    if path not in revision.files:
        raise not_found("File")
    return path, revision.files[path], revision


def _file_headers(call: Call, path: str, content: bytes, revision: Branch) -> dict[str, str]:
    """What describes a file, as headers. Their values are UTF-8 octets on the wire."""
    tip = revision.commits[0].id
    return {
        "X-Gitlab-Blob-Id": _blob_id(content),
        "X-Gitlab-Commit-Id": tip,
        "X-Gitlab-Content-Sha256": hashlib.sha256(content).hexdigest(),
        "X-Gitlab-Encoding": "base64",
        "X-Gitlab-Execute-Filemode": "false",
        "X-Gitlab-File-Name": path.rpartition("/")[2],
        "X-Gitlab-File-Path": path,
        "X-Gitlab-Last-Commit-Id": tip,
        "X-Gitlab-Ref": call.request.text("ref") or "main",
        "X-Gitlab-Size": str(len(content)),
    }


def archive(call: Call) -> Answer:
    """A tar archive, small and the same every time; its validator is strong, unlike those of JSON."""
    project, revision = call.project(), _ref(call, "sha")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in sorted(revision.files):
            entry = tarfile.TarInfo(f"{project.path}-main/{path}")
            entry.size = len(revision.files[path])
            tar.addfile(entry, io.BytesIO(revision.files[path]))
    body = packed.getvalue()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f'attachment; filename="{project.path}-main.tar"',
        "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
        "Cache-Control": "max-age=0, private, must-revalidate, stale-while-revalidate=60, stale-if-error=300, s-maxage=60",
    }
    if matches(call.request.headers.get("if-none-match", ""), headers["ETag"]):
        return Answer(304, b"", headers)
    return Answer(200, body, headers)


def _ref(call: Call, parameter: str = "ref") -> Branch:
    found = _find(call.project(), call.request.text(parameter) or "main")
    if found is None:
        raise not_found("Tree" if parameter == "ref" else "File")
    return found


def _find(project: Project, ref: str) -> Branch | None:
    if ref == "HEAD":
        ref = "main"
    named = project.branches.get(ref) or project.tags.get(ref)
    if named is not None:
        return named
    return next(
        (revision for revision in project.branches.values() if revision.commits and revision.commits[0].id == ref), None
    )


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _show_branch(call: Call, project: Project, name: str) -> Json:
    revision = project.branches.get(name)
    if revision is None:
        raise not_found("Branch")
    return {
        "name": name,
        "merged": False,
        "protected": name == "main",
        "default": name == "main",
        "can_push": call.caller.user is not None,
        "web_url": f"{call.base_url}/{project.full_path}/-/tree/{name}",
        "commit": _show_commit(revision.commits[0]) if revision.commits else None,
    }


def _show_tag(project: Project, name: str) -> Json:
    tip = project.tags[name].commits[0]
    return {"name": name, "message": "", "target": tip.id, "commit": _show_commit(tip), "release": None, "protected": False}


def _show_commit(one: Commit) -> Json:
    return {
        "id": one.id,
        "short_id": one.id[:11],
        "created_at": one.at,
        "parent_ids": list(one.parents),
        "title": one.title,
        "message": one.title,
        "author_name": one.author,
        "author_email": f"{one.author}@example.com",
        "authored_date": one.at,
        "committed_date": one.at,
    }


_REPOSITORY = "/api/v4/projects/:id/repository"
_READ = Surface(scopes=("read_repository",))

ROUTES = (
    Route("GET", f"{_REPOSITORY}/branches", branches),
    Route("POST", f"{_REPOSITORY}/branches", create_branch),
    Route("GET", f"{_REPOSITORY}/branches/:branch", branch),
    Route("DELETE", f"{_REPOSITORY}/branches/:branch", delete_branch),
    Route("GET", f"{_REPOSITORY}/tags", tags),
    Route("GET", f"{_REPOSITORY}/tags/:tag", tag),
    Route("GET", f"{_REPOSITORY}/tree", tree),
    Route("GET", f"{_REPOSITORY}/commits", commits),
    Route("GET", f"{_REPOSITORY}/commits/:sha", commit),
    Route("GET", f"{_REPOSITORY}/commits/:sha/merge_requests", commit_merge_requests),
    Route("GET", f"{_REPOSITORY}/files/:file_path", file, _READ),
    Route("HEAD", f"{_REPOSITORY}/files/:file_path", file_head, _READ),
    Route("GET", f"{_REPOSITORY}/files/:file_path/raw", raw_file, _READ),
    Route("POST", f"{_REPOSITORY}/files/:file_path", create_file),
    Route("PUT", f"{_REPOSITORY}/files/:file_path", update_file),
    Route("DELETE", f"{_REPOSITORY}/files/:file_path", delete_file),
    Route("GET", f"{_REPOSITORY}/archive", archive, _READ),
    Route("GET", f"{_REPOSITORY}/archive.tar", archive, _READ),
    Route("GET", f"{_REPOSITORY}/archive.tar.gz", archive, _READ),
)

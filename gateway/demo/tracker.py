"""Issues, their notes, merge requests, and a few endpoints around them."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from email.utils import parsedate_to_datetime

from .answer import (
    Answer,
    Refusal,
    api_error,
    as_json,
    as_text,
    missing,
    next_link,
    no_content,
    not_found,
    offset_page,
    unauthorized,
)
from .request import Upload, parse_id
from .routing import Call, Route
from .seed import add_issue
from .state import Entry, Json, Kind, Level

TITLE_MAX = 255
SPAM = "spam"
"""An issue with this word in its title counts as spam, so that GitLab's captcha answer can be seen."""


def issues(call: Call) -> Answer:
    return _list(call, list(call.project().issues.values()))


def all_issues(call: Call) -> Answer:
    user = call.caller.require_user()
    rows = [entry for one in call.state.visible_projects(user) for entry in one.issues.values()]
    if call.request.text("scope") != "all":
        rows = [entry for entry in rows if _author(entry) == user.id]
    return _list(call, rows)


def _list(call: Call, rows: list[Entry]) -> Answer:
    request = call.request
    if (state := request.text("state")) not in {None, "all"}:
        rows = [one for one in rows if one.fields["state"] == state]
    if (search := request.text("search")) is not None:
        rows = [one for one in rows if search.lower() in str(one.fields["title"]).lower()]
    shown = [one.fields for one in reversed(rows)]
    if request.text("pagination") == "keyset":
        return _keyset(call, shown)
    return offset_page(request, shown, call.base_url)


def _keyset(call: Call, rows: list[Json]) -> Answer:
    """A page by cursor, which is opaque: base64 with its padding."""
    cursor = call.request.text("cursor")
    if cursor is not None:
        try:
            last = int(base64.b64decode(cursor, validate=True))
        except ValueError:
            raise api_error(400, "400 Bad request - Invalid cursor") from None
        rows = [row for row in rows if _number(row) < last]
    per_page = min(call.request.number("per_page", 20), 100)
    page, more = rows[:per_page], len(rows) > per_page
    headers = {}
    if more:
        marker = base64.b64encode(str(_number(page[-1])).encode()).decode()
        headers = {"Link": next_link(call.request, call.base_url, {"cursor": marker}), "X-Next-Cursor": marker}
    return as_json(page, headers=headers)


def issue(call: Call) -> Answer:
    return as_json(_issue(call).fields)


def create_issue(call: Call) -> Answer:
    project, user = call.project(), call.caller.require_user()
    title = _title(call)
    if SPAM in title and "x-gitlab-captcha-response" not in call.request.headers:
        raise Refusal(
            as_json(
                {
                    "needs_captcha_response": True,
                    "spam_log_id": 42,
                    "captcha_site_key": "demo-site-key",
                    "message": {
                        "error": "Your issue has been recognized as spam. Please, change the content or solve the "
                        "reCAPTCHA to proceed."
                    },
                },
                409,
            )
        )
    issue = add_issue(call.state, project, user, title, call.request.text("description"))
    if (labels := call.request.params.get("labels")) is not None:
        issue.fields["labels"] = _words(labels)
    return as_json(issue.fields, 201)


def update_issue(call: Call) -> Answer:
    call.project(Level.REPORTER)
    found, request = _issue(call), call.request
    if "title" in request.params:
        found.fields["title"] = _title(call)
    if "description" in request.params:
        found.fields["description"] = request.text("description")
    if "labels" in request.params:
        found.fields["labels"] = _words(request.params["labels"])
    event = request.text("state_event")
    if event in {"close", "reopen"}:
        found.fields["state"] = "closed" if event == "close" else "opened"
        found.fields["closed_at"] = call.state.now() if event == "close" else None
    found.fields["updated_at"] = call.state.now()
    return as_json(found.fields)


def delete_issue(call: Call) -> Answer:
    """Delete an issue. Honours If-Unmodified-Since; a date that can't be parsed is ignored."""
    project = call.project(Level.MAINTAINER)
    found = _issue(call)
    since = _instant(call.request.headers.get("if-unmodified-since"))
    if since is not None and datetime.fromisoformat(str(found.fields["updated_at"])) > since:
        raise api_error(412, "412 Precondition Failed")
    del project.issues[_iid(call)]
    return no_content()


def _instant(text: str | None) -> datetime | None:
    try:
        return parsedate_to_datetime(text) if text else None
    except ValueError:
        return None


def notes(call: Call) -> Answer:
    return offset_page(call.request, list(_issue(call).notes), call.base_url)


def create_note(call: Call) -> Answer:
    user, found = call.caller.require_user(), _issue(call)
    note: Json = {
        "id": call.state.number("note"),
        "body": call.required("body"),
        "author": {"id": user.id, "username": user.username},
        "created_at": call.state.now(),
        "system": False,
    }
    found.notes.append(note)
    found.fields["user_notes_count"] = len(found.notes)
    return as_json(note, 201)


def merge_requests(call: Call) -> Answer:
    return offset_page(call.request, [one.fields for one in call.project().merge_requests.values()], call.base_url)


def merge_request(call: Call) -> Answer:
    found = call.project().merge_requests.get(_iid(call))
    if found is None:
        raise not_found("Merge Request")
    return as_json(found.fields)


def create_merge_request(call: Call) -> Answer:
    project, user = call.project(Level.DEVELOPER), call.caller.require_user()
    for name in ("source_branch", "target_branch", "title"):
        call.required(name)
    source, target = call.required("source_branch"), call.required("target_branch")
    if source not in project.branches:
        raise api_error(400, {"source_branch": ["does not exist"]})
    if any(one.fields["source_branch"] == source for one in project.merge_requests.values()):
        raise api_error(409, [f"Another open merge request already exists for this source branch: {source}"])
    iid = len(project.merge_requests) + 1
    fields: Json = {
        "id": call.state.number("merge_request"),
        "iid": iid,
        "project_id": project.id,
        "title": _title(call),
        "state": "opened",
        "source_branch": source,
        "target_branch": target,
        "author": {"id": user.id, "username": user.username},
        "created_at": call.state.now(),
        "detailed_merge_status": "mergeable",
    }
    project.merge_requests[iid] = Entry(fields)
    return as_json(fields, 201)


def upload(call: Call) -> Answer:
    project = call.project(Level.GUEST)
    sent = call.request.params.get("file")
    if not isinstance(sent, Upload):
        raise missing("file")
    secret = hashlib.sha256(sent.content).hexdigest()[:32]
    place = f"/uploads/{secret}/{sent.filename}"
    project.uploads[place] = sent.content
    return as_json(
        {
            "id": len(project.uploads),
            "alt": sent.filename.rpartition(".")[0] or sent.filename,
            "url": place,
            "full_path": f"/-/project/{project.id}{place}",
            "markdown": f"[{sent.filename}]({place})",
        },
        201,
    )


def markdown(call: Call) -> Answer:
    """Render Markdown: a POST that only reads."""
    return as_json({"html": f'<p dir="auto">{call.required("text")}</p>'}, 201)


def trigger(call: Call) -> Answer:
    """Start a pipeline with a trigger token, which is no user's credential."""
    token = call.state.tokens.get(call.required("token"))
    ref = call.required("ref")
    project = call.state.find_project(call["id"])
    if token is None or token.kind is not Kind.TRIGGER or project is None or project.id != token.project_id:
        raise not_found()
    number = call.state.number("pipeline")
    fields = {"id": number, "project_id": project.id, "ref": ref, "status": "created", "source": "trigger"}
    return as_json(fields | {"variables": call.request.params.get("variables", {})}, 201)


def trace(call: Call) -> Answer:
    call.project(Level.REPORTER)
    return as_text("Running with gitlab-runner\nJob succeeded\n", 200)


def request_job(call: Call) -> Answer:
    """A runner asks for work, with the token in its body; there is none."""
    if call.request.text("token") is None:
        raise unauthorized()
    return Answer(204, b"", {"X-GitLab-Last-Update": "0", "Gitlab-Ci-Builds-Polling": "yes"})


def _title(call: Call) -> str:
    title = call.required("title")
    if len(title) > TITLE_MAX:
        raise api_error(400, {"title": [f"is too long (maximum is {TITLE_MAX} characters)"]})
    return title


def _issue(call: Call) -> Entry:
    found = call.project().issues.get(_iid(call))
    if found is None:
        raise (
            not_found("Issue")
            if parse_id(call["iid"]) is not None
            else api_error(400, "400 Bad request - issue_iid is invalid")
        )
    return found


def _iid(call: Call) -> int:
    return parse_id(call["iid"]) or 0


def _author(entry: Entry) -> object:
    author = entry.fields["author"]
    return author["id"] if isinstance(author, dict) else None


def _number(row: Json) -> int:
    number = row["id"]
    return number if isinstance(number, int) else 0


def _words(labels: object) -> list[str]:
    if isinstance(labels, list):
        return [str(one) for one in labels]
    return [one.strip() for one in str(labels or "").split(",") if one.strip()]


_PROJECT = "/api/v4/projects/:id"

ROUTES = (
    Route("GET", "/api/v4/issues", all_issues),
    Route("GET", f"{_PROJECT}/issues", issues),
    Route("POST", f"{_PROJECT}/issues", create_issue),
    Route("GET", f"{_PROJECT}/issues/:iid", issue),
    Route("PUT", f"{_PROJECT}/issues/:iid", update_issue),
    Route("DELETE", f"{_PROJECT}/issues/:iid", delete_issue),
    Route("GET", f"{_PROJECT}/issues/:iid/notes", notes),
    Route("POST", f"{_PROJECT}/issues/:iid/notes", create_note),
    Route("GET", f"{_PROJECT}/merge_requests", merge_requests),
    Route("POST", f"{_PROJECT}/merge_requests", create_merge_request),
    Route("GET", f"{_PROJECT}/merge_requests/:iid", merge_request),
    Route("POST", f"{_PROJECT}/uploads", upload),
    Route("POST", "/api/v4/markdown", markdown),
    Route("POST", f"{_PROJECT}/trigger/pipeline", trigger),
    Route("POST", f"{_PROJECT}/ref/:ref/trigger/pipeline", trigger),
    Route("GET", f"{_PROJECT}/jobs/:job/trace", trace),
    Route("POST", "/api/v4/jobs/request", request_job),
)

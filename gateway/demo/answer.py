"""Answers: GitLab's bodies and headers, exact to the octet where clients look at them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from .request import Request

MAX_OFFSET = 50_000
COUNT_LIMIT = 10_000

REALM = 'Bearer realm="Protected by OAuth 2.0"'


@dataclass(slots=True)
class Answer:
    """A status, a body, and the headers beyond those that every answer has."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None
    """The body in pieces, instead of ``body``; Content-Length is then among the headers."""


class Refusal(Exception):  # noqa: N818 — an answer, raised where it is known
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def as_json(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status, body, {"Content-Type": "application/json", **(headers or {})})


def as_text(text: str, status: int, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, text.encode(), {"Content-Type": "text/plain", **(headers or {})})


def no_content() -> Answer:
    return Answer(204)


# Refusals


def api_error(status: int, text: object) -> Refusal:
    """An error in the API's own form."""
    return Refusal(as_json({"message": text}, status))


def framework_error(status: int, text: str, headers: dict[str, str] | None = None) -> Refusal:
    """An error in the form of the framework below the API."""
    return Refusal(as_json({"error": text}, status, headers))


def unauthorized() -> Refusal:
    return api_error(401, "401 Unauthorized")


def forbidden(reason: str = "") -> Refusal:
    return api_error(403, f"403 Forbidden - {reason}" if reason else "403 Forbidden")


def not_found(what: str = "") -> Refusal:
    return api_error(404, f"404 {what} Not Found" if what else "404 Not found")


def no_route() -> Refusal:
    return framework_error(404, "404 Not Found")


def missing(name: str) -> Refusal:
    return framework_error(400, f"{name} is missing")


def invalid_token(description: str) -> Refusal:
    header = f'{REALM}, error="invalid_token", error_description="{description}"'
    body = {"error": "invalid_token", "error_description": description}
    return Refusal(as_json(body, 401, {"WWW-Authenticate": header}))


def invalid_request() -> Refusal:
    """rack-oauth2's answer to a request with two tokens."""
    description = "Both Authorization header and payload includes access token."
    return Refusal(as_json({"error": "invalid_request", "error_description": description}, 400))


def insufficient_scope(*scopes: str) -> Refusal:
    """The refusal of a token without the scope; like GitLab's, without WWW-Authenticate."""
    description = "The request requires higher privileges than provided by the access token."
    return Refusal(
        as_json({"error": "insufficient_scope", "error_description": description, "scope": " ".join(scopes)}, 403)
    )


# Validators


def etag(body: bytes) -> str:
    return f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Weak comparison (RFC 9110 §8.8.3.2)."""
    if if_none_match.strip() == "*":
        return True
    return tag.removeprefix("W/") in {one.strip().removeprefix("W/") for one in if_none_match.split(",")}


# Pages


def offset_page(request: Request, rows: Sequence[object], base_url: str, *, max_offset_of: str = "") -> Answer:
    """One page by offset. Above 10,000 rows the totals and the link to the last page are left out, as in GitLab.

    ``max_offset_of`` names the type of objects whose offset is limited, for the error.
    """
    page, per_page = request.number("page", 1), min(request.number("per_page", 20), 100)
    if max_offset_of and (page - 1) * per_page > MAX_OFFSET:
        raise framework_error(
            405,
            f"Offset pagination has a maximum allowed offset of {MAX_OFFSET} for requests that return objects of type "
            f"{max_offset_of}. Remaining records can be retrieved using keyset pagination.",
        )
    total = len(rows)
    pages = max(1, -(-total // per_page))
    before, after = page > 1, page * per_page < total
    links = []
    if before:
        links.append((page - 1, "prev"))
    if after:
        links.append((page + 1, "next"))
    links.append((1, "first"))
    if total <= COUNT_LIMIT:
        links.append((pages, "last"))
    headers = {
        "Link": ", ".join(
            _link(request, base_url, {"page": str(number), "per_page": str(per_page)}, rel) for number, rel in links
        ),
        "X-Next-Page": str(page + 1) if after else "",
        "X-Page": str(page),
        "X-Per-Page": str(per_page),
        "X-Prev-Page": str(page - 1) if before else "",
    }
    if total <= COUNT_LIMIT:
        headers |= {"X-Total": str(total), "X-Total-Pages": str(pages)}
    return as_json(list(rows[(page - 1) * per_page : page * per_page]), headers=headers)


def next_link(request: Request, base_url: str, marker: dict[str, str]) -> str:
    """The only link of a keyset page; ``marker`` says where the next page begins."""
    return _link(request, base_url, marker, "next")


def _link(request: Request, base_url: str, changed: dict[str, str], rel: str) -> str:
    """A link that repeats every parameter, even one that holds a credential, as GitLab does."""
    params = {**request.path_params, **_flat(request.params), **changed}
    return f'<{base_url}{request.path}?{urlencode(params)}>; rel="{rel}"'


def _flat(params: dict[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in params.items():
        label = f"{prefix}[{name}]" if prefix else name
        if isinstance(value, dict):
            flat |= _flat(value, label)
        elif isinstance(value, str):
            flat[label] = value
    return flat

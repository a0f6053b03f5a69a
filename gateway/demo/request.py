"""A request as Rails would see it: segments decoded one by one, parameters merged from query and body, method overrides.

The demo does its own decoding: it stands in for another server, and shares no code with the gateway.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from urllib.parse import parse_qsl, unquote_to_bytes

Params = dict[str, object]

OVERRIDES = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "LINK", "UNLINK"})
"""The methods that a POST may be turned into before it reaches Rails: Rack::MethodOverride's list."""


MAX_NESTING = 32


class Malformed(Exception):  # noqa: N818 — a property of the request
    """The request can't be parsed; it is answered with 400 and this text."""


@dataclass(slots=True)
class Upload:
    """One file part of a multipart body."""

    filename: str
    content: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Content:
    """A body. ``octets`` is all of it, or its beginning where it is larger than the demo keeps."""

    octets: bytes = b""
    size: int = 0
    sha256: str = ""


@dataclass(slots=True)
class Request:
    """A request as the endpoints see it. ``params`` merges query and body as Rack does: the body takes precedence."""

    method: str
    target: str
    segments: tuple[str, ...]
    query: str
    headers: dict[str, str]
    params: Params = field(default_factory=dict)
    path_params: dict[str, str] = field(default_factory=dict)
    content: Content = Content()

    @property
    def path(self) -> str:
        """The path as sent, still encoded."""
        return self.target.partition("?")[0]

    def text(self, name: str) -> str | None:
        """A scalar parameter as text; None when it is absent, blank or nested."""
        value = self.params.get(name)
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value) if isinstance(value, (str, int, float)) and str(value) != "" else None

    def number(self, name: str, default: int) -> int:
        """A parameter as a number of at least 1; for anything else the default, as GitLab does for paging."""
        value = self.text(name)
        return int(value) if value is not None and re.fullmatch(r"[0-9]{1,9}", value) and int(value) > 0 else default

    def flag(self, name: str) -> bool:
        return (self.text(name) or "").lower() in {"true", "1", "t", "yes", "on"}


def parse_id(text: str) -> int | None:
    """A number as written in a path; None for anything else, and for a number too long to be an id."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def split_target(target: str) -> tuple[tuple[str, ...], str]:
    """Decoded segments and the raw query. The path is split before it is decoded: ``a%2Fb`` is one segment."""
    path, _, query = target.partition("?")
    if path.startswith(("http://", "https://")):
        path = "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"
    segments = []
    for raw in path.split("/")[1:]:
        decoded = unquote_to_bytes(raw)
        if b"\0" in decoded:
            raise Malformed("Bad Request")
        try:
            segments.append(decoded.decode())
        except UnicodeDecodeError:
            raise Malformed("Bad Request") from None
    return tuple(segments), query


def read_params(query: str, content_type: str, body: bytes) -> Params:
    """Query and body parameters. A body of a type that Rails does not parse adds none; a broken one raises Malformed."""
    params = nest(parse_qsl(query, keep_blank_values=True))
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        return params
    if kind == "application/json":
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise Malformed("Bad Request") from None
        if isinstance(document, dict):
            params.update(document)
    elif kind == "application/x-www-form-urlencoded":
        params.update(nest(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)))
    elif kind == "multipart/form-data":
        params.update(_read_parts(content_type, body))
    return params


def effective_method(method: str, headers: dict[str, str], form: Params) -> str:
    """The method that Rack carries out: only a POST can be overridden, and ``_method`` takes precedence over the header."""
    if method != "POST":
        return method
    wanted = str(form.get("_method") or headers.get("x-http-method-override") or "").upper()
    return wanted if wanted in OVERRIDES else method


def nest(pairs: list[tuple[str, str]] | list[tuple[str, object]]) -> Params:
    """Nest ``a[b]=1``, ``a[]=1`` and ``a[][k]=1`` as Rack does, in their order."""
    params: Params = {}
    for name, value in pairs:
        head, *keys = re.findall(r"[^\[\]]+|\[[^\[\]]*\]", name) or [name]
        if len(keys) > MAX_NESTING:
            raise Malformed("Bad Request")
        _put(params, head, [key[1:-1] for key in keys], value)
    return params


def _put(into: Params, name: str, keys: list[str], value: object) -> None:
    if not keys:
        into[name] = value
        return
    first, *rest = keys
    if first == "":
        items = into.get(name)
        if not isinstance(items, list):
            items = into[name] = []
        if not rest:
            items.append(value)
            return
        # A new element starts when the last one already has this key.
        if not items or not isinstance(items[-1], dict) or rest[0] in items[-1]:
            items.append({})
        _put(items[-1], rest[0], rest[1:], value)
        return
    inner = into.get(name)
    if not isinstance(inner, dict):
        inner = into[name] = {}
    _put(inner, first, rest, value)


def _read_parts(content_type: str, body: bytes) -> Params:
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    pairs: list[tuple[str, object]] = []
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else b""
        filename = part.get_filename()
        if filename is None:
            pairs.append((str(name), content.decode("utf-8", "replace")))
        else:
            pairs.append((str(name), Upload(filename, content, part.get_content_type())))
    if not pairs:
        raise Malformed("Bad Request")
    return nest(pairs)

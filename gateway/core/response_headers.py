"""Which response fields come down, and how GitLab's addresses of itself are made to lead back through the gateway.

Only whole origins are rewritten, and only in the fields of ``URL_FIELDS`` (in a challenge, only in its realm). Presigned
storage addresses, relative ones and bodies stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from .answer_shape import Pick, Shape, make_picker, shape_of_head
from .credentials import CREDENTIAL_PARAMETERS
from .errors import Code, Rejection, Source
from .framing import has_control, is_token
from .headers import HOP_BY_HOP, PSEUDONYM
from .messages import Field, Fields, ResponseHead, lower
from .query import cut_parameters

# Instructions from Rails to Workhorse or a file server. They appear only if the gateway is pointed at Puma by mistake.
SENDFILE_FIELDS = frozenset({b"gitlab-workhorse-send-data", b"x-sendfile", b"x-accel-redirect"})
_DROPPED = HOP_BY_HOP | SENDFILE_FIELDS | {b"server", b"proxy-connection", b"proxy-authenticate"}

_OWN_VIA = (b"Via", b"1.1 " + PSEUDONYM)
_PASS, _DROP, _REWRITE = 1, 0, 2
_NAMES_BOUND = 2048
_FILTERS_BOUND = 256
_NOMINATES_NOTHING = frozenset({b"close", b"keep-alive"})
URL_FIELDS = frozenset({b"link", b"links", b"location", b"content-location", b"www-authenticate"})
"""The fields, in lower case, whose values may lead to GitLab."""
_LINK_TARGET = re.compile(rb"<([^<>]*)>")
_ORIGIN = re.compile(r"(https?)://([^/?#@]+)(/[^?#]*)?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Forwarded(msgspec.Struct, frozen=True, gc=False):
    """The fields that go down."""

    fields: list[Field]
    leaked: tuple[bytes, ...] = ()
    """The names, in lower case, of dropped instructions to Workhorse: a reason for an alarm."""


class _ShapeFilter(msgspec.Struct, frozen=True):
    """What passes of answers of one shape."""

    pick: Pick
    looks: tuple[int, ...]
    """The places, among the picked fields, of those whose values are looked at."""
    connection: int
    """The place of ``Connection``; -1: there is none."""
    shape: Shape
    """The shape of what goes down."""


_UNKNOWN: Any = object()


class ResponseHeaderRules:
    """The filter for one configuration, compiled once.

    Args:
        external_urls: What GitLab believes it is called, and any other address that leads to it.
        public_url: What clients call the gateway; if it is the same, or empty, nothing is rewritten.
        shared: The gateway is a plain shared cache: ``Server`` passes and nothing is rewritten.
    """

    __slots__ = (
        "_drop",
        "_filters",
        "_link_origins",
        "_names",
        "_origins",
        "_public",
        "_realm",
        "_rewrites",
        "_shared",
    )

    def __init__(
        self,
        *,
        external_urls: tuple[str, ...] = (),
        public_url: str = "",
        shared: bool = False,
    ) -> None:
        self._public = public_url.rstrip("/").encode()
        origins = tuple(url.rstrip("/").encode() for url in external_urls)
        self._origins = tuple(origin for origin in origins if origin and origin != self._public)
        self._rewrites = not shared and bool(self._origins and self._public)
        self._shared = shared
        self._drop = (_DROPPED - {b"server"}) if shared else _DROPPED
        self._names: dict[bytes, int] = {}
        self._filters: dict[Shape, _ShapeFilter | None] = {}
        self._link_origins: tuple[bytes, ...] = ()
        if self._rewrites:
            self._link_origins = tuple(origin for url in external_urls for origin in _link_origins(url))
        self._realm = re.compile(rb'(realm=")(?:' + b"|".join(map(re.escape, self._origins)) + rb')(?=[/?#"])')

    def forwardable(self, fields: Fields) -> Forwarded:
        """The end-to-end fields of a response in wire order, with our ``Via`` last.

        ``Content-Length`` stays: in answers to HEAD and in a 304 it describes a body that is not sent.

        Raises:
            Rejection: UPSTREAM_PROTOCOL (502) for a name or value that no HTTP message may contain.
        """
        kept: list[Field] = []
        leaked: tuple[bytes, ...] = ()
        nominated: set[bytes] = set()
        names = self._names
        for field in fields:
            name, value = field
            action = names.get(name)
            if action is None:
                action = self._judge(name)
            if action == _PASS:
                kept.append(field)
            elif action == _REWRITE:
                kept.append((name, self._rewritten(lower(name), value)))
            else:
                key = lower(name)
                if key in SENDFILE_FIELDS:
                    leaked += (key,)
                elif key == b"connection" and value.lower() not in _NOMINATES_NOTHING:
                    nominated.update(part.strip(b" \t").lower() for part in value.split(b","))
        if has_control(b"\t".join([value for _, value in kept])):
            raise _malformed("a control octet in a field")
        nominated -= {b"content-length", b"content-type"}
        if nominated:
            kept = [field for field in kept if lower(field[0]) not in nominated]
        kept.append(_OWN_VIA)
        return Forwarded(kept, leaked)

    def passed(self, head: ResponseHead) -> ResponseHead | None:
        """As ``forwardable``, for an answer whose parser let no control octet through: decided once per shape.

        None if the shape doesn't decide it (instructions to Workhorse, a ``Connection`` that names fields): then use
        ``forwardable``.
        """
        fields, shape = head.fields, head.shape or shape_of_head(head)
        shape_filter = self._filters.get(shape, _UNKNOWN)
        if shape_filter is _UNKNOWN:
            if len(self._filters) >= _FILTERS_BOUND:
                self._filters.clear()
            shape_filter = self._filters[shape] = self._filter_for(shape)
        if shape_filter is None:
            return None
        connection = shape_filter.connection
        if connection >= 0 and fields[connection][1].lower() not in _NOMINATES_NOTHING:
            return None
        kept = shape_filter.pick(fields)
        if shape_filter.looks:
            looked_at = list(kept)
            for place in shape_filter.looks:
                name, value = kept[place]
                looked_at[place] = (name, self._rewritten(lower(name), value))
            kept = tuple(looked_at)
        return ResponseHead(head.status, (*kept, _OWN_VIA), head.reason, shape_filter.shape)

    def _filter_for(self, shape: Shape) -> _ShapeFilter | None:
        judged = [self._judge(name) for name in shape.names]
        if shape.has_any(SENDFILE_FIELDS) or shape.names.count(b"connection") > 1:
            return None
        kept = [place for place, action in enumerate(judged) if action != _DROP]
        looks = tuple([at for at, place in enumerate(kept) if judged[place] == _REWRITE])
        pick = make_picker(kept)
        stays = shape.picked(kept).with_names(_OWN_VIA[0])
        return _ShapeFilter(pick, looks, shape.place.get(b"connection", -1), stays)

    def rewritten_field(self, name: bytes, value: bytes) -> bytes:
        """The value to pass on for a field of ``URL_FIELDS``."""
        return value if self._shared else self._rewritten(name, value)

    def rewritten_url(self, address: bytes) -> bytes | None:
        """The address that leads through the gateway to where ``address`` leads; None if that is not GitLab."""
        if address.startswith(self._public) and address[len(self._public) :][:1] in {b"", b"/", b"?", b"#"}:
            return address
        rewritten = self._replace_origin(address, self._origins)
        return rewritten if rewritten is not address else None

    def _judge(self, name: bytes) -> int:
        if not is_token(name):
            raise _malformed("a field name")
        key = name.lower()
        if key in self._drop:
            action = _DROP
        elif key in URL_FIELDS and not self._shared:
            action = _REWRITE
        else:
            action = _PASS
        if len(name) <= 64:
            if len(self._names) >= _NAMES_BOUND:
                self._names.clear()
            self._names[name] = action
        return action

    def _rewritten(self, key: bytes, value: bytes) -> bytes:
        if key in {b"link", b"links"}:
            return _LINK_TARGET.sub(lambda match: b"<" + self._link(match[1]) + b">", value)
        if not self._rewrites:
            return value
        if key == b"www-authenticate":
            return self._realm.sub(lambda match: match[1] + self._public, value)
        return self._replace_origin(value, self._origins)

    def _link(self, address: bytes) -> bytes:
        # GitLab builds it from every parameter that it was sent, credentials included.
        if b"token" in address or b"%" in address:
            address = cut_parameters(address, CREDENTIAL_PARAMETERS)
        return self._replace_origin(address, self._link_origins)

    def _replace_origin(self, address: bytes, origins: tuple[bytes, ...]) -> bytes:
        for origin in origins:
            if address.startswith(origin) and address[len(origin) : len(origin) + 1] in {b"", b"/", b"?", b"#"}:
                return self._public + address[len(origin) :]
        return address


def _link_origins(external_url: str) -> tuple[bytes, ...]:
    """Every spelling of the external address that may occur in ``Link``.

    GitLab takes host and port from its ``external_url`` but the scheme from the request (``X-Forwarded-Proto``), so either
    scheme occurs, with the port spelt out where it is not that scheme's own; other versions leave the port out.
    """
    match = _ORIGIN.fullmatch(external_url.rstrip("/"))
    if match is None:
        return ()
    scheme, authority, root = match[1], match[2], match[3] or ""
    host, colon, port = authority.rpartition(":")
    if not (colon and port.isdigit()):
        host, port = authority, _DEFAULT_PORTS[scheme]
    origins = []
    for spelt in ("https", "http"):
        if port == _DEFAULT_PORTS[scheme]:
            origins.append(f"{spelt}://{host}{root}".encode())
        origins.append(f"{spelt}://{host}:{port}{root}".encode())
    return tuple(origins)


def _malformed(why: str) -> Rejection:
    return Rejection(
        Code.UPSTREAM_PROTOCOL,
        502,
        "502 Bad Gateway",
        source=Source.UPSTREAM,
        proxy_error="http_protocol_error",
        detail=f"GitLab answered with {why}",
    )

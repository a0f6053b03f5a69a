"""The audit line: its members, and how it is rendered. In every way of doing so, the same facts give the same octets.

A caller's requests are often alike: when it asks for the same thing again, the line differs from the last one only in time,
id, duration, octets and the limit's numbers. The rest is kept in encoded form, with the ``ObserverMemo`` of those requests.
"""

from __future__ import annotations

import functools
import time

import msgspec

from ..core.exchange import Exchange
from ..core.redaction import ends_at_mark, escape_unprintable, is_page, is_page_query, redact

SCHEMA = 1

encode = msgspec.json.Encoder().encode


@functools.lru_cache(2048)
def _text(value: bytes) -> str:
    # Remembered, because callers repeat themselves: redacting a target takes as long as the rest of its line.
    text = redact(value).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else escape_unprintable(text)  # of which JSON escapes only some


def _safe(words: str) -> str:
    """Words that others chose, without secrets and control characters."""
    return _text(words.encode("utf-8", "surrogateescape")) if words else ""


@functools.lru_cache(2048)
def _encoded(path: bytes) -> bytes:
    return encode(_text(path))


def _target(target: bytes) -> bytes:
    """The same as ``encode(_text(target))``, but a list's path, which all its pages share, is encoded once."""
    path, _, query = target.partition(b"?")
    if is_page(path, query):
        return b'%b?%b"' % (_encoded(path)[:-1], query)
    return _encoded(target)


class AuditLine(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The audit line's members, in their order. Empty ones are left out; names are stable within one ``schema``."""

    schema: int
    time: str
    request_id: str
    peer: str
    method: str
    target: str
    operation: str
    status: int
    duration_ms: float
    bytes_in: int
    bytes_out: int
    code: str = ""
    detail: str = ""
    identity: str = ""
    principal: str = ""
    principal_kind: str = ""
    team: str = ""
    credential_kind: str = ""
    credential_fingerprint: str = ""
    credential_id: str = ""
    credential_subject: str = ""
    rule: str = ""
    rule_shadow: str = ""
    limit_shadow: str = ""
    cache_status: str = ""
    cache_reason: str = ""
    cache_stored: str = ""
    aborted: str = ""
    sudo: str = ""
    upstream_credential: str = ""
    limit: str = ""
    limit_remaining: float | msgspec.UnsetType = msgspec.UNSET
    limit_wait_ms: float | msgspec.UnsetType = msgspec.UNSET
    upstream_status: int | msgspec.UnsetType = msgspec.UNSET
    upstream_ms: float | msgspec.UnsetType = msgspec.UNSET
    upstream_connect_ms: float | msgspec.UnsetType = msgspec.UNSET
    upstream_first_byte_ms: float | msgspec.UnsetType = msgspec.UNSET
    upstream_request_id: str = ""
    user_agent: str = ""
    trace_id: str = ""


def line_of(x: Exchange, at: float, duration_s: float) -> AuditLine:
    """The line of one exchange that began ``at`` (Unix seconds). Positions instead of names: a third of the cost."""
    forwarded = bool(x.upstream_status or x.upstream_s)
    unset = msgspec.UNSET
    return AuditLine(
        SCHEMA,
        timestamp(at),
        x.request_id,
        x.peer,
        x.method,
        _text(x.target),
        x.operation,
        x.status,
        rounded(duration_s * 1000),
        x.bytes_in,
        x.bytes_out,
        x.code,
        _safe(x.detail),
        x.identity,
        x.principal,
        x.principal_kind,
        x.team,
        x.credential_kind,
        x.credential_fingerprint,
        _safe(x.credential_id),
        _safe(x.credential_subject),
        x.rule,
        x.rule_shadow,
        x.limit_shadow,
        x.cache_status,
        x.cache_reason,
        x.cache_stored,
        x.aborted,
        # The caller's own words, like the target: a name, or a token put in the wrong field.
        _safe(x.sudo),
        x.permit_use,
        x.limit_id,
        rounded(x.limit_remaining) if x.limit_id else unset,
        rounded(x.limit_waited_s * 1000) if x.limit_waited_s else unset,
        x.upstream_status if forwarded else unset,
        rounded(x.upstream_s * 1000) if forwarded else unset,
        rounded(x.upstream_connect_s * 1000) if forwarded else unset,
        rounded(x.upstream_first_byte_s * 1000) if forwarded else unset,
        x.upstream_request_id,
        _text(x.user_agent) if x.user_agent else "",
        x.trace_id,
    )


_MOST = 1e12  # beyond it, the shortest form of a double is not always the one with three decimals
_MOST_S = _MOST / 1000
"""The same bound for seconds that are rendered as milliseconds."""


def rounded(value: float) -> float:
    """``value`` to three decimals, as a line has it: milliseconds to the microsecond."""
    return int(value * 1000 + 0.5) / 1000 if 0.0 <= value < _MOST else round(value, 3)


_second = 0
_prefix = ""


def timestamp(at: float) -> str:
    """``at`` as in RFC 3339, in UTC, with milliseconds; the part down to the second is formatted once per second."""
    global _second, _prefix  # noqa: PLW0603 — a one-entry memo
    second = int(at)
    if second != _second:
        _prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        _second = second
    return f"{_prefix}{int((at - second) * 1000):03d}Z"


# The lines of requests that are alike

Finished = tuple[Exchange, float]
"""An exchange, and how long it took in seconds."""

_MILLISECONDS = [b'%03dZ","request_id":' % number for number in range(1000)]
_DECIMALS = [b".%b" % (b"%03d" % number).rstrip(b"0") if number else b".0" for number in range(1000)]
"""How a JSON number ends, by its thousandths."""
_NO_TIME = b"0.0"


class _LineTemplate:
    """What the lines of requests recorded alike share, in encoded form."""

    __slots__ = ("bytes_in", "bytes_members", "bytes_out", "caller", "end", "outcome")

    def __init__(self, line: bytes) -> None:
        """Cut it out of one such line. No string in the line can look like a member, since its quotes are escaped."""
        line = _untraced(line)
        before = line.index(b'"duration_ms":') + len(b'"duration_ms":')
        octets = line.index(b',"bytes_in":')
        limit = line.find(b',"limit":')
        end = line.find(b',"user_agent":')
        self.caller = line[line.index(b',"peer":') : before]
        self.end = line[end:] if end >= 0 else b"}"
        rest = line[octets : limit if limit >= 0 else -len(self.end)]
        octets = rest.find(b",", rest.index(b',"bytes_out":') + 1)
        self.outcome = rest[octets:] if octets >= 0 else b""
        self.bytes_in = self.bytes_out = -1
        self.bytes_members = b""


class _ForwardedTemplate:
    """The same for kin that GitLab answered: their lines also differ in the target, and in GitLab's times and id."""

    __slots__ = ("before_query", "caller", "end", "operation", "outcome", "path", "upstream")

    def __init__(self, line: bytes, requested: bytes) -> None:
        """As in ``_LineTemplate``. ``requested`` is the target; the other targets nearly always have the same path."""
        line = _untraced(line)
        target = line.index(b'"target":') + len(b'"target":')
        operation = line.index(b',"operation":')
        duration = line.index(b'"duration_ms":') + len(b'"duration_ms":')
        out = line.index(b',"bytes_out":') + len(b',"bytes_out":')
        limit, upstream = line.find(b',"limit":'), line.index(b',"upstream_status":')
        end = line.find(b',"user_agent":')
        self.caller = line[line.index(b',"peer":') : target]
        path, _, _ = requested.partition(b"?")
        self.path = path if ends_at_mark(path) else None
        self.before_query = self.caller + _encoded(path)[:-1] + b"?"
        """``caller`` and the target's path: what precedes the query of a page."""
        self.operation = b'"' + line[operation:duration]
        """The part from the quote that ends the target up to the duration."""
        rest = line[out : limit if limit >= 0 else upstream]
        self.outcome = rest[rest.index(b",") :] if b"," in rest else b""
        self.upstream = line[upstream : line.index(b',"upstream_ms":')] + b',"upstream_ms":'
        self.end = line[end:] if end >= 0 else b"}"


class LineRenderer:
    """Renders lines: those of requests with an ``ObserverMemo`` from the parts kept, all others by ``line_of``."""

    def __init__(self) -> None:
        self._second = -1
        self._line_start = b""
        self._limit = ""
        self._remaining = 0.0
        self._limited = b""

    def render(self, finished: list[Finished], ahead_s: float) -> list[bytes]:
        """The lines of ``finished``. ``ahead_s``: how far Unix time is ahead of the clock of ``Exchange.started_at``."""
        lines = []
        for x, took_s in finished:
            at = x.started_at + ahead_s
            memo = x.observer_memo
            if memo is None or x.limit_waited_s:  # few requests wait
                lines.append(encode(line_of(x, at, took_s)))
                continue
            template = memo.audit_template
            if template is None:
                line = encode(line_of(x, at, took_s))
                template = memo.audit_template = (
                    _ForwardedTemplate(line, x.target) if x.upstream_status else _LineTemplate(line)
                )
            second = int(at)
            if second != self._second:
                self._second = second
                self._line_start = b'{"schema":%d,"time":"%b' % (SCHEMA, timestamp(at)[:-4].encode())
            if x.limit_remaining != self._remaining or x.limit_id != self._limit:
                self._limit, self._remaining = x.limit_id, x.limit_remaining
                self._limited = _limited(x)
            if isinstance(template, _ForwardedTemplate):
                line = self._forwarded(template, x, _MILLISECONDS[int((at - second) * 1000)], took_s)
                lines.append(line or encode(line_of(x, at, took_s)))
                continue
            assert isinstance(template, _LineTemplate), "or the other"
            if x.bytes_out != template.bytes_out or x.bytes_in != template.bytes_in:
                template.bytes_out, template.bytes_in = x.bytes_out, x.bytes_in
                template.bytes_members = b',"bytes_in":%d,"bytes_out":%d%b' % (x.bytes_in, x.bytes_out, template.outcome)
            lines.append(
                b"".join(
                    (
                        self._line_start,
                        _MILLISECONDS[int((at - second) * 1000)],
                        encode(x.request_id),
                        template.caller,
                        _thousandths(took_s * 1000),
                        template.bytes_members,
                        self._limited,
                        _traced(template.end, x.trace_id) if x.trace_id else template.end,
                    )
                )
            )
        return lines

    def _forwarded(self, template: _ForwardedTemplate, x: Exchange, milliseconds: bytes, took_s: float) -> bytes:
        """The line of a request that was forwarded; empty if one of its times is beyond the range of three decimals."""
        upstream_s, first_byte_s = x.upstream_s, x.upstream_first_byte_s
        if not (0.0 <= took_s < _MOST_S and 0.0 <= upstream_s < _MOST_S and 0.0 <= first_byte_s < _MOST_S):
            return b""
        # What ``_thousandths`` does, written out for each: a call costs as much again.
        took = int(took_s * 1000 * 1000 + 0.5)
        upstream = int(upstream_s * 1000 * 1000 + 0.5)
        first_byte = int(first_byte_s * 1000 * 1000 + 0.5)
        named = x.upstream_request_id
        path, _, query = x.target.partition(b"?")
        if path == template.path and is_page_query(query):
            before, target = template.before_query, query
        else:
            before, target = template.caller, _target(x.target)[:-1]
        return (
            b'%b%b%b%b%b%b%d%b,"bytes_in":%d,"bytes_out":%d%b%b%b%d%b,"upstream_connect_ms":%b,"upstream_first_byte_ms":%d%b%b%b'
            % (
                self._line_start,
                milliseconds,
                encode(x.request_id),
                before,
                target,
                template.operation,
                took // 1000,
                _DECIMALS[took % 1000],
                x.bytes_in,
                x.bytes_out,
                template.outcome,
                self._limited,
                template.upstream,
                upstream // 1000,
                _DECIMALS[upstream % 1000],
                _thousandths(x.upstream_connect_s * 1000) if x.upstream_connect_s else _NO_TIME,
                first_byte // 1000,
                _DECIMALS[first_byte % 1000],
                b',"upstream_request_id":' + encode(named) if named else b"",
                _traced(template.end, x.trace_id) if x.trace_id else template.end,
            )
        )


def _untraced(line: bytes) -> bytes:
    """``line`` without its last member, the trace id, which belongs to one request alone."""
    trace = line.find(b',"trace_id":')
    return line if trace < 0 else line[:trace] + b"}"


def _traced(end: bytes, trace_id: str) -> bytes:
    return b'%b,"trace_id":"%b"}' % (end[:-1], trace_id.encode("ascii"))


def _limited(x: Exchange) -> bytes:
    if not x.limit_id:
        return b""
    return b',"limit":%b,"limit_remaining":%b' % (encode(x.limit_id), _thousandths(x.limit_remaining))


def _thousandths(value: float) -> bytes:
    """The same as ``encode(rounded(value))``, in half the time."""
    if not 0.0 <= value < _MOST:
        return encode(rounded(value))
    number = int(value * 1000 + 0.5)
    return b"%d%b" % (number // 1000, _DECIMALS[number % 1000])

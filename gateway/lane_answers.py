"""What the short lane keeps of answers, so that the next one is put together from octets; and the refusal of either lane's
requests by a gateway that shuts down."""

from __future__ import annotations

import copy

import msgspec

from .cache import RepeatHit
from .core.access import Principal
from .core.cache_entry import Entry
from .core.catalogue import Operation
from .core.errors import Code, drained, rate_limited
from .core.exchange import Exchange, ObserverMemo
from .core.http_date import date_line
from .core.limits import Decision
from .core.messages import Fields, RequestHead, first, joined
from .core.refusal import render as render_refusal
from .core.status import status_line
from .ports import TokenStatus, UpstreamCredential
from .stages import Stages

ID_PLACEHOLDER = "{id}"
"""Stands in a refusal's body where it names the request; no limit's id has such characters."""


class BodilessAnswer(msgspec.Struct, gc=False):
    """The octets of an answer without a body, less what is each request's own: the lines about limits and the id. An answer
    with a body is never kept like this (see ``CachedAnswer.rendered``): its octets have to be put together each time."""

    received_at: float
    """When the cache entry that it was made from was received."""
    since: float
    until: float
    """From when until when it says the right thing, in Unix seconds."""
    before: bytes
    behind: bytes


class CachedAnswer(msgspec.Struct, gc=False):
    """How the cache answered one head."""

    repeat_hit: RepeatHit
    facts: Exchange
    token_status: TokenStatus | None
    """That of the credential GitLab would have been asked with: when that is no longer given out, nor are its answers."""
    rendered: Fields | None = None
    """The stored fields that ``lines`` were made from: each entry has its own. Never the entry itself: its body would live
    on here beyond the cache's bound, and beyond a purge."""
    lines: bytes = b""
    """Status line and stored fields."""
    has_body: bool = True
    bodiless: BodilessAnswer | None = None
    """The latest answer, where it has no body."""
    observer_memo: ObserverMemo | None = None
    """That of the requests answered with these lines."""

    def prepare(self, entry: Entry) -> bool:
        """Render what stays the same from answer to answer. False: the entry answers another request, or has a Date."""
        shown = self.repeat_hit.shown(entry)
        if shown is None:
            return False
        lines = _rendered(shown.fields)
        folded = b"\n" + lines.lower()
        if b"\ndate:" in folded:  # the edge would keep that one
            return False
        self.has_body = shown.status not in {204, 304}
        if self.has_body and b"\ncontent-length:" not in folded:
            lines += b"Content-Length: %d\r\n" % len(entry.body)
        self.lines = status_line(shown.status) + lines
        self.facts.status = shown.status
        self.rendered = entry.fields
        self.bodiless = None
        self.observer_memo = ObserverMemo()
        return True

    def make_bodiless(self, entry: Entry, at: float) -> BodilessAnswer:
        """Make what ``bodiless`` holds."""
        date = date_line(at)
        return BodilessAnswer(
            entry.received_at,
            at,
            min(int(at) + 1, self.repeat_hit.computed_until(entry, at)),
            self.lines + self.repeat_hit.computed_lines(entry, at),
            b"\r\n%b\r\n" % date,
        )


class RefusalTemplate(msgspec.Struct, gc=False):
    """How the buckets' refusals of one head are rendered for its client."""

    facts: Exchange
    operation: Operation
    accept: bytes
    cross_origin: bool
    texts: dict[str, tuple[bytes, bytes, bytes, ObserverMemo]] = {}
    """By the refusing limit: the lines of the head that stay the same; the head's end with the body; nothing; the memo. If
    the body names the request, its octets before and after that name are the second and the third."""
    latest: bool = True
    """Whether the last request was refused, so that the next one may well be."""

    def render(self, method: str, limit_id: str) -> tuple[bytes, bytes, bytes]:
        """What ``texts`` holds for one limit, less the memo."""
        head, body = render_refusal(
            rate_limited(),
            surface=self.operation.surface,
            route=self.operation.route,
            accept=self.accept,
            request_id=ID_PLACEHOLDER,
            violated=(limit_id,),
            cross_origin=self.cross_origin,
        )
        before, _, behind = body.partition(ID_PLACEHOLDER.encode())
        lines = status_line(head.status) + _rendered(head.fields)
        return (lines, before, behind) if behind else (lines, ending_of(method, body), b"")


def make_cached_answer(repeat_hit: RepeatHit, x: Exchange, credential: UpstreamCredential | None) -> CachedAnswer:
    """What is kept of an answer from the cache, whose facts are those in ``x``."""
    return CachedAnswer(repeat_hit, _shared_facts(x), None if credential is None else credential.token_status)


def make_refusal_template(head: RequestHead, operation: Operation, x: Exchange) -> RefusalTemplate:
    """What is kept of a bucket's refusal of ``head``; ``x`` has the facts as far as the request had come."""
    facts = _shared_facts(x)
    facts.status, facts.code = 429, Code.RATE_LIMITED.value
    return RefusalTemplate(
        facts, operation, joined(head.fields, b"accept") or b"", first(head.fields, b"origin") is not None
    )


def _shared_facts(x: Exchange) -> Exchange:
    """``x`` less what is that request's own: its id, its times, and what its buckets said."""
    facts = copy.copy(x)
    facts.request_id = ""
    facts.upstream_s = facts.limit_waited_s = 0.0
    facts.limit_id, facts.limit_remaining, facts.limit_near, facts.limit_shadow = "", -1.0, False, ""
    return facts


def drained_answer(
    stages: Stages,
    head: RequestHead,
    operation: Operation,
    principal: Principal,
    x: Exchange,
    at: float,
    decision: Decision | None = None,
) -> bytes:
    """The refusal, in octets, of a read that ends because the gateway shuts down. ``decision``: that of its buckets."""
    rejection = drained(unsure=False)
    x.status, x.code = rejection.status, rejection.code.value
    answer, body = render_refusal(
        rejection,
        surface=operation.surface,
        accept=joined(head.fields, b"accept") or b"",
        request_id=x.request_id,
        extra=stages.dialect.own_fields(decision, principal),
        cross_origin=first(head.fields, b"origin") is not None,
    )
    octets = b"%b%bX-Gateway-Request-Id: %b\r\n%b%b" % (
        status_line(answer.status),
        _rendered(answer.fields),
        x.request_id.encode("ascii"),
        date_line(at),
        ending_of(head.method, body, b"Connection: close\r\n"),
    )
    x.bytes_out = len(octets)
    return octets


def ending_of(method: str, body: bytes, close: bytes = b"") -> bytes:
    """The end of a refusal, after ``Date``."""
    if method == "HEAD":
        return close + b"\r\n"
    return b"Content-Length: %d\r\n%b\r\n%b" % (len(body), close, body)


def _rendered(fields: Fields) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])

"""What is kept of answers: the octets made from it, and the answers of which nothing may be kept."""

from __future__ import annotations

import json

import msgspec
import pytest

from gateway.cache import RepeatHit
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.exchange import Exchange
from gateway.core.messages import Fields, RequestHead
from gateway.lane_answers import ID_PLACEHOLDER, CachedAnswer, ending_of, make_cached_answer, make_refusal_template
from tests.cache.test_repeat_hit import ENTRY, ETAG, made

REST = Operation("GET /api/v4/projects", Access.READ, Surface.REST)
GIT = Operation("GET /{project}.git/info/refs", Access.READ, Surface.GIT)


def facts() -> Exchange:
    x = Exchange("id-of-the-first", 50.0, "GET", "192.0.2.7")
    x.identity, x.upstream_s, x.limit_id, x.limit_remaining = "team", 0.2, "callers", 0.5
    return x


def head(*fields: tuple[bytes, bytes]) -> RequestHead:
    return RequestHead("GET", b"/api/v4/projects", fields, peer="192.0.2.7")


def kept(repeat_hit: RepeatHit) -> CachedAnswer:
    return make_cached_answer(repeat_hit, facts(), None)


async def test_what_is_a_requests_own_is_not_kept() -> None:
    repeat_hit, *_ = await made()
    x = facts()
    answer = make_cached_answer(repeat_hit, x, None)
    shared = answer.facts
    assert (shared.request_id, shared.upstream_s, shared.limit_id, shared.limit_remaining) == ("", 0.0, "", -1.0)
    assert (shared.identity, x.request_id) == ("team", "id-of-the-first"), "and the first request keeps its own"


async def test_an_answer_with_its_length() -> None:
    repeat_hit, *_ = await made()
    answer = kept(repeat_hit)
    assert answer.prepare(ENTRY)
    assert answer.lines == (b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nEtag: W/"1"\r\nContent-Length: 2\r\n')
    assert (answer.has_body, answer.facts.status) == (True, 200)
    assert answer.rendered is ENTRY.fields, "known again by identity"


async def test_a_length_is_added_where_the_answer_came_without() -> None:
    repeat_hit, *_ = await made()
    answer = kept(repeat_hit)
    entry = msgspec.structs.replace(ENTRY, fields=((b"Content-Type", b"text/plain"),), body=b"seven..")
    assert answer.prepare(entry)
    assert answer.lines.endswith(b"Content-Length: 7\r\n")


@pytest.mark.parametrize("name", [b"Date", b"date"])
async def test_an_answer_with_a_date_of_its_own_is_the_roads(name: bytes) -> None:
    repeat_hit, *_ = await made()
    fields: Fields = (*ENTRY.fields, (name, b"Mon, 23 Nov 2026 10:00:00 GMT"))
    assert not kept(repeat_hit).prepare(msgspec.structs.replace(ENTRY, fields=fields))


async def test_a_304_is_whole_for_a_second() -> None:
    repeat_hit, *_ = await made(condition=ETAG)
    answer = kept(repeat_hit)
    assert answer.prepare(ENTRY)
    assert (answer.has_body, answer.facts.status) == (False, 304)
    bodiless = answer.make_bodiless(ENTRY, 1012.9)
    assert bodiless.before.startswith(b"HTTP/1.1 304 Not Modified\r\n")
    assert b"Age: 12\r\n" in bodiless.before
    assert bodiless.behind == b"\r\nDate: Thu, 01 Jan 1970 00:16:52 GMT\r\n\r\n"
    assert bodiless.until == pytest.approx(1013.0, abs=0.001)
    assert (bodiless.since, bodiless.received_at) == (1012.9, 1000.0)


async def test_a_304_is_whole_no_longer_than_its_age_is_right() -> None:
    repeat_hit, *_ = await made(condition=ETAG, entry=msgspec.structs.replace(ENTRY, received_at=1000.4))
    entry = msgspec.structs.replace(ENTRY, received_at=1000.4)
    answer = kept(repeat_hit)
    assert answer.prepare(entry)
    assert answer.make_bodiless(entry, 1012.1).until == pytest.approx(1012.4), "from then on it is a second older"


@pytest.mark.parametrize("named", [True, False], ids=["problem", "git"])
def test_a_refusal_is_rendered_but_for_its_id(named: bool) -> None:
    accept = ((b"Accept", b"application/problem+json"),) if named else ()
    template = make_refusal_template(head(*accept), REST if named else GIT, facts())
    assert (template.facts.status, template.facts.request_id) == (429, "")
    lines, before, behind = template.render("GET", "callers")
    assert lines.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert ID_PLACEHOLDER.encode() not in lines + before + behind
    assert bool(behind) is named, "only such a body names its request"
    if named:
        body = json.loads(b"%b%b%b" % (before, b"id-1", behind))
        assert (body["status"], "id-1" in json.dumps(body)) == (429, True)
    else:
        assert before.startswith(b"Content-Length: ")


def test_the_end_of_a_refusal() -> None:
    assert ending_of("GET", b"no") == b"Content-Length: 2\r\n\r\nno"
    assert ending_of("GET", b"no", b"Connection: close\r\n") == b"Content-Length: 2\r\nConnection: close\r\n\r\nno"
    assert ending_of("HEAD", b"no") == b"\r\n"

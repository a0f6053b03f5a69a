"""The road, walked by real stages between a client and a GitLab that behave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.core import graphql
from gateway.core.errors import Code, Rejection, Source
from gateway.core.exchange import Exchange
from gateway.core.messages import Field, ResponseHead, first, values
from gateway.pipeline import Gateway
from gateway.ports import UpstreamRequest
from gateway.reply import Reply
from tests.fakes.world import (
    CONFIGURATION,
    ENVIRONMENT,
    MALLORY,
    OWN,
    Answer,
    ClientGone,
    FakeDownstream,
    World,
    broken_answer,
    token_of,
    world,
)

JSON = (b"Content-Type", b"application/json")
PROJECT = "/api/v4/projects/1"
ROAD = [
    "entry.target",
    "entry.operation",
    "entry.admit",
    "authenticator.authenticate",
    "access.authorise",
    "dialect.takes_for",
    "limits.admit",
    "tokens.credential",
    "cache.fetch",
    "upstream.send",
    "dialect.merged_parts",
]


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        yield one


def answering(status: int, *fields: Field, body: bytes = b"") -> Answer:
    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        return Reply(ResponseHead(status, fields), whole=body)

    return answer


def walked(made: World) -> list[str]:
    """The stages of the road among the calls, in the order they were made."""
    return [call for call in made.calls if call in ROAD]


# The stages, in order


async def test_a_brokered_request_walks_the_whole_road(made: World) -> None:
    down = await made.ask("GET", PROJECT, caller="reader")
    assert down.status == 200
    assert walked(made) == ROAD
    assert token_of(made.up.requests[0]) == ENVIRONMENT["SA"]
    assert values(made.up.requests[0].fields, b"private-token") == [ENVIRONMENT["SA"].encode()]


async def test_an_own_token_goes_up_itself(made: World) -> None:
    down = await made.ask("GET", PROJECT)
    assert (down.status, down.code) == (200, "")
    assert walked(made) == [stage for stage in ROAD if stage != "tokens.credential"]
    assert token_of(made.up.requests[0]) == OWN


REFUSALS = [
    ("GET", "/a/%2e%2e/b", OWN, (), "entry.target", 400, Code.BAD_TARGET),
    ("TRACE", PROJECT, OWN, (), "entry.target", 405, Code.METHOD_NOT_ALLOWED),
    ("POST", "/api/v4/internal/allowed", OWN, (), "entry.admit", 404, Code.BLOCKED_ROUTE),
    ("GET", PROJECT, OWN, ((b"JOB-TOKEN", b"another"),), "entry.admit", 400, Code.AMBIGUOUS_CREDENTIAL),
    ("GET", PROJECT, None, (), "authenticator.authenticate", 401, Code.UNAUTHENTICATED),
    ("GET", PROJECT, MALLORY, (), "authenticator.authenticate", 401, Code.UNAUTHENTICATED),
    ("GET", PROJECT, "nobody", (), "access.authorise", 403, Code.FORBIDDEN),
    ("DELETE", PROJECT, "reader", (), "access.authorise", 403, Code.FORBIDDEN),
    ("POST", PROJECT, "other", (), "access.authorise", 403, Code.FORBIDDEN),
    ("GET", PROJECT, "reader", ((b"Sudo", b"root"),), "access.authorise", 403, Code.SUDO_FORBIDDEN),
    ("GET", PROJECT, OWN, ((b"Via", b"1.1 gateway"),), "limits.admit", 508, Code.PROXY_LOOP),
]


@pytest.mark.parametrize(("method", "target", "caller", "more", "last", "status", "code"), REFUSALS)
async def test_a_refusal_stops_the_rest(
    made: World,
    method: str,
    target: str,
    caller: str | None,
    more: tuple[Field, ...],
    last: str,
    status: int,
    code: Code,
) -> None:
    down = await made.ask(method, target, *more, caller=caller)
    assert (down.status, down.code) == (status, code.value)
    stages = walked(made)
    assert stages[-1] == last
    assert [stage for stage in ROAD if stage in stages] == stages
    assert made.up.requests == []
    assert (made.last.status, made.last.code, made.last.aborted) == (status, code.value, "")
    assert down.field("X-Gateway-Request-Id") == made.last.request_id
    assert down.field("RateLimit-Limit") == "60", "the quota is told before there is a decision, too"
    assert ENVIRONMENT["SA"].encode() not in down.written


async def test_a_limit_refuses_before_anything_is_looked_up(tmp_path: Path) -> None:
    async with world(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 1")) as made:
        assert (await made.ask("GET", PROJECT, caller="reader")).field("RateLimit-Remaining") == "0"
        made.calls.clear()
        down = await made.ask("GET", PROJECT, caller="reader")
        assert (down.status, down.code, down.written) == (429, Code.RATE_LIMITED.value, b"Retry later\n")
        assert walked(made)[-1] == "limits.admit"
        assert down.field("Retry-After") == "1"
        assert down.field("RateLimit-Remaining") == "0"
        assert (made.last.limit_id, made.last.code) == ("caller", "rate_limited")
        assert len(made.up.requests) == 1


async def test_limits_are_told_on_refusals_after_the_decision(made: World) -> None:
    """What GitLab's absence costs is a request all the same."""

    async def away(request: UpstreamRequest, octets: bytes) -> Reply:
        raise Rejection(Code.UPSTREAM_REFUSED, 502, "502 Bad Gateway", source=Source.UPSTREAM)

    made.up.answer = away
    down = await made.ask("GET", PROJECT)
    assert (down.status, down.code) == (502, "upstream_refused")
    assert down.field("RateLimit-Remaining") == "49"
    assert made.last.upstream_s > 0 or made.last.upstream_status == 0


async def test_an_unknown_route_is_gitlabs_to_answer_for_its_own_users(made: World) -> None:
    made.up.answer = answering(404, JSON, body=b'{"error":"404 Not Found"}')
    down = await made.ask("GET", "/api/v4/no_such_thing")
    assert (down.status, down.code) == (404, "")
    assert made.last.operation == "other"


async def test_an_unknown_route_counts_as_write_for_the_brokered(made: World) -> None:
    assert (await made.ask("GET", "/api/v4/no_such_thing", caller="other")).code == "forbidden"
    assert (await made.ask("GET", "/api/v4/no_such_thing", caller="reader")).status == 200


PREFLIGHT = ((b"Origin", b"https://app.example"), (b"Access-Control-Request-Method", b"GET"))


async def test_a_preflight_needs_no_credential_and_gets_none(made: World) -> None:
    assert (await made.ask("OPTIONS", PROJECT, *PREFLIGHT, caller=None)).status == 200
    assert (made.last.principal_kind, made.last.credential_kind, made.last.permit_use) == ("passthrough", "none", "")
    assert token_of(made.up.requests[0]) == ""


@pytest.mark.parametrize(("caller", "code"), [("nobody", "forbidden"), (MALLORY, "unauthenticated")])
async def test_one_that_brings_a_credential_is_judged_by_it(made: World, caller: str, code: str) -> None:
    assert (await made.ask("OPTIONS", PROJECT, *PREFLIGHT, caller=caller)).code == code
    assert made.up.requests == []


@pytest.mark.parametrize("trusted", [True, False])
async def test_who_asks_and_by_which_id_is_believed_of_a_trusted_peer_alone(tmp_path: Path, trusted: bool) -> None:
    proxies = "listen: {trusted_proxies: [192.0.2.7/32]}\n" if trusted else ""
    told = ((b"X-Request-Id", b"the-proxys-own"), (b"X-Forwarded-For", b"198.51.100.9"))
    async with world(tmp_path, CONFIGURATION + proxies) as made:
        down = await made.ask("GET", PROJECT, *told)
        assert (made.last.request_id == "the-proxys-own", made.last.peer == "198.51.100.9") == (trusted, trusted)
        assert made.last.peer in {"192.0.2.7", "198.51.100.9"}
        assert down.field("X-Gateway-Request-Id") == made.last.request_id
        assert first(made.up.requests[0].fields, b"x-request-id") == made.last.request_id.encode()


class Written:
    """The audit: what was to be written down before it goes up."""

    def __init__(self, *, closed: bool) -> None:
        self.closed = closed
        self.asked: list[str] = []

    async def admit(self, x: Exchange) -> None:
        self.asked.append(x.operation)
        raise Rejection(Code.AUDIT_UNAVAILABLE, 503, "503 Service Unavailable", source=Source.INTERNAL)


@pytest.mark.parametrize(
    ("method", "closed", "asked"), [("GET", False, False), ("GET", True, True), ("PUT", False, True), ("PUT", True, True)]
)
async def test_what_is_not_a_read_is_written_down_before_it_goes_up(
    made: World, method: str, closed: bool, asked: bool
) -> None:
    made.gateway.stages = msgspec.structs.replace(made.stages, audit=(record := Written(closed=closed)))
    down = await made.ask(method, PROJECT)
    assert (down.status, bool(record.asked)) == ((503, True) if asked else (200, False))
    assert len(made.up.requests) == (not asked)


@pytest.mark.parametrize(("caller", "limit", "left"), [(OWN, b"10", "3"), (OWN, b"100", "49"), ("reader", b"10", "49")])
async def test_the_stricter_limit_is_told_and_of_a_shared_credential_only_ours(
    made: World, caller: str, limit: bytes, left: str
) -> None:
    theirs = ((b"RateLimit-Limit", limit), (b"RateLimit-Remaining", b"3"), (b"RateLimit-Reset", b"4102444800"))
    made.up.answer = answering(200, JSON, *theirs, body=b"{}")
    down = await made.ask("GET", PROJECT, caller=caller)
    assert down.answer is not None
    assert [value.decode() for value in values(down.answer.fields, b"ratelimit-remaining")] == [left]


@pytest.mark.parametrize(("status", "left", "wait"), [(429, "0", "7"), (503, "49", "7")])
async def test_gitlabs_limit_on_a_shared_credential_is_told_as_the_callers_own_wait(
    made: World, status: int, left: str, wait: str
) -> None:
    code = Code.RATE_LIMITED if status == 429 else Code.UPSTREAM_REFUSED

    async def busy(request: UpstreamRequest, octets: bytes) -> Reply:
        raise Rejection(code, status, "Later", source=Source.UPSTREAM, headers=((b"Retry-After", b"7"),))

    made.up.answer = busy
    down = await made.ask("GET", PROJECT, caller="reader")
    assert down.answer is not None
    assert (down.status, down.field("RateLimit-Remaining"), down.field("RateLimit-Limit")) == (status, left, "60")
    assert [value.decode() for value in values(down.answer.fields, b"retry-after")] == [wait]
    assert made.last.limit_id == ("upstream" if status == 429 else "caller")


async def test_who_has_guessed_too_often_is_told_to_wait_and_asked_about_no_more(made: World) -> None:
    """A 429 of nobody: no limit of anybody's is told."""
    guess = "glpat-guess-{:020}".format
    for number in range(100):
        down = await made.ask("GET", PROJECT, caller=guess(number))
        if down.status != 401:
            break
    assert (down.status, down.code) == (429, "too_many_failed_logins")
    assert (made.last.principal, made.last.limit_id) == ("", "")
    assert int(down.field("Retry-After")) > 0
    assert made.up.requests == []


async def test_what_is_settled_later_is_settled_of_those_that_come_by_a_plan_too(tmp_path: Path) -> None:
    settling = "  - {id: caller, by: caller, rate: 1/hour, burst: 50, settle: {mebibyte: 10}}\n"
    async with world(tmp_path, CONFIGURATION.partition("  - {id: caller, by")[0] + settling) as made:
        made.up.answer = answering(200, JSON, body=bytes(1 << 20))
        down, left = made.down("GET", f"{PROJECT}/issues").repeated(), list[str]()
        for _ in range(5):
            made.calls.clear()
            down = down.repeated()
            await made.gateway.handle(down)
            left.append(down.field("RateLimit-Remaining"))
        assert "entry.target" not in made.calls
        assert left == ["49", "38", "27", "16", "5"]


async def test_what_is_taken_is_asked_anew_when_limits_have_changed(made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    down = made.down("GET", f"{PROJECT}/issues").repeated()
    for _ in range(3):
        made.calls.clear()
        down = down.repeated()
        await made.gateway.handle(down)
    assert "dialect.takes_for" not in made.calls
    plan = made.gateway.plans.find(down.head)
    assert plan is not None
    takes = plan.authorised(down.head).shared_memo.takes
    assert takes is not None
    monkeypatch.setattr(takes.validity, "over", True)
    await made.gateway.handle(down.repeated())
    assert "dialect.takes_for" in made.calls


async def test_gitlabs_limit_is_told_where_there_are_none_of_ours(tmp_path: Path) -> None:
    async def busy(request: UpstreamRequest, octets: bytes) -> Reply:
        headers = ((b"Retry-After", b"7"),)
        raise Rejection(Code.RATE_LIMITED, 429, "Later", source=Source.UPSTREAM, headers=headers)

    async with world(tmp_path, CONFIGURATION.partition("limits:")[0]) as made:
        made.up.answer = busy
        down = await made.ask("GET", PROJECT, PROBLEM, caller="reader")
        assert (down.status, down.field("Retry-After"), made.last.limit_id) == (429, "7", "upstream")
        assert b"violated" not in down.written


PROBLEM = (b"Accept", b"application/problem+json")


async def test_a_refusal_names_the_limit_where_it_is_for_one(tmp_path: Path) -> None:
    async with world(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 1")) as made:
        forbidden = await made.ask("DELETE", PROJECT, PROBLEM, caller="reader")
        assert (forbidden.status, b"violated" in forbidden.written) == (403, False)
        assert (await made.ask("GET", PROJECT, PROBLEM, caller="reader")).status == 200
        limited = await made.ask("GET", PROJECT, PROBLEM, caller="reader")
        assert b'"violated-policies":["caller"]' in limited.written


# What becomes of an answer


async def test_one_event_tells_a_success(made: World) -> None:
    await made.ask("GET", f"{PROJECT}?private_token=", (b"User-Agent", b"curl"), caller="reader")
    x = made.last
    assert (x.status, x.code, x.aborted, x.identity, x.principal, x.rule, x.permit_use) == (
        200, "", "", "reader", "reader", "reads", "sa"
    )  # fmt: skip
    assert (x.method, x.operation, x.peer, x.user_agent) == ("GET", "GET /api/v4/projects/:id", "192.0.2.7", b"curl")
    assert x.upstream_status == 200
    assert x.bytes_out > 0
    assert (x.credential_kind, x.target) == ("token", PROJECT.encode())
    assert x.credential_fingerprint.startswith("tok:")


async def test_a_token_in_the_query_is_in_no_record(made: World) -> None:
    down = await made.ask("GET", f"{PROJECT}?a=1&private_token={OWN}", caller=None)
    assert down.status == 200
    assert made.up.requests[0].target == b"/api/v4/projects/1?a=1"
    assert token_of(made.up.requests[0]) == OWN
    assert OWN.encode() not in made.last.target


async def test_a_streamed_answer_is_whole(made: World) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in (b"a", b"", b"bc"):
            yield piece

    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        return Reply(ResponseHead(200, ()), chunks=chunks())

    made.up.answer = answer
    down = await made.ask("GET", "/group/project/-/archive/main/x.tar.gz")
    assert (down.written, down.finished, down.aborted) == (b"abc", True, False)


async def test_an_upstream_that_dies_in_mid_body_cuts_the_connection(made: World) -> None:
    """Never completed: a client must not take what it has for a whole answer."""
    made.up.answer = broken_answer(b"some", b"more")
    down = await made.ask("GET", PROJECT)
    assert (down.aborted, down.finished) == (True, False)
    assert (made.last.status, made.last.aborted, made.last.code) == (200, "upstream", "upstream_reset")


@pytest.mark.parametrize(
    ("refusal", "by"),
    [
        (Rejection(Code.REQUEST_TIMEOUT, 408, "408 Request Timeout", close=True), "client"),
        (Rejection(Code.DRAINING, 503, "503 Service Unavailable", source=Source.INTERNAL), "gateway"),
        (Rejection(Code.UPSTREAM_TIMEOUT, 504, "504 Gateway Timeout", source=Source.UPSTREAM), "upstream"),
    ],
    ids=lambda given: given if isinstance(given, str) else given.code.value,
)
async def test_an_answer_that_began_is_cut_by_whoever_failed(made: World, refusal: Rejection, by: str) -> None:
    """GitLab may answer before it has the whole of a body, and its client never send the rest."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        raise refusal

    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        return Reply(ResponseHead(200, ()), chunks=chunks())

    made.up.answer = answer
    down = await made.ask("GET", PROJECT)
    assert (down.aborted, down.finished, down.written) == (True, False, b"a")
    assert (made.last.status, made.last.aborted, made.last.code) == (200, by, refusal.code.value)


@pytest.mark.parametrize("gone_after", [0, 1, 6])
async def test_a_client_that_went_is_499_and_releases_gitlab(made: World, gone_after: int) -> None:
    made.up.answer = broken_answer(b"some", b"more", b"never asked for")
    down = await made.ask("GET", PROJECT, gone_after=gone_after)
    assert not down.finished
    assert (made.last.status, made.last.aborted) == (499, "client")


async def test_a_fault_of_ours_is_a_500_whose_trace_is_the_operators_alone(
    made: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def fault(request: UpstreamRequest, octets: bytes) -> Reply:
        raise ZeroDivisionError("of our own making")

    made.up.answer = fault
    with caplog.at_level(logging.ERROR):
        down = await made.ask("GET", PROJECT)
    assert (down.status, down.code, down.closed) == (500, "internal_error", True)
    assert down.written == b'{"message":"500 Internal Server Error"}'
    assert made.last.request_id in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert (made.last.status, made.last.code) == (500, "internal_error")


async def test_a_fault_of_the_plans_is_not_the_clients(
    made: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(made.gateway.plans, "find", lambda _: 1 / 0)
    down = made.down("GET", PROJECT).repeated()
    await made.gateway.handle(down)
    assert (down.status, down.code) == (200, "")
    assert "fault in the plans" in caplog.text


async def test_how_long_one_took_is_told_by_the_clock_it_began_by(made: World) -> None:
    took: list[float] = []

    class Observer:
        def observe(self, exchange: Exchange, duration_s: float) -> None:
            took.append(duration_s)

    stages = msgspec.structs.replace(made.stages, observers=(Observer(), Observer()))
    gateway = Gateway(stages, monotonic=iter(range(1000, 2000)).__next__)
    await gateway.handle(made.down("TRACE", PROJECT))
    assert took == [1, 1]


def test_all_that_is_under_way_is_in_flight(made: World) -> None:
    made.gateway.active, made.gateway.lane.pending, made.gateway.forward_lane.active = 1, 2, 4
    assert made.gateway.in_flight == 7


async def test_a_fault_after_the_first_octet_cuts(made: World, caplog: pytest.LogCaptureFixture) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    async def answer(request: UpstreamRequest, octets: bytes) -> Reply:
        return Reply(ResponseHead(200, ()), chunks=chunks())

    made.up.answer = answer
    with caplog.at_level(logging.ERROR):
        down = await made.ask("GET", PROJECT)
    assert (down.aborted, down.finished) == (True, False)
    assert (made.last.aborted, made.last.code) == ("gateway", "internal_error")


# Credentials


async def test_a_dead_credential_of_ours_is_never_the_callers_401(made: World) -> None:
    """X23: a client told 401 would throw away a key that is good."""
    del made.up.users[ENVIRONMENT["SA"]]
    made.up.answer = answering(401, JSON, body=b'{"message":"401 Unauthorized"}')
    down = await made.ask("GET", PROJECT, caller="reader")
    assert (down.status, down.code) == (502, "broker_credential_refused")
    assert "sa" in made.made.alarms


@pytest.mark.parametrize(
    ("caller", "service", "status"),
    [
        ("reader", b"dependency_proxy", 403),
        ("reader", b"container_registry", 200),
        (OWN, b"dependency_proxy", 200),
    ],
)
async def test_a_token_made_of_ours_is_handed_to_nobody(made: World, caller: str, service: bytes, status: int) -> None:
    """GitLab's dependency proxy gives a JWT that holds the token it was asked with."""
    down = await made.ask("GET", f"/jwt/auth?service={service.decode()}", caller=caller)
    assert (down.status, len(made.up.requests)) == (status, status == 200)


async def test_a_401_about_the_route_is_passed_on(made: World) -> None:
    made.up.answer = answering(401, JSON, body=b'{"message":"401 Unauthorized"}')
    down = await made.ask("GET", PROJECT, caller="reader")
    assert (down.status, down.code) == (401, "")
    assert "sa" not in made.made.alarms
    assert (await made.ask("GET", PROJECT, caller="other")).status == 401, "it is given out as before"


async def test_an_own_tokens_401_is_told_to_who_believed_it(made: World) -> None:
    made.up.answer = answering(401, JSON, body=b'{"message":"401 Unauthorized"}')
    down = await made.ask("GET", PROJECT)
    assert (down.status, down.code, down.written) == (401, "", b'{"message":"401 Unauthorized"}')
    assert "authenticator.report_401" in made.calls
    assert "tokens.refused" not in made.calls


async def test_callers_under_different_permits_never_share_a_partition(made: World) -> None:
    """They use one credential, but what one rule lets through another may not."""

    async def cacheable(request: UpstreamRequest, octets: bytes) -> Reply:
        fields = (JSON, (b"ETag", b'W/"1"'), (b"Cache-Control", b"max-age=0, private, must-revalidate"))
        return Reply(ResponseHead(200, fields), whole=b"{}")

    made.up.answer = cacheable
    for caller in ("reader", "other", "actor", OWN):
        await made.ask("GET", PROJECT, caller=caller)
        assert first(made.up.requests[-1].fields, b"if-none-match") is None, caller
    await made.ask("GET", PROJECT, caller="reader")
    assert first(made.up.requests[-1].fields, b"if-none-match") == b'W/"1"'


async def test_sudo_is_a_capability_of_the_rule(made: World) -> None:
    granted = await made.ask("GET", PROJECT, (b"Sudo", b"root"), caller="actor")
    assert granted.status == 200
    assert values(made.up.requests[0].fields, b"sudo") == [b"root"]
    assert made.last.sudo == "root"
    for who in (b"admin", b"root2"):
        down = await made.ask("GET", PROJECT, (b"Sudo", who), caller="actor")
        assert (down.status, down.code) == (403, "sudo_forbidden")
    assert len(made.up.requests) == 1


async def test_sudo_of_an_own_token_is_gitlabs_to_judge(made: World) -> None:
    assert (await made.ask("GET", PROJECT, (b"Sudo", b"root"))).status == 200
    assert values(made.up.requests[0].fields, b"sudo") == [b"root"]


async def test_anonymous_only_where_configured(tmp_path: Path) -> None:
    text = CONFIGURATION.replace("credentials:", "  - {id: anyone, anonymous: true}\ncredentials:")
    async with world(tmp_path, text) as made:
        down = await made.ask("GET", PROJECT, caller=None)
        assert down.status == 200
        assert (made.last.principal, made.last.principal_kind) == ("anonymous:192.0.2.7", "anonymous")
        assert token_of(made.up.requests[0]) == ""


async def test_a_browsers_script_may_read_a_refusal(made: World) -> None:
    refused = await made.ask("GET", PROJECT, (b"Origin", b"https://app.example"), caller=None)
    assert refused.field("Access-Control-Allow-Origin") == "*"
    assert (await made.ask("GET", PROJECT, caller=None)).field("Access-Control-Allow-Origin") == ""


# Bodies


async def test_a_credential_in_the_body_is_cut_out_and_carried_in_a_field(made: World) -> None:
    body = b'{"title":"x","private_token":"%b"}' % OWN.encode()
    down = await made.ask("POST", f"{PROJECT}/issues", JSON, caller=None, body=(body[:9], body[9:]))
    assert down.status == 200
    assert made.up.octets == b'{"title":"x"}'
    assert made.up.requests[0].content_length == len(made.up.octets)
    assert token_of(made.up.requests[0]) == OWN


FORM = (b"Content-Type", b"application/x-www-form-urlencoded")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pieces", [(b"title=x&", b"sudo=root"), (b"title=x&su", b"do=root"), (b"title=x&sudo=root", b"")])
async def test_a_forbidden_sudo_never_goes_up_whole(made: World, pieces: tuple[bytes, ...], chunked: bool) -> None:
    body = b"".join(pieces)
    down = await made.ask("POST", f"{PROJECT}/issues", FORM, caller="reader", body=pieces, chunked=chunked)
    assert (down.status, down.code) == (403, "sudo_forbidden")
    assert made.up.octets != body
    assert body.startswith(made.up.octets)
    assert down.code == made.last.code


async def test_a_granted_sudo_in_the_body_goes_up(made: World) -> None:
    down = await made.ask("POST", f"{PROJECT}/issues?sudo=root", FORM, caller="actor", body=(b"title=x&", b"sudo=root"))
    assert down.status == 200
    assert made.up.octets == b"title=x&sudo=root"


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        (FORM, b"a=b&private_token=x", "ambiguous_credential"),
        (FORM, b"_method=delete", "method_override"),
        (JSON, b'{"a":', "body_undecidable"),
        (JSON, b'{"sudo":"root"}', "sudo_forbidden"),
        (JSON, b'{"\\u0073udo":"root"}', "sudo_forbidden"),
    ],
)
async def test_a_brokered_body_leaves_nothing_to_chance(made: World, kind: Field, body: bytes, code: str) -> None:
    down = await made.ask(
        "POST", f"{PROJECT}/issues", kind, caller="reader", body=tuple(body[i : i + 1] for i in range(len(body)))
    )
    assert down.code == code
    assert made.up.octets != body


async def test_what_a_body_holds_goes_up_as_it_came(made: World) -> None:
    pieces = (b'{"title":"', b"\xc3\xa9", b'"}')
    down = await made.ask("POST", f"{PROJECT}/issues", JSON, caller="reader", body=pieces, chunked=True)
    assert down.status == 200
    assert made.up.octets == b"".join(pieces)
    assert made.up.requests[0].content_length is None
    assert made.last.bytes_in == len(b"".join(pieces))


# Many at once


async def test_ids_are_never_twice(made: World) -> None:
    downs = [made.down("GET", PROJECT) for _ in range(20)]
    await asyncio.gather(*(made.gateway.handle(down) for down in downs))
    assert len({down.field("X-Gateway-Request-Id") for down in downs}) == 20
    assert made.up.verifications <= len(ENVIRONMENT) + 1, "one question about one token, however many ask"
    assert (made.gateway.in_flight, made.up.open) == (0, 0)


def test_the_fake_client_is_a_downstream() -> None:
    """What the pipeline is told here it is told by the edge as well."""
    from gateway.ports import Downstream

    down: Downstream = FakeDownstream("GET", "/", ())
    assert not down.started


# GraphQL: what it takes is known when its document is read

GRAPHQL = "/api/graphql"
WRITES = "  - {id: writes, by: caller, rate: 1/hour, match: {access: write}}\n"


def document(name: str, *, mutation: bool = False) -> bytes:
    return b'{"query":"%b { %b }"}' % (b"mutation" if mutation else b"query", name.encode())


async def test_a_caller_at_its_limit_has_no_document_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 2")) as made:
        assert (await made.ask("POST", GRAPHQL, JSON, caller="reader", body=(document("seen"),))).status == 200
        assert (await made.ask("GET", PROJECT, caller="reader")).status == 200
        monkeypatch.setattr("gateway.core.graphql._parse", pytest.fail)
        for body in (document("seen"), document("new"), b"[" + document("seen") + b"," + document("new") + b"]"):
            down = await made.ask("POST", GRAPHQL, JSON, caller="reader", body=(body,))
            assert (down.status, down.code) == (429, "rate_limited")
            assert made.last.limit_id == "caller"
        assert (await made.ask("GET", GRAPHQL + "?query=%7Bnew%7D", caller="reader")).status == 429


@pytest.mark.parametrize("more", [(), ((b"Expect", b"100-continue"),)])
async def test_a_query_is_not_refused_for_what_writes_have_used_up(tmp_path: Path, more: tuple[Field, ...]) -> None:
    async with world(tmp_path, CONFIGURATION + WRITES) as made:
        fields = (JSON, *more)
        for number, status in enumerate((200, 429)):
            changing = document(f"change{number}{len(more)}", mutation=True)
            assert (await made.ask("POST", GRAPHQL, *fields, caller="reader", body=(changing,))).status == status
        asking = document(f"ask{len(more)}")
        assert (await made.ask("POST", GRAPHQL, *fields, caller="reader", body=(asking,))).status == 200


@pytest.mark.parametrize("ends", ["forbidden", "forbidden, long", "over the limit for writes", "left"])
async def test_who_has_documents_parsed_has_taken_for_it_however_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Else a caller who may do nothing could have the gateway parse without end."""
    parsed: list[bytes] = []
    parse = graphql._parse

    def counting(document: bytes) -> object:
        parsed.append(document)
        return parse(document)

    monkeypatch.setattr(graphql, "_parse", counting)
    padding = b" " * 20_000 if "long" in ends else b""
    caller = "reader" if ends.startswith("over") else "other"
    async with world(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 5") + WRITES) as made:
        for number in range(20):
            body = document(f"{ends[:4]}{len(padding)}x{number}", mutation=True)
            if ends == "left":
                monkeypatch.setattr(made.gateway.stages.access, "authorise", _gone)
            with contextlib.suppress(ClientGone):
                await made.ask("POST", GRAPHQL, JSON, caller=caller, body=(body + padding,))
        assert (made.last.status, made.last.code, made.last.limit_id) == (429, "rate_limited", "caller"), "the sooner"
        assert len(parsed) <= 5
        assert made.gateway.stages.limits.waiting == 0


def _gone(*_: object, **__: object) -> None:
    raise ClientGone


@pytest.mark.parametrize(
    ("more", "padding", "takes"),
    [
        pytest.param((), 0, False, id="short"),
        pytest.param((), 20_000, True, id="long"),
        pytest.param(((b"Expect", b"100-continue"),), 0, True, id="waited for"),
    ],
)
async def test_a_forbidden_lfs_batch_takes_where_its_body_is_work(
    tmp_path: Path, more: tuple[Field, ...], padding: int, takes: bool
) -> None:
    target, kind = "/platform/api.git/info/lfs/objects/batch", (b"Content-Type", b"application/vnd.git-lfs+json")
    async with world(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 2")) as made:
        for number in range(3):
            body = b'{"operation":"upload"}' + b" " * padding
            down = await made.ask("POST", target, kind, *more, caller="other", body=(body,))
            assert down.status == (429 if takes and number == 2 else 403)


async def test_a_batch_beyond_what_is_left_is_not_parsed_and_takes_nothing(tmp_path: Path) -> None:
    """Whoever waits as long as is told then is let in."""
    async with world(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 5")) as made:
        assert (await made.ask("GET", PROJECT, caller="reader")).status == 200
        batch = b"[" + b",".join(document(f"many{number}") for number in range(5)) + b"]"
        for _ in range(3):
            down = await made.ask("POST", GRAPHQL, JSON, caller="reader", body=(batch,))
            assert (down.status, down.field("Retry-After")) == (429, "1")
        assert (await made.ask("GET", PROJECT, caller="reader")).field("RateLimit-Remaining") == "3"
        assert b"many0" not in b"".join(graphql._memo)


LONG_BATCH = b"[" + b",".join(document(f"few{number}") for number in range(5)) + b"]" + b" " * 20_000
UPLOAD = ((b"Expect", b"100-continue"), (b"Content-Type", b"multipart/form-data; boundary=x"))


@pytest.mark.parametrize(
    ("fields", "body"),
    [pytest.param((JSON,), LONG_BATCH, id="read to be counted"), pytest.param(UPLOAD, b"--x--", id="asked for, uncounted")],
)
async def test_who_turns_out_to_be_more_than_is_left_pays_for_the_work_and_is_told_so(
    tmp_path: Path, fields: tuple[Field, ...], body: bytes
) -> None:
    """Else a long body could be read without end, or a client that waits as long as told would never be let in."""
    slow = CONFIGURATION.replace("rate: 60/min, burst: 50", "rate: 1/hour, burst: 5")
    async with world(tmp_path, slow) as made:
        assert (await made.ask("GET", PROJECT, caller="reader")).status == 200
        for hours in (2, 3, 4, 5, 1):  # at last there is no room to begin with
            down = await made.ask("POST", GRAPHQL, *fields, caller="reader", body=(body,))
            assert down.status == 429
            assert round(int(down.field("Retry-After") or 0) / 3600) == hours


async def test_what_was_taken_ahead_is_given_back_to_who_takes_for_himself(tmp_path: Path) -> None:
    places = "  - {id: in-flight, by: caller, concurrent: 1}\n"
    async with world(tmp_path, CONFIGURATION.replace("burst: 50", "burst: 5") + places) as made:
        for left in (4, 3):
            down = await made.ask("POST", GRAPHQL, JSON, caller="reader", body=(document(f"back{left}"),))
            assert (down.status, down.field("RateLimit-Remaining")) == (200, str(left))
        forbidden = await made.ask("POST", GRAPHQL, JSON, caller="other", body=(document("back", mutation=True),))
        assert forbidden.status == 403
        assert (await made.ask("GET", PROJECT, caller="other")).status == 200, "a place is never kept"


async def test_only_a_runner_that_asks_for_a_job_polls(made: World) -> None:
    for target in ("/api/v4/jobs/request", "/api/v4/runners/verify"):
        body = b'{"token":"glrt-abcdefghijklmnopqrst"}'
        down = await made.ask("POST", target, JSON, caller=None, body=(body,))
        assert (down.status, down.code) == (200, "")
    assert [one.waits for one in made.up.requests] == [True, False]

"""The token endpoint as a client sees it: RFC 8693's answers, RFC 6749's errors, nothing of what was sent."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from typing import Any

import msgspec
import pytest

from gateway.config import cache_checks
from gateway.core.access import Principal, PrincipalKind
from gateway.core.client_address import TrustedPeers
from gateway.core.errors import Code, Rejection, Source, unauthenticated
from gateway.core.exchange import Exchange
from gateway.core.messages import ResponseHead, first
from gateway.core.secret import Secret
from gateway.core.token_request import ACCESS_TOKEN, GRANT, MAX_BODY_BYTES, TokenGrant, TokenRequest
from gateway.edge.token_endpoint import PATH, TokenEndpoint
from gateway.ports import DRAINED, Downstream, KeyRefused, StoreUnavailable
from tests.fakes.world import FakeDownstream

FORM = (b"Content-Type", b"application/x-www-form-urlencoded")
TOKEN = "eyJ.e30.c2lnbmF0dXJl"
BODY = urllib.parse.urlencode(
    {"grant_type": GRANT, "subject_token": TOKEN, "subject_token_type": "urn:ietf:params:oauth:token-type:jwt"}
).encode()
LONG = BODY + b"&x=" + b"y" * MAX_BODY_BYTES
CI = Principal("ci", PrincipalKind.OIDC, "ci", fingerprint="tok:0123456789ab", team="platform")


class Recorder:
    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def monotonic(self) -> float:
        return 50.0

    def mint_id(self) -> str:
        return "id-1"

    def observe(self, x: Exchange) -> None:
        self.exchanges.append(x)


class Counter:
    """In place of the gateway, of what judges, and of the record."""

    def __init__(self, refused: Exception | None = None, full: bool = False) -> None:
        self.recorder, self.peers, self.refused, self.full = Recorder(), list[str](), refused, full
        self.endpoint = TokenEndpoint(
            self,
            TrustedPeers(["192.0.2.7"]),
            frozenset({b"git.example.com"}),
            admit=self.admit,
            recorder=self.recorder,
            handle=self.handle,
        )

    async def exchange(self, request: TokenRequest, peer: str) -> TokenGrant:
        assert request.subject.reveal() == TOKEN
        self.peers.append(peer)
        if self.refused is not None:
            raise self.refused
        return TokenGrant(Secret("ggw_given"), "key_1", CI, 900.0)

    async def admit(self, x: Exchange) -> None:
        if self.full:
            raise Rejection(Code.AUDIT_UNAVAILABLE, 503, "503 Service Unavailable", headers=((b"Retry-After", b"5"),))

    async def handle(self, down: Downstream) -> None:
        await down.respond(ResponseHead(418, ()), b"")

    async def send(self, *fields: Any, body: bytes | None = BODY, **more: Any) -> FakeDownstream:
        method, target = more.get("method", "POST"), more.get("target", "/-/gateway/token")
        down = FakeDownstream(
            method, target, fields or (FORM,), (body,) if body is not None else None, chunked=bool(more.get("chunked"))
        )
        await self.endpoint.handle(down)
        return down

    @property
    def x(self) -> Exchange:
        (x,) = self.recorder.exchanges
        return x


def said(down: FakeDownstream) -> Any:
    return json.loads(down.written)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_credential_in_the_standards_words_and_a_line_of_audit(chunked: bool) -> None:
    counter = Counter()
    down = await counter.send(chunked=chunked)
    assert said(down) == {
        "access_token": "ggw_given",
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": 900,
    }
    assert down.answer is not None
    fields = down.answer.fields
    assert (down.status, first(fields, b"cache-control"), first(fields, b"pragma")) == (200, b"no-store", b"no-cache")
    assert first(fields, b"x-gateway-request-id") == b"id-1"
    assert down.closed
    x = counter.x
    assert (x.operation, x.status, x.identity, x.principal_kind, x.team, x.credential_fingerprint, x.target) == (
        *("token exchange", 200, "ci", "oidc", "platform", "tok:0123456789ab"),
        b"/-/gateway/token?id=key_1&expires_in=900",
    )


async def test_the_clients_address_counts_behind_a_trusted_proxy() -> None:
    counter = Counter()
    await counter.send(FORM, (b"X-Forwarded-For", b"203.0.113.9"))
    assert counter.peers == ["203.0.113.9"]
    assert counter.x.peer == "203.0.113.9"


LATER = {"error": "temporarily_unavailable", "error_description": "try again later"}
FAILED = {"error": "invalid_request", "error_description": "the subject token is not accepted"}


@pytest.mark.parametrize(
    ("refused", "status", "answer", "code"),
    [
        (unauthenticated("a workload token: why"), 400, FAILED, "unauthenticated"),
        (
            Rejection(Code.TOO_MANY_FAILED_LOGINS, 429, "429 Too Many Requests", headers=((b"Retry-After", b"3"),)),
            *(429, LATER, "too_many_failed_logins"),
        ),
        (
            Rejection(Code.IDENTITY_UNAVAILABLE, 503, "503 Service Unavailable", source=Source.INTERNAL),
            *(503, LATER, "identity_unavailable"),
        ),
        (StoreUnavailable("redis://:password@example.com"), 503, None, "identity_unavailable"),
        (KeyRefused("full"), 503, None, "identity_unavailable"),
    ],
    ids=["bad token", "too many", "issuer away", "store away", "store full"],
)
async def test_what_is_refused(refused: Exception, status: int, answer: Any, code: str) -> None:
    counter = Counter(refused)
    down = await counter.send()
    assert (down.status, counter.x.code, counter.x.status) == (status, code, status)
    assert counter.x.detail == (refused.detail if isinstance(refused, Rejection) else str(refused))
    assert b"why" not in down.written
    assert answer is None or said(down) == answer
    assert b"password" not in down.written


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"method": "GET", "body": None}, 405),
        ({"method": "OPTIONS", "body": None}, 405),
        ({"target": f"/-/gateway/token?subject_token={TOKEN}"}, 400),
        ({"body": None}, 400),
        ({"body": LONG}, 400),
        ({"body": LONG, "chunked": True}, 400),
        ({"body": BODY.replace(b"token-exchange", b"password")}, 400),
    ],
    ids=["GET", "OPTIONS", "query", "no body", "long", "long and chunked", "grant"],
)
async def test_what_cannot_be_read_reaches_nobody(more: dict[str, Any], status: int) -> None:
    counter = Counter()
    down = await counter.send(**more)
    assert (down.status, counter.peers, down.closed) == (status, [], True)
    assert set(said(down)) == {"error", "error_description"}
    assert TOKEN.encode() not in down.written
    assert TOKEN.encode() not in counter.x.target


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((FORM, (b"Host", b"another.example.com")), 400),
        ((FORM, (b"Content-Length", b"7")), 400),
        ((FORM, (b"Transfer-Encoding", b"chunked")), 400),
        ((FORM, (b"X-Long", b"x" * 20_000)), 431),
        (((b"Content-Type", b"application/json"),), 400),
    ],
    ids=["two hosts", "two lengths", "length and coding", "long field", "json"],
)
async def test_a_head_that_can_be_read_in_two_ways_is_refused(fields: Any, status: int) -> None:
    counter = Counter()
    assert (await counter.send(*fields)).status == status
    assert counter.peers == []


async def test_another_host_is_misdirected() -> None:
    counter = Counter()
    down = FakeDownstream("POST", "/-/gateway/token", (FORM,), (BODY,))
    named = tuple((name, b"evil.example.com" if name == b"Host" else value) for name, value in down.head.fields)
    down.head = msgspec.structs.replace(down.head, fields=named)
    await counter.endpoint.handle(down)
    assert (down.status, counter.peers) == (421, [])


async def test_what_cannot_be_written_down_is_not_given() -> None:
    counter = Counter(full=True)
    assert (await counter.send()).status == 503
    assert counter.peers == []


@pytest.mark.parametrize(
    "target", ["/", "/-/gateway/tokens", "/-/gateway/token/", "/-/gateway/Token", "/api/v4/-/gateway/token"]
)
async def test_everything_else_is_the_gateways(target: str) -> None:
    counter = Counter()
    assert (await counter.send(target=target)).status == 418
    assert counter.recorder.exchanges == []


async def test_a_client_that_leaves_is_a_line_too() -> None:
    counter = Counter()
    down = FakeDownstream("POST", "/-/gateway/token", (FORM,), (BODY,), gone_after=0)
    with pytest.raises(ConnectionError):
        await counter.endpoint.handle(down)
    assert (counter.x.status, counter.x.aborted) == (499, "client")


async def test_who_waits_when_the_gateway_ends_hears_so() -> None:
    counter, begun = Counter(), asyncio.Event()

    async def exchange(_asked: TokenRequest, _peer: str) -> TokenGrant:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    counter.exchange = exchange  # type: ignore[method-assign]
    down = FakeDownstream("POST", "/-/gateway/token", (FORM,), (BODY,))
    serving = asyncio.ensure_future(counter.endpoint.handle(down))
    await begun.wait()
    serving.cancel(DRAINED)
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert down.answer is not None
    assert (down.answer.status, first(down.answer.fields, b"retry-after")) == (503, b"5")
    assert said(down)["error"] == "temporarily_unavailable"
    assert (counter.x.status, counter.x.code, counter.x.aborted) == (503, "draining", "")


async def test_an_answer_that_the_gateways_end_cuts_is_laid_at_its_door() -> None:
    counter, down = Counter(), FakeDownstream("POST", "/-/gateway/token", (FORM,), (BODY,))
    serving = asyncio.ensure_future(counter.endpoint.handle(down))
    while not down.started:
        await asyncio.sleep(0)
    serving.cancel(DRAINED)
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert (counter.x.status, counter.x.code, counter.x.aborted) == (200, "draining", "gateway")


async def test_a_fault_of_ours_is_told_as_one() -> None:
    counter = Counter(RuntimeError("ours"))
    with pytest.raises(RuntimeError):
        await counter.send()
    assert (counter.x.status, counter.x.code, counter.x.aborted) == (500, "internal_error", "")


def test_no_hooks_may_be_received_where_it_is() -> None:
    """The configuration's layer may not ask the edge's."""
    assert cache_checks.EXCHANGE_PATH.encode() == PATH

"""GitLab's calls for tokens: against the demo GitLab, and against answers it would never give."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.broker.token_api import CallRefused, OutcomeUnknown, TokenApi, TokenFacts, TokenOwner
from gateway.core.errors import Code, Rejection
from gateway.core.messages import Fields, ResponseHead
from gateway.core.secret import Secret
from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import TOKENS
from gateway.ports import RequestBody, UpstreamRequest
from gateway.reply import Reply
from gateway.upstream.client import HttpUpstream, UpstreamSettings

HOST = ((b"Host", b"gitlab.test"),)
ROOT, ADA = Secret(TOKENS.root), Secret(TOKENS.ada)
BOT, SERVICE = TokenOwner(5), TokenOwner(5, "platform/tools")


@pytest.fixture
async def gitlab() -> AsyncIterator[DemoGitLab]:
    gitlab = build_demo_gitlab(items=0)
    await gitlab.start()
    yield gitlab
    await gitlab.close()


@pytest.fixture
async def api(gitlab: DemoGitLab) -> AsyncIterator[TokenApi]:
    upstream = HttpUpstream(UpstreamSettings(gitlab.url))
    yield TokenApi(upstream, fields=HOST)
    await upstream.close()


@pytest.mark.parametrize("owner", [BOT, SERVICE], ids=["administrator", "group"])
async def test_a_managed_token_from_its_making_to_its_end(api: TokenApi, gitlab: DemoGitLab, owner: TokenOwner) -> None:
    end = gitlab.state.today() + datetime.timedelta(days=30)
    minted = await api.create(ROOT, owner, "gateway x", ("read_api",), end.isoformat())
    facts = await api.describe(minted.token)
    assert facts == minted.facts
    assert facts is not None
    assert (facts.user_id, facts.name, facts.scopes, facts.expires_at) == (5, "gateway x", ("read_api",), end.isoformat())
    assert facts.ends_at is not None
    assert [one.name for one in await api.active(ROOT, owner)] == ["bot", "gateway x"]
    await api.revoke(ROOT, owner, facts.id)
    assert await api.describe(minted.token) is None
    assert [one.name for one in await api.active(ROOT, owner)] == ["bot"]
    assert minted.token.reveal() not in repr(minted)


async def test_every_page_is_read(api: TokenApi, gitlab: DemoGitLab) -> None:
    user = gitlab.state.users[5]
    for number in range(250):
        gitlab.state.mint(user, f"n{number}", ("api",), "glpat-", None)
    assert len(await api.active(ROOT, BOT)) == 251


async def test_a_token_replaces_itself(api: TokenApi, gitlab: DemoGitLab) -> None:
    with pytest.raises(CallRefused, match="GitLab answered 400"):
        await api.rotate_self(ADA, "1999-01-01")
    assert await api.describe(ADA) is not None
    minted = await api.rotate_self(ADA, (gitlab.state.today() + datetime.timedelta(days=30)).isoformat())
    assert await api.describe(ADA) is None
    assert await api.describe(minted.token) == minted.facts


async def test_those_who_may_not_are_refused(api: TokenApi) -> None:
    with pytest.raises(CallRefused, match="403"):
        await api.create(ADA, BOT, "x", ("api",), "2999-01-01")
    with pytest.raises(CallRefused, match="404"):
        await api.create(ROOT, TokenOwner(99), "x", ("api",), "2999-01-01")
    await api.revoke(ADA, BOT, 1)  # not there for Ada, and so nothing to be done


async def test_a_path_that_can_not_stand_in_a_target_is_refused(api: TokenApi, gitlab: DemoGitLab) -> None:
    for group in ("a b", "a?b", "a\r\nb", "ü", "a%2Fb"):
        with pytest.raises(CallRefused, match="path"):
            await api.active(ROOT, TokenOwner(5, group))
    assert not gitlab.journal


@pytest.mark.parametrize(
    ("expires_at", "ends_at"),
    [(None, None), ("soon", None), ("1970-01-02", 86_400.0), ("1970-01-02T05:00:00Z", 86_400.0)],
)
def test_an_end_is_the_first_second_of_its_day(expires_at: str | None, ends_at: float | None) -> None:
    assert TokenFacts(1, 2, expires_at=expires_at).ends_at == ends_at


# What may follow a failure


class Scripted:
    """An Upstream with one answer to everything."""

    def __init__(self, status: int = 200, body: Any = None, fields: Fields = (), error: Exception | None = None) -> None:
        self.reply = ResponseHead(status, fields), body if isinstance(body, bytes) else json.dumps(body).encode()
        self.error = error
        self.requests: list[tuple[UpstreamRequest, bytes]] = []

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        self.requests.append((request, await body.read() if body is not None else b""))
        if self.error is not None:
            raise self.error
        return Reply(self.reply[0], chunks=self._chunks(self.reply[1]))

    async def _chunks(self, octets: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(octets), 100_000):
            yield octets[at : at + 100_000]

    async def close(self) -> None: ...


GOOD = {"id": 1, "user_id": 5, "token": "glpat-0123456789"}


@pytest.mark.parametrize(
    ("upstream", "raised"),
    [
        pytest.param(Scripted(400), CallRefused, id="GitLab says no"),
        pytest.param(Scripted(429), CallRefused, id="GitLab says later"),
        pytest.param(Scripted(500), OutcomeUnknown, id="GitLab fails"),
        pytest.param(Scripted(302), OutcomeUnknown, id="elsewhere"),
        pytest.param(Scripted(201, b"{"), OutcomeUnknown, id="unreadable"),
        pytest.param(Scripted(201, {**GOOD, "token": ""}), OutcomeUnknown, id="no token"),
        pytest.param(Scripted(201, {**GOOD, "token": "a b c d e f"}), OutcomeUnknown, id="what can be no token"),
        pytest.param(Scripted(201, {"token": GOOD["token"]}), OutcomeUnknown, id="of nobody"),
        pytest.param(Scripted(201, json.dumps(GOOD).encode() + b" " * (2 << 20)), OutcomeUnknown, id="too long"),
        pytest.param(Scripted(error=Rejection(Code.UPSTREAM_REFUSED, 502, "x")), CallRefused, id="never reached"),
        pytest.param(Scripted(error=Rejection(Code.UPSTREAM_BREAKER_OPEN, 503, "x")), CallRefused, id="not asked"),
        pytest.param(Scripted(error=Rejection(Code.UPSTREAM_RESET, 502, "x")), OutcomeUnknown, id="cut"),
        pytest.param(Scripted(error=Rejection(Code.UPSTREAM_TIMEOUT, 504, "x")), OutcomeUnknown, id="late"),
        pytest.param(Scripted(error=TimeoutError()), OutcomeUnknown, id="too late"),
    ],
)
async def test_after_a_refusal_nothing_has_changed_and_otherwise_nobody_knows(
    upstream: Scripted, raised: type[Exception]
) -> None:
    api = TokenApi(upstream)
    for call in (api.create(ROOT, BOT, "x", ("api",), "2999-01-01"), api.rotate_self(ROOT, "2999-01-01")):
        with pytest.raises(raised) as failed:
            await call
        assert GOOD["token"] not in str(failed.value)  # type: ignore[operator]  # a str
    assert len(upstream.requests) == 2  # nothing is repeated


@pytest.mark.parametrize("answer", [Scripted(500), Scripted(200, b"{"), Scripted(200, b"[]"), Scripted(200, [1])])
async def test_what_says_neither_yes_nor_no_about_a_token_is_no_no(answer: Scripted) -> None:
    with pytest.raises(CallRefused):
        await TokenApi(answer).describe(ROOT)


async def test_of_a_list_only_what_is_the_wards_and_works_counts() -> None:
    rows = [
        {"id": 1, "user_id": 5},
        {"id": 2, "user_id": 6},
        {"id": 3, "user_id": 5, "revoked": True},
        {"id": 4, "user_id": 5, "active": False},
    ]
    assert [one.id for one in await TokenApi(Scripted(200, rows)).active(ROOT, BOT)] == [1]
    endless = Scripted(200, rows, ((b"X-Next-Page", b"2"),))
    with pytest.raises(CallRefused, match="too many tokens"):
        await TokenApi(endless).active(ROOT, BOT)
    assert len(endless.requests) == 20


async def test_what_is_sent() -> None:
    upstream = Scripted(201, GOOD)
    await TokenApi(upstream, prefix=b"/gitlab/", fields=HOST).create(ROOT, SERVICE, "n", ("api",), "2999-01-01")
    ((request, body),) = upstream.requests
    assert (request.method, request.content_length) == ("POST", len(body))
    assert request.target == b"/gitlab/api/v4/groups/platform%2Ftools/service_accounts/5/personal_access_tokens"
    assert json.loads(body) == {"name": "n", "scopes": ["api"], "expires_at": "2999-01-01"}
    assert dict(request.fields)[b"Host"] == b"gitlab.test"


async def test_a_cancelled_call_passes_the_cancellation_on() -> None:
    class Hanging(Scripted):
        async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

    task = asyncio.ensure_future(TokenApi(Hanging()).describe(ROOT))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

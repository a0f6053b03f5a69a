"""The forward lane where several credentials take turns: what GitLab says to one of them is never another's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.broker.token_pool import TokenPool
from gateway.core.messages import Fields, ResponseHead
from gateway.forward_lane import LaneRequest
from gateway.ports import UpstreamCredential, UpstreamRequest
from gateway.reply import Reply
from tests.fakes.port import CACHED, ISSUES, LiveWorld, port
from tests.fakes.world import CONFIGURATION, ENVIRONMENT, SECRETS, FakeUpstream, token_of

PAGES = "/api/v4/projects/1/issues?page=%d"
MEMBERS = {"sa/1": ENVIRONMENT["SA"], "sa/2": ENVIRONMENT["SA_SUDO"]}
POOL = (
    CONFIGURATION.replace(
        '{id: sa, token: "${env:SA}"}', '{id: sa, pool: [{token: "${env:SA}"}, {token: "${env:SA_SUDO}"}]}'
    )
    .replace('  - {id: sa-sudo, token: "${env:SA_SUDO}", sudo: true}\n', "")
    .replace("  - {id: acts, for: [actor], use: sa-sudo, allow: [{access: write}], sudo: [root]}\n", "")
    .replace("burst: 50", "burst: 5000")
)
FOR_THE_ROAD: Fields = (*ISSUES, (b"Last-Modified", b"Sat, 21 Nov 2026 01:42:06 GMT"))


def _one_user(_up: FakeUpstream, _request: UpstreamRequest) -> Reply:
    """GitLab knows each of them for the same service account."""
    told = {"id": 1, "user_id": 9, "active": True, "revoked": False, "scopes": ["api"]}
    return Reply(ResponseHead(200, ()), whole=msgspec.json.encode(told))


async def _to_whom(request: UpstreamRequest, _octets: bytes) -> Reply:
    return Reply(ResponseHead(200, FOR_THE_ROAD if b"=5" in request.target else ISSUES), whole=token_of(request).encode())


def pool(at: LiveWorld) -> TokenPool:
    return at.made.made.gateway.stages.tokens._shared["sa"]  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(params=["memory", "redis"])
async def at(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiveWorld]:
    monkeypatch.setattr(FakeUpstream, "_verify", _one_user)
    stores = ""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        stores = f'{SECRETS}stores: {{shared: "{url}", keys: "sqlite:///{tmp_path}/keys.db"}}\n'
    async with port(tmp_path, POOL + CACHED + stores, _to_whom) as one:
        learnt = 0
        for page in range(900, 1900):  # of both, and until it is heard what Redis publishes
            await one.ask(PAGES % page, caller="reader")
            learnt = learnt + 1 if one.forwarded else 0
            if learnt == 4:
                break
        assert learnt == 4
        yield one


@pytest.mark.parametrize("first", [0, 1])
async def test_the_road_goes_on_with_the_one_that_was_asked(at: LiveWorld, first: int) -> None:
    """Others took their turns while GitLab answered."""

    async def beside_others(request: UpstreamRequest, octets: bytes) -> Reply:
        pool(at).pick()
        return await _to_whom(request, octets)

    at.made.up.answer = beside_others
    pool(at)._turn = first
    for page in (51, 52, 53):
        at.made.up.requests.clear()
        _, _, body = await at.ask(PAGES % page, caller="reader")
        assert "upstream.send_soon" in at.made.calls, "it began on the lane"
        (sent,) = at.made.up.requests
        assert MEMBERS[at.made.last.permit_use] == body.decode() == token_of(sent)
        said = set()
        for _ in range(6):
            _, _, body = await at.ask(PAGES % page, caller="reader")
            assert MEMBERS[at.made.last.permit_use] == body.decode(), "kept for the one it was said to"
            said.add(body)
        assert len(said) == 2


async def test_a_401_is_of_the_one_that_was_asked(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is neither refused nor loses what is kept for it."""

    async def refuses(request: UpstreamRequest, octets: bytes) -> Reply:
        pool(at).pick()
        if token_of(request) == MEMBERS["sa/2"]:
            return Reply(ResponseHead(401, ((b"Content-Length", b"2"),)), whole=b"{}")
        return await _to_whom(request, octets)

    refused: list[str] = []
    tokens = at.made.made.gateway.stages.tokens

    async def hears(_self: object, credential: UpstreamCredential) -> bool:
        refused.append(credential.id)
        return False

    monkeypatch.setattr(type(tokens), "refused", hears)
    at.made.up.answer = refuses
    for page in range(61, 67):
        at.made.up.requests.clear()
        await at.ask(PAGES % page, caller="reader")
        assert MEMBERS[at.made.last.permit_use] == token_of(at.made.up.requests[0])
    assert set(refused) == {"sa/2"}


async def test_where_gitlab_was_not_asked_the_road_chooses_anew(at: LiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the lane had chosen may be at its end by now; what was looked up for it is no other's."""
    real = LaneRequest.taken_on
    handed: list[LaneRequest] = []

    def taken_on(lane_request: LaneRequest) -> None:
        handed.append(lane_request)
        pool(at)._offered = None
        real(lane_request)

    monkeypatch.setattr(LaneRequest, "taken_on", taken_on)
    at.made.up.at_hand = False
    for page in range(71, 75):
        at.made.up.requests.clear()
        _, _, body = await at.ask(PAGES % page, caller="reader")
        chosen = handed[-1].credential
        assert chosen is not None
        assert chosen.id != at.made.last.permit_use, "the next in turn"
        assert handed[-1].prior_lookup is None
        assert MEMBERS[at.made.last.permit_use] == body.decode() == token_of(at.made.up.requests[0])
        for _ in range(4):
            _, _, body = await at.ask(PAGES % page, caller="reader")
            assert MEMBERS[at.made.last.permit_use] == body.decode()

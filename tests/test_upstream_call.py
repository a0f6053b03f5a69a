"""What goes up for one permitted request, and what its answer teaches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.body_stage import HeldBody
from gateway.core.access import Permit, Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Carrier, Claim, CredentialKind
from gateway.core.errors import Code, Rejection, Source
from gateway.core.exchange import Exchange
from gateway.core.messages import Field, RequestHead, ResponseHead
from gateway.core.request_validation import AdmittedRequest
from gateway.core.secret import Secret
from gateway.core.target import parse_target
from gateway.ports import RequestBody, UpstreamCredential, UpstreamRequest
from gateway.reply import Reply
from gateway.upstream_call import AuthorisedRequest, UpstreamCall, with_client_peer
from tests.fakes.world import World, world

OPERATION = Operation("GET /api/v4/user", Access.READ, Surface.REST)
TARGET = parse_target(b"/api/v4/user?sudo=ada")
OWN = Principal("user:7", PrincipalKind.GITLAB_TOKEN, "people", token_hash=b"hash")
BOT = Principal("bot", PrincipalKind.KEY, "bot")
NOBODY = Principal("anonymous:::1", PrincipalKind.ANONYMOUS, "anonymous")
BROKERED = UpstreamCredential("sa", ((b"PRIVATE-TOKEN", b"theirs"),), b"p")
CLAIM = Claim(
    CredentialKind.TOKEN,
    Secret("mine"),
    Carrier.PRIVATE_TOKEN,
    sudo="ada",
    target=TARGET.raw,
    upstream_fields=((b"PRIVATE-TOKEN", b"mine"),),
)


def call(
    made: World,
    principal: Principal = OWN,
    *,
    credential: UpstreamCredential | None = None,
    permit: Permit | None = None,
    fields: tuple[Field, ...] = (),
    trusted: bool = False,
    clock: Callable[[], float] = lambda: 1.0,
    body: RequestBody | None = None,
    operation: Operation = OPERATION,
) -> UpstreamCall:
    head = RequestHead("GET", TARGET.raw, ((b"Host", b"gateway.test"), *fields), peer="10.0.0.1")
    admitted = AdmittedRequest(TARGET, operation, CLAIM, b"gateway.test", "203.0.113.9" if trusted else "10.0.0.1", trusted)
    x = Exchange("r-1", 0.0, "GET", "10.0.0.1")
    authorised = AuthorisedRequest(admitted, operation, CLAIM, principal, permit or Permit("r"), TARGET.raw)
    return UpstreamCall(made.gateway.stages, clock, head, x, authorised, credential, body)


@pytest.mark.parametrize(
    ("principal", "credential", "permit", "partition"),
    [
        pytest.param(OWN, None, Permit("own-token"), b"hash", id="own-token"),
        pytest.param(NOBODY, None, Permit("anonymous"), b"anonymous", id="anonymous"),
        pytest.param(BOT, BROKERED, Permit("r", "sa", digest=b"d"), b"p/d/", id="brokered"),
        pytest.param(BOT, BROKERED, Permit("r", "sa", sudo="Ada", digest=b"d"), b"p/d/ada", id="brokered-as-another"),
        pytest.param(
            Principal("passthrough:::1", PrincipalKind.PASSTHROUGH, "passthrough"), None, Permit("p"), b"", id="passthrough"
        ),
    ],
)
async def test_whose_answer_it_is(
    tmp_path: Path, principal: Principal, credential: UpstreamCredential | None, permit: Permit, partition: bytes
) -> None:
    async with world(tmp_path) as made:
        assert call(made, principal, credential=credential, permit=permit).cache_request().partition == partition


async def test_links_of_one_host_are_not_anothers(tmp_path: Path) -> None:
    """GitLab's links are turned to the host a caller used: behind trusted proxies that is what these say."""
    async with world(tmp_path) as made:
        plain = call(made).cache_request().reached_as
        said = (b"X-Forwarded-Host", b"git.example.com")
        assert call(made, fields=(said,)).cache_request().reached_as == plain
        assert call(made, fields=(said,), trusted=True).cache_request().reached_as != plain


def test_the_client_is_who_a_trusted_proxy_says() -> None:
    head = RequestHead("GET", b"/", (), peer="10.0.0.1")
    here = AdmittedRequest(TARGET, OPERATION, CLAIM, b"gateway.test", "10.0.0.1", False)
    there = AdmittedRequest(TARGET, OPERATION, CLAIM, b"gateway.test", "203.0.113.9", True)
    assert with_client_peer(head, here) is head
    assert with_client_peer(head, there).peer == "203.0.113.9"


class Slow:
    """A GitLab that takes its time, and a clock that knows."""

    def __init__(self, made: World, ending: BaseException | None) -> None:
        self.now = 100.0
        self._ending = ending
        made.up.answer = self._answer

    async def _answer(self, request: UpstreamRequest, octets: bytes) -> Reply:
        self.now += 30.0
        if self._ending is not None:
            raise self._ending
        return Reply(ResponseHead(200, ((b"X-Runtime", b"2.5"),)), whole=b"{}")


def gone_wrong(code: Code) -> Rejection:
    return Rejection(code, 503, "503", source=Source.UPSTREAM)


@pytest.mark.parametrize(
    ("ending", "seconds"),
    [
        pytest.param(None, 2.5, id="answered"),
        pytest.param(gone_wrong(Code.UPSTREAM_TIMEOUT), 30.0, id="not-in-time"),
        pytest.param(gone_wrong(Code.UPSTREAM_RESET), 30.0, id="broken-off"),
        pytest.param(asyncio.CancelledError(), 30.0, id="the-client-left"),
        pytest.param(gone_wrong(Code.UPSTREAM_BUSY), 0.0, id="never-asked"),
        pytest.param(gone_wrong(Code.UPSTREAM_REFUSED), 0.0, id="nobody-there"),
    ],
)
@pytest.mark.parametrize("length", [None, 10, 100_000])
async def test_what_gitlab_did_not_answer_is_what_it_worked_all_the_same(
    tmp_path: Path, ending: BaseException | None, seconds: float, length: int | None
) -> None:
    """The heaviest requests are those that time out, and those whose clients do not wait for them."""
    async with world(tmp_path) as made:
        slow = Slow(made, ending)
        body = HeldBody(b"x" * length, None, length) if length is not None else None
        one = call(made, clock=lambda: slow.now, body=body)
        with contextlib.suppress(Rejection, asyncio.CancelledError):
            await one.forward(())
        spent = one.spent(0)
        assert spent.asked
        assert spent.runtime_s == (0.0 if length == 100_000 and ending is not None else seconds)


async def test_waiting_for_a_place_is_no_work_of_gitlabs(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        slow = Slow(made, None)

        async def leave() -> None:
            slow.now += 5.0
            raise asyncio.CancelledError

        made.up.wait = leave
        one = call(made, clock=lambda: slow.now)
        with contextlib.suppress(asyncio.CancelledError):
            await one.forward(())
        assert one.spent(0).runtime_s == 0.0


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        pytest.param(Reply(ResponseHead(204, ()), first_byte_s=50.0), 0.0, id="nothing-to-do"),
        pytest.param(Reply(ResponseHead(201, ((b"X-Runtime", b"2.5"),)), whole=b"{}", first_byte_s=50.0), 2.5, id="a-job"),
        pytest.param(asyncio.CancelledError(), 0.0, id="the-runner-left"),
    ],
)
async def test_a_poll_that_waits_for_a_job_is_no_work_of_gitlabs(
    tmp_path: Path, answer: Reply | BaseException, seconds: float
) -> None:
    async with world(tmp_path) as made:
        now = 100.0

        async def answered(request: UpstreamRequest, octets: bytes) -> Reply:
            nonlocal now
            now += 50.0
            if isinstance(answer, BaseException):
                raise answer
            return answer

        made.up.answer = answered
        poll = Operation("POST /api/v4/jobs/request", Access.WRITE, Surface.RUNNER)
        one = call(made, clock=lambda: now, operation=poll)
        with contextlib.suppress(asyncio.CancelledError):
            await one.forward(())
        assert one.spent(0).runtime_s == seconds


PRIORITIES = """\
version: 1
upstream: {url: "http://gitlab.test", max_in_flight: 10, adaptive: false}
cache: {mode: private}
identities:
  - {id: batch, key: issued, priority: background}
  - {id: page, key: issued, priority: critical}
credentials: [{id: sa, token: "${env:SA}"}]
rules: [{id: reads, for: [batch, page], use: sa, allow: [{access: read}], sudo: never}]
"""


async def test_who_goes_first_does_not_wait_for_one_that_waits_for_a_place(tmp_path: Path) -> None:
    """Both would get the same answer. Once the request that asks for it has gone up, it is as good as one's own."""
    answered = asyncio.Event()

    async def answer(request: UpstreamRequest, body: bytes) -> Reply:
        await answered.wait()
        fields = ((b"Content-Type", b"application/json"), (b"ETag", b'W/"1"'))
        return Reply(ResponseHead(200, fields), whole=b"[]")

    async with world(tmp_path, PRIORITIES, answer) as made:
        asked: list[asyncio.Task[None]] = []
        flights = made.made.cache_assembly.cache._fetcher.flights  # type: ignore[attr-defined]

        async def ask(caller: str, *projects: int) -> int:
            """How many requests are at GitLab, once each of all is there, or waits for a place or for another."""
            downs = [made.down("GET", f"/api/v4/projects/{project}", caller=caller) for project in projects]
            asked.extend(asyncio.ensure_future(made.gateway.handle(down)) for down in downs)
            async with asyncio.timeout(30):
                while True:
                    at_gitlab, waiting = len(made.up.requests), made.made.admitting_upstream.waiting
                    if at_gitlab + waiting + sum(len(one.waiters) for one in flights._table.values()) == len(asked):
                        return at_gitlab
                    await asyncio.sleep(0.001)

        assert await ask("batch", 1, 2, 3, 4, 5, 6, 7, 8) == 7, "the eighth waits"
        assert await ask("page", 1, 1) == 7, "it is asked for"
        assert await ask("page", 8, 8) == 8, "one of them asks, the other waits for it"
        assert await ask("batch", 8) == 8
        answered.set()
        await asyncio.gather(*asked)
        assert [x.status for x in made.seen.exchanges] == [200] * 13
        assert [x.cache_status for x in made.seen.exchanges if x.principal == "page"].count("miss") == 1

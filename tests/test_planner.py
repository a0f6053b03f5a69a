"""What nobody asked for before is answered as the road would answer it, and refused where the road refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.answer_template import AnswerTemplate
from gateway.core.secret import Secret
from gateway.planner import Planner
from tests.edge.wire import Client
from tests.fakes.port import CACHED, LiveWorld, freeze_clock, port
from tests.fakes.world import CONFIGURATION, ENVIRONMENT, MALLORY, OWN
from tests.test_answer_template import GitLab
from tests.test_forward_lane import VARYING, facts, quiet, until
from tests.test_plans import gone_up

FIRST, SECOND = "/api/v4/projects/1/issues/1", "/api/v4/projects/1/issues/2"
COMMIT = "/api/v4/projects/1/repository/commits/"
PLAIN = (
    "/api/v4/projects/1/issues/7",
    "/api/v4/projects/2/issues/7",
    "/api/v4/projects/platform%2Fapi/issues/7",
    "/api/v4/projects/2/issues?labels=a%2Cb&scope=all",
    "/api/v4/users?username=root",
    "/api/v4/groups/platform%2Ftools/projects",
    "/api/v4/version",
    COMMIT + "a" * 40,
    COMMIT + "main",
)
"""Sent up and answered at once."""
OTHERWISE = (
    FIRST,
    "/api/v4/projects/2",
    "/api/v4/projects/2?statistics=true",
    "/api/v4/projects?search=x&simple=true",
    "/api/v4/projects/1/repository/files/src%2Fmain.py/raw?ref=main",
    "/",
    "/platform/api/-/issues",
    "/platform/api.git/info/refs?service=git-upload-pack",
    "/api/v4/no/such/route",
    "/api/v4/projects/1/variables",
    "/api/v4/internal/allowed",
    "/api/v4/projects/1/../2",
    "/api/v4/projects/%2e%2e/issues",
    "/api/v4/projects//issues",
    "/api/v4/projects/1/issues/7?private_token=glpat-another",
    "/api/v4/projects/1/issues/7?access_token=glpat-another",
    "/api/v4/projects/1/issues/7?private%5Ftoken=glpat-another",
    "/api/v4/projects/1/issues/9?sudo=root",
    "/api/v4/projects/1/issues/9?sudo=7",
    "/api/v4/projects/1/issues/9%00",
    "/api/v4/projects/1/issues/9%",
    "/api/v4/projects/1/export/download",
    "/api/v4/graphql",
    "/api/graphql?query={a}",
    "/-/health",
)
WIDE = (CONFIGURATION + CACHED).replace("60/min, burst: 50", "600/min, burst: 500")


def sent_at_once(at: LiveWorld) -> bool:
    return "upstream.send_soon" in at.made.calls and not {"cache.fetch", "upstream.send"} & set(at.made.calls)


async def told(at: LiveWorld, target: str, lines: tuple[str, ...], caller: str) -> tuple[object, ...]:
    """The answer, on a connection of its own that has seen these fields."""
    client = Client(*await asyncio.open_connection("127.0.0.1", at.port))
    try:
        await at.ask(FIRST, *lines, caller=caller, client=client)
        await until(lambda: quiet(at))
        at.made.seen.exchanges.clear()
        at.made.up.requests.clear()
        status, fields, body = await at.ask(target, *lines, caller=caller, client=client)
        await until(lambda: bool(at.made.seen.exchanges) and quiet(at))
    finally:
        client.writer.close()
    head = b"\r\n".join(b"%b: %b" % field for field in fields.items())
    return status, VARYING.sub(rb"\1", head), body if status == 200 else b"", facts(at), gone_up(at)


@pytest.mark.parametrize(
    ("caller", "lines"),
    [
        ("reader", ()),
        ("other", ("Accept-Language: de", "Origin: https://else.where")),
        ("actor", ("Sudo: root",)),
        ("nobody", ()),
        (OWN, ()),
        ("reader", ('If-None-Match: W/"1"',)),
        ("reader", ("Range: bytes=0-1",)),
        ("reader", ("Cache-Control: no-cache",)),
        ("reader", ("X-Request-Id: of-the-client",)),
    ],
)
async def test_it_says_what_the_road_says(
    tmp_path: Path, caller: str, lines: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[list[Any]] = []
    planned: list[bool] = []
    for with_planner in (True, False):
        if not with_planner:
            monkeypatch.setattr(Planner, "plan", lambda *_: None)
        async with port(tmp_path / str(with_planner), WIDE) as at:
            freeze_clock(at.made)
            said.append([])
            for _ in range(2):
                await at.ask(SECOND, *lines, caller=caller)
            for target in (*PLAIN, *OTHERWISE, *PLAIN):
                said[-1].append((target, await told(at, target, lines, caller)))
                if with_planner:
                    planned.append(sent_at_once(at) and "entry.target" in at.made.calls)
    for mine, theirs in zip(*said, strict=True):
        assert mine == theirs
    seen = [target for target, first in zip(PLAIN, planned, strict=False) if first]
    if caller == "nobody" or lines[:1] in {("Range: bytes=0-1",), ("Cache-Control: no-cache",)}:
        assert seen == []
    else:
        assert seen == list(PLAIN), set(PLAIN) - set(seen)


RULES = """\
rules:
  - {id: ours, for: [reader], use: sa, allow: [{access: read, projects: ["1", "4"]}], sudo: never}
  - {id: theirs, for: [reader], use: sa-sudo, allow: [{access: read, projects: ["2"]}], sudo: never}
limits:
  - {id: caller, by: caller, rate: 600/min, burst: 500}
"""


async def test_each_by_its_own_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One goes up with one credential, the next with another, and one not at all: whatever came before."""
    text = CONFIGURATION.partition("rules:")[0] + RULES + CACHED
    said: list[list[Any]] = []
    order = [1, 2, 3, 1, 4, 2, 5, 1, 2]
    for with_planner in (True, False):
        if not with_planner:
            monkeypatch.setattr(Planner, "plan", lambda *_: None)
        async with port(tmp_path / str(with_planner), text) as at:
            freeze_clock(at.made)
            said.append([])
            for _ in range(2):
                await at.ask(SECOND, caller="reader")
            for number, project in enumerate(order):
                said[-1].append(await told(at, f"/api/v4/projects/{project}/issues/{100 + number}", (), "reader"))
    assert said[0] == said[1]
    statuses = [answer[0] for answer in said[0]]
    assert statuses == [200, 200, 404, 200, 200, 200, 404, 200, 200]
    went = [dict(answer[4][0][1])[b"PRIVATE-TOKEN"].decode() for answer in said[0] if answer[4]]
    first, second = ENVIRONMENT["SA"], ENVIRONMENT["SA_SUDO"]
    assert went == [first, second, first, first, second, first, second]


async def test_a_caller_who_is_known_no_more_is_asked_for(tmp_path: Path) -> None:
    async with port(tmp_path, WIDE) as at:
        for target in (FIRST, SECOND, PLAIN[0]):
            await at.ask(target, caller="reader")
        assert sent_at_once(at)
        at.made.made.gateway.stages.authenticator._keys._known.drop_where(lambda _: True)  # type: ignore[attr-defined]
        assert (await at.ask(PLAIN[1], caller="reader"))[0] == 200
        assert not sent_at_once(at)


async def test_another_credential_is_another_caller(tmp_path: Path) -> None:
    """What one was found to be allowed is nobody else's, on the same connection and word for word otherwise."""
    async with port(tmp_path, WIDE) as at:
        for target in (FIRST, SECOND, PLAIN[0]):
            await at.ask(target, caller="reader")
        assert sent_at_once(at)
        for caller, status in (("nobody", 403), (MALLORY, 401), ("glgw-not-a-key", 401)):
            assert (await at.ask(PLAIN[1], caller=caller))[0] == status
            assert at.made.last.permit_use == ""


async def test_a_credential_that_was_rotated_goes_up_no_more(tmp_path: Path) -> None:
    async with port(tmp_path, WIDE) as at:
        for target in (FIRST, SECOND, PLAIN[0]):
            await at.ask(target, caller="reader")
        at.made.made.gateway.stages.tokens.switch("sa", Secret("glpat-another-one-00000"), None)  # type: ignore[attr-defined]
        await at.ask(PLAIN[1], caller="reader")
        assert sent_at_once(at)
        assert (b"PRIVATE-TOKEN", b"glpat-another-one-00000") in at.made.up.requests[-1].fields


async def test_names_learnt_meanwhile_are_purged_by(tmp_path: Path) -> None:
    """An answer is stored by every name of its project that is known by then."""
    async with port(tmp_path, WIDE) as at:
        for target in (FIRST, SECOND, PLAIN[1]):
            await at.ask(target, caller="reader")
        cache = at.made.made.cache_assembly.cache
        cache._tagging.names.learn(b"2", b"platform/other")  # type: ignore[attr-defined]
        await at.ask("/api/v4/projects/2/issues/8", caller="reader")
        assert sent_at_once(at)
        await at.ask("/api/v4/projects/2/issues/8", caller="reader")
        assert at.made.last.cache_status == "hit"
        written = at.request("/api/v4/projects/platform%2Fother/issues/8", "Content-Length: 0", caller="reader")
        await at.client.send(written.replace(b"GET", b"PUT", 1))
        await at.client.answer()
        await at.ask("/api/v4/projects/2/issues/8", caller="reader")
        assert at.made.last.cache_status == "miss"


@pytest.mark.parametrize(("line", "status"), [("Via: 1.1 gateway", 508), ("Connection: keep-alive, content-type", 400)])
@pytest.mark.parametrize("target", ["/api/v4/projects/1/issues/%d", "/api/v4/projects/1/issues?page=%d"])
async def test_what_must_not_go_up_is_said_by_the_road_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, status: int, target: str
) -> None:
    """Each time, and without a word of a fault."""
    async with port(tmp_path, WIDE) as at:
        for number in range(5):
            client = Client(*await asyncio.open_connection("127.0.0.1", at.port))
            for more in range(2):
                answer = await at.ask(target % (10 * number + more), line, caller="reader", client=client)
                assert answer[0] == status
                if status == 400:
                    break  # it ends the connection
            client.writer.close()
        assert at.made.up.requests == []
    assert caplog.text == ""


async def test_what_may_be_reused_for_another_time_is_known_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffs of a commit never change, those of a branch do: of one operation, in turn, and of one form."""
    made: list[float] = []

    class Counted(AnswerTemplate):
        def __init__(self, *given: Any) -> None:
            made.append(given[-1])
            super().__init__(*given)

    monkeypatch.setattr("gateway.forward_lane.AnswerTemplate", Counted)
    async with port(tmp_path, WIDE.replace("ttl: 60s,", "ttl: 20s,"), GitLab(own=((b"Etag", b'W/"@"'),))) as at:
        for number in range(12):
            for reference in (f"{number:040x}", f"main-{number}"):
                status, _, _ = await at.ask(f"{COMMIT}{reference}/diff?page={number + 2}", caller="reader")
                assert status == 200
        assert sorted(made) == [20.0, 60.0]

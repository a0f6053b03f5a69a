from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.core.errors import Code, Rejection
from gateway.core.messages import ResponseHead
from gateway.core.secret import Secret
from gateway.identity.verifier import GitlabVerifier
from gateway.ports import NotAnswering, Presentation, RequestBody, UpstreamRequest, Verified
from gateway.reply import Reply

SELF, INFO, JOB = "/api/v4/personal_access_tokens/self", "/oauth/token/info", "/api/v4/job"
T = 1_800_000_000.0
PERSONAL = {"id": 5, "user_id": 42, "active": True, "revoked": False, "scopes": ["api"], "expires_at": None}
OAUTH = {"resource_owner_id": 7, "scope": ["read_api"], "expires_in": 7200, "application": {"uid": "app"}}
JOB_OBJECT = {"id": 9, "pipeline": {"id": 3, "project_id": 11}, "user": {"id": 42}}


class Gitlab:
    """An Upstream that plays a script, and fails on what is not in it."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.asked: list[tuple[str, dict[bytes, bytes]]] = []
        self.released = 0
        self.chunked = False

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        assert request.method == "GET"
        assert body is None
        path = request.target.decode()
        self.asked.append((path, dict(request.fields)))
        answer = self.script.pop(path)
        if isinstance(answer, Exception):
            raise answer
        status, content = answer
        octets = content if isinstance(content, bytes) else json.dumps(content).encode()
        head = ResponseHead(status, ())
        if self.chunked:
            return Reply(head, None, self._chunks(octets), self._release)
        return Reply(head, octets, None, self._release)

    async def close(self) -> None: ...

    async def _chunks(self, octets: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(octets), 7):
            await asyncio.sleep(0)
            yield octets[at : at + 7]

    def _release(self) -> None:
        self.released += 1


async def verify(gitlab: Gitlab, shown: Presentation, token: str = "t0ken", **more: Any) -> Verified | None:
    verifier = GitlabVerifier(gitlab, wall=lambda: T, **{k: more.pop(k) for k in ("prefix", "fields") if k in more})
    return await verifier.verify(Secret(token), shown, **more)


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "streamed"])
async def test_a_personal_token_is_its_user(chunked: bool) -> None:
    gitlab = Gitlab({SELF: (200, {**PERSONAL, "expires_at": "2030-01-02", "more": [1]})})
    gitlab.chunked = chunked
    assert await verify(gitlab, Presentation.PRIVATE) == Verified("user:42", ("api",), 1_893_542_400.0, "token:5")
    assert gitlab.asked[0][1][b"PRIVATE-TOKEN"] == b"t0ken"
    assert gitlab.released == 1


@pytest.mark.parametrize(
    ("script", "shown", "may_be_job", "verified"),
    [
        pytest.param(
            {SELF: (200, PERSONAL)},
            "bearer",
            False,
            Verified("user:42", ("api",), None, "token:5"),
            id="personal as bearer",
        ),
        pytest.param(
            {SELF: (400, b"{}"), INFO: (200, OAUTH)},
            "bearer",
            False,
            Verified("user:7", ("read_api",), T + 7200, "application:app"),
            id="oauth",
        ),
        pytest.param(
            {SELF: (400, b"{}"), INFO: (200, OAUTH)},
            "bearer",
            True,
            Verified("user:7", ("read_api",), T + 7200, "application:app"),
            id="oauth where it may be a job's",
        ),
        pytest.param(
            {SELF: (400, b"{}"), INFO: (200, {**OAUTH, "resource_owner_id": None})},
            "bearer",
            False,
            Verified("application:app", ("read_api",), T + 7200, "application:app"),
            id="client credentials",
        ),
        pytest.param({JOB: (200, JOB_OBJECT)}, "job", False, Verified("job-project:11", credential_id="job:9"), id="job"),
        pytest.param(
            {SELF: (401, b""), JOB: (200, JOB_OBJECT)},
            "bearer",
            True,
            Verified("job-project:11", credential_id="job:9"),
            id="job as bearer",
        ),
        pytest.param(
            {SELF: (400, b""), INFO: (401, b""), JOB: (200, JOB_OBJECT)},
            "bearer",
            True,
            Verified("job-project:11", credential_id="job:9"),
            id="job as bearer, by way of oauth",
        ),
        pytest.param({SELF: (403, b"")}, "private", True, None, id="forbidden"),
        pytest.param({SELF: (400, b""), INFO: (403, b"")}, "bearer", False, None, id="oauth, forbidden"),
        pytest.param({JOB: (403, b"")}, "job", False, None, id="job, forbidden"),
        pytest.param({JOB: (400, b"")}, "job", False, None, id="job, malformed"),
        pytest.param({SELF: (401, b"")}, "private", True, None, id="unknown"),
        pytest.param({SELF: (401, b"")}, "bearer", False, None, id="unknown bearer"),
        pytest.param({SELF: (403, b"")}, "bearer", True, None, id="blocked"),
        pytest.param({SELF: (400, b"")}, "private", False, None, id="oauth as private"),
        pytest.param({SELF: (400, b""), INFO: (401, b"")}, "bearer", False, None, id="oauth expired"),
        pytest.param({SELF: (200, {**PERSONAL, "active": False})}, "private", False, None, id="inactive"),
        pytest.param({SELF: (200, {**PERSONAL, "revoked": True})}, "private", False, None, id="revoked"),
        pytest.param({JOB: (404, b"")}, "job", False, None, id="job over"),
        pytest.param({JOB: (401, b"")}, "job", False, None, id="job unknown"),
        pytest.param({SELF: (401, b""), JOB: (401, b"")}, "bearer", True, None, id="nothing at all"),
    ],
)
async def test_what_gitlab_says(script: dict[str, Any], shown: str, may_be_job: bool, verified: Verified | None) -> None:
    gitlab = Gitlab(script)
    asked = len(script)
    assert await verify(gitlab, Presentation(shown), may_be_job=may_be_job) == verified
    assert len(gitlab.asked) == gitlab.released == asked <= 3


@pytest.mark.parametrize(
    ("answer", "offered"),
    [
        pytest.param((500, b""), True, id="500"),
        pytest.param((502, b"GitLab is not responding"), True, id="502"),
        pytest.param((503, b""), True, id="503"),
        pytest.param((429, b""), True, id="429"),
        pytest.param(Rejection(Code.UPSTREAM_TIMEOUT, 504, "504"), True, id="timeout"),
        pytest.param(Rejection(Code.UPSTREAM_BREAKER_OPEN, 503, "503"), True, id="breaker"),
        pytest.param((404, b"{}"), False, id="too old"),
        pytest.param((302, b""), False, id="redirect"),
        pytest.param((204, b""), False, id="no content"),
        pytest.param((200, b"<html>sign in"), False, id="a page"),
        pytest.param((200, b""), False, id="empty"),
        pytest.param((200, {}), False, id="no user"),
        pytest.param((200, {**PERSONAL, "user_id": "42"}), False, id="a user that is no number"),
        pytest.param((200, {**PERSONAL, "user_id": None}), False, id="nobody"),
        pytest.param((200, {**PERSONAL, "active": "yes"}), False, id="active that is no truth value"),
        pytest.param((200, b"\xff" * 9), False, id="not UTF-8"),
        pytest.param((200, b"[" * 100_000), False, id="deep"),
        pytest.param((200, b'{"x":' + b"[" * 200_000), False, id="deep where nobody looks"),
    ],
)
async def test_silence_and_nonsense_are_neither_yes_nor_no(answer: Any, offered: bool) -> None:
    with pytest.raises(NotAnswering) as silence:
        await verify(Gitlab({SELF: answer}), Presentation.PRIVATE)
    assert silence.value.offered is offered
    assert "t0ken" not in str(silence.value)


async def test_an_endless_answer_is_cut_and_its_connection_given_back() -> None:
    gitlab = Gitlab({SELF: (200, b" " * 300_000)})
    gitlab.chunked = True
    with pytest.raises(NotAnswering, match="too long"):
        await verify(gitlab, Presentation.PRIVATE)
    assert gitlab.released == 1


async def test_an_oauth_token_of_nobody_is_not_believed() -> None:
    with pytest.raises(NotAnswering):
        await verify(Gitlab({SELF: (400, b""), INFO: (200, {"expires_in": 5})}), Presentation.BEARER)


@pytest.mark.parametrize("shown", Presentation)
@pytest.mark.parametrize(
    "token",
    ["", "a b", "a\r\nSudo: root", "a\nb", "a\0", "é", "\udcff", "a\x7f", "a\t", "x" * 8193],
    ids=lambda token: ascii(token[:12]),
)
async def test_what_cannot_be_a_token_never_reaches_gitlab(shown: Presentation, token: str) -> None:
    gitlab = Gitlab({})
    assert await verify(gitlab, shown, token, may_be_job=True) is None
    assert gitlab.asked == []


async def test_a_job_token_may_be_8_kib_long() -> None:
    gitlab = Gitlab({JOB: (200, JOB_OBJECT)})
    assert await verify(gitlab, Presentation.JOB, "x" * 8192) is not None
    assert gitlab.asked[0][1][b"JOB-TOKEN"] == b"x" * 8192


async def test_a_relative_url_root_and_further_fields_go_along() -> None:
    gitlab = Gitlab({"/gitlab" + SELF: (200, PERSONAL)})
    await verify(gitlab, Presentation.BEARER, prefix=b"/gitlab/", fields=((b"X-Forwarded-Proto", b"https"),))
    fields = gitlab.asked[0][1]
    assert fields[b"X-Forwarded-Proto"] == b"https"
    assert fields[b"Authorization"] == b"Bearer t0ken"


@pytest.mark.parametrize("date", ["soon", "", "2030-13-01"])
async def test_an_expiry_that_is_no_date_is_left_to_gitlab(date: str) -> None:
    assert await verify(Gitlab({SELF: (200, {**PERSONAL, "expires_at": date})}), Presentation.PRIVATE) == Verified(
        "user:42", ("api",), None, "token:5"
    )


async def test_cancelled_in_mid_answer_it_gives_the_connection_back() -> None:
    gitlab = Gitlab({SELF: (200, PERSONAL)})
    gitlab.chunked = True
    task = asyncio.ensure_future(verify(gitlab, Presentation.PRIVATE))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gitlab.released == 1


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        pytest.param((200, {"id": 42, "username": "sa-bot"}), "sa-bot", id="told"),
        pytest.param((200, {"username": "a:b"}), "", id="no name for Basic"),
        pytest.param((200, {"username": "ä"}), "", id="no name for a field"),
        pytest.param((403, b""), "", id="a scope that may not ask"),
        pytest.param((401, b""), "", id="dead"),
    ],
)
async def test_a_tokens_user_is_asked_for_by_the_token_itself(answer: Any, name: str) -> None:
    gitlab = Gitlab({"/api/v4/user": answer})
    assert await GitlabVerifier(gitlab, wall=lambda: T).fetch_username(Secret("t0ken")) == name
    assert gitlab.asked[0][1][b"PRIVATE-TOKEN"] == b"t0ken"


@pytest.mark.parametrize("answer", [(500, b""), (200, b"<html>")], ids=["failing", "no JSON"])
async def test_a_name_that_is_not_told_is_none(answer: Any) -> None:
    with pytest.raises(NotAnswering):
        await GitlabVerifier(Gitlab({"/api/v4/user": answer}), wall=lambda: T).fetch_username(Secret("t0ken"))

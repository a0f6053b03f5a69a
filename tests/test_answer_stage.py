"""Which answers are read, how they are mended, and that the others stream past."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from gateway.answer_stage import AnswerStage
from gateway.core.access import Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Carrier, Claim, CredentialKind
from gateway.core.errors import Code, Rejection
from gateway.core.json_urls import JsonUrlRewriter
from gateway.core.messages import RequestHead, ResponseHead, first
from gateway.core.request_validation import AdmittedRequest
from gateway.core.secret import Secret
from gateway.core.target import parse_target
from gateway.reply import Reply

BATCH = Operation("POST /*repository_path.git/info/lfs/objects/batch", Access.WRITE, Surface.LFS)
PROJECT = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
LFS = (b"Content-Type", b"application/vnd.git-lfs+json; charset=utf-8")
JSON = (b"Content-Type", b"application/json")
BROKERED = Principal("bot", PrincipalKind.KEY, "bot")
OWN = Principal("user:1", PrincipalKind.GITLAB_TOKEN, "people")
ANSWER = b'{"objects":[{"actions":{"download":{"href":"https://in/a","header":{"Authorization":"broker"}}}}]}'


class AddressRewriter:
    def url_rewriter(self, head: RequestHead, admitted: AdmittedRequest) -> Callable[[bytes], bytes | None]:
        return lambda address: address.replace(b"https://in", b"https://out") if address[:10] == b"https://in" else None


STAGE = AnswerStage(AddressRewriter())
ADDRESSES = AnswerStage(AddressRewriter(), JsonUrlRewriter((b"https://in",), b"https://out"), max_bytes=100)


async def rewrite(
    stage: AnswerStage, reply: Reply, operation: Operation, principal: Principal, method: str = "POST"
) -> Reply:
    head = RequestHead(method, b"/x", ((b"Authorization", b"Basic mine"),))
    claim = Claim(CredentialKind.BASIC, Secret("k"), Carrier.BASIC)
    admitted = AdmittedRequest(parse_target(b"/x"), operation, claim, b"out", "127.0.0.1", False)
    return await stage.rewrite(reply, head, admitted, claim, principal)


def reply(body: bytes, *fields: tuple[bytes, bytes], status: int = 200) -> Reply:
    return Reply(ResponseHead(status, fields), body)


async def test_a_batch_is_mended_with_its_length() -> None:
    found = await rewrite(STAGE, reply(ANSWER, LFS, (b"Content-Length", b"%d" % len(ANSWER))), BATCH, BROKERED)
    assert found.whole is not None
    assert b"broker" not in found.whole
    assert b"Basic mine" in found.whole
    assert b"https://out/a" in found.whole
    assert [value for name, value in found.head.fields if name == b"Content-Length"] == [b"%d" % len(found.whole)]


@pytest.mark.parametrize(
    "fields", [(JSON,), (), ((b"Content-Type", b"text/plain"),), (LFS, (b"Content-Encoding", b"gzip"))]
)
async def test_a_brokered_batch_that_cannot_be_read_is_refused(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(Rejection) as refusal:
        await rewrite(STAGE, reply(ANSWER, *fields), BATCH, BROKERED)
    assert refusal.value.code is Code.UPSTREAM_PROTOCOL


LOG_IN = Operation("GET /api/v4/projects/:id/packages/conan/v2/users/authenticate", Access.READ, Surface.PACKAGES)


async def test_a_log_in_is_answered_with_the_callers_own_credential() -> None:
    assert STAGE.may_need_body(LOG_IN)
    found = await rewrite(STAGE, reply(b"of ours", (b"Content-Length", b"7")), LOG_IN, BROKERED, "GET")
    assert (found.whole, found.head.fields) == (b"k", ((b"Content-Length", b"1"),))
    for passed in (reply(b"no", status=401), reply(b"of theirs")):
        assert await rewrite(STAGE, passed, LOG_IN, BROKERED if passed.head.status == 401 else OWN, "GET") is passed
    with pytest.raises(Rejection) as refusal:
        await rewrite(STAGE, reply(b"of ours", (b"Content-Encoding", b"gzip")), LOG_IN, BROKERED, "GET")
    assert refusal.value.code is Code.UPSTREAM_PROTOCOL


async def test_a_batch_without_end_is_refused() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1_000_000

    with pytest.raises(Rejection):
        await rewrite(STAGE, Reply(ResponseHead(200, (LFS,)), chunks=endless()), BATCH, BROKERED)


async def test_a_refused_batch_and_a_callers_own_oddity_pass() -> None:
    refused = reply(b"no", JSON, status=404)
    assert await rewrite(STAGE, refused, BATCH, BROKERED) is refused
    odd = reply(ANSWER, JSON)
    assert await rewrite(STAGE, odd, BATCH, OWN) is odd


async def test_what_has_no_body_is_left_alone() -> None:
    found = reply(b"", LFS)
    assert await rewrite(STAGE, found, BATCH, BROKERED, "HEAD") is found
    found = reply(b"", LFS, status=204)
    assert await rewrite(STAGE, found, BATCH, BROKERED) is found


async def test_a_batch_may_lead_elsewhere() -> None:
    found = await rewrite(STAGE, reply(ANSWER.replace(b"https://in", b"https://storage"), LFS), BATCH, BROKERED)
    assert found.whole == b'{"objects":[{"actions":{"download":{"href":"https://storage/a","header":{}}}}]}'


@pytest.mark.parametrize("etag", [b'"x"', b'W/"x"'])
async def test_json_members_are_turned_and_a_strong_validator_weakened(etag: bytes) -> None:
    found = await rewrite(ADDRESSES, reply(b'{"web_url":"https://in/a"}', JSON, (b"ETag", etag)), PROJECT, OWN)
    assert found.whole == b'{"web_url":"https://out/a"}'
    assert first(found.head.fields, b"etag") == b'W/"x"'
    assert first(found.head.fields, b"content-length") == b"27"


@pytest.mark.parametrize(
    "found",
    [
        reply(b'{"id":1}', JSON),
        reply(b'{"web_url":"https://in/a"}', (b"Content-Type", b"text/plain")),
        reply(b'{"web_url":"https://in/a"}', JSON, (b"Content-Encoding", b"gzip")),
        reply(b'{"web_url":"https://in/a"}', JSON, (b"Content-Length", b"101")),
        reply(b'{"web_url":"https://in/a"}', JSON, (b"Content-Range", b"bytes 0-25/80"), status=206),
    ],
)
async def test_other_answers_pass_as_they_are(found: Reply) -> None:
    assert await rewrite(ADDRESSES, found, PROJECT, OWN) is found


async def test_a_head_says_nothing_of_octets_that_a_get_would_not_bring() -> None:
    length, other = (b"Content-Length", b"26"), (b"X-Total", b"1")
    found = reply(b"", JSON, length, (b"Content-MD5", b"x"), (b"ETag", b'"x"'), other)
    turned = await rewrite(ADDRESSES, found, PROJECT, OWN, "HEAD")
    assert turned.head.fields == (JSON, (b"ETag", b'W/"x"'), other)
    assert await rewrite(STAGE, found, PROJECT, OWN, "HEAD") is found
    for same in (reply(b"", JSON, (b"Content-Length", b"101")), reply(b"", (b"Content-Type", b"text/plain"), length)):
        assert await rewrite(ADDRESSES, same, PROJECT, OWN, "HEAD") is same


async def test_json_that_turns_out_too_long_streams_on() -> None:
    async def long() -> AsyncIterator[bytes]:
        yield b'{"web_url":"https://in/a",'
        yield b" " * 100
        yield b"}"

    found = await rewrite(ADDRESSES, Reply(ResponseHead(200, (JSON,)), chunks=long()), PROJECT, OWN)
    assert found.chunks is not None
    assert b"".join([chunk async for chunk in found.chunks]) == b'{"web_url":"https://in/a",' + b" " * 100 + b"}"


def test_only_what_may_be_read_is_asked_for_plain() -> None:
    assert STAGE.may_need_body(BATCH)
    assert not STAGE.may_need_body(PROJECT)
    assert ADDRESSES.may_need_body(PROJECT)
    assert not ADDRESSES.may_need_body(Operation("GET /raw", Access.READ, Surface.REST, binary=True))
    assert not ADDRESSES.may_need_body(Operation("GET /a.git/info/refs", Access.READ, Surface.GIT))
    fields = ADDRESSES.without_compression(((b"accept-encoding", b"gzip"), (b"Accept", b"*/*")))
    assert fields == ((b"Accept", b"*/*"), (b"Accept-Encoding", b"identity"))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("GET /api/v4/projects/:id/packages/npm/*package_name", True),
        ("GET /api/v4/groups/:id/-/packages/npm/*package_name", True),
        ("GET /api/v4/projects/:id/packages/nuget/index", True),
        ("GET /api/v4/groups/:id/-/packages/nuget/metadata/*package_name/index", True),
        ("GET /api/v4/projects/:id/packages/npm/*package_name/-/*file_name", False),
        ("GET /api/v4/projects/:id/packages/nuget/download/*package_name/*package_version/*package_filename", False),
        ("GET /api/v4/projects/:id/packages/generic/:package_name/*package_version/(*path/):file_name", False),
    ],
)
async def test_of_packages_the_indexes_are_read(name: str, read: bool) -> None:
    operation = Operation(name, Access.READ, Surface.PACKAGES, binary=True)
    assert ADDRESSES.may_need_body(operation) is read
    assert not STAGE.may_need_body(operation)


async def test_an_index_leads_back_to_its_packages() -> None:
    npm = Operation("GET /api/v4/projects/:id/packages/npm/*package_name", Access.READ, Surface.PACKAGES, binary=True)
    found = await rewrite(ADDRESSES, reply(b'{"dist":{"tarball":"https://in/p.tgz"}}', JSON), npm, OWN, "GET")
    assert found.whole == b'{"dist":{"tarball":"https://out/p.tgz"}}'
    nuget = Operation("GET /api/v4/projects/:id/packages/nuget/index", Access.READ, Surface.PACKAGES, binary=True)
    found = await rewrite(
        ADDRESSES, reply(b'[{"@id":"https://in/n","packageContent":"https://in/c"}]', JSON), nuget, OWN, "GET"
    )
    assert found.whole == b'[{"@id":"https://out/n","packageContent":"https://out/c"}]'


async def test_a_run_leads_back_to_its_files() -> None:
    """MLflow's client stores them there, with the caller's own credential."""
    run = Operation("GET /api/v4/projects/:id/ml/mlflow/api/2.0/mlflow/runs/get", Access.READ, Surface.MLFLOW)
    assert ADDRESSES.may_need_body(run)
    found = await rewrite(ADDRESSES, reply(b'{"run":{"info":{"artifact_uri":"https://in/files/"}}}', JSON), run, OWN, "GET")
    assert found.whole == b'{"run":{"info":{"artifact_uri":"https://out/files/"}}}'

"""Traffic beyond JSON: runners, streams, ranges, registry, packages, SCIM, GraphQL, preflights, prefixes, browsers."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import BROKER_TOKEN, EXTERNAL_URL, OWN_TOKEN, Passage
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Peer, Reply, ask
from tests.fakes.git_gitlab import peak_rss_bytes
from tests.fakes.gitlab import Answer, FakeGitLab, response

JSON = ("Content-Type", "application/json")


# Runners


def test_a_long_poll_outlives_the_first_byte_timeout(recording: FakeGitLab, upstreams: LoopThread, tmp_path: Path) -> None:
    """One second for the others here, and 1.5 for the runner."""
    gateway = GatewayProcess({"upstream": {"url": recording.url, "timeouts": {"first_byte": "1s"}}}, tmp_path / "gateway")
    try:
        late = asyncio.Event()
        timer = threading.Timer(1.5, lambda: upstreams.call(late.set))
        recording.script(
            Answer(late, b"HTTP/1.1 204 No Content\r\nGitlab-Ci-Builds-Polling: yes\r\nX-GitLab-Last-Update: abc\r\n\r\n")
        )
        body = b'{"token":"glrt-0123456789","last_update":"x","info":{}}'
        timer.start()
        reply = ask(gateway.port, "/api/v4/jobs/request", "Content-Type: application/json", method="POST", body=body)
        assert (reply.status, reply.value("Gitlab-Ci-Builds-Polling"), reply.value("X-GitLab-Last-Update")) == (
            204,
            "yes",
            "abc",
        )
        assert recording.requests[-1].body == body
    finally:
        gateway.stop()
        recording.settle()


def test_a_runner_that_waits_for_work_keeps_nobody_from_gitlab(
    recording: FakeGitLab, upstreams: LoopThread, tmp_path: Path
) -> None:
    """GitLab has one place here."""
    config = {
        "upstream": {"url": recording.url, "max_in_flight": 1},
        "identities": [{"id": "people", "gitlab_token": True}],
    }
    gateway = GatewayProcess(config, tmp_path / "gateway")
    body = b'{"token":"glrt-0123456789","last_update":"x"}'
    try:
        work = asyncio.Event()
        recording.script(Answer(work, b"HTTP/1.1 204 No Content\r\n\r\n"))
        with Peer(gateway.port) as runner:
            runner.send(
                b"POST /api/v4/jobs/request HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            # The gateway's own question, whose token it is, needs a place, too.
            assert ask(gateway.port, "/oauth/token/info", token=OWN_TOKEN).status == 401
            upstreams.call(work.set)
            assert runner.read_head()[0] == 204
    finally:
        gateway.stop()
        recording.settle()


def test_a_trace_is_appended_with_its_fields_intact(passage: Passage) -> None:
    answer = response(202, b"", ("Job-Status", "running"), ("Range", "0-99"), ("X-GitLab-Trace-Update-Interval", "30"))
    reply, sent = passage(
        "/api/v4/jobs/7/trace?debug_trace=false",
        "JOB-TOKEN: glcbt-64_abcdefghij",
        "Content-Type: text/plain",
        "Content-Range: 50-99",
        method="PATCH",
        body=b"x" * 50,
        answer=answer,
    )
    assert reply.status == 202
    assert [reply.value(name) for name in ("Job-Status", "Range", "X-GitLab-Trace-Update-Interval")] == [
        "running",
        "0-99",
        "30",
    ]
    assert sent.values("Content-Range") == [b"50-99"]
    assert sent.values("JOB-TOKEN") == [b"glcbt-64_abcdefghij"]


def test_artifacts_go_up_after_continue_and_expect_stays_here(passage: Passage) -> None:
    passage.recorder.script(response(201, b"{}", JSON))
    data = os.urandom(300_000)
    with Peer(passage.gateway.port) as peer:
        peer.send(
            b"POST /api/v4/jobs/7/artifacts HTTP/1.1\r\nHost: x\r\nJOB-TOKEN: glcbt-64_abcdefghij\r\n"
            b"Content-Type: application/octet-stream\r\nExpect: 100-continue\r\nContent-Length: 300000\r\n\r\n"
        )
        assert peer.read_head()[0] == 100
        peer.send(data)
        assert peer.read_reply().status == 201
    sent = passage.recorder.requests[-1]
    assert sent.body == data
    assert sent.values("Expect") == []


def test_a_refused_upload_is_answered_before_its_body(passage: Passage) -> None:
    with Peer(passage.gateway.port) as peer:
        peer.send(
            b"POST /api/v4/projects/1/uploads HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: glpat-of-nobody-0000000000\r\n"
            b"Content-Type: application/octet-stream\r\nExpect: 100-continue\r\nContent-Length: 300000\r\n\r\n"
        )
        reply = peer.read_reply()
        assert (reply.status, reply.value("Connection")) == (401, "close")


def test_gitlabs_413_reaches_the_runner(passage: Passage) -> None:
    reply, _ = passage(
        "/api/v4/jobs/7/artifacts", "JOB-TOKEN: glcbt-64_abcdefghij", method="POST", body=b"x" * 10,
        answer=response(413, b'{"message":"413 Request Entity Too Large"}', JSON),
    )  # fmt: skip
    assert reply.status == 413
    assert reply.value("X-Gateway-Error") is None


def test_a_runner_never_sees_403_for_overload(recording: FakeGitLab, tmp_path: Path) -> None:
    gateway = GatewayProcess(
        {
            "upstream": {"url": recording.url},
            "limits": [{"id": "strangers", "by": "address", "rate": "1/h"}],
        },
        tmp_path / "gateway",
    )
    try:
        recording.script(response(204))
        statuses = [
            ask(
                gateway.port, "/api/v4/jobs/request", "Content-Type: application/json", method="POST", body=b'{"token":"t"}'
            ).status
            for _ in range(3)
        ]
        assert statuses == [204, 429, 429]
    finally:
        gateway.stop()
        recording.settle()


# Streams


def test_each_event_arrives_before_the_next_is_sent(passage: Passage, upstreams: LoopThread) -> None:
    second = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    passage.recorder.script(Answer(head, b"d\r\ndata: first\n\n\r\n", second, b"e\r\ndata: second\n\n\r\n0\r\n\r\n"))
    with Peer(passage.gateway.port) as peer:
        peer.send(f"GET /api/v4/code_suggestions/x HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {OWN_TOKEN}\r\n\r\n".encode())
        assert peer.read_head()[0] == 200
        assert peer.read_line() == b"d"
        assert peer.read_exactly(15) == b"data: first\n\n\r\n"
        upstreams.call(second.set)
        assert peer.read_line() == b"e"
        assert peer.read_exactly(16) == b"data: second\n\n\r\n"


SPARSE_BYTES = 2 << 30
PIECE = bytes(1 << 20)


class Sparse:
    """Takes 2 GiB and gives 2 GiB, holding none of it."""

    def __init__(self) -> None:
        self.taken = 0
        self.server: asyncio.Server

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)

    async def close(self) -> None:
        self.server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"PUT"):
                while self.taken < SPARSE_BYTES:
                    self.taken += len(await reader.read(1 << 20))
                writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % SPARSE_BYTES)
                for _ in range(SPARSE_BYTES // len(PIECE)):
                    writer.write(PIECE)
                    await writer.drain()
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


def test_gigabytes_pass_both_ways_in_little_memory(upstreams: LoopThread, tmp_path: Path) -> None:
    sparse = Sparse()
    upstreams.run(sparse.start())
    anyone = [{"id": "anyone", "anonymous": True}]
    gateway = GatewayProcess({"upstream": {"url": sparse.url}, "identities": anyone}, tmp_path / "gateway")
    try:
        path = b"/api/v4/projects/1/packages/generic/a/1/b HTTP/1.1\r\nHost: x\r\n"
        with Peer(gateway.port) as peer:
            peer.send(b"GET " + path + b"\r\n")
            assert peer.read_head()[0] == 200
            before = peak_rss_bytes(gateway.process.pid)
            left = SPARSE_BYTES - len(peer.read_exactly(1))
            while left > 0:
                left -= len(peer._unread) if peer._unread else len(peer.socket.recv(1 << 20))
                peer._unread = b""
        with Peer(gateway.port) as peer:
            peer.send(b"PUT " + path + b"Content-Length: %d\r\n\r\n" % SPARSE_BYTES)
            for _ in range(SPARSE_BYTES // len(PIECE)):
                peer.send(PIECE)
            assert peer.read_reply().status == 201
        assert sparse.taken == SPARSE_BYTES
        grown = peak_rss_bytes(gateway.process.pid) - before
        assert grown < 16 << 20, f"{grown >> 20} MiB"
    finally:
        gateway.stop()
        upstreams.run(sparse.close())


def test_a_range_passes_and_is_not_stored(passage: Passage) -> None:
    answer = response(206, b"cde", ("Content-Range", "bytes 2-4/10"), ("ETag", '"x"'), ("Accept-Ranges", "bytes"))
    reply, sent = passage("/api/v4/projects/1/packages/generic/a/1/b", "Range: bytes=2-4", token=OWN_TOKEN, answer=answer)
    assert (reply.status, reply.body, reply.value("Content-Range")) == (206, b"cde", "bytes 2-4/10")
    assert sent.values("Range") == [b"bytes=2-4"]


def test_head_goes_up_as_head(passage: Passage) -> None:
    answer = response(200, b"", ("X-Gitlab-Size", "476"), ("X-Gitlab-Blob-Id", "79f7"), ("Content-Length", "476"))
    reply, sent = passage(
        "/api/v4/projects/1/repository/files/a%2Fb?ref=main", method="HEAD", token=OWN_TOKEN, answer=answer
    )
    assert sent.method == b"HEAD"
    assert (reply.value("X-Gitlab-Size"), reply.value("Content-Length"), reply.body) == ("476", "476", b"")


@pytest.mark.parametrize("location", ["https://storage.example.com/a?X-Amz-Signature=s%2Fx", "/relative?a=b"])
def test_a_redirect_to_storage_is_not_followed_nor_touched(passage: Passage, location: str) -> None:
    reply, _ = passage(
        "/api/v4/projects/1/jobs/2/artifacts", token=OWN_TOKEN, answer=response(302, b"moved", ("Location", location))
    )
    assert (reply.status, reply.value("Location")) == (302, location)


# Registry, packages, SCIM


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def test_the_token_service_takes_basic_and_repeated_scopes(passage: Passage, recorded_keys: Any) -> None:
    target = "/jwt/auth?service=container_registry&scope=repository:a/b:pull&scope=repository:a/c:push"
    reply, sent = passage(
        target, f"Authorization: Basic {basic('me', OWN_TOKEN)}", answer=response(200, b'{"token":"t"}', JSON)
    )
    assert (reply.status, sent.target.decode()) == (200, target)
    assert sent.values("Authorization") == [f"Basic {basic('me', OWN_TOKEN)}".encode()]
    _, sent = passage(target, f"Authorization: Basic {basic('me', recorded_keys.bot)}")
    assert sent.values("Authorization") == [f"Basic {basic('oauth2', BROKER_TOKEN)}".encode()]


@pytest.mark.parametrize("query", ["?service=dependency_proxy", "", "?service=container_registry&service=dependency_proxy"])
def test_no_token_with_an_upstream_credential_in_it_is_asked_for(passage: Passage, recorded_keys: Any, query: str) -> None:
    bot = f"Authorization: Basic {basic('me', recorded_keys.bot)}"
    assert passage.refused(f"/jwt/auth{query}", bot).status == 403
    reply, sent = passage(f"/jwt/auth{query}", f"Authorization: Basic {basic('me', OWN_TOKEN)}")
    assert (reply.status, sent.target.decode()) == (200, f"/jwt/auth{query}")


def test_who_may_only_read_pulls_images_and_pushes_none(
    recording: FakeGitLab, recorder: FakeGitLab, tmp_path: Path
) -> None:
    """As skopeo, docker and containerd ask for their tokens; a refusal is in the registry's words, for them to show."""
    config = {
        "upstream": {"url": recording.url},
        "identities": [{"id": "reader", "key": "issued"}],
        "credentials": [{"id": "sa", "token": "${env:SA}"}],
        "rules": [{"id": "reader", "for": ["reader"], "use": "sa", "allow": [{"access": "read"}]}],
    }
    gateway = GatewayProcess(config, tmp_path / "gateway", {"SA": BROKER_TOKEN})
    try:
        key = f"Authorization: Basic {basic('me', gateway.new_key('reader'))}"
        image, service = "scope=repository%3Agroup%2Fproject%2Fapp%3Apull", "service=container_registry"
        for query in (f"account=me&{image}&{service}", f"account=me&client_id=docker&offline_token=true&{service}"):
            recorder.script(response(200, b'{"token":"t"}', JSON))
            assert ask(gateway.port, f"/jwt/auth?{query}", key).status == 200
            assert recorder.requests[-1].values("Authorization") == [f"Basic {basic('oauth2', BROKER_TOKEN)}".encode()]
        for query in (f"account=me&{image}%2Cpush&{service}", f"{image}&{image}%2Cpush&{service}"):
            reply = ask(gateway.port, f"/jwt/auth?{query}", key)
            assert (reply.status, json.loads(reply.body)["errors"][0]["code"]) == (403, "DENIED")
    finally:
        gateway.stop()


@pytest.mark.parametrize("path", ["projects/42/packages/conan/v1", "projects/42/packages/conan/v2", "packages/conan/v1"])
def test_conan_logs_in_and_goes_on_with_the_callers_own_key(passage: Passage, recorded_keys: Any, path: str) -> None:
    target = f"/api/v4/{path}/users/authenticate"
    answer = response(200, BROKER_TOKEN.encode(), ("Content-Type", "text/plain"), ("Etag", '"of-the-token"'))
    reply, sent = passage(target, f"Authorization: Basic {basic('me', recorded_keys.bot)}", answer=answer)
    assert sent.values("Authorization") == [f"Basic {basic('oauth2', BROKER_TOKEN)}".encode()]
    assert (reply.status, reply.body) == (200, recorded_keys.bot.encode())
    _, sent = passage(f"/api/v4/{path}/conans/search", f"Authorization: Bearer {reply.body.decode()}")
    assert sent.values("Authorization") == [f"Basic {basic('oauth2', BROKER_TOKEN)}".encode()]
    reply, _ = passage(target, f"Authorization: Basic {basic('me', OWN_TOKEN)}", answer=answer)
    assert reply.body == BROKER_TOKEN.encode()  # as GitLab has it, made of the caller's own


def test_the_dependency_proxys_challenge_leads_back(passage: Passage) -> None:
    challenge = f'Bearer realm="{EXTERNAL_URL}/jwt/auth",service="dependency_proxy"'
    reply, _ = passage("/v2/", answer=response(401, b"", ("WWW-Authenticate", challenge)))
    assert (
        reply.value("WWW-Authenticate")
        == f'Bearer realm="http://127.0.0.1:{passage.gateway.port}/jwt/auth",service="dependency_proxy"'
    )


@pytest.fixture(scope="module")
def packages(recording: FakeGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that lets no anonymous callers in."""
    config = {
        "upstream": {"url": recording.url},
        "identities": [{"id": "bot", "key": "issued"}],
        "credentials": [{"id": "sa", "token": "${env:SA}"}],
        "rules": [{"id": "bot", "for": ["bot"], "use": "sa", "allow": [{"access": "write"}]}],
    }
    process = GatewayProcess(config, tmp_path_factory.mktemp("packages"), {"SA": BROKER_TOKEN})
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def packages_key(packages: GatewayProcess) -> str:
    return packages.new_key("bot")


def test_a_client_that_waits_for_a_challenge_gets_its_package(
    packages: GatewayProcess, packages_key: str, recorder: FakeGitLab
) -> None:
    """As Maven, Gradle and NuGet do: nothing first, Basic once they are asked."""
    recorder.script(response(200, b"<project/>"))
    address = f"{packages.url}/api/v4/projects/1/packages/maven/com/example/app/1.0/app-1.0.pom"
    command = ["curl", "--silent", "--anyauth", "--user", f"me:{packages_key}", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "<project/>"
    assert recorder.requests[-1].values("PRIVATE-TOKEN") == [BROKER_TOKEN.encode()]


def test_npm_logs_in_without_a_challenge_that_it_takes_for_a_wrong_password(packages: GatewayProcess) -> None:
    """``Incorrect or missing password … recover your password at https://www.npmjs.com/forgot``, it says of one."""
    target = "/api/v4/projects/1/packages/npm/-/user/org.couchdb.user:me"
    reply = ask(packages.port, target, "Content-Type: application/json", method="PUT", body=b"{}")
    assert (reply.status, reply.value("WWW-Authenticate")) == (401, None)
    assert json.loads(reply.body)["error"] == "401 Unauthorized"


def test_a_crate_is_published_where_no_row_says_so(
    packages: GatewayProcess, packages_key: str, recorder: FakeGitLab
) -> None:
    """Cargo's registry reads Bearer alone."""
    recorder.script(response(200, b"{}", JSON))
    target = "/api/v4/projects/1/packages/cargo/api/v1/crates/new"
    fields = (f"Authorization: Bearer {packages_key}", "Content-Type: application/octet-stream")
    reply = ask(packages.port, target, *fields, method="PUT", body=b"crate")
    assert reply.status == 200
    assert recorder.requests[-1].values("Authorization") == [b"Bearer " + BROKER_TOKEN.encode()]
    assert recorder.requests[-1].values("PRIVATE-TOKEN") == []


def test_an_image_of_a_virtual_registry_is_pulled_with_the_registrys_token(
    packages: GatewayProcess, recorder: FakeGitLab
) -> None:
    target = "/v2/virtual_registries/container/1/library/alpine/manifests/latest"
    for fields in ((), ("Authorization: Bearer eyJ.made-by.jwt-auth",)):
        recorder.script(response(401, b"", ("WWW-Authenticate", 'Bearer realm="https://elsewhere/jwt/auth"')))
        reply = ask(packages.port, target, *fields)
        assert (reply.status, reply.value("WWW-Authenticate")) == (401, 'Bearer realm="https://elsewhere/jwt/auth"')
        assert [f"Authorization: {value.decode()}" for value in recorder.requests[-1].values("Authorization")] == [*fields]


def test_curl_uploads_a_file_with_a_key(
    packages: GatewayProcess, packages_key: str, recorder: FakeGitLab, tmp_path: Path
) -> None:
    """It does not say what is in it: ``--upload-file``, as GitLab's own manual has it."""
    (tmp_path / "file").write_bytes(b"[section]\n" + os.urandom(200_000))
    recorder.script(response(201, b"{}", JSON))
    address = f"{packages.url}/api/v4/projects/1/packages/generic/p/1.0/file"
    command = ["curl", "--silent", "--fail", "--header", f"PRIVATE-TOKEN: {packages_key}", "--upload-file", "file", address]
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=True)
    assert recorder.requests[-1].body == (tmp_path / "file").read_bytes()


def test_npm_audits_with_a_key(packages: GatewayProcess, packages_key: str, recorder: FakeGitLab) -> None:
    """What it sends is coded."""
    recorder.script(response(200, b"{}", JSON))
    octets = gzip.compress(b'{"left-pad":["1.0.0"]}')
    reply = ask(
        packages.port,
        "/api/v4/projects/1/packages/npm/-/npm/v1/security/advisories/bulk",
        f"Authorization: Bearer {packages_key}",
        "Content-Type: application/json",
        "Content-Encoding: gzip",
        method="POST",
        body=octets,
    )
    assert (reply.status, recorder.requests[-1].body) == (200, octets)


def test_npm_tags_a_version_with_a_key(packages: GatewayProcess, packages_key: str, recorder: FakeGitLab) -> None:
    """The version is a JSON string, alone."""
    recorder.script(response(204))
    reply = ask(
        packages.port,
        "/api/v4/projects/1/packages/npm/-/package/@acme%2flib/dist-tags/next",
        f"authorization: Bearer {packages_key}",
        "content-type: application/json",
        "npm-command: dist-tag",
        method="PUT",
        body=b'"1.0.0"',
    )
    assert (reply.status, recorder.requests[-1].body) == (204, b'"1.0.0"')


def test_a_key_goes_up_as_each_format_reads_a_token(
    packages: GatewayProcess, packages_key: str, recorder: FakeGitLab
) -> None:
    """NuGet's and others' routes take a token with the name of its own user alone, RubyGems' without a scheme, a model's
    files as Bearer."""
    key, root = packages_key, "/api/v4/projects/1/packages"
    named = f"Basic {basic('sa-bot', BROKER_TOKEN)}"

    def sent(path: str, field: str, **options: Any) -> Any:
        recorder.script(response(200, b"{}", JSON))
        assert ask(packages.port, root + path, field, **options).status == 200
        return recorder.requests[-1]

    recorder.script(response(200, b'{"id":7,"username":"sa-bot"}', JSON))  # the gateway's own question, once
    received = sent("/nuget/query?q=x", f"Authorization: Basic {basic('me', key)}")
    assert received.values("Authorization") == [named.encode()]
    assert [request.target for request in recorder.requests].count(b"/api/v4/user") == 1
    for path, field, method in (
        ("/nuget/", f"X-NuGet-ApiKey: {key}", "PUT"),
        ("/debian/dists/stable/InRelease", f"Authorization: Basic {basic('me', key)}", "GET"),
        ("/rpm/repodata/repomd.xml", f"Authorization: Basic {basic('me', key)}", "GET"),
        ("/terraform/modules/vpc/aws/1.0.0", f"Authorization: Basic {basic('me', key)}", "GET"),
    ):
        received = sent(path, field, method=method)
        assert received.values("Authorization") == [named.encode()], path
        assert not received.values("X-NuGet-ApiKey")
    received = sent("/rubygems/gems/a-1.gem", f"Authorization: {key}")
    assert received.values("Authorization") == [BROKER_TOKEN.encode()]
    received = sent("/terraform/modules/vpc/aws/1.0.0/file", f"PRIVATE-TOKEN: {key}", method="PUT")
    assert (received.values("PRIVATE-TOKEN"), received.values("Authorization")) == ([BROKER_TOKEN.encode()], [])
    for method in ("PUT", "GET"):  # MLflow's client
        received = sent("/ml_models/1/files/MLmodel", f"Authorization: Bearer {key}", method=method)
        assert (received.values("PRIVATE-TOKEN"), received.values("Authorization")) == (
            [],
            [f"Bearer {BROKER_TOKEN}".encode()],
        )


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("/api/v4/projects/1/packages/rubygems/gems/a-1.gem", "Authorization: rubygems-key-as-it-is"),
        ("/api/v4/projects/1/packages/nuget/", "X-NuGet-ApiKey: a-deploy-token"),
        ("/api/v4/projects/1/packages/maven/a/b", "Deploy-Token: a-deploy-token"),
        ("/api/scim/v2/groups/g/Users", "Authorization: Bearer glsoat-0123456789"),
    ],
)
def test_odd_credentials_pass_as_they_came(passage: Passage, target: str, field: str) -> None:
    name, _, value = field.partition(": ")
    reply, sent = passage(target, field)
    assert reply.status == 200
    assert sent.values(name) == [value.encode()]


# GraphQL


@pytest.fixture(scope="module")
def graphql(recording: FakeGitLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(
        {
            "upstream": {"url": recording.url},
            "identities": [{"id": "reader", "key": "issued"}],
            "credentials": [{"id": "sa", "token": "${env:SA}"}],
            "rules": [{"id": "r", "for": ["reader"], "use": "sa", "allow": [{"access": "read", "surfaces": ["graphql"]}]}],
        },
        tmp_path_factory.mktemp("graphql"),
        {"SA": BROKER_TOKEN},
    )
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def graphql_key(graphql: GatewayProcess) -> str:
    return graphql.new_key("reader")


def document(gateway: GatewayProcess, key: str, body: Any) -> Reply:
    return ask(
        gateway.port,
        "/api/graphql",
        "Content-Type: application/json",
        method="POST",
        token=key,
        body=json.dumps(body).encode(),
    )


def test_a_reader_may_query_and_not_mutate(graphql: GatewayProcess, graphql_key: str, recorder: FakeGitLab) -> None:
    for asked in ({"query": "{ a }"}, [{"query": "{ a }"}, {"query": "query B { b }"}]):
        recorder.script(response(200, b'{"data":{}}', JSON))
        assert document(graphql, graphql_key, asked).status == 200
        assert json.loads(recorder.requests[-1].body) == asked
    for asked in ({"query": "mutation { a }"}, [{"query": "{ a }"}, {"query": "mutation { b }"}], {"query": "{"}):
        reply = document(graphql, graphql_key, asked)
        assert (reply.status, reply.value("X-Gateway-Error")) == (403, "forbidden")
        assert "errors" in json.loads(reply.body)


def test_an_upload_and_a_get_by_graphql(graphql: GatewayProcess, graphql_key: str, recorder: FakeGitLab) -> None:
    multipart = b'--x\r\nContent-Disposition: form-data; name="operations"\r\n\r\n{"query":"{ a }"}\r\n--x--\r\n'
    field = "Content-Type: multipart/form-data; boundary=x"
    reply = ask(graphql.port, "/api/graphql", field, method="POST", token=graphql_key, body=multipart)
    assert reply.status == 403
    recorder.script(response(200, b"{}", JSON))
    assert ask(graphql.port, "/api/graphql?query=%7Ba%7D", token=graphql_key).status == 200
    assert ask(graphql.port, "/api/graphql?query=mutation%7Ba%7D", token=graphql_key).status == 403


# Browsers


def test_a_preflight_passes_without_a_token(recording: FakeGitLab, tmp_path: Path) -> None:
    gateway = GatewayProcess({"upstream": {"url": recording.url}}, tmp_path / "gateway")
    try:
        recording.script(
            response(204, b"", ("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Methods", "DELETE"))
        )
        fields = ("Origin: https://app.example.com", "Access-Control-Request-Method: DELETE")
        reply = ask(gateway.port, "/api/v4/projects/1", *fields, method="OPTIONS")
        assert (reply.status, reply.value("Access-Control-Allow-Methods")) == (204, "DELETE")
        sent = recording.requests[-1]
        assert not {name.lower() for name, _ in sent.fields} & {b"authorization", b"private-token", b"cookie", b"job-token"}
        assert sent.values("Access-Control-Request-Method") == [b"DELETE"]

        refused = ask(gateway.port, "/api/v4/projects/1", "Origin: https://app.example.com")
        assert refused.status == 401
        assert refused.value("Access-Control-Allow-Origin") == "*"
        assert "Retry-After" in (refused.value("Access-Control-Expose-Headers") or "")
        assert ask(gateway.port, "/api/v4/projects/1", method="OPTIONS").status == 401
    finally:
        gateway.stop()
        recording.settle()


def test_a_browsers_session_passes_uncached_and_counted_apart(passage: Passage) -> None:
    fields = ("Cookie: _gitlab_session=0123456789abcdef; locale=de", "X-CSRF-Token: c5")
    answer = response(
        200, b"<html>", ("Set-Cookie", "_gitlab_session=fresh; HttpOnly"), ("X-CSRF-Token", "next"), ("ETag", 'W/"1"')
    )
    for _ in range(2):
        reply, sent = passage("/dashboard", *fields, answer=answer)
        assert sent.values("Cookie") == [b"_gitlab_session=0123456789abcdef; locale=de"]
        assert sent.values("X-CSRF-Token") == [b"c5"]
        assert (reply.value("Set-Cookie"), reply.value("X-CSRF-Token")) == ("_gitlab_session=fresh; HttpOnly", "next")
    assert 'gitlab_gateway_principals_total{kind="passthrough"}' in passage.gateway.metrics()


# Places


def test_a_relative_url_install_end_to_end(recording: FakeGitLab, tmp_path: Path) -> None:
    inside = "https://git.internal/gitlab"
    gateway = GatewayProcess(
        {
            "upstream": {"url": f"{recording.url}/gitlab", "external_url": inside, "rewrite_json": True},
            "listen": {
                "address": "127.0.0.1:0",
                "admin": "127.0.0.1:0",
                "public_url": "http://127.0.0.1/gitlab",
            },
            "identities": [{"id": "anyone", "anonymous": True}],
        },
        tmp_path / "gateway",
    )
    try:
        project = {
            "web_url": f"{inside}/a/b",
            "_links": {"self": f"{inside}/api/v4/projects/1"},
            "description": f"{inside}/a",
        }
        link = f'<{inside}/api/v4/projects?page=2>; rel="next"'
        recording.script(response(200, json.dumps(project).encode(), JSON, ("Link", link), ("ETag", 'W/"a"')))
        reply = ask(gateway.port, "/gitlab/api/v4/projects/1", "Accept-Encoding: gzip")
        assert reply.status == 200
        assert json.loads(reply.body) == {
            "web_url": "http://127.0.0.1/gitlab/a/b",
            "_links": {"self": "http://127.0.0.1/gitlab/api/v4/projects/1"},
            "description": f"{inside}/a",
        }
        assert reply.value("Link") == '<http://127.0.0.1/gitlab/api/v4/projects?page=2>; rel="next"'
        assert recording.requests[-1].target == b"/gitlab/api/v4/projects/1"
        assert recording.requests[-1].values("Accept-Encoding") == [b"identity"]
        assert ask(gateway.port, "/gitlab/api/v4/internal/check").status == 404
    finally:
        gateway.stop()
        recording.settle()

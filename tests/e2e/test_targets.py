"""Targets: what a client asks for is what GitLab is asked, octet for octet."""

from __future__ import annotations

import json

import pytest

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import EXTERNAL_URL, OWN_TOKEN, Passage
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import ask, curl
from tests.fakes.gitlab import FakeGitLab, response


def test_r1_base_url_reaches_upstream_as_sent(passage: Passage) -> None:
    reply, received = passage("/api/v4/projects", token=OWN_TOKEN)
    assert reply.status == 200
    assert received.line == b"GET /api/v4/projects HTTP/1.1"


def test_r2_v3_gets_gitlabs_410_and_v5_its_404(gateway: GatewayProcess) -> None:
    gone = ask(gateway.port, "/api/v3/projects", token=TOKENS.ada)
    assert (gone.status, gone.body) == (410, b'{"error":"API V3 is no longer supported. Use API V4 instead."}')
    unknown = ask(gateway.port, "/api/v5/projects", token=TOKENS.ada)
    assert (unknown.status, unknown.body) == (404, b'{"error":"404 Not Found"}')
    assert "x-gateway-error" not in gone.names | unknown.names


def test_r3_json_suffix_is_forwarded_and_has_an_entry_of_its_own(gateway: GatewayProcess, passage: Passage) -> None:
    for target in ("/api/v4/projects.json?r3", "/api/v4/projects?r3"):
        reply, received = passage(target, token=OWN_TOKEN, answer=response(200, b"{}", ("ETag", f'"{len(target)}"')))
        assert received.target == target.encode()
        assert reply.status == 200
    # The policy sees one operation, not an unknown route.
    assert passage.gateway.audited(reply.request_id)["operation"] == "GET /api/v4/projects"
    suffixed = ask(gateway.port, "/api/v4/projects.json?per_page=1", token=TOKENS.ada)
    assert gateway.audited(suffixed.request_id)["operation"] == "GET /api/v4/projects"


def test_r28_offset_pagination_keeps_parameters_and_order(passage: Passage) -> None:
    target = "/api/v4/projects?per_page=1000&page=2&order_by=id&sort=asc"
    assert passage(target)[1].target == target.encode()


def test_r32_keyset_cursor_keeps_its_octets(passage: Passage) -> None:
    target = "/api/v4/projects?pagination=keyset&order_by=id&sort=asc&id_after=42&cursor=eyJpZCI6IjQyIn0%3D&x=eyJh=="
    reply, received = passage(target, answer=response(200, b"[]", ("Links", f'<{EXTERNAL_URL}/api/v4/x>; rel="next"')))
    assert received.target == target.encode()
    assert reply.value("Link") is None
    assert reply.value("Links") is not None


def test_r35_query_with_per_page_alone(gateway: GatewayProcess) -> None:
    assert len(json.loads(ask(gateway.port, "/api/v4/projects?per_page=3", token=TOKENS.ada).body)) == 3


def test_r36_number_and_encoded_path_are_one_operation(gateway: GatewayProcess) -> None:
    operations = set()
    for project in ("1", "platform%2Fapi", "platform%2fapi", "PLATFORM%2Fapi"):
        reply = ask(gateway.port, f"/api/v4/projects/{project}", token=TOKENS.ada)
        assert json.loads(reply.body)["id"] == 1
        operations.add(gateway.audited(reply.request_id)["operation"])
    assert operations == {"GET /api/v4/projects/:id"}


@pytest.mark.parametrize(
    "project", ["diaspora%2Fdiaspora", "diaspora%2fdiaspora", "a%2Fb%2fc%2Fd%2Fe", "a%252Fb", "%64iaspora%2Fdiaspora"]
)
def test_r37_namespaced_path_reaches_upstream_as_sent(passage: Passage, project: str) -> None:
    target = f"/api/v4/projects/{project}"
    assert passage(target, token=OWN_TOKEN)[1].target == target.encode()
    recorder = passage.recorder
    recorder.script(response(200, b"{}"))
    assert curl("--header", f"PRIVATE-TOKEN: {OWN_TOKEN}", passage.gateway.url + target + "?c").status == 200
    assert recorder.requests[-1].target == f"{target}?c".encode()


def test_r38_decoded_path_gets_gitlabs_404(gateway: GatewayProcess, demo: DemoGitLab) -> None:
    reply = ask(gateway.port, "/api/v4/projects/platform/api", token=TOKENS.ada)
    assert (reply.status, reply.body) == (404, b'{"error":"404 Not Found"}')
    assert "x-gateway-error" not in reply.names
    assert demo.journal[-1].target == b"/api/v4/projects/platform/api"


@pytest.mark.parametrize(
    "name",
    [
        "src%2FREADME.md", "my%2Fbranch", "my%2Ftag", "a%2Eb", "a%20b", "a%2Bb", "a+b", "100%25", "fix%23123", "what%3F",
        "%5Bx%5D", "a%3Bb", "a;b", "a%40b", "a@b", "a%3Ab", "%C3%BCber%20uns", "%E6%97%A5%E6%9C%AC", "trailing.",
        "%2Ehidden", ".gitlab-ci.yml", "...", "a'b", "a~b", "a%7Eb", "(a)!*,$&=",
    ],
)  # fmt: skip
def test_r39_names_survive(passage: Passage, name: str) -> None:
    for target in (
        f"/api/v4/projects/1/repository/files/{name}?ref={name}",
        f"/api/v4/projects/a%2Fb/repository/branches/{name}",
        f"/api/v4/projects/1/repository/tags/{name}",
        f"/api/v4/projects/1/repository/files/{name}/raw",
    ):
        assert passage(target, token=OWN_TOKEN)[1].target == target.encode()


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_r40_query_as_payload_has_an_empty_body(passage: Passage, method: str) -> None:
    target = "/api/v4/projects?name=a%20b&description=c+d"
    _, received = passage(target, method=method, body=b"", token=OWN_TOKEN, answer=response(201, b"{}"))
    assert (received.target, received.body) == (target.encode(), b"")
    assert received.values("Content-Length") == [b"0"]


@pytest.mark.parametrize(
    "query",
    [
        "permissions[project_access]=null", "permissions%5Bproject_access%5D=null",
    ],
)  # fmt: skip
def test_r44_nested_names_stay_as_sent(passage: Passage, query: str) -> None:
    _through_curl(passage, f"/api/v4/groups/1?{query}")


def test_r45_arrays_keep_repetition_and_order(passage: Passage) -> None:
    _through_curl(passage, "/api/v4/x?import_sources[]=github&import_sources[]=bitbucket&skip_users[]=2&skip_users[]=1")


def test_r46_hashes_stay_as_sent(passage: Passage) -> None:
    _through_curl(passage, "/api/v4/x?path=a&override_params[visibility]=private&override_params%5Bname%5D=b")


def test_r47_arrays_of_hashes_keep_their_order(passage: Passage) -> None:
    _through_curl(
        passage,
        "/api/v4/projects/1/pipeline?ref=main&variables[][key]=A&variables[][value]=1&variables[][key]=B&variables[][value]=2"
        "&variables[0][key]=C",
    )


def _through_curl(passage: Passage, target: str) -> None:
    passage.recorder.script(response(200, b"{}"))
    reply = curl("--globoff", "--header", f"PRIVATE-TOKEN: {OWN_TOKEN}", passage.gateway.url + target)
    assert reply.status == 200
    assert passage.recorder.requests[-1].target == target.encode()


def test_r48_target_of_16_kib_passes_and_longer_ones_are_414(passage: Passage) -> None:
    longest = "/api/v4/projects?search=" + "a" * (16 * 1024 - 24)
    assert len(longest) == 16 * 1024
    reply, received = passage(longest, token=OWN_TOKEN)
    assert reply.status == 200
    assert received.target == longest.encode()
    for more in ("b", "b" * 5000, "b" * 100_000):
        refused = passage.refused(longest + more, token=OWN_TOKEN)
        assert refused.status == 414
        assert refused.value("X-Gateway-Error") == "target_too_long"
        assert b"aaaa" not in refused.body


@pytest.mark.parametrize(
    "query", ["since=2026-01-01T00:00:00%2B02:00", "since=2026-01-01T00:00:00+02:00", "q=a%20b+c", "q=%2b%2B+"]
)
def test_r52_plus_stays_what_it_was(passage: Passage, query: str) -> None:
    target = f"/api/v4/projects/1/repository/commits?{query}"
    assert passage(target, token=OWN_TOKEN)[1].target == target.encode()


def test_r1_prefix_is_mapped_exactly(recorder: FakeGitLab, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A relative-URL install: clients use GitLab's prefix, Link agrees, and what lies outside of it is not GitLab's."""
    url = f"{recorder.url}/gitlab"
    config = {"upstream": {"url": url}, "identities": [{"id": "anyone", "anonymous": True}]}
    process = GatewayProcess(config, tmp_path_factory.mktemp("prefix"))
    try:
        link = f'<{url}/api/v4/projects?page=2>; rel="next"'
        recorder.script(response(200, b"[]", ("Link", link), ("Content-Type", "application/json")))
        reply = ask(process.port, "/gitlab/api/v4/projects?page=1")
        assert recorder.requests[-1].target == b"/gitlab/api/v4/projects?page=1"
        assert reply.value("Link") == f'<{process.url}/gitlab/api/v4/projects?page=2>; rel="next"'
        assert process.audited(reply.request_id)["operation"] == "GET /api/v4/projects"
        moved = response(302, b"", ("Location", f"{url}/api/v4/projects/1"))
        recorder.script(moved)
        assert ask(process.port, "/gitlab/api/v4/p").value("Location") == f"{process.url}/gitlab/api/v4/projects/1"
        for target in (
            "/api/v4/projects",
            "/gitlabs/api/v4/projects",
            "/GitLab/api/v4/projects",
            "/gitlab%2Fapi/v4/projects",
        ):
            outside = ask(process.port, target)
            assert outside.status == 404, target
            assert "x-gateway-error" in outside.names
    finally:
        assert process.stop() == 0

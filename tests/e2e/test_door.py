"""Admission: what never gets in, what is answered without GitLab, and what is written down about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gateway import routes
from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import OWN_TOKEN, Passage
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, ask, raw
from tests.fakes.gitlab import Answer, Then, When, response


def test_r49_iid_and_id_are_not_confused(gateway: GatewayProcess) -> None:
    operations = {}
    for target in ("/api/v4/projects/1/issues/2", "/api/v4/issues/2"):
        reply = ask(gateway.port, target, token=TOKENS.ada)
        operations[target] = gateway.audited(reply.request_id)["operation"]
    assert operations == {
        "/api/v4/projects/1/issues/2": "GET /api/v4/projects/:id/issues/:issue_iid",
        "/api/v4/issues/2": "GET /api/v4/issues/:id",
    }


def test_r58_openapi_paths_pass_and_the_catalogues_version_is_told(passage: Passage, gateway: GatewayProcess) -> None:
    for target in ("/api/v4/openapi.json", "/help/api/openapi", "/api/openapi/v3.yaml"):
        assert passage(target, token=OWN_TOKEN)[1].target == target.encode()
    samples = [line for line in gateway.metrics().splitlines() if line.startswith("gitlab_gateway_build_info{")]
    assert re.search(r'catalogue="\d+\.\d+', samples[0])


def test_r59_unknown_routes_parameters_and_fields_pass(passage: Passage) -> None:
    target = "/api/v4/projects/1/brand_new_things/7?new_parameter=1"
    reply, received = passage(target, "X-GitLab-New-Field: 1", method="POST", body=b"{}", token=OWN_TOKEN)
    assert received.target == target.encode()
    assert received.values("X-GitLab-New-Field") == [b"1"]
    assert reply.status == 200
    assert passage.gateway.audited(reply.request_id)["operation"] == "other"


def test_r59_an_unknown_route_is_a_write_for_brokered_callers(gateway: GatewayProcess, reader_key: str) -> None:
    reply = ask(gateway.port, "/api/v4/projects/platform%2Fapi/brand_new_things", token=reader_key)
    assert (reply.status, reply.value("X-Gateway-Error")) == (403, "forbidden")


INTERNAL = [
    "/api/v4/internal/allowed",
    "/api/v4/%69nternal/allowed",
    "/api/v4/%69%6e%74%65%72%6e%61%6c/allowed",
    "/api/%764/internal/check",
    "/api/v4/internal/",
    "/api/v4/geo/status",
    "/-/metrics",
    "/-/%6detrics",
]


@pytest.mark.parametrize("target", INTERNAL)
def test_x2_internal_routes_are_404(passage: Passage, target: str) -> None:
    for method in ("GET", "POST"):
        reply = passage.refused(target, method=method, body=b"" if method == "POST" else None, token=OWN_TOKEN)
        assert (reply.status, reply.body) == (404, b'{"error":"404 Not Found"}')
        assert reply.value("X-Gateway-Error") == "blocked_route"


@pytest.mark.parametrize(
    "target",
    [
        "//api/v4/internal/allowed",
        "/api/v4//internal/allowed",
        "/api/v4/./internal/allowed",
        "/api/v4/x/../internal/allowed",
        "/api/v4/%2e%2e/v4/internal/allowed",
        "/api/v4/projects%2F..%2Finternal%2Fallowed",
    ],
)
def test_x2_detours_to_internal_routes_are_refused(passage: Passage, target: str) -> None:
    assert passage.refused(target, token=OWN_TOKEN).status in {400, 404}


def test_x2_the_gateways_own_port_serves_no_admin_routes(gateway: GatewayProcess) -> None:
    for target in ("/metrics", "/readyz", "/livez", "/-/config"):
        assert ask(gateway.port, target, token=TOKENS.ada).status == 404


def test_x15_preflight_passes_without_a_token(gateway: GatewayProcess) -> None:
    reply = ask(
        gateway.port,
        "/api/v4/projects/platform%2Fapi",
        "Origin: https://app.example.com",
        "Access-Control-Request-Method: GET",
        "Access-Control-Request-Headers: private-token",
        method="OPTIONS",
    )
    assert reply.status == 200
    assert reply.value("Access-Control-Allow-Origin") == "*"


def test_x15_refusals_can_be_read_across_origins(gateway: GatewayProcess) -> None:
    reply = ask(gateway.port, "/api/v4/projects", "Origin: https://app.example.com", token="glpat-bad")
    assert reply.status == 401
    assert reply.value("Access-Control-Allow-Origin") == "*"
    exposed = (reply.value("Access-Control-Expose-Headers") or "").lower()
    assert "ratelimit-remaining" in exposed
    assert "retry-after" in exposed


BAD_HEADS = {
    "length twice": b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "lengths differ": b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
    "length and chunks": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "coding unknown": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "coding disguised": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "length signed": b"Content-Length: +1\r\n\r\nx",
    "length a list": b"Content-Length: 1, 1\r\n\r\nx",
    "folded": b"X-A: 1\r\n 2\r\n\r\n",
    "blank before colon": b"X-A : 1\r\n\r\n",
    "no colon": b"X-A\r\n\r\n",
    "empty name": b": 1\r\n\r\n",
    "NUL in value": b"X-A: 1\x002\r\n\r\n",
    "host twice": b"Host: y\r\n\r\n",
    "bare CR": b"X-A: 1\rX-B: 2\r\n\r\n",
}


@pytest.mark.parametrize("rest", BAD_HEADS.values(), ids=BAD_HEADS)
def test_x16_ambiguous_messages_are_400(passage: Passage, rest: bytes) -> None:
    reply = raw(passage.gateway.port, b"POST /api/v4/projects HTTP/1.1\r\nHost: x\r\n" + rest)
    assert reply.status == 400
    assert reply.value("X-Gateway-Error") is not None
    assert reply.value("Connection") == "close"


def test_x16_a_body_is_never_the_next_request(passage: Passage) -> None:
    with Peer(passage.gateway.port) as peer:
        passage.recorder.script(response(200, b"1"), response(200, b"2"))
        peer.send(
            b"POST /api/v4/markdown HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: y\r\n"
            b"GET /api/v4/projects HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert [peer.read_reply().body for _ in range(2)] == [b"1", b"2"]
    assert [one.target for one in passage.recorder.requests] == [b"/api/v4/markdown", b"/api/v4/projects"]


def test_x19_only_reading_is_retried_and_only_on_a_connection_that_was_kept(passage: Passage) -> None:
    recorder = passage.recorder
    passage("/api/v4/projects?x19-warm")
    # A kept connection that ends before any octet of an answer: GET goes up again, once.
    recorder.script(Answer(then=Then.CLOSE), response(200, b"again"))
    assert ask(passage.gateway.port, "/api/v4/projects?x19").body == b"again"
    for method in ("POST", "PUT", "DELETE"):
        passage("/api/v4/projects?x19-warm")
        reply, _ = passage("/api/v4/projects/1", method=method, body=b"", answer=Answer(then=Then.CLOSE))
        assert reply.status == 502, method
    # Part of an answer: never again.
    passage("/api/v4/projects?x19-warm")
    before = len(recorder.requests)
    assert (
        passage("/api/v4/projects?x19-part", answer=Answer(b"HTTP/1.1 200 OK\r\nContent-", then=Then.CLOSE))[0].status
        == 502
    )
    assert len(recorder.requests) == before + 1


def test_x22_metrics_have_templates_for_labels(gateway: GatewayProcess) -> None:
    for target in ("/api/v4/projects/platform%2Fapi/issues/3", "/api/v4/x22/unknown-route-x22"):
        ask(gateway.port, target, token=TOKENS.ada)
    exposition = gateway.metrics()
    assert '"GET /api/v4/projects/:id/issues/:issue_iid"' in exposition
    assert '"other"' in exposition
    assert "x22" not in exposition
    assert "platform" not in exposition


def test_an_early_answer_to_an_unread_body_is_whole(passage: Passage) -> None:
    """GitLab may answer before it has read the body: the answer passes, the connection ends."""
    passage.recorder.script(
        Answer(
            b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig", then=Then.CLOSE, when=When.HEAD
        )
    )
    reply = ask(
        passage.gateway.port, "/api/v4/projects/1/uploads", "Content-Type: application/octet-stream", method="POST",
        body=b"x" * 4096, token=OWN_TOKEN,
    )  # fmt: skip
    assert (reply.status, reply.body) == (413, b"big")


def test_the_demos_journal_shows_that_nobody_goes_round(gateway: GatewayProcess, demo: DemoGitLab) -> None:
    reply = ask(gateway.port, "/api/v4/version", token=TOKENS.ada)
    assert json.loads(reply.body)["version"]
    assert demo.journal[-1].values("via") == [b"1.1 gateway"]


def test_r60_every_resource_of_the_list_is_in_the_catalogue() -> None:
    listed = (Path(__file__).parent.parent / "data" / "resources-13.0.txt").read_text("ascii").splitlines()[1:]
    templates = " ".join(operation.name for operation in routes.catalogue().operations())
    assert [resource for resource in listed if resource not in templates] == []

"""A job's token for a short-lived credential, through two real gateways on one Redis: given, used, listed, revoked."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gateway.core.gateway_key import is_well_formed
from gateway.demo.gitlab import DemoGitLab
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.test_lifecycle import REVOKED_WITHIN_S, until
from tests.e2e.wire import Reply, ask, stranger
from tests.fakes.issuer import FakeIssuer

ADMIN_KEY = "an-admin-key-for-the-exchange"
PATH = "/-/gateway/token"
FORM = "Content-Type: application/x-www-form-urlencoded"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"

Pair = tuple[GatewayProcess, GatewayProcess]


@pytest.fixture(scope="module")
def issuer(upstreams: LoopThread) -> Iterator[FakeIssuer]:
    fake = FakeIssuer()
    upstreams.run(fake.start())
    yield fake
    upstreams.run(fake.close())


@pytest.fixture(scope="module")
def brokers(
    demo: DemoGitLab, issuer: FakeIssuer, session_redis: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    config = shared_config(demo.url)
    config["admin"] = {"keys": [{"id": "ops", "sha256": hashlib.sha256(ADMIN_KEY.encode()).hexdigest()}]}
    oidc = {"issuer": issuer.url, "audience": "gateway", "claims": {"job_project_id": "1"}, "preset": "gitlab_ci"}
    config["identities"].append({"id": "ci", "oidc": oidc, "session": {"ttl": "5m"}})
    config["rules"].append({"id": "ci", "for": ["ci"], "use": "ada", "allow": [{"access": "read", "projects": ["1"]}]})
    secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": session_redis.url}
    directory = tmp_path_factory.mktemp("exchange")
    with ExitStack() as started:
        processes = []
        for name in ("first", "second"):
            processes.append(GatewayProcess(config, directory / name, secrets))
            started.callback(processes[-1].stop)
        yield processes[0], processes[1]


def job(issuer: FakeIssuer, **change: Any) -> str:
    now = time.time()
    claims = {
        "iss": issuer.url,
        "aud": "gateway",
        "exp": now + 300,
        "iat": now,
        "sub": "project_path:platform/api",
        "job_id": "81",
    }
    return issuer.sign({**claims, "job_project_id": "1", "ref_protected": "true", **change})


def exchange(gateway: GatewayProcess, token: str, **more: str) -> Reply:
    asked = {"grant_type": GRANT, "subject_token": token, "subject_token_type": JWT, **more}
    body = urllib.parse.urlencode(asked).encode()
    return ask(gateway.port, PATH, FORM, method="POST", body=body)


def admin(gateway: GatewayProcess, method: str, path: str) -> Reply:
    return ask(gateway.admin_port, path, f"Authorization: Bearer {ADMIN_KEY}", method=method)


def test_a_job_exchanges_its_token_and_reads_its_project_at_another_gateway(brokers: Pair, issuer: FakeIssuer) -> None:
    first, second = brokers
    token = job(issuer)
    reply = exchange(first, token)
    assert reply.status == 200, reply.body
    given = json.loads(reply.body)
    assert (given["token_type"], given["expires_in"]) == ("Bearer", 300)
    assert reply.value("cache-control") == "no-store"
    assert is_well_formed(given["access_token"])
    for field in ("Authorization: Bearer {}", "PRIVATE-TOKEN: {}"):
        used = ask(second.port, "/api/v4/projects/1", field.format(given["access_token"]))
        assert used.status == 200
        line = second.audited(used.request_id)
        assert (line["identity"], line["principal_kind"], line["rule"]) == ("ci", "oidc", "ci")
        assert f"id={line['credential_id']}&" in first.audited(reply.request_id)["target"]
        assert line["credential_subject"] == "project_path:platform/api job_id=81"
        refused = ask(second.port, "/api/v4/projects/2", field.format(given["access_token"]))
        assert refused.status in {403, 404}
    line = first.audited(reply.request_id)
    assert (line["operation"], line["identity"], line["status"]) == ("token exchange", "ci", 200)
    assert "expires_in=300" in line["target"]
    assert line["credential_subject"] == "project_path:platform/api job_id=81"
    for process in brokers:
        written = "".join([*process.audit.all, *process.log.all])
        assert token not in written
        assert given["access_token"] not in written


def test_what_was_given_is_listed_and_its_revocation_reaches_the_other_gateway(brokers: Pair, issuer: FakeIssuer) -> None:
    first, second = brokers
    reply = exchange(first, job(issuer), expires_in="60")
    key_id = first.audited(reply.request_id)["target"].partition("?id=")[2].partition("&")[0]
    token = json.loads(reply.body)["access_token"]
    source = stranger()
    for process in brokers:
        assert ask(process.port, "/api/v4/projects/1", token=token).status == 200
    shown = json.loads(admin(second, "GET", f"/-/keys/{key_id}").body)
    assert (shown["identity"], shown["origin"], shown["state"]) == ("ci", "exchanged", "live")
    assert shown["note"] == "project_path:platform/api job_id=81"
    assert admin(first, "DELETE", f"/-/keys/{key_id}").status == 204
    assert ask(first.port, "/api/v4/projects/1", token=token, source=source).status == 401
    until(lambda: ask(second.port, "/api/v4/projects/1", token=token, source=source).status == 401, REVOKED_WITHIN_S)


def test_what_is_no_jobs_token_gets_the_one_answer(brokers: Pair, issuer: FakeIssuer) -> None:
    first, _ = brokers
    given = json.loads(exchange(first, job(issuer)).body)["access_token"]
    others = [
        given,
        job(issuer, job_project_id="666", project_id="1"),
        job(issuer, exp=time.time() - 60),
        job(issuer, aud="vault"),
        "glpat-nobodys-token-000",
    ]
    replies = [exchange(first, token) for token in others]
    assert {(reply.status, reply.body) for reply in replies} == {
        (400, b'{"error":"invalid_request","error_description":"the subject token is not accepted"}')
    }
    for reply, token in zip(replies, others, strict=True):
        assert first.audited(reply.request_id)["code"] == "unauthenticated"
        assert token not in "".join(first.audit.all)


def test_without_workloads_there_is_no_such_endpoint(gateway: GatewayProcess) -> None:
    reply = ask(gateway.port, PATH, FORM, method="POST", body=b"grant_type=x")
    assert b"error_description" not in reply.body
    assert gateway.audited(reply.request_id)["operation"] != "token exchange"

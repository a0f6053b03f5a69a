"""CI jobs and their tokens, through the real process: an issuer in-tree, GitLab's demo, and nobody's GitLab token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.demo.gitlab import DemoGitLab
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import ask
from tests.fakes.issuer import FakeIssuer


@pytest.fixture(scope="module")
def issuer(upstreams: LoopThread) -> Iterator[FakeIssuer]:
    fake = FakeIssuer()
    upstreams.run(fake.start())
    yield fake
    upstreams.run(fake.close())


@pytest.fixture(scope="module")
def broker(demo: DemoGitLab, issuer: FakeIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    config = demo_config(demo.url)
    claims = {"job_project_id": "1", "ref_protected": "true"}
    config["identities"].append({"id": "ci", "oidc": {"issuer": issuer.url, "audience": "gateway", "claims": claims}})
    rule = {"id": "ci", "for": ["ci"], "use": "ada", "allow": [{"access": "read", "projects": ["1"]}]}
    config["rules"] += [rule, {"id": "no-issues", "for": ["ci"], "deny": [{"routes": ["/api/v4/projects/:id/issues"]}]}]
    process = GatewayProcess(config, tmp_path_factory.mktemp("broker"), DEMO_SECRETS)
    yield process
    assert process.stop() == 0


def job(issuer: FakeIssuer, **change: Any) -> str:
    now = time.time()
    claims = {
        "iss": issuer.url,
        "aud": "gateway",
        "exp": now + 300,
        "nbf": now - 5,
        "iat": now,
        "sub": "project_path:platform/api:ref_type:branch:ref:main",
        "job_project_id": "1",
        "ref_protected": "true",
    }
    return "Authorization: Bearer " + issuer.sign({**claims, **change})


def test_a_job_reads_its_own_project_and_is_refused_another(broker: GatewayProcess, issuer: FakeIssuer) -> None:
    own = ask(broker.port, "/api/v4/projects/1", job(issuer))
    assert own.status == 200
    line = broker.audited(own.request_id)
    assert (line["identity"], line["principal_kind"], line["rule"]) == ("ci", "oidc", "ci")
    assert ask(broker.port, "/api/v4/projects/2", job(issuer)).status in {403, 404}
    assert ask(broker.port, "/api/v4/user", job(issuer)).status == 403


def test_a_forks_job_is_refused(broker: GatewayProcess, issuer: FakeIssuer) -> None:
    fork = ask(broker.port, "/api/v4/projects/1", job(issuer, job_project_id="666", project_id="1"))
    assert fork.status == 401
    why = broker.audited(fork.request_id)["detail"]
    assert why == "a workload token: it fits no identity; nearest is ci, but for job_project_id"
    assert b"nearest" not in fork.body
    assert ask(broker.port, "/api/v4/projects/1", job(issuer, ref_protected="false")).status == 401
    assert ask(broker.port, "/api/v4/projects/1", job(issuer, exp=time.time() - 60)).status == 401


def test_the_audit_names_the_rule_that_denied(broker: GatewayProcess, issuer: FakeIssuer) -> None:
    refused = ask(broker.port, "/api/v4/projects/1/issues", job(issuer))
    assert refused.status == 403
    assert broker.audited(refused.request_id)["rule"] == "no-issues"
    assert b"no-issues" not in refused.body

"""GitLab is in maintenance, or gone: readers are served what is known, and writers learn when to come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import EXTERNAL_URL, OWN_TOKEN, _unknown_token, _whose_token
from tests.e2e.load import until
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.wire import Reply, ask
from tests.fakes.gitlab import FakeGitLab, response

READ = "/api/v4/projects/7"
WRITE = "/api/v4/projects/7/issues"
JSON = ("Content-Type", "application/json")


@pytest.fixture
def gitlab(upstreams: LoopThread) -> Iterator[FakeGitLab]:
    gitlab = FakeGitLab()
    gitlab.stand(b"/api/v4/personal_access_tokens/self", _whose_token)
    gitlab.stand(b"/oauth/token/info", _unknown_token)
    gitlab.stand(b"/api/v4/job", _unknown_token)
    upstreams.run(gitlab.__aenter__())
    yield gitlab
    upstreams.run(gitlab.__aexit__(None, None, None))


@pytest.fixture
def gateway(gitlab: FakeGitLab, tmp_path: Any) -> Iterator[GatewayProcess]:
    process = GatewayProcess(
        {
            "upstream": {
                "url": gitlab.url,
                "external_url": EXTERNAL_URL,
                "breaker": {"min_requests": 2, "error_ratio": 0.5, "window": "60s", "open_for": "60s"},
            },
            "identities": [{"id": "people", "gitlab_token": True, "verify": {"ttl": "1h"}}],
            "cache": {"stale_if_error": "10m"},
        },
        tmp_path,
    )
    yield process
    assert process.stop() == 0


def read(gateway: GatewayProcess) -> Reply:
    return ask(gateway.port, READ, token=OWN_TOKEN)


def write(gateway: GatewayProcess) -> Reply:
    return ask(gateway.port, WRITE, method="POST", body=b"", token=OWN_TOKEN)


def is_stale(reply: Reply) -> bool:
    said = reply.value("Cache-Status") or ""
    return (reply.status, reply.body) == (200, b'{"id":7}') and "detail=stale-if-error" in said.replace('"', "")


def test_maintenance(gateway: GatewayProcess, gitlab: FakeGitLab) -> None:
    gitlab.script(response(200, b'{"id":7}', JSON, ("ETag", 'W/"7"')))
    assert read(gateway).status == 200
    page = b'{"message":"GitLab is in maintenance"}'
    gitlab.script(response(503, page, JSON))
    reply = read(gateway)
    assert is_stale(reply), (reply.fields, gateway.audit.all[-3:])
    gitlab.script(response(503, page, JSON))
    refused = write(gateway)
    assert (refused.status, refused.body, refused.value("Retry-After")) == (503, page, "10")
    assert refused.value("X-Gateway-Error") is None, "GitLab's own answer"
    gitlab.script(response(503, page, JSON, ("Retry-After", "60")))
    assert write(gateway).value("Retry-After") == "60"


def test_gone(gateway: GatewayProcess, gitlab: FakeGitLab, upstreams: LoopThread) -> None:
    gitlab.script(response(200, b'{"id":7}', JSON, ("ETag", 'W/"7"')))
    assert read(gateway).status == 200
    upstreams.run(gitlab.__aexit__(None, None, None))
    reply = read(gateway)
    assert is_stale(reply), (reply.fields, gateway.audit.all[-3:])
    until(lambda: write(gateway).status == 503, "the breaker is open")
    refused = write(gateway)
    assert (refused.status, refused.value("X-Gateway-Error")) == (503, "upstream_breaker_open")
    assert int(refused.value("Retry-After") or 0) >= 1
    reply = read(gateway)
    assert is_stale(reply), (reply.fields, gateway.audit.all[-3:])

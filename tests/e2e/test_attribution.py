"""From a caller to GitLab's logs and back: who asked, as whom, and which line of the audit it is."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import BROKER_TOKEN, EXTERNAL_URL, SUDO_TOKEN
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import ask
from tests.fakes.gitlab import FakeGitLab, response


def test_gitlab_and_the_audit_tell_of_the_same_request(recording: FakeGitLab, tmp_path: Path) -> None:
    config = {
        "upstream": {
            "url": recording.url,
            "external_url": EXTERNAL_URL,
            "attribution": {"header": "X-Gateway-Caller", "user_agent": True},
        },
        "identities": [{"id": "impersonator", "team": "platform", "key": "issued"}],
        "credentials": [{"id": "sa", "token": "${env:SA}"}, {"id": "root", "token": "${env:ROOT}", "sudo": True}],
        "rules": [
            {"id": "as-bob", "for": ["impersonator"], "use": "root", "allow": [{"access": "write"}], "sudo": ["bob"]}
        ],
    }
    recording.settle()
    gateway = GatewayProcess(config, tmp_path, {"SA": BROKER_TOKEN, "ROOT": SUDO_TOKEN})
    try:
        key = gateway.new_key("impersonator")
        recording.script(response(200, b"[]", ("Content-Type", "application/json"), ("X-Request-Id", "01HXGITLAB")))
        reply = ask(
            gateway.port,
            "/api/v4/projects/1/issues",
            "Sudo: bob",
            "User-Agent: curl/8",
            "X-Gateway-Caller: root",
            "x-gateway-caller: root",
            "X_Gateway_Caller: root",
            token=key,
        )
        assert reply.status == 200
        received = recording.requests[-1]
        assert received.values("X-Gateway-Caller") == [b"impersonator"]
        assert received.values("User-Agent") == [b"curl/8 gitlab-gateway (impersonator)"]
        assert received.values("PRIVATE-TOKEN") == [SUDO_TOKEN.encode()]
        assert received.values("Sudo") == [b"bob"]
        (correlation,) = received.values("X-Request-Id")
        line = gateway.audited(reply.request_id)
        assert line["request_id"] == correlation.decode()
        assert line["credential_fingerprint"].startswith("tok:")
        joined = ("upstream_request_id", "identity", "rule", "sudo", "upstream_credential", "user_agent")
        assert [line[name] for name in joined] == ["01HXGITLAB", "impersonator", "as-bob", "bob", "root", "curl/8"]
    finally:
        assert gateway.stop() == 0
        recording.settle()

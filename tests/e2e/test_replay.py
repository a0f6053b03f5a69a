"""``replay`` over what a real gateway wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, demo_config
from tests.e2e.running import ROOT, GatewayProcess
from tests.e2e.wire import ask


def test_what_new_rules_would_have_refused(demo: DemoGitLab, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    config = demo_config(demo.url, audit={"sink": f"file:{audit}", "chain": True, "durability": "before_write"})
    gateway = GatewayProcess(config, tmp_path / "gateway", DEMO_SECRETS)
    bot, reader = gateway.new_key("bot"), gateway.new_key("reader")
    issues = "/api/v4/projects/platform%2Fapi/issues"
    for target, method, token, status in (
        (issues, "GET", bot, 200),
        (issues, "GET", bot, 200),
        (issues + "?title=x", "POST", bot, 201),
        (issues, "GET", reader, 200),
        ("/api/v4/user", "GET", reader, 403),
        ("/api/v4/user", "GET", TOKENS.ada, 200),
        ("/api/v4/user", "GET", "ggw_nonsense", 401),
        ("/api/v4/version", "GET", "", 401),
    ):
        fields = () if not token else (f"PRIVATE-TOKEN: {token}",)
        assert ask(gateway.port, target, *fields, method=method).status == status, target
    assert gateway.stop() == 0

    def replay(rules: list[dict[str, object]]) -> tuple[int, list[dict[str, object]], str]:
        new = tmp_path / "new.yaml"
        new.write_text(json.dumps({"version": 1, **config, "rules": rules, "state_dir": str(tmp_path / "state")}))
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "replay", "--json", str(audit), "--config", str(new)],
            cwd=ROOT,
            env=gateway.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    code, differ, said = replay(config["rules"])
    assert (code, differ) == (0, []), said
    tighter = [dict(rule) for rule in config["rules"]]
    tighter[0]["allow"] = [{"access": "read"}]
    code, differ, said = replay(tighter)
    assert code == 1
    (one,) = differ
    assert one["times"] == 1
    assert one["kind"] == {
        "identity": "bot",
        "method": "POST",
        "operation": "POST /api/v4/projects/:id/issues",
        "project": "platform/api",
        "was": {"verdict": "allowed", "rule": "bot", "credential": "ada"},
        "now": {"verdict": "forbidden", "rule": "", "credential": ""},
    }
    assert said.startswith("1 decided differently, ")

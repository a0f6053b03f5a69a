"""`limits set` at one of two gateways on one Redis: the other does so, too, and one that starts later."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, shared_config
from tests.e2e.load import until
from tests.e2e.running import ROOT, GatewayProcess
from tests.e2e.wire import ask

ADMIN_KEY = "admin-key-admin-key-admin-key-0001"


def limits(gateway: GatewayProcess, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "limits", *words, "--admin", f"127.0.0.1:{gateway.admin_port}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "GATEWAY_ADMIN_KEY": ADMIN_KEY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_change_reaches_every_gateway(demo: DemoGitLab, start_redis: Any, tmp_path: Path) -> None:
    digest = hashlib.sha256(ADMIN_KEY.encode()).hexdigest()
    config = shared_config(
        demo.url,
        limits=[{"id": "all", "by": "organisation", "rate": "1/hour", "burst": 1}],
        admin={"keys": [{"id": "ops", "sha256": digest}]},
    )
    config["stores"]["keys"] = f"sqlite://{tmp_path}/keys.db"
    secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": start_redis().url}
    gateways = [GatewayProcess(config, tmp_path / str(number), secrets) for number in range(2)]

    def status(gateway: GatewayProcess) -> int:
        return ask(gateway.port, "/api/v4/version", token=TOKENS.ada).status

    try:
        assert [status(gateways[0]), status(gateways[0]), status(gateways[1])] == [200, 429, 429]
        assert limits(gateways[0], "set", "all", "all", "--pause", "--for", "1h")["shared"] is True
        assert status(gateways[0]) == 200
        until(lambda: status(gateways[1]) == 200, "the other gateway heard of it")
        gateways.append(GatewayProcess(config, tmp_path / "2", secrets))
        until(lambda: status(gateways[2]) == 200, "one that started later, too")
        limits(gateways[1], "reset", "all", "all")
        for gateway in gateways:
            until(lambda gateway=gateway: status(gateway) == 429, "as configured again")  # type: ignore[misc]
    finally:
        assert [gateway.stop() for gateway in gateways] == [0] * len(gateways)

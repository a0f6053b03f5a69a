"""A list through a real gateway: a key sees its group, whatever the shared credential sees."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import BROKER_TOKEN, DEMO_SECRETS, demo_config
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import ask
from tests.fakes.gitlab import FakeGitLab, response


def test_a_key_sees_its_group_alone(demo: DemoGitLab, tmp_path: Path) -> None:
    allow = {"access": "read", "projects": {"under_group": "platform"}}
    rules = [
        {"id": "narrow", "for": ["reader"], "use": "ada", "allow": [{**allow, "lists": "filter"}]},
        {"id": "strict", "for": ["bot"], "use": "ada", "allow": [allow]},
    ]
    config = demo_config(demo.url, rules=rules)
    gateway = GatewayProcess(config, tmp_path, DEMO_SECRETS)
    try:
        reader, strict = gateway.new_key("reader"), gateway.new_key("bot")
        everything = ask(gateway.port, "/api/v4/projects?per_page=100", token=TOKENS.ada)
        paths = [project["path_with_namespace"] for project in json.loads(everything.body)]
        ours = [path for path in paths if path.startswith("platform/")]
        assert 0 < len(ours) < len(paths)
        assert ask(gateway.port, "/api/v4/projects?per_page=100", token=strict).status == 403
        narrowed = ask(gateway.port, "/api/v4/projects?per_page=100", token=reader)
        assert [project["path_with_namespace"] for project in json.loads(narrowed.body)] == ours
        assert narrowed.value("X-Total") is None
        etag = narrowed.value("ETag")
        assert etag not in {None, everything.value("ETag")}
        again = ask(gateway.port, "/api/v4/projects?per_page=100", f"If-None-Match: {etag}", token=reader)
        assert (again.status, again.body, again.value("ETag")) == (304, b"", etag)
        head = ask(gateway.port, "/api/v4/projects?per_page=100", method="HEAD", token=reader)
        assert (head.status, head.value("X-Total"), head.value("ETag")) == (200, None, None)
        packed = ask(gateway.port, "/api/v4/projects?per_page=100", "Accept-Encoding: gzip", token=reader)
        assert packed.body == narrowed.body
        walked, target = [], "/api/v4/projects?per_page=1"
        for _ in range(len(paths)):
            page = ask(gateway.port, target, token=reader)
            walked += [project["path_with_namespace"] for project in json.loads(page.body)]
            following = page.value("X-Next-Page")
            if not following:
                break
            target = f"/api/v4/projects?per_page=1&page={following}"
        assert walked == ours
    finally:
        assert gateway.stop() == 0


def test_a_fork_is_shown_without_what_is_elsewhere(recording: FakeGitLab, tmp_path: Path) -> None:
    config = {
        "upstream": {"url": recording.url},
        "identities": [{"id": "reader", "key": "issued"}],
        "credentials": [{"id": "sa", "token": "${env:SA}"}],
        "rules": [
            {
                "id": "narrow",
                "for": ["reader"],
                "use": "sa",
                "allow": [{"access": "read", "projects": {"under_group": "platform"}, "lists": "filter"}],
            }
        ],
    }
    ours = b'{"id":44,"path_with_namespace":"platform/web","forked_from_project":%b,"name":"web"}'
    theirs = b'{"id":43,"path_with_namespace":"finance/ledger","description":"SECRET"}'
    inner = b'{"id":42,"path_with_namespace":"platform/api"}'
    gateway = GatewayProcess(config, tmp_path, {"SA": BROKER_TOKEN})
    try:
        key = gateway.new_key("reader")
        body = b"[%b,%b]" % (ours % theirs, ours % inner)
        recording.script(response(200, body, ("Content-Type", "application/json")))
        shown = ask(gateway.port, "/api/v4/projects", token=key).body
        assert shown == b'[{"id":44,"path_with_namespace":"platform/web","name":"web"},%b]' % (ours % inner)
    finally:
        assert gateway.stop() == 0
        recording.settle()

"""GitLab's hooks, sent to running gateways: what they tell of is asked for anew, at every gateway, at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, SHARED_SECRETS, demo_config, shared_config
from tests.e2e.load import checks, figure, until
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, Reply, ask

PATH = "/-/gateway/hooks"
SECRET = "e2e-hook-secret-e2e-hook"
TOKEN = f"X-Gitlab-Token: {SECRET}"
PROJECT = "/api/v4/projects/platform%2Fapi"
HOST = "gateway.test"
"""Both gateways' name: what an answer's links look like depends on it."""


def outcome(reply: Reply) -> str:
    return (reply.value("Cache-Status") or "").removeprefix("gateway; ")


def read(gateway: GatewayProcess, target: str) -> Reply:
    reply = ask(gateway.port, target, token=TOKENS.ada, host=HOST)
    assert reply.status == 200
    return reply


def send(gateway: GatewayProcess, event: object, *fields: str, uuid: str = "") -> Reply:
    """A hook of GitLab's; with its token, unless ``fields`` say otherwise."""
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    given = fields or (TOKEN,)
    if uuid:
        given = (*given, f"X-Gitlab-Event-UUID: {uuid}")
    return ask(gateway.port, PATH, "Content-Type: application/json", *given, method="POST", body=body)


def kept(gateways: tuple[GatewayProcess, ...], target: str) -> None:
    """Read until each gateway answers without asking GitLab."""
    for gateway in gateways:
        read(gateway, target)
        read(gateway, target)
        assert "hit; ttl=" in outcome(read(gateway, target))


@pytest.fixture(scope="module")
def world_redis(redis_server: Any) -> Iterator[Any]:
    server = type(redis_server)()
    yield server
    server.close()


@pytest.fixture(scope="module")
def world(
    demo: DemoGitLab, world_redis: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, GatewayProcess]]:
    """Two gateways on one Redis that reuse for a minute, and believe in hooks."""
    directory = tmp_path_factory.mktemp("hooks")
    with ExitStack() as started:
        secrets = {**DEMO_SECRETS, **SHARED_SECRETS, "REDIS_URL": world_redis.url, "HOOK_SECRET": SECRET}
        cache = {"ttl": "60s", "hooks": {"secret": "${env:HOOK_SECRET}", "hold": "0s"}}
        made = []
        for name in ("first", "second"):
            gateway = GatewayProcess(shared_config(demo.url, cache=cache), directory / name, secrets)
            started.callback(lambda gateway=gateway: _end(gateway))
            made.append(gateway)
        for gateway in made:
            until(lambda gateway=gateway: checks(gateway)["cache copies"] == "ok", "it listens")  # type: ignore[misc]
        # Hooks come: from now on lifetimes are believed. Either may ask the store for it a while later.
        for gateway in made:
            assert send(gateway, {"event_name": "user_create", "user_id": 999}, uuid=f"begin {gateway.port}").status == 200
        yield made[0], made[1]


def _end(gateway: GatewayProcess) -> None:
    assert gateway.stop() == 0


def behind_its_back(demo: DemoGitLab, target: str, method: str = "PUT") -> None:
    """A change that no gateway sees."""
    port = int(demo.url.rpartition(":")[2])
    assert ask(port, target, method=method, body=b"", token=TOKENS.ada).status < 300


def _issue(world: tuple[GatewayProcess, ...], demo: DemoGitLab, title: str) -> SimpleNamespace:
    """An issue kept by both gateways, and changed since."""
    target = f"{PROJECT}/issues/4"
    behind_its_back(demo, f"{target}?title=before-{title}")
    send(world[0], {"object_kind": "issue", "project": _project(world)}, uuid=f"before {title}")
    kept(world, target)
    behind_its_back(demo, f"{target}?title={title}")
    for gateway in world:
        assert b"before-" in read(gateway, target).body, "nobody has told it yet"
    return SimpleNamespace(target=target, shown=lambda gateway: f'"title":"{title}"'.encode() in read(gateway, target).body)


def _project(world: tuple[GatewayProcess, ...]) -> dict[str, object]:
    found = json.loads(read(world[0], PROJECT).body)
    return {"id": found["id"], "path_with_namespace": found["path_with_namespace"]}


def test_a_webhook_to_one_gateway_reaches_the_copies_of_all(
    world: tuple[GatewayProcess, GatewayProcess], demo: DemoGitLab
) -> None:
    first, second = world
    before = figure(second, "gitlab_gateway_cache_near_hits_total")
    issue = _issue(world, demo, "webhook")
    assert figure(second, "gitlab_gateway_cache_near_hits_total") > before
    event = {"object_kind": "issue", "project": _project(world), "object_attributes": {"iid": 4}}
    reply = send(first, event, "X-Gitlab-Event: Issue Hook", TOKEN, uuid="webhook")
    assert (reply.status, json.loads(reply.body)) == (200, {"message": "purged"})
    assert issue.shown(second)
    assert issue.shown(first)
    line = first.audit.find(lambda line: json.loads(line) if '"hook:issue"' in line else None, 5.0)
    assert (line["operation"], line["status"], line["principal"]) == ("hook", 200, "gitlab")


def test_a_write_through_one_gateway_is_read_through_another_the_next_moment(
    world: tuple[GatewayProcess, GatewayProcess],
) -> None:
    """On connections that stand: the request and the message of the purge come to the same turn of the event loop."""
    target = f"{PROJECT}/issues/4"

    def exchange(peer: Peer, method: str, query: str = "") -> Reply:
        length = "Content-Length: 0\r\n" if method == "PUT" else ""
        head = f"{method} {target}{query} HTTP/1.1\r\nHost: {HOST}\r\nPRIVATE-TOKEN: {TOKENS.ada}\r\n{length}\r\n"
        peer.send(head.encode())
        reply = peer.read_reply()
        assert reply.status == 200
        return reply

    before = figure(world[1], "gitlab_gateway_cache_near_hits_total")
    with Peer(world[0].port) as first, Peer(world[1].port) as second:
        for number in range(100):
            for peer in (first, second):
                for _ in range(3):
                    exchange(peer, "GET")
            exchange(first, "PUT", f"?title=round-{number}")
            assert f'"title":"round-{number}"'.encode() in exchange(second, "GET").body
    assert figure(world[1], "gitlab_gateway_cache_near_hits_total") > before


@pytest.mark.parametrize(
    ("event", "target"),
    [
        pytest.param(
            {"event_name": "push", "project_id": None, "ref": "refs/heads/main"},
            f"{PROJECT}/repository/branches",
            id="push",
        ),
        pytest.param(
            {"event_name": "repository_update", "project_id": None, "refs": ["refs/heads/main"]},
            f"{PROJECT}/repository/tree",
            id="repository update",
        ),
        pytest.param(
            {"event_name": "project_update", "project_id": None, "path_with_namespace": "platform/api"},
            PROJECT,
            id="project",
        ),
        pytest.param(
            {"event_name": "user_add_to_team", "project_id": None, "user_id": 2},
            f"{PROJECT}/issues?state=opened",
            id="membership",
        ),
        pytest.param({"event_name": "group_rename", "group_id": 1}, f"{PROJECT}/issues", id="group"),
        pytest.param(b"not JSON at all", f"{PROJECT}/issues/4", id="unreadable"),
    ],
)
def test_a_system_hook_purges_what_it_is_about(
    world: tuple[GatewayProcess, GatewayProcess], event: dict[str, object] | bytes, target: str, request: Any
) -> None:
    first, second = world
    if isinstance(event, dict) and "project_id" in event:
        event = event | {"project_id": _project(world)["id"]}
    kept(world, target)
    assert send(first, event, "X-Gitlab-Event: System Hook", TOKEN, uuid=request.node.callspec.id).status == 200
    assert "fwd=uri-miss" in outcome(read(second, target))
    assert "hit; ttl=" in outcome(read(first, target)), "asked for once, by any of them"


def test_a_hook_about_something_else_leaves_it(world: tuple[GatewayProcess, GatewayProcess]) -> None:
    target = f"{PROJECT}/issues/4"
    kept(world, target)
    elsewhere = {"object_kind": "push", "project": {"id": 424242, "path_with_namespace": "else/where"}}
    assert send(world[0], elsewhere, uuid="elsewhere").status == 200
    for gateway in world:
        assert "hit; ttl=" in outcome(read(gateway, target))


STRANGERS: dict[str, Callable[[], tuple[str, ...]]] = {
    "without a token": lambda: ("X-Gitlab-Event: Issue Hook",),
    "with another": lambda: (f"X-Gitlab-Token: {SECRET[:-1]}x",),
    "with the beginning": lambda: (f"X-Gitlab-Token: {SECRET[:-1]}",),
    "with an own credential": lambda: (f"PRIVATE-TOKEN: {TOKENS.ada}",),
    "with a signature of its own": lambda: ("webhook-id: 1", "webhook-timestamp: 1800000000", "webhook-signature: v1,AAAA"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_purges_nothing(world: tuple[GatewayProcess, GatewayProcess], who: str) -> None:
    target = f"{PROJECT}/issues/4"
    kept(world, target)
    refused = figure(world[0], 'gitlab_gateway_hooks_total{outcome="refused"}')
    reply = send(world[0], b"{}", *STRANGERS[who]())
    assert reply.status == 401
    assert SECRET.encode() not in reply.body
    assert figure(world[0], 'gitlab_gateway_hooks_total{outcome="refused"}') == refused + 1
    for gateway in world:
        assert "hit; ttl=" in outcome(read(gateway, target))


def test_a_delivery_that_came_before_purges_nothing(world: tuple[GatewayProcess, GatewayProcess]) -> None:
    target = f"{PROJECT}/issues/4"
    event = {"object_kind": "issue", "project": _project(world), "object_attributes": {"iid": 4}}
    assert json.loads(send(world[0], event, uuid="once").body) == {"message": "purged"}
    kept(world, target)
    again = send(world[0], event, uuid="once")
    assert (again.status, json.loads(again.body)) == (200, {"message": "seen before"}), "a hook that fails is switched off"
    for gateway in world:
        assert "hit; ttl=" in outcome(read(gateway, target))
    assert json.loads(send(world[0], event, uuid="another").body) == {"message": "purged"}


def test_the_secret_is_in_no_log(world: tuple[GatewayProcess, GatewayProcess]) -> None:
    send(world[0], b"{}", f"X-Gitlab-Token: {SECRET}", uuid="logged")
    world[0].audit.find(lambda line: line if '"operation":"hook"' in line else None, 5.0)
    assert SECRET not in "".join([*world[0].audit.all, *world[0].log.all])
    assert SECRET not in ask(world[0].admin_port, "/-/config").body.decode()


def test_a_gateway_that_cannot_hear_uses_no_copy(
    world: tuple[GatewayProcess, GatewayProcess], world_redis: Any, demo: DemoGitLab
) -> None:
    """Its subscription ends again and again, and is refused: Redis itself is well."""
    first, second = world
    issue = _issue(world, demo, "deaf")
    with redis.Redis(port=world_redis.port) as client:
        client.execute_command("ACL", "SETUSER", "default", "resetchannels")
        try:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            event = {"object_kind": "issue", "project": _project(world), "object_attributes": {"iid": 4}}
            assert send(first, event, uuid="deaf").status == 200
            assert issue.shown(second)
            until(lambda: "NOPERM" in checks(second)["cache copies"], "readiness tells")
            assert figure(second, "gitlab_gateway_cache_near_up") == 0
            hits = figure(second, "gitlab_gateway_cache_near_hits_total")
            kept(world, issue.target)
            assert figure(second, "gitlab_gateway_cache_near_hits_total") == hits
        finally:
            client.execute_command("ACL", "SETUSER", "default", "allchannels")
    for gateway in world:
        until(lambda gateway=gateway: checks(gateway)["cache copies"] == "ok", "it hears again")  # type: ignore[misc]
    kept(world, issue.target)


def test_when_no_hooks_come_nothing_is_reused_unasked(demo: DemoGitLab, tmp_path: Any) -> None:
    """GitLab switches hooks off that fail, and tells nobody."""
    cache = {"ttl": "60s", "hooks": {"secret": "${env:HOOK_SECRET}", "hold": "0s", "max_silence": "1500ms"}}
    gateway = GatewayProcess(demo_config(demo.url, cache=cache), tmp_path, {**DEMO_SECRETS, "HOOK_SECRET": SECRET})
    try:
        assert figure(gateway, "gitlab_gateway_hooks_silent") == 1
        assert figure(gateway, "gitlab_gateway_hooks_silence_seconds") == -1
        assert checks(gateway)["hooks"].startswith("degraded: ")
        target = f"{PROJECT}/issues"
        read(gateway, target)
        assert "fwd=stale; fwd-status=304" in outcome(read(gateway, target)), "none ever came"
        assert send(gateway, {"event_name": "user_create", "user_id": 999}).status == 200
        until(lambda: figure(gateway, "gitlab_gateway_hooks_silent") == 1, "silence is noticed")
        assert figure(gateway, "gitlab_gateway_hooks_silence_seconds") >= 1.5
        assert "fwd=stale; fwd-status=304" in outcome(read(gateway, target))
        assert "hit" not in outcome(read(gateway, target)).split(";")[0]
    finally:
        assert gateway.stop() == 0

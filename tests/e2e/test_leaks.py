"""Secrets: after every credential was presented in every place, none of them is written down anywhere."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import resource
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import TOKENS
from tests.e2e.conftest import DEMO_SECRETS, EXTERNAL_URL, demo_config
from tests.e2e.running import GatewayProcess
from tests.e2e.wire import Peer, Reply, ask, raw, stranger

TYPED = "mistyped-secret-of-somebody"
TARGETS = [
    "/api/v4/user",
    "/api/v4/projects/platform%2Fapi?x=1",
    "/api/v4/no/such/route",
    "/api/v4/internal/allowed",
    "/api/v4/projects/1/packages/generic/a/1.0/missing",
    "/api/scim/v2/groups/g/Users",
    "/platform/api.git/info/refs?service=git-upload-pack",
    "/jwt/auth?service=container_registry",
]
BODIES = {
    "Content-Type: application/json": lambda name, value: json.dumps({"a": {"b": 1}, name: value}).encode(),
    "Content-Type: application/x-www-form-urlencoded": lambda name, value: f"a=b&{name}={value}".encode(),
    "Content-Type: multipart/form-data; boundary=b": lambda name, value: (
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n--b--\r\n'.encode()
    ),
}
PARAMETERS = ["private_token", "access_token", "bearer_token", "job_token", "token", "feed_token"]


SHAPED = re.compile(r"\b(?:gl(?:pat|dt|cbt|ptt|oas|soat|rt|agent)-|ggw_|GR1348941)[0-9A-Za-z_-]{8,}")


class World:
    """A gateway with a password for its Redis, an admin key and issued keys, and all that was ever answered."""

    def __init__(self, gateway: GatewayProcess, secret: dict[str, str]) -> None:
        self.gateway = gateway
        self.secrets = secret
        self.answers: list[Reply] = []

    def ask(self, target: str, *fields: str, **options: Any) -> None:
        self.answers.append(ask(self.gateway.port, target, *fields, source=stranger(), **options))


@pytest.fixture(scope="module")
def world(demo: DemoGitLab, redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    password = f"redis-{secrets.token_hex(16)}"
    server = type(redis_server)()
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "gateway", "on", f">{password}", "~*", "&*", "+@all")
    admin_key = f"admin-{secrets.token_hex(16)}"
    own = {name: secrets.token_hex(24) for name in ("PEPPER", "CACHE_KEY", "AUDIT_KEY")}
    environment = {**DEMO_SECRETS, **own, "REDIS_URL": server.url.replace("redis://", f"redis://gateway:{password}@")}
    config = demo_config(
        demo.url,
        secrets={"pepper": "${env:PEPPER}", "encryption_key": "${env:CACHE_KEY}", "audit_key": "${env:AUDIT_KEY}"},
        stores={"shared": "${env:REDIS_URL}"},
        admin={"keys": [{"id": "ops", "sha256": hashlib.sha256(admin_key.encode()).hexdigest()}]},
        limits=[{"id": "caller", "by": "caller", "rate": "100000/min"}],
        logging={"level": "debug"},
    )
    gateway = GatewayProcess(config, tmp_path_factory.mktemp("leaks"), environment)
    keys = {name: gateway.new_key(name) for name in ("bot", "reader", "impersonator")}
    known = {"redis": password, "admin": admin_key, "typed": TYPED, **own, **keys, **vars(TOKENS)}
    try:
        yield World(gateway, known)
    finally:
        assert gateway.stop() == 0
        server.close()


def present_everything(world: World) -> None:
    """Every credential in every place, right and wrong; refused, forwarded, limited and broken requests."""
    shown = {**vars(TOKENS), "typed": TYPED, **{name: world.secrets[name] for name in ("bot", "reader", "impersonator")}}
    for (number, value), target in zip(enumerate(shown.values()), itertools.cycle(TARGETS), strict=False):
        basic = base64.b64encode(f"user:{value}".encode()).decode()
        for field in (
            f"PRIVATE-TOKEN: {value}",
            f"private_token: {value}",
            f"Authorization: Bearer {value}",
            f"Authorization: Basic {basic}",
            f"Authorization: {value}",
            f"JOB-TOKEN: {value}",
            f"Deploy-Token: {value}",
            f"Cookie: _gitlab_session={value}",
            f"X-Gitlab-Token: {value}",
        ):
            world.ask(target, field)
        if SHAPED.match(value):
            # Whom Sudo names is written down, so a token in its place is recognised by its shape alone.
            world.ask(target, f"Sudo: {value}")
            world.ask(f"/api/v4/user?sudo={value}")
        world.ask(TARGETS[number % 2], f"PRIVATE-TOKEN: {value}", "Authorization: Bearer something-else")
        for parameter in PARAMETERS:
            joint = "&" if "?" in target else "?"
            world.ask(f"{target}{joint}{parameter}={value}&b=c")
            world.ask(f"{target}{joint}b=c&{parameter}=%{ord(value[0]):02x}{value[1:]}")
        for (kind, write), parameter in zip(BODIES.items(), itertools.cycle(PARAMETERS), strict=False):
            for own in ((), (f"PRIVATE-TOKEN: {TOKENS.ada}",)):
                world.ask("/api/v4/projects/1/issues?title=x", kind, *own, method="POST", body=write(parameter, value))
    for octets in (
        f"GET /api/v4/user?private_token={TYPED} HTTP/9.9\r\n\r\n",
        f"GET /api/v4/user?private_token={TYPED}\r\n\r\n",
        f"GET /{TYPED}\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN : {TYPED}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nX: {TYPED}{'x' * 20000}\r\n\r\n",
        f"GET /?private_token={TYPED}{'x' * 20000} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: {TYPED}@x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ):
        world.answers.append(raw(world.gateway.port, octets.encode()))
    for octets in (
        f"GET /?private_token={TYPED} HT",
        f"POST /api/v4/x?token={TYPED} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    ):
        with Peer(world.gateway.port) as peer:  # gone in the middle
            peer.send(octets.encode())


def test_x17_no_secret_is_written_down_anywhere(world: World) -> None:
    present_everything(world)
    gateway = world.gateway
    shown = [ask(gateway.admin_port, "/-/config", f"Authorization: Bearer {world.secrets['admin']}")]
    assert shown[0].status == 200
    shown += [ask(gateway.admin_port, target) for target in ("/metrics", "/readyz", "/livez", "/-/config", "/x")]
    shown.append(ask(gateway.admin_port, "/-/config", f"Authorization: Bearer {TYPED}"))
    last = ask(gateway.port, "/api/v4/version", token=TOKENS.ada)
    gateway.audited(last.request_id)
    statuses = {reply.status for reply in world.answers}
    assert {200, 201, 400, 401, 403, 404, 414} <= statuses
    places = {
        "log": "".join(gateway.log.all),
        "audit": "".join(gateway.audit.all),
        "admin": "".join(f"{reply.fields}{reply.body.decode()}" for reply in shown),
        "answers": "".join(f"{reply.fields}{reply.body.decode('latin-1')}" for reply in world.answers),
        "keys list": gateway.command("keys", "list").stdout,
        "check --show": gateway.command("check", "--show", "yaml").stdout,
    }
    assert len(places["audit"].splitlines()) >= len(world.answers)
    for place, text in places.items():
        found = {name for name, secret in world.secrets.items() for form in _forms(secret) if form in text}
        assert not found, f"{place} holds {found}"
    # Nor anything in the shape of a token, by GitLab's prefixes and our own.
    for place in ("log", "audit"):
        assert not SHAPED.search(places[place]), place


def _forms(secret: str) -> set[str]:
    """How a secret may be spelt: plain, and in the Basic credentials that held it."""
    basic = base64.b64encode(f"user:{secret}".encode()).decode()
    return {secret, basic.rstrip("=")[:-1]}


def test_links_of_the_scan_do_not_name_gitlabs_inner_address(world: World, demo: DemoGitLab) -> None:
    reply = ask(world.gateway.port, "/api/v4/projects?per_page=1", token=TOKENS.ada)
    assert demo.url not in str(reply.fields)
    assert EXTERNAL_URL not in str(reply.fields)


def test_no_core_dump_can_hold_a_token(world: World) -> None:
    assert resource.prlimit(world.gateway.process.pid, resource.RLIMIT_CORE) == (0, 0)

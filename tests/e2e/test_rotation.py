"""Upstream tokens replaced by real processes, killed at each step: nothing is lost, nobody asks twice."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import web

from gateway.demo.answer import Answer
from gateway.demo.gitlab import DemoGitLab
from gateway.demo.seed import PERSONAL_PREFIX, TOKENS, seed
from gateway.demo.state import Kind, Token
from tests.e2e.conftest import SHARED_SECRETS
from tests.e2e.running import GatewayProcess, LoopThread
from tests.e2e.test_lifecycle import until
from tests.e2e.wire import Reply, ask

BOT = 5
ADMIN_KEY = "an-admin-key-for-rotation"
SELF = "/api/v4/personal_access_tokens/self"
NEXT_KEY = {"NEXT_KEY": "e2e-encryption-e2e-encryption-key-0004"}

Match = Callable[[str, str, str], bool]
"""Method, path, token."""


class HeldGitLab(DemoGitLab):
    """Stops at one request, before or after it is carried out, until it is told to go on or to drop it."""

    def __init__(self) -> None:
        super().__init__(seed(0))
        self.first = self.mint()
        self.reached = threading.Event()
        self.drop = False
        self._match: Match | None = None
        self._after = False
        self._go = asyncio.Event()

    def mint(self, days: int = 5) -> Token:
        end = self.state.today() + datetime.timedelta(days=days)
        return self.state.mint(self.state.users[BOT], "first", ("api",), PERSONAL_PREFIX, end)

    def hold(self, match: Match, *, after: bool) -> None:
        self.reached, self._match, self._after, self._go = threading.Event(), match, after, asyncio.Event()

    def let_go(self, *, drop: bool) -> None:
        self._match, self.drop = None, drop
        self._go.set()

    async def _answer(self, incoming: web.BaseRequest, extra: dict[str, str]) -> Answer:
        token = incoming.headers.get("PRIVATE-TOKEN", "")
        if self._match is None or not self._match(incoming.method, incoming.path, token):
            return await super()._answer(incoming, extra)
        self._match = None
        if self._after:
            answer = await super()._answer(incoming, extra)
            self.reached.set()
            await self._go.wait()
            return answer
        self.reached.set()
        await self._go.wait()
        if self.drop:
            raise ConnectionResetError
        return await super()._answer(incoming, extra)

    def active(self) -> set[str]:
        """The bot's tokens that work, less the one seeded for others."""
        mine = [one for one in self.state.tokens.values() if one.user.id == BOT and one.kind is Kind.PERSONAL]
        return {one.value for one in mine if not one.revoked and not self.state.is_expired(one)} - {TOKENS.bot}

    def asked(self, line: bytes) -> int:
        return sum(recorded.line.startswith(line) for recorded in list(self.journal))


@pytest.fixture
def gitlab(upstreams: LoopThread) -> Iterator[HeldGitLab]:
    gitlab = HeldGitLab()
    upstreams.run(gitlab.start())
    yield gitlab
    upstreams.run(gitlab.close())


class Store:
    """SQLite in the gateway's directory, or a Redis; and what time does there to a process that died."""

    def __init__(self, kind: str, directory: Path, redis_url: str) -> None:
        self.directory = directory
        self.url = redis_url if kind == "redis" else ""

    def forget_the_dead(self) -> None:
        if self.url:
            with redis.Redis.from_url(self.url) as client:
                client.delete("ggw:{credentials}:leader", "ggw:{credentials}:readers")
            return
        with sqlite3.connect(self.directory / "state" / "credentials.db") as connection:
            connection.execute("UPDATE leader SET until = 0")
        connection.close()

    def config(self) -> dict[str, Any]:
        if not self.url:
            return {}
        secrets = {"pepper": "${env:PEPPER}", "encryption_key": "${env:CACHE_KEY}", "audit_key": "${env:AUDIT_KEY}"}
        return {"secrets": secrets, "stores": {"shared": "${env:REDIS_URL}"}}


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path, start_redis: Callable[..., Any]) -> Store:
    return Store(request.param, tmp_path / "one", durable(start_redis) if request.param == "redis" else "")


def durable(start_redis: Callable[..., Any]) -> str:
    """A Redis that keeps what it is given: no token is rotated into another."""
    return str(start_redis("--appendonly", "yes").url)


class Site:
    """A GitLab, a store, and gateways that come and go."""

    def __init__(self, gitlab: HeldGitLab, store: Store, stack: ExitStack, rotate: dict[str, Any], *more: Token) -> None:
        self.gitlab = gitlab
        self.store = store
        self._stack = stack
        tokens = [gitlab.first, *more]
        self._secrets = {f"BOT_{place}": token.value for place, token in enumerate(tokens)}
        pool = [{"token": f"${{env:{name}}}"} for name in self._secrets]
        self._config = {
            "upstream": {"url": gitlab.url},
            "identities": [{"id": "bot", "key": "issued"}],
            "admin": {"keys": [{"id": "ops", "sha256": hashlib.sha256(ADMIN_KEY.encode()).hexdigest()}]},
            "credentials": [{"id": "pool", "pool": pool, "rotate": rotate}, {"id": "root", "token": "${env:ROOT}"}],
            "rules": [{"id": "all", "for": ["bot"], "use": "pool", "allow": [{"access": "write"}]}],
            "cache": {"mode": "off"},
            **store.config(),
        }
        self.key = ""

    def gateway(self, name: str = "one", **secrets: Any) -> GatewayProcess:
        """``secrets``: what its configuration has in place of the others' there."""
        environment = {**self._secrets, **SHARED_SECRETS, **NEXT_KEY, "ROOT": TOKENS.root, "REDIS_URL": self.store.url}
        config = {**self._config, "secrets": {**self._config.get("secrets", {}), **secrets}}
        process = GatewayProcess(config, self.store.directory.parent / name, environment)
        self._stack.callback(process.stop)
        self.key = self.key or process.new_key("bot")
        return process

    def ask(self, process: GatewayProcess) -> Reply:
        return ask(process.port, "/api/v4/user", token=self.key)

    def kill_at(self, process: GatewayProcess, upstreams: LoopThread, *, drop: bool) -> None:
        """``kill -9`` once GitLab is at the step, and time for it to be forgotten."""
        assert self.gitlab.reached.wait(20), "".join(process.log.all)
        assert self.ask(process).status == 200
        process.process.kill()
        process.process.wait(60)
        upstreams.call(lambda: self.gitlab.let_go(drop=drop))
        self.store.forget_the_dead()

    def listed(self, process: GatewayProcess) -> dict[str, Any]:
        reply = ask(process.admin_port, "/-/credentials", f"Authorization: Bearer {ADMIN_KEY}")
        assert reply.status == 200
        return dict(json.loads(reply.body))

    def states(self, process: GatewayProcess) -> dict[str, Any]:
        return {one["id"]: one for one in self.listed(process)["credentials"]}


def is_new(gitlab: HeldGitLab, token: str) -> bool:
    return token not in {gitlab.first.value, TOKENS.root, TOKENS.bot} and token in gitlab.state.tokens


STEPS = {
    "about to make": (
        lambda _: lambda method, path, _token: (method, path[:14]) == ("POST", "/api/v4/users/"),
        False,
        True,
    ),
    "sent, made late": (
        lambda _: lambda method, path, _token: (method, path[:14]) == ("POST", "/api/v4/users/"),
        False,
        False,
    ),
    "made, not heard": (
        lambda _: lambda method, path, _token: (method, path[:14]) == ("POST", "/api/v4/users/"),
        True,
        False,
    ),
    "heard, not checked": (lambda gitlab: lambda _, path, token: path == SELF and is_new(gitlab, token), False, True),
    "checked, not kept": (lambda gitlab: lambda _, path, token: path == SELF and is_new(gitlab, token), True, False),
    "switched": (
        lambda gitlab: lambda method, path, _: (method, path) == ("GET", "/api/v4/personal_access_tokens"),
        False,
        True,
    ),
    "about to revoke": (lambda _: lambda method, _path, _token: method == "DELETE", False, True),
    "revoked, not heard": (lambda _: lambda method, _path, _token: method == "DELETE", True, False),
}


KILLS = [("sqlite", step) for step in STEPS]
KILLS += [("redis", step) for step in ("made, not heard", "checked, not kept", "revoked, not heard")]


@pytest.mark.parametrize(("store", "step"), KILLS, indirect=["store"], ids=[" ".join(kill) for kill in KILLS])
def test_x18_killed_at_each_step_a_rotation_is_ended_by_the_next_process(
    gitlab: HeldGitLab, store: Store, upstreams: LoopThread, step: str
) -> None:
    make, after, drop = STEPS[step]
    gitlab.hold(make(gitlab), after=after)
    with ExitStack() as stack:
        site = Site(gitlab, store, stack, {"manager": "root", "overlap": "0s"})
        site.kill_at(site.gateway(), upstreams, drop=drop)
        second = site.gateway()

        def ended() -> bool:
            assert site.ask(second).status == 200
            return len(gitlab.active()) == 1 and site.states(second)["pool/1"]["step"] == ""

        until(ended, 20.0)
        assert gitlab.first.value not in gitlab.active()
        assert site.states(second)["pool/1"]["version"] >= 1
        for value in gitlab.state.tokens:
            assert value not in "".join(second.log.all + second.audit.all)


def test_x18_a_lost_answer_is_never_asked_for_again(gitlab: HeldGitLab, store: Store, upstreams: LoopThread) -> None:
    """A token that replaces itself; the gateway dies while GitLab's answer is on its way. The pool carries on."""
    gitlab.hold(lambda method, path, _: method == "POST" and path.endswith("/self/rotate"), after=True)
    with ExitStack() as stack:
        site = Site(gitlab, store, stack, {}, gitlab.mint(days=300))
        site.kill_at(site.gateway(), upstreams, drop=False)
        second = site.gateway()
        until(lambda: site.states(second)["pool/1"]["step"] == "lost", 20.0)
        for _ in range(6):
            assert site.ask(second).status == 200
        assert gitlab.asked(b"POST " + SELF.encode() + b"/rotate") == 1
        assert len(gitlab.active()) == 2  # the family lives; its last member is nobody's
        state = json.loads(ask(second.admin_port, "/readyz").body)["checks"]["credential pool/1"]
        assert "GitLab refuses it" in state
        assert "the new one was not received" in state
        assert "GitLab is not asked again" in "".join(second.log.all)
        assert '"rotation_lost"' in second.audit.find(lambda line: line if "rotation_lost" in line else None)
        assert 'gitlab_gateway_credential_rotation_failing{credential="pool/1"} 1.0' in second.metrics()


def test_x18_of_two_gateways_one_rotates(
    gitlab: HeldGitLab, upstreams: LoopThread, tmp_path: Path, start_redis: Callable[..., Any]
) -> None:
    """And both give out the new token before the old one ends; when the leader dies, the other goes on."""
    gitlab.hold(lambda method, _path, _token: method == "POST", after=True)
    with ExitStack() as stack:
        site = Site(
            gitlab, Store("redis", tmp_path / "one", durable(start_redis)), stack, {"manager": "root", "overlap": "1s"}
        )
        first = site.gateway()
        assert gitlab.reached.wait(20)
        second = site.gateway("two")
        assert site.ask(second).status == 200
        site.kill_at(first, upstreams, drop=False)
        third = site.gateway("three")

        def ended() -> bool:
            for process in (second, third):
                assert site.ask(process).status == 200
            return len(gitlab.active()) == 1 and gitlab.first.value not in gitlab.active()

        until(ended, 20.0)
        assert gitlab.asked(b"POST ") == 2  # one by the leader that died, one by the other
        until(lambda: all(site.states(one)["pool/1"]["step"] == "" for one in (second, third)), 10.0)
        assert site.states(second)["pool/1"]["version"] == site.states(third)["pool/1"]["version"]


def test_the_encryption_key_is_changed_while_gateways_run(
    gitlab: HeldGitLab, tmp_path: Path, start_redis: Callable[..., Any]
) -> None:
    """As docs/operations.md says, one gateway after the other: the rotated token stays in use, and is asked for once."""
    former, following = "${env:CACHE_KEY}", "${env:NEXT_KEY}"
    with ExitStack() as stack:
        store = Store("redis", tmp_path / "one", durable(start_redis))
        site = Site(gitlab, store, stack, {"manager": "root", "overlap": "0s"})
        processes = {name: site.gateway(name) for name in ("one", "two")}
        until(lambda: all(site.states(one)["pool/1"]["step"] == "" for one in processes.values()), 20.0)
        until(lambda: gitlab.first.value not in gitlab.active(), 20.0)
        for key, others in (former, [following]), (following, [former]), (following, []):
            for name in processes:
                processes[name].stop()
                processes[name] = site.gateway(name, encryption_key=key, decryption_keys=others)
                for process in processes.values():
                    assert site.ask(process).status == 200
            until(lambda: all(site.listed(one)["under_decryption_keys"] == 0 for one in processes.values()), 20.0)
        assert len(gitlab.active()) == 1
        assert gitlab.asked(b"POST ") == 1


def test_a_key_made_in_the_state_directory_is_changed_in_one_restart(gitlab: HeldGitLab, store: Store) -> None:
    with ExitStack() as stack:
        site = Site(gitlab, store, stack, {"manager": "root", "overlap": "0s"})
        process = site.gateway()
        until(lambda: gitlab.first.value not in gitlab.active(), 20.0)
        process.stop()
        key = process.directory / "state" / "encryption_key"
        former = key.rename(key.with_name("encryption_key.former"))
        second = site.gateway(decryption_keys=[f"${{file:{former}}}"])
        assert site.ask(second).status == 200
        said = "records encrypted under one of `secrets.decryption_keys`: 0"
        second.log.find(lambda line: line if said in line else None)
        second.stop()
        former.unlink()
        assert site.ask(site.gateway()).status == 200
        assert len(gitlab.active()) == 1


def test_a_pool_goes_up_with_the_member_that_has_the_most_left(
    upstreams: LoopThread, gitlab: HeldGitLab, tmp_path: Path
) -> None:
    """GitLab limits each user alone: when one has less left, the other is asked."""
    other = gitlab.state.mint(gitlab.state.users[3], "bob", ("api",), PERSONAL_PREFIX, None)
    gitlab.first.expires_on = None
    gitlab.per_minute = 1000
    with ExitStack() as stack:
        site = Site(gitlab, Store("sqlite", tmp_path / "one", ""), stack, {}, other)
        process = site.gateway()
        line = process.audited(site.ask(process).request_id)
        assert line["upstream_credential"] in {"pool/1", "pool/2"}
        names = [json.loads(site.ask(process).body)["username"] for _ in range(20)]
        assert {names.count(name) for name in ("project_1_bot", "bob")} <= set(range(8, 13))
        upstreams.call(lambda: gitlab._observed.update({"project_1_bot": 400}))
        names = [json.loads(site.ask(process).body)["username"] for _ in range(20)]
        assert names.count("bob") >= 18
        upstreams.call(lambda: setattr(other, "revoked", True))
        assert site.ask(process).status in {200, 502}
        assert {site.ask(process).status for _ in range(6)} == {200}
        refused = json.loads(ask(process.admin_port, "/readyz").body)["checks"]
        assert refused["credential pool/2"] == "degraded: GitLab refuses it"


def test_an_expiry_that_comes_near_is_reported_everywhere(gitlab: HeldGitLab, tmp_path: Path) -> None:
    with ExitStack() as stack:
        rotate = {"manager": "root", "before": "1h", "lifetime": "2d"}
        site = Site(gitlab, Store("sqlite", tmp_path / "one", ""), stack, rotate)
        process = site.gateway()
        # From midnight: in the first hour of a day it is rounded to five.
        near = re.compile(r"expires in (4\.\d|5\.0) days")
        process.log.find(lambda line: line if "credential pool/1 expires" in line and near.search(line) else None)
        state = json.loads(ask(process.admin_port, "/readyz").body)["checks"]["credential pool/1"]
        assert state.startswith("degraded: ")
        assert near.search(state)
        value = process.metrics().partition('gitlab_gateway_credential_expires_seconds{credential="pool/1"} ')[2]
        assert 3.9 * 86_400 < float(value.partition("\n")[0]) < 5 * 86_400

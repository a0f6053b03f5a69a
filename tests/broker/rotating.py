"""A GitLab that punishes reuse, a real store, and gateways that die at a chosen step and come back."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.broker.rotation import Plan, RotationSteps
from gateway.broker.rotator import TokenRotator
from gateway.broker.static import StaticTokenSource
from gateway.broker.token_api import TokenApi
from gateway.broker.token_pool import StaticCredential
from gateway.core.secret import Secret
from gateway.core.token_record import DAY_S, TokenRecord, record_id
from gateway.demo.gitlab import DemoGitLab, build_demo_gitlab
from gateway.demo.seed import PERSONAL_PREFIX, TOKENS
from gateway.demo.state import Token
from gateway.identity.verifier import GitlabVerifier
from gateway.ports import RequestBody, UpstreamRequest
from gateway.reply import Reply
from gateway.stores.credential_vault import CredentialVault, SealedStore, TokenSnapshot
from gateway.stores.credentials_sqlite import SqliteCredentials
from gateway.upstream.client import HttpUpstream, UpstreamSettings

START = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC).timestamp()
KEY = b"k" * 32
BOT = 5
HOST = ((b"Host", b"gitlab.test"),)


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class Fate:
    """Counts effects on the world; dies at one of them, before or after it."""

    def __init__(self, at: int | None = None, *, after: bool = False) -> None:
        self.at = at
        self.after = after
        self.effects: list[str] = []
        self.dead = False

    @contextlib.asynccontextmanager
    async def effect(self, name: str) -> AsyncIterator[None]:
        if self.dead:
            raise Killed
        self.effects.append(name)
        dies = len(self.effects) - 1 == self.at
        if dies and not self.after:
            self.dead = True
            raise Killed
        yield
        if dies:
            self.dead = True
            raise Killed


class MortalUpstream:
    def __init__(self, upstream: HttpUpstream, fate: Fate) -> None:
        self._upstream = upstream
        self._fate = fate

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        name = f"{request.method} {request.target.decode().partition('?')[0]}"
        async with self._fate.effect(name):
            reply = await self._upstream.send(request, body)
            octets = reply.whole or b""
            if reply.chunks is not None:
                octets = b"".join([chunk async for chunk in reply.chunks])
            reply.release()
        return Reply(reply.head, whole=octets)

    async def close(self) -> None:
        return None


class MortalVault:
    def __init__(self, vault: CredentialVault, fate: Fate) -> None:
        self._vault = vault
        self._fate = fate

    async def read(self, reader: str) -> TokenSnapshot:
        if self._fate.dead:
            raise Killed
        return await self._vault.read(reader)

    async def put(self, token: TokenRecord, expect: int, fence: int | None) -> bool:
        async with self._fate.effect(f"put {token.rotation.step.value if token.rotation else 'none'}"):
            return await self._vault.put(token, expect, fence)

    async def lead(self, holder: str, lease_s: float) -> int | None:
        async with self._fate.effect("lead"):
            return await self._vault.lead(holder, lease_s)

    async def resign(self, holder: str) -> None:
        async with self._fate.effect("resign"):
            await self._vault.resign(holder)

    async def durability_warning(self) -> str:
        return await self._vault.durability_warning()

    async def close(self) -> None:
        return None


class Life:
    """One process of a gateway."""

    def __init__(self, world: World, me: str, fate: Fate, vault: CredentialVault | None = None) -> None:
        self.world = world
        self.fate = fate
        self.notes: list[tuple[str, str]] = []
        upstream = MortalUpstream(world.upstream, fate)
        verifier = GitlabVerifier(world.upstream, wall=world.wall, fields=HOST)
        self.tokens = StaticTokenSource(
            world.credentials,
            verifier,
            verifier.fetch_username,
            partition_key=KEY,
            monotonic=world.wall,
            alarm=lambda _id, _healthy: None,
        )
        self.vault = MortalVault(vault or world.vault, fate)
        steps = RotationSteps(
            TokenApi(upstream, fields=HOST),
            self.vault,
            self.tokens,
            wall=world.wall,
            name=world.name,
            note=lambda what, name: self.notes.append((what, name)),
            pause=world.pause,
        )
        self.rotator = TokenRotator(
            [one.id for one in world.credentials],
            world.plans,
            self.vault,
            steps,
            self.tokens,
            wall=world.wall,
            me=me,
        )
        self.tokens.look_for_successor = self.rotator.look_for_successor

    async def start(self) -> Life:
        await self.rotator.load()
        await self.tokens.verify_at_start()
        return self

    async def run(self, rounds: int = 6) -> None:
        """Rounds of a minute each."""
        for _ in range(rounds):
            await self.rotator.tick()
            self.world.now += 60.0

    def step(self, name: str = "bot") -> str:
        return next(state.step for state in self.rotator.states() if state.id == name)


class World:
    """GitLab, the store, and what the configuration says."""

    def __init__(
        self, gitlab: DemoGitLab, upstream: HttpUpstream, directory: Path, store: SealedStore | None, **plan: Any
    ) -> None:
        self.now = START
        self.gitlab = gitlab
        self.state = gitlab.state
        self.state.today = lambda: datetime.datetime.fromtimestamp(self.now, datetime.UTC).date()
        self.upstream = upstream
        self.store = store or SqliteCredentials(directory / "credentials.db", wall=self.wall)
        self.vault = CredentialVault(self.store, KEY)
        self.token = self.mint()
        self.credentials = [
            StaticCredential("bot", Secret(self.token.value)),
            StaticCredential("admin", Secret(TOKENS.root)),
        ]
        self.plans = [self.plan("bot", self.token, **plan)]
        self._names = 0
        self._lives = 0

    def mint(self, days: int = 10, scopes: tuple[str, ...] = ("api",), user: int = BOT) -> Token:
        end = self.state.today() + datetime.timedelta(days=days)
        return self.state.mint(self.state.users[user], "first", scopes, PERSONAL_PREFIX, end)

    def plan(self, name: str, token: Token, **changes: Any) -> Plan:
        configured = Secret(token.value)
        record = record_id(name.partition("/")[0], configured)
        plain = Plan(name, record, configured, 14 * DAY_S, 90 * DAY_S, 120.0, manager="admin")
        return msgspec.structs.replace(plain, **changes)

    def wall(self) -> float:
        return self.now

    def name(self) -> str:
        self._names += 1
        return f"{self._names:04}"

    async def pause(self, seconds: float) -> None:
        self.now += seconds

    async def live(self, at: int | None = None, *, after: bool = False, vault: CredentialVault | None = None) -> Life:
        """A new process; with ``vault``, its keys are others than those of the world."""
        self._lives += 1
        return await Life(self, f"process-{self._lives}", Fate(at, after=after), vault).start()

    def active(self) -> list[str]:
        """The bot's tokens that work, less the one that was seeded for others."""
        return [
            token.value
            for token in self.state.tokens.values()
            if token.user.id == BOT
            and token.value != TOKENS.bot
            and token.kind.value == "personal"
            and not token.revoked
            and not self.state.is_expired(token)
        ]

    def works(self, life: Life, name: str = "bot") -> bool:
        return life.tokens.token(name).reveal() in self.active()

    def asked(self, line: bytes) -> int:
        """How often GitLab got requests that begin so."""
        return sum(recorded.line.startswith(line) for recorded in self.gitlab.journal)


@contextlib.asynccontextmanager
async def world(directory: Path, *, store: SealedStore | None = None, **plan: Any) -> AsyncIterator[World]:
    gitlab = build_demo_gitlab(items=0)
    await gitlab.start()
    upstream = HttpUpstream(UpstreamSettings(gitlab.url))
    made = World(gitlab, upstream, directory, store, **plan)
    try:
        yield made
    finally:
        await made.store.close()
        await upstream.close()
        await gitlab.close()

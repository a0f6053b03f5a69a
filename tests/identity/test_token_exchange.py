"""Workloads' tokens for short-lived credentials: who gets one, for how long, how many."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from gateway.core.access import PrincipalKind
from gateway.core.errors import Code, Rejection
from gateway.core.gateway_key import digest, is_well_formed
from gateway.core.key_record import KeyOrigin, KeyRecord
from gateway.core.secret import Secret
from gateway.core.token_request import TokenGrant, TokenRequest
from gateway.core.workload_token import Requirement
from gateway.identity.key_issuer import KeyIssuer
from gateway.identity.settings import WorkloadIdentity
from gateway.identity.token_exchange import MOST_PER_MINUTE, TokenExchange
from gateway.stores.keys_memory import MemoryKeys

from .test_workloads import HERE, THERE, T, World


class Exchange(World):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryKeys()
        issuer = KeyIssuer(self.store, pepper=b"pepper", wall=lambda: self.wall, random=secrets.token_bytes)
        nothing = Requirement(self.fake.url, "gateway", ())
        identities = [WorkloadIdentity(name, nothing, session_s=900.0) for name in ("main", "any", "inside")]
        self.exchange = TokenExchange(
            self.authenticator, issuer, identities, wall=lambda: self.wall, monotonic=lambda: self.monotonic
        )

    async def give(self, token: str, peer: str = HERE, lifetime_s: float | None = None) -> TokenGrant:
        return await self.exchange.exchange(TokenRequest(Secret(token), lifetime_s), peer)

    async def record(self, granted: TokenGrant) -> KeyRecord:
        found = await self.store.find(digest(b"pepper", granted.key))
        assert found is not None
        return found

    async def refused(self, token: str, peer: str = HERE) -> Rejection:
        with pytest.raises(Rejection) as refused:
            await self.give(token, peer)
        return refused.value


@pytest.fixture
def world() -> Exchange:
    return Exchange()


async def test_a_workload_gets_a_credential_of_its_identity(world: Exchange) -> None:
    given = await world.give(world.token(ref_protected="true", sub="project_path:g/p:ref:main\n"))
    record = await world.record(given)
    assert is_well_formed(given.key.reveal())
    assert (given.principal.identity, given.principal.kind, given.key_id) == ("main", PrincipalKind.OIDC, record.id)
    assert (record.identity, record.origin, record.expires_at) == ("main", KeyOrigin.EXCHANGED, T + 900)
    assert record.note == "project_path:g/p:ref:main?"


async def test_what_the_token_said_of_its_bearer_is_kept_with_the_credential(world: Exchange) -> None:
    token = world.token(ref_protected="true", sub="project_path:g/p", job_id="81", jti="5f0b")
    given = await world.give(token)
    assert (given.principal.credential_id, given.principal.credential_subject) == ("5f0b", "project_path:g/p job_id=81")
    assert (await world.record(given)).note == "project_path:g/p job_id=81"


@pytest.mark.parametrize(("asked", "given"), [(None, 900.0), (60.0, 60.0), (9e9, 900.0)])
async def test_it_never_lives_longer_than_configured(world: Exchange, asked: float | None, given: float) -> None:
    granted = await world.give(world.token(), lifetime_s=asked)
    assert (granted.lifetime_s, (await world.record(granted)).expires_at) == (given, T + given)


async def test_two_live_keys_are_no_bound_for_exchanged_ones(world: Exchange) -> None:
    for _ in range(5):
        await world.give(world.token())
    assert len(await world.store.list("any")) == 5


async def test_what_is_no_workloads_token_gets_nothing(world: Exchange) -> None:
    granted = await world.give(world.token())
    others = [
        granted.key.reveal(),  # a credential cannot make itself immortal
        "glpat-somebodys-own-token",
        "",
        "eyJ.eyJ.x",
        world.token(aud="vault"),
        world.token(exp=T - 60),
        world.token(job_project_id="9"),
        world.token(iss="https://elsewhere.example.com"),
        world.token()[:-4] + "AAAA",
    ]
    for token in others:
        assert (await world.refused(token)).code is Code.UNAUTHENTICATED, token
    assert len(await world.store.list()) == 1
    assert world.gitlab.asked == []


async def test_its_networks_hold_here_too(world: Exchange) -> None:
    token = world.token(job_project_id="8")
    assert (await world.give(token, HERE)).principal.identity == "inside"
    assert (await world.refused(token, THERE)).code is Code.UNAUTHENTICATED


async def test_failures_are_failed_logins_of_their_address(world: Exchange) -> None:
    codes = [(await world.refused(f"eyJ{number}")).code for number in range(21)]
    assert codes == [Code.UNAUTHENTICATED] * 20 + [Code.TOO_MANY_FAILED_LOGINS]
    await world.give(world.token(), THERE)


async def test_an_address_gets_so_many_a_minute_and_then_must_wait(world: Exchange) -> None:
    token = world.token()
    for _ in range(MOST_PER_MINUTE):
        await world.give(token)
    refused = await world.refused(token)
    assert (refused.code, refused.status, refused.headers) == (Code.RATE_LIMITED, 429, ((b"Retry-After", b"1"),))
    await world.give(token, THERE)
    world.pass_(1.0)
    await world.give(token)


async def test_many_at_once_are_counted_each(world: Exchange) -> None:
    token = world.token()
    done = await asyncio.gather(*(world.give(token) for _ in range(MOST_PER_MINUTE + 30)), return_exceptions=True)
    assert sum(isinstance(outcome, Rejection) for outcome in done) == 30
    assert len({record.digest for record in await world.store.list()}) == MOST_PER_MINUTE


@pytest.mark.parametrize("said", [None, 7, "x" * 5000])
async def test_a_subject_without_words_is_no_harm(world: Exchange, said: object) -> None:
    record = await world.record(await world.give(world.token(sub=said)))
    assert len(record.note) <= 200

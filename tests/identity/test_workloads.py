from __future__ import annotations

import asyncio
import secrets
from typing import Any

import msgspec
import pytest

from gateway.core.access import Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Carrier, Claim, CredentialKind
from gateway.core.errors import Code, Rejection
from gateway.core.messages import RequestHead
from gateway.core.peer_guard import PeerGuard
from gateway.core.secret import Secret
from gateway.core.workload_token import MAX_LENGTH, Pattern, Requirement
from gateway.identity.authenticator import PrincipalAuthenticator
from gateway.identity.gitlab_tokens import GitlabTokens
from gateway.identity.keys import GatewayKeys
from gateway.identity.oidc_issuer import FRESH_S, Issuer
from gateway.identity.settings import IdentitySettings, Networks, TokenIdentity, WorkloadIdentity
from gateway.identity.workloads import TTL_S, WorkloadTokens
from gateway.ports import NotAnswering, Presentation, Verified
from gateway.stores.keys_memory import MemoryKeys
from tests.fakes.issuer import FakeIssuer, segment

T = 1_800_000_000.0
HERE, THERE = "192.0.2.1", "198.51.100.1"
REST = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
GIT = Operation("GET /*repository_path.git/info/refs", Access.READ, Surface.GIT)


class Gitlab:
    """A TokenVerifier that takes everything, and remembers what it was shown."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def verify(self, token: Secret, presentation: Presentation, *, may_be_job: bool = False) -> Verified | None:
        self.asked.append(token.reveal())
        return Verified("user:1")


class World:
    def __init__(self, *, people: bool = True) -> None:
        self.wall, self.monotonic = T, 50.0
        self.fake, self.gitlab = FakeIssuer(), Gitlab()
        self.second = FakeIssuer("https://second.example.com")
        clocks: dict[str, Any] = {"wall": lambda: self.wall, "monotonic": lambda: self.monotonic}

        def of(name: str, *cidr: str, **claims: str) -> WorkloadIdentity:
            patterns = tuple((claim, Pattern(pattern)) for claim, pattern in claims.items())
            return WorkloadIdentity(
                name, Requirement(self.fake.url, "gateway", patterns), team="ci", networks=Networks(cidr)
            )

        identities = (
            msgspec.structs.replace(of("main", job_project_id="7", ref_protected="true"), audit_claims=("job_id",)),
            of("any", job_project_id="7"),
            of("inside", "192.0.2.0/24", job_project_id="8"),
            WorkloadIdentity("second", Requirement(self.second.url, "gateway", ())),
        )
        settings = IdentitySettings(workloads=identities, gitlab_token=TokenIdentity("people") if people else None)
        by_url = {one.url: Issuer(one.url, one, monotonic=lambda: self.monotonic) for one in (self.fake, self.second)}
        issuers = {one.id: by_url[one.requirement.issuer] for one in identities}
        self.workloads = WorkloadTokens(identities, issuers, fingerprint_key=b"f" * 32, **clocks)
        keys = GatewayKeys(MemoryKeys(), (), pepper=b"pepper", fingerprint_key=b"f" * 32, **clocks)
        tokens = GitlabTokens(
            self.gitlab, TokenIdentity("people"), fingerprint_key=b"f" * 32, partition_key=b"p" * 32, **clocks
        )
        self.authenticator = PrincipalAuthenticator(
            settings,
            keys,
            tokens if people else None,
            PeerGuard(failures=20),
            self.workloads,
            process_key=secrets.token_bytes(32),
            fingerprint_key=b"f" * 32,
            monotonic=lambda: self.monotonic,
        )

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def claims(self, **change: Any) -> dict[str, Any]:
        return {
            "iss": self.fake.url,
            "aud": "gateway",
            "exp": T + 300,
            "nbf": T - 5,
            "iat": T,
            "job_project_id": "7",
            "ref_protected": "false",
            **change,
        }

    def token(self, **change: Any) -> str:
        return self.fake.sign(self.claims(**change))

    async def ask(
        self, token: str, carrier: Carrier = Carrier.BEARER, operation: Operation = REST, peer: str = HERE
    ) -> Principal:
        kind = CredentialKind.BASIC if carrier is Carrier.BASIC else CredentialKind.TOKEN
        head = RequestHead("GET", b"/", (), peer=peer)
        return await self.authenticator.authenticate(Claim(kind, Secret(token), carrier), operation, head)

    async def refusal(self, token: str, **more: Any) -> Rejection:
        with pytest.raises(Rejection) as refused:
            await self.ask(token, **more)
        return refused.value


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("operation", [REST, GIT], ids=["rest", "git"])
@pytest.mark.parametrize("carrier", [Carrier.BEARER, Carrier.PRIVATE_TOKEN, Carrier.BASIC, Carrier.QUERY])
async def test_a_workload_is_its_identity_whatever_carries_the_token(
    world: World, carrier: Carrier, operation: Operation
) -> None:
    principal = await world.ask(world.token(), carrier, operation)
    assert (principal.id, principal.kind, principal.identity, principal.team) == ("any", PrincipalKind.OIDC, "any", "ci")
    assert principal.brokered
    assert principal.fingerprint.startswith("tok:")
    assert world.gitlab.asked == []


async def test_a_principal_says_whose_token_it_was(world: World) -> None:
    said = {"sub": "project_path:g/p:ref:main", "job_id": 81, "jti": "5f0b"}
    principal = await world.ask(world.token(**said))
    assert (principal.credential_id, principal.credential_subject) == ("5f0b", "project_path:g/p:ref:main")
    principal = await world.ask(world.token(ref_protected="true", **said))
    assert principal.credential_subject == "project_path:g/p:ref:main job_id=81"


async def test_a_token_where_gitlab_would_see_it_is_refused(world: World) -> None:
    claim = Claim(CredentialKind.OPAQUE, Secret(world.token()), Carrier.QUERY, "feed_token")
    with pytest.raises(Rejection) as refused:
        await world.authenticator.authenticate(claim, REST, RequestHead("GET", b"/", (), peer="192.0.2.1"))
    assert refused.value.code is Code.UNAUTHENTICATED


@pytest.mark.parametrize("kind", [CredentialKind.TOKEN, CredentialKind.NONE])
async def test_nor_does_it_go_up_beside_another_credential(world: World, kind: CredentialKind) -> None:
    claim = Claim(kind, Secret("glpat-good"), Carrier.PRIVATE_TOKEN, other_tokens=(Secret("x"), Secret(world.token())))
    with pytest.raises(Rejection) as refused:
        await world.authenticator.authenticate(claim, REST, RequestHead("POST", b"/", (), peer=HERE))
    assert refused.value.code is Code.UNAUTHENTICATED
    assert world.gitlab.asked == []


async def test_the_first_that_fits_is_the_caller(world: World) -> None:
    assert (await world.ask(world.token(ref_protected="true"))).id == "main"
    assert (await world.ask(world.token(ref_protected=True))).id == "main"
    assert (await world.ask(world.token())).id == "any"


async def test_a_fork_cannot_borrow_its_parents_identity(world: World) -> None:
    """A pipeline of the fork runs jobs of the fork, whatever project it says it is for."""
    refused = await world.refusal(world.token(job_project_id="666", project_id="7", ref_protected="true"))
    assert refused.code is Code.UNAUTHENTICATED


HOSTILE = {
    "over": ({"exp": T - 31}, "exp (it has expired)"),
    "begins later": ({"nbf": T + 31}, "nbf (it is in the future: compare the clocks)"),
    "issued later": ({"iat": T + 31}, "iat (it is in the future: compare the clocks)"),
    "issued some time": ({"iat": "now"}, "iat"),
    "another audience": ({"aud": "vault"}, "aud"),
    "audiences without ours": ({"aud": ["vault", "https://gitlab.example.com"]}, "aud"),
    "no end": ({"exp": None}, "exp"),
    "another project": ({"job_project_id": "77"}, "job_project_id"),
    "several projects in a mapping": ({"job_project_id": {"7": "7"}}, "job_project_id"),
}


@pytest.mark.parametrize(("change", "unmet"), HOSTILE.values(), ids=HOSTILE)
async def test_a_good_signature_is_not_enough(world: World, change: dict[str, Any], unmet: str) -> None:
    for _ in range(2):  # judged, and remembered
        refused = await world.refusal(world.token(**change))
        assert (refused.code, refused.message) == (Code.UNAUTHENTICATED, "401 Unauthorized")
        assert refused.detail == f"a workload token: it fits no identity; nearest is any, but for {unmet}"
    assert world.gitlab.asked == []


async def test_forgeries_are_refused_alike_and_never_shown_to_gitlab(world: World) -> None:
    good = world.token()
    head, body, signature = good.split(".")
    rsa = {"alg": "RS256", "kid": "one"}
    twice = b'{"iss":"%s","aud":"gateway","aud":"gateway","exp":%d,"job_project_id":"7"}' % (
        world.fake.url.encode(),
        int(T + 300),
    )
    forged = [
        f"{segment({'alg': 'none'})}.{body}.c2ln",
        f"{segment({'alg': 'none'})}.{body}.",
        f"{segment({**rsa, 'kid': 'unknown'})}.{body}.{signature}",
        f"{segment({**rsa, 'crit': ['exp']})}.{body}.{signature}",
        f"{head}.{segment(world.claims(job_project_id='7', ref_protected='true'))}.{signature}",
        world.fake.sign_raw(twice),
        f"{head}.{body}.{signature[:-2]}",
        "eyJ" + "A" * MAX_LENGTH,
    ]
    for token in forged:
        for carrier in (Carrier.BEARER, Carrier.BASIC):
            refused = await world.refusal(token, carrier=carrier, operation=GIT)
            assert refused.code is Code.UNAUTHENTICATED
            assert refused.detail in {
                "a workload token: it can't be read in one way only",
                "a workload token: none of its issuer's keys has signed it",
            }
    assert world.gitlab.asked == []


@pytest.mark.parametrize("wrapped", ['"{}"', "'{}'", "{}.x", "x:{}", "Token {}"])
async def test_one_in_quotes_or_so_is_shown_to_nobody(world: World, wrapped: str) -> None:
    text = Secret(wrapped.format(world.token()))
    beside = Claim(CredentialKind.TOKEN, Secret("glpat-x"), Carrier.PRIVATE_TOKEN, other_tokens=(text,))
    trigger = Operation("POST /api/v4/projects/:id/trigger/pipeline", Access.WRITE, Surface.REST)
    for claim, operation in (
        (Claim(CredentialKind.TOKEN, text, Carrier.BEARER), REST),
        (Claim(CredentialKind.JOB_TOKEN, text, Carrier.JOB_TOKEN), REST),
        (Claim(CredentialKind.OPAQUE, text, Carrier.AUTHORIZATION), GIT),
        (Claim(CredentialKind.BASIC, text, Carrier.BASIC), GIT),
        (Claim(CredentialKind.BASIC, Secret("x-oauth-basic"), Carrier.BASIC, username=text.reveal()), GIT),
        (Claim(CredentialKind.OPAQUE, text, Carrier.QUERY, "token"), trigger),
        (beside, REST),
    ):
        with pytest.raises(Rejection) as refused:
            await world.authenticator.authenticate(claim, operation, RequestHead("GET", b"/", (), peer=HERE))
        assert refused.value.code is Code.UNAUTHENTICATED
    assert world.gitlab.asked == []


@pytest.mark.parametrize("kind", [CredentialKind.TOKEN, CredentialKind.BASIC])
async def test_of_many_that_look_like_one_none_is_read(world: World, kind: CredentialKind) -> None:
    """A field holds thousands, and reading them all would stop everybody else."""
    foreign = f"'{segment({'alg': 'none'})}.{segment({'iss': 'https://other.example.com'})}.x'"

    async def ask(count: int) -> Principal:
        claim = Claim(kind, Secret(foreign * count), Carrier.BEARER)
        return await world.authenticator.authenticate(claim, REST, RequestHead("GET", b"/", (), HERE))

    assert (await ask(16)).id == "user:1"
    with pytest.raises(Rejection) as refused:
        await ask(17)
    assert refused.value.code is Code.UNAUTHENTICATED
    assert len(world.gitlab.asked) == 1


async def test_a_job_token_that_holds_gitlabs_own_is_gitlabs_to_judge(world: World) -> None:
    text = "glcbt-" + world.token()
    assert (await world.ask(text)).id == "user:1"


async def test_failures_count_against_the_peer(world: World) -> None:
    for number in range(20):
        assert (await world.refusal(world.token(job_project_id=f"9{number}"))).code is Code.UNAUTHENTICATED
    assert (await world.refusal(world.token(job_project_id="99"))).code is Code.TOO_MANY_FAILED_LOGINS
    assert (await world.ask(world.token(), peer=THERE)).id == "any"
    # And one known to be good is not locked out by its neighbours.
    assert (await world.ask(world.token())).id == "any"


async def test_a_workload_from_elsewhere_is_refused_like_an_unknown_one(world: World) -> None:
    token = world.token(job_project_id="8")
    assert (await world.ask(token)).id == "inside"
    assert (await world.refusal(token, peer=THERE)).code is Code.UNAUTHENTICATED


async def test_a_token_of_another_issuer_is_gitlabs_to_judge(world: World) -> None:
    other = FakeIssuer("https://other.example.com").sign({"iss": "https://other.example.com"})
    assert (await world.ask(other)).id == "user:1"
    assert world.gitlab.asked == [other]


async def test_what_only_begins_like_one_is_gitlabs_to_judge(world: World) -> None:
    assert (await world.ask("eyJ-is-how-this-begins")).id == "user:1"
    assert world.gitlab.asked == ["eyJ-is-how-this-begins"]


# Memory


async def test_a_verified_token_is_believed_for_a_minute_and_never_past_its_end(world: World) -> None:
    token = world.token(exp=T + 90)
    await asyncio.gather(*(world.ask(token) for _ in range(20)))
    world.fake.keys = {}
    world.fake.rotate()
    world.pass_(TTL_S - 1)
    assert (await world.ask(token)).id == "any"
    world.pass_(1)
    assert (await world.ask(token)).id == "any"  # the issuer's keys are believed for longer
    world.pass_(60)
    assert (await world.refusal(token)).code is Code.UNAUTHENTICATED


async def test_a_refused_token_costs_no_work_for_a_moment(world: World) -> None:
    token = world.token(nbf=T + 33)
    await world.refusal(token)
    world.pass_(4)
    assert (await world.refusal(token)).code is Code.UNAUTHENTICATED
    world.pass_(1)
    assert (await world.ask(token)).id == "any"


async def test_a_silent_issuer_is_503_and_never_a_failed_login(world: World) -> None:
    token = world.token()
    world.fake.failure = NotAnswering("silent")
    for _ in range(30):
        refused = await world.refusal(token)
        assert (refused.code, refused.status) == (Code.IDENTITY_UNAVAILABLE, 503)
    world.fake.failure = None
    world.pass_(5)
    assert (await world.ask(token)).id == "any"
    world.fake.failure = NotAnswering("silent")
    world.pass_(FRESH_S)
    assert (await world.ask(world.token(exp=T + 2 * FRESH_S))).id == "any"  # by the keys last known


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_slow_issuer_holds_up_nobody_elses_tokens(world: World) -> None:
    world.fake.gate.clear()
    waiting = [asyncio.ensure_future(world.ask(world.token(jti=number))) for number in range(30)]
    await asyncio.sleep(0)
    other = asyncio.ensure_future(world.ask(world.second.sign(world.claims(iss=world.second.url))))
    await _turns()
    assert other.done()
    assert (await other).id == "second"
    world.fake.gate.set()
    assert {principal.id for principal in await asyncio.gather(*waiting)} == {"any"}


async def test_strangers_hold_up_no_token_that_was_good_a_moment_ago(world: World) -> None:
    token = world.token()
    await world.ask(token)
    world.pass_(TTL_S)
    world.fake.gate.clear()
    unknown = f"{segment({'alg': 'RS256', 'kid': 'unknown'})}.{segment(world.claims())}."
    strangers = [
        asyncio.ensure_future(world.refusal(unknown + f"c2ln{number}", peer=f"203.0.113.{number}")) for number in range(30)
    ]
    await asyncio.sleep(0)
    known = asyncio.ensure_future(world.ask(token))
    await _turns()
    assert known.done()
    assert (await known).id == "any"
    world.fake.gate.set()
    assert {refusal.status for refusal in await asyncio.gather(*strangers)} == {401}


async def test_tokens_that_nobody_is_asked_about_wait_for_no_issuer(world: World) -> None:
    texts = {"iss": [world.fake.url]}, {"iss": "https://else.example.com"}, {"act": {"iss": world.fake.url}}
    assert {world.workloads.issuer_to_ask(f"{segment({'alg': 'RS256'})}.{segment(text)}.c2ln") for text in texts} == {""}
    assert world.workloads.issuer_to_ask("eyJ") == ""
    assert world.workloads.issuer_to_ask(world.token()) == world.fake.url


@pytest.mark.parametrize("people", [True, False])
@pytest.mark.parametrize("operation", [REST, GIT])
async def test_who_is_known_is_known_from_memory(people: bool, operation: Operation) -> None:
    """Whoever else may call: jobs alone have no people beside them."""
    world = World(people=people)
    claim = Claim(CredentialKind.BASIC, Secret(world.token()), Carrier.BASIC)
    principal = await world.authenticator.authenticate(claim, operation, RequestHead("GET", b"/", (), peer=HERE))
    proof = world.authenticator.proof(claim, operation, principal)
    assert proof is not None
    assert proof() is principal
    world.pass_(TTL_S)
    assert proof() is not principal


async def test_a_token_is_still_known_until_it_is_over(world: World) -> None:
    claim = Claim(CredentialKind.TOKEN, Secret(world.token(exp=T + 2 * FRESH_S)), Carrier.BEARER)
    for _ in range(2):
        assert await world.authenticator.still_accepts(claim)
    world.pass_(TTL_S)
    assert await world.authenticator.still_accepts(claim)
    world.fake.failure = NotAnswering("silent")
    world.pass_(FRESH_S)
    assert await world.authenticator.still_accepts(claim)
    world.pass_(FRESH_S + 31)
    assert not await world.authenticator.still_accepts(claim)


async def test_closing_ends_what_is_in_flight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ended = asyncio.Event(), list[str]()

    async def hang(url: str) -> bytes:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(url)
        raise AssertionError

    monkeypatch.setattr(world.fake, "get", hang)
    asking = asyncio.ensure_future(world.ask(world.token()))
    await asked.wait()
    await world.authenticator.close()
    assert len(ended) == 1
    await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()

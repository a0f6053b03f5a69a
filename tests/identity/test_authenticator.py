from __future__ import annotations

import asyncio
import secrets
from typing import Any

import msgspec
import pytest

from gateway.core.access import Principal, PrincipalKind
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.credentials import Carrier, Claim, CredentialKind, read_claim
from gateway.core.cross_origin import preflight_principal
from gateway.core.errors import Code, Rejection
from gateway.core.gateway_key import new_key
from gateway.core.messages import RequestHead
from gateway.core.peer_guard import PeerGuard
from gateway.core.secret import Secret
from gateway.core.target import parse_target
from gateway.identity.authenticator import PrincipalAuthenticator
from gateway.identity.gitlab_tokens import GitlabTokens
from gateway.identity.key_issuer import KeyIssuer, KeyTerms
from gateway.identity.keys import GatewayKeys
from gateway.identity.settings import (
    AnonymousIdentity,
    IdentitySettings,
    KeyIdentity,
    Networks,
    Passthrough,
    TokenIdentity,
)
from gateway.ports import KeyRecord, NotAnswering, Presentation, StoreUnavailable, Verified
from gateway.stores.keys_memory import MemoryKeys

T = 1_800_000_000.0
HERE, THERE = "192.0.2.1", "198.51.100.1"

REST = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
JOB_ROUTE = Operation("GET /api/v4/job", Access.READ, Surface.REST, job_token=True)
GIT = Operation("GET /*repository_path.git/info/refs", Access.READ, Surface.GIT)
PACKAGES = Operation("GET /api/v4/packages/npm/*name", Access.READ, Surface.PACKAGES, deploy_token=True)
SCIM = Operation("GET /api/scim/v2/application/Users", Access.READ, Surface.SCIM)

PEOPLE = TokenIdentity("people", networks=Networks(("192.0.2.0/24", "2001:db8::/32")))
FULL = IdentitySettings(
    keys=(KeyIdentity("backstage", team="platform", networks=Networks(("192.0.2.0/24",))), KeyIdentity("renovate")),
    gitlab_token=PEOPLE,
    anonymous=AnonymousIdentity("guests", team="world", networks=Networks(("192.0.2.0/24",))),
)


class Gitlab:
    """A TokenVerifier that answers at once, when told to, or not at all."""

    def __init__(self) -> None:
        self.good = {"good": "user:42"}
        self.asked: list[tuple[str, Presentation, bool]] = []
        self.silent = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.most_under_way = 0

    async def verify(self, token: Secret, presentation: Presentation, *, may_be_job: bool = False) -> Verified | None:
        self.asked.append((token.reveal(), presentation, may_be_job))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if self.silent:
            raise NotAnswering("silent")
        subject = self.good.get(token.reveal())
        return None if subject is None else Verified(subject, credential_id="token:5")


class Store(MemoryKeys):
    def __init__(self) -> None:
        super().__init__()
        self.finds = 0
        self.away = False

    async def find(self, digest: bytes) -> KeyRecord | None:
        self.finds += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("unplugged")
        return await super().find(digest)


class World:
    def __init__(self, settings: IdentitySettings = FULL, timeout_s: float = 10.0) -> None:
        self.wall, self.monotonic = T, 50.0
        self.gitlab, self.store = Gitlab(), Store()
        clocks: dict[str, Any] = {"wall": lambda: self.wall, "monotonic": lambda: self.monotonic}
        more: dict[str, Any] = {"stale_s": settings.keys_stale_s, **clocks}
        keys = GatewayKeys(self.store, settings.keys, pepper=b"pepper", fingerprint_key=b"f" * 32, **more)
        tokens = None
        if settings.gitlab_token is not None:
            tokens = GitlabTokens(
                self.gitlab, settings.gitlab_token, fingerprint_key=b"f" * 32, partition_key=b"p" * 32, **clocks
            )
        self.issuer = KeyIssuer(self.store, pepper=b"pepper", wall=lambda: self.wall, random=secrets.token_bytes)
        self.authenticator = PrincipalAuthenticator(
            settings,
            keys,
            tokens,
            PeerGuard(failures=20, window_s=60.0),
            process_key=secrets.token_bytes(32),
            fingerprint_key=b"f" * 32,
            monotonic=lambda: self.monotonic,
            timeout_s=timeout_s,
        )

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    async def ask(self, claim: Claim, operation: Operation = REST, peer: str = HERE) -> Principal:
        return await self.authenticator.authenticate(claim, operation, head(peer))

    async def refusal(self, claim: Claim, operation: Operation = REST, peer: str = HERE) -> Rejection:
        with pytest.raises(Rejection) as refused:
            await self.ask(claim, operation, peer)
        return refused.value


def head(peer: str = HERE) -> RequestHead:
    return RequestHead("GET", b"/", (), peer=peer)


def private(text: str) -> Claim:
    return Claim(CredentialKind.TOKEN, Secret(text), Carrier.PRIVATE_TOKEN)


def bearer(text: str) -> Claim:
    return Claim(CredentialKind.TOKEN, Secret(text), Carrier.BEARER)


def basic(password: str, username: str = "me") -> Claim:
    return Claim(CredentialKind.BASIC, Secret(password), Carrier.BASIC, username=username)


NOTHING = Claim(CredentialKind.NONE, Secret(""))


@pytest.fixture
def world() -> World:
    return World()


# Gateway keys


@pytest.mark.parametrize("kind", [kind for kind in CredentialKind if kind is not CredentialKind.NONE])
@pytest.mark.parametrize("operation", [REST, GIT, PACKAGES, SCIM], ids=lambda operation: operation.surface)
async def test_a_gateway_key_is_one_whatever_carries_it(world: World, kind: CredentialKind, operation: Operation) -> None:
    key, _ = await world.issuer.issue("backstage")
    principal = await world.ask(Claim(kind, key), operation)
    assert (principal.id, principal.kind, principal.team) == ("backstage", PrincipalKind.KEY, "platform")
    assert principal.brokered
    assert world.gitlab.asked == []


@pytest.mark.parametrize("operation", [REST, GIT, PACKAGES, SCIM], ids=lambda operation: operation.surface)
@pytest.mark.parametrize("text", ["ggw_", "ggw_" + "0" * 49, new_key(bytes(32)).reveal()], ids=["stub", "typo", "unknown"])
async def test_a_bad_gateway_key_is_refused_and_never_shown_to_gitlab(
    world: World, operation: Operation, text: str
) -> None:
    for claim in (private(text), bearer(text), basic(text)):
        assert (await world.refusal(claim, operation)).code is Code.UNAUTHENTICATED
    assert world.gitlab.asked == []


@pytest.mark.parametrize("name", ["feed_token", "rss_token"])
@pytest.mark.parametrize("surface", list(Surface))
async def test_a_key_where_gitlab_would_see_it_is_refused(world: World, name: str, surface: Surface) -> None:
    """These parameters stay in the target: a good key there is believed no more than a bad one."""
    key, _ = await world.issuer.issue("backstage")
    operation = Operation("x", Access.READ, surface)
    target = parse_target(f"/api/v4/x?{name}={key.reveal()}".encode())
    claim = read_claim((), "GET", target, operation)
    assert (claim.stays_in_target, key.reveal().encode() in claim.target) == (True, True)
    assert (await world.refusal(claim, operation)).code is Code.UNAUTHENTICATED
    cut = read_claim((), "GET", parse_target(f"/api/v4/x?private_token={key.reveal()}".encode()), operation)
    assert (cut.stays_in_target, cut.target) == (False, b"/api/v4/x")
    assert (await world.ask(cut, operation)).id == "backstage"


RAW = Operation("GET /*project/-/raw/*ref_path", Access.READ, Surface.WEB_TOKEN)
TRIGGER = Operation("POST /api/v4/projects/:id/trigger/pipeline", Access.WRITE, Surface.REST)
HOOKS = Operation("POST /api/v4/projects/:id/hooks", Access.WRITE, Surface.REST)


def beside(operation: Operation, name: bytes, text: str, token: str = "t") -> Claim:
    return read_claim([(name, text.encode())], "POST", parse_target(f"/x?token={token}".encode()), operation)


async def test_a_key_is_not_joined_by_a_token_that_gitlab_would_use(world: World) -> None:
    key, _ = await world.issuer.issue("backstage")
    for operation in (RAW, TRIGGER, PACKAGES, JOB_ROUTE):
        for name in (b"PRIVATE-TOKEN", b"JOB-TOKEN"):
            claim = beside(operation, name, key.reveal())
            assert (await world.refusal(claim, operation)).code is Code.AMBIGUOUS_CREDENTIAL
            assert world.authenticator.proof(claim, operation, preflight_principal(HERE)) is None
    assert world.store.finds == 0
    claim = beside(HOOKS, b"PRIVATE-TOKEN", key.reveal())
    principal = await world.ask(claim, HOOKS)
    assert principal.id == "backstage"
    assert world.authenticator.proof(claim, HOOKS, principal) is None, "each time anew"


async def test_own_tokens_may_be_joined_as_clients_do_it(world: World) -> None:
    for operation in (RAW, TRIGGER, PACKAGES, HOOKS, JOB_ROUTE):
        assert (await world.ask(beside(operation, b"PRIVATE-TOKEN", "good"), operation)).id == "user:42"
    assert (await world.ask(beside(TRIGGER, b"JOB-TOKEN", "good"), TRIGGER)).id == "user:42"


async def test_a_job_is_not_joined_by_another(world: World) -> None:
    world.gitlab.good["job"] = "job-project:7"
    assert (
        await world.ask(Claim(CredentialKind.JOB_TOKEN, Secret("job"), Carrier.JOB_TOKEN), JOB_ROUTE)
    ).id == "job-project:7"
    claim = beside(JOB_ROUTE, b"JOB-TOKEN", "job", "another")
    assert (await world.refusal(claim, JOB_ROUTE)).code is Code.AMBIGUOUS_CREDENTIAL


@pytest.mark.parametrize("wrapped", ['"{}"', "token {}", " {}"])
async def test_a_key_in_quotes_or_so_is_shown_to_nobody(wrapped: str) -> None:
    world = World(msgspec.structs.replace(FULL, passthrough=frozenset(Passthrough)))
    key, _ = await world.issuer.issue("backstage")
    text = Secret(wrapped.format(key.reveal()))
    for claim, operation in (
        (Claim(CredentialKind.TOKEN, text, Carrier.BEARER), REST),
        (Claim(CredentialKind.TOKEN, text, Carrier.BEARER), PACKAGES),
        (Claim(CredentialKind.OPAQUE, text, Carrier.AUTHORIZATION), GIT),
        (Claim(CredentialKind.BASIC, text, Carrier.BASIC), GIT),
    ):
        assert (await world.refusal(claim, operation)).code is Code.UNAUTHENTICATED
    assert (world.gitlab.asked, world.store.finds) == ([], 0)


async def test_a_typo_costs_no_lookup(world: World) -> None:
    key, _ = await world.issuer.issue("backstage")
    await world.refusal(private(key.reveal()[:-1]))
    await world.refusal(private("ggw_" + "A" * 49))
    assert world.store.finds == 0


async def test_a_key_is_looked_up_once_a_second_however_many_use_it(world: World) -> None:
    key, _ = await world.issuer.issue("backstage")
    await asyncio.gather(*(world.ask(private(key.reveal())) for _ in range(50)))
    assert world.store.finds == 1
    world.pass_(1.0)
    await asyncio.gather(*(world.ask(private(key.reveal())) for _ in range(50)))
    assert world.store.finds == 2


async def test_a_key_from_elsewhere_is_refused_like_an_unknown_one(world: World) -> None:
    key, _ = await world.issuer.issue("backstage")
    assert (await world.refusal(private(key.reveal()), peer=THERE)).code is Code.UNAUTHENTICATED
    assert (await world.ask(private(key.reveal()), peer=HERE)).id == "backstage"
    assert (await world.refusal(private(key.reveal()), peer=THERE)).code is Code.UNAUTHENTICATED
    free, _ = await world.issuer.issue("renovate")
    assert (await world.ask(private(free.reveal()), peer=THERE)).id == "renovate"


async def test_a_key_bound_to_networks_is_unknown_elsewhere_however_often_it_was_good(world: World) -> None:
    near, far = "192.0.2.130", HERE
    key, _ = await world.issuer.issue("backstage", KeyTerms(cidr=("192.0.2.128/25", "2001:db8::/32")))
    for peer in (far, near, far, near):  # before it is remembered, and after
        if peer == near:
            assert (await world.ask(private(key.reveal()), peer=peer)).id == "backstage"
        else:
            assert (await world.refusal(private(key.reveal()), peer=peer)).code is Code.UNAUTHENTICATED
    # Its identity's networks hold as well: both must.
    assert (await world.refusal(private(key.reveal()), peer="2001:db8::1")).code is Code.UNAUTHENTICATED


async def test_a_bound_key_used_from_elsewhere_is_a_failed_login(world: World) -> None:
    key, _ = await world.issuer.issue("renovate", KeyTerms(cidr=("198.51.100.0/24",)))
    codes = [(await world.refusal(private(key.reveal()))).code for _ in range(21)]
    assert codes == [Code.UNAUTHENTICATED] * 20 + [Code.TOO_MANY_FAILED_LOGINS]


async def test_a_key_revoked_by_this_process_is_dead_at_once(world: World) -> None:
    key, record = await world.issuer.issue("backstage")
    await world.ask(private(key.reveal()))
    await world.issuer.revoke(record.id)
    world.authenticator.forget_key(record.id)
    assert (await world.refusal(private(key.reveal()))).code is Code.UNAUTHENTICATED


async def test_whether_a_key_is_still_known_is_no_login(world: World) -> None:
    key, record = await world.issuer.issue("backstage", KeyTerms(expires_at=T + 900))
    claim = private(key.reveal())
    await world.ask(claim)
    assert await world.authenticator.still_accepts(claim)
    for number in range(20):
        await world.refusal(private(f"ggw_{number}"))
    world.store.away = True
    world.pass_(700)
    assert await world.authenticator.still_accepts(claim)  # nobody can tell
    world.store.away = False
    assert await world.authenticator.still_accepts(claim)
    world.pass_(200)
    assert not await world.authenticator.still_accepts(claim)  # its end has come

    key, record = await world.issuer.issue("backstage")
    claim = private(key.reveal())
    assert await world.authenticator.still_accepts(claim)
    for number in range(20):
        await world.refusal(private(f"ggw_{number}"))
    await world.issuer.revoke(record.id)
    world.authenticator.forget_key(record.id)
    assert not await world.authenticator.still_accepts(claim)  # whoever has failed too often learns it, too
    assert not await world.authenticator.still_accepts(private("good"))


async def test_without_the_store_known_keys_go_on_and_others_hear_503(world: World) -> None:
    known, _ = await world.issuer.issue("backstage")
    other, _ = await world.issuer.issue("backstage")
    await world.ask(private(known.reveal()))
    world.store.away = True
    world.pass_(30)
    assert (await world.ask(private(known.reveal()))).id == "backstage"
    refusal = await world.refusal(private(other.reveal()))
    assert (refusal.code, refusal.status) == (Code.IDENTITY_UNAVAILABLE, 503)
    assert dict(refusal.headers)[b"Retry-After"].isdigit()
    assert refusal.detail


# The callers' own tokens


async def test_an_own_token_is_verified_once_and_remembered(world: World) -> None:
    principals = await asyncio.gather(*(world.ask(private("good")) for _ in range(50)))
    assert {principal.id for principal in principals} == {"user:42"}
    assert world.gitlab.asked == [("good", Presentation.PRIVATE, False)]


async def test_the_same_text_in_another_carrier_is_another_question(world: World) -> None:
    await world.ask(private("good"))
    await world.ask(bearer("good"))
    await world.ask(basic("good"))
    await world.ask(bearer("good"), JOB_ROUTE)
    assert world.gitlab.asked == [("good", Presentation.PRIVATE, False), ("good", Presentation.BEARER, False)]


async def test_on_routes_for_jobs_a_bearer_may_be_a_job_token(world: World) -> None:
    world.gitlab.good["job"] = "job-project:7"
    assert (await world.ask(bearer("job"), JOB_ROUTE)).id == "job-project:7"
    assert (await world.ask(Claim(CredentialKind.JOB_TOKEN, Secret("job"), Carrier.JOB_TOKEN))).id == "job-project:7"
    assert (await world.ask(basic("job", "gitlab-ci-token"), JOB_ROUTE)).id == "job-project:7"
    assert [shown for _, shown, _ in world.gitlab.asked] == [Presentation.BEARER, Presentation.JOB]


async def test_a_bad_token_is_refused_never_anonymous_and_asked_about_once(world: World) -> None:
    for _ in range(5):
        assert (await world.refusal(private("bad"))).code is Code.UNAUTHENTICATED
    assert len(world.gitlab.asked) == 1


async def test_without_a_gitlab_token_identity_a_raw_token_is_refused_unasked() -> None:
    world = World(IdentitySettings(keys=FULL.keys))
    for claim in (private("good"), bearer("good"), Claim(CredentialKind.JOB_TOKEN, Secret("good")), basic("good")):
        assert (await world.refusal(claim)).code is Code.UNAUTHENTICATED
    assert world.gitlab.asked == []


async def test_an_own_token_from_elsewhere_is_refused(world: World) -> None:
    assert (await world.refusal(private("good"), peer=THERE)).code is Code.UNAUTHENTICATED


async def test_when_gitlab_is_silent_only_what_it_vouched_for_passes(world: World) -> None:
    await world.ask(private("good"))
    world.gitlab.silent = True
    world.pass_(60)
    assert (await world.ask(private("good"))).id == "user:42"
    refusal = await world.refusal(private("new"))
    assert (refusal.code, refusal.status) == (Code.IDENTITY_UNAVAILABLE, 503)
    world.gitlab.silent = False
    assert (await world.refusal(private("new"))).status == 401  # silence was not remembered as no


async def test_nobody_waits_for_gitlab_longer_than_the_patience() -> None:
    world = World(timeout_s=0.05)
    await world.ask(private("good"))
    world.gitlab.gate.clear()
    world.pass_(30)
    assert (await world.ask(private("good"))).id == "user:42"
    assert (await world.refusal(private("new"))).code is Code.IDENTITY_UNAVAILABLE
    assert world.gitlab.under_way == 0


async def test_a_401_from_gitlab_itself_makes_the_next_request_ask_again(world: World) -> None:
    principal = await world.ask(private("good"))
    world.pass_(2)
    del world.gitlab.good["good"]
    world.authenticator.report_401(private("good"), principal, head())
    assert (await world.refusal(private("good"))).status == 401


# What GitLab alone can judge, and nothing


@pytest.mark.parametrize(
    ("claim", "operation"),
    [
        (basic("anything"), GIT),
        (bearer("glsoat-x"), SCIM),
        (Claim(CredentialKind.SESSION, Secret("cookie"), Carrier.COOKIE), REST),
        (Claim(CredentialKind.DEPLOY_TOKEN, Secret("gldt-x"), Carrier.DEPLOY_TOKEN), PACKAGES),
    ],
    ids=["git", "scim", "session", "deploy"],
)
async def test_what_only_gitlab_can_judge_passes_by_address(world: World, claim: Claim, operation: Operation) -> None:
    principal = await world.ask(claim, operation, "2001:db8::7")
    assert (principal.id, principal.kind) == ("passthrough:2001:db8::/64", PrincipalKind.PASSTHROUGH)
    assert principal.fingerprint.startswith("tok:")
    assert principal.token_hash == b""
    assert world.gitlab.asked == []


async def test_a_credential_in_a_body_nobody_has_read_has_no_fingerprint(world: World) -> None:
    runner = Operation("POST /api/v4/jobs/request", Access.WRITE, Surface.RUNNER)
    principal = await world.ask(Claim(CredentialKind.OPAQUE, Secret(""), Carrier.BODY, "token"), runner)
    assert (principal.kind, principal.fingerprint) == (PrincipalKind.PASSTHROUGH, "")


async def test_a_closed_passthrough_leaves_verification_or_nothing() -> None:
    world = World(IdentitySettings(gitlab_token=PEOPLE, passthrough=frozenset({Passthrough.LFS})))
    assert (await world.ask(basic("good"), GIT)).id == "user:42"
    assert (await world.refusal(basic("ldap password"), GIT)).status == 401
    assert (await world.refusal(Claim(CredentialKind.SESSION, Secret("cookie")))).status == 401


async def test_an_unrecognised_bearer_on_a_package_route_may_be_a_deploy_token(world: World) -> None:
    assert (await world.ask(bearer("good"), PACKAGES)).id == "user:42"
    assert (await world.ask(bearer("gldt-x"), PACKAGES)).kind is PrincipalKind.PASSTHROUGH
    assert (await world.ask(bearer("gldt-x"), PACKAGES)).kind is PrincipalKind.PASSTHROUGH
    assert len(world.gitlab.asked) == 2


async def test_nothing_is_anonymous_where_configured_and_401_elsewhere(world: World) -> None:
    principal = await world.ask(NOTHING)
    assert (principal.id, principal.kind, principal.identity, principal.team, principal.fingerprint) == (
        *(f"anonymous:{HERE}", PrincipalKind.ANONYMOUS, "guests", "world"),
        "",
    )
    proof = world.authenticator.proof(NOTHING, REST, principal)
    assert proof is not None
    assert proof() is principal
    assert world.authenticator.proof(NOTHING, Operation("GET /v2", Access.READ, Surface.REGISTRY), principal) is None
    assert (await world.refusal(NOTHING, peer=THERE)).status == 401
    assert (await World(IdentitySettings()).refusal(NOTHING)).status == 401


async def test_a_passthrough_for_no_credential_at_all() -> None:
    world = World(IdentitySettings())
    principal = await world.ask(NOTHING, Operation("GET /v2", Access.READ, Surface.REGISTRY))
    assert (principal.id, principal.kind) == (f"passthrough:{HERE}", PrincipalKind.PASSTHROUGH)
    assert world.authenticator.proof(NOTHING, REST, principal) is None


# Failing


async def test_every_refusal_reads_alike(world: World) -> None:
    revoked, record = await world.issuer.issue("backstage")
    await world.issuer.revoke(record.id)
    expired, _ = await world.issuer.issue("backstage", KeyTerms(expires_at=T + 1))
    world.pass_(2)
    claims = [
        private(revoked.reveal()),
        private(expired.reveal()),
        private(new_key(bytes(32)).reveal()),
        private("ggw_typo"),
        private("unknown"),
        bearer("unknown"),
        Claim(CredentialKind.OPAQUE, Secret("?")),
    ]
    refusals = [await world.refusal(claim) for claim in claims] + [await world.refusal(NOTHING, peer=THERE)]
    assert {(one.code, one.status, one.message, one.headers, one.close) for one in refusals} == {
        (Code.UNAUTHENTICATED, 401, "401 Unauthorized", (), False)
    }


async def test_why_a_login_failed_is_for_the_audit_alone(world: World) -> None:
    bound, record = await world.issuer.issue("backstage", KeyTerms(cidr=("192.0.2.128/25",)))

    async def why(claim: Claim, peer: str = HERE) -> str:
        return (await world.refusal(claim, peer=peer)).detail

    assert await why(private(bound.reveal())) == f"{record.id} from outside the networks of this key of backstage"
    assert await why(private(bound.reveal()), THERE) == f"{record.id} from outside the networks of backstage"
    await world.issuer.revoke(record.id)
    world.pass_(2)
    for _ in range(2):  # looked up, and remembered
        assert await why(private(bound.reveal())) == f"{record.id} of backstage is revoked"
    assert await why(private("ggw_typo")) == "no gateway key: mistyped or cut off"
    for _ in range(2):
        assert await why(private("unknown")) == "GitLab does not accept this token"
    assert await why(Claim(CredentialKind.OPAQUE, Secret("?"))) == (
        "neither an identity nor passthrough is for such a credential here"
    )
    assert await why(private("good"), THERE) == "token:5 from outside the networks of people"
    assert await why(NOTHING, THERE) == "from outside the networks of guests"
    assert (await World(IdentitySettings()).refusal(NOTHING)).detail == "no credential"


async def test_after_twenty_failures_a_peer_is_stopped_before_any_lookup(world: World) -> None:
    for number in range(20):
        assert (await world.refusal(private(f"guess {number}"))).status == 401
    refusal = await world.refusal(private("guess 21"))
    assert (refusal.code, refusal.status, refusal.headers) == (Code.TOO_MANY_FAILED_LOGINS, 429, ((b"Retry-After", b"3"),))
    await world.refusal(private(new_key(bytes(32)).reveal()))
    await world.refusal(private("ggw_typo"))
    assert len(world.gitlab.asked) == 20
    assert world.store.finds == 0
    world.pass_(3)
    assert (await world.refusal(private("guess 22"))).status == 401
    assert (await world.refusal(private("guess 23"))).status == 429


async def test_a_whole_ipv6_network_is_one_peer(world: World) -> None:
    for number in range(20):
        await world.refusal(private(f"guess {number}"), peer=f"2001:db8::{number:x}")
    assert (await world.refusal(private("guess"), peer="2001:db8::ffff")).status == 429
    assert (await world.refusal(private("guess"), peer="2001:db8:0:1::1")).status == 401


@pytest.mark.parametrize("stale_s", [600.0, 0.0], ids=["last_known_good", "closed"])
async def test_a_bad_neighbour_locks_out_nobody_known_to_be_good(stale_s: float) -> None:
    people = msgspec.structs.replace(PEOPLE, stale_s=stale_s)
    world = World(msgspec.structs.replace(FULL, gitlab_token=people, keys_stale_s=stale_s))
    key, _ = await world.issuer.issue("backstage")
    await world.ask(private(key.reveal()))
    await world.ask(private("good"))
    for number in range(21):
        await world.refusal(private(f"guess {number}"))
    for _ in range(40):
        assert (await world.ask(private(key.reveal()))).id == "backstage"
        assert (await world.ask(private("good"))).id == "user:42"
        world.pass_(1)
        await world.refusal(private("guess"))


async def test_asking_without_a_credential_is_no_failed_login(world: World) -> None:
    for _ in range(50):
        assert (await world.refusal(NOTHING, peer=THERE)).status == 401


async def test_a_storm_of_guesses_is_asked_about_within_the_bounds(world: World) -> None:
    world.gitlab.gate.clear()
    guesses = [asyncio.ensure_future(world.refusal(private(f"guess {number}"))) for number in range(300)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.gitlab.gate.set()
    refusals = await asyncio.gather(*guesses)
    assert world.gitlab.most_under_way <= 20
    assert len(world.gitlab.asked) <= 40
    assert {refusal.status for refusal in refusals} == {401, 429}


async def test_known_tokens_do_not_queue_behind_a_storm(world: World) -> None:
    await world.ask(private("good"))
    world.pass_(30)
    world.gitlab.gate.clear()
    guesses = [asyncio.ensure_future(world.refusal(private(f"guess {number}"))) for number in range(100)]
    await asyncio.sleep(0)
    known = asyncio.ensure_future(world.ask(private("good")))
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.gitlab.asked[-1][0] == "good"
    world.gitlab.gate.set()
    assert (await known).id == "user:42"
    await asyncio.gather(*guesses)


async def test_beyond_what_can_be_answered_strangers_are_turned_away_at_once(world: World) -> None:
    world.gitlab.gate.clear()
    waiting = [
        asyncio.ensure_future(world.refusal(private(f"guess {number}"), peer=f"192.0.2.{number % 250}"))
        for number in range(1000)
    ]
    for _ in range(3):
        await asyncio.sleep(0)
    assert (await world.refusal(private("one more"))).code is Code.IDENTITY_UNAVAILABLE
    world.gitlab.gate.set()
    await asyncio.gather(*waiting)


async def test_a_peer_waiting_with_one_that_ran_dry_still_gets_its_answer(world: World) -> None:
    """Two peers, one token: the one that asked first is stopped in the queue, the other must not be."""
    world.gitlab.gate.clear()
    fill = [asyncio.ensure_future(world.refusal(private(f"guess {number}"))) for number in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first = asyncio.ensure_future(world.refusal(private("good")))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(world.ask(private("good"), peer="192.0.2.9"))
    await asyncio.sleep(0)
    world.gitlab.gate.set()
    await asyncio.gather(*fill)
    assert (await first).status == 429
    assert (await second).id == "user:42"


async def test_failed_basic_logins_at_gitlab_stop_the_peer_before_gitlab_bans_us(world: World) -> None:
    for _ in range(20):
        principal = await world.ask(basic("wrong"), GIT)
        world.authenticator.report_401(basic("wrong"), principal, head())
    assert (await world.refusal(basic("wrong"), GIT)).status == 429
    assert (await world.ask(basic("right"), GIT, peer=THERE)).kind is PrincipalKind.PASSTHROUGH
    # Not a login: an expired cookie or registry token is answered 401 in the normal course of things.
    session = Claim(CredentialKind.SESSION, Secret("cookie"), Carrier.COOKIE)
    principal = await world.ask(session, peer=THERE)
    for _ in range(50):
        world.authenticator.report_401(session, principal, head(THERE))
    assert (await world.ask(basic("right"), GIT, peer=THERE)).kind is PrincipalKind.PASSTHROUGH


async def test_what_gitlab_refuses_where_nobodys_tokens_are_verified_is_no_login() -> None:
    world = World(IdentitySettings(gitlab_token=None, passthrough=FULL.passthrough))
    principal = Principal("passthrough:x", PrincipalKind.PASSTHROUGH, "passthrough")
    for _ in range(50):
        world.authenticator.report_401(private("deploy"), principal, head())
    assert (await world.ask(basic("right"), GIT)).kind is PrincipalKind.PASSTHROUGH


async def test_guessing_on_package_routes_is_limited_too(world: World) -> None:
    for number in range(20):
        claim = bearer(f"guess {number}")
        principal = await world.ask(claim, PACKAGES)
        world.authenticator.report_401(claim, principal, head())
    assert (await world.refusal(bearer("guess"), PACKAGES)).status == 429
    registry = Operation("GET /v2", Access.READ, Surface.REGISTRY)
    for _ in range(50):
        principal = await world.ask(bearer("expired jwt"), registry, THERE)
        world.authenticator.report_401(bearer("expired jwt"), principal, head(THERE))
    assert (await world.refusal(private("guess"), peer=THERE)).status == 401


@pytest.mark.parametrize(
    "text", ["", "\0", "a\r\nb", "\udcff", "x" * 100_000, "ggw_\udcff", "ggw_\u2028"], ids=lambda t: ascii(t[:9])
)
@pytest.mark.parametrize(
    "kind",
    [
        CredentialKind.TOKEN,
        CredentialKind.BASIC,
        CredentialKind.JOB_TOKEN,
        CredentialKind.OPAQUE,
        CredentialKind.DEPLOY_TOKEN,
    ],
)
async def test_hostile_credentials_are_only_wrong(world: World, kind: CredentialKind, text: str) -> None:
    assert (await world.refusal(Claim(kind, Secret(text)))).status == 401


# Leaving


@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_anywhere_it_leaves_nothing_behind_and_the_next_caller_is_served(turns: int) -> None:
    world = World()
    key, _ = await world.issuer.issue("backstage")
    for claim in (private(key.reveal()), private("good")):
        task = asyncio.ensure_future(world.ask(claim))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await world.ask(claim)).id in {"backstage", "user:42"}
    assert len(world.authenticator._flights) == 0
    assert world.authenticator._token_slots._value == world.authenticator._key_slots._value == 20


async def test_closing_ends_what_is_under_way(world: World) -> None:
    world.gitlab.gate.clear()
    task = asyncio.ensure_future(world.ask(private("good")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await world.authenticator.close()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert world.gitlab.under_way == 0

from __future__ import annotations

import pytest

from gateway.core.access import Principal, PrincipalKind
from gateway.core.credentials import Carrier, Claim, CredentialKind
from gateway.core.secret import Secret
from gateway.identity.gitlab_tokens import GitlabTokens, presentation
from gateway.identity.lookups import LATELY_S, Recall
from gateway.identity.settings import TokenIdentity
from gateway.ports import NotAnswering, Presentation, Verified

T = 1_800_000_000.0


class Gitlab:
    """A TokenVerifier with an opinion on each token, or none when it is silent."""

    def __init__(self) -> None:
        self.good: dict[str, Verified] = {"good": Verified("user:42", ("api",))}
        self.silent = False
        self.asked = 0

    async def verify(self, token: Secret, presentation: Presentation, *, may_be_job: bool = False) -> Verified | None:
        self.asked += 1
        if self.silent:
            raise NotAnswering("silent")
        return self.good.get(token.reveal())


class World:
    def __init__(self, remembered: int = 100, stale_s: float = 600.0) -> None:
        self.wall, self.monotonic = T, 50.0
        self.gitlab = Gitlab()
        self.tokens = GitlabTokens(
            self.gitlab,
            TokenIdentity("people", team="all", ttl_s=30, negative_ttl_s=5, stale_s=stale_s),
            fingerprint_key=b"f" * 32,
            partition_key=b"p" * 32,
            wall=lambda: self.wall,
            monotonic=lambda: self.monotonic,
            remembered=remembered,
        )

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    async def look_up(self, token: str = "good", *, may_be_job: bool = False) -> Principal | None:
        return await self.tokens.look_up(token.encode(), Secret(token), Presentation.BEARER, may_be_job=may_be_job)

    def recall(self, token: str = "good", *, may_be_job: bool = False) -> Principal | Recall:
        return self.tokens.recall(token.encode(), may_be_job=may_be_job)


@pytest.fixture
def world() -> World:
    return World()


def claim(kind: CredentialKind, carrier: Carrier | None = None, **more: str) -> Claim:
    return Claim(kind, Secret("x"), carrier, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shown", "how"),
    [
        (claim(CredentialKind.TOKEN, Carrier.PRIVATE_TOKEN), Presentation.PRIVATE),
        (claim(CredentialKind.TOKEN, Carrier.BEARER), Presentation.BEARER),
        (claim(CredentialKind.TOKEN, Carrier.QUERY, parameter="private_token"), Presentation.PRIVATE),
        (claim(CredentialKind.TOKEN, Carrier.QUERY, parameter="access_token"), Presentation.BEARER),
        (claim(CredentialKind.TOKEN, Carrier.BODY, parameter="bearer_token"), Presentation.BEARER),
        (claim(CredentialKind.JOB_TOKEN, Carrier.JOB_TOKEN), Presentation.JOB),
        (claim(CredentialKind.JOB_TOKEN, Carrier.QUERY, parameter="job_token"), Presentation.JOB),
        (claim(CredentialKind.BASIC, Carrier.BASIC, username="anything"), Presentation.PRIVATE),
        (claim(CredentialKind.BASIC, Carrier.BASIC, username="gitlab-ci-token"), Presentation.JOB),
        (claim(CredentialKind.TOKEN, Carrier.PRIVATE_TOKEN, username="gitlab-ci-token"), Presentation.PRIVATE),
    ],
)
def test_the_carrier_decides_what_a_token_may_be(shown: Claim, how: Presentation) -> None:
    assert presentation(shown) is how


async def test_a_token_is_its_user_with_a_partition_of_its_own(world: World) -> None:
    world.gitlab.good["twin"] = world.gitlab.good["good"]
    principal, twin = await world.look_up(), await world.look_up("twin")
    assert principal is not None
    assert twin is not None
    assert (principal.id, principal.kind, principal.identity, principal.team) == (
        *("user:42", PrincipalKind.GITLAB_TOKEN, "people"),
        "all",
    )
    assert len(principal.token_hash) == 32
    assert principal.token_hash != twin.token_hash
    assert principal.fingerprint != twin.fingerprint


async def test_a_good_token_is_believed_for_its_time_and_then_asked_about(world: World) -> None:
    principal = await world.look_up()
    world.pass_(29.9)
    assert world.recall() == principal
    world.pass_(0.1)
    assert world.recall() is Recall.STALE


async def test_a_token_that_may_not_stand_in_is_no_strangers_all_the_same() -> None:
    world = World(stale_s=0.0)
    await world.look_up()
    world.pass_(30)
    assert world.recall() is Recall.STALE
    world.gitlab.silent = True
    with pytest.raises(NotAnswering):
        await world.look_up()
    world.pass_(LATELY_S)
    assert world.recall() is Recall.UNKNOWN


async def test_a_bad_token_is_remembered_shortly(world: World) -> None:
    assert await world.look_up("bad") is None
    assert world.recall("bad") is Recall.REFUSED
    world.pass_(5)
    assert world.recall("bad") is Recall.UNKNOWN


async def test_a_revoked_token_is_refused_within_its_time_and_never_stands_in(world: World) -> None:
    await world.look_up()
    del world.gitlab.good["good"]
    world.pass_(30)
    assert await world.look_up() is None
    assert world.recall() is Recall.REFUSED
    world.gitlab.silent = True
    world.pass_(5)
    with pytest.raises(NotAnswering):
        await world.look_up()


async def test_what_was_no_job_token_elsewhere_is_asked_about_where_it_may_be_one(world: World) -> None:
    assert await world.look_up("job") is None
    assert world.recall("job", may_be_job=True) is Recall.UNKNOWN
    world.gitlab.good["job"] = Verified("job-project:7")
    principal = await world.look_up("job", may_be_job=True)
    assert world.recall("job") == principal


async def test_while_gitlab_is_silent_tokens_it_vouched_for_go_on_and_new_ones_cannot_be_judged(world: World) -> None:
    principal = await world.look_up()
    world.gitlab.silent = True
    world.pass_(30)
    asked = world.gitlab.asked
    while world.monotonic < 50 + 600:
        if world.recall() is Recall.STALE:
            assert await world.look_up() == principal
        assert world.recall() == principal
        world.pass_(1)
    assert world.gitlab.asked - asked <= 60
    assert world.recall() is Recall.UNKNOWN
    for token in ("good", "new"):
        with pytest.raises(NotAnswering):
            await world.look_up(token)


async def test_a_token_that_stood_in_is_asked_about_as_soon_as_gitlab_is_back(world: World) -> None:
    await world.look_up()
    world.gitlab.silent = True
    world.pass_(30)
    assert await world.look_up() is not None
    world.gitlab.silent = False
    del world.gitlab.good["good"]
    world.pass_(10)
    assert world.recall() is Recall.STALE
    assert await world.look_up() is None


async def test_when_gitlab_is_back_the_time_starts_anew(world: World) -> None:
    await world.look_up()
    world.gitlab.silent = True
    world.pass_(590)
    await world.look_up()
    world.gitlab.silent = False
    world.pass_(10)
    await world.look_up()
    world.gitlab.silent = True
    world.pass_(590)
    assert await world.look_up() is not None


async def test_a_token_ends_with_its_expiry_whoever_answers(world: World) -> None:
    world.gitlab.good["good"] = Verified("user:42", ("api",), T + 10)
    principal = await world.look_up()
    assert principal is not None
    world.pass_(9.9)
    assert world.recall() == principal
    world.pass_(0.1)
    assert world.recall() is Recall.UNKNOWN
    assert await world.look_up() is None
    world.gitlab.silent = True
    with pytest.raises(NotAnswering):
        await world.look_up()


async def test_an_upstream_401_makes_a_judgement_of_some_age_void(world: World) -> None:
    await world.look_up()
    world.tokens.forget(b"good")
    assert isinstance(world.recall(), Principal)  # a route that answers 401 to good tokens must not cost a question each
    world.pass_(1)
    world.tokens.forget(b"good")
    assert world.recall() is Recall.UNKNOWN
    world.tokens.forget(b"never seen")


async def test_a_flood_of_bad_tokens_does_not_push_out_a_good_one() -> None:
    world = World(remembered=10)
    await world.look_up()
    for number in range(100):
        await world.look_up(f"bad {number}")
    assert isinstance(world.recall(), Principal)
    assert len(world.tokens._bad_until) == 10


async def test_many_good_tokens_stay_within_the_bound() -> None:
    world = World(remembered=10)
    for number in range(100):
        world.gitlab.good[f"t{number}"] = Verified(f"user:{number}")
        await world.look_up(f"t{number}")
    assert len(world.tokens._known) == 10

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from gateway.broker.carriers import Carrier
from gateway.broker.static import CredentialsRefused, StaticCredential, StaticTokenSource
from gateway.core.access import Permit
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.errors import Code, Rejection
from gateway.core.secret import Secret
from gateway.ports import NotAnswering, Presentation, UpstreamCredential, Verified

REST = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
NUGET = Operation("GET /api/v4/projects/:id/packages/nuget/query", Access.READ, Surface.PACKAGES)
GIT = Operation("GET /*repository_path.git/info/refs", Access.READ, Surface.GIT)


class Gitlab:
    """A TokenVerifier with an opinion on each token, or none."""

    def __init__(self) -> None:
        self.scopes: dict[str, tuple[str, ...] | None] = {"one": ("api",), "two": ("read_api",)}
        self.silence: NotAnswering | None = None
        self.asked = 0
        self.ends: float | None = None
        self.names = {"one": "sa-bot", "two": ""}
        self.names_asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def verify(self, token: Secret, presentation: Presentation, *, may_be_job: bool = False) -> Verified | None:
        self.asked += 1
        await self.gate.wait()
        if self.silence is not None:
            raise self.silence
        if token.reveal() not in self.scopes:
            return None
        return Verified("user:7", self.scopes[token.reveal()], self.ends)

    async def fetch_username(self, token: Secret) -> str:
        self.names_asked += 1
        await self.gate.wait()
        if self.silence is not None:
            raise self.silence
        return self.names[token.reveal()]


class World:
    def __init__(self, *credentials: StaticCredential) -> None:
        self.monotonic = 50.0
        self.gitlab = Gitlab()
        self.alarms: list[tuple[str, bool]] = []
        self.source = StaticTokenSource(
            credentials or [StaticCredential("sa-one", Secret("one")), StaticCredential("sa-two", Secret("two"))],
            self.gitlab,
            self.gitlab.fetch_username,
            partition_key=b"p" * 32,
            monotonic=lambda: self.monotonic,
            alarm=lambda credential_id, healthy: self.alarms.append((credential_id, healthy)),
        )

    async def checked(self) -> None:
        """Until the check in the background is over."""
        while any(task.get_name() == "credential check" for task in asyncio.all_tasks()):
            await asyncio.sleep(0)

    async def get(self, use: str = "sa-one", operation: Operation = REST) -> UpstreamCredential:
        return await self.source.credential(Permit("rule", use), operation)

    async def refused(self, name: str) -> bool:
        """What becomes of the token that is given out now when GitLab answers 401 to it."""
        return await self.source.refused(self.source._held[name].by_carrier[Carrier.PRIVATE_TOKEN])

    async def refusal(self, use: str = "sa-one") -> Rejection:
        with pytest.raises(Rejection) as refused:
            await self.get(use)
        return refused.value


@pytest.fixture
def world() -> World:
    return World()


async def test_a_permit_gets_its_credential_in_the_field_the_surface_reads(world: World) -> None:
    assert (await world.get()).fields == ((b"PRIVATE-TOKEN", b"one"),)
    assert (await world.get(operation=GIT)).fields == ((b"Authorization", b"Basic b2F1dGgyOm9uZQ=="),)
    assert (await world.get("sa-two")).fields == ((b"PRIVATE-TOKEN", b"two"),)


async def test_at_hand_is_what_would_be_given_without_asking_anybody(world: World) -> None:
    now = world.source.credential_now
    permit = Permit("rule", "sa-one")
    assert now(permit, REST) is await world.get()
    assert now(permit, GIT) is await world.get(operation=GIT)
    assert now(Permit("rule", "nobody"), REST) is None
    kept = world.gitlab.scopes.pop("one")
    assert await world.refused("sa-one")
    assert now(permit, REST) is None, "it is dead"
    world.gitlab.scopes["one"] = kept
    world.monotonic += 3600
    assert now(permit, REST) is None, "GitLab must be asked first"
    assert now(permit, REST) is None
    given = await world.get()
    assert now(permit, REST) is given


def _basic(user: str, token: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Authorization", b"Basic " + base64.b64encode(f"{user}:{token}".encode())),)


async def test_where_the_name_counts_gitlab_is_asked_for_it_once(world: World) -> None:
    now, permit = world.source.credential_now, Permit("rule", "sa-one")
    assert now(permit, NUGET) is None, "GitLab must be asked first"
    world.gitlab.gate.clear()
    callers = [asyncio.ensure_future(world.get(operation=NUGET)) for _ in range(20)]
    await asyncio.sleep(0)
    world.gitlab.gate.set()
    given = await asyncio.gather(*callers)
    assert {each.fields for each in given} == {_basic("sa-bot", "one")}
    assert world.gitlab.names_asked == 1
    assert now(permit, NUGET) is given[0]
    assert given[0].partition == (await world.get()).partition
    assert (await world.get(operation=GIT)).fields == _basic("oauth2", "one")


async def test_a_token_that_may_not_ask_for_its_name_goes_up_as_anybodys(world: World) -> None:
    assert (await world.get("sa-two", NUGET)).fields == _basic("oauth2", "two")
    assert (await world.get("sa-two", NUGET)).fields == _basic("oauth2", "two")
    assert world.gitlab.names_asked == 1


async def test_a_name_is_asked_for_again_after_a_401(world: World) -> None:
    before = await world.get(operation=NUGET)
    assert not await world.source.refused(before), "the token is good"
    assert await world.get(operation=NUGET) is before
    world.monotonic += 60
    world.gitlab.names["one"] = "renamed"
    assert not await world.source.refused(before)
    assert (await world.get(operation=NUGET)).fields == _basic("renamed", "one")
    assert world.gitlab.names_asked == 3


async def test_a_successor_has_the_name_of_its_user(world: World) -> None:
    await world.get(operation=NUGET)
    world.source.switch("sa-one", Secret("next"), None)
    assert (await world.get(operation=NUGET)).fields == _basic("sa-bot", "next")
    assert world.gitlab.names_asked == 1


async def test_a_gitlab_that_does_not_tell_a_name_is_told_of(world: World) -> None:
    await world.source.verify_at_start()
    world.gitlab.silence = NotAnswering("away")
    with pytest.raises(Rejection) as refused:
        await world.get(operation=NUGET)
    assert (refused.value.status, refused.value.code) == (503, Code.BROKER_CREDENTIAL_REFUSED)
    assert "sa-one" in (refused.value.detail or "")
    assert (await world.get()).fields == ((b"PRIVATE-TOKEN", b"one"),), "others need no name"
    world.gitlab.silence = NotAnswering("no GitLab that can be asked", offered=False)
    assert (await world.get(operation=NUGET)).fields == _basic("oauth2", "one")


@pytest.mark.parametrize("operation", [NUGET, REST])
async def test_a_silent_gitlab_is_asked_once_however_many_wait(world: World, operation: Operation) -> None:
    """In turn, the last of them would wait for as many timeouts."""
    if operation is REST:
        kept = world.gitlab.scopes.pop("one")
        assert await world.refused("sa-one")
        world.gitlab.scopes["one"] = kept
        world.monotonic += 30
    world.gitlab.asked = 0
    world.gitlab.silence = NotAnswering("away")
    world.gitlab.gate.clear()
    callers = [asyncio.ensure_future(world.get(operation=operation)) for _ in range(20)]
    await asyncio.sleep(0)
    world.gitlab.gate.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(
        isinstance(one, Rejection) and "`sa-one`" in str(one.detail) and "away" in str(one.detail) for one in outcomes
    )
    assert world.gitlab.asked + world.gitlab.names_asked == 1
    world.gitlab.silence = None
    await world.get(operation=operation)


async def test_the_partition_is_the_tokens_own_whatever_carries_it(world: World) -> None:
    one, git, two = await world.get(), await world.get(operation=GIT), await world.get("sa-two")
    assert one.partition == git.partition != two.partition
    assert len(one.partition) == 32


async def test_nothing_shows_the_token(world: World) -> None:
    credential = await world.get()
    assert "one" not in f"{credential!r} {credential}".replace("sa-one", "")
    assert "Secret(…)" in repr(StaticCredential("x", Secret("hidden")))


async def test_a_withdrawn_one_is_checked_once_before_its_next_use_however_many_wait(world: World) -> None:
    kept = world.gitlab.scopes.pop("one")
    assert await world.refused("sa-one")
    world.gitlab.scopes["one"] = kept
    world.monotonic += 30
    world.gitlab.asked = 0
    world.gitlab.gate.clear()
    callers = [asyncio.ensure_future(world.get()) for _ in range(20)]
    await asyncio.sleep(0)
    world.gitlab.gate.set()
    await asyncio.gather(*callers)
    assert world.gitlab.asked == 1


async def test_at_start_all_problems_are_told_at_once(world: World) -> None:
    world.gitlab.scopes = {"two": ("api", "sudo", "admin_mode")}
    with pytest.raises(CredentialsRefused) as refused:
        await world.source.verify_at_start(["sa-one"])
    assert refused.value.problems == [
        "credential `sa-one` is not accepted by GitLab",
        "credential `sa-two` has the scope admin_mode, sudo but is not marked `sudo: true`",
    ]


async def test_a_dead_one_that_is_not_new_stops_no_start_and_comes_back(world: World) -> None:
    """Somebody's revoked token must not keep a gateway that is restarted, for whatever reason, from serving the others."""
    kept = world.gitlab.scopes.pop("one")
    assert await world.source.verify_at_start(["sa-two"]) == ["credential `sa-one` is not accepted by GitLab"]
    assert world.alarms == [("sa-one", False)]
    assert (await world.refusal()).status == 502
    await world.get("sa-two")
    world.gitlab.scopes["one"] = kept
    world.monotonic += 30
    await world.get()
    assert world.alarms == [("sa-one", False), ("sa-one", True)]


async def test_a_refused_one_that_nobody_uses_is_asked_about_again(world: World) -> None:
    """Readiness and an alert speak of it: they must not do so for ever."""
    kept = world.gitlab.scopes.pop("one")
    await world.source.verify_at_start()
    world.monotonic += 29.9
    world.source.recheck_refused()
    await world.checked()
    assert world.gitlab.asked == 2
    world.gitlab.scopes["one"] = kept
    world.monotonic += 0.1
    world.source.recheck_refused()
    await world.checked()
    assert world.alarms == [("sa-one", False), ("sa-one", True)]
    assert world.gitlab.asked == 3


async def test_a_silent_gitlab_is_not_asked_again_at_once_nor_by_those_who_wait(world: World) -> None:
    del world.gitlab.scopes["one"]
    await world.source.verify_at_start()
    world.monotonic += 30
    world.gitlab.silence = NotAnswering("silent")
    world.gitlab.gate.clear()
    world.source.recheck_refused()
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(world.refusal()) for _ in range(3)]
    await asyncio.sleep(0)
    world.gitlab.gate.set()
    assert {(await one).status for one in waiting} == {503}
    for _ in range(2):
        world.source.recheck_refused()
        await world.checked()
        assert world.gitlab.asked == 3
    world.monotonic += 5
    world.source.recheck_refused()
    await world.checked()
    assert world.gitlab.asked == 4


async def test_nothing_stops_a_worker_in_a_gateway_that_serves_on(world: World) -> None:
    """GitLab was away when the others started, so they could not know either."""
    world.gitlab.scopes = {"two": ("api", "sudo")}
    assert await world.source.verify_at_start(["sa-one"], serves_on=True) == [
        "credential `sa-one` is not accepted by GitLab",
        "credential `sa-two` has the scope sudo but is not marked `sudo: true`",
    ]
    assert [(await world.refusal(name)).status for name in ("sa-one", "sa-two")] == [502, 502]


async def test_a_powerful_credential_passes_when_its_owner_knows() -> None:
    world = World(StaticCredential("root", Secret("one"), sudo=True))
    world.gitlab.scopes["one"] = ("api", "sudo")
    assert await world.source.verify_at_start() == []
    await world.get("root")


async def test_a_gitlab_away_at_start_is_a_warning_and_its_credentials_are_checked_once_it_is_recognised(
    world: World,
) -> None:
    world.gitlab.silence = NotAnswering("GitLab answered 502 about a token")
    warnings = await world.source.verify_at_start()
    assert warnings[0] == "credential `sa-one` is not checked yet: GitLab answered 502 about a token"
    assert world.source.has_unchecked
    await world.get()
    world.gitlab.silence = None
    world.gitlab.scopes["two"] = ("sudo",)
    world.source.gitlab_answered()
    world.source.gitlab_answered()
    await world.checked()
    assert not world.source.has_unchecked
    assert world.gitlab.asked == 4
    assert world.alarms == [("sa-two", False)]
    await world.get()
    assert (await world.refusal("sa-two")).status == 502


async def test_one_that_still_does_not_answer_stays_unchecked(world: World) -> None:
    world.gitlab.silence = NotAnswering("silent")
    await world.source.verify_at_start()
    world.source.gitlab_answered()
    await world.checked()
    assert world.source.has_unchecked
    await world.source.close()


async def test_answers_that_come_too_early_for_the_next_check_do_not_end_the_checks(world: World) -> None:
    world.gitlab.silence = NotAnswering("silent")
    await world.source.verify_at_start()
    for _ in range(2):
        world.source.gitlab_answered()
        await world.checked()
        assert world.source.has_unchecked
    assert world.gitlab.asked == 4
    world.gitlab.silence = None
    world.monotonic += 5
    world.source.gitlab_answered()
    await world.checked()
    assert (world.source.has_unchecked, world.gitlab.asked) == (False, 6)


async def test_closing_ends_a_check_under_way(world: World) -> None:
    world.gitlab.gate.clear()
    world.source.gitlab_answered()
    await asyncio.sleep(0)
    await world.source.close()
    assert world.source.has_unchecked


async def test_an_origin_that_cannot_be_asked_is_used_with_a_warning(world: World) -> None:
    world.gitlab.silence = NotAnswering("404", offered=False)
    assert "can't be asked about tokens" in (await world.source.verify_at_start())[0]
    await world.get()


async def test_a_permit_for_a_credential_that_is_not_there_gets_none(world: World) -> None:
    assert (await world.refusal("sa-nobody")).status == 502
    assert await world.source.refused(UpstreamCredential("sa-nobody", (), b""))


async def test_a_dead_credential_is_withdrawn_with_an_alarm_and_comes_back(world: World) -> None:
    await world.get()
    kept = world.gitlab.scopes.pop("one")
    assert await world.refused("sa-one")
    assert world.alarms == [("sa-one", False)]
    refusal = await world.refusal()
    assert (refusal.code, refusal.status) == (Code.BROKER_CREDENTIAL_REFUSED, 502)
    await world.get("sa-two")
    world.gitlab.scopes["one"] = kept
    assert (await world.refusal()).status == 502
    world.monotonic += 30
    await world.get()
    assert world.alarms == [("sa-one", False), ("sa-one", True)]


async def test_one_that_stays_dead_is_asked_about_twice_a_minute_and_alarmed_once(world: World) -> None:
    del world.gitlab.scopes["one"]
    assert await world.refused("sa-one")
    world.gitlab.asked = 0
    world.monotonic += 30
    for _ in range(60):
        await world.refusal()
        world.monotonic += 1
    assert world.gitlab.asked == 2
    assert world.alarms == [("sa-one", False)]


async def test_a_caller_cannot_take_a_credential_from_the_others(world: World) -> None:
    """Some routes answer 401 to every good token: whoever asks for those must not cost the others theirs."""
    await world.get()
    for _ in range(100):
        assert not await world.refused("sa-one")
        await world.get()
    assert world.gitlab.asked == 1
    assert world.alarms == []


async def test_doubt_while_gitlab_is_silent_takes_it_from_nobody_and_is_nobodys_401(world: World) -> None:
    await world.get()
    world.gitlab.silence = NotAnswering("silent")
    world.gitlab.asked = 0
    for _ in range(10):
        with pytest.raises(Rejection) as unsure:
            await world.refused("sa-one")
        assert (unsure.value.code, unsure.value.status) == (Code.BROKER_CREDENTIAL_REFUSED, 503)
        await world.get()
    assert world.gitlab.asked == 1
    world.monotonic += 5
    world.gitlab.silence = None
    assert not await world.refused("sa-one")
    assert not await world.refused("sa-one")
    assert world.alarms == []


@pytest.mark.parametrize("silence", [NotAnswering("silent"), None])
async def test_a_doubt_that_takes_long_is_one_for_all_who_wait(world: World, silence: NotAnswering | None) -> None:
    """GitLab may take longer to say nothing than a doubt lasts: the last of many would wait for as many answers."""
    await world.get()
    verify = world.gitlab.verify

    async def slowly(*asked: Any, **more: Any) -> Verified | None:
        world.monotonic += 6
        return await verify(*asked, **more)

    world.gitlab.verify = slowly  # type: ignore[method-assign]
    world.gitlab.silence, world.gitlab.asked = silence, 0
    world.gitlab.gate.clear()
    callers = [asyncio.ensure_future(world.refused("sa-one")) for _ in range(20)]
    await asyncio.sleep(0)
    world.gitlab.gate.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(one is False if silence is None else isinstance(one, Rejection) for one in outcomes)
    assert world.gitlab.asked == 1
    world.monotonic += 5
    world.gitlab.silence = None
    assert not await world.refused("sa-one")
    assert world.gitlab.asked == 2


async def test_who_leaves_in_mid_doubt_has_settled_it_for_nobody(world: World) -> None:
    """Else the next would be told GitLab's 401 to a credential of ours that is dead."""
    await world.get()
    del world.gitlab.scopes["one"]
    world.gitlab.gate.clear()
    first, second = (asyncio.ensure_future(world.refused("sa-one")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    world.gitlab.gate.set()
    assert await second, "it is dead"


@pytest.mark.parametrize("token", ["", "a b", "a\r\nSudo: root", "é", "x" * 9000], ids=lambda token: ascii(token[:9]))
async def test_what_cannot_stand_in_a_field_is_refused_at_once_and_not_shown(token: str) -> None:
    with pytest.raises(CredentialsRefused, match="sa-one") as refused:
        World(StaticCredential("sa-one", Secret(token)))
    assert not token or token not in str(refused.value)


@pytest.mark.parametrize("turns", range(4))
async def test_cancelled_in_mid_check_it_leaves_the_next_caller_its_turn(turns: int) -> None:
    world = World()
    for call in (lambda: world.get(), lambda: world.refused("sa-one"), lambda: world.source.verify_at_start()):
        world.gitlab.gate.clear()
        task = asyncio.ensure_future(call())  # type: ignore[func-returns-value, var-annotated]
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world.gitlab.gate.set()
        assert (await world.get()).id == "sa-one"
    await world.source.close()


# Pools, and tokens that are replaced


def pooled(*tokens: str, sudo: bool = False) -> World:
    return World(
        *(StaticCredential(f"pool/{place}", Secret(token), sudo, "pool") for place, token in enumerate(tokens, 1)),
    )


async def test_a_rule_may_use_a_pool_by_its_name() -> None:
    world = pooled("one", "two")
    seen = [(await world.get("pool")).id for _ in range(4)]
    assert sorted(seen) == ["pool/1", "pool/1", "pool/2", "pool/2"]
    assert (await world.refusal("pool/1")).status == 502
    world.source.pick_by({"pool/1": 5.0, "pool/2": 6.0}.__getitem__)
    assert {(await world.get("pool")).id for _ in range(3)} == {"pool/2"}


async def test_a_dead_member_is_left_out_and_told_and_the_pool_carries_on() -> None:
    world = pooled("one", "dead")
    assert await world.source.verify_at_start() == ["credential `pool/2` is not accepted by GitLab"]
    assert {(await world.get("pool")).id for _ in range(4)} == {"pool/1"}
    assert world.alarms == [("pool/2", False)]
    world.gitlab.scopes["dead"] = ("api",)
    world.source.recheck_refused()
    assert not any(task.get_name() == "credential check" for task in asyncio.all_tasks())
    world.monotonic += 30
    world.source.recheck_refused()
    await world.checked()
    assert {(await world.get("pool")).id for _ in range(4)} == {"pool/1", "pool/2"}
    assert world.alarms == [("pool/2", False), ("pool/2", True)]


async def test_a_member_that_dies_while_it_is_used_is_left_out() -> None:
    world = pooled("one", "two")
    await world.source.verify_at_start()
    del world.gitlab.scopes["two"]
    assert await world.refused("pool/2")
    assert {(await world.get("pool")).id for _ in range(4)} == {"pool/1"}


async def test_a_new_pool_of_dead_members_is_refused_and_so_is_one_with_undeclared_power() -> None:
    with pytest.raises(CredentialsRefused) as refused:
        await pooled("dead", "gone").source.verify_at_start(["pool/1", "pool/2"])
    assert len(refused.value.problems) == 2
    assert len(await pooled("one", "gone").source.verify_at_start(["pool/1", "pool/2"])) == 1
    world = pooled("one", "two")
    world.gitlab.scopes["two"] = ("api", "sudo")
    with pytest.raises(CredentialsRefused, match="scope sudo"):
        await world.source.verify_at_start()


async def test_a_pool_without_a_living_member_is_502() -> None:
    world = pooled("one", "two")
    await world.source.verify_at_start()
    world.gitlab.scopes.clear()
    for member in ("pool/1", "pool/2"):
        assert await world.refused(member)
    assert (await world.refusal("pool")).status == 502


async def test_a_switched_token_goes_up_from_the_next_request_on(world: World) -> None:
    before = await world.get()
    world.source.switch("sa-one", Secret("new"), 60.0)
    assert (await world.get()).fields == ((b"PRIVATE-TOKEN", b"new"),)
    assert before.fields == ((b"PRIVATE-TOKEN", b"one"),)
    assert (world.source.token("sa-one"), world.source.expires_at("sa-one")) == (Secret("new"), 60.0)


async def test_whoever_was_given_one_sees_whether_it_would_be_given_out_still(world: World) -> None:
    before = await world.get()
    kept = world.gitlab.scopes.pop("one")
    assert before.token_status.usable
    assert await world.refused("sa-one")
    assert not before.token_status.usable
    world.gitlab.scopes["one"] = kept
    world.monotonic += 30
    assert not before.token_status.usable, "GitLab has not been asked again"
    await world.get()
    assert before.token_status.usable
    world.source.switch("sa-one", Secret("new"), None)
    after = await world.get()
    assert (before.token_status.usable, after.token_status.usable) == (False, True)
    assert (await world.get("sa-two")).token_status.usable


async def test_one_that_is_switched_unasked_stands_as_the_one_before(world: World) -> None:
    def given() -> bool:
        return world.source.credential_now(Permit("rule", "sa-one"), REST) is not None

    def switch(token: str) -> None:
        world.source.switch("sa-one", Secret(token), None, checked=False)

    switch("new")
    assert given(), "GitLab has not refused any"
    world.gitlab.scopes["new"] = world.gitlab.scopes["one"]
    await world.source.verify_at_start()
    switch("newer")
    assert given(), "GitLab took the one before"
    assert await world.refused("sa-one")
    switch("newest")
    assert not given(), "GitLab refused the one before"


async def test_switching_makes_a_refused_one_good_again(world: World) -> None:
    del world.gitlab.scopes["one"]
    assert await world.refused("sa-one")
    world.source.switch("sa-one", Secret("new"), None)
    await world.get()
    assert world.alarms == [("sa-one", False), ("sa-one", True)]


async def test_a_token_read_at_start_is_checked_like_any_other(world: World) -> None:
    world.source.switch("sa-one", Secret("stale"), None, checked=False)
    with pytest.raises(CredentialsRefused, match="`sa-one` is not accepted"):
        await world.source.verify_at_start(["sa-one"])


async def test_before_a_refusal_is_believed_others_are_asked_whether_they_replaced_the_token(world: World) -> None:
    async def look_for_successor() -> None:
        world.source.switch("sa-one", Secret("new"), None)

    del world.gitlab.scopes["one"]
    world.source.look_for_successor = look_for_successor
    assert await world.refused("sa-one")  # the token that was refused is dead; its successor is not
    assert world.alarms == []
    assert (await world.get()).fields == ((b"PRIVATE-TOKEN", b"new"),)


async def test_what_is_heard_of_a_token_replaced_meanwhile_says_nothing(world: World) -> None:
    del world.gitlab.scopes["one"]
    world.gitlab.gate.clear()
    asking = asyncio.ensure_future(world.refused("sa-one"))
    await asyncio.sleep(0)
    world.source.switch("sa-one", Secret("new"), None)
    world.gitlab.gate.set()
    assert await asking
    assert world.alarms == []


async def test_the_end_is_remembered_as_gitlab_said_it(world: World) -> None:
    assert world.source.expires_at("sa-one") is None
    world.gitlab.ends = 1_800_000_000.0
    await world.source.verify_at_start()
    assert world.source.expires_at("sa-one") == 1_800_000_000.0


async def test_a_401_to_a_token_that_was_replaced_since_is_nobodys_401(world: World) -> None:
    given = await world.get()
    world.source.switch("sa-one", Secret("two"), None)
    world.gitlab.asked = 0
    assert await world.source.refused(given)
    assert world.gitlab.asked == 0
    assert world.alarms == []

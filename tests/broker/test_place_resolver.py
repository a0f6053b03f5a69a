"""`42`, `group%2Fproject` and a renamed project are one, by GitLab's word and within stated time."""

from __future__ import annotations

import asyncio

import pytest

from gateway.broker.place_resolver import GitlabPlaceResolver
from gateway.core.catalogue import ReferenceKind
from gateway.core.errors import Code, Rejection
from gateway.core.messages import Field, ResponseHead
from gateway.core.rule_match import Place, PlaceLookup
from gateway.ports import RequestBody, UpstreamCredential, UpstreamRequest
from gateway.reply import Reply

READER = UpstreamCredential("reader", ((b"PRIVATE-TOKEN", b"one"),), b"p1")
OTHER = UpstreamCredential("other", ((b"PRIVATE-TOKEN", b"two"),), b"p2")
BY_ID = PlaceLookup(ReferenceKind.PROJECT, "42")
BY_PATH = PlaceLookup(ReferenceKind.PROJECT, "platform/api")
API = b'{"id":42,"path_with_namespace":"platform/Api","namespace":{"id":7,"kind":"group"}}'


class GitLab:
    """An Upstream that answers by target and counts."""

    def __init__(self) -> None:
        self.answers: dict[bytes, tuple[int, bytes, tuple[Field, ...]]] = {
            b"/api/v4/projects/42": (200, API, ()),
            b"/api/v4/projects/platform%2Fapi": (200, API, ()),
            b"/api/v4/groups/7": (200, b'{"id":7,"full_path":"platform","parent_id":3}', ()),
            b"/api/v4/groups/3": (200, b'{"id":3,"full_path":"top","parent_id":null}', ()),
        }
        self.asked: list[UpstreamRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.released = 0

    async def send(self, request: UpstreamRequest, body: RequestBody | None) -> Reply:
        self.asked.append(request)
        await self.gate.wait()
        status, octets, fields = self.answers.get(request.target, (404, b'{"message":"404 Project Not Found"}', ()))
        return Reply(ResponseHead(status, fields), octets, None, self._released)

    def _released(self) -> None:
        self.released += 1

    async def close(self) -> None:
        return None


class World:
    def __init__(self, *, by_group_id: bool = False, prefix: bytes = b"", remembered: int = 10_000) -> None:
        self.now = 100.0
        self.gitlab = GitLab()
        self.places = GitlabPlaceResolver(
            self.gitlab,
            monotonic=lambda: self.now,
            by_group_id=by_group_id,
            prefix=prefix,
            remembered=remembered,
            fields=((b"Host", b"gitlab.example.com"),),
        )


async def test_id_and_path_lead_to_one_place() -> None:
    world = World()
    found = await world.places.resolve((BY_ID, BY_PATH), READER)
    assert found == {BY_ID: Place("42", "platform/Api"), BY_PATH: Place("42", "platform/Api")}
    asked = world.gitlab.asked[0]
    assert (b"PRIVATE-TOKEN", b"one") in asked.fields
    assert (b"Host", b"gitlab.example.com") in asked.fields
    assert world.gitlab.released == 2


async def test_an_answer_is_remembered_for_its_time_and_for_its_credential() -> None:
    world = World()
    await world.places.resolve((BY_ID,), READER)
    world.now += 59
    await world.places.resolve((BY_ID,), READER)
    assert len(world.gitlab.asked) == 1
    await world.places.resolve((BY_ID,), OTHER)
    assert len(world.gitlab.asked) == 2
    world.now += 1
    await world.places.resolve((BY_ID,), READER)
    assert len(world.gitlab.asked) == 3


async def test_what_the_credential_may_not_know_is_left_out_and_soon_asked_again() -> None:
    world = World()
    secret = PlaceLookup(ReferenceKind.PROJECT, "99")
    assert await world.places.resolve((secret,), READER) == {}
    assert await world.places.resolve((secret,), READER) == {}
    assert len(world.gitlab.asked) == 1
    world.now += 5
    world.gitlab.answers[b"/api/v4/projects/99"] = (200, b'{"id":99,"path_with_namespace":"x/y"}', ())
    assert await world.places.resolve((secret,), READER) == {secret: Place("99", "x/y")}


async def test_a_renamed_project_is_found_by_where_gitlab_moved_it() -> None:
    world = World()
    old = PlaceLookup(ReferenceKind.PROJECT, "platform/old")
    world.gitlab.answers[b"/api/v4/projects/platform%2Fold"] = (
        301,
        b"",
        ((b"Location", b"https://gitlab.example.com/api/v4/projects/42"),),
    )
    assert await world.places.resolve((old,), READER) == {old: Place("42", "platform/Api")}


async def test_a_move_to_nowhere_is_no_answer() -> None:
    world = World()
    old = PlaceLookup(ReferenceKind.PROJECT, "platform/old")
    world.gitlab.answers[b"/api/v4/projects/platform%2Fold"] = (301, b"", ((b"Location", b"https://evil.example/"),))
    with pytest.raises(Rejection) as refused:
        await world.places.resolve((old,), READER)
    assert refused.value.code is Code.PLACE_UNAVAILABLE


async def test_groups_around_a_place_are_asked_for_where_rules_name_groups_by_number() -> None:
    world = World(by_group_id=True)
    assert (await world.places.resolve((BY_ID,), READER))[BY_ID].group_ids == ("7", "3")
    group = PlaceLookup(ReferenceKind.GROUP, "7")
    assert (await world.places.resolve((group,), READER))[group] == Place("7", "platform", ("3",))


async def test_a_users_own_project_has_no_group_around_it() -> None:
    world = World(by_group_id=True)
    world.gitlab.answers[b"/api/v4/projects/42"] = (
        200,
        b'{"id":42,"path_with_namespace":"ada/x","namespace":{"id":5,"kind":"user"}}',
        (),
    )
    assert (await world.places.resolve((BY_ID,), READER))[BY_ID].group_ids == ()


async def test_a_circle_of_groups_ends() -> None:
    world = World(by_group_id=True)
    world.gitlab.answers[b"/api/v4/groups/3"] = (200, b'{"id":3,"full_path":"top","parent_id":7}', ())
    assert len((await world.places.resolve((BY_ID,), READER))[BY_ID].group_ids) == 20


@pytest.mark.parametrize(
    ("status", "body"), [(500, b""), (429, b"Retry later\n"), (401, b"{}"), (200, b"<html>"), (200, b"[]")]
)
async def test_a_gitlab_that_does_not_answer_closes(status: int, body: bytes) -> None:
    world = World()
    world.gitlab.answers[b"/api/v4/projects/42"] = (status, body, ())
    with pytest.raises(Rejection) as refused:
        await world.places.resolve((BY_ID,), READER)
    assert (refused.value.code, refused.value.status) == (Code.PLACE_UNAVAILABLE, 503)


async def test_many_askers_cost_one_question_and_a_leader_that_leaves_takes_nobody_along() -> None:
    world = World()
    world.gitlab.gate.clear()
    askers = [asyncio.ensure_future(world.places.resolve((BY_ID,), READER)) for _ in range(20)]
    while not world.gitlab.asked:
        await asyncio.sleep(0)
    askers[0].cancel()
    world.gitlab.gate.set()
    results = await asyncio.gather(*askers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, dict) and BY_ID in result for result in results[1:])
    assert len(world.gitlab.asked) <= 3


async def test_room_is_asked_for_where_gitlab_must_be_and_nobody_else_waits_for_it() -> None:
    world, asked, there_is = World(), list[str](), asyncio.Event()

    async def room() -> None:
        asked.append("late")
        await there_is.wait()

    async def none() -> None:
        raise Rejection(Code.RATE_LIMITED, 429, "no room")

    with pytest.raises(Rejection):
        await world.places.resolve((BY_ID,), READER, none)
    late = asyncio.ensure_future(world.places.resolve((BY_ID,), READER, room))
    while not asked:
        await asyncio.sleep(0)
    assert BY_ID in await world.places.resolve((BY_ID,), READER)
    there_is.set()
    assert BY_ID in await late
    assert BY_ID in await world.places.resolve((BY_ID,), READER, none), "it is remembered"
    assert len(world.gitlab.asked) == 1


async def test_one_question_takes_one_turn_whoever_waits_for_its_answer() -> None:
    """A refused turn takes nobody along: the next who waited tries."""
    world, turns, comes = World(), list[int](), asyncio.Event()

    async def turn() -> None:
        turns.append(len(turns))
        await comes.wait()
        if len(turns) == 1:
            raise Rejection(Code.RATE_LIMITED, 429, "too slow")

    askers = [asyncio.ensure_future(world.places.resolve((BY_ID,), READER, None, turn)) for _ in range(20)]
    while not turns:
        await asyncio.sleep(0)
    comes.set()
    results = await asyncio.gather(*askers, return_exceptions=True)
    assert [isinstance(result, Rejection) for result in results] == [True] + [False] * 19
    assert (turns, len(world.gitlab.asked)) == ([0, 1], 1)


async def test_a_request_that_names_too_many_places_is_not_asked_about() -> None:
    world = World()
    many = tuple(PlaceLookup(ReferenceKind.PROJECT, str(number)) for number in range(5))
    assert await world.places.resolve(many, READER) == {}
    assert world.gitlab.asked == []


async def test_the_prefix_stands_before_the_question_and_memory_is_bounded() -> None:
    world = World(prefix=b"/gitlab", remembered=2)
    for number in range(5):
        await world.places.resolve((PlaceLookup(ReferenceKind.NAMESPACE, str(number)),), READER)
    assert world.gitlab.asked[0].target == b"/gitlab/api/v4/namespaces/0"
    assert len(world.places._memory) <= 2


async def test_a_name_that_nothing_has_is_not_kept() -> None:
    world = World()
    for length, asked in ((1024, 1), (1025, 3)):
        lookup = PlaceLookup(ReferenceKind.PROJECT, "n" * length)
        for _ in range(2):
            assert await world.places.resolve((lookup,), READER) == {}
        assert (len(world.places._memory), len(world.gitlab.asked)) == (1, asked)


async def test_an_endless_answer_is_cut_off() -> None:
    world = World()

    async def endless() -> object:
        while True:
            yield b"x" * 65536

    async def send(request: UpstreamRequest, body: RequestBody | None) -> Reply:
        return Reply(ResponseHead(200, ()), None, endless())  # type: ignore[arg-type]

    world.gitlab.send = send  # type: ignore[method-assign]
    with pytest.raises(Rejection):
        await world.places.resolve((BY_ID,), READER)


async def test_what_is_found_is_told_to_whom_it_is_news() -> None:
    """The cache's tags know a project by all its names; groups are none."""
    found: list[tuple[bytes, bytes]] = []
    places = GitlabPlaceResolver(
        GitLab(), monotonic=lambda: 0.0, on_project=lambda number, path: found.append((number, path))
    )
    await places.resolve((BY_PATH, PlaceLookup(ReferenceKind.GROUP, "7")), READER)
    assert found == [(b"42", b"platform/Api")]

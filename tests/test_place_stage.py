"""GitLab asked about a request's places: a credential that fails leaves it to the others, and no pool loses its turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from gateway.core.access import Permit, Principal, PrincipalKind
from gateway.core.catalogue import Operation, ReferenceKind
from gateway.core.errors import Code, Rejection, Source
from gateway.core.rule_match import Place, PlaceLookup, Resolved
from gateway.place_stage import resolve
from gateway.ports import UpstreamCredential
from gateway.stages import Stages

WEB, API = PlaceLookup(ReferenceKind.PROJECT, "a/web"), PlaceLookup(ReferenceKind.PROJECT, "7")
BOT = Principal("bot", PrincipalKind.KEY, "bot")


class FakeStages:
    """The stages that are asked: credentials `one` and `two`, and what each is told of places."""

    def __init__(self, **answers: dict[PlaceLookup, Place] | Rejection) -> None:
        self.answers = answers
        self.at_hand = True
        self.waited: list[str] = []
        self.access = self.tokens = self.places = self.pacing = self
        self.throttled: set[str] = set()

    def credentials_of(self, identity: str) -> tuple[str, ...]:
        return tuple(self.answers)

    def credential_now(self, permit: Permit, operation: Operation) -> UpstreamCredential | None:
        return UpstreamCredential(permit.use, (), b"") if self.at_hand else None

    async def credential(self, permit: Permit, operation: Operation) -> UpstreamCredential:
        self.waited.append(permit.use)
        return UpstreamCredential(permit.use, (), b"")

    def is_free(self, credential: str) -> bool:
        return credential not in self.throttled

    async def await_turn(self, credential: str, principal: Principal, lease: str, operation: str) -> None:
        raise Rejection(Code.RATE_LIMITED, 429, "429 Too Many Requests", source=Source.UPSTREAM)

    async def resolve(
        self,
        lookups: Sequence[PlaceLookup],
        credential: UpstreamCredential,
        room: Callable[[], Awaitable[None]] | None = None,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> Resolved:
        for waits in (room, turn):
            if waits is not None:
                await waits()
        answer: Any = self.answers[credential.id]
        if isinstance(answer, Rejection):
            raise answer
        return {lookup: place for lookup, place in answer.items() if lookup in lookups}


def failure(code: Code = Code.PLACE_UNAVAILABLE) -> Rejection:
    return Rejection(code, 503, "503 Service Unavailable")


async def asked(asks: FakeStages, *lookups: PlaceLookup) -> dict[PlaceLookup, Place]:
    return await resolve(cast("Stages", asks), lookups, BOT)


async def test_the_credential_at_hand_is_not_waited_for() -> None:
    asks = FakeStages(one={WEB: Place("1", "a/web")})
    assert await asked(asks, WEB) == {WEB: Place("1", "a/web")}
    assert asks.waited == []
    asks.at_hand = False
    assert await asked(asks, WEB) == {WEB: Place("1", "a/web")}
    assert asks.waited == ["one"]


async def test_each_is_asked_for_what_is_left() -> None:
    asks = FakeStages(one={WEB: Place("1", "a/web")}, two={WEB: Place("2", "b/web"), API: Place("7", "a/api")})
    assert await asked(asks, WEB, API) == {WEB: Place("1", "a/web"), API: Place("7", "a/api")}
    assert await asked(FakeStages(one={}), WEB) == {}


async def test_one_that_fails_leaves_it_to_the_others() -> None:
    asks = FakeStages(one=failure(), two={WEB: Place("1", "a/web")})
    assert await asked(asks, WEB) == {WEB: Place("1", "a/web")}


async def test_what_stays_open_behind_a_failure_is_decided_by_nobody() -> None:
    with pytest.raises(Rejection) as refused:
        await asked(FakeStages(one=failure(), two={}), WEB)
    assert refused.value.code is Code.PLACE_UNAVAILABLE


@pytest.mark.parametrize("code", [Code.RATE_LIMITED, Code.LIMITER_UNAVAILABLE])
async def test_who_has_no_room_has_nobody_asked(code: Code) -> None:
    rooms: list[Code] = []

    async def none() -> None:
        rooms.append(code)
        raise failure(code)

    asks = FakeStages(one={}, two={WEB: Place("1", "a/web")})
    with pytest.raises(Rejection) as refused:
        await resolve(cast("Stages", asks), (WEB,), BOT, none)
    assert (refused.value.code, rooms) == (code, [code])


async def test_a_credential_that_gitlab_limits_leaves_it_to_the_others() -> None:
    asks = FakeStages(one={WEB: Place("1", "a/web")}, two={WEB: Place("2", "b/web")})
    asks.throttled = {"one"}
    assert await asked(asks, WEB) == {WEB: Place("2", "b/web")}
    asks.throttled = {"one", "two"}
    with pytest.raises(Rejection) as refused:
        await asked(asks, WEB)
    assert (refused.value.code, refused.value.source) == (Code.RATE_LIMITED, Source.UPSTREAM)

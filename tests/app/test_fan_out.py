"""What one worker alone can't answer, asked of all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from gateway.app.fan_out import fan_out, merge_tops
from gateway.app.siblings import Siblings
from gateway.core.admin_permission import Permission
from gateway.edge.admin import AdminRequest, AdminResponse, Endpoint
from gateway.workers.channel import (
    AllAnswers,
    AskAll,
    GroupStatus,
    WorkerQuestion,
    WorkerReply,
    decode_at_supervisor,
    decode_at_worker,
    open_channel,
)

STATUS = GroupStatus((True, True), (0, 0), True, (0, 1))


def hot(name: str, asked: int, refused: int = 0) -> dict[str, Any]:
    return {"caller": name, "asked": asked, "refused": refused, "buckets": [{"limit": "caller", "remaining": 1.0}]}


def change(subject: str) -> dict[str, Any]:
    return {"limit": "caller", "subject": subject, "factor": 2.0, "until": 9.0}


HERE = {"callers": [hot("ada", 5, 1), hot("bob", 4)], "changed": [change("ada")], "waiting": 1}
THERE = {"callers": [hot("cyd", 6), hot("bob", 3, 2)], "changed": [change("ada"), change("cyd")], "waiting": 2}


def test_numbers_of_a_caller_are_added_and_the_hottest_come_first() -> None:
    merged: Any = merge_tops([HERE, THERE], 2)
    assert merged["callers"] == [hot("bob", 7, 2), hot("cyd", 6)]
    assert merged["changed"] == [change("ada"), change("cyd")]
    assert merged["waiting"] == 3
    assert HERE["callers"] == [hot("ada", 5, 1), hot("bob", 4)]


class Worker:
    """Knows one request and its own callers."""

    def __init__(self, knows: str, top: object) -> None:
        self.knows = knows
        self.top = top

    async def explain(self, asked: AdminRequest) -> AdminResponse:
        if asked.body.get("request_id", self.knows) != self.knows:
            raise ValueError("request_id: is none of them")
        return AdminResponse({"told by": self.knows})

    async def show_top(self, asked: AdminRequest) -> AdminResponse:
        if not asked.query.get("count", "20").isdecimal():
            raise ValueError("count is a number")
        return AdminResponse(self.top)

    async def show(self, _: AdminRequest) -> AdminResponse:
        return AdminResponse("config")

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/-/config", self.show, (Permission.READ,)),
            Endpoint("POST", "/-/explain", self.explain, (Permission.EXPLAIN,)),
            Endpoint("GET", "/-/limits/top", self.show_top, (Permission.LIMITS,), frozenset({"count"})),
        )


class Asking:
    """The endpoints of the first of two workers."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.needs = {one.path: one.needs for one in endpoints}
        self.answers = {one.path: one.answer for one in endpoints}

    async def __call__(self, path: str, query: dict[str, str] | None = None, **body: object) -> Any:
        answer = await self.answers[path](AdminRequest("admin:x", "", "POST", query=query or {}, body=body))
        return msgspec.to_builtins(answer.body)


@asynccontextmanager
async def two(here: Worker, there: Worker, *, answering: bool = True) -> AsyncIterator[Asking]:
    """Both on channels of their own, and between them what the supervisor does."""
    ends = [socket.socketpair() for _ in range(2)]
    near = [await open_channel(ours, decode_at_worker) for ours, _ in ends]
    far = [await open_channel(theirs, decode_at_supervisor) for _, theirs in ends]
    siblings = [Siblings(channel, number) for number, channel in enumerate(near)]
    first = Asking(fan_out(here.endpoints, siblings[0]))
    fan_out(there.endpoints, siblings[1])

    async def supervise() -> None:
        while isinstance(asked := await far[0].receive(), AskAll):
            answers = {}
            for number, sibling in enumerate(siblings if answering else []):
                sibling.answer(WorkerQuestion(1, asked.what, asked.about))
                reply = await far[number].receive()
                assert isinstance(reply, WorkerReply)
                if reply.octets:
                    answers[number] = reply.octets
            siblings[0].receive(AllAnswers(asked.id, answers, STATUS))

    supervising = asyncio.ensure_future(supervise())
    yield first
    for channel in (*near, *far):
        channel.close()
    await supervising


async def test_a_request_is_explained_by_whoever_answered_it() -> None:
    async with two(Worker("r-1", HERE), Worker("r-2", THERE)) as ask:
        assert await ask("/-/explain", request_id="r-1") == {"told by": "r-1"}
        assert await ask("/-/explain", request_id="r-2") == {"told by": "r-2"}
        assert await ask("/-/explain", identity="bot") == {"told by": "r-1"}
        with pytest.raises(ValueError, match="is none of them"):
            await ask("/-/explain", request_id="r-3")


async def test_the_hottest_are_those_of_both() -> None:
    async with two(Worker("r-1", HERE), Worker("r-2", THERE)) as ask:
        assert await ask("/-/limits/top", {"count": "1"}) == merge_tops([HERE, THERE], 1)
        assert await ask("/-/limits/top") == merge_tops([HERE, THERE], 20)
        with pytest.raises(ValueError, match="count"):
            await ask("/-/limits/top", {"count": "x"})


async def test_where_nobody_answers_one_tells_what_it_knows() -> None:
    async with two(Worker("r-1", HERE), Worker("r-2", THERE), answering=False) as ask:
        assert await ask("/-/limits/top") == HERE


async def test_the_others_are_as_they_were() -> None:
    async with two(Worker("r-1", HERE), Worker("r-2", THERE)) as ask:
        assert await ask("/-/config") == "config"


async def test_an_endpoint_needs_the_same_permission_wherever_it_asks() -> None:
    async with two(Worker("r-1", HERE), Worker("r-2", THERE)) as ask:
        assert ask.needs == {
            "/-/config": (Permission.READ,),
            "/-/explain": (Permission.EXPLAIN,),
            "/-/limits/top": (Permission.LIMITS,),
        }

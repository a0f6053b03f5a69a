"""Look-ups: shared while they are under way, and waited for by nobody at the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvloop

from gateway.host_resolver import HostResolver

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]


class Resolver:
    """The system's. Each look-up waits until it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = threading.Event()
        self.answer: list[object] | Exception = list(FOUND)

    def __call__(self, *_: object, **__: object) -> list[object]:
        self.asked += 1
        assert self.go.wait(30)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    found = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    yield found
    found.go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("names "):
            thread.join(30)


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [("127.0.0.1", socket.AF_INET, ("127.0.0.1", 80)), ("2001:db8::1", socket.AF_INET6, ("2001:db8::1", 80, 0, 0))],
)
async def test_an_address_is_not_looked_up(resolver: Resolver, host: str, family: int, address: tuple[object, ...]) -> None:
    (found,) = await HostResolver(host, 80).addresses()
    assert (found[0], found[4], resolver.asked) == (family, address, 0)


async def test_the_systems_own_answer() -> None:
    assert {address[4][0] for address in await HostResolver("localhost", 80).addresses()} <= {"127.0.0.1", "::1"}


async def test_who_asks_meanwhile_is_told_the_same_and_who_asks_later_asks_anew(resolver: Resolver) -> None:
    names = HostResolver("gitlab.internal", 80)
    asking = [asyncio.ensure_future(names.addresses()) for _ in range(3)]
    await asyncio.sleep(0)
    asking[0].cancel()
    resolver.go.set()
    assert await asyncio.gather(*asking[1:]) == [FOUND, FOUND]
    assert (asking[0].cancelled(), resolver.asked) == (True, 1)
    assert await names.addresses() == FOUND
    assert resolver.asked == 2


async def test_one_that_takes_long_is_not_waited_for_alone_but_few_are_asked(resolver: Resolver) -> None:
    names = HostResolver("gitlab.internal", 80, slow_s=0.0)
    asking = [asyncio.ensure_future(names.addresses()) for _ in range(9)]
    while resolver.asked < 6:
        await asyncio.sleep(0.001)
    resolver.go.set()
    assert await asyncio.gather(*asking) == [FOUND] * 9
    assert resolver.asked == 6


class Questions:
    """A resolver that answers each look-up when it is told to."""

    def __init__(self) -> None:
        self._asked: dict[int, queue.SimpleQueue[list[object] | Exception]] = {}

    @property
    def asked(self) -> list[queue.SimpleQueue[list[object] | Exception]]:
        """In the order in which their threads were started, which need not be that in which they begin."""
        return [self._asked[number] for number in sorted(self._asked)]

    def __call__(self, *_: object, **__: object) -> list[object]:
        mine: queue.SimpleQueue[list[object] | Exception] = queue.SimpleQueue()
        self._asked[threading.get_native_id()] = mine
        answer = mine.get(timeout=30)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, count: int) -> None:
        while len(self.asked) < count:
            await asyncio.sleep(0.001)


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Questions]:
    found = Questions()
    monkeypatch.setattr(socket, "getaddrinfo", found)
    yield found
    # A look-up that begins only now would ask the system.
    while begun := [thread for thread in threading.enumerate() if thread.name.startswith("names ")]:
        for one in found.asked:
            one.put(AWAY)
        begun[0].join(0.01)


AWAY = socket.gaierror(socket.EAI_AGAIN, "later")


async def test_a_question_that_is_lost_takes_nobody_along(questions: Questions) -> None:
    """A datagram is lost now and then, and the system waits five seconds for its answer."""
    names = HostResolver("gitlab.internal", 80, slow_s=0.0)
    asking = [asyncio.ensure_future(names.addresses()) for _ in range(3)]
    await questions.until(2)
    questions.asked[1].put(list(FOUND))
    assert await asyncio.gather(*asking) == [FOUND] * 3


async def test_a_late_answer_is_told_to_who_waits_then(questions: Questions) -> None:
    """Where the first of two resolvers is dead each look-up takes five seconds, longer than anybody waits."""
    names = HostResolver("gitlab.internal", 80, slow_s=0.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await names.addresses()
    later = asyncio.ensure_future(names.addresses())
    await questions.until(6)
    questions.asked[1].put(AWAY)  # one that asked earlier knows no better
    await asyncio.sleep(0.01)
    assert not later.done()
    questions.asked[0].put(list(FOUND))
    assert await later == FOUND


async def test_the_newest_answer_is_believed_that_there_is_none(questions: Questions) -> None:
    names = HostResolver("gitlab.internal", 80, slow_s=0.0)
    asking = asyncio.ensure_future(names.addresses())
    await questions.until(6)
    questions.asked[-1].put(AWAY)
    with pytest.raises(socket.gaierror):
        await asking
    again = asyncio.ensure_future(names.addresses())
    await questions.until(7)
    questions.asked[-1].put(list(FOUND))
    assert await again == FOUND


@pytest.mark.parametrize(
    "refused", [socket.gaierror(socket.EAI_NONAME, "unknown"), UnicodeError("label too long")], ids=repr
)
async def test_all_hear_why_there_is_none(resolver: Resolver, refused: Exception) -> None:
    resolver.answer = refused
    names = HostResolver("gitlab.internal", 80)
    asking = [asyncio.ensure_future(names.addresses()) for _ in range(2)]
    await asyncio.sleep(0)
    resolver.go.set()
    assert await asyncio.gather(*asking, return_exceptions=True) == [refused, refused]


async def test_an_answer_that_nobody_waits_for_any_more_is_no_fault(resolver: Resolver) -> None:
    resolver.answer = socket.gaierror(socket.EAI_AGAIN, "later")
    names = HostResolver("gitlab.internal", 80)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await names.addresses()
    resolver.go.set()
    with pytest.raises(socket.gaierror):
        await names.addresses()


def test_the_loop_ends_without_it(resolver: Resolver) -> None:
    """One of the loop's own would be waited for, for as long as the resolver takes."""

    async def ask() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await HostResolver("gitlab.internal", 80).addresses()

    uvloop.run(ask())
    assert not resolver.go.is_set()
    while not resolver.asked:
        time.sleep(0.001)
    assert resolver.asked == 1


async def test_no_thread_is_a_shortage_of_our_own(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(OSError) as short:
        await HostResolver("gitlab.internal", 80).addresses()
    assert (short.value.errno, resolver.asked) == (errno.EAGAIN, 0)

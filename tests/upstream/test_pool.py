"""Places: never more than allowed, first come first served, none lost."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.upstream.connection import Connection
from gateway.upstream.errors import Failure, UpstreamFailure
from gateway.upstream.pool import Pool


def pool(*, places: int = 1, parked: int = 1, waiting: int = 10, wait_s: float = 5.0, idle: int = 1) -> Pool:
    return Pool(
        asyncio.get_running_loop(),
        max_in_flight=places,
        max_parked=parked,
        max_waiting=waiting,
        wait_s=wait_s,
        max_idle=idle,
        keepalive_s=1.0,
        on_break=lambda _: None,
    )


async def test_places_are_counted() -> None:
    house = pool(places=2)
    assert (house.try_acquire_place(), house.try_acquire_place(), house.try_acquire_place()) == (True, True, False)
    house.release_place()
    assert house.in_flight == 1
    assert house.try_acquire_place()


async def test_the_place_of_what_is_parked_is_anothers() -> None:
    house = pool(places=1, parked=1)
    assert house.try_acquire_place()
    assert not house.try_acquire_place()
    waiting = asyncio.ensure_future(house.acquire_place())
    await asyncio.sleep(0)
    assert house.park()
    await waiting
    assert not house.park(), "no more than so many"
    assert (house.in_flight, house.parked, house.try_acquire_place()) == (2, 1, False)
    house.unpark()  # it is answered: for a while there is one more than places
    house.release_place()
    assert (house.in_flight, house.try_acquire_place()) == (1, False)
    house.release_place()
    assert house.try_acquire_place()
    assert house.park()
    assert (house.in_flight, house.try_acquire_place()) == (1, True)


async def test_a_parked_ones_place_is_another_s() -> None:
    house = pool(places=1)
    assert house.try_acquire_place()
    waiting = asyncio.ensure_future(house.acquire_place())
    await asyncio.sleep(0)
    house.park()
    await waiting
    assert (house.in_flight, house.parked, house.try_acquire_place()) == (2, 1, False)
    # It ends while others wait: the place that it hands on, though it has none, is not handed on again.
    more = [asyncio.ensure_future(house.acquire_place()) for _ in range(2)]
    await asyncio.sleep(0)
    house.release_place()
    house.unpark()
    await asyncio.sleep(0)
    assert (house.in_flight, [one.done() for one in more]) == (2, [True, False])
    house.release_place()
    await asyncio.sleep(0)
    assert (house.in_flight, more[1].done()) == (1, False)
    house.release_place()
    await more[1]
    house.release_place()
    assert (house.in_flight, house.waiting) == (0, 0)


async def test_a_parked_one_that_ends_alone_leaves_nothing() -> None:
    house = pool(places=1)
    assert house.try_acquire_place()
    house.park()
    assert house.try_acquire_place()
    house.release_place()
    house.unpark()
    assert (house.in_flight, house.parked, house.try_acquire_place()) == (1, 0, False)
    house.release_place()
    assert house.in_flight == 0


class Kept:
    """As much of a connection as a pool sees of one that it keeps."""

    idle_at = 0.0

    def __init__(self, *, usable: bool = True) -> None:
        self.usable = usable
        self.closed = False

    def is_usable(self) -> bool:
        return self.usable

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("stale", [0, 1, 2])
async def test_the_last_that_is_fit_is_lent_with_a_place(stale: int) -> None:
    house = pool(places=2, idle=2)
    kept = [Kept(usable=number >= stale) for number in (1, 0)]
    for connection in kept:
        assert house.try_acquire_place()
        house.returned(cast("Connection", connection))
    lent = house.try_acquire_connection(asyncio.get_running_loop().time())
    assert lent is (None if stale == 2 else kept[1 - stale])
    assert [connection.closed for connection in kept] == [stale == 2, stale >= 1]
    assert (house.in_flight, house.idle) == (stale < 2, stale == 0)
    await house.close()


async def test_one_kept_too_long_is_not_lent() -> None:
    house, connection = pool(), Kept()
    assert house.try_acquire_place()
    house.returned(cast("Connection", connection))
    assert house.try_acquire_connection(asyncio.get_running_loop().time() + 1.0) is None
    assert (connection.closed, house.in_flight, house.idle) == (True, 0, 0)
    await house.close()


async def test_nothing_is_lent_without_a_place() -> None:
    house = pool()
    assert house.try_acquire_place()
    house.returned(cast("Connection", Kept()))
    assert house.try_acquire_place()
    assert house.try_acquire_connection(asyncio.get_running_loop().time()) is None
    assert (house.in_flight, house.idle) == (1, 1)
    await house.close()


async def test_the_line_is_served_in_its_order() -> None:
    house = pool()
    assert house.try_acquire_place()
    served: list[int] = []

    async def acquire_place(number: int) -> None:
        await house.acquire_place()
        served.append(number)

    tasks = [asyncio.ensure_future(acquire_place(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert not house.try_acquire_place()
    for _ in range(3):
        house.release_place()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2]
    assert (house.in_flight, house.waiting) == (1, 0)


async def test_who_left_the_line_is_passed_over() -> None:
    house = pool()
    assert house.try_acquire_place()
    first, second = (asyncio.ensure_future(house.acquire_place()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    house.release_place()
    await second
    assert first.cancelled()
    assert (house.in_flight, house.waiting) == (1, 0)


async def test_a_place_handed_to_who_just_left_goes_on() -> None:
    house = pool()
    assert house.try_acquire_place()
    first, second = (asyncio.ensure_future(house.acquire_place()) for _ in range(2))
    await asyncio.sleep(0)
    house.release_place()
    first.cancel()
    await second
    assert first.cancelled()
    assert house.in_flight == 1


@pytest.mark.parametrize(("waiting", "wait_s"), [(0, 5.0), (1, 0.01)])
async def test_too_long_a_line_or_wait(waiting: int, wait_s: float) -> None:
    house = pool(waiting=waiting, wait_s=wait_s)
    assert house.try_acquire_place()
    assert house.is_full() == (waiting == 0)
    with pytest.raises(UpstreamFailure) as turned_away:
        await house.acquire_place()
    assert turned_away.value.failure is Failure.BUSY
    assert (house.in_flight, house.waiting) == (1, 0)


async def test_a_closed_house_lets_nobody_in() -> None:
    house = pool()
    assert house.try_acquire_place()
    waiting = asyncio.ensure_future(house.acquire_place())
    await asyncio.sleep(0)
    await house.close()
    with pytest.raises(UpstreamFailure) as turned_away:
        await waiting
    assert turned_away.value.failure is Failure.CLOSED
    house.release_place()
    assert not house.try_acquire_place()
    assert house.is_closed
    assert (house.in_flight, house.open, house.idle) == (0, 0, 0)

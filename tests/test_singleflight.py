from __future__ import annotations

import asyncio

import pytest

from gateway.core.access import Priority
from gateway.singleflight import Flight, Flights


async def gathered(
    flight: Flight[int], count: int, timeout_s: float = 5.0
) -> asyncio.Future[list[tuple[bool, int | None]]]:
    waiting = asyncio.gather(*(flight.wait(timeout_s) for _ in range(count)))
    await asyncio.sleep(0)
    return waiting


async def test_one_leads_and_all_get_what_it_brings() -> None:
    flights: Flights[int] = Flights()
    leads, flight = flights.join(b"k")
    assert leads
    assert flights.join(b"k") == (False, flight)
    waiting = await gathered(flight, 3)
    flight.land(7)
    assert await waiting == [(True, 7)] * 3
    assert len(flights) == 0


async def test_the_entry_is_gone_before_anybody_wakes() -> None:
    flights: Flights[int] = Flights()
    _, flight = flights.join(b"k")
    seen: list[bool] = []

    async def follow() -> None:
        await flight.wait(5.0)
        seen.append(flights.join(b"k")[0])

    task = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    flight.land(1)
    await task
    assert seen == [True]


async def test_an_abandoned_flight_hands_over_to_exactly_one() -> None:
    flights: Flights[int] = Flights()
    _, flight = flights.join(b"k")
    leaders: list[Flight[int]] = []

    async def follow(current: Flight[int]) -> int | None:
        while True:
            settled, result = await current.wait(5.0)
            if settled:
                return result
            leads, current = flights.join(b"k")
            if leads:
                leaders.append(current)
                await asyncio.sleep(0)
                current.land(9)
                return 9

    waiting = asyncio.gather(*(follow(flight) for _ in range(5)))
    await asyncio.sleep(0)
    flight.abandon()
    assert await waiting == [9] * 5
    assert len(leaders) == 1


async def test_landing_is_final() -> None:
    flights: Flights[int] = Flights()
    _, first = flights.join(b"k")
    first.land(None)
    _, second = flights.join(b"k")
    first.abandon()
    first.land(3)
    assert flights.join(b"k") == (False, second)


async def test_nobody_waits_longer_than_told() -> None:
    _, flight = Flights[int]().join(b"k")
    assert await flight.wait(0.0) == (False, None)


async def test_a_waiter_that_leaves_takes_nobody_with_it() -> None:
    _, flight = Flights[int]().join(b"k")
    leaving = asyncio.ensure_future(flight.wait(5.0))
    staying = asyncio.ensure_future(flight.wait(5.0))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    flight.land(4)
    assert await staying == (True, 4)


async def test_a_waiter_cancelled_in_the_same_turn_is_passed_over() -> None:
    _, flight = Flights[int]().join(b"k")
    leaving = asyncio.ensure_future(flight.wait(5.0))
    await asyncio.sleep(0)
    leaving.cancel()
    flight.land(4)
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_who_wants_to_know_is_told_once_that_it_is_over() -> None:
    flights: Flights[int] = Flights()
    told: list[int] = []
    _, flight = flights.join(b"k")
    flight.on_end = lambda: told.append(1)
    flight.land(7)
    flight.abandon()
    assert told == [1]


async def test_one_that_goes_first_leads_beside_a_leader_that_gives_way() -> None:
    flights: Flights[int] = Flights()
    _, slow = flights.join(b"k", Priority.BACKGROUND, lambda priority: priority is Priority.CRITICAL)
    assert flights.join(b"k", Priority.INTERACTIVE) == (False, slow)
    waiting = await gathered(slow, 1)
    leads, fast = flights.join(b"k", Priority.CRITICAL)
    assert (leads, fast.overtakes, slow.overtakes) == (True, True, False)
    assert flights.join(b"k", Priority.BACKGROUND) == (False, fast)
    slow.land(1)
    assert await waiting == [(True, 1)]
    assert flights.join(b"k") == (False, fast), "it is under way as before"
    fast.land(2)
    assert len(flights) == 0
    assert not flights.join(b"k")[1].overtakes


@pytest.mark.parametrize("first", [0, 1])
async def test_flights_of_one_key_end_in_any_order(first: int) -> None:
    flights: Flights[int] = Flights()
    both = [flights.join(b"k", gives_way=lambda _: True)[1] for _ in range(2)]
    both[first].abandon()
    both[1 - first].land(3)
    assert len(flights) == 0

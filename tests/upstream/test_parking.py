"""Long polls: their place is another's while they wait, and only then."""

from __future__ import annotations

import asyncio

import pytest

from gateway.upstream.parking import Parking


class Places:
    """Counts."""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self.parked = 0
        self.deeds: list[str] = []

    def park(self) -> bool:
        if self.parked >= self.most:
            return False
        self.parked += 1
        self.deeds.append("park")
        return True

    def unpark(self) -> None:
        self.parked -= 1
        self.deeds.append("unpark")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstream.parking.PARKED_AFTER_S", 0.0)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_answered_soon_keeps_its_place() -> None:
    lot = Places()
    parking = Parking(lot)
    await turns()
    parking.end()
    assert lot.deeds == []


@pytest.mark.usefixtures("at_once")
async def test_what_is_left_unanswered_is_parked_until_its_end() -> None:
    lot = Places()
    parking = Parking(lot)
    while not lot.deeds:
        await asyncio.sleep(0)
    parking.end()
    parking.end()
    assert lot.deeds == ["park", "unpark"]


@pytest.mark.usefixtures("at_once")
async def test_what_found_no_room_leaves_none() -> None:
    lot = Places(most=0)
    parking = Parking(lot)
    await asyncio.sleep(0.001)
    await turns()
    parking.end()
    assert lot.deeds == []

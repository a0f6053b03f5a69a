from __future__ import annotations

import asyncio
import gc

import pytest

from gateway.identity.lookups import Lookups, Memo


class Source:
    """A lookup that answers when told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def look_up(self) -> str:
        self.calls += 1
        return await asyncio.shield(self.answer)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_of_one_key_share_one_lookup() -> None:
    lookups: Lookups[str, str] = Lookups()
    source = Source()
    callers = [asyncio.ensure_future(lookups.share("k", source.look_up)) for _ in range(50)]
    await turn()
    source.answer.set_result("found")
    assert await asyncio.gather(*callers) == ["found"] * 50
    assert source.calls == 1
    assert len(lookups) == 0


async def test_another_key_is_another_lookup() -> None:
    lookups: Lookups[str, str] = Lookups()
    source = Source()
    source.answer.set_result("found")
    await asyncio.gather(lookups.share("a", source.look_up), lookups.share("b", source.look_up))
    assert source.calls == 2


async def test_the_entry_is_gone_before_the_waiters_wake() -> None:
    """Whoever comes after the answer asks anew: the answer may have been made before the question."""
    lookups: Lookups[str, str] = Lookups()
    source = Source()
    source.answer.set_result("found")
    await lookups.share("k", source.look_up)
    assert len(lookups) == 0
    await lookups.share("k", source.look_up)
    assert source.calls == 2


async def test_a_failure_reaches_every_caller_and_is_not_kept() -> None:
    lookups: Lookups[str, str] = Lookups()
    source = Source()
    callers = [asyncio.ensure_future(lookups.share("k", source.look_up)) for _ in range(3)]
    await turn()
    source.answer.set_exception(OSError("away"))
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OSError] * 3
    source.answer = asyncio.get_running_loop().create_future()
    source.answer.set_result("back")
    assert await lookups.share("k", source.look_up) == "back"


@pytest.mark.parametrize("leaver", [0, 1, 2])
@pytest.mark.parametrize("turns", range(4))
async def test_a_caller_that_leaves_takes_nothing_from_the_others(leaver: int, turns: int) -> None:
    lookups: Lookups[str, str] = Lookups()
    source = Source()
    callers = [asyncio.ensure_future(lookups.share("k", source.look_up)) for _ in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0)
    callers[leaver].cancel()
    await turn()
    source.answer.set_result("found")
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome == "found"] == ["found", "found"]
    # One that left before its first step has asked nothing, so another led.
    assert source.calls == 1


async def test_a_lookup_that_everybody_left_ends_and_its_failure_is_nobodys_noise() -> None:
    lookups: Lookups[str, str] = Lookups()
    source = Source()
    caller = asyncio.ensure_future(lookups.share("k", source.look_up))
    await turn()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert len(lookups) == 1
    source.answer.set_exception(OSError("away"))
    await turn()
    assert len(lookups) == 0
    gc.collect()  # "exception was never retrieved" would be reported now, as a failure of this test


async def test_closing_ends_what_is_in_flight() -> None:
    lookups: Lookups[str, str] = Lookups()
    caller = asyncio.ensure_future(lookups.share("k", Source().look_up))
    await turn()
    await lookups.close()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert len(lookups) == 0


def test_a_memo_forgets_what_was_written_longest_ago() -> None:
    memo: Memo[str, int] = Memo(2)
    memo.put("a", 1)
    memo.put("b", 2)
    memo.put("a", 3)
    memo.put("c", 4)
    assert (memo.get("a"), memo.get("b"), memo.get("c")) == (3, None, 4)
    assert len(memo) == 2


def test_a_memo_drops_by_key_and_by_value() -> None:
    memo: Memo[str, int] = Memo(9)
    for key, value in [("a", 1), ("b", 2), ("c", 3)]:
        memo.put(key, value)
    memo.drop("a")
    memo.drop("a")
    assert memo.drop_where(lambda value: value > 2) == 1
    assert memo.get("b") == 2
    assert len(memo) == 1

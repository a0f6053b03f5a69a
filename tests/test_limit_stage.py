"""The limits' stage: waiting in turn, and putting things in order afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.core.access import Principal, PrincipalKind, Priority
from gateway.core.cost import Settlement, Usage
from gateway.core.limits import Decision, Limit, OnOutage, Scope, Take
from gateway.limit_stage import MOST_WAITING, LimitStage
from gateway.stores.bucket_memory import MemoryBuckets
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.redis_link import RedisLink

QUICK = Limit("quick", Scope.TEAM, 100.0, 1.0, absorb_s=5.0)
SLOW = Limit("slow", Scope.CALLER, 0.01, 1.0, absorb_s=5.0)
REFUSING = Limit("refusing", Scope.CALLER, 50.0, 1.0)
PLACE = Limit("place", Scope.CALLER, 1.0, 1.0, concurrent=True, absorb_s=5.0)


def principal(name: str = "bot", priority: Priority = Priority.INTERACTIVE) -> Principal:
    return Principal(name, PrincipalKind.KEY, name, priority=priority)


def takes(limit: Limit, key: str = "k") -> list[Take]:
    return [Take(f"{{gw}}:{key}", limit)]


async def until_waiting(stage: LimitStage, count: int) -> None:
    while stage.waiting != count:
        await asyncio.sleep(0)


async def test_a_request_that_has_to_wait_a_little_waits() -> None:
    stage = LimitStage(MemoryBuckets())
    first = await stage.admit(takes(QUICK), principal(), "1")
    second = await stage.admit(takes(QUICK), principal(), "2")
    assert first.decision.allowed
    assert first.waited_s == 0.0
    assert second.decision.allowed
    assert second.waited_s > 0
    assert (stage.waiting, stage.absorbed_total) == (0, 1)


async def test_nobody_waits_who_did_not_ask() -> None:
    stage = LimitStage(MemoryBuckets())
    assert (await stage.admit(takes(REFUSING), principal(), "1")).decision.allowed
    assert not (await stage.admit(takes(REFUSING), principal(), "2")).decision.allowed
    assert (await stage.admit(takes(REFUSING), principal(), "3", 2.0)).decision.allowed


async def test_at_once_nobody_is_refused_who_may_wait() -> None:
    stage = LimitStage(MemoryBuckets())
    for limit in (QUICK, SLOW, REFUSING):
        admitted = stage.admit_now(takes(limit, limit.id), principal())
        assert admitted is not None
        assert admitted.allowed
    for refusing in (False, True):
        for limit in (QUICK, SLOW):
            refused = stage.admit_now(takes(limit, limit.id), principal(), refusing=refusing)
            assert refused is not None
            assert not refused.allowed
            told = refusing and limit is SLOW, "that one would have to wait longer than it may"
            assert stage.accept_decision(refused, principal("other"), refusing=refusing) is told[0], told[1]
    assert stage.refuse_now(takes(QUICK, "quick"), principal()) is None
    for limit in (SLOW, REFUSING):
        said = stage.refuse_now(takes(limit, limit.id), principal())
        assert said is not None
        assert not said.allowed
    hot, other = stage.top_talkers.top(2, said.now)
    assert (hot.asked, hot.refused) == (6, 3), "who is sent on is counted where it ends"
    assert (other.asked, other.refused) == (1, 1)


async def test_nobody_waits_in_vain() -> None:
    stage = LimitStage(MemoryBuckets())
    await stage.admit(takes(SLOW), principal(), "1")
    ticket = await asyncio.wait_for(stage.admit(takes(SLOW), principal(), "2"), 1)
    assert not ticket.decision.allowed
    assert ticket.waited_s == 0.0


async def test_callers_take_turns() -> None:
    now = 1000.0
    stage = LimitStage(MemoryBuckets(clock=lambda: now))
    await stage.admit(takes(QUICK), principal(), "0")
    admitted: list[str] = []

    async def ask(name: str, number: int) -> None:
        ticket = await stage.admit(takes(QUICK), principal(name), f"{name}{number}")
        assert ticket.decision.allowed
        admitted.append(name)

    asked = [asyncio.ensure_future(ask("greedy", number)) for number in range(8)]
    await until_waiting(stage, 8)
    asked += [asyncio.ensure_future(ask("polite", number)) for number in range(2)]
    await until_waiting(stage, 10)
    while stage.waiting:
        now += 0.01
        await asyncio.sleep(0.001)
    await asyncio.gather(*asked)
    assert max(place for place, name in enumerate(admitted) if name == "polite") < 5


async def test_what_was_undone_was_never_taken() -> None:
    stage = LimitStage(MemoryBuckets())
    wanted = [*takes(SLOW), *takes(PLACE, "p")]
    for _ in range(3):
        ticket = await stage.admit(wanted, principal(), "1")
        assert ticket.decision.allowed
        ticket.undo()
    assert (await stage.admit(wanted, principal(), "1")).decision.allowed
    refused = await stage.admit(takes(SLOW), principal(), "2")
    refused.undo()
    assert not (await stage.admit(takes(SLOW), principal(), "3")).decision.allowed


@pytest.mark.parametrize("undone", [False, True])
async def test_what_is_kept_stays_taken_but_for_places(undone: bool) -> None:
    stage = LimitStage(MemoryBuckets())
    ticket = await stage.admit([*takes(SLOW), *takes(PLACE, "p")], principal(), "1")
    if undone:
        ticket.undo()
    ticket.keep()
    assert not (await stage.admit(takes(SLOW), principal(), "2")).decision.allowed
    assert (await stage.admit(takes(PLACE, "p"), principal(), "3")).decision.allowed


async def test_waiting_as_long_as_told_is_enough_for_who_paid() -> None:
    now = 1000.0
    stage = LimitStage(MemoryBuckets(clock=lambda: now))
    limit = Limit("slow", Scope.CALLER, 0.5, 5.0)
    one, all_of_it = [Take("k", limit)], [Take("k", limit, 5.0)]
    await stage.admit(one, principal(), "0")
    for wait_s in (4.0, None):
        ahead = await stage.admit(one, principal(), "1")
        ahead.undo()
        ticket = await stage.admit(all_of_it, principal(), "1")
        if wait_s is None:
            assert ticket.decision.allowed
        else:
            refusal = ahead.charge_undone(all_of_it, ticket.decision).refusal
            ahead.keep()
            assert refusal is not None
            assert (refusal.remaining, refusal.retry_after_s) == (3.0, wait_s)
            now += wait_s


async def test_who_is_refused_for_the_same_takes_has_paid_nothing() -> None:
    stage = LimitStage(MemoryBuckets())
    ahead = await stage.admit(takes(SLOW), principal(), "1")
    ahead.undo()
    ahead.undo()
    await stage.admit(takes(SLOW), principal(), "2")
    refused = (await stage.admit(takes(SLOW), principal(), "1")).decision
    assert ahead.charge_undone(takes(SLOW), refused) is refused
    ahead.keep()
    look = await stage.look(takes(SLOW))
    assert look.states[0].remaining == pytest.approx(0.0, abs=0.1)


async def test_a_client_that_goes_away_gives_up_its_place() -> None:
    stage = LimitStage(MemoryBuckets())
    first = await stage.admit(takes(PLACE), principal(), "1")
    gone = asyncio.ensure_future(stage.admit(takes(PLACE), principal("gone"), "2"))
    await until_waiting(stage, 1)
    patient = asyncio.ensure_future(stage.admit(takes(PLACE), principal("patient"), "3"))
    await until_waiting(stage, 2)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    first.close(None)
    assert (await patient).decision.allowed
    assert stage.waiting == 0


async def test_a_place_given_up_is_taken_at_once() -> None:
    """Long before the second that a place is guessed to take."""
    stage = LimitStage(MemoryBuckets())
    first = await stage.admit(takes(PLACE), principal(), "1")
    waiting = asyncio.ensure_future(stage.admit(takes(PLACE), principal(), "2"))
    await until_waiting(stage, 1)
    first.close(None)
    ticket = await asyncio.wait_for(waiting, 0.5)
    assert ticket.decision.allowed


async def test_the_deadline_is_kept() -> None:
    stage = LimitStage(MemoryBuckets())
    await stage.admit(takes(PLACE), principal(), "1")
    brief = Limit("place", Scope.CALLER, 100.0, 1.0, concurrent=True)
    ticket = await asyncio.wait_for(stage.admit(takes(brief), principal(), "2", 0.05), 30)
    assert not ticket.decision.allowed
    assert ticket.waited_s >= 0.049


async def test_who_waited_in_vain_is_told_of_the_time_that_is_left_now() -> None:
    """Clients of Go wait until RateLimit-Reset, and come back at once where that is over."""
    stage = LimitStage(MemoryBuckets(clock=lambda: 1000.0))
    brief = takes(Limit("place", Scope.CALLER, 25.0, 1.0, concurrent=True))
    await stage.admit(brief, principal(), "1")
    first, behind = [asyncio.ensure_future(stage.admit(brief, principal(), name, 0.05)) for name in ("2", "3")]
    assert not (await first).decision.allowed
    ticket = await behind
    assert not ticket.decision.allowed
    assert 0.049 <= ticket.decision.now - 1000.0 <= ticket.waited_s


async def test_who_finds_another_bucket_empty_waits_for_that_one() -> None:
    stage = LimitStage(MemoryBuckets())
    await stage.admit(takes(QUICK, "a"), principal(), "1")
    both = [*takes(QUICK, "a"), *takes(PLACE, "p")]
    waiting = asyncio.ensure_future(stage.admit(both, principal(), "2"))
    await until_waiting(stage, 1)
    blocker = await stage.admit(takes(PLACE, "p"), principal("other"), "3")
    others = [await stage.admit(takes(QUICK, "a"), principal("third"), f"{number}") for number in range(4, 7)]
    assert all(ticket.decision.allowed for ticket in others)  # nobody is held up by who waits elsewhere
    blocker.close(None)
    assert (await asyncio.wait_for(waiting, 30)).decision.allowed


async def test_a_full_house_refuses_and_background_leaves_first() -> None:
    stage = LimitStage(MemoryBuckets())
    await stage.admit(takes(PLACE), principal(), "0")
    low = [
        asyncio.ensure_future(stage.admit(takes(PLACE), principal(f"low{number % 20}", Priority.BACKGROUND), f"{number}"))
        for number in range(MOST_WAITING - 1)
    ]
    await until_waiting(stage, MOST_WAITING - 1)
    high = asyncio.ensure_future(stage.admit(takes(PLACE), principal("high", Priority.CRITICAL), "high"))
    await until_waiting(stage, MOST_WAITING)
    assert not (await stage.admit(takes(PLACE), principal("late"), "late")).decision.allowed
    await stage.close()
    found = await asyncio.gather(high, *low)
    assert not any(ticket.decision.allowed for ticket in found)


async def test_a_caller_s_own_line_is_bounded() -> None:
    stage = LimitStage(MemoryBuckets())
    await stage.admit(takes(PLACE), principal(), "0")
    asked = [asyncio.ensure_future(stage.admit(takes(PLACE), principal(), f"{number}")) for number in range(1, 111)]
    await until_waiting(stage, 100)
    assert sum(task.done() for task in asked) == 10
    await stage.close()
    await asyncio.gather(*asked)


async def test_no_caller_takes_the_room_of_all_by_waiting_for_many_buckets() -> None:
    stage = LimitStage(MemoryBuckets())
    rooms = [takes(PLACE, f"p{number}") for number in range(5)]
    for number, wanted in enumerate(rooms):
        await stage.admit(wanted, principal(), f"first {number}")
    greedy = principal("greedy")
    asked = [asyncio.ensure_future(stage.admit(rooms[number % 5], greedy, f"{number}")) for number in range(150)]
    await until_waiting(stage, 100)
    assert sum(task.done() for task in asked) == 50
    other = asyncio.ensure_future(stage.admit(rooms[0], principal("other"), "other"))
    await until_waiting(stage, 101)
    asked[0].cancel()
    await until_waiting(stage, 100)
    again = asyncio.ensure_future(stage.admit(rooms[1], greedy, "again"))
    await until_waiting(stage, 101)
    await stage.close()
    await asyncio.gather(*asked, other, again, return_exceptions=True)
    assert stage.waiting == 0


# Afterwards

SETTLED = Limit("settled", Scope.CALLER, 0.001, 10.0, settlement=Settlement(cached=0.0, per_second=4.0))


@pytest.mark.parametrize(
    ("spent", "left"),
    [
        pytest.param(Usage(asked=False), 9, id="the-cache-answered"),
        pytest.param(Usage(asked=True, runtime_s=1.0), 4, id="it-took-long"),
        pytest.param(Usage(asked=True), 8, id="as-expected"),
        pytest.param(None, 8, id="nothing-is-known"),
    ],
)
async def test_the_ticket_settles(spent: Usage | None, left: int) -> None:
    stage = LimitStage(MemoryBuckets())
    ticket = await stage.admit(takes(SETTLED), principal(), "1")
    ticket.close(spent)
    after = await stage.admit(takes(SETTLED), principal(), "2")
    assert int(after.decision.states[0].remaining + 0.5) == left


async def test_a_refused_ticket_settles_nothing() -> None:
    stage = LimitStage(MemoryBuckets())
    await stage.admit([Take("{gw}:k", SETTLED, 10.0)], principal(), "1")
    ticket = await stage.admit(takes(SETTLED), principal(), "2")
    ticket.close(Usage(asked=False))
    assert int((await stage.admit(takes(SETTLED), principal(), "3")).decision.states[0].remaining) == 0


async def test_without_redis_what_is_not_counted_stands_for_nothing_else() -> None:
    """One limit fails open, and tells of no bucket: what its neighbours took is settled and released all the same."""
    opened = Limit("opened", Scope.TEAM, 1.0, 1.0, on_outage=OnOutage.OPEN)
    away = RedisBuckets(RedisLink.from_url("redis://127.0.0.1:1/0", timeout_s=0.05, name="away"))
    while not away.degraded:
        await away.take(takes(REFUSING))
    stage = LimitStage(away)
    mixed = [*takes(opened, "o"), *takes(SETTLED, "s"), *takes(PLACE, "p")]
    for number in range(12):
        ticket = await stage.admit(mixed, principal(), f"{number}")
        assert ticket.decision.allowed
        assert round(ticket.decision.states[0].remaining) == 9
        if number % 2:
            ticket.undo()
        else:
            ticket.close(Usage(asked=False))
    ticket = await stage.admit(mixed, principal(), "held")
    waiting = asyncio.ensure_future(stage.admit(mixed, principal(), "waits"))
    await until_waiting(stage, 1)
    assert list(stage._rooms) == ["{gw}:p"]
    ticket.close(None)
    assert (await asyncio.wait_for(waiting, 0.5)).decision.allowed
    await stage.close()
    await away.close()


class Gate(MemoryBuckets):
    """A store whose answers wait, as those of Redis do."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()

    async def take(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
        decision = self.take_now(takes, lease)
        self.asked.set()
        await self.open.wait()
        return decision


async def test_a_place_is_not_asked_for_all_the_time() -> None:
    """The more places, the sooner one is guessed to come free; Redis serves others, too."""
    asked = 0

    class Counting(MemoryBuckets):
        async def take(self, takes: Sequence[Take], lease: bytes = b"") -> Decision:
            nonlocal asked
            asked += 1
            return self.take_now(takes, lease)

    many = takes(Limit("many", Scope.CALLER, 1000.0, 1.0, concurrent=True))
    stage = LimitStage(Counting())
    first = await stage.admit(many, principal(), "1")
    assert not (await stage.admit(many, principal(), "2", 0.2)).decision.allowed
    assert asked <= 4
    waiting = asyncio.ensure_future(stage.admit(many, principal(), "3", 5.0))
    await until_waiting(stage, 1)
    first.close(None)
    assert (await waiting).decision.allowed


async def test_who_left_while_the_store_was_asked_gives_everything_back() -> None:
    store = Gate()
    stage = LimitStage(store)
    mixed = [*takes(Limit("t", Scope.CALLER, 0.001, 5.0), "t"), *takes(PLACE, "p")]
    first = await stage.admit(mixed, principal(), "1")
    gone = asyncio.ensure_future(stage.admit(mixed, principal(), "2"))
    await until_waiting(stage, 1)
    store.open.clear()
    store.asked.clear()
    first.close(None)
    await store.asked.wait()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    store.open.set()
    again = await asyncio.wait_for(stage.admit(mixed, principal(), "3", 2.0), 30)
    assert again.decision.allowed
    assert int(again.decision.states[0].remaining + 0.5) == 3


async def test_who_leaves_in_any_turn_around_its_own_gives_everything_back() -> None:
    """In memory a place has no end of its own: one that nobody holds would be taken for ever."""
    for turns in range(20):
        stage = LimitStage(MemoryBuckets())
        mixed = [*takes(Limit("t", Scope.CALLER, 0.001, 5.0), "t"), *takes(PLACE, "p")]
        first = await stage.admit(mixed, principal(), "1")
        waiting = asyncio.ensure_future(stage.admit(mixed, principal(), "2"))
        await until_waiting(stage, 1)
        first.close(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.done():
            break
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        tokens, places = (await stage.look(mixed)).states
        assert (int(tokens.remaining + 0.5), places.remaining) == (4, 1), f"after {turns} turns"
        assert (stage.waiting, stage.absorbed_total) == (0, 0)
    assert 0 < turns < 19


async def test_closing_while_the_store_is_asked_refuses() -> None:
    store = Gate()
    stage = LimitStage(store)
    first = await stage.admit(takes(PLACE), principal(), "1")
    waiting = asyncio.ensure_future(stage.admit(takes(PLACE), principal(), "2"))
    await until_waiting(stage, 1)
    store.open.clear()
    store.asked.clear()
    first.close(None)
    await store.asked.wait()
    await stage.close()
    assert not (await waiting).decision.allowed

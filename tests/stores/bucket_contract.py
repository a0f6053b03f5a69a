"""What every bucket store promises, whichever it is."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.limits import Decision, Limit, Scope, Take
from gateway.ports import BucketStore

# Slow enough that no token flows back while a test runs.
WIDE = Limit("wide", Scope.CALLER, 0.001, 50.0)
NARROW = Limit("narrow", Scope.TEAM, 0.001, 3.0)
SHADOW = Limit("shadow", Scope.CALLER, 0.001, 1.0, shadow=True)
PLACES = Limit("places", Scope.CALLER, 2.0, 2.0, concurrent=True)


class BucketContract:
    """Subclasses give a ``store`` fixture: empty, and live."""

    async def test_admits_exactly_the_burst_of_many_at_once(self, store: BucketStore) -> None:
        decisions = await asyncio.gather(*[store.take([Take("{gw}:w", WIDE)]) for _ in range(500)])
        assert [decision.allowed for decision in decisions].count(True) == 50
        assert not any(decision.degraded for decision in decisions)

    async def test_all_buckets_or_none(self, store: BucketStore) -> None:
        both = [Take("{gw}:w", WIDE), Take("{gw}:n", NARROW)]
        decisions = [await store.take(both) for _ in range(10)]
        assert [decision.allowed for decision in decisions].count(True) == 3
        refusal = decisions[-1].refusal
        assert refusal is not None
        assert refusal.limit is NARROW
        assert 999 < refusal.retry_after_s <= 1000
        after = await store.take([Take("{gw}:w", WIDE)])
        assert int(after.states[0].remaining) == 46

    async def test_what_is_surely_refused_is_said_and_nothing_is_taken(self, store: BucketStore) -> None:
        narrow, both = [Take("{gw}:n", NARROW)], [Take("{gw}:w", WIDE), Take("{gw}:n", NARROW)]
        for left in (2, 1, 0):
            assert store.refused_now(narrow) is None
            assert int((await store.take(narrow)).states[0].remaining) == left
        before = await store.take(both)
        for _ in range(5):
            found = store.refused_now(both)
            assert found is not None
            assert (found.allowed, found.refusal is not None and found.refusal.limit) == (False, NARROW)
            assert [int(one.remaining) for one in found.states] == [int(one.remaining) for one in before.states]
        assert int((await store.take([Take("{gw}:w", WIDE)])).states[0].remaining) == 49

    async def test_who_is_told_later_is_told_once_and_never_meanwhile(self, store: BucketStore) -> None:
        decisions: list[Decision] = []
        all_here = asyncio.Event()

        def on_decision(decision: Decision) -> None:
            decisions.append(decision)
            if len(decisions) == 200:
                all_here.set()

        for _ in range(200):
            store.take_soon([Take("{gw}:w", WIDE)], on_decision)
            store.take_soon([Take("{gw}:other", WIDE)], decisions.append).cancel()
        assert decisions == []
        async with asyncio.timeout(30):
            await all_here.wait()
        assert [decision.allowed for decision in decisions].count(True) == 50
        assert not (await store.take([Take("{gw}:w", WIDE)])).allowed
        assert len(decisions) == 200

    async def test_a_fault_of_who_is_told_is_nobodys_else(self, store: BucketStore) -> None:
        def fail(decision: Decision) -> None:
            raise ZeroDivisionError

        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # the loop's own guard says it, too
        others = [asyncio.ensure_future(store.take([Take("{gw}:n", NARROW)])) for _ in range(2)]
        store.take_soon([Take("{gw}:n", NARROW)], fail)
        others += [asyncio.ensure_future(store.take([Take("{gw}:n", NARROW)])) for _ in range(2)]
        decisions = await asyncio.gather(*others)
        assert [decision.allowed for decision in decisions].count(True) == 2
        assert not any(decision.degraded for decision in decisions)

    async def test_buckets_are_apart_by_key(self, store: BucketStore) -> None:
        await store.take([Take("{gw}:one", NARROW, 3.0)])
        assert (await store.take([Take("{gw}:two", NARROW, 3.0)])).allowed
        assert not (await store.take([Take("{gw}:one", NARROW)])).allowed

    async def test_a_shadow_limit_refuses_nothing(self, store: BucketStore) -> None:
        takes = [Take("{gw}:w", WIDE), Take("{gw}:s", SHADOW)]
        decisions = [await store.take(takes) for _ in range(3)]
        assert all(decision.allowed for decision in decisions)
        assert [decision.shadowed for decision in decisions] == ["", "shadow", "shadow"]

    async def test_states_come_in_the_order_of_the_takes(self, store: BucketStore) -> None:
        decision = await store.take([Take("{gw}:s", SHADOW), Take("{gw}:n", NARROW), Take("{gw}:w", WIDE)])
        assert [found.limit.id for found in decision.states] == ["shadow", "narrow", "wide"]

    async def test_a_cost_beyond_the_burst_asks_for_a_full_bucket(self, store: BucketStore) -> None:
        assert (await store.take([Take("{gw}:n", NARROW, 100.0)])).allowed
        assert not (await store.take([Take("{gw}:n", NARROW)])).allowed

    async def test_nothing_to_take_is_allowed(self, store: BucketStore) -> None:
        decision = await store.take([])
        assert decision.allowed
        assert decision.states == ()

    async def test_a_caller_who_left_before_the_answer_harms_nobody(self, store: BucketStore) -> None:
        tasks = [asyncio.ensure_future(store.take([Take("{gw}:w", WIDE)])) for _ in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        stayed = await asyncio.gather(*tasks[1::2])
        assert all(decision.allowed for decision in stayed)
        alone = await store.take([Take("{gw}:n", NARROW)])
        assert int(alone.states[0].remaining) == 2

    async def test_only_so_many_are_in_progress_at_once(self, store: BucketStore) -> None:
        takes = [Take("{gw}:w", WIDE), Take("{gw}:p", PLACES)]
        decisions = [await store.take(takes, b"%d" % number) for number in range(4)]
        assert [decision.allowed for decision in decisions] == [True, True, False, False]
        refusal = decisions[-1].refusal
        assert refusal is not None
        assert refusal.limit is PLACES
        assert int(decisions[-1].states[0].remaining) == 48  # who is refused a place keeps his tokens
        store.release(takes, b"0")
        assert (await store.take(takes, b"4")).allowed
        assert not (await store.take(takes, b"5")).allowed

    async def test_a_place_given_up_twice_is_one_place(self, store: BucketStore) -> None:
        takes = [Take("{gw}:p", PLACES)]
        for lease in (b"a", b"b"):
            await store.take(takes, lease)
        for _ in range(3):
            store.release(takes, b"a")
        store.release(takes, b"never held")
        assert [(await store.take(takes, lease)).allowed for lease in (b"c", b"d")] == [True, False]

    async def test_who_is_refused_tokens_holds_no_place(self, store: BucketStore) -> None:
        await store.take([Take("{gw}:n", NARROW, 3.0)])
        for number in range(5):
            assert not (await store.take([Take("{gw}:n", NARROW), Take("{gw}:p", PLACES)], b"%d" % number)).allowed
        assert (await store.take([Take("{gw}:p", PLACES)], b"x")).states[0].remaining == 1.0

    async def test_looking_shows_what_is_there_and_takes_nothing(self, store: BucketStore) -> None:
        takes = [Take("{gw}:w", WIDE, 20.0), Take("{gw}:p", PLACES), Take("{gw}:never", NARROW, 9.0)]
        await store.take(takes[:2], b"a")
        await store.take(takes[:2], b"b")
        for _ in range(3):
            seen = await store.look(takes)
            assert seen.allowed
            assert [round(found.remaining) for found in seen.states] == [10, 0, 3]
            assert [found.limit for found in seen.states] == [WIDE, PLACES, NARROW]
        assert seen.states[0].full_in_s == pytest.approx((50 - seen.states[0].remaining) / WIDE.rate)
        store.release(takes[:2], b"a")
        await store.take([takes[2]])  # the release went before
        assert [round(found.remaining) for found in (await store.look(takes)).states] == [10, 1, 0]
        assert (await store.look([])).states == ()

    async def test_a_settlement_is_seen_by_the_next_take(self, store: BucketStore) -> None:
        await store.take([Take("{gw}:w", WIDE, 10.0)])
        store.settle([Take("{gw}:w", WIDE, -4.0), Take("{gw}:n", NARROW, 2.0)])
        decision = await store.take([Take("{gw}:w", WIDE), Take("{gw}:n", NARROW)])
        assert [int(found.remaining + 0.5) for found in decision.states] == [43, 0]
        store.settle([Take("{gw}:n", NARROW, 2.0)])
        await store.take([Take("{gw}:w", WIDE)])
        refusal = (await store.take([Take("{gw}:n", NARROW)])).refusal
        assert refusal is not None
        assert 2990 < refusal.retry_after_s <= 3001  # the debt is waited for too

    async def test_nothing_to_settle_or_release_is_nothing(self, store: BucketStore) -> None:
        store.settle([])
        store.release([], b"x")
        assert (await store.take([Take("{gw}:w", WIDE)])).allowed

    async def test_closing_twice_is_closing(self, store: BucketStore) -> None:
        await store.take([Take("{gw}:w", WIDE)])
        await store.close()
        await store.close()

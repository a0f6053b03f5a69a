"""Redis buckets: the contract, exactness across gateways, and every way Redis can fail."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway.app.store_watch import StoreWatch
from gateway.core.limits import Decision, Limit, OnOutage, Scope, Take
from gateway.stores.bucket_redis import RedisBuckets
from gateway.stores.redis_link import RedisLink

from .bucket_contract import NARROW, PLACES, WIDE, BucketContract
from .patience import LONG_S, waits

StartRedis = Callable[..., Any]
TIMEOUT_S = 0.05
# What a busy test machine may add to a wait before it counts as waiting.
SLACK_S = 5.0
HUNDRED = Limit("hundred", Scope.CALLER, 0.001, 100.0)


@asynccontextmanager
async def gateway(
    url: str, *, timeout_s: float = LONG_S, on_outage: OnOutage = OnOutage.LOCAL
) -> AsyncIterator[RedisBuckets]:
    store = RedisBuckets(RedisLink.from_url(url, timeout_s=timeout_s, name="buckets"), on_outage=on_outage)
    yield store
    await store.close()


@asynccontextmanager
async def admin(url: str) -> AsyncIterator[RedisLink]:
    link = RedisLink.from_url(url, timeout_s=LONG_S, name="admin")
    yield link
    await link.close()


def takes(key: str = "k", limit: Limit = HUNDRED) -> list[Take]:
    return [Take(f"{{gw}}:b:{key}", limit)]


async def timed(store: RedisBuckets, key: str = "k") -> tuple[Decision, float]:
    started = time.monotonic()
    decision = await store.take(takes(key))
    return decision, time.monotonic() - started


def at_once(store: RedisBuckets) -> Decision:
    """A decision without one turn of the event loop."""
    with pytest.raises(StopIteration) as decided:
        store.take(takes()).send(None)
    decision = decided.value.value
    assert isinstance(decision, Decision)
    return decision


async def recovered(store: RedisBuckets) -> None:
    """Until decisions come from Redis again, which is waited for now; each try is somebody else's bucket."""
    store._link._timeout_s = LONG_S
    async with asyncio.timeout(30):
        while (await store.take(takes("recovery", Limit("r", Scope.CALLER, 1000.0, 1000.0)))).degraded:
            await asyncio.sleep(0.02)


class TestContract(BucketContract):
    @pytest.fixture
    async def store(self, redis_url: str) -> AsyncIterator[RedisBuckets]:
        async with gateway(redis_url) as store:
            yield store


# Exact


async def test_two_gateways_admit_exactly_the_configured_number(redis_url: str) -> None:
    async with gateway(redis_url) as one, gateway(redis_url) as other:
        for round_ in range(5):
            decisions = await asyncio.gather(
                *[store.take(takes(f"round-{round_}")) for _ in range(300) for store in (one, other)]
            )
            assert [decision.allowed for decision in decisions].count(True) == 100
            assert not any(decision.degraded for decision in decisions)


async def test_the_takes_of_one_turn_are_one_call(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await store.take(takes("first"))
        await redis.execute("CONFIG", "RESETSTAT")
        await asyncio.gather(*[store.take([*takes(f"{number}"), *takes("all", WIDE)]) for number in range(100)])
        stats = await redis.execute("INFO", "commandstats")
        assert isinstance(stats, bytes)
        assert b"cmdstat_evalsha:calls=1," in stats


async def test_a_flood_of_certain_refusals_costs_redis_nothing(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        while (await store.take(takes("k", NARROW))).allowed:
            pass
        await redis.execute("CONFIG", "RESETSTAT")
        refused = [await store.take([*takes("w", WIDE), *takes("k", NARROW)]) for _ in range(500)]
        assert not any(decision.allowed or decision.degraded for decision in refused)
        assert abs(refused[-1].now - time.time()) < 1
        refusal = refused[-1].refusal
        assert refusal is not None
        assert 990 < refusal.retry_after_s <= 1000
        stats = await redis.execute("INFO", "commandstats")
        assert isinstance(stats, bytes)
        assert b"evalsha" not in stats


async def test_while_redis_is_away_the_policy_decides_at_once(start_redis: StartRedis) -> None:
    redis = start_redis()
    async with gateway(redis.url) as store:
        assert store.take_now(takes("k", NARROW)) is None, "Redis is to be asked"
        await store.take(takes("k", NARROW))
        redis.stop()
        while not store.degraded:
            await store.take(takes("other", WIDE))
        decisions = [store.take_now(takes("k", NARROW)) for _ in range(4)]
        assert [(one.allowed, one.degraded) for one in decisions if one is not None] == [(True, True)] * 2 + [
            (False, True)
        ] * 2
        assert store.refused_now(takes("k", NARROW)) is None


async def test_who_leaves_before_the_turn_is_over_takes_nothing(redis_url: str) -> None:
    async with gateway(redis_url) as store:
        await store.take(takes("k", WIDE))
        for _ in range(10):
            store.take_soon(takes("k", WIDE), lambda _: None).cancel()
        assert int((await store.take(takes("k", WIDE))).states[0].remaining) == 48


async def test_who_was_told_and_cancelled_in_one_turn_holds_no_place(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as link:
        place = [Take("{gw}:p", PLACES)]
        taking = asyncio.ensure_future(store.take(place, b"a"))
        await asyncio.sleep(0)
        item = store._waiting[0]
        then = item.then
        assert then is not None

        def decide_and_cancel(decision: Decision) -> None:
            then(decision)
            taking.cancel()

        item.then = decide_and_cancel
        with pytest.raises(asyncio.CancelledError):
            await taking
        await store.take(takes("k", WIDE))
        assert await link.execute("EXISTS", "{gw}:p") == 0


async def test_a_remembered_refusal_ends_when_the_token_is_there(redis_url: str) -> None:
    quick = Limit("quick", Scope.CALLER, 20.0, 1.0)
    async with gateway(redis_url) as store:
        assert (await store.take(takes("q", quick))).allowed
        refusal = (await store.take(takes("q", quick))).refusal
        assert refusal is not None
        await asyncio.sleep(refusal.retry_after_s + 0.001)
        assert (await store.take(takes("q", quick))).allowed


async def test_what_was_given_back_is_there_at_once(redis_url: str) -> None:
    limit = Limit("l", Scope.CALLER, 0.001, 3.0)
    async with gateway(redis_url) as store:
        assert (await store.take([Take("{gw}:l", limit, 2.0)])).allowed
        store.settle([Take("{gw}:l", limit, -2.0)])
        assert (await store.take([Take("{gw}:l", limit, 3.0)])).allowed
        assert not (await store.take([Take("{gw}:l", limit, 1.0)])).allowed


async def test_a_release_names_places_alone_whatever_it_is_given(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as link:
        asked = [Take("{gw}:w", WIDE, 20.0), Take("{gw}:p", PLACES)]
        await store.take(asked, b"a")
        store.release(asked, b"a")
        assert int((await store.take([Take("{gw}:w", WIDE)])).states[0].remaining) == 29
        assert await link.execute("EXISTS", "{gw}:p") == 0


async def test_a_shadow_bucket_that_is_short_is_never_a_certain_refusal(redis_url: str) -> None:
    shadow = Limit("s", Scope.CALLER, 0.001, 1.0, shadow=True)
    async with gateway(redis_url) as store:
        assert [(await store.take(takes("s", shadow))).allowed for _ in range(3)] == [True] * 3


async def test_gateways_count_each_other(redis_url: str) -> None:
    async with gateway(redis_url) as one, gateway(redis_url) as other:
        await one.take(takes())
        await other.take(takes())
        await other.take(takes())
        assert other._gateways == 2


async def test_gateways_count_each_other_though_something_else_lay_there(redis_url: str) -> None:
    """Each would take the whole of a limit in an outage."""
    async with gateway(redis_url) as one, gateway(redis_url) as other, admin(redis_url) as redis:
        await redis.execute("SET", "{gw}:gateways", "x")
        await one.take(takes())
        await other.take(takes())
        await other.take(takes())
        assert other._gateways == 2


async def test_a_gateway_that_closes_counts_no_more(redis_url: str) -> None:
    async with gateway(redis_url) as stays, admin(redis_url) as redis:
        for _ in range(2):
            async with gateway(redis_url) as goes:
                await goes.take(takes())
                leaving = asyncio.ensure_future(goes.take(takes()))
                await asyncio.sleep(0)
                goes._counted_at = 0.0  # its next count is due, too late
                await goes.close()
                await leaving
        assert await redis.execute("ZCARD", "{gw}:gateways") == 0
        await stays.take(takes())
        await stays.take(takes())
        assert stays._gateways == 1


async def test_closing_waits_for_no_redis_that_is_known_to_be_away(start_redis: StartRedis) -> None:
    server = start_redis()
    async with gateway(server.url) as store:
        await store.take(takes())
        server.stop()
        await store.take(takes())
        failures, started = store._link.failures, time.monotonic()
        await store.close()
        assert time.monotonic() - started < SLACK_S
        assert store._link.failures == failures


async def test_what_was_learned_is_bounded(redis_url: str) -> None:
    async with gateway(redis_url) as store:
        for start in range(0, 70_000, 500):
            await store.take([Take(f"{{gw}}:{start + number}", WIDE) for number in range(500)])
        assert len(store._known) + len(store._known_before) <= 2 * (32_768 + 500)


# A hierarchy in one step


async def test_caller_team_and_organisation_are_taken_together_across_two_gateways(redis_url: str) -> None:
    caller = Limit("caller", Scope.CALLER, 0.001, 40.0)
    team = Limit("team", Scope.TEAM, 0.001, 60.0)
    organisation = Limit("organisation", Scope.ORGANISATION, 0.001, 90.0)

    def of(bot: str, group: str) -> list[Take]:
        return [
            Take(f"{{gw}}:b:caller:{bot}", caller),
            Take(f"{{gw}}:b:team:{group}", team),
            Take("{gw}:b:organisation:all", organisation),
        ]

    bots = [("a", "red"), ("b", "red"), ("c", "blue")]
    async with gateway(redis_url) as one, gateway(redis_url) as other:
        asked = [(bot, group, store) for _ in range(60) for bot, group in bots for store in (one, other)]
        decisions = await asyncio.gather(*[store.take(of(bot, group)) for bot, group, store in asked])
        admitted = {
            bot: sum(decision.allowed for decision, (who, _, _) in zip(decisions, asked, strict=True) if who == bot)
            for bot, _ in bots
        }
        assert admitted["a"] <= 40
        assert admitted["b"] <= 40
        assert admitted["a"] + admitted["b"] == 60  # not a token was lost to a request that another bucket refused
        assert admitted["c"] == 30


async def test_eight_gateways_admit_exactly_the_configured_number(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(gateway(redis_url)) for _ in range(8)]
        decisions = await asyncio.gather(*[store.take(takes()) for _ in range(60) for store in stores])
        assert sum(decision.allowed for decision in decisions) == 100


# Places


async def test_places_are_shared_across_gateways(redis_url: str) -> None:
    places = takes("p", Limit("five", Scope.CALLER, 5.0, 5.0, concurrent=True))
    async with gateway(redis_url) as one, gateway(redis_url) as other:
        asked = [(store, f"{number}{name}".encode()) for number in range(6) for name, store in (("a", one), ("b", other))]
        decisions = await asyncio.gather(*[store.take(places, lease) for store, lease in asked])
        assert sum(decision.allowed for decision in decisions) == 5
        for (store, lease), decision in zip(asked, decisions, strict=True):
            if decision.allowed:
                store.release(places, lease)
        await asyncio.gather(one.take(takes("turn")), other.take(takes("turn")))
        assert sum([(await other.take(places, b"again-%d" % number)).allowed for number in range(6)]) == 5


async def test_the_places_of_a_dead_gateway_come_free(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await redis.execute("ZADD", "{gw}:b:k", 1, "left behind", 2, "and another")
        assert [(await store.take(takes("k", PLACES), b"%d" % number)).allowed for number in range(3)] == [
            True,
            True,
            False,
        ]
        ttl_ms = await redis.execute("PTTL", "{gw}:b:k")
        assert isinstance(ttl_ms, int)
        assert 55_000 < ttl_ms <= 65_000


async def test_a_place_in_use_is_renewed(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await store.take(takes("k", PLACES), b"long")
        await redis.execute("ZADD", "{gw}:b:k", 1, "long")  # as if a minute had passed
        store._renew()
        await store.take(takes("turn"))
        ends = await redis.execute("ZSCORE", "{gw}:b:k", "long")
        assert isinstance(ends, bytes)
        assert float(ends) / 1e6 > time.time() + 50


async def test_who_leaves_while_asking_holds_no_place(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await store.take(takes("turn"))
        await redis.execute("CLIENT", "PAUSE", 200, "ALL")
        asking = asyncio.ensure_future(store.take(takes("k", PLACES), b"gone"))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await store.take(takes("turn"))
        await store.take(takes("turn"))
        assert await redis.execute("ZCARD", "{gw}:b:k") == 0


@pytest.mark.parametrize("pause_ms", [600, 2000], ids=["a-moment", "until-it-counts-as-away"])
async def test_no_place_stays_taken_that_redis_could_not_be_told_of(redis_url: str, pause_ms: int) -> None:
    """A script that was not answered in time runs all the same, later: nobody else must wait for a minute for that."""
    places = takes("p", PLACES)
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        assert (await store.take(places, b"before")).allowed
        assert (await store.take(places, b"stays")).allowed
        waits(store._link, TIMEOUT_S)
        await redis.execute("CLIENT", "PAUSE", pause_ms, "ALL")
        store.release(places, b"before")
        gone = asyncio.ensure_future(store.take(places, b"gone"))
        await asyncio.sleep(0)
        gone.cancel()
        during = await asyncio.gather(*[store.take(places, b"%d" % number) for number in range(4)])
        assert [(one.allowed, one.degraded) for one in during] == [(True, True)] * 2 + [(False, True)] * 2
        store.release(places, b"0")
        store._link._timeout_s = LONG_S
        async with asyncio.timeout(30):
            while await held(redis) - {"stays", "1"}:  # the one more that was let in meanwhile is in progress
                await store.take(takes("recovery"))
            store.release(places, b"1")
            store.release(places, b"stays")
            while await held(redis):
                await store.take(takes("recovery"))
        assert not store._held


async def test_whoever_is_kept_out_by_places_that_redis_missed_is_let_in_again(redis_url: str) -> None:
    """Even where nobody else comes: a refusal shows that Redis answers."""
    places = takes("p", PLACES)
    async with gateway(redis_url) as store:
        for lease in (b"a", b"b"):
            assert (await store.take(places, lease)).allowed
        store._failures = 1  # as if the releases had not come through
        store._unreleased = {lease: store._held.pop(lease) for lease in (b"a", b"b")}
        assert not (await store.take(places, b"again")).allowed
        assert (await store.take(places, b"again")).allowed


async def test_a_place_taken_anew_is_not_released_by_what_had_to_wait(redis_url: str) -> None:
    """A request that was asked for room first goes by one name all the time."""
    places = takes("p", PLACES)
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await store.take(places, b"same")
        waits(store._link, TIMEOUT_S)
        await redis.execute("CLIENT", "PAUSE", 1000, "ALL")
        store.release(places, b"same")
        assert (await store.take(places, b"same")).degraded
        store._link._timeout_s = LONG_S
        assert store._unreleased
        async with asyncio.timeout(30):
            while store._unreleased:
                await store.take(takes("recovery"))
        await store.take(takes("turn"))
        assert await held(redis) == {"same"}


# Failing


async def held(redis: RedisLink) -> set[str]:
    """Places in Redis, by lease."""
    leases = await redis.execute("ZRANGE", "{gw}:b:p", 0, -1)
    assert isinstance(leases, list)
    return {lease.decode() for lease in leases if isinstance(lease, bytes)}


async def test_each_limit_may_fail_its_own_way() -> None:
    opened = Limit("opened", Scope.TEAM, 0.001, 1.0, on_outage=OnOutage.OPEN)
    closed = Limit("closed", Scope.TEAM, 0.001, 1.0, on_outage=OnOutage.CLOSED)
    watched = Limit("watched", Scope.TEAM, 0.001, 1.0, on_outage=OnOutage.CLOSED, shadow=True)
    async with gateway("redis://127.0.0.1:1/0", timeout_s=TIMEOUT_S) as store:
        both = [*takes("k", NARROW), *takes("o", opened), *takes("w", watched)]
        assert [(await store.take(both)).allowed for _ in range(5)] == [True, True, True, False, False]
        assert (await store.take([*takes("k", HUNDRED), *takes("c", closed)])).unavailable
        assert (await store.take(takes("o", opened))).allowed


async def test_places_and_settlements_are_kept_locally_during_an_outage() -> None:
    async with gateway("redis://127.0.0.1:1/0", timeout_s=TIMEOUT_S) as store:
        while not store.degraded:
            await store.take(takes("x"))
        assert [(await store.take(takes("p", PLACES), b"%d" % number)).allowed for number in range(3)] == [
            True,
            True,
            False,
        ]
        store.release(takes("p", PLACES), b"0")
        assert (await store.take(takes("p", PLACES), b"3")).allowed
        await store.take(takes("k", NARROW))
        store.settle([Take("{gw}:b:k", NARROW, 2.0)])
        assert not (await store.take(takes("k", NARROW))).allowed


async def test_the_script_forgotten_is_sent_again_at_once(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await store.take(takes())
        await redis.execute("SCRIPT", "FLUSH")
        decision = await store.take(takes())
        assert not decision.degraded
        assert int(decision.states[0].remaining) == 98


async def test_a_key_of_another_type_heals(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await redis.execute("LPUSH", "{gw}:b:k", "x")
        decision = await store.take(takes())
        assert decision.allowed
        assert not decision.degraded


@pytest.mark.parametrize(
    ("breaking", "mending"),
    [
        pytest.param(("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), id="readonly"),
        pytest.param(("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), id="oom"),
    ],
)
async def test_a_redis_that_takes_no_writes(
    start_redis: StartRedis, breaking: tuple[str, ...], mending: tuple[str, ...]
) -> None:
    server = start_redis()
    async with gateway(server.url) as store, admin(server.url) as redis:
        await store.take(takes())
        await redis.execute(*breaking)
        decisions = [await timed(store) for _ in range(200)]
        assert all(decision.degraded for decision, _ in decisions)
        assert 90 <= sum(decision.allowed for decision, _ in decisions) <= 100
        assert store.degraded
        await redis.execute(*mending)
        await recovered(store)


async def test_refusals_are_no_sign_that_a_full_redis_takes_writes(start_redis: StartRedis) -> None:
    """They write nothing: whoever is refused must not have what others took without Redis forgotten."""
    server = start_redis()
    async with gateway(server.url) as store, admin(server.url) as redis, gateway(server.url) as other:
        await store.take(takes())
        empty = [takes(f"empty-{number}", NARROW) for number in range(60)]
        for one in empty:
            await other.take([Take(one[0].key, NARROW, 3.0)])
        await redis.execute("CONFIG", "SET", "maxmemory", "1")
        admitted = 0
        for one in empty:
            admitted += sum([(await store.take(takes())).allowed for _ in range(3)])
            await store.take(one)
        assert admitted <= 99
        assert store.degraded
        await redis.execute("CONFIG", "SET", "maxmemory", "0")
        await recovered(store)


async def test_a_killed_redis(start_redis: StartRedis) -> None:
    server = start_redis()
    async with gateway(server.url) as store:
        await recovered(store)
        waits(store._link, TIMEOUT_S)
        server.stop()
        first = await asyncio.gather(*[timed(store) for _ in range(200)])
        assert all(decision.degraded and waited < TIMEOUT_S + SLACK_S for decision, waited in first)
        assert sum(decision.allowed for decision, _ in first) == 100
        while not store.degraded:
            await store.take(takes("more"))
        for _ in range(200):
            assert at_once(store).degraded
        server.start()
        await recovered(store)


async def test_a_stopped_redis(start_redis: StartRedis) -> None:
    server = start_redis()
    async with gateway(server.url) as store:
        await recovered(store)
        waits(store._link, TIMEOUT_S)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            waited = [(await timed(store))[1] for _ in range(10)]
            assert max(waited) < TIMEOUT_S + SLACK_S
            assert all(at_once(store).degraded for _ in range(20))  # the breaker is open: nobody waits
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        await recovered(store)


async def test_a_paused_redis(redis_url: str) -> None:
    async with gateway(redis_url) as store, admin(redis_url) as redis:
        await recovered(store)
        waits(store._link, TIMEOUT_S)
        await redis.execute("CLIENT", "PAUSE", 2000, "ALL")
        decision, waited = await timed(store)
        assert decision.degraded
        assert waited < TIMEOUT_S + SLACK_S
        await recovered(store)


async def test_no_redis_from_the_start() -> None:
    async with gateway("redis://127.0.0.1:1/0", timeout_s=TIMEOUT_S) as store:
        decisions = await asyncio.gather(*[timed(store) for _ in range(300)])
        assert all(decision.degraded and waited < TIMEOUT_S + SLACK_S for decision, waited in decisions)
        assert sum(decision.allowed for decision, _ in decisions) == 100


async def test_two_gateways_admit_no_more_than_the_limit_during_an_outage(start_redis: StartRedis) -> None:
    server = start_redis()
    async with gateway(server.url) as one, gateway(server.url) as other:
        for store in (one, other):
            await recovered(store)
        one._counted_at = float("-inf")  # its next count is due: by now there are two
        await recovered(one)
        await recovered(one)
        assert (one._gateways, other._gateways) == (2, 2)
        server.stop()
        decisions = [await store.take(takes()) for _ in range(150) for store in (one, other)]
        assert sum(decision.allowed for decision in decisions) == 100


async def test_open_lets_everything_pass() -> None:
    async with gateway("redis://127.0.0.1:1/0", timeout_s=TIMEOUT_S, on_outage=OnOutage.OPEN) as store:
        decisions = [await store.take(takes()) for _ in range(150)]
        assert all(decision.allowed and decision.degraded and not decision.states for decision in decisions)


async def test_closed_refuses_and_says_it_is_no_limit() -> None:
    async with gateway("redis://127.0.0.1:1/0", timeout_s=TIMEOUT_S, on_outage=OnOutage.CLOSED) as store:
        for _ in range(10):
            decision = await store.take(takes())
            assert (decision.allowed, decision.unavailable, decision.degraded) == (False, True, True)
            assert decision.refusal is None


async def test_closing_decides_for_who_still_waits(start_redis: StartRedis) -> None:
    server = start_redis()
    async with gateway(server.url) as store:
        await recovered(store)
        waits(store._link, TIMEOUT_S)
        os.kill(server.process.pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(store.take(takes()))
        await asyncio.sleep(0.01)
        started = time.monotonic()
        await store.close()
        assert time.monotonic() - started < TIMEOUT_S + SLACK_S, "no longer than for any call"
        assert (await waiting).degraded
        assert (await store.take(takes())).degraded


@pytest.mark.parametrize("user", ["bare", "WRONGTYPE"])
@pytest.mark.parametrize("forbidden", ["-get", "-zremrangebyscore"])
async def test_what_an_acl_hides_is_not_taken_for_full(start_redis: StartRedis, forbidden: str, user: str) -> None:
    """Since 7.2 the refusal holds the user's name."""
    server = start_redis("--user", user, "on", "nopass", "~*", "&*", "+@all", forbidden)
    async with gateway(server.url.replace("redis://", f"redis://{user}@"), on_outage=OnOutage.CLOSED) as store:
        for limit in (HUNDRED, PLACES):
            decision = await store.take(takes(limit=limit), b"lease")
            assert decision.unavailable is (limit.concurrent is (forbidden != "-get"))
        assert store._link.trouble == "NOPERM"


async def test_a_redis_that_takes_no_scripts_is_unwell(scriptless: str, caplog: pytest.LogCaptureFixture) -> None:
    """A proxy in front, say: it answers whatever else is asked, so nothing else tells that limits go by their policy."""
    async with gateway(scriptless, on_outage=OnOutage.CLOSED) as store:
        watch = StoreWatch([store._link])
        await watch.start()
        assert store._link.healthy
        while not store.degraded:
            assert (await store.take(takes())).unavailable
        failures = store._link.failures
        assert (store._link.healthy, store._link.trouble) == (False, "ERR")
        async with asyncio.timeout(30):
            while store._link.failures == failures:  # the probe's
                await asyncio.sleep(0.01)
        watch.look()
        assert "does not answer (ERR)" in caplog.text
        await watch.close()

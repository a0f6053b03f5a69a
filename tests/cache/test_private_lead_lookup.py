"""A miss that is led where the store is elsewhere: the same entries and flights, and nothing left behind by who leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from gateway.cache import CacheProfile, PrivateCache
from gateway.cache.contract import Leader, PriorLookup
from gateway.cache.private_conditional import PrivateConditional
from gateway.cache.private_miss import PrivateMiss
from gateway.cache.private_revalidation import PrivateRevalidation
from gateway.core.cache_entry import LazyEntry
from gateway.core.cache_status import CacheReason, CacheStatus
from gateway.core.messages import Fields
from gateway.core.private_caching import PrivatePolicy
from gateway.ports import Cancellable, Lookup
from gateway.stores.cache_memory import MemoryCacheStore

from .origin import Origin, get, json
from .private_room import ETAG, KEPT, OTHER, Room
from .test_private_miss import TARGET, answer

ALWAYS = PrivatePolicy()
PROJECT_TARGET = b"/api/v4/projects/42"


class PendingCall:
    """A call that is under way until the test answers it."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer
        self.cancelled = False

    def go(self) -> None:
        if not self.cancelled:
            self._answer()

    def cancel(self) -> None:
        self.cancelled = True


class FakeRemoteStore:
    """``RemoteStore`` in front of a store in memory."""

    def __init__(self, store: MemoryCacheStore) -> None:
        self._store = store
        self.copies = True
        self.away = False
        self.asked: list[PendingCall] = []

    def get_soon(self, key: bytes, tags: tuple[bytes, ...], then: Callable[[Lookup], None]) -> Cancellable | None:
        if self.away:
            return None
        call = PendingCall(lambda: then(self._store.get_now(key, tags)))
        self.asked.append(call)
        return call

    def put_now(self, key: bytes, entry: LazyEntry, ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool:
        return self._store.put_now(key, entry, ttl_s, tags, stamp)

    def delete_now(self, key: bytes) -> None:
        self._store.delete_now(key)


class Others:
    """The other gateways."""

    def __init__(self) -> None:
        self.away = False
        self.one_asks = False
        self.asked: list[PendingCall] = []
        self.flight_keys: list[bytes] = []
        self.ended = 0

    async def lead(self, flight_key: bytes) -> Callable[[], None] | None:
        self.flight_keys.append(flight_key)
        return None if self.one_asks else self._end

    def lead_soon(self, flight_key: bytes, then: Callable[[Callable[[], None] | None], None]) -> Cancellable | None:
        if self.away:
            return None
        self.flight_keys.append(flight_key)
        call = PendingCall(lambda: then(None if self.one_asks else self._end))
        self.asked.append(call)
        return call

    def _end(self) -> None:
        self.ended += 1


class Far(Room):
    """A cache whose store is elsewhere, and one kind of request that came by before."""

    def __init__(self, policy: PrivatePolicy = KEPT) -> None:
        super().__init__(policy)
        self.remote, self.others = FakeRemoteStore(self.store), Others()
        self.cache = PrivateCache(self.store, policy, remote_store=self.remote, leases=self.others)
        self.profile = CacheProfile()
        self.leads: list[Leader | PriorLookup | None] = []

    async def learn(self, *fields: tuple[bytes, bytes]) -> Far:
        await self.fetch(msgspec.structs.replace(get(PROJECT_TARGET, *fields), profile=self.profile), Origin(json(ETAG)))
        self.others.flight_keys.clear()
        self.others.ended = 0
        return self

    def look(self, target: bytes = TARGET) -> Cancellable | None:
        return self.cache.lead_soon(target, self.profile, self.clock, self.leads.append)

    def led(self) -> Leader:
        """As far as it goes: both are asked, and one leads."""
        assert self.look() is not None
        self.remote.asked[-1].go()
        if self.others.asked:
            assert self.leads == []
            self.others.asked[-1].go()
        (leader,) = self.leads
        assert leader is not None
        assert not isinstance(leader, PriorLookup)
        self.leads.clear()
        return leader

    @property
    def quiet(self) -> bool:
        return len(self.cache._fetcher.flights) == 0


@pytest.fixture
async def far() -> Far:
    return await Far().learn()


async def test_the_store_is_asked_then_the_others_then_one_leads(far: Far) -> None:
    leader = far.led()
    assert isinstance(leader, PrivateMiss)
    assert not far.quiet
    assert far.others.flight_keys == [b"0\n" + leader._key]
    outcome = leader.answered(*answer())
    assert outcome is not None
    assert outcome.stored == "stored"
    assert (far.quiet, far.others.ended) == (True, 1)
    status, _, body, outcome = await far.fetch(get(TARGET), Origin())
    assert (status, body, outcome.status) == (200, b"[1]", CacheStatus.HIT)


async def test_who_asks_the_same_meanwhile_waits_for_it(far: Far) -> None:
    leader = far.led()
    assert far.look() is not None
    far.remote.asked[-1].go()
    assert far.leads == [None], "somebody asks"
    waiting = asyncio.ensure_future(far.fetch(get(TARGET), Origin()))
    await asyncio.sleep(0)
    leader.answered(*answer())
    _, _, body, outcome = await waiting
    assert (body, outcome.status) == (b"[1]", CacheStatus.COLLAPSED)


async def test_where_every_answer_is_asked_for_so_is_no_lease() -> None:
    far = await Far(ALWAYS).learn()
    assert isinstance(far.led(), PrivateMiss)
    assert far.others.flight_keys == []


async def test_what_must_be_asked_about_goes_up_with_its_validator() -> None:
    far = await Far(ALWAYS).learn()
    await far.fetch(get(TARGET), Origin(json(OTHER)))
    leader = far.led()
    assert isinstance(leader, PrivateRevalidation)
    assert leader.conditions == ((b"If-None-Match", OTHER),)


async def test_a_clients_own_conditions_need_no_flight() -> None:
    fields: Fields = ((b"If-None-Match", OTHER),)
    far = await Far(ALWAYS).learn(*fields)
    assert isinstance(far.led(), PrivateConditional)
    assert far.quiet


async def test_what_is_fresh_there_is_for_a_fetch(far: Far) -> None:
    """Stored by another gateway: the fetch makes a copy of it."""
    await far.fetch(get(TARGET), Origin(json(ETAG)))
    far.others.asked.clear()
    assert far.look() is not None
    far.remote.asked[-1].go()
    assert far.leads == [None]
    assert (far.quiet, far.others.asked) == (True, [])


async def test_where_no_copies_are_made_what_is_fresh_is_brought_along(far: Far) -> None:
    """It would be asked for twice."""
    await far.fetch(get(TARGET), Origin(json(ETAG)))
    far.remote.copies = False
    assert far.look() is not None
    far.remote.asked[-1].go()
    (prior_lookup,) = far.leads
    assert isinstance(prior_lookup, PriorLookup)
    far.store.delete_now(b"private\n" + TARGET + far.profile.key)
    request = msgspec.structs.replace(get(TARGET), profile=far.profile, prior_lookup=prior_lookup)
    assert (await far.fetch(request, Origin()))[3].status is CacheStatus.HIT


async def test_where_another_gateway_asks_it_is_for_a_fetch(far: Far) -> None:
    far.others.one_asks = True
    far.look()
    far.remote.asked[-1].go()
    far.others.asked[-1].go()
    assert far.leads == [None]
    assert (far.quiet, far.others.ended) == (True, 0)


@pytest.mark.parametrize("away", ["store", "others"])
async def test_where_one_of_them_cannot_be_asked(far: Far, away: str) -> None:
    if away == "store":
        far.remote.away = True
        assert far.look() is None
        assert far.leads == []
    else:
        far.others.away = True
        far.look()
        far.remote.asked[-1].go()
        assert far.leads == [None]
    assert far.quiet


@pytest.mark.parametrize("until", ["store", "others", "leader"])
async def test_who_leaves_takes_everything_along(far: Far, until: str) -> None:
    asked = far.look()
    assert asked is not None
    store = far.remote.asked[-1]
    if until != "store":
        store.go()
    if until == "leader":
        far.others.asked[-1].go()
        (leader,) = far.leads
        assert isinstance(leader, PrivateMiss)
        leader.abandon()
        assert far.others.ended == 1
    asked.cancel()
    assert far.quiet
    assert store.cancelled is (until == "store")
    if until == "others":
        assert far.others.asked[-1].cancelled
    asked.cancel()
    assert len(far.leads) == (until == "leader")


@pytest.mark.parametrize("known", [False, True])
async def test_names_learnt_while_the_store_is_asked(far: Far, known: bool) -> None:
    """It was asked for too few tags: a purge may have been missed. ``known``: another has found that out."""
    assert far.look() is not None
    far.cache._names.learn(b"42", b"group/project")
    if known:
        await far.fetch(msgspec.structs.replace(get(), profile=far.profile), Origin(json(ETAG)))
        assert far.profile.version == far.cache._names.version
    far.remote.asked[-1].go()
    assert far.leads == [None]
    assert far.quiet


async def test_a_purge_that_holds_is_for_a_fetch(far: Far) -> None:
    await far.store.purge((b"project:42",), 10.0)
    assert far.look() is not None
    far.remote.asked[-1].go()
    assert far.leads == [None]


async def test_a_store_that_does_not_answer_is_for_a_fetch(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far.store, "get_now", lambda *_: Lookup(available=False))
    assert far.look() is not None
    far.remote.asked[-1].go()
    (prior_lookup,) = far.leads
    assert isinstance(prior_lookup, PriorLookup)
    request = msgspec.structs.replace(get(TARGET), profile=far.profile, prior_lookup=prior_lookup)
    _, _, _, outcome = await far.fetch(request, Origin(json(ETAG)))
    assert (outcome.status, outcome.reason) == (CacheStatus.BYPASS, CacheReason.STORE_UNAVAILABLE), "nobody asks again"


@pytest.mark.parametrize("whose", ["cache", "others"])
async def test_after_a_fault_nothing_leads(
    far: Far, whose: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked would wait for ever."""

    def fault(*_: object) -> None:
        raise ZeroDivisionError

    if whose == "cache":
        monkeypatch.setattr(far.store, "get_now", lambda *_: Lookup((None,)))  # type: ignore[arg-type]
    else:
        monkeypatch.setattr(far.others, "lead_soon", fault)
    far.look()
    far.remote.asked[-1].go()
    assert far.leads == [None]
    assert far.quiet
    assert "fault in the cache" in caplog.text


async def test_nothing_is_asked_for_what_needs_a_fetch_anyway(far: Far) -> None:
    far.profile.may_share = False
    assert far.look() is None
    assert far.remote.asked == []


async def test_it_tells_nothing_of_itself(far: Far) -> None:
    asked = far.look()
    assert "projects" not in repr(asked)
    await far.fetch(get(TARGET), Origin(json(ETAG, body=b"somebody's")))
    far.remote.copies = False
    far.remote.asked[-1].go()
    (prior_lookup,) = far.leads
    assert isinstance(prior_lookup, PriorLookup)
    assert prior_lookup.lookup.entries[0].body == b"somebody's"
    assert "somebody" not in repr(prior_lookup)

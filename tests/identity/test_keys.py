from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.access import Principal, PrincipalKind
from gateway.core.gateway_key import digest, new_key
from gateway.core.key_record import KeyOrigin, KeyRecord
from gateway.core.secret import Secret
from gateway.core.workload_token import Requirement
from gateway.identity.keys import REREAD_S, TTL_S, GatewayKeys
from gateway.identity.lookups import LATELY_S, Recall
from gateway.identity.settings import KeyIdentity, WorkloadIdentity
from gateway.ports import StoreUnavailable
from gateway.stores.keys_memory import MemoryKeys

T = 1_800_000_000.0
PEPPER = b"pepper"


class Clocks:
    def __init__(self) -> None:
        self.wall, self.monotonic = T, 50.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


class Store(MemoryKeys):
    """The reference store, counted, slowed down or unplugged."""

    def __init__(self) -> None:
        super().__init__()
        self.finds = 0
        self.looks = 0
        self.touches = 0
        self.away = False
        self.after_find: Callable[[], None] = lambda: None
        self.after_look: Callable[[], None] = lambda: None

    async def find(self, digest: bytes) -> KeyRecord | None:
        self.finds += 1
        if self.away:
            raise StoreUnavailable("unplugged")
        found = await super().find(digest)
        after, self.after_find = self.after_find, lambda: None
        after()
        return found

    async def revision(self) -> int:
        self.looks += 1
        if self.away:
            raise StoreUnavailable("unplugged")
        found = await super().revision()
        after, self.after_look = self.after_look, lambda: None
        after()
        return found

    async def touch(self, key_id: str, at: float) -> None:
        self.touches += 1
        if self.away:
            raise StoreUnavailable("unplugged")
        await super().touch(key_id, at)


class World:
    def __init__(self, stale_s: float = 600.0, remembered: int = 100) -> None:
        self.clocks = Clocks()
        self.store = Store()
        self.stale_s, self.remembered = stale_s, remembered
        self.keys = self.knowing([KeyIdentity("backstage", team="platform"), KeyIdentity("renovate")])

    def knowing(self, identities: Iterable[KeyIdentity | WorkloadIdentity]) -> GatewayKeys:
        return GatewayKeys(
            self.store,
            identities,
            pepper=PEPPER,
            fingerprint_key=b"f" * 32,
            wall=lambda: self.clocks.wall,
            monotonic=lambda: self.clocks.monotonic,
            stale_s=self.stale_s,
            remembered=self.remembered,
        )

    async def issue(self, identity: str = "backstage", key: Secret | None = None, **changes: object) -> Secret:
        key = key or new_key(secrets.token_bytes(32))
        plain = KeyRecord(secrets.token_hex(4), identity, digest(PEPPER, key), self.clocks.wall)
        await self.store.put(msgspec.structs.replace(plain, **changes))
        return key

    async def look_up(self, key: Secret) -> Principal | None:
        return await self.keys.look_up(key.reveal().encode(), key)

    def recall(self, key: Secret) -> Principal | Recall:
        return self.keys.recall(key.reveal().encode())


@pytest.fixture
def world() -> World:
    return World()


async def test_a_key_is_its_identity(world: World) -> None:
    key = await world.issue()
    principal = await world.look_up(key)
    assert principal is not None
    assert (principal.id, principal.kind, principal.identity, principal.team, principal.token_hash) == (
        *("backstage", PrincipalKind.KEY, "backstage", "platform"),
        b"",
    )
    assert principal.fingerprint.startswith("tok:")
    assert key.reveal()[4:12] not in repr(principal)


async def test_a_found_key_is_remembered_for_a_second(world: World) -> None:
    key = await world.issue()
    assert world.recall(key) is Recall.UNKNOWN
    principal = await world.look_up(key)
    assert world.recall(key) == principal
    world.clocks.pass_(TTL_S)
    assert world.recall(key) is Recall.STALE


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"revoked_at": T}, "is revoked"),
        ({"revoked_at": T + 1e6}, "is revoked"),
        ({"expires_at": T}, "has expired"),
        ({"not_before": T + 1}, "is not valid yet"),
        ({"identity": "removed"}, "is for removed, which the configuration no longer has"),
        ({"origin": KeyOrigin.EXCHANGED}, "is for backstage, now an identity of another kind"),
        ({"digest": bytes(32)}, "no such key"),
    ],
    ids=str,
)
async def test_what_is_no_usable_key_is_bad_and_asked_again_a_second_later(
    world: World, changes: dict[str, object], why: str
) -> None:
    key = await world.issue(**changes)
    assert await world.look_up(key) is None
    assert world.recall(key) is Recall.REFUSED
    assert why in world.keys.why_refused(key.reveal().encode())
    world.clocks.pass_(TTL_S)
    assert world.recall(key) is Recall.UNKNOWN


async def test_a_key_issued_after_it_was_refused_works_within_a_second(world: World) -> None:
    key = new_key(bytes(32))
    assert await world.look_up(key) is None
    await world.issue(key=key)
    world.clocks.pass_(TTL_S)
    assert await world.look_up(key) is not None
    assert isinstance(world.recall(key), Principal)


async def test_a_store_that_answers_with_another_record_is_not_believed(world: World) -> None:
    """As the lookup by digest would if its index were broken."""
    key, other = await world.issue(), await world.issue()
    wrong = world.store._by_digest[digest(PEPPER, other)]
    world.store._by_digest[digest(PEPPER, key)] = wrong
    assert await world.look_up(key) is None


async def test_a_revocation_elsewhere_shows_within_two_seconds(world: World) -> None:
    key = await world.issue()
    await world.look_up(key)
    [record] = await world.store.list()
    await world.store.revoke(record.id, T)
    world.clocks.pass_(TTL_S)
    assert TTL_S < 2
    assert world.recall(key) is Recall.STALE
    assert await world.look_up(key) is None
    assert world.recall(key) is Recall.REFUSED


async def test_a_revocation_here_shows_at_once(world: World) -> None:
    key, other = await world.issue(), await world.issue()
    await world.look_up(key)
    await world.look_up(other)
    record = await world.store.find(digest(PEPPER, key))
    assert record is not None
    await world.store.revoke(record.id, T)
    world.keys.forget(record.id)
    assert world.recall(key) is Recall.UNKNOWN
    assert isinstance(world.recall(other), Principal)


async def test_a_revocation_here_beats_a_lookup_under_way(world: World) -> None:
    key = await world.issue()
    [record] = await world.store.list()

    def revoke() -> None:
        world.store._by_digest[record.digest] = msgspec.structs.replace(record, revoked_at=T)
        world.keys.forget(record.id)

    world.store.after_find = revoke
    assert await world.look_up(key) is None
    assert world.store.finds == 2


async def test_a_remembered_key_ends_on_its_second(world: World) -> None:
    key = await world.issue(expires_at=T + 0.5)
    assert await world.look_up(key) is not None
    world.clocks.pass_(0.4)
    assert isinstance(world.recall(key), Principal)
    world.clocks.pass_(0.1)
    assert world.recall(key) is Recall.REFUSED
    assert "of backstage has expired" in world.keys.why_refused(key.reveal().encode())


async def test_while_the_store_is_away_known_keys_go_on_for_a_bounded_time_and_others_cannot_be_judged(
    world: World,
) -> None:
    known, unknown = await world.issue(), await world.issue()
    principal = await world.look_up(known)
    world.store.away = True
    for _ in range(599):
        world.clocks.pass_(1.0)
        assert world.recall(known) is Recall.STALE
        assert await world.look_up(known) == principal
        assert world.recall(known) == principal
    world.clocks.pass_(1.0)
    assert world.recall(known) is Recall.UNKNOWN
    for key in (known, unknown):
        with pytest.raises(StoreUnavailable):
            await world.look_up(key)


async def test_that_the_store_went_is_told_and_that_it_came_back_but_not_each_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    key = await world.issue()
    for away in (False, True, True, False, False, True, False):
        world.store.away = away
        if away:
            world.clocks.pass_(1.0)
            with contextlib.suppress(StoreUnavailable):
                await world.look_up(key)
        else:
            await world.look_up(key)
    gone, back = "the key store can't be read, so revocations go unnoticed: unplugged", "the key store can be read again"
    assert [record.getMessage() for record in caplog.records] == [gone, back]
    world.clocks.pass_(60.0)
    world.store.away = True
    await world.look_up(key)
    assert [record.getMessage() for record in caplog.records] == [gone, back, gone]


async def test_last_known_good_ends_with_the_key(world: World) -> None:
    key = await world.issue(expires_at=T + 5)
    await world.look_up(key)
    world.store.away = True
    world.clocks.pass_(5)
    assert await world.look_up(key) is None


async def test_closed_means_that_nothing_stands_in() -> None:
    world = World(stale_s=0.0)
    key = await world.issue()
    await world.look_up(key)
    world.store.away = True
    world.clocks.pass_(TTL_S)
    assert world.recall(key) is Recall.STALE  # known all the same: no stranger
    with pytest.raises(StoreUnavailable):
        await world.look_up(key)
    world.clocks.pass_(LATELY_S)
    assert world.recall(key) is Recall.UNKNOWN


async def test_last_use_is_noted_once_a_minute_and_off_the_way(world: World) -> None:
    key = await world.issue()
    for _ in range(120):
        await world.look_up(key)
        await asyncio.sleep(0)
        world.clocks.pass_(1.0)
    assert world.store.touches == 2
    [record] = await world.store.list()
    assert record.last_used_at == T + 61, "when it was read again"
    world.store.away = True
    world.clocks.pass_(60)
    assert await world.look_up(key) is not None
    await world.keys.close()


async def test_a_flood_of_bad_keys_does_not_push_out_a_good_one() -> None:
    world = World(remembered=10)
    key = await world.issue()
    await world.look_up(key)
    for number in range(100):
        await world.look_up(new_key(number.to_bytes(32, "big")))
    assert isinstance(world.recall(key), Principal)
    assert len(world.keys._bad) == 10


async def test_an_exchanged_credential_is_its_workload_and_nobody_else(world: World) -> None:
    workload = WorkloadIdentity("ci", Requirement("https://issuer.example.com", "gateway", ()), team="platform")
    world.keys = world.knowing([workload, KeyIdentity("backstage")])
    exchanged = await world.issue("ci", origin=KeyOrigin.EXCHANGED, expires_at=T + 60, note="project_path:g/p job_id=81")
    principal = await world.look_up(exchanged)
    assert principal is not None
    assert (principal.identity, principal.kind, principal.team) == ("ci", PrincipalKind.OIDC, "platform")
    [record] = await world.store.list()
    assert (principal.credential_id, principal.credential_subject) == (record.id, "project_path:g/p job_id=81")
    # Of an identity that was of the other sort when the key was made:
    assert await world.look_up(await world.issue("ci")) is None
    assert await world.look_up(await world.issue("backstage", origin=KeyOrigin.EXCHANGED)) is None


async def test_a_keys_own_networks_go_with_its_principal(world: World) -> None:
    principal = await world.look_up(await world.issue(cidr=("192.0.2.0/24",)))
    assert principal is not None
    assert principal.cidr == ("192.0.2.0/24",)


@pytest.mark.parametrize(
    "change",
    [{"identity": "renovate"}, {"cidr": ("192.0.2.0/25",)}, {"cidr": ()}, {"id": "key_other"}],
    ids=["identity", "narrower", "wider", "id"],
)
async def test_a_key_that_changes_hands_takes_its_former_principal_nowhere(world: World, change: dict[str, Any]) -> None:
    """As where a backup was restored, or the key imported once more."""
    key = await world.issue(cidr=("192.0.2.0/24",))
    before = await world.look_up(key)
    world.clocks.pass_(TTL_S)
    [record] = await world.store.list()
    world.store._by_digest[record.digest] = msgspec.structs.replace(record, **change)
    world.store._revision += 1
    after = await world.look_up(key)
    assert after is not None
    assert after is not before
    assert after.credential_id == change.get("id", record.id)
    assert (after.id, after.identity, after.cidr) == (
        change.get("identity", "backstage"),
        change.get("identity", "backstage"),
        change.get("cidr", record.cidr),
    )
    world.clocks.pass_(TTL_S)
    assert await world.look_up(key) is after, "as long as nothing changes, what hangs on it holds"


# Many keys, and one look for changes


async def test_one_look_for_changes_keeps_all_keys_known(world: World) -> None:
    keys = [await world.issue(identity) for identity in ("backstage", "renovate")]
    for _ in range(2):  # the first time nobody has looked yet
        for key in keys:
            assert await world.look_up(key) is not None
        world.clocks.pass_(TTL_S)
    finds, looks = world.store.finds, world.store.looks
    for _ in range(int(REREAD_S / TTL_S) - 2):
        assert world.recall(keys[0]) is Recall.STALE
        assert await world.look_up(keys[0]) is not None
        assert isinstance(world.recall(keys[1]), Principal), "without asking anybody"
        world.clocks.pass_(TTL_S)
    assert world.store.finds == finds
    assert world.store.looks - looks == int(REREAD_S / TTL_S) - 2


async def test_a_key_is_read_again_once_a_minute(world: World) -> None:
    key = await world.issue()
    for _ in range(2):
        await world.look_up(key)
        world.clocks.pass_(TTL_S)
    finds = world.store.finds
    world.clocks.pass_(REREAD_S)
    assert await world.look_up(key) is not None
    assert world.store.finds == finds + 1


async def test_callers_share_one_look(world: World) -> None:
    keys = [await world.issue(identity) for identity in ("backstage", "renovate")]
    for key in keys:
        await world.look_up(key)
    world.clocks.pass_(TTL_S)
    await asyncio.gather(*(world.look_up(key) for key in keys * 20))
    assert world.store.looks == 1


@pytest.mark.parametrize("when", ["before the look", "after the look", "after the find"])
async def test_a_key_revoked_elsewhere_ends_with_the_next_look(world: World, when: str) -> None:
    """Whatever is under way as it happens."""
    key, other = await world.issue(), await world.issue("renovate")
    [record] = await world.store.list("backstage")

    def revoke() -> None:
        world.store._by_digest[record.digest] = msgspec.structs.replace(record, revoked_at=T)
        world.store._revision += 1

    if when == "after the find":
        world.store.after_find = revoke
    for one in (key, other):
        await world.look_up(one)
    if when == "before the look":
        revoke()
    world.clocks.pass_(TTL_S)
    if when == "after the look":
        world.store.after_look = revoke
    await world.look_up(other)
    world.clocks.pass_(TTL_S)
    assert world.recall(key) is Recall.STALE
    assert await world.look_up(key) is None
    assert await world.look_up(other) is not None


async def test_a_look_of_long_ago_vouches_for_no_key_found_now(world: World) -> None:
    """A wrong backup is restored, and then the right one, whose revision has been seen before."""
    key, other = await world.issue(), await world.issue("renovate")
    [live] = await world.store.list("backstage")
    right, revoked = 1, msgspec.structs.replace(live, revoked_at=T)
    world.store._by_digest[live.digest], world.store._revision = revoked, right
    for _ in range(2):
        assert await world.look_up(other) is not None
        world.clocks.pass_(TTL_S)
    world.store._by_digest[live.digest], world.store._revision = live, right - 1
    assert await world.look_up(key) is not None
    world.store._by_digest[live.digest], world.store._revision = revoked, right
    world.clocks.pass_(TTL_S)
    assert await world.look_up(key) is None


async def test_a_look_that_took_long_vouches_for_nothing(world: World) -> None:
    """Its answer may be as old as its question: the key itself is read."""
    key = await world.issue()
    for _ in range(2):
        await world.look_up(key)
        world.clocks.pass_(TTL_S)
    [record] = await world.store.list()

    def hang() -> None:
        world.clocks.pass_(2 * TTL_S)
        world.store._by_digest[record.digest] = msgspec.structs.replace(record, revoked_at=T)

    world.store.after_look = hang
    assert await world.look_up(key) is None


async def test_a_revocation_here_beats_a_look_under_way(world: World) -> None:
    key = await world.issue()
    for _ in range(2):
        await world.look_up(key)
        world.clocks.pass_(TTL_S)
    [record] = await world.store.list()

    def revoke() -> None:
        world.store._by_digest[record.digest] = msgspec.structs.replace(record, revoked_at=T)
        world.keys.forget(record.id)

    world.store.after_look = revoke
    assert await world.look_up(key) is None


async def test_a_key_that_ends_while_nothing_changes_ends(world: World) -> None:
    key = await world.issue(expires_at=T + 2.5)
    for _ in range(2):
        assert await world.look_up(key) is not None
        world.clocks.pass_(TTL_S)
    await world.look_up(key)
    world.clocks.pass_(0.5)
    assert world.recall(key) is Recall.REFUSED
    world.clocks.pass_(TTL_S)
    assert await world.look_up(key) is None


async def test_a_store_that_cannot_be_looked_at_is_away(world: World) -> None:
    key = await world.issue()
    for _ in range(2):
        await world.look_up(key)
        world.clocks.pass_(TTL_S)
    world.store.away = True
    principal = await world.look_up(key)
    assert principal is not None
    assert world.recall(key) is principal
    world.clocks.pass_(world.stale_s)
    with pytest.raises(StoreUnavailable):
        await world.look_up(key)


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2)),
        st.tuples(st.just("recall"), st.integers(0, 2)),
        st.tuples(st.just("revoke"), st.integers(0, 2)),
        st.tuples(st.just("revoke in a find"), st.integers(0, 2)),
        st.tuples(st.just("revoke in a look"), st.integers(0, 2)),
        st.tuples(st.just("pass"), st.sampled_from([0.1, 0.5, 0.9, 1.0, 5.0, 59.0])),
        st.tuples(st.just("issue"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(ACTS)
async def test_no_key_outlives_its_revocation_by_more_than_a_second(acts: list[tuple[str, Any]]) -> None:
    world = World()
    world.keys = world.knowing([KeyIdentity(str(number)) for number in range(3)])
    keys = [await world.issue(str(number)) for number in range(3)]
    records = [await world.store.find(digest(PEPPER, key)) for key in keys]
    revoked_at: dict[int, float] = {}

    def revoke(number: int) -> None:
        record = records[number]
        if record is None or number in revoked_at:
            return
        world.store._by_digest[record.digest] = msgspec.structs.replace(record, revoked_at=T)
        world.store._revision += 1
        revoked_at[number] = world.clocks.monotonic

    for act, value in acts:
        match act:
            case "pass":
                world.clocks.pass_(value)
            case "issue":
                world.store._revision += 1
            case "revoke":
                revoke(value)
            case "revoke in a find":
                world.store.after_find = partial(revoke, value)
            case "revoke in a look":
                world.store.after_look = partial(revoke, value)
            case _:
                found = await world.look_up(keys[value]) if act == "ask" else world.recall(keys[value])
                over = world.clocks.monotonic - revoked_at.get(value, math.inf)
                assert not (isinstance(found, Principal) and over >= TTL_S), "revoked long ago"
                assert value in revoked_at or found is not None, "never revoked"
                assert value in revoked_at or found is not Recall.REFUSED, "never revoked"

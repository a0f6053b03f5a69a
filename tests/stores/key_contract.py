"""What every key store does. A backend's test file subclasses this and gives ``keys``."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.core.key_record import KEEP_DEAD_S, KEEP_EXCHANGED_S, LIVE_KEYS, KeyOrigin, KeyRecord, Replacement
from gateway.ports import KeyRefused

T = 1_800_000_000.0


def record(number: int = 1, identity: str = "backstage", **changes: Any) -> KeyRecord:
    plain = KeyRecord(id=f"key_{number}", identity=identity, digest=number.to_bytes(32, "big"), created_at=T + number)
    return msgspec.structs.replace(plain, **changes)


class KeyContract:
    @pytest.fixture
    async def keys(self) -> Any:
        raise NotImplementedError("the backend's test file gives its own")

    async def test_a_key_that_was_never_put_is_a_miss(self, keys: Any) -> None:
        assert await keys.find(bytes(32)) is None

    @pytest.mark.parametrize(
        "kept",
        [
            pytest.param(record(), id="plain"),
            pytest.param(record(not_before=T + 0.125, expires_at=T + 60.0625, note="für „Renovate“\n\0"), id="everything"),
            pytest.param(record(id="key_\x00é", digest=b"\xff\x00" * 16), id="odd octets"),
            pytest.param(record(cidr=("192.0.2.0/24", "2001:db8::/32"), origin=KeyOrigin.IMPORTED), id="bound, imported"),
            pytest.param(record(origin=KeyOrigin.EXCHANGED, expires_at=T + 900), id="exchanged"),
        ],
    )
    async def test_what_is_put_is_found_again_whole(self, keys: Any, kept: KeyRecord) -> None:
        await keys.put(kept)
        assert await keys.find(kept.digest) == kept
        assert await keys.list() == [kept]
        assert await keys.get(kept.id) == kept

    async def test_another_digest_does_not_find_it(self, keys: Any) -> None:
        await keys.put(record())
        assert await keys.find(record().digest[:-1]) is None
        assert await keys.find(b"") is None

    async def test_a_third_live_key_is_refused_and_says_what_to_do(self, keys: Any) -> None:
        for number in range(LIVE_KEYS):
            await keys.put(record(number))
        with pytest.raises(KeyRefused, match=r"backstage has 2 live keys already.*revoke one"):
            await keys.put(record(9))
        assert await keys.find(record(9).digest) is None
        await keys.put(record(9, "another"))

    async def test_revoked_and_expired_keys_leave_room(self, keys: Any) -> None:
        await keys.put(record(1, expires_at=T + 3))
        await keys.put(record(2))
        await keys.put(record(3))
        assert await keys.revoke("key_2", T + 3)
        await keys.put(record(4))

    async def test_a_key_whose_time_is_yet_to_come_counts_as_live(self, keys: Any) -> None:
        await keys.put(record(1, not_before=T + 500))
        await keys.put(record(2))
        with pytest.raises(KeyRefused):
            await keys.put(record(3))

    async def test_of_many_puts_at_once_two_succeed(self, keys: Any) -> None:
        done = await asyncio.gather(*(keys.put(record(number)) for number in range(8)), return_exceptions=True)
        assert sum(isinstance(outcome, KeyRefused) for outcome in done) == 6
        assert len(await keys.list()) == LIVE_KEYS

    @pytest.mark.parametrize("changes", [{"digest": bytes(32)}, {"id": "key_8"}], ids=["same id", "same digest"])
    async def test_an_id_or_digest_that_is_taken_is_refused(self, keys: Any, changes: dict[str, Any]) -> None:
        await keys.put(record(1))
        with pytest.raises(KeyRefused, match="exists already"):
            await keys.put(record(1, "another", **changes))
        assert await keys.list() == [record(1)]

    async def test_revoking_shows_at_once_and_keeps_the_first_instant(self, keys: Any) -> None:
        await keys.put(record(note="kept"))
        assert await keys.revoke("key_1", T + 5)
        assert await keys.revoke("key_1", T + 9)
        assert await keys.find(record().digest) == record(note="kept", revoked_at=T + 5)

    async def test_revoking_an_unknown_key_says_so(self, keys: Any) -> None:
        assert not await keys.revoke("key_1", T)

    async def test_revoking_leaves_the_others_alone(self, keys: Any) -> None:
        await keys.put(record(1))
        await keys.put(record(2))
        await keys.revoke("key_1", T)
        assert await keys.find(record(2).digest) == record(2)

    async def test_lists_oldest_first_and_by_identity(self, keys: Any) -> None:
        for number, identity in [(3, "a"), (1, "b"), (2, "a")]:
            await keys.put(record(number, identity))
        assert [one.id for one in await keys.list()] == ["key_1", "key_2", "key_3"]
        assert [one.id for one in await keys.list("a")] == ["key_2", "key_3"]
        assert await keys.list("nobody") == []

    async def test_a_long_list_is_whole_and_names_none_twice(self, keys: Any) -> None:
        many = 600  # more than one piece of what is read at once
        for number in range(many):
            await keys.put(record(number, origin=KeyOrigin.EXCHANGED, expires_at=T + 90_000))
        listed = await keys.list()
        assert [one.id for one in listed] == [f"key_{number}" for number in range(many)]

    async def test_last_use_moves_forward_only(self, keys: Any) -> None:
        await keys.put(record())
        for at in (T + 20, T + 80.5, T + 40):
            await keys.touch("key_1", at)
        assert [one.last_used_at for one in await keys.list()] == [T + 80.5]

    async def test_touching_an_unknown_key_leaves_no_trace(self, keys: Any) -> None:
        await keys.touch("key_1", T)
        await keys.put(record())
        assert [one.last_used_at for one in await keys.list()] == [None]

    async def test_a_touch_never_undoes_a_revocation(self, keys: Any) -> None:
        await keys.put(record())
        await asyncio.gather(keys.revoke("key_1", T + 1), keys.touch("key_1", T + 2))
        found = await keys.find(record().digest)
        assert found is not None
        assert found.revoked_at == T + 1

    async def test_keys_long_dead_are_forgotten_when_their_identity_gets_another(self, keys: Any) -> None:
        await keys.put(record(1, expires_at=T + 10))
        await keys.put(record(2, "another", expires_at=T + 10))
        await keys.put(record(3))
        await keys.revoke("key_3", T + KEEP_DEAD_S)
        await keys.touch("key_1", T)
        await keys.put(record(4, created_at=T + KEEP_DEAD_S + 11))
        assert {one.id for one in await keys.list()} == {"key_2", "key_3", "key_4"}
        assert await keys.find(record(1).digest) is None
        await keys.put(record(1, "another"))

    async def test_a_key_is_got_by_its_id_with_its_last_use(self, keys: Any) -> None:
        await keys.put(record())
        assert await keys.get("key_2") is None
        await keys.touch("key_1", T + 7)
        assert await keys.get("key_1") == record(last_used_at=T + 7)

    async def test_a_key_takes_the_place_of_another_which_ends_later(self, keys: Any) -> None:
        await keys.put(record(1, note="kept", cidr=("192.0.2.0/24",)))
        await keys.put(record(2), Replacement("key_1", T + 60))
        older = record(1, note="kept", cidr=("192.0.2.0/24",), expires_at=T + 60, replaced_by="key_2")
        assert await keys.find(older.digest) == older
        assert await keys.find(record(2).digest) == record(2)
        with pytest.raises(KeyRefused, match="2 live keys"):
            await keys.put(record(3))
        await keys.put(record(70))

    async def test_a_key_replaced_at_once_makes_room_and_is_revoked(self, keys: Any) -> None:
        await keys.put(record(1))
        await keys.put(record(2))
        await keys.put(record(3), Replacement("key_1", T))
        assert await keys.get("key_1") == record(1, revoked_at=T + 3, replaced_by="key_3")
        assert [one.is_live(T + 3) for one in await keys.list()] == [False, True, True]

    async def test_two_live_keys_stay_two_when_one_is_replaced_with_an_overlap(self, keys: Any) -> None:
        await keys.put(record(1))
        await keys.put(record(2))
        with pytest.raises(KeyRefused, match="2 live keys"):
            await keys.put(record(3), Replacement("key_1", T + 60))
        assert await keys.list() == [record(1), record(2)]

    @pytest.mark.parametrize(
        ("older", "words"),
        [
            pytest.param(record(8), "has no key key_1", id="none"),
            pytest.param(record(1, "another"), "has no key key_1", id="of another identity"),
            pytest.param(record(1, revoked_at=T), "is dead", id="revoked"),
            pytest.param(record(1, expires_at=T + 2), "is dead", id="expired"),
            pytest.param(record(1, origin=KeyOrigin.EXCHANGED, expires_at=T + 900), "exchange another", id="exchanged"),
            pytest.param(record(1, replaced_by="key_7"), "being replaced already, by key_7", id="replaced"),
        ],
    )
    async def test_what_cannot_be_replaced_changes_nothing(self, keys: Any, older: KeyRecord, words: str) -> None:
        await keys.put(older)
        with pytest.raises(KeyRefused, match=words):
            await keys.put(record(2), Replacement("key_1", T + 60))
        assert await keys.list() == [older]

    async def test_of_many_replacements_at_once_one_succeeds(self, keys: Any) -> None:
        await keys.put(record(1))
        asked = (keys.put(record(number), Replacement("key_1", T + 60)) for number in range(2, 8))
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(outcome, KeyRefused) for outcome in done) == 5
        assert len(await keys.list()) == LIVE_KEYS

    async def test_exchanged_credentials_are_not_among_the_two(self, keys: Any) -> None:
        for number in range(5):
            await keys.put(record(number, origin=KeyOrigin.EXCHANGED, expires_at=T + 900))
        for number in (7, 8):
            await keys.put(record(number))
        await keys.put(record(9, origin=KeyOrigin.EXCHANGED, expires_at=T + 900))
        assert len(await keys.list("backstage")) == 8

    async def test_an_exchanged_credential_is_revoked_like_any(self, keys: Any) -> None:
        kept = record(origin=KeyOrigin.EXCHANGED, expires_at=T + 900)
        await keys.put(kept)
        assert await keys.revoke("key_1", T + 5)
        assert await keys.find(kept.digest) == msgspec.structs.replace(kept, revoked_at=T + 5)

    async def test_exchanged_credentials_long_over_are_forgotten_when_another_is_given(self, keys: Any) -> None:
        exchanged = KeyOrigin.EXCHANGED
        await keys.put(record(1, origin=exchanged, expires_at=T + 10))
        await keys.put(record(2, origin=exchanged, expires_at=T + 100))
        await keys.put(record(3))
        at = T + 10 + KEEP_EXCHANGED_S
        await keys.put(record(4, "another", origin=exchanged, created_at=at, expires_at=at + 900))
        assert {one.id for one in await keys.list()} == {"key_2", "key_3", "key_4"}
        assert await keys.find(record(1).digest) is None
        await keys.put(record(1, created_at=at))

    async def test_a_cancelled_call_leaves_the_store_usable(self, keys: Any) -> None:
        await keys.put(record(1))
        for call in (
            lambda: keys.find(record(1).digest),
            lambda: keys.touch("key_1", T + 1),
            lambda: keys.put(record(2)),
            lambda: keys.list(),
            lambda: keys.revoke("key_2", T + 2),
        ):
            for turns in range(3):
                task = asyncio.ensure_future(call())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        listed = {one.id: one for one in await keys.list()}
        assert listed["key_1"].revoked_at is None
        assert set(listed) <= {"key_1", "key_2"}
        assert await keys.find(record(1).digest) is not None

    async def test_the_revision_stays_while_no_key_changes(self, keys: Any) -> None:
        await keys.put(record(1))
        before = await keys.revision()
        assert await keys.find(record(1).digest) is not None
        await keys.touch("key_1", T + 9)
        await keys.put(record(2, origin=KeyOrigin.EXCHANGED, expires_at=T + 900))
        assert not await keys.revoke("key_7", T + 9)
        assert await keys.revision() == before

    @pytest.mark.parametrize("change", ["revoke", "revoke an exchanged one", "replace at once", "replace later"])
    async def test_the_revision_changes_with_each_key_that_ends(self, keys: Any, change: str) -> None:
        await keys.put(record(1))
        await keys.put(record(2, origin=KeyOrigin.EXCHANGED, expires_at=T + 900))
        seen = [await keys.revision()]
        for _ in range(2):
            if change.startswith("replace"):
                await keys.put(record(3), Replacement("key_1", T + 3 if change == "replace at once" else T + 60))
            else:
                assert await keys.revoke("key_1" if change == "revoke" else "key_2", T + 9)
            seen.append(await keys.revision())
            if change.startswith("replace"):
                break
        assert seen[1] != seen[0]

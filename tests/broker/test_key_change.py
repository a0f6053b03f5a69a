"""Another encryption key while gateways run: nothing is lost, and in the end nothing is left under the former one."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.broker.rotator import VaultBroken
from gateway.broker.token_pool import StaticCredential
from gateway.core.secret import Secret
from gateway.core.token_record import DAY_S, TokenRecord
from gateway.ports import StoreUnavailable
from gateway.stores.credential_vault import CredentialVault, SealedStore
from gateway.stores.credentials_redis import RedisCredentials
from gateway.stores.redis_link import RedisLink

from .rotating import KEY as FORMER
from .rotating import Killed, Life, World, world

NEXT = b"n" * 32


@pytest.fixture(params=["sqlite", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SealedStore | None]:
    """None: the world's own file."""
    if request.param == "sqlite":
        yield None
        return
    link = RedisLink.from_url(request.getfixturevalue("redis_url"), timeout_s=60.0, name="credentials-test")
    await link.execute("CONFIG", "SET", "appendonly", "yes")
    yield RedisCredentials(link)
    await link.execute("CONFIG", "SET", "appendonly", "no")
    await link.close()


def vault(made: World, key: bytes, *others: bytes) -> CredentialVault:
    return CredentialVault(made.store, key, others)


def puts(life: Life) -> int:
    return sum(effect.startswith("put") for effect in life.fate.effects)


async def test_records_are_sealed_anew_and_the_former_key_can_go(
    tmp_path: Path, store: SealedStore | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway.credentials")
    async with world(tmp_path, store=store, overlap_s=0.0) as made:
        await (await made.live()).run(4)
        changed = await made.live(vault=vault(made, NEXT, FORMER))
        assert made.works(changed)
        assert changed.rotator.under_decryption_keys == 1
        await changed.run(1)
        assert changed.rotator.under_decryption_keys == 0
        assert [message for message in caplog.messages if message.startswith("records")] == [
            "records encrypted under one of `secrets.decryption_keys`: 1",
            "records encrypted anew under `secrets.encryption_key`: 1",
            "records encrypted under one of `secrets.decryption_keys`: 0",
        ]
        assert made.works(await made.live(vault=vault(made, NEXT)))
        with pytest.raises(VaultBroken, match="neither `secrets"):
            await made.live()


async def test_in_a_rolling_change_every_gateway_goes_on_at_every_step(tmp_path: Path, store: SealedStore | None) -> None:
    async with world(tmp_path, store=store, overlap_s=0.0) as made:
        steps = [vault(made, FORMER), vault(made, FORMER, NEXT), vault(made, NEXT, FORMER), vault(made, NEXT)]
        lives = [await made.live(vault=steps[0]), await made.live(vault=steps[0])]
        for step in steps[1:]:
            for place in range(len(lives)):
                for life in lives:
                    await life.run(3)
                    assert life.rotator.states()[0].failure == ""
                    assert made.works(life)
                lives[place] = await made.live(vault=step)
        assert lives[0].tokens.token("bot") == lives[1].tokens.token("bot")
        assert lives[0].tokens.token("bot").reveal() != made.token.value


async def test_two_gateways_with_swapped_keys_leave_each_others_records_alone_for_a_while(
    tmp_path: Path, store: SealedStore | None
) -> None:
    async with world(tmp_path, store=store, overlap_s=0.0) as made:
        await (await made.live()).run(4)
        made.now += 1.0
        lives = [await made.live(vault=vault(made, FORMER, NEXT)), await made.live(vault=vault(made, NEXT, FORMER))]
        for _ in range(599):
            for life in lives:
                await life.rotator.tick()
            made.now += 1.0
        assert [puts(life) for life in lives] == [1, 1]
        made.now += 600.0
        await lives[1].run(1)  # the other one has been stopped
        assert lives[1].rotator.under_decryption_keys == 0
        assert made.works(lives[1])


async def test_a_rotation_goes_on_under_whichever_key(tmp_path: Path, store: SealedStore | None) -> None:
    """Each half of it by a gateway with the other key, and never twice."""
    async with world(tmp_path, store=store, overlap_s=0.0) as made:
        lives = [await made.live(vault=vault(made, FORMER, NEXT)), await made.live(vault=vault(made, NEXT, FORMER))]
        await lives[0].rotator.tick()
        assert lives[0].step() == "settling"
        for _ in range(4):
            for life in lives:
                await life.rotator.tick()
                made.now += 1.0
        assert [life.step() for life in lives] == ["", ""]
        assert made.active() == [lives[1].tokens.token("bot").reveal()]
        assert made.asked(b"POST /api/v4/users/") == 1


async def test_what_is_sealed_anew_settles_no_later(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        first = await made.live(vault=vault(made, FORMER, NEXT))
        await first.run(1)
        other = await made.live(vault=vault(made, NEXT, FORMER))
        await first.run(1)
        await other.run(1)
        assert "put settling" in other.fate.effects
        await first.run(1)
        assert first.step() == ""


async def test_without_the_key_nobody_rotates_what_another_gateway_has_rotated(
    tmp_path: Path, store: SealedStore | None
) -> None:
    """Two gateways on one store that have nothing in common: a mistake, for which no token may pay."""
    async with world(tmp_path, store=store, overlap_s=0.0, manager="") as made:
        one, other = await made.live(), await made.live(vault=vault(made, NEXT))
        for _ in range(5):
            await one.run(1)
            await other.run(1)
        assert made.asked(b"POST /api/v4/personal_access_tokens/self/rotate") == 1
        assert made.works(one)
        assert "can't be decrypted" in other.rotator.states()[0].failure


async def test_records_of_other_credentials_and_of_former_tokens_are_sealed_anew_too(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await (await made.live()).run(4)
        (kept,) = (await made.vault.read("test")).tokens.values()
        await made.vault.put(msgspec.structs.replace(kept, id="theirs/1"), 0, None)
        given = made.mint(days=200)
        made.credentials[0] = StaticCredential("bot", Secret(given.value))
        made.plans = [made.plan("bot", given)]
        changed = await made.live(vault=vault(made, NEXT, FORMER))
        assert changed.rotator.under_decryption_keys == 2
        await changed.run(1)
        assert changed.rotator.under_decryption_keys == 0
        assert (await made.live(vault=vault(made, NEXT))).tokens.token("bot").reveal() == given.value


async def test_only_who_leads_seals_anew(tmp_path: Path, store: SealedStore | None) -> None:
    async with world(tmp_path, store=store, overlap_s=0.0) as made:
        await (await made.live()).run(4)
        changed = await made.live(vault=vault(made, NEXT, FORMER))
        await made.vault.lead("another", 30.0)
        await changed.rotator.tick()
        assert (puts(changed), changed.rotator.under_decryption_keys) == (0, 1)
        assert made.works(changed)
        await made.vault.resign("another")
        await changed.rotator.tick()
        assert (puts(changed), changed.rotator.under_decryption_keys) == (1, 0)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(3))
async def test_killed_while_it_seals_anew(tmp_path: Path, at: int, after: bool) -> None:
    async with world(tmp_path) as made:
        await (await made.live()).run(4)
        dying = await made.live(at, after=after, vault=vault(made, NEXT, FORMER))
        with pytest.raises(Killed):
            await dying.run(1)
        made.now += 31.0
        again = await made.live(vault=vault(made, NEXT, FORMER))
        await again.run(1)
        assert again.rotator.under_decryption_keys == 0
        assert made.works(await made.live(vault=vault(made, NEXT)))


async def test_a_late_answer_survives_being_sealed_anew(tmp_path: Path) -> None:
    """The gateway that asked was slow. Meanwhile its attempt was given up, and sealed under one key and the other."""
    async with world(tmp_path, manager="") as made:
        slow = await made.live(vault=vault(made, FORMER, NEXT))
        others = [await made.live(vault=vault(made, *keys)) for keys in ((NEXT, FORMER), (FORMER, NEXT))]
        keep = slow.vault.put

        async def put(token: TokenRecord, expect: int, fence: int | None) -> bool:
            if token.token is not None and others[0].step() != "lost":
                made.now += 31.0
                for other in others:
                    await other.run(2)
                assert [other.step() for other in others] == ["lost", "lost"]
                assert sum(puts(other) for other in others) >= 2
            return await keep(token, expect, fence)

        slow.vault.put = put  # type: ignore[method-assign]  # as slow as that
        await slow.run(1)
        for other in others:
            await other.run(2)
            assert made.works(other)
        assert made.asked(b"POST /api/v4/personal_access_tokens/self/rotate") == 1


async def test_a_late_answer_does_not_replace_what_a_later_attempt_made(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        life = await made.live()
        keep = life.vault.put
        later: list[TokenRecord] = []

        async def put(token: TokenRecord, expect: int, fence: int | None) -> bool:
            if token.token is not None and not later:
                assert token.rotation is None
                attempt = (await made.vault.read("")).tokens[token.id]
                assert attempt.rotation is not None
                rotation = msgspec.structs.replace(attempt.rotation, names=("a later attempt",))
                later.append(msgspec.structs.replace(attempt, version=9, rotation=rotation))
                assert await made.vault.put(later[0], attempt.version, None)
            return await keep(token, expect, fence)

        life.vault.put = put  # type: ignore[method-assign]  # as slow as that
        await life.run(1)
        assert list((await made.vault.read("")).tokens.values()) == later


async def test_how_many_are_left_is_unknown_while_the_store_is_away(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        assert life.rotator.under_decryption_keys == 0

        async def failing(reader: str) -> object:
            raise StoreUnavailable("away")

        life.vault.read = failing  # type: ignore[method-assign, assignment]  # the store's own failing
        await life.run(1)
        assert life.rotator.under_decryption_keys is None


@pytest.mark.parametrize("seed", range(12))
async def test_a_random_walk_through_changes_of_the_key(tmp_path: Path, seed: int) -> None:
    """Gateways come, go and are killed anywhere; tokens fall due; an operator goes by the procedure and does not wait."""
    chance = random.Random(seed)
    keys = [bytes([n]) * 32 for n in range(1, 4)]
    async with world(tmp_path, lifetime_s=30 * DAY_S) as made:
        made.vault = vault(made, keys[0])
        vaults = [vault(made, keys[0])]
        for former, present in itertools.pairwise(keys):
            vaults += [vault(made, former, present), vault(made, present, former), vault(made, present)]
        steps = [0, 0, 0]
        lives = [await made.live(vault=vaults[0]) for _ in steps]

        async def tick(place: int) -> None:
            life = lives[place]
            if chance.random() < 0.2:
                life.fate.at, life.fate.after = len(life.fate.effects) + chance.randrange(8), chance.random() < 0.5
            try:
                await life.rotator.tick()
            except Killed:
                made.now += chance.choice((1.0, 31.0))
                lives[place] = await made.live(vault=vaults[steps[place]])
            else:
                assert made.works(life)

        for _ in range(250):
            place = chance.randrange(len(lives))
            await tick(place)
            made.now += chance.choice((1.0, 60.0, 700.0, 3 * DAY_S))
            may_go = steps[place] == min(steps) and steps[place] + 1 < len(vaults)
            if may_go and steps[place] % 3 == 2 and min(steps) == steps[place]:
                # The former key is dropped only once nothing is left under it.
                may_go = all(step % 3 != 1 for step in steps) and lives[place].rotator.under_decryption_keys == 0
            if may_go and chance.random() < 0.3:
                steps[place] += 1
                lives[place] = await made.live(vault=vaults[steps[place]])
        assert min(steps) == len(vaults) - 1
        made.now += 700.0
        for life in lives * 6:
            life.fate.at = None
            await life.run(1)
        for life in lives:
            assert made.works(life)
            assert life.step() == ""
        assert made.active() == [lives[0].tokens.token("bot").reveal()]

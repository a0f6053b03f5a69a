"""Looking after credentials: following the store, alarms in time, what operators may ask."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path

import msgspec
import pytest

from gateway.broker.rotator import FOLLOW_EVERY_S, VaultBroken
from gateway.broker.token_pool import StaticCredential
from gateway.core.secret import Secret
from gateway.core.token_record import DAY_S, TokenRecord
from gateway.demo.seed import TOKENS
from gateway.ports import StoreUnavailable
from gateway.stores.credential_vault import CredentialVault

from .rotating import Fate, Life, World, world


async def rotated(made: World) -> None:
    await (await made.live()).run(4)


async def test_what_one_gateway_rotated_every_other_uses_within_a_second(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        first, second = await made.live(), await made.live()
        await first.rotator.tick()
        assert second.tokens.token("bot") != first.tokens.token("bot")
        await second.rotator.tick()
        assert second.tokens.token("bot") == first.tokens.token("bot")
        assert second.fate.effects == []
    assert FOLLOW_EVERY_S <= 1.0


async def test_a_restart_begins_with_the_rotated_token(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await rotated(made)
        life = await made.live()
        assert made.works(life)
        (state, _) = life.rotator.states()
        assert (state.version, state.rotates, state.step, state.failure) == (3, "manager", "", "")
        assert state.expires_at is not None
        assert 88 * DAY_S < state.expires_at - made.now < 90 * DAY_S


async def test_another_configured_token_begins_anew(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await rotated(made)
        given = made.mint(days=200)
        made.credentials[0] = StaticCredential("bot", Secret(given.value))
        made.plans = [made.plan("bot", given)]
        life = await made.live()
        await life.run(3)
        assert life.tokens.token("bot").reveal() == given.value
        assert life.rotator.states()[0].version == 0


async def test_two_due_members_are_rotated_one_after_the_other(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        other = made.mint(days=3)
        made.credentials = [
            StaticCredential("pool/1", Secret(made.token.value), pool="pool"),
            StaticCredential("pool/2", Secret(other.value), pool="pool"),
            made.credentials[1],
        ]
        made.plans = [made.plan("pool/1", made.token), made.plan("pool/2", other)]
        life = await made.live()
        await life.run(4)
        assert sorted(made.active()) == sorted(life.tokens.token(f"pool/{place}").reveal() for place in (1, 2))
        assert {made.token.value, other.value}.isdisjoint(made.active())


# What the store may do


async def test_another_key_stops_the_start_and_loses_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await rotated(made)
        right, made.vault = made.vault, CredentialVault(made.store, b"o" * 32)
        with pytest.raises(VaultBroken) as broken:
            await made.live()
        assert "encryption_key" in broken.value.problems[0]
        assert "credential `bot`" in broken.value.problems[0]
        made.vault = right
        assert made.works(await made.live())


async def test_another_gateways_broken_records_stop_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await rotated(made)
        other = CredentialVault(made.store, b"o" * 32)
        kept = next(iter((await made.vault.read("test")).tokens.values()))
        await other.put(msgspec.structs.replace(kept, id="theirs/1"), 0, None)
        assert made.works(await made.live())


async def test_a_record_tampered_with_at_run_time_is_told_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        await life.run(4)
        with sqlite3.connect(tmp_path / "credentials.db") as connection:
            connection.execute("UPDATE credentials SET octets = x'0100'")
        connection.close()
        effects = len(life.fate.effects)
        await life.run(3)
        assert made.works(life)
        assert len(life.fate.effects) == effects
        assert life.rotator.states()[0].failure == "its record can't be decrypted"
        assert caplog.text.count("can't be decrypted") == 1
        with pytest.raises(ValueError, match="can't be decrypted"):
            await life.rotator.rotate("bot")


@pytest.mark.parametrize("statement", ["DELETE FROM credentials", "UPDATE credentials SET version = 1, octets = :first"])
async def test_a_store_that_lost_a_record_gets_it_back(tmp_path: Path, statement: str) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        await made.vault.put(TokenRecord(made.plans[0].record, 1), 0, None)
        first = (await made.store.read("test")).records[0].octets
        await life.run(4)
        with sqlite3.connect(tmp_path / "credentials.db") as connection:
            connection.execute(statement, {"first": first})
        connection.close()
        await life.run(1)
        assert life.tokens.token("bot") == (await made.live()).tokens.token("bot")


async def test_an_outage_is_told_once_and_rotation_waits_for_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world(tmp_path) as made:
        life = await made.live()
        read, away = life.vault.read, True

        async def failing(reader: str) -> object:
            if away:
                raise StoreUnavailable("away")
            return await read(reader)

        life.vault.read = failing  # type: ignore[method-assign, assignment]  # the store's own failing
        await life.run(3)
        assert caplog.text.count("can't be read or written: away") == 1
        with pytest.raises(StoreUnavailable):
            await life.rotator.rotate("bot")
        away = False
        await life.run(1)
        assert "answers again" in caplog.text
        assert life.step() == "settling"


async def test_a_store_away_at_start_makes_all_of_them_unsure(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await rotated(made)
        life = await made.live()
        await made.store.close()
        again = Life(made, "unstarted", Fate())
        await again.rotator.load()
        assert again.rotator.unsure == ("bot",)
        assert await again.tokens.verify_at_start() == ["credential `bot` is not accepted by GitLab"]
        assert made.works(life)


# Alarms


async def test_alarms_come_at_fourteen_seven_and_one_day_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as made:
        made.plans = []
        made.token.expires_on = made.state.today().replace(month=8)
        life = await made.live()
        for _ in range(70):
            await life.rotator.tick()
            await life.rotator.tick()
            made.now += DAY_S
        seen = [(one.levelname, one.message) for one in caplog.records if "credential bot" in one.message]
        assert seen == [
            ("WARNING", "credential bot expires in 13.5 days"),
            ("WARNING", "credential bot expires in 6.5 days"),
            ("ERROR", "credential bot expires in 0.5 days"),
        ]
        assert life.rotator.states()[0].alarm_days == 1


async def test_a_failure_is_tried_again_after_longer_and_longer_pauses(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.credentials[1] = StaticCredential("admin", Secret(TOKENS.ada))
        life = await made.live()
        await life.run(60)
        assert made.asked(b"POST /api/v4/users/") == 6  # at 0, 1, 3, 7, 15 and 31 minutes


# What operators may ask


async def test_a_person_may_replace_one_before_its_time(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.token.expires_on = None
        life = await made.live()
        await life.run(2)
        assert made.asked(b"POST /api/v4/users/") == 0
        assert (await life.rotator.rotate("bot")).step == "settling"
        assert made.works(life)
        with pytest.raises(ValueError, match="is being rotated already: settling"):
            await life.rotator.rotate("bot")
        await life.run(4)
        assert made.active() == [life.tokens.token("bot").reveal()]


async def test_whoever_asked_may_leave_and_the_token_is_not_lost(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        made.token.expires_on = None
        life = await made.live()
        keep, begun, go_on = life.vault.put, asyncio.Event(), asyncio.Event()

        async def slow(token: TokenRecord, expect: int, fence: int | None) -> bool:
            if token.token is not None:
                begun.set()
                await go_on.wait()
            return await keep(token, expect, fence)

        life.vault.put = slow  # type: ignore[method-assign]  # as slow as that
        rotating = asyncio.ensure_future(life.rotator.rotate("bot"))
        await begun.wait()
        rotating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rotating
        go_on.set()
        await life.rotator.close()
        assert made.works(await made.live())
        assert len(made.active()) == 1


async def test_what_goes_wrong_for_somebody_who_left_is_nobodys_fault(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.credentials[1] = StaticCredential("admin", Secret(TOKENS.ada))
        life = await made.live()
        rotating = asyncio.ensure_future(life.rotator.rotate("bot"))
        await asyncio.sleep(0)
        rotating.cancel()
        await asyncio.gather(rotating, return_exceptions=True)
        await life.rotator.close()
        assert life.tokens.token("bot").reveal() == made.token.value


async def test_what_is_not_rotated_and_what_another_rotates_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        for name in ("admin", "nobody", ""):
            with pytest.raises(ValueError, match="not configured to rotate"):
                await life.rotator.rotate(name)
        await made.vault.lead("another", 30.0)
        with pytest.raises(ValueError, match="another gateway"):
            await life.rotator.rotate("bot")


async def test_why_it_did_not_work_is_told_to_who_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.credentials[1] = StaticCredential("admin", Secret(TOKENS.ada))
        life = await made.live()
        with pytest.raises(ValueError, match="the manager could not create a new token"):
            await life.rotator.rotate("bot")


async def test_nothing_told_shows_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with world(tmp_path) as made:
        life = await made.live()
        await life.run(4)
        told = f"{caplog.text} {life.rotator.states()} {life.notes}"
        for value in made.state.tokens:
            assert value not in told


# Its task


async def test_closing_waits_for_a_step_under_way(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        life = await made.live()
        keep, begun = life.vault.put, asyncio.Event()

        async def slow(token: object, expect: int, fence: int | None) -> bool:
            begun.set()
            for _ in range(50):
                await asyncio.sleep(0)
            return await keep(token, expect, fence)  # type: ignore[arg-type]  # as it came

        life.vault.put = slow  # type: ignore[method-assign]  # as slow as that
        life.rotator.start()
        await begun.wait()
        await life.rotator.close()
        assert made.works(await made.live())
        assert len(made.active()) == 1


async def test_a_fault_in_one_round_does_not_end_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        looked = asyncio.Event()

        def broken() -> None:
            looked.set()
            raise RuntimeError("a bug")

        life.tokens.recheck_refused = broken  # type: ignore[method-assign]  # a fault of ours
        life.rotator.start()
        await looked.wait()
        await life.rotator.close()
        assert "fault while looking after credentials" in caplog.text


async def test_one_that_was_never_started_closes(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        await (await made.live()).rotator.close()

"""Rotation, cut off before and after everything it does: whoever comes next ends it, and the token in use always works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.broker.rotation import SILENT_S, RotationFailed, Superseded, everybody_has_read
from gateway.core.access import Permit
from gateway.core.catalogue import Access, Operation, Surface
from gateway.core.secret import Secret
from gateway.core.token_record import Rotation, RotationStep, TokenRecord
from gateway.demo.seed import TOKENS
from gateway.ports import StoreUnavailable

from .rotating import BOT, Killed, Life, world

REST = Operation("GET /api/v4/projects/:id", Access.READ, Surface.REST)
SELF_ROTATE = b"POST /api/v4/personal_access_tokens/self/rotate"


async def killed(life: Life, rounds: int = 6) -> bool:
    try:
        await life.run(rounds)
    except Killed:
        return True
    return False


async def test_with_a_manager_the_new_token_works_before_the_old_one_ends(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        await life.run(1)
        assert made.works(life)
        assert life.tokens.token("bot").reveal() != made.token.value
        assert made.token.value in made.active()
        assert life.step() == "settling"
        await life.run(3)
        assert made.active() == [life.tokens.token("bot").reveal()]
        assert life.step() == ""
        assert life.notes == [("rotated", "bot"), ("revoked_old", "bot")]
        assert life.fate.effects == [
            "lead",
            "GET /api/v4/personal_access_tokens/self",
            "put creating",
            "POST /api/v4/users/5/personal_access_tokens",
            "GET /api/v4/personal_access_tokens/self",
            "put settling",
            "resign",
            "lead",
            "GET /api/v4/personal_access_tokens/self",
            "GET /api/v4/personal_access_tokens",
            "DELETE /api/v4/personal_access_tokens/20",
            "put none",
            "resign",
        ]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(13))
async def test_killed_at_any_step_it_is_ended_by_whoever_comes_next(tmp_path: Path, at: int, after: bool) -> None:
    async with world(tmp_path) as made:
        assert await killed(await made.live(at, after=after))
        made.now += 31.0  # the dead leader's lease ends
        second = await made.live()
        assert made.works(second)
        for _ in range(6):
            await second.run(1)
            assert made.works(second)
        assert made.active() == [second.tokens.token("bot").reveal()]
        assert second.tokens.token("bot").reveal() != made.token.value
        assert second.step() == ""
        assert (await made.live()).tokens.token("bot") == second.tokens.token("bot")


@pytest.mark.parametrize("first", [3, 5, 10])
@pytest.mark.parametrize("second", range(1, 12, 2))
async def test_killed_again_while_cleaning_up(tmp_path: Path, first: int, second: int) -> None:
    async with world(tmp_path) as made:
        assert await killed(await made.live(first, after=True))
        made.now += 31.0
        again = await made.live(second, after=True)
        await killed(again)
        made.now += 31.0
        third = await made.live()
        await third.run(8)
        assert made.works(third)
        assert made.active() == [third.tokens.token("bot").reveal()]


async def test_a_groups_owner_will_do_as_manager(tmp_path: Path) -> None:
    async with world(tmp_path, group="platform/tools") as made:
        life = await made.live()
        await life.run(4)
        assert made.active() == [life.tokens.token("bot").reveal()]
        assert made.asked(b"DELETE /api/v4/groups/platform%2Ftools/service_accounts/5/personal_access_tokens/") == 1


async def test_other_tokens_of_the_same_user_are_left_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        other = made.mint(days=300)
        life = await made.live()
        await life.run(4)
        assert sorted(made.active()) == sorted([other.value, life.tokens.token("bot").reveal()])
        assert not made.state.tokens[TOKENS.bot].revoked


async def test_one_that_simply_ended_is_replaced_when_it_was_rotated_before(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        await life.run(4)
        made.now += 100 * 86_400.0
        assert made.active() == []
        await life.run(4)
        assert made.works(life)


async def test_one_that_somebody_revoked_is_not_given_back(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        made.token.revoked = True
        await life.run(2)
        assert made.asked(b"POST /api/v4/users/") == 0
        (state, _) = life.rotator.states()
        assert "no longer accepts the token" in state.failure


async def test_a_manager_that_may_not_is_a_failure_and_nothing_changes(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.credentials[1] = msgspec.structs.replace(made.credentials[1], token=Secret(TOKENS.ada))
        life = await made.live()
        await life.run(3)
        assert "the manager could not create a new token: GitLab answered 403" in life.rotator.states()[0].failure
        assert made.active() == [made.token.value]
        assert life.step() == ""
        assert made.asked(b"POST /api/v4/users/") == 2  # at once, and a minute later


async def test_a_new_token_that_is_dead_on_arrival_is_not_used(tmp_path: Path) -> None:
    """Its end lies before the user's longest: GitLab says so only when it is used."""
    async with world(tmp_path) as made:
        life = await made.live()
        mint = made.state.mint

        def revoked(*given: object, **named: object) -> object:
            token = mint(*given, **named)  # type: ignore[arg-type]  # as it came
            token.revoked = True
            return token

        made.state.mint = revoked  # type: ignore[method-assign]  # GitLab's own doing
        await life.run(1)
        assert "GitLab does not accept the new token" in life.rotator.states()[0].failure
        assert life.tokens.token("bot").reveal() == made.token.value


async def test_nothing_is_replaced_where_the_store_would_forget_it(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()

        async def durability_warning() -> str:
            return "it would be gone"

        life.vault.durability_warning = durability_warning  # type: ignore[method-assign]  # a store without persistence
        await life.run(2)
        assert life.rotator.states()[0].failure == "it would be gone"
        assert made.active() == [made.token.value]


async def test_a_token_of_another_user_or_with_other_scopes_is_not_used(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        mint = made.state.mint

        def other(user: Any, name: str, _scopes: Any, *given: Any) -> Any:
            return mint(user, name, ("api", "sudo"), *given)

        made.state.mint = other  # type: ignore[method-assign]  # a GitLab that is not what it seems
        await life.run(1)
        assert "not what was asked for" in life.rotator.states()[0].failure
        assert life.tokens.token("bot").reveal() == made.token.value
        assert made.active() == [made.token.value]


async def test_what_a_leader_of_old_made_is_discarded(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        life = await made.live()
        kept = TokenRecord(made.plans[0].record, 0)
        fence = await made.vault.lead("one", 30.0)
        await made.vault.resign("one")
        assert await made.vault.lead("two", 30.0) != fence
        assert fence is not None
        with pytest.raises(Superseded):
            await life.rotator._steps.begin(made.plans[0], kept, fence)  # type: ignore[union-attr]
        assert made.asked(b"POST /api/v4/users/") == 0
        assert made.active() == [made.token.value]


# A token that replaces itself


async def test_a_token_that_replaces_itself(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        life = await made.live()
        await life.run(3)
        assert made.active() == [life.tokens.token("bot").reveal()] != [made.token.value]
        assert made.asked(SELF_ROTATE) == 1
        assert life.fate.effects[1:] == [
            "GET /api/v4/personal_access_tokens/self",
            "put rotating",
            "POST /api/v4/personal_access_tokens/self/rotate",
            "put none",
            "resign",
        ]
        assert (await made.live()).tokens.token("bot") == life.tokens.token("bot")


@pytest.mark.parametrize(
    ("at", "after", "lost", "works"),
    [
        pytest.param(1, True, False, True, id="looked at"),
        pytest.param(2, False, False, True, id="not written down"),
        pytest.param(2, True, True, True, id="written down, not asked"),
        pytest.param(3, False, True, True, id="about to ask"),
        pytest.param(3, True, True, False, id="done, and the answer lost"),
        pytest.param(4, False, True, False, id="answered, not kept"),
        pytest.param(4, True, False, True, id="kept"),
        pytest.param(5, True, False, True, id="resigned"),
    ],
)
async def test_killed_while_a_token_replaces_itself_nobody_asks_twice(
    tmp_path: Path, at: int, after: bool, lost: bool, works: bool
) -> None:
    async with world(tmp_path, manager="") as made:
        assert await killed(await made.live(at, after=after))
        made.now += 31.0
        asked = made.asked(SELF_ROTATE)
        second = await made.live()
        await second.run(4)
        assert made.works(second) is works
        assert second.step() == ("lost" if lost else "")
        if lost:
            assert made.asked(SELF_ROTATE) == asked
            assert second.notes == [("rotation_lost", "bot")]
        else:
            assert made.asked(SELF_ROTATE) == 1
        # The family lives: nothing was used twice.
        assert len(made.active()) == 1


async def test_after_a_loss_a_person_may_ask_again_where_the_token_still_works(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        assert await killed(await made.live(3))
        made.now += 31.0
        second = await made.live()
        await second.run(2)
        assert second.step() == "lost"
        assert (await second.rotator.rotate("bot")).step == ""
        assert made.active() == [second.tokens.token("bot").reveal()] != [made.token.value]


async def test_and_may_not_where_it_does_not(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        assert await killed(await made.live(3, after=True))
        made.now += 31.0
        second = await made.live()
        await second.run(2)
        with pytest.raises(ValueError, match="put a new one into the configuration"):
            await second.rotator.rotate("bot")
        assert made.asked(SELF_ROTATE) == 1
        assert len(made.active()) == 1


async def test_a_token_without_the_scope_keeps_working_and_says_so(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        made.token.scopes = ("read_api",)
        life = await made.live()
        await life.run(1)
        assert "may not replace itself: GitLab answered 403" in life.rotator.states()[0].failure
        assert life.step() == ""
        assert made.works(life)


class _Outage:
    """A vault whose writes fail for a while once a token exists nowhere else; ``silent`` ones get through unheard."""

    def __init__(self, life: Life, outages: int, *, silent: bool) -> None:
        self._put = life.vault.put
        self.outages = outages
        self._silent = silent

    async def put(self, token: TokenRecord, expect: int, fence: int | None) -> bool:
        if token.token is not None and self.outages:
            self.outages -= 1
            if self._silent:
                await self._put(token, expect, fence)
            raise StoreUnavailable("away")
        return await self._put(token, expect, fence)


@pytest.mark.parametrize("silent", [False, True], ids=["not written", "written, unheard"])
async def test_a_token_that_exists_nowhere_else_is_kept_at_any_price(tmp_path: Path, silent: bool) -> None:
    async with world(tmp_path, manager="") as made:
        life = await made.live()
        outage = _Outage(life, 5, silent=silent)
        life.vault.put = outage.put  # type: ignore[method-assign]  # the store's own failing
        await life.run(1)
        assert made.works(life)
        assert (await made.live()).tokens.token("bot") == life.tokens.token("bot")


async def test_an_answer_that_comes_late_is_still_kept(tmp_path: Path) -> None:
    """A leader that was slow: it was given up meanwhile, but what it holds is the only token there is."""
    async with world(tmp_path, manager="") as made:
        slow, other = await made.live(), await made.live()
        keep = slow.vault.put

        async def put(token: TokenRecord, expect: int, fence: int | None) -> bool:
            if token.token is not None and other.step() != "lost":
                made.now += 31.0
                await other.run(1)
                assert other.step() == "lost"
            return await keep(token, expect, fence)

        slow.vault.put = put  # type: ignore[method-assign]  # as slow as that
        await slow.run(1)
        await other.run(1)
        assert other.step() == slow.step() == ""
        assert made.works(other)
        assert made.works(slow)


# Who has read


def test_everybody_has_read_when_each_that_still_reads_has() -> None:
    assert everybody_has_read({}, 10.0, 20.0)
    assert everybody_has_read({"one": 10.5, "two": 20.0}, 10.0, 20.0)
    assert not everybody_has_read({"one": 10.0, "two": 20.0}, 10.0, 20.0)
    assert everybody_has_read({"one": 10.0, "two": 80.0}, 10.0, 10.5 + SILENT_S)


async def test_the_old_token_stays_until_every_gateway_has_read_of_the_new_one(tmp_path: Path) -> None:
    async with world(tmp_path, overlap_s=0.0) as made:
        first, second = await made.live(), await made.live()
        await first.rotator.tick()
        for _ in range(3):
            made.now += 1.0
            await first.rotator.tick()
            assert made.token.value in made.active()
        assert second.tokens.token("bot").reveal() == made.token.value
        await second.rotator.tick()
        assert made.works(second)
        made.now += 1.0
        await first.rotator.tick()
        assert made.active() == [first.tokens.token("bot").reveal()] == [second.tokens.token("bot").reveal()]


async def test_a_gateway_that_fell_silent_is_not_waited_for_and_looks_before_it_believes_a_refusal(tmp_path: Path) -> None:
    async with world(tmp_path, overlap_s=0.0) as made:
        first, silent = await made.live(), await made.live()
        for _ in range(4):
            await first.rotator.tick()
            made.now += SILENT_S
        assert not made.works(silent)
        given = await silent.tokens.credential(Permit("", "bot"), REST)
        assert await silent.tokens.refused(given)
        assert made.works(silent)
        await silent.tokens.credential(Permit("", "bot"), REST)


async def test_a_record_without_its_manager_waits_for_it(tmp_path: Path) -> None:
    async with world(tmp_path, manager="") as made:
        life = await made.live()
        rotation = Rotation(RotationStep.SETTLING, ("x",), made.token.id, made.now)
        kept = TokenRecord(made.plans[0].record, 1, Secret(made.token.value), made.token.id, BOT, ("api",), None, rotation)
        with pytest.raises(RotationFailed, match="only a `manager`"):
            await life.rotator._steps.settle(made.plans[0], kept, 1)  # type: ignore[union-attr]

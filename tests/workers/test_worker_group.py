"""Who is started, who is started again, and how all of them end. The workers here only speak on the channel."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.config.source import ConfigSource
from gateway.workers.channel import GroupStatus, Reloads
from gateway.workers.question_relay import QuestionRelay
from gateway.workers.worker_group import FAILED, RunResources, WorkerGroup, _exit_reason, _new_tokens, next_pause
from tests.fakes.scripted_supervisor import TEXT, ScriptedSupervisor


def unstarted(relay: QuestionRelay) -> WorkerGroup:
    """Of one worker that is asked every 7 s."""
    config = ConfigSource(TEXT % 1).load({}, lambda path: f"{path}-0123456789abcdef0123456789abcdef").config
    assert config is not None
    resources = RunResources((), b"", (), (), 0, cast("Any", None), relay, alive_s=7.0)
    group_status = GroupStatus((), (), True, (), Reloads())
    return WorkerGroup(
        config, ConfigSource(""), resources, itertools.count(), group_status=lambda: group_status, failed=lambda _: None
    )


CREDENTIALS = """version: 1
upstream: {url: 'http://127.0.0.1:9'}
identities: [{id: bot, key: issued}]
credentials: [{id: sa, token: '${env:SA}'}, {id: sb, pool: [{token: '${env:SB}'}, {token: '${env:SC}'}]}]
rules:
- {id: reads, for: [bot], use: sa, allow: [{access: read}]}
- {id: writes, for: [bot], use: sb, allow: [{access: write}]}
"""


@pytest.mark.parametrize(
    ("changed", "new"),
    [({}, ()), ({"SA": "z"}, ("sa",)), ({"SC": "z"}, ("sb/2",)), ({"SA": "y", "SB": "z"}, ("sa", "sb/1"))],
)
def test_which_tokens_a_configuration_brings(changed: dict[str, str], new: tuple[str, ...]) -> None:
    before, after = (
        ConfigSource(CREDENTIALS).load({name: f"glpat-{value}" for name, value in tokens.items()}, lambda path: path).config
        for tokens in ({"SA": "a", "SB": "b", "SC": "c"}, {"SA": "a", "SB": "b", "SC": "c"} | changed)
    )
    assert before is not None
    assert after is not None
    assert _new_tokens(before, after) == new


def test_every_token_is_new_to_another_gitlab() -> None:
    tokens = {name: f"glpat-{name}" for name in ("SA", "SB", "SC")}
    before, after = (
        ConfigSource(text).load(tokens, lambda path: path).config
        for text in (CREDENTIALS, CREDENTIALS.replace("127.0.0.1:9", "127.0.0.1:8"))
    )
    assert before is not None
    assert after is not None
    assert _new_tokens(before, after) == ("sa", "sb/1", "sb/2")


async def test_what_the_first_can_not_the_others_do_not_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedSupervisor(tmp_path, "fail", "serve")
    assert await scripted.code() == FAILED
    assert (scripted.recorded(0, "starts"), scripted.recorded(1, "starts")) == ("x", "")
    assert "worker 0 ended (exit code 3) before it served: the gateway does not start" in caplog.text


async def test_where_one_can_not_start_none_goes_on(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "stay", "fail")
    assert await scripted.code() == FAILED
    assert scripted.recorded(0, "heard") == "Leave(at_once=True) "


async def test_one_that_ends_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    before = scripted.recorded(1, "pid")
    os.kill(int(before), signal.SIGKILL)
    await scripted.until(
        lambda: scripted.recorded(1, "pid") not in {before, ""} and scripted.group_status.up == (True, True)
    )
    assert scripted.group_status.restarts == (0, 1)
    assert "worker 1 ended (killed by SIGKILL): restarted in" in caplog.text
    assert await scripted.code(signal.SIGTERM) == 0


async def test_what_a_killed_one_said_of_its_connections_is_forgotten(tmp_path: Path) -> None:
    """Else the others would leave to it what it can't accept."""
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    first, second = scripted.group_status.worker_ids
    here = scripted.supervisor._resources.counts.for_worker(-1, range(first, second + 1))
    here.tell(9)
    assert here.is_busier  # the first one has none, the second one has ten
    scripted.does("fail", "serve")
    os.kill(int(scripted.recorded(0, "pid")), signal.SIGKILL)
    await scripted.until(lambda: not scripted.group_status.up[0])
    assert not here.is_busier
    here.tell(20)
    assert here.is_busier
    scripted.does("serve", "serve")
    await scripted.until(lambda: scripted.group_status.up == (True, True))
    here.tell(9)
    assert here.is_busier
    assert await scripted.code(signal.SIGTERM) == 0
    assert not here.is_busier


async def test_while_one_serves_the_other_is_tried_for_ever(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    scripted.does("serve", "fail")
    os.kill(int(scripted.recorded(1, "pid")), signal.SIGKILL)
    await scripted.until(lambda: len(scripted.recorded(1, "starts")) > 8)
    assert scripted.group_status.up == (True, False)
    scripted.does("serve", "serve")
    await scripted.until(lambda: scripted.group_status.up == (True, True))
    assert await scripted.code(signal.SIGTERM) == 0


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(11, "Resource unavailable")])
async def test_who_can_not_be_started_for_a_while_is_no_reason_to_give_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A limit of processes, which counts threads."""
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    real, tried = asyncio.create_subprocess_exec, []

    async def limited(*argv: Any, **how: Any) -> asyncio.subprocess.Process:
        tried.append(argv)
        if len(tried) < 3:
            raise error
        return await real(*argv, **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", limited)
    os.kill(int(scripted.recorded(1, "pid")), signal.SIGKILL)
    await scripted.until(lambda: len(tried) == 3 and scripted.group_status.up == (True, True))
    assert "worker 1 can't be started" in caplog.text
    assert "fault" not in caplog.text
    assert await scripted.code(signal.SIGTERM) == 0


async def test_when_none_can_be_started_any_more_it_gives_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    scripted.does("fail", "fail")
    for number in (0, 1):
        os.kill(int(scripted.recorded(number, "pid")), signal.SIGKILL)
    assert await scripted.code() == FAILED
    assert "giving up" in caplog.text


async def test_a_fault_in_keeping_one_ends_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there would be a worker less that nobody starts again."""
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    monkeypatch.setattr(scripted.supervisor._group, "_judge", lambda *_: 1 / 0)
    os.kill(int(scripted.recorded(1, "pid")), signal.SIGKILL)
    assert await scripted.code() == FAILED
    assert "fault while supervising worker 1" in caplog.text
    assert scripted.recorded(0, "heard") == "Leave(at_once=True) "


def test_nobody_is_up_before_the_start() -> None:
    group = unstarted(QuestionRelay())
    assert (group.up, group.restarts, group.begun, group.code) == ((False,), (0,), False, 0)


async def test_one_that_hangs_is_killed_and_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "mute", alive_s=0.5)
    await scripted.begun()
    before = scripted.recorded(1, "pid")
    await scripted.until(lambda: scripted.recorded(1, "pid") not in {before, ""})
    assert "worker 1 has not answered for 1 s: killed" in caplog.text
    assert "worker 1 ended (killed by SIGKILL)" in caplog.text
    assert await scripted.code(signal.SIGTERM) in {0, FAILED}  # the next one hangs just as well


async def test_the_wait_for_an_answer_is_part_of_the_time_between_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that hangs would go unasked for as long as it was waited for."""
    waited, sleep = list[float](), asyncio.sleep

    class SilentRelay(QuestionRelay):
        async def ask(
            self, what: str, about: bytes, patience_s: float, worker_ids: Collection[int] | None = None
        ) -> dict[int, bytes]:
            await asyncio.Event().wait()
            return {}

    async def counted(time_s: float) -> None:
        waited.append(time_s)
        await sleep(3600)

    group = unstarted(SilentRelay())
    monkeypatch.setattr(asyncio, "sleep", counted)
    watching = asyncio.ensure_future(group._watch())
    for _ in range(5):
        await sleep(0)
    assert waited == [7.0]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_one_that_waits_to_be_started_again_is_not_waited_for(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve", pauses_s=(3600.0, 3600.0))
    await scripted.begun()
    os.kill(int(scripted.recorded(1, "pid")), signal.SIGKILL)
    await scripted.until(lambda: scripted.group_status.restarts == (0, 1))
    assert await scripted.code(signal.SIGTERM) == 0


async def test_one_that_does_not_leave_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "stay", close_s=4.0)
    await scripted.begun()
    assert await scripted.code(signal.SIGTERM) == FAILED
    assert "did not end in time, and are killed: 1" in caplog.text


async def test_one_that_is_about_to_end_by_itself_is_not_ended(tmp_path: Path) -> None:
    """Its process outlives its channel by a little: a signal then would make a failure of it."""
    scripted = ScriptedSupervisor(tmp_path, "linger", "linger")
    await scripted.begun()
    scripted.supervisor._group.leave()
    await scripted.until(lambda: scripted.group_status.up == (False, False))
    assert await scripted.code(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("before_s", "lived_s", "wanted_s"),
    [(0.0, 0.0, 0.1), (0.1, 1.0, 0.2), (0.8, 9.9, 1.6), (8.0, 0.0, 10.0), (10.0, 0.0, 10.0), (10.0, 10.0, 0.1)],
)
def test_pauses_grow_with_failures_and_begin_anew_after_a_life(before_s: float, lived_s: float, wanted_s: float) -> None:
    assert next_pause(before_s, lived_s) == wanted_s


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "exit code 0"), (3, "exit code 3"), (-9, "killed by SIGKILL"), (-200, "killed by signal 200")],
)
def test_how_one_ended_in_words(code: int, text: str) -> None:
    assert _exit_reason(code) == text

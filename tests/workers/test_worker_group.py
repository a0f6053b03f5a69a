"""Who is started, who is started again, and how all of them end. The workers here only speak on the line."""

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
from gateway.workers.worker_group import FAILED, RunResources, WorkerGroup, _exit_reason, next_pause
from tests.fakes.crew import TEXT, ScriptedSupervisor


def unstarted(relay: QuestionRelay) -> WorkerGroup:
    """Of one worker that is asked every 7 s."""
    config = ConfigSource(TEXT % 1).load({}, lambda path: f"{path}-0123456789abcdef0123456789abcdef").config
    assert config is not None
    ground = RunResources((), b"", (), (), 0, cast("Any", None), relay, alive_s=7.0)
    group_status = GroupStatus((), (), True, (), Reloads())
    return WorkerGroup(
        config, ConfigSource(""), ground, itertools.count(), group_status=lambda: group_status, failed=lambda _: None
    )


async def test_what_the_first_can_not_the_others_do_not_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = ScriptedSupervisor(tmp_path, "fail", "serve")
    assert await play.code() == FAILED
    assert (play.told(0, "starts"), play.told(1, "starts")) == ("x", "")
    assert "worker 0 ended (exit code 3) before it served: the gateway does not start" in caplog.text


async def test_where_one_can_not_start_none_goes_on(tmp_path: Path) -> None:
    play = ScriptedSupervisor(tmp_path, "stay", "fail")
    assert await play.code() == FAILED
    assert play.told(0, "heard") == "Leave(at_once=True) "


async def test_one_that_ends_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = ScriptedSupervisor(tmp_path, "serve", "serve")
    await play.begun()
    before = play.told(1, "pid")
    os.kill(int(before), signal.SIGKILL)
    await play.until(lambda: play.told(1, "pid") not in {before, ""} and play.group_status.up == (True, True))
    assert play.group_status.restarts == (0, 1)
    assert "worker 1 ended (killed by SIGKILL): restarted in" in caplog.text
    assert await play.code(signal.SIGTERM) == 0


async def test_what_a_killed_one_said_of_its_connections_is_forgotten(tmp_path: Path) -> None:
    """Else the others would leave to it what it can't accept."""
    play = ScriptedSupervisor(tmp_path, "serve", "serve")
    await play.begun()
    first, second = play.group_status.worker_ids
    here = play.supervisor._resources.counts.for_worker(-1, range(first, second + 1))
    here.tell(9)
    assert here.is_busier  # the first one has none, the second one has ten
    play.does("fail", "serve")
    os.kill(int(play.told(0, "pid")), signal.SIGKILL)
    await play.until(lambda: not play.group_status.up[0])
    assert not here.is_busier
    here.tell(20)
    assert here.is_busier
    play.does("serve", "serve")
    await play.until(lambda: play.group_status.up == (True, True))
    here.tell(9)
    assert here.is_busier
    assert await play.code(signal.SIGTERM) == 0
    assert not here.is_busier


async def test_while_one_serves_the_other_is_tried_for_ever(tmp_path: Path) -> None:
    play = ScriptedSupervisor(tmp_path, "serve", "serve")
    await play.begun()
    play.does("serve", "fail")
    os.kill(int(play.told(1, "pid")), signal.SIGKILL)
    await play.until(lambda: len(play.told(1, "starts")) > 8)
    assert play.group_status.up == (True, False)
    play.does("serve", "serve")
    await play.until(lambda: play.group_status.up == (True, True))
    assert await play.code(signal.SIGTERM) == 0


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(11, "Resource unavailable")])
async def test_who_can_not_be_started_for_a_while_is_no_reason_to_give_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A limit of processes, which counts threads."""
    play = ScriptedSupervisor(tmp_path, "serve", "serve")
    await play.begun()
    real, tried = asyncio.create_subprocess_exec, []

    async def limited(*argv: Any, **how: Any) -> asyncio.subprocess.Process:
        tried.append(argv)
        if len(tried) < 3:
            raise error
        return await real(*argv, **how)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", limited)
    os.kill(int(play.told(1, "pid")), signal.SIGKILL)
    await play.until(lambda: len(tried) == 3 and play.group_status.up == (True, True))
    assert "worker 1 can't be started" in caplog.text
    assert "fault" not in caplog.text
    assert await play.code(signal.SIGTERM) == 0


async def test_when_none_can_be_started_any_more_it_gives_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = ScriptedSupervisor(tmp_path, "serve", "serve")
    await play.begun()
    play.does("fail", "fail")
    for number in (0, 1):
        os.kill(int(play.told(number, "pid")), signal.SIGKILL)
    assert await play.code() == FAILED
    assert "giving up" in caplog.text


async def test_a_fault_in_keeping_one_ends_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there would be a worker less that nobody starts again."""
    play = ScriptedSupervisor(tmp_path, "serve", "serve")
    await play.begun()
    monkeypatch.setattr(play.supervisor._group, "_judge", lambda *_: 1 / 0)
    os.kill(int(play.told(1, "pid")), signal.SIGKILL)
    assert await play.code() == FAILED
    assert "fault while supervising worker 1" in caplog.text
    assert play.told(0, "heard") == "Leave(at_once=True) "


def test_nobody_is_up_before_the_start() -> None:
    crew = unstarted(QuestionRelay())
    assert (crew.up, crew.restarts, crew.begun, crew.code) == ((False,), (0,), False, 0)


async def test_one_that_hangs_is_killed_and_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = ScriptedSupervisor(tmp_path, "serve", "mute", alive_s=0.5)
    await play.begun()
    before = play.told(1, "pid")
    await play.until(lambda: play.told(1, "pid") not in {before, ""})
    assert "worker 1 has not answered for 1 s: killed" in caplog.text
    assert "worker 1 ended (killed by SIGKILL)" in caplog.text
    assert await play.code(signal.SIGTERM) in {0, FAILED}  # the next one hangs just as well


async def test_the_wait_for_an_answer_is_part_of_the_time_between_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that hangs would go unasked for as long as it was waited for."""
    waited, sleep = list[float](), asyncio.sleep

    class Board(QuestionRelay):
        async def ask(
            self, what: str, about: bytes, patience_s: float, worker_ids: Collection[int] | None = None
        ) -> dict[int, bytes]:
            await asyncio.Event().wait()
            return {}

    async def counted(time_s: float) -> None:
        waited.append(time_s)
        await sleep(3600)

    crew = unstarted(Board())
    monkeypatch.setattr(asyncio, "sleep", counted)
    watching = asyncio.ensure_future(crew._watch())
    for _ in range(5):
        await sleep(0)
    assert waited == [7.0]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_one_that_waits_to_be_started_again_is_not_waited_for(tmp_path: Path) -> None:
    play = ScriptedSupervisor(tmp_path, "serve", "serve", pauses_s=(3600.0, 3600.0))
    await play.begun()
    os.kill(int(play.told(1, "pid")), signal.SIGKILL)
    await play.until(lambda: play.group_status.restarts == (0, 1))
    assert await play.code(signal.SIGTERM) == 0


async def test_one_that_does_not_leave_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = ScriptedSupervisor(tmp_path, "serve", "stay", close_s=4.0)
    await play.begun()
    assert await play.code(signal.SIGTERM) == FAILED
    assert "did not end in time, and are killed: 1" in caplog.text


async def test_one_that_is_about_to_end_by_itself_is_not_ended(tmp_path: Path) -> None:
    """Its process outlives its line by a little: a signal then would make a failure of it."""
    play = ScriptedSupervisor(tmp_path, "linger", "linger")
    await play.begun()
    play.supervisor._group.leave()
    await play.until(lambda: play.group_status.up == (False, False))
    assert await play.code(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("before_s", "lived_s", "wanted_s"),
    [(0.0, 0.0, 0.1), (0.1, 1.0, 0.2), (0.8, 9.9, 1.6), (8.0, 0.0, 10.0), (10.0, 0.0, 10.0), (10.0, 10.0, 0.1)],
)
def test_pauses_grow_with_failures_and_begin_anew_after_a_life(before_s: float, lived_s: float, wanted_s: float) -> None:
    assert next_pause(before_s, lived_s) == wanted_s


@pytest.mark.parametrize(
    ("code", "told"),
    [(0, "exit code 0"), (3, "exit code 3"), (-9, "killed by SIGKILL"), (-200, "killed by signal 200")],
)
def test_how_one_ended_is_told_in_words(code: int, told: str) -> None:
    assert _exit_reason(code) == told

"""Who is started, who is started again, and how all of them end. The workers here only speak on the line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.config.given import Given
from gateway.workers.supervisor import FAILED, Supervisor, next_pause, worker_command

ROOT = Path(__file__).parent.parent.parent
AT_ONCE = (0.0, 0.0)

WORKER = """
import asyncio, os, pathlib, socket, sys
root, directory = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(root))
from gateway.workers.line import *

async def main():
    line = await open_line(socket.socket(fileno=os.dup(0)), at_worker)
    begin = await line.hear()
    assert begin.given.load(os.environ).config.listen.workers == begin.of
    for one in (*begin.traffic, *begin.admin, begin.turns):
        os.fstat(one)
    (directory / f"{begin.number}.starts").open("a").write("x")
    does = (directory / f"{begin.number}").read_text()
    if does == "fail":
        return 3
    (directory / f"{begin.number}.pid").write_text(str(os.getpid()))
    line.send(Ready())
    while (message := await line.hear()) is not None:
        if not isinstance(message, Question):
            (directory / f"{begin.number}.heard").open("a").write(repr(message) + " ")
        if isinstance(message, Question):
            if does == "mute":
                continue
            line.send(Reply(message.id, b"%d" % begin.number))
        if isinstance(message, Leave) and (message.at_once or does in {"serve", "mute"}):
            return 0
    return 7

sys.exit(asyncio.run(main()))
"""


TEXT = """
version: 1
upstream: {url: "http://127.0.0.1:9"}
listen: {address: "127.0.0.1:0", admin: "127.0.0.1:0", workers: %d, drain: {deadline: 0s}}
stores: {shared: "redis://127.0.0.1:9/0"}
secrets: {pepper: "${file:/p}", encryption_key: "${file:/e}", audit_key: "${file:/a}"}
"""


class Play:
    """A supervisor and what its workers are to do, by number: `serve`, `stay` (until hurried), `mute`, `fail`."""

    def __init__(
        self,
        directory: Path,
        *does: str,
        pauses_s: tuple[float, float] = AT_ONCE,
        close_s: float = 20.0,
        alive_s: float = 60.0,
    ) -> None:
        self.directory = directory
        self.does(*does)
        text = TEXT % len(does)
        given = Given(text)
        loaded = given.load({}, lambda path: f"{path}-0123456789abcdef0123456789abcdef")
        assert loaded.config is not None, loaded.problems
        self.config: Config = loaded.config
        command = [sys.executable, "-c", WORKER, str(ROOT), str(directory)]
        self.supervisor = Supervisor(self.config, given, command, pauses_s=pauses_s, close_s=close_s, alive_s=alive_s)
        self.running = asyncio.ensure_future(self.supervisor.run())

    def does(self, *does: str) -> None:
        for number, what in enumerate(does):
            (self.directory / f"{number}").write_text(what)

    def told(self, number: int, what: str) -> str:
        file = self.directory / f"{number}.{what}"
        return file.read_text() if file.exists() else ""

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                assert not self.running.done(), self.running.result()
                await asyncio.sleep(0.005)

    async def begun(self) -> None:
        await self.until(lambda: self.supervisor.staff.begun)

    async def code(self, *signals: int) -> int:
        for number in signals:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            return await self.running


async def test_all_serve_until_they_are_told_to_leave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    play = Play(tmp_path, "serve", "serve", "serve")
    await play.begun()
    assert "with 3 workers" in caplog.text
    assert play.supervisor.staff.up == (True, True, True)
    assert await play.code(signal.SIGTERM) == 0
    assert [play.told(number, "heard") for number in range(3)] == ["Leave(at_once=False) "] * 3


async def test_a_second_signal_makes_them_hurry_and_one_more_changes_nothing(tmp_path: Path) -> None:
    play = Play(tmp_path, "stay", "stay")
    await play.begun()
    os.kill(os.getpid(), signal.SIGINT)
    await play.until(lambda: play.told(1, "heard") != "" != play.told(0, "heard"))
    assert await play.code(signal.SIGTERM, signal.SIGTERM) == 0
    assert play.told(0, "heard") == "Leave(at_once=False) Leave(at_once=True) "


async def test_certificates_are_read_again_by_all(tmp_path: Path) -> None:
    play = Play(tmp_path, "serve", "serve")
    await play.begun()
    os.kill(os.getpid(), signal.SIGHUP)
    await play.until(lambda: play.told(1, "heard") != "" != play.told(0, "heard"))
    assert await play.code(signal.SIGTERM) == 0
    assert play.told(1, "heard") == "Reload() Leave(at_once=False) "


async def test_what_the_first_can_not_the_others_do_not_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = Play(tmp_path, "fail", "serve")
    assert await play.code() == FAILED
    assert (play.told(0, "starts"), play.told(1, "starts")) == ("x", "")
    assert "worker 0 ended (exit code 3) before it served: the gateway does not start" in caplog.text


async def test_where_one_can_not_start_none_goes_on(tmp_path: Path) -> None:
    play = Play(tmp_path, "stay", "fail")
    assert await play.code() == FAILED
    assert play.told(0, "heard") == "Leave(at_once=True) "


async def test_one_that_ends_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = Play(tmp_path, "serve", "serve")
    await play.begun()
    before = play.told(1, "pid")
    os.kill(int(before), signal.SIGKILL)
    await play.until(lambda: play.told(1, "pid") not in {before, ""} and play.supervisor.staff.up == (True, True))
    assert play.supervisor.staff.restarts == (0, 1)
    assert "worker 1 ended (killed by SIGKILL): started again" in caplog.text
    assert await play.code(signal.SIGTERM) == 0


async def test_while_one_serves_the_other_is_tried_for_ever(tmp_path: Path) -> None:
    play = Play(tmp_path, "serve", "serve")
    await play.begun()
    play.does("serve", "fail")
    os.kill(int(play.told(1, "pid")), signal.SIGKILL)
    await play.until(lambda: len(play.told(1, "starts")) > 8)
    assert play.supervisor.staff.up == (True, False)
    play.does("serve", "serve")
    await play.until(lambda: play.supervisor.staff.up == (True, True))
    assert await play.code(signal.SIGTERM) == 0


async def test_when_none_can_be_started_any_more_it_gives_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = Play(tmp_path, "serve", "serve")
    await play.begun()
    play.does("fail", "fail")
    for number in (0, 1):
        os.kill(int(play.told(number, "pid")), signal.SIGKILL)
    assert await play.code() == FAILED
    assert "giving up" in caplog.text


async def test_one_that_hangs_is_killed_and_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = Play(tmp_path, "serve", "mute", alive_s=0.5)
    await play.begun()
    before = play.told(1, "pid")
    await play.until(lambda: play.told(1, "pid") not in {before, ""})
    assert "worker 1 has not answered for 1 s: killed" in caplog.text
    assert "worker 1 ended (killed by SIGKILL)" in caplog.text
    assert await play.code(signal.SIGTERM) in {0, FAILED}  # the next one hangs just as well


async def test_one_that_waits_to_be_started_again_is_not_waited_for(tmp_path: Path) -> None:
    play = Play(tmp_path, "serve", "serve", pauses_s=(3600.0, 3600.0))
    await play.begun()
    os.kill(int(play.told(1, "pid")), signal.SIGKILL)
    await play.until(lambda: play.supervisor.staff.restarts == (0, 1))
    assert await play.code(signal.SIGTERM) == 0


async def test_told_to_leave_before_all_have_started(tmp_path: Path) -> None:
    play = Play(tmp_path, "serve", "serve")
    await play.until(lambda: play.supervisor.staff.up[0])
    assert await play.code(signal.SIGTERM) == 0
    assert not play.supervisor.staff.begun
    assert play.told(0, "heard") == "Leave(at_once=False) "


async def test_one_that_does_not_leave_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = Play(tmp_path, "serve", "stay", close_s=0.5)
    await play.begun()
    assert await play.code(signal.SIGTERM) == FAILED
    assert "did not end in time, and are killed: 1" in caplog.text


async def test_a_port_that_is_taken_ends_the_start(tmp_path: Path) -> None:
    import msgspec

    play = Play(tmp_path, "serve")
    play.running.cancel()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = msgspec.structs.replace(play.config.listen.address, port=taken.getsockname()[1])
        config = msgspec.structs.replace(play.config, listen=msgspec.structs.replace(play.config.listen, admin=place))
        with pytest.raises(OSError, match="already in use"):
            await Supervisor(config, Given(""), []).run()


@pytest.mark.parametrize(
    ("before_s", "lived_s", "wanted_s"),
    [(0.0, 0.0, 0.1), (0.1, 1.0, 0.2), (0.8, 9.9, 1.6), (8.0, 0.0, 10.0), (10.0, 0.0, 10.0), (10.0, 10.0, 0.1)],
)
def test_pauses_grow_with_failures_and_begin_anew_after_a_life(before_s: float, lived_s: float, wanted_s: float) -> None:
    assert next_pause(before_s, lived_s) == wanted_s


def test_a_worker_imports_this_package_and_nothing_from_where_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").write_text("raise SystemExit(99)")
    (tmp_path / "asyncio.py").write_text("raise SystemExit(98)")
    done = subprocess.run(worker_command(), cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr

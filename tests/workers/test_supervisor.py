"""Ports, signals, and a new configuration in the place of another. The workers here only speak on the channel."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from gateway.config.source import ConfigSource
from gateway.workers.channel import Reloads
from gateway.workers.supervisor import Supervisor, _empty_file, worker_command
from tests.fakes.scripted_supervisor import ROOT, TEXT, ScriptedSupervisor


async def test_all_serve_until_they_are_told_to_leave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve", "serve")
    await scripted.begun()
    assert "with 3 workers" in caplog.text
    assert scripted.group_status.up == (True, True, True)
    assert await scripted.code(signal.SIGTERM) == 0
    assert [scripted.recorded(number, "heard") for number in range(3)] == ["Leave(at_once=False) "] * 3


async def test_a_second_signal_makes_them_hurry_and_one_more_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scripted = ScriptedSupervisor(tmp_path, "stay", "stay")
    await scripted.begun()
    os.kill(os.getpid(), signal.SIGINT)
    await scripted.until(lambda: scripted.recorded(1, "heard") != "" != scripted.recorded(0, "heard"))
    assert await scripted.supervisor._relay.ask("behind whatever they were told", b"", 60.0) == {0: b"0", 1: b"1"}
    assert scripted.recorded(0, "heard") == "Leave(at_once=False) ", "they have the whole notice until then"
    assert await scripted.code(signal.SIGTERM, signal.SIGTERM) == 0
    assert scripted.recorded(0, "heard") == "Leave(at_once=False) Leave(at_once=True) "
    assert caplog.text.count("draining") == 1


async def test_certificates_are_read_again_by_all(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    os.kill(os.getpid(), signal.SIGHUP)
    await scripted.until(lambda: scripted.recorded(1, "heard") != "" != scripted.recorded(0, "heard"))
    assert await scripted.code(signal.SIGTERM) == 0
    assert scripted.recorded(1, "heard") == "Reload() Leave(at_once=False) "


async def test_told_to_leave_before_all_have_started(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.until(lambda: scripted.group_status.up[0])
    assert await scripted.code(signal.SIGTERM) == 0
    assert not scripted.group_status.begun
    assert scripted.recorded(0, "heard") == "Leave(at_once=False) "


async def test_where_it_is_cancelled_it_keeps_no_workers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    processes = [worker.process for worker in scripted.supervisor._group._workers if worker.process is not None]
    scripted.running.cancel()
    await asyncio.gather(scripted.running, return_exceptions=True)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("worker", "watch"))]
    assert [await process.wait() for process in processes] == [7, 7], "they notice that the channel has ended"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_who_is_replaced_may_take_as_long_as_its_clients_may(tmp_path: Path) -> None:
    """Until all are told, then idle ones, and then those of requests in progress."""
    scripted = ScriptedSupervisor(tmp_path, "serve", close_s=1.0)
    await scripted.begun()
    drain = msgspec.structs.replace(scripted.config.listen.drain, deadline=20.0)
    limits = msgspec.structs.replace(scripted.config.listen.limits, idle=300.0)
    listen = msgspec.structs.replace(scripted.config.listen, limits=limits, drain=drain)
    group = scripted.supervisor._make_group(
        msgspec.structs.replace(scripted.config, listen=listen), scripted.supervisor._source
    )
    assert scripted.supervisor._retires_within_s(group) == 331.0
    assert await scripted.code(signal.SIGTERM) == 0


def test_an_empty_file_needs_no_place_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", pytest.fail)
    with _empty_file("turns") as file:
        assert os.fstat(file.fileno()).st_size == 0


@pytest.mark.parametrize(("how", "passed_on"), [((), "-P"), (("-I",), "-I")], ids=["as usual", "isolated"])
def test_a_worker_is_as_isolated_as_who_starts_it(how: tuple[str, ...], passed_on: str) -> None:
    """One that heeds no environment has none of its workers heed it; else they find what it found."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "from gateway.workers.supervisor import worker_command; print(worker_command()[1])"
    ran = subprocess.run([sys.executable, *how, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{passed_on}\n"


async def test_a_port_that_is_taken_ends_the_start(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve")
    scripted.running.cancel()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = msgspec.structs.replace(scripted.config.listen.address, port=taken.getsockname()[1])
        config = msgspec.structs.replace(
            scripted.config, listen=msgspec.structs.replace(scripted.config.listen, admin=place)
        )
        with pytest.raises(OSError, match=f"listen.admin {place}: Address already in use"):
            await Supervisor(config, ConfigSource(""), [], scripted.read).run(scripted.on_signal)


def test_a_worker_imports_this_package_and_nothing_from_where_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").write_text("raise SystemExit(99)")
    (tmp_path / "asyncio.py").write_text("raise SystemExit(98)")
    done = subprocess.run(worker_command(), cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr


# A new configuration


def changed(workers: int = 2) -> str:
    return TEXT % workers + "limits_mode: shadow\n"


WAITS = """
import asyncio, sys, threading
from gateway.workers.supervisor import _wait_without_threads

async def main():
    argv = sys.executable, "-c", "import sys; sys.stdin.read()"
    started = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE)
    print(threading.active_count())
    started.stdin.close()
    await started.wait()

_wait_without_threads()
asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no descriptors of processes")
def test_nobody_needs_a_thread_to_wait_for_a_worker() -> None:
    ran = subprocess.run([sys.executable, "-c", WAITS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("1\n", "")


async def test_a_new_group_takes_over_when_all_of_it_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    assert scripted.group_status.worker_ids == (0, 1)
    scripted.does("serve", "serve", "serve")
    scripted.text = changed(3) + "logging: {level: debug}\n"
    assert await scripted.reloaded() == Reloads(applied=1)
    assert (scripted.group_status.worker_ids, scripted.group_status.up) == ((2, 3, 4), (True, True, True))
    await scripted.until(
        lambda: "Retire()" in scripted.recorded(0, "heard") and "Retire()" in scripted.recorded(1, "heard")
    )
    assert [scripted.recorded(number, "worker_ids").split() for number in range(3)] == [["0", "2"], ["1", "3"], ["4"]]
    assert "is served with 3 workers" in caplog.text
    await scripted.until(lambda: "2 replaced workers have left" in caplog.text)
    assert logging.getLogger().level == logging.DEBUG
    assert await scripted.code(signal.SIGTERM) == 0
    assert scripted.recorded(2, "heard") == "Leave(at_once=False) "


async def test_what_is_as_it_was_replaces_nobody(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    assert await scripted.reloaded() == Reloads(unchanged=1)
    assert scripted.group_status.worker_ids == (0, 1)
    assert await scripted.code(signal.SIGTERM) == 0
    assert scripted.recorded(0, "starts") == "x"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "the file is gone", id="unreadable"),
        pytest.param(changed() + "limmits: []\n", "limmits", id="unknown"),
        pytest.param(changed() + "state_dir: /elsewhere\n", "only a restart can change state_dir", id="standing"),
    ],
)
async def test_what_is_wrong_with_a_file_is_reported_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, told: str
) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    good, scripted.text = scripted.text, text
    assert await scripted.reloaded() == Reloads(failed=1, failing=True)
    assert told in "".join(record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert "the previous one stays in force" in caplog.text
    scripted.text = good
    assert await scripted.reloaded() == Reloads(failed=1, unchanged=1)
    assert scripted.group_status.worker_ids == (0, 1)
    assert await scripted.code(signal.SIGTERM) == 0


async def test_a_fault_while_reading_is_logged_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    scripted.text = None  # type: ignore[assignment]  # whatever it is that nobody thought of
    scripted.supervisor._read_again = lambda: 1 / 0  # type: ignore[assignment,return-value]
    assert (await scripted.reloaded()).failed == 1
    assert "ZeroDivisionError" in caplog.text
    assert await scripted.code(signal.SIGTERM) == 0


@pytest.mark.parametrize("second", ["fail", "slow"])
async def test_where_one_of_the_new_can_not_start_the_old_serve_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, second: str
) -> None:
    caplog.set_level("INFO")
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve", start_s=6.0 if second == "slow" else 60.0)
    await scripted.begun()
    scripted.does("serve", second)
    scripted.text = changed()
    assert await scripted.reloaded() == Reloads(failed=1, failing=True)
    assert (scripted.group_status.worker_ids, scripted.group_status.up) == ((0, 1), (True, True))
    # The first of the new ones has served, and perhaps has clients: it goes as one that is replaced does.
    await scripted.until(lambda: "Retire()" in scripted.recorded(0, "heard"))
    await scripted.until(lambda: not scripted.supervisor._retired)
    assert "the new workers, which did not take over, have left" in caplog.text
    assert "replaced have left" not in caplog.text
    assert await scripted.code(signal.SIGTERM) == 0


async def test_signals_that_come_meanwhile_are_one_more_reload(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    scripted.text = changed()
    os.kill(os.getpid(), signal.SIGHUP)
    await scripted.until(lambda: scripted.reads == 2)
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
    await scripted.until(lambda: scripted.group_status.reloads == Reloads(applied=1, unchanged=1))
    assert scripted.reads == 3
    assert await scripted.code(signal.SIGTERM) == 0


async def test_told_to_leave_while_a_new_group_starts(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    scripted.does("serve", "slow")
    scripted.text = changed()
    os.kill(os.getpid(), signal.SIGHUP)
    await scripted.until(lambda: scripted.recorded(1, "starts") == "xx")
    assert await scripted.code(signal.SIGTERM) == 0


async def test_told_to_leave_while_some_are_retired(tmp_path: Path) -> None:
    """They wait for idle clients no longer."""
    scripted = ScriptedSupervisor(tmp_path, "stay", "stay")
    await scripted.begun()
    scripted.does("serve", "serve")
    scripted.text = changed()
    await scripted.reloaded()
    assert await scripted.code(signal.SIGTERM) == 0
    assert {"Retire()", "Leave(at_once=True)"} <= set(scripted.recorded(0, "heard").split())


async def test_a_reload_waits_while_too_many_are_not_gone_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scripted = ScriptedSupervisor(tmp_path, "stay", "stay")
    await scripted.begun()
    for number, size in enumerate((3, 4), start=1):
        scripted.text = TEXT % 2 + f"cache: {{max_entry: {size}MiB}}\n"
        assert (await scripted.reloaded()).applied == number
    assert "waits until" not in caplog.text
    scripted.text = TEXT % 2
    os.kill(os.getpid(), signal.SIGHUP)
    await scripted.until(lambda: "waits until the workers of an earlier one have left" in caplog.text)
    assert scripted.group_status.worker_ids == (4, 5)
    assert await scripted.supervisor._relay.ask("meanwhile", b"", 60.0, (0, 5)) == {0: b"0", 5: b"1"}
    assert scripted.supervisor._next_group is None
    next(iter(scripted.supervisor._retired)).leave(at_once=True)
    await scripted.until(lambda: scripted.group_status.reloads.applied == 3)
    assert scripted.group_status.worker_ids == (6, 7)
    assert await scripted.code(signal.SIGTERM, signal.SIGTERM) == 0


async def test_a_count_of_restarts_does_not_fall(tmp_path: Path) -> None:
    scripted = ScriptedSupervisor(tmp_path, "serve", "serve")
    await scripted.begun()
    before = scripted.recorded(1, "pid")
    os.kill(int(before), signal.SIGKILL)
    await scripted.until(
        lambda: scripted.recorded(1, "pid") not in {before, ""} and scripted.group_status.up == (True, True)
    )
    scripted.text = changed()
    await scripted.reloaded()
    assert scripted.group_status.restarts == (0, 1)
    assert await scripted.code(signal.SIGTERM) == 0

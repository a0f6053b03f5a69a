"""The audit as a configuration says it, and what it makes of what the process before left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.app.audit_assembly import open_audit
from gateway.config import Config, load
from gateway.core.audit_chain import chain_key, verify
from gateway.core.exchange import Exchange
from gateway.telemetry.spool import Spool

KEY = b"k" * 32
TEXT = "version: 1\nupstream: {url: 'http://127.0.0.1:9'}\n"


def written(tmp_path: Path, more: str = "") -> Config:
    text = f"{TEXT}state_dir: {tmp_path}/state\naudit: {{sink: 'file:{tmp_path}/audit'{more}}}\n"
    config = load(text, {}, str).config
    assert config is not None
    return config


async def once(tmp_path: Path, more: str = "") -> None:
    log = open_audit(written(tmp_path, more), lambda: KEY)
    log.observe(Exchange("r-1", 0.0, "GET", "192.0.2.1"))
    log.close()


async def test_a_chain_goes_on_from_the_file_and_from_what_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await once(tmp_path, ", chain: true")
    lines = (tmp_path / "audit").read_bytes().splitlines(keepends=True)
    # A process that was killed: its last line stands half in the file and whole in the spool.
    (tmp_path / "audit").write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(b"".join(lines[1:]))
    spool.close()
    await once(tmp_path, ", chain: true")
    assert "are written first" in caplog.text
    record = (tmp_path / "audit").read_bytes().splitlines()
    assert record[: len(lines)] == b"".join(lines).splitlines()
    assert len(record) == 2 * len(lines)
    assert list(verify(record, chain_key(KEY))) == []


@pytest.mark.parametrize("more", ["", ", on_failure: drop"])
async def test_a_line_cut_short_spoils_no_other(tmp_path: Path, more: str) -> None:
    (tmp_path / "audit").write_bytes(b'{"schema":1,"req')
    await once(tmp_path, more)
    assert (tmp_path / "audit").read_bytes().splitlines()[0] == b'{"schema":1,"req'
    assert b"r-1" in (tmp_path / "audit").read_bytes().splitlines()[1]


@contextlib.contextmanager
def appended_to(path: Path, number: int) -> Iterator[None]:
    """By that stream."""
    kept = os.dup(number)
    try:
        with open(path, "ab") as file:
            os.dup2(file.fileno(), number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


@pytest.mark.parametrize(("where", "number"), [("stdout", 1), ("stderr", 2)])
@pytest.mark.parametrize("turns", [False, True])
async def test_a_line_cut_short_in_a_stream_that_is_a_file_spoils_no_other(
    tmp_path: Path, where: str, number: int, turns: bool
) -> None:
    """And what waits goes on where it ends: nothing is there twice."""
    file = tmp_path / "audit"
    whole = [b'{"schema":1,"request_id":"r-%d"}\n' % number for number in range(-3, 0)]
    (tmp_path / "state").mkdir(mode=0o700)
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(b"".join(whole))
    spool.close()
    file.write_bytes(whole[0] + whole[1][:9])
    config = load(f"{TEXT}state_dir: {tmp_path}/state\naudit: {{sink: {where}}}\n", {}, str).config
    assert config is not None
    with open(tmp_path / "turns", "w+b") as theirs, appended_to(file, number):
        log = open_audit(config, lambda: KEY, turns=theirs.fileno() if turns else None)
        log.observe(Exchange("r-1", 0.0, "GET", "192.0.2.1"))
        log.close()
    first, *rest = file.read_bytes().splitlines(keepends=True)
    assert first == whole[0]
    assert rest[:-1] == ([whole[1][:9] + b"\n"] if turns else []) + whole[1:]
    assert b"r-1" in rest[-1]


async def test_a_line_cut_short_in_the_spool_spoils_no_other(tmp_path: Path) -> None:
    await once(tmp_path, ", chain: true")
    lines = (tmp_path / "audit").read_bytes().splitlines(keepends=True)
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(b"".join(lines)[:-20])
    spool.close()
    (tmp_path / "audit").write_bytes(b"")
    await once(tmp_path, ", chain: true")
    record = (tmp_path / "audit").read_bytes().splitlines()
    assert record[: len(lines)] == b"".join(lines)[:-20].splitlines()
    flaws = list(verify(record, chain_key(KEY)))
    assert len(record) == 2 * len(lines)
    assert len(flaws) == 2, "the line, and that its chain has no end"


@pytest.mark.parametrize("more", [", chain: true", ", chain: true, rotate: {size: 1KiB, keep: 9}"])
@pytest.mark.parametrize("renamed", [False, True])
async def test_what_a_full_disk_took_in_parts_is_gone_on_with(tmp_path: Path, more: str, renamed: bool) -> None:
    """A process began a line and kept the rest; the disk took some of that, too, before it ended. Its file may have been
    renamed since (logrotate), or be due to be."""
    await once(tmp_path, more)
    lines = (tmp_path / "audit").read_bytes().splitlines(keepends=True)
    (tmp_path / "audit").write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(lines[-1][20:], lines[-1][:20])
    spool.close()
    if renamed:
        (tmp_path / "audit").rename(tmp_path / "audit.1")
    await once(tmp_path, more)
    files = [file.read_bytes() for file in sorted(tmp_path.glob("audit*"), reverse=True)]
    assert all(file.endswith(b"\n") for file in files)
    record = b"".join(files).splitlines(keepends=True)
    assert record[: len(lines)] == lines
    assert list(verify([one[:-1] for one in record], chain_key(KEY))) == []


async def test_its_file_is_rotated_as_configured(tmp_path: Path) -> None:
    log = open_audit(written(tmp_path, ", rotate: {size: 64KiB, keep: 2}"), lambda: KEY)
    for number in range(1500):
        log.observe(Exchange(f"r-{number}", 0.0, "GET", "192.0.2.1"))
    log.close()
    assert sorted(path.name for path in tmp_path.glob("audit*")) == ["audit", "audit.1", "audit.2"]
    assert all(path.stat().st_size <= 1 << 16 for path in tmp_path.glob("audit*"))


async def test_where_several_write_a_line_cut_short_is_ended_in_somebodys_turn(tmp_path: Path) -> None:
    (tmp_path / "audit").write_bytes(b'{"schema":1,"req')
    with tempfile.TemporaryFile() as turns:
        log = open_audit(written(tmp_path), lambda: KEY, turns=turns.fileno())
        log.observe(Exchange("r-1", 0.0, "GET", "192.0.2.1"))
        log.close()
    cut, whole = (tmp_path / "audit").read_bytes().splitlines()
    assert (cut, b"r-1" in whole) == (b'{"schema":1,"req', True)


async def test_what_others_leave_later_is_not_written_where_the_file_has_it(tmp_path: Path) -> None:
    log = open_audit(written(tmp_path), lambda: KEY)
    line = b'{"schema":1,"request_id":"r-0"}\n'
    (tmp_path / "audit").write_bytes(line)
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(line)
    spool.close()
    log.observe(Exchange("r-1", 0.0, "GET", "192.0.2.1"))
    async with asyncio.timeout(30):
        while (tmp_path / "state" / "audit-0.spool").stat().st_size:
            await asyncio.sleep(0)
    log.close()
    assert [b"r-0" in one for one in (tmp_path / "audit").read_bytes().splitlines()] == [True, False]


async def test_the_key_is_asked_for_where_there_is_a_chain_alone(tmp_path: Path) -> None:
    def key() -> bytes:
        raise AssertionError("nobody needs it")

    open_audit(written(tmp_path), key).close()


async def test_a_command_writes_where_it_may(tmp_path: Path) -> None:
    log = open_audit(written(tmp_path), lambda: KEY, where=f"file:{tmp_path}/other")
    log.observe(Exchange("r-1", 0.0, "POST", ""))
    log.close()
    assert not (tmp_path / "audit").exists()
    assert (tmp_path / "other").read_bytes().count(b"\n") == 1


async def test_what_waits_leaves_the_spool_when_the_sink_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the file as well, of a process that was killed before that was synced."""
    line = b'{"schema":1,"request_id":"r-0"}\n'
    (tmp_path / "audit").write_bytes(line)
    (tmp_path / "state").mkdir(mode=0o700)
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(line)
    spool.close()
    done: list[str] = []
    truncate = os.ftruncate
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "ftruncate", lambda descriptor, size: (done.append("cut"), truncate(descriptor, size)))
    await once(tmp_path, ", durability: before_write")
    assert str(tmp_path / "audit") in done[: done.index("cut")]
    assert (tmp_path / "audit").read_bytes().startswith(line)


@pytest.mark.parametrize("left_before", [True, False])
async def test_what_waits_is_synced_in_files_that_are_rotated_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_before: bool
) -> None:
    """Another gateway may have promised it, though this one promises nothing."""
    line = b'{"schema":1,"x":"%b"}\n' % (b"x" * 700)
    (tmp_path / "state").mkdir(mode=0o700)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    config = written(tmp_path, ", rotate: {size: 1KiB, keep: 9}")
    log = None if left_before else open_audit(config, lambda: KEY)
    left = Spool(tmp_path / "state", 1 << 20)
    left.append(line * 4)
    left.close()
    log = log or open_audit(config, lambda: KEY)
    log.writer.offer(b"")
    async with asyncio.timeout(30):
        while (tmp_path / "state" / "audit-0.spool").stat().st_size:
            await asyncio.sleep(0)
    log.close()
    files = [tmp_path / name for name in ("audit.3", "audit.2", "audit.1", "audit")]
    assert [file.read_bytes() for file in files] == [line] * 4
    assert {file.stat().st_ino for file in files} <= set(synced)


async def test_a_command_that_writes_elsewhere_leaves_what_waits_for_the_gateways_sink(tmp_path: Path) -> None:
    """On an operator's terminal it would be lost to the record."""
    (tmp_path / "state").mkdir(mode=0o700)
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(b'{"schema":1,"request_id":"r-0"}\n')
    spool.close()
    log = open_audit(written(tmp_path), lambda: KEY, where=f"file:{tmp_path}/other")
    log.observe(Exchange("r-1", 0.0, "POST", ""))
    log.close()
    assert (tmp_path / "other").read_bytes().count(b"\n") == 1
    await once(tmp_path)
    assert [line.count(b"r-0") for line in (tmp_path / "audit").read_bytes().splitlines()] == [1, 0]
    assert not [*(tmp_path / "state").glob("*.spool")]


async def test_what_cannot_be_taken_up_is_reported_and_keeps_nothing_else_from_the_sink(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a command that another user ran: here, what may not be opened either."""
    (tmp_path / "state").mkdir(mode=0o700)
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(b'{"schema":1,"request_id":"r-0"}\n')
    spool.close()
    others, ours = (tmp_path / "state" / f"audit-{number}.spool" for number in range(2))
    others.rename(ours)
    (tmp_path / "elsewhere").write_text("x")
    others.symlink_to(tmp_path / "elsewhere")
    await once(tmp_path)
    assert b"r-0" in (tmp_path / "audit").read_bytes()
    assert not ours.exists()
    assert "cannot be taken up" not in caplog.text, "that one was"
    await once(tmp_path)
    assert f"cannot be taken over: [Errno 40] Too many levels of symbolic links: '{others}'" in caplog.text


@pytest.mark.parametrize("where", ["", "stderr"])
async def test_what_waits_and_is_not_taken_up_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """To the gateway's operator, not to who runs a command whose line goes elsewhere."""
    (tmp_path / "state").mkdir(mode=0o700)
    drops = written(tmp_path, ", on_failure: drop")
    open_audit(drops, lambda: KEY, where=where).close()
    assert not caplog.records
    spool = Spool(tmp_path / "state", 1 << 20)
    spool.append(b'{"schema":1,"request_id":"r-0"}\n')
    spool.close()
    open_audit(drops, lambda: KEY, where=where).close()
    assert ("spools hold 32 octets: with `on_failure: drop` they stay" in caplog.text) is (not where)
    await once(tmp_path)
    assert b"r-0" in (tmp_path / "audit").read_bytes()


async def test_without_a_state_dir_there_is_no_spool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("no directory")
    open_audit(written(tmp_path), lambda: KEY).close()
    assert "has no spool" in caplog.text

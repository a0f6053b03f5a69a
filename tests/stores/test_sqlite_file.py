from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from gateway.ports import NotDone, StoreUnavailable
from gateway.stores.sqlite_file import SqliteFile

from .patience import LONG_S

SCHEMA = ("CREATE TABLE t (x INTEGER) STRICT", "INSERT INTO t VALUES (7)")


def made(path: Path, timeout_s: float = LONG_S) -> SqliteFile:
    return SqliteFile(path, SCHEMA, 3, timeout_s=timeout_s)


def everything(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT x FROM t")]


async def test_the_schema_is_made_once(tmp_path: Path) -> None:
    for _ in range(2):
        file = made(tmp_path / "x.db")
        assert await file.run(everything) == [7]
        await file.close()
        await file.close()
        with pytest.raises(StoreUnavailable, match="is closed"):
            await file.run(everything)


async def test_one_that_may_not_be_made_is_an_outage_until_it_is_there(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "x.db", SCHEMA, 3, make=False)
    with pytest.raises(StoreUnavailable, match=r"x\.db is missing"):
        await file.run(everything)
    assert list(tmp_path.iterdir()) == []
    maker = made(tmp_path / "x.db")
    await maker.run(everything)
    assert await file.run(everything) == [7]
    await maker.close()
    await file.close()


async def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    file = made(tmp_path / "x.db")
    await file.run(everything)
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o600}
    await file.close()


async def test_a_file_others_may_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch()
    path.chmod(0o602)
    file = made(path)
    with pytest.raises(StoreUnavailable, match="writable by others"):
        await file.run(everything)
    await file.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
async def test_a_file_others_may_read_is_closed_to_them(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a backup that was put back under another umask."""
    path = tmp_path / "x.db"
    first, second = made(path), made(path)
    await first.run(everything)
    for one in tmp_path.iterdir():
        one.chmod(mode)
    assert await second.run(everything) == [7]
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o600}
    assert f"{path} could be read by others (mode {mode:04o}): it is 0600 now" in caplog.text
    await first.close()
    await second.close()


async def test_another_file_in_its_place_is_followed(tmp_path: Path) -> None:
    """As a backup is put back: the file of before is still there for whoever has it open."""
    path, other = tmp_path / "x.db", tmp_path / "backup.db"
    file, backup = made(path), made(other)
    assert await file.run(everything) == [7]
    await backup.run(lambda connection: connection.execute("UPDATE t SET x = 8"))
    await backup.run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    await backup.close()
    for beside in ("-wal", "-shm"):  # whoever puts a backup back takes them away: they belong to the file of before
        path.with_name(path.name + beside).unlink()
    other.rename(path)
    assert await file.run(everything) == [8]
    writer = made(path)  # as a command that revokes
    await writer.run(lambda connection: connection.execute("INSERT INTO t VALUES (9)"))
    assert await file.run(everything) == [8, 9]
    await writer.close()
    await file.close()


async def test_a_file_that_was_taken_away_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    file = made(path)
    await file.run(everything)
    path.unlink()
    with pytest.raises(StoreUnavailable, match="No such file"):
        await file.run(everything)
    assert not path.exists()
    await file.close()


async def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    (tmp_path / "x.db").chmod(0o600)
    file = made(tmp_path / "x.db")
    with pytest.raises(StoreUnavailable, match="schema 7"):
        await file.run(everything)
    await file.close()


async def test_garbage_a_missing_directory_and_a_link_are_outages(tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_bytes(b"no database " * 99)
    (tmp_path / "garbage.db").chmod(0o600)
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere.db")
    for path in (tmp_path / "garbage.db", tmp_path / "none" / "x.db", tmp_path / "link.db"):
        file = made(path)
        with pytest.raises(StoreUnavailable):
            await file.run(everything)
        await file.close()
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.parametrize(("name", "said"), [("notes", "file is not a database"), ("etc", "is not a file")])
async def test_what_is_no_database_keeps_its_mode(tmp_path: Path, name: str, said: str) -> None:
    """A path may be mistyped, and the gateway may be root."""
    (tmp_path / "notes").write_bytes(b"no database " * 99)
    (tmp_path / "etc").mkdir()
    path = tmp_path / name
    path.chmod(0o755)
    file = made(path)
    with pytest.raises(NotDone, match=said):
        await file.run(everything)
    await file.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


async def test_a_write_lock_held_elsewhere_is_waited_for_and_then_an_outage(tmp_path: Path) -> None:
    file = made(tmp_path / "x.db", timeout_s=2.0)
    await file.run(everything)
    writer = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await file.run(lambda connection: connection.execute("INSERT INTO t VALUES (8)").rowcount)
    assert await file.run(everything) == [7]
    writer.execute("ROLLBACK")
    writer.close()
    await file.close()


async def test_a_full_disk_and_a_file_that_is_gone_say_so_and_that_nothing_was_done(tmp_path: Path) -> None:
    file = made(tmp_path / "x.db")
    await file.run(everything)
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())
    with pytest.raises(NotDone, match=r"x\.db: database or disk is full"):
        await file.run(lambda connection: connection.execute("CREATE TABLE more (x)").rowcount)
    (tmp_path / "x.db").unlink()
    with pytest.raises(NotDone, match=r"x\.db: No such file or directory$"):
        await file.run(everything)
    await file.close()


async def test_what_may_have_been_written_is_not_said_not_to_have_been(tmp_path: Path) -> None:
    def ask(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    file = made(tmp_path / "x.db")
    with pytest.raises(StoreUnavailable, match="disk I/O error") as told:
        await file.run(ask)
    assert not isinstance(told.value, NotDone)
    await file.close()

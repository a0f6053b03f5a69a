from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.ports import KeyRefused, StoreUnavailable
from gateway.stores.keys_sqlite import SqliteKeys

from .key_contract import KeyContract, T, record


class TestSqliteKeys(KeyContract):
    @pytest.fixture
    async def keys(self, tmp_path: Path) -> AsyncIterator[SqliteKeys]:
        store = SqliteKeys(tmp_path / "keys.db")
        yield store
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteKeys]:
    store = SqliteKeys(path)
    await store.open()
    yield store
    await store.close()


# Another process: stands for `gitlab-gateway keys …` beside a running server.
_COMMAND = """
import asyncio, pathlib, sys
from gateway.core.key_record import KeyRecord
from gateway.ports import KeyRefused
from gateway.stores.keys_sqlite import SqliteKeys

async def main(path, act, *numbers):
    keys = SqliteKeys(pathlib.Path(path))
    for number in map(int, numbers):
        if act == "revoke":
            await keys.revoke(f"key_{number}", 1_800_000_100.0)
            continue
        try:
            await keys.put(KeyRecord(f"key_{number}", "backstage", number.to_bytes(32, "big"), 1_800_000_000.0))
            print("put")
        except KeyRefused:
            print("refused")
    await keys.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def command(path: Path, act: str, *numbers: int) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", _COMMAND, str(path), act, *map(str, numbers)),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().split()


async def test_a_server_sees_what_another_process_puts_and_revokes(store: SqliteKeys, path: Path) -> None:
    assert await store.find(record().digest) is None
    assert await command(path, "put", 1) == ["put"]
    found = await store.find(record().digest)
    assert found is not None
    assert found.revoked_at is None
    await command(path, "revoke", 1)
    found = await store.find(record().digest)
    assert found is not None
    assert found.revoked_at == T + 100


async def test_processes_that_put_at_once_never_make_a_third_live_key(store: SqliteKeys, path: Path) -> None:
    outcomes = await asyncio.gather(command(path, "put", 1, 2, 3), command(path, "put", 4, 5, 6))
    assert sorted(outcomes[0] + outcomes[1]) == ["put"] * 2 + ["refused"] * 4
    assert len(await store.list()) == 2


async def test_reading_goes_on_while_another_connection_holds_the_write_lock(store: SqliteKeys, path: Path) -> None:
    await store.put(record())
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        assert await store.find(record().digest) == record()
        with pytest.raises(StoreUnavailable):
            await store.put(record(2))
    finally:
        writer.execute("ROLLBACK")
        writer.close()
    await store.put(record(2))


async def test_the_files_are_for_their_owner_alone(store: SqliteKeys, path: Path) -> None:
    await store.put(record())
    modes = {name.name: stat.S_IMODE(name.stat().st_mode) for name in path.parent.iterdir()}
    assert modes == {"keys.db": 0o600, "keys.db-wal": 0o600, "keys.db-shm": 0o600}


async def test_a_key_outlives_its_store(path: Path) -> None:
    first = SqliteKeys(path)
    await first.put(record())
    await first.close()
    second = SqliteKeys(path)
    assert await second.list() == [record()]
    await second.close()


async def test_a_file_others_may_write_to_is_refused(path: Path) -> None:
    path.touch()
    path.chmod(0o620)
    store = SqliteKeys(path)
    with pytest.raises(StoreUnavailable, match="writable by others"):
        await store.open()
    await store.close()


async def test_a_file_of_another_version_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    store = SqliteKeys(path)
    with pytest.raises(StoreUnavailable, match="schema 7"):
        await store.open()
    await store.close()


@pytest.mark.parametrize("content", [b"no database " * 99], ids=["garbage"])
async def test_a_file_that_is_no_database_is_an_outage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    store = SqliteKeys(path)
    with pytest.raises(StoreUnavailable):
        await store.find(bytes(32))
    await store.close()


async def test_a_missing_directory_is_an_outage_that_ends_when_it_appears(tmp_path: Path) -> None:
    store = SqliteKeys(tmp_path / "later" / "keys.db")
    with pytest.raises(StoreUnavailable):
        await store.find(bytes(32))
    os.mkdir(tmp_path / "later")
    assert await store.find(bytes(32)) is None
    await store.close()


async def test_a_link_in_place_of_the_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere.db")
    store = SqliteKeys(path)
    with pytest.raises(StoreUnavailable):
        await store.open()
    assert not (tmp_path / "elsewhere.db").exists()
    await store.close()


async def test_a_refused_put_leaves_no_transaction_open(store: SqliteKeys) -> None:
    await store.put(record(1))
    await store.put(record(2))
    for _ in range(3):
        with pytest.raises(KeyRefused):
            await store.put(record(3))
    assert await store.revoke("key_1", T)


async def test_a_closed_store_answers_nothing_and_closes_again(path: Path) -> None:
    store = SqliteKeys(path)
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.find(bytes(32))


async def test_the_revision_tells_of_another_process(store: SqliteKeys, path: Path) -> None:
    await store.put(record())
    before = await store.revision()
    await command(path, "revoke", 1)
    assert await store.revision() != before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys SET identity = 'another'",
        "UPDATE keys SET cidr = '192.0.2.0/24'",
        "UPDATE keys SET expires_at = 1",
        "DELETE FROM keys",
        "INSERT INTO keys SELECT 'x', identity, x'00', 1, NULL, NULL, NULL, NULL, '', '', 'issued', '' FROM keys",
        "DELETE FROM revision",
    ],
)
async def test_the_revision_tells_of_what_somebody_did_by_hand(store: SqliteKeys, path: Path, statement: str) -> None:
    await store.put(record())
    before = await store.revision()
    hand = sqlite3.connect(path)
    with hand:
        hand.execute(statement)
    hand.close()
    after = await store.revision()
    assert after != before
    if "revision" in statement:
        assert await store.revision() != after, "none is never the same"


async def test_the_revision_is_of_one_file(store: SqliteKeys, path: Path, tmp_path: Path) -> None:
    """A backup in its place may have the very same number."""
    await store.put(record())
    before = await store.revision()
    hand = sqlite3.connect(path)
    hand.execute(f"VACUUM INTO '{tmp_path / 'copy.db'}'")
    hand.close()
    (tmp_path / "copy.db").chmod(0o600)
    (tmp_path / "copy.db").replace(path)
    assert await store.revision() != before
    assert await store.find(record().digest) is not None


async def test_the_revision_after_a_restored_backup_was_nobodys_before(
    store: SqliteKeys, path: Path, tmp_path: Path
) -> None:
    """Restored into the very file, as ``sqlite3 keys.db .restore`` does: counting on from there would repeat what gateways
    saw before it."""
    for number in (1, 2):
        await store.put(record(number))
    hand, backup = sqlite3.connect(path), sqlite3.connect(tmp_path / "backup.db")
    hand.backup(backup)
    assert await store.revoke("key_1", T)
    before = await store.revision()
    backup.backup(hand)
    assert await store.revoke("key_2", T)
    assert await store.revision() != before, "key_2 was not revoked before"
    hand.close()
    backup.close()


async def test_a_backup_as_the_page_makes_it_has_every_key(store: SqliteKeys, path: Path, tmp_path: Path) -> None:
    """A copy of the file alone has none of them: they are in the write-ahead log."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    (command, where) = re.findall(r'sqlite3 /var/lib/gitlab-gateway/keys\.db "(VACUUM INTO \'(\S+)\')"   #', page)[0]
    await store.put(record(1))
    copy, backup = tmp_path / "copy.db", tmp_path / "backup.db"
    shutil.copy(path, copy)
    hand = sqlite3.connect(path)
    hand.execute(command.replace(where, str(backup)))
    hand.close()
    await store.put(record(2))
    for found, keys in ((copy, set()), (backup, {"key_1"})):
        for beside in ("-wal", "-shm"):
            path.with_name(path.name + beside).unlink(missing_ok=True)
        found.rename(path)
        assert {one.id for one in await store.list()} == keys


async def test_a_file_from_before_there_were_revisions_gets_one(path: Path) -> None:
    first = SqliteKeys(path)
    await first.put(record())
    await first.close()
    hand = sqlite3.connect(path)
    with hand:
        for trigger in ("key_changed", "key_lost", "key_issued"):
            hand.execute(f"DROP TRIGGER {trigger}")
        hand.execute("DROP TABLE revision")
    hand.close()
    again = SqliteKeys(path)
    before = await again.revision()
    assert await again.revoke("key_1", T)
    assert await again.revision() != before
    await again.close()

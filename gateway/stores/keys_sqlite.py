"""Gateway keys in one SQLite file: the server reads while a command writes (WAL).

All calls run on one thread of their own, which owns the connection: nothing blocks the loop, and statements never overlap.
A cancelled call is not undone: its transaction happens whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..core.key_record import KEEP_DEAD_S, KEEP_EXCHANGED_S, LIVE_KEYS, MOST_EXCHANGED, KeyOrigin, KeyRecord, Replacing
from ..ports import KeyRefused, StoreUnavailable
from .keys_memory import crowded, taken, too_many

_Answer = TypeVar("_Answer")

_VERSION = 2
_SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    identity TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    created_at REAL NOT NULL,
    not_before REAL,
    expires_at REAL,
    revoked_at REAL,
    last_used_at REAL,
    note TEXT NOT NULL,
    cidr TEXT NOT NULL,
    origin TEXT NOT NULL,
    replaced_by TEXT NOT NULL
) STRICT
"""
_INDEX = "CREATE INDEX keys_by_origin ON keys (origin, identity)"
_COLUMNS = (
    "id, identity, digest, created_at, not_before, expires_at, revoked_at, last_used_at, note, cidr, origin, replaced_by"
)
_NAMES = tuple(_COLUMNS.split(", "))
_FIND = f"SELECT {_COLUMNS} FROM keys WHERE digest = ?"  # noqa: S608 — a constant
_GET = f"SELECT {_COLUMNS} FROM keys WHERE id = ?"  # noqa: S608
_LIST = f"SELECT {_COLUMNS} FROM keys WHERE :identity IS NULL OR identity = :identity ORDER BY created_at, id"  # noqa: S608
_INSERT = f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_LIVE = """
SELECT count(*) FROM keys
WHERE origin != 'exchanged' AND identity = ? AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)
"""
_EXCHANGED = "SELECT count(*) FROM keys WHERE origin = 'exchanged'"
_TAKEN = "SELECT count(*) FROM keys WHERE id = ? OR digest = ?"
_FORGET = """
DELETE FROM keys WHERE origin != 'exchanged' AND identity = :identity AND (revoked_at <= :before OR expires_at <= :before)
"""
_FORGET_EXCHANGED = "DELETE FROM keys WHERE origin = 'exchanged' AND (revoked_at <= :before OR expires_at <= :before)"
_END = "UPDATE keys SET expires_at = ?, revoked_at = ?, replaced_by = ? WHERE id = ?"
_REVOKE = "UPDATE keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?"
_TOUCH = "UPDATE keys SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?"


class SqliteKeys:
    """A KeyStore and KeyRegister in the file at ``path``, made with mode 0600 when missing.

    ``timeout_s`` bounds each call, waiting for another process's write included.
    """

    def __init__(self, path: Path, *, timeout_s: float = 2.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys-sqlite")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def open(self) -> None:
        """Open the file now rather than at the first call: a file that cannot be used stops the start."""
        await self._run(lambda _connection: None)

    async def find(self, digest: bytes) -> KeyRecord | None:
        row = await self._run(lambda connection: connection.execute(_FIND, (digest,)).fetchone())
        return None if row is None else _record(row)

    async def touch(self, key_id: str, at: float) -> None:
        await self._run(lambda connection: connection.execute(_TOUCH, (at, key_id)).rowcount)

    async def put(self, record: KeyRecord, replacing: Replacing | None = None) -> None:
        await self._run(lambda connection: _put(connection, record, replacing))

    async def get(self, key_id: str) -> KeyRecord | None:
        row = await self._run(lambda connection: connection.execute(_GET, (key_id,)).fetchone())
        return None if row is None else _record(row)

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        rows = await self._run(lambda connection: connection.execute(_LIST, {"identity": identity}).fetchall())
        return [_record(row) for row in rows]

    async def revoke(self, key_id: str, at: float) -> bool:
        return await self._run(lambda connection: connection.execute(_REVOKE, (at, key_id)).rowcount > 0)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Behind whatever is under way, on the connection's own thread; a hanging disk must not hang the shutdown too.
        self._thread.submit(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _run(self, ask: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        if self._closed:
            raise StoreUnavailable("the key store is closed")

        def on_thread() -> _Answer:
            if self._connection is None:
                self._connection = _connect(self._path, self._timeout_s)
            return ask(self._connection)

        try:
            async with asyncio.timeout(self._timeout_s * 1.5):
                return await asyncio.get_running_loop().run_in_executor(self._thread, on_thread)
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._path} did not answer in time") from error
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self._path}: {error}") from error

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    with contextlib.suppress(FileExistsError):
        # SQLite gives its -wal and -shm files the mode of this one.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    if stat.S_IMODE(path.stat().st_mode) & 0o022:
        raise StoreUnavailable(f"{path} is writable by others, who could have put keys of their own there: chmod 0600 it")
    connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a revocation survives the power cut right after it
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.execute(_SCHEMA)
                connection.execute(_INDEX)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise StoreUnavailable(f"{path} was written by another gateway version (schema {version})")
    except BaseException:
        connection.close()
        raise
    return connection


def _put(connection: sqlite3.Connection, record: KeyRecord, replacing: Replacing | None) -> None:
    now = record.created_at
    connection.execute("BEGIN IMMEDIATE")  # judged and written under one write lock; a refusal rolls it back
    with connection:
        if connection.execute(_TAKEN, (record.id, record.digest)).fetchone()[0]:
            raise KeyRefused(taken(record))
        if replacing is not None:
            row = connection.execute(_GET, (replacing.id,)).fetchone()
            older = None if row is None else _record(row)
            refused = replacing.refuses(older, record)
            if older is None or refused is not None:
                raise KeyRefused(refused)
            ended = older.replaced(record.id, replacing.until, now)
            connection.execute(_END, (ended.expires_at, ended.revoked_at, ended.replaced_by, ended.id))
        if record.counted:
            if connection.execute(_LIVE, (record.identity, now)).fetchone()[0] >= LIVE_KEYS:
                raise KeyRefused(too_many(record))
            connection.execute(_FORGET, {"identity": record.identity, "before": now - KEEP_DEAD_S})
        else:
            connection.execute(_FORGET_EXCHANGED, {"before": now - KEEP_EXCHANGED_S})
            if connection.execute(_EXCHANGED).fetchone()[0] >= MOST_EXCHANGED:
                raise KeyRefused(crowded())
        connection.execute(
            _INSERT,
            (
                record.id,
                record.identity,
                record.digest,
                record.created_at,
                record.not_before,
                record.expires_at,
                record.revoked_at,
                record.last_used_at,
                record.note,
                " ".join(record.cidr),
                record.origin.value,
                record.replaced_by,
            ),
        )


def _record(row: tuple[Any, ...]) -> KeyRecord:
    columns = dict(zip(_NAMES, row, strict=True))
    columns["cidr"] = tuple(columns["cidr"].split())
    columns["origin"] = KeyOrigin(columns["origin"])
    return KeyRecord(**columns)

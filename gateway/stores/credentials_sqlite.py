"""Sealed upstream tokens in one SQLite file, for a gateway that stands alone: a SealedStore.

Who reads is remembered by this process alone; who leads is written in the file, so that two processes on one file agree.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from .credential_vault import SealedRecord, SealedSnapshot
from .sqlite_file import SqliteFile

_VERSION = 1
_SCHEMA = (
    "CREATE TABLE credentials (id TEXT PRIMARY KEY, version INTEGER NOT NULL, octets BLOB NOT NULL) STRICT",
    """
    CREATE TABLE leader (
        one INTEGER PRIMARY KEY CHECK (one = 1), holder TEXT NOT NULL, fence INTEGER NOT NULL, until REAL NOT NULL
    ) STRICT
    """,
    "INSERT INTO leader VALUES (1, '', 0, 0)",
)
_READ = "SELECT id, version, octets FROM credentials ORDER BY id"
_ADD = "INSERT INTO credentials (id, version, octets) VALUES (:id, :version, :octets) ON CONFLICT DO NOTHING"
_REPLACE = "UPDATE credentials SET version = :version, octets = :octets WHERE id = :id AND version = :expect"
_FENCE = "SELECT fence FROM leader"
_KEEP = "UPDATE leader SET until = :until WHERE holder = :holder AND until > :now RETURNING fence"
_LEAD = """
UPDATE leader SET holder = :holder, until = :until, fence = fence + 1
WHERE until <= :now OR until > :now + 2 * (:until - :now) RETURNING fence
"""
_RESIGN = "UPDATE leader SET until = 0 WHERE holder = ?"


class SqliteCredentials:
    """A SealedStore in the file at ``path``. ``wall`` gives Unix seconds."""

    def __init__(self, path: Path, *, wall: Callable[[], float], timeout_s: float = 2.0) -> None:
        self._file = SqliteFile(path, _SCHEMA, _VERSION, timeout_s=timeout_s)
        self._wall = wall
        self._readers: dict[str, float] = {}

    async def read(self, reader: str) -> SealedSnapshot:
        rows = await self._file.run(lambda connection: connection.execute(_READ).fetchall())
        now = self._wall()
        self._readers[reader] = now
        return SealedSnapshot(tuple(SealedRecord(*row) for row in rows), now, dict(self._readers))

    async def put(self, record: SealedRecord, expect: int, fence: int | None) -> bool:
        return await self._file.run(lambda connection: _put(connection, record, expect, fence))

    async def lead(self, holder: str, lease_s: float) -> int | None:
        now = self._wall()
        return await self._file.run(lambda connection: _lead(connection, holder, now, now + lease_s))

    async def resign(self, holder: str) -> None:
        await self._file.run(lambda connection: connection.execute(_RESIGN, (holder,)).rowcount)

    async def durability_warning(self) -> str:
        return ""

    async def close(self) -> None:
        await self._file.close()


def _put(connection: sqlite3.Connection, record: SealedRecord, expect: int, fence: int | None) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        if fence is not None and connection.execute(_FENCE).fetchone()[0] != fence:
            return False
        row = {"id": record.id, "version": record.version, "octets": record.octets, "expect": expect}
        return connection.execute(_REPLACE if expect else _ADD, row).rowcount == 1


def _lead(connection: sqlite3.Connection, holder: str, now: float, until: float) -> int | None:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        # A lease that ends too far ahead does not count: the clock that it was taken by has been set back since.
        words = {"holder": holder, "now": now, "until": until}
        # Fetched to the end: a statement with RETURNING runs only as far as its rows are read.
        rows = connection.execute(_KEEP, words).fetchall() or connection.execute(_LEAD, words).fetchall()
    return int(rows[0][0]) if rows else None

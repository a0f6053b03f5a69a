"""Gateway keys in one SQLite file: the server reads while a command writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from ..core.key_record import KEEP_DEAD_S, KEEP_EXCHANGED_S, LIVE_KEYS, MOST_EXCHANGED, KeyOrigin, KeyRecord, Replacement
from ..ports import KeyRefused
from .keys_memory import duplicate_message, too_many_exchanged_message, too_many_message
from .sqlite_file import SqliteFile

_VERSION = 2
_TABLE = """
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
# The revision: whatever changes a key, a hand's own statement too. A key that had ended is forgotten without a word.
# A random one each time: after a backup was restored into this very file, counting would repeat numbers seen before it.
_REVISION_TABLE = "CREATE TABLE IF NOT EXISTS revision (number INTEGER NOT NULL) STRICT"
_REVISION_ROW = "INSERT INTO revision SELECT abs(random() / 2) WHERE NOT EXISTS (SELECT 1 FROM revision)"
_NEXT = "BEGIN UPDATE revision SET number = abs(random() / 2); END"
_ON_CHANGE = f"""
CREATE TRIGGER IF NOT EXISTS key_changed
AFTER UPDATE OF id, identity, digest, not_before, expires_at, revoked_at, cidr, origin ON keys {_NEXT}
"""
_ON_LOSS = f"""
CREATE TRIGGER IF NOT EXISTS key_lost AFTER DELETE ON keys
WHEN old.revoked_at IS NULL AND (old.expires_at IS NULL OR old.expires_at > CAST(strftime('%s', 'now') AS REAL)) {_NEXT}
"""
_ON_ISSUE = f"CREATE TRIGGER IF NOT EXISTS key_issued AFTER INSERT ON keys WHEN new.origin != 'exchanged' {_NEXT}"
_ALWAYS = (_REVISION_TABLE, _REVISION_ROW, _ON_CHANGE, _ON_LOSS, _ON_ISSUE)
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
    """A KeyStore and KeyRegister in the file at ``path``, made with mode 0600 when missing, unless ``make`` says otherwise.

    ``timeout_s`` bounds the wait for another process's write, and one and a half times as much bounds each call.
    """

    def __init__(self, path: Path, *, timeout_s: float = 2.0, make: bool = True) -> None:
        self._file = SqliteFile(path, (_TABLE, _INDEX), _VERSION, always=_ALWAYS, timeout_s=timeout_s, make=make)

    async def open(self) -> None:
        """Open the file now rather than at the first call: a file that cannot be used stops the start."""
        await self._file.run(lambda _connection: None)

    async def find(self, digest: bytes) -> KeyRecord | None:
        row = await self._file.run(lambda connection: connection.execute(_FIND, (digest,)).fetchone())
        return None if row is None else _record(row)

    async def revision(self) -> object:
        def read(connection: sqlite3.Connection) -> object:
            row = connection.execute("SELECT number FROM revision").fetchone()
            # Of this very file: another one in its place may have the same number.
            return (self._file.opened, row[0]) if row is not None else object()

        return await self._file.run(read)

    async def touch(self, key_id: str, at: float) -> None:
        await self._file.run(lambda connection: connection.execute(_TOUCH, (at, key_id)).rowcount)

    async def put(self, record: KeyRecord, replacing: Replacement | None = None) -> None:
        await self._file.run(lambda connection: _put(connection, record, replacing))

    async def get(self, key_id: str) -> KeyRecord | None:
        row = await self._file.run(lambda connection: connection.execute(_GET, (key_id,)).fetchone())
        return None if row is None else _record(row)

    async def list(self, identity: str | None = None) -> list[KeyRecord]:
        rows = await self._file.run(lambda connection: connection.execute(_LIST, {"identity": identity}).fetchall())
        return [_record(row) for row in rows]

    async def revoke(self, key_id: str, at: float) -> bool:
        return await self._file.run(lambda connection: connection.execute(_REVOKE, (at, key_id)).rowcount > 0)

    async def close(self) -> None:
        await self._file.close()


def _put(connection: sqlite3.Connection, record: KeyRecord, replacing: Replacement | None) -> None:
    now = record.created_at
    connection.execute("BEGIN IMMEDIATE")  # judged and written under one write lock; a refusal rolls it back
    with connection:
        if connection.execute(_TAKEN, (record.id, record.digest)).fetchone()[0]:
            raise KeyRefused(duplicate_message(record))
        if replacing is not None:
            row = connection.execute(_GET, (replacing.id,)).fetchone()
            older = None if row is None else _record(row)
            refused = replacing.refusal_reason(older, record)
            if older is None or refused is not None:
                raise KeyRefused(refused)
            ended = older.replaced(record.id, replacing.until, now)
            connection.execute(_END, (ended.expires_at, ended.revoked_at, ended.replaced_by, ended.id))
        if record.counted:
            if connection.execute(_LIVE, (record.identity, now)).fetchone()[0] >= LIVE_KEYS:
                raise KeyRefused(too_many_message(record))
            connection.execute(_FORGET, {"identity": record.identity, "before": now - KEEP_DEAD_S})
        else:
            connection.execute(_FORGET_EXCHANGED, {"before": now - KEEP_EXCHANGED_S})
            if connection.execute(_EXCHANGED).fetchone()[0] >= MOST_EXCHANGED:
                raise KeyRefused(too_many_exchanged_message())
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

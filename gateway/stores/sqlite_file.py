"""One SQLite file and the thread that owns its connection: nothing blocks the loop, and statements never overlap.

Readers go on while another process writes (WAL). A cancelled call is not undone: its transaction happens whole or not
at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..ports import NotDone, StoreUnavailable

log = logging.getLogger("gateway.stores")

_Answer = TypeVar("_Answer")

_NOT_WRITTEN = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY}
)
"""Errors after which SQLite has not begun, or has rolled back: nothing was written."""


class SqliteFile:
    """The file at ``path``; when another file takes its place, that one is used.

    Args:
        path: Where the file is.
        schema: Statements that make its tables.
        version: Of the schema; a file of another version is refused.
        always: Statements run whenever the file is opened: they add what a file of this version may lack.
        timeout_s: The longest wait for another process's write; a whole call may take one and a half times as long.
        make: Make a missing file at the first call, with mode 0600; otherwise every call fails until it is there.
    """

    def __init__(
        self,
        path: Path,
        schema: tuple[str, ...],
        version: int,
        *,
        always: tuple[str, ...] = (),
        timeout_s: float = 2.0,
        make: bool = True,
    ) -> None:
        self._path = path
        self._make = make
        self._schema = schema
        self._version = version
        self._always = always
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"sqlite-{path.stem}")
        self._connection: sqlite3.Connection | None = None
        self.opened = (0, 0)
        """Which file the connection is to: its device and inode."""
        self._closed = False

    async def run(self, ask: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Call ``ask`` with the connection, on the file's own thread, and return its result. Raises StoreUnavailable,
        NotDone."""
        if self._closed:
            raise NotDone(f"{self._path} is closed")

        def on_thread() -> _Answer:
            try:
                connection = self._current()
            except (sqlite3.Error, OSError) as error:
                raise NotDone(f"{self._path}: {_words(error)}") from error
            return ask(connection)

        try:
            async with asyncio.timeout(self._timeout_s * 1.5):
                return await asyncio.get_running_loop().run_in_executor(self._thread, on_thread)
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._path} did not answer in time") from error
        except sqlite3.Error as error:
            # Only the low octet: the others say more of the same error.
            kind = NotDone if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_WRITTEN else StoreUnavailable
            raise kind(f"{self._path}: {error}") from error

    def _current(self) -> sqlite3.Connection:
        """The connection to the file that is there now."""
        if self._connection is not None and _identity(self._path) != self.opened:
            # A backup was put in its place: in the former file no revocation would ever be heard of. SQLite sees that its
            # file moved, and leaves the -wal file of that name alone, which now belongs to the new one.
            connection, self._connection = self._connection, None
            connection.close()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Behind whatever is under way, on the connection's own thread; a hanging disk must not hang the shutdown too.
        self._thread.submit(self._disconnect)
        self._thread.shutdown(wait=False)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> sqlite3.Connection:
        path = self._path
        if not self._make and not path.exists():
            raise NotDone(
                f"{path} is missing: is this the gateway's configuration, and was anything stored yet? No file was created"
            )
        with contextlib.suppress(FileExistsError):
            # SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        self.opened = _identity(path)  # before it is opened: a file that takes its place meanwhile is another one
        _require_ours(path)
        connection = sqlite3.connect(path, timeout=self._timeout_s, isolation_level=None)
        try:
            connection.execute(
                "PRAGMA schema_version"
            )  # fails where it is no database: then its mode is not ours to change
            _close_to_others(path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # what was written survives the power cut right after it
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in self._schema:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {self._version}")
                elif version != self._version:
                    raise NotDone(f"{path} was written by another gateway version (schema {version})")
                for statement in self._always:
                    connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection


def _require_ours(path: Path) -> None:
    """Refuse what is no file, and files that others could have changed."""
    if not path.is_file():
        raise NotDone(f"{path} is not a file")
    for one, mode in _modes(path):
        if mode & 0o022:
            raise NotDone(f"{one} is writable by others, who could have changed its contents: chmod 0600 it")


def _close_to_others(path: Path) -> None:
    """Close files that others could read, such as a restored backup. These hold only hashes and sealed tokens, the keys to
    which are elsewhere."""
    for one, mode in _modes(path):
        if mode & 0o077:
            one.chmod(0o600)
            log.warning("%s could be read by others (mode %04o): it is 0600 now", one, mode)


def _modes(path: Path) -> Iterator[tuple[Path, int]]:
    """The database's files that are there, with their modes."""
    for one in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
        with contextlib.suppress(FileNotFoundError):
            yield one, stat.S_IMODE(one.stat().st_mode)


def _words(error: Exception) -> str:
    """The error's text without the path, which the message already names."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _identity(path: Path) -> tuple[int, int]:
    """Which file is there. Raises OSError where there is none."""
    found = path.stat()
    return found.st_dev, found.st_ino

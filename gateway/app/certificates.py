"""New certificates without a restart: on SIGHUP, and automatically when a file has changed.

Files are read in a thread, because reading the system's authorities takes as long as a thousand requests; what was read is
put in place in the event loop. One task does both, one reader after the other, so that an older reading never comes last.
The thread runs at a lower priority: otherwise it would take half of the core that requests need.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("gateway.app")

WATCH_S = 10.0
"""How often the files are checked. Kubernetes replaces a mounted secret without sending a signal."""

_NICENESS = 10  # a tenth of the core while the event loop could use all of it, and whatever the loop leaves idle

Reader = Callable[[], Callable[[], None]]
"""Reads files in a thread and returns the function that puts what was read in place, which is called in the event loop.
Either may raise OSError or ssl.SSLError; what was in place before then stays."""


class Certificates:
    """Certificate files, and the readers to call when they change. A file that can't be used changes nothing, and is tried
    again when it changes.

    Args:
        files: The files to check for changes.
        readers: The readers by the setting that names their files, which the log mentions.
        expires_at: Returns when the certificate that is served expires, in Unix seconds, ``inf`` where that is not known;
            None: none is served.
    """

    def __init__(
        self, files: Sequence[str], readers: Mapping[str, Reader], expires_at: Callable[[], float] | None = None
    ) -> None:
        self._files = tuple(files)
        self._readers = dict(readers)
        self._expires_at = expires_at
        self._seen = self._states()
        self._reload_requested = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "certificates", _lower_priority)
        self._task: asyncio.Task[None] | None = None
        self.failing = False

    @property
    def left_s(self) -> float | None:
        """Seconds until the certificate that is served expires; negative once it has, ``inf`` where that is not known,
        None where none is served."""
        return self._expires_at() - time.time() if self._expires_at is not None else None

    def reload(self) -> None:
        """Have the files read soon, whether anything changed or not; once more if they are being read at the moment."""
        self._reload_requested.set()

    def watch(self, interval_s: float = WATCH_S) -> None:
        """From now on, do what ``reload`` asks for, and check whether any file has changed."""
        self._task = asyncio.get_running_loop().create_task(
            self._watch(interval_s if self._files else None), name="certificates"
        )

    async def close(self) -> None:
        """Stop watching. What the thread is still reading is no longer put in place."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False)

    async def _watch(self, interval_s: float | None) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._reload_requested.wait()
            if self._reload_requested.is_set() or self._states() != self._seen:
                self._reload_requested.clear()
                await self._read()

    async def _read(self) -> None:
        # Before the files are read: a change made meanwhile is then found at the next check.
        self._seen = self._states()
        failing = False
        for setting, read in self._readers.items():
            try:
                put = await asyncio.get_running_loop().run_in_executor(self._thread, read)
                put()
            except (OSError, ssl.SSLError) as error:
                failing = True
                log.error(
                    "a certificate could not be reloaded; the previous one stays in use: %s: %s", setting, _words(error)
                )
            except Exception:
                failing = True
                log.exception("a certificate could not be reloaded; the previous one stays in use: %s", setting)
        self.failing = failing
        if not failing:
            log.info("certificates reloaded")

    def _states(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state(file) for file in self._files)


def _lower_priority() -> None:
    """Lower the priority of this thread alone, which only Linux can do."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), before + _NICENESS)


def _words(error: OSError) -> str:
    """What the system or a reader says about the error."""
    file = f"{error.filename}: " if error.filename is not None else ""
    return f"{file}{error.strerror}" if error.strerror else type(error).__name__


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size

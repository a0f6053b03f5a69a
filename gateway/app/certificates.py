"""New certificates without a restart: on SIGHUP, and by itself when a file has changed.

Files are read in a thread, for reading the system's authorities takes as long as a thousand requests; what was read is put
in place in the event loop. One task does both, one reader after the other, so that an older reading never comes last.
The thread steps back behind the others, or requests would share their core with it by halves.
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
"""How often the files are looked at. Kubernetes swaps a mounted secret without a signal."""

_NICENESS = 10  # a tenth of a core that the event loop could use whole; all that it leaves

Reader = Callable[[], Callable[[], None]]
"""Called in a thread, it reads and gives what puts that in place, which is called in the event loop. Both may raise OSError
or ssl.SSLError; then what was there before stays."""


class Certificates:
    """Files, and who must read them again. A file that can't be used changes nothing and is tried again when it changes.

    Args:
        files: Looked at for changes.
        readers: By the setting that names their files, for the log.
        expires_at: When the certificate that is served ends, in Unix seconds, ``inf``: not known; None: none is served.
    """

    def __init__(
        self, files: Sequence[str], readers: Mapping[str, Reader], expires_at: Callable[[], float] | None = None
    ) -> None:
        self._files = tuple(files)
        self._readers = dict(readers)
        self._expires_at = expires_at
        self._seen = self._look()
        self._wanted = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "certificates", _step_back)
        self._task: asyncio.Task[None] | None = None
        self.failing = False

    @property
    def left_s(self) -> float | None:
        """Until the certificate that is served ends; less than 0 once it has, ``inf``: not known, None: none is served."""
        return self._expires_at() - time.time() if self._expires_at is not None else None

    def reload(self) -> None:
        """Soon, whether anything changed or not; once more if they are being read at the moment."""
        self._wanted.set()

    def watch(self, interval_s: float = WATCH_S) -> None:
        """From now on do what ``reload`` asks for, and look whether a file is another one now."""
        self._task = asyncio.get_running_loop().create_task(
            self._watch(interval_s if self._files else None), name="certificates"
        )

    async def close(self) -> None:
        """What a thread is still reading is not put in place any more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=False)

    async def _watch(self, interval_s: float | None) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._wanted.wait()
            if self._wanted.is_set() or self._look() != self._seen:
                self._wanted.clear()
                await self._read()

    async def _read(self) -> None:
        # Before they are read: a change meanwhile is found at the next look.
        self._seen = self._look()
        failing = False
        for setting, read in self._readers.items():
            try:
                put = await asyncio.get_running_loop().run_in_executor(self._thread, read)
                put()
            except (OSError, ssl.SSLError) as error:
                failing = True
                log.error("a certificate could not be read again; the one before stays: %s: %s", setting, _words(error))
            except Exception:
                failing = True
                log.exception("a certificate could not be read again; the one before stays: %s", setting)
        self.failing = failing
        if not failing:
            log.info("certificates read again")

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state(file) for file in self._files)


def _step_back() -> None:
    """This thread alone, which only Linux can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), before + _NICENESS)


def _words(error: OSError) -> str:
    """What the system or a reader says of it."""
    file = f"{error.filename}: " if error.filename is not None else ""
    return f"{file}{error.strerror}" if error.strerror else type(error).__name__


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size

"""New certificates without a restart: on SIGHUP, and by itself when a file has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Callable, Sequence

log = logging.getLogger("gateway.app")

WATCH_S = 10.0
"""How often the files are looked at. Kubernetes swaps a mounted secret without a signal."""


class Certificates:
    """Files, and who must read them again. A file that can't be used changes nothing and is tried again when it changes."""

    def __init__(self, files: Sequence[str], readers: Sequence[Callable[[], None]]) -> None:
        self._files = tuple(files)
        self._readers = tuple(readers)
        self._seen = self._look()
        self._task: asyncio.Task[None] | None = None
        self.failing = False

    def reload(self) -> None:
        """Now, whether anything changed or not."""
        self._seen = self._look()
        self.failing = False
        for read in self._readers:
            try:
                read()
            except (OSError, ssl.SSLError) as error:
                self.failing = True
                log.error("a certificate could not be read again; the one before stays: %s", type(error).__name__)
        if not self.failing:
            log.info("certificates read again")

    def check(self) -> None:
        """Reload if a file is another one now."""
        if self._look() != self._seen:
            self.reload()

    def watch(self, interval_s: float = WATCH_S) -> None:
        """Check from now on; of no effect without files."""
        if self._files:
            self._task = asyncio.get_running_loop().create_task(self._watch(interval_s), name="certificates")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            self.check()

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state(file) for file in self._files)


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size

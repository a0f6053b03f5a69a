"""Lets those who serve go first while a new worker starts: most of a start is importing, a quarter of a second of CPU time.

On Linux niceness belongs to a thread, not to a process (setpriority(2)), and what was raised can't be lowered again without
a privilege. So what may take longer is done by a thread of its own, whose niceness ends with it. Where the kernel first
shares CPU time among sessions (sched_autogroup, sched(7)), it is the session's that counts, and that can be had back.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType

NICENESS = 10
"""A tenth of a core where others want all of it, and all of it where they don't."""
_SESSION = Path("/proc/self/autogroup")
_AGAIN_S = 0.02


def imported(name: str) -> ModuleType:
    """Import a module at low priority, where the system has one for threads and sessions; blocking.

    For a process that is alone in its session, as a worker is.
    """
    with _session_steps_back(), ThreadPoolExecutor(1, initializer=_thread_steps_back) as executor:
        try:
            importing = executor.submit(import_module, name)
        except RuntimeError:  # a limit of processes has no room for a thread
            return import_module(name)
        return importing.result()


def _thread_steps_back() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid the call
            os.nice(NICENESS)  # of this thread


@contextlib.contextmanager
def _session_steps_back() -> Iterator[None]:
    try:
        before = int(_SESSION.read_text().rpartition(" ")[2])
        if before < 0:
            raise PermissionError("without a privilege, it could not be had back")
        _SESSION.write_text(str(before + NICENESS))
    except (OSError, ValueError):  # no such sharing, here or at all
        yield
        return
    try:
        yield
    finally:
        while True:
            try:
                _SESSION.write_text(str(before))
                break
            except BlockingIOError:  # the kernel takes a change every tenth of a second
                time.sleep(_AGAIN_S)

"""What every process that serves does first, before it holds a secret or a socket."""

from __future__ import annotations

import contextlib
import os
import resource


def harden() -> None:
    """No core dump may hold a token; as many connections as the system lets us have; and no socket in place of a standard
    stream that somebody closed. Children inherit all three."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""What every process that serves does first, before it holds a secret or a socket."""

from __future__ import annotations

import contextlib
import resource


def harden() -> None:
    """No core dump may hold a token; and as many connections as the system lets us have. Children inherit both."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 20)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""How long a link waits, changed while it stands: what must be answered is waited for, what won't be is not."""

from __future__ import annotations

from gateway.stores.redis_link import RedisLink

LONG_S = 60.0
"""For what is answered, however busy the machine is."""


def waits(link: RedisLink, timeout_s: float) -> None:
    """Of calls from now on."""
    if link._timer is not None:
        link._timer.cancel()
        link._timer = None
    link._timeout_s = timeout_s

"""How long is waited: what must come is waited for, however busy the machine is, and what won't is not."""

from __future__ import annotations

import time

from gateway.stores.redis_link import RedisLink
from gateway.stores.redis_subscriber import RedisSubscriber

LONG_S = 60.0
"""For what is answered, however busy the machine is."""


def comes_unread(subscriber: RedisSubscriber) -> None:
    """What was published, while the event loop stands still: Redis may answer its publisher first."""
    ends_at = time.monotonic() + LONG_S
    while not subscriber.has_unread:
        assert time.monotonic() < ends_at
        time.sleep(0.001)


def waits(link: RedisLink, timeout_s: float) -> None:
    """A link, of calls from now on."""
    if link._timer is not None:
        link._timer.cancel()
        link._timer = None
    link._timeout_s = timeout_s

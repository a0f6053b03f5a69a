"""The timer that is moved more often than it fires."""

from __future__ import annotations

import asyncio

from gateway.upstream.deadline import Deadline


async def waited(*settings: float | None, within_s: float = 10.0) -> float | None:
    """Seconds until it expired after these settings (None: cleared), or None when it did not within ``within_s``."""
    loop = asyncio.get_running_loop()
    expired: asyncio.Future[float] = loop.create_future()
    deadline = Deadline(loop, lambda: expired.set_result(loop.time()))
    started = loop.time()
    for in_s in settings:
        if in_s is None:
            deadline.clear()
        else:
            deadline.set(in_s)
    try:
        async with asyncio.timeout(within_s):
            return await expired - started
    except TimeoutError:
        return None
    finally:
        deadline.cancel()


async def test_it_expires_at_its_last_setting() -> None:
    for settings, least in (((0.03,), 0.03), ((0.01, 0.05), 0.05), ((60.0, 0.03), 0.03), ((0.01, None, 0.04), 0.04)):
        took = await waited(*settings)
        assert took is not None
        assert took >= least - 0.002


async def test_cleared_it_does_not() -> None:
    assert await waited(0.01, None, within_s=0.2) is None


async def test_cancelled_it_lets_go() -> None:
    loop = asyncio.get_running_loop()
    deadline = Deadline(loop, lambda: None)
    deadline.cancel()
    deadline.set(0.01)
    deadline.cancel()
    assert await waited(0.02) is not None

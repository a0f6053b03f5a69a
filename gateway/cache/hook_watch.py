"""Do GitLab's hooks still come? GitLab disables hooks that fail, and notifies nobody here.

When none has come for ``max_silence_s``, answers are no longer reused without asking. A hook arrives at one gateway and
counts for all that share its store: the store remembers the last one, as the purge of a tag that nothing carries.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ports import CacheStore

_HEARD, _NEVER = b"hooks:heard", b"hooks:never"
_LOOKS = 20  # per `max_silence_s`


class HookWatch:
    """One gateway's watch over its hooks.

    Args:
        store: The cache's.
        monotonic: Seconds.
        max_silence_s: After so long without any hook, none is believed to come.
    """

    def __init__(self, store: CacheStore, monotonic: Callable[[], float], max_silence_s: float) -> None:
        self._store = store
        self._monotonic = monotonic
        self._max_silence_s = max_silence_s
        self._look_again_at = -1.0
        self._heard_at: float | None = None

    @property
    def silence_s(self) -> float | None:
        """The time since the last hook that is known of; None: none ever came."""
        return None if self._heard_at is None else max(0.0, self._monotonic() - self._heard_at)

    @property
    def silent(self) -> bool:
        """Whether hooks no longer come, as far as is known without asking the store."""
        silence_s = self.silence_s
        return silence_s is None or silence_s >= self._max_silence_s

    @property
    def known_alive(self) -> bool:
        """Whether hooks still come, by what the store said a moment ago; if not, ``check_alive`` must tell."""
        return self._monotonic() < self._look_again_at and not self.silent

    async def record_hook(self) -> None:
        """Note that a hook came to this gateway."""
        self._heard_at = self._monotonic()
        await self._store.purge((_HEARD,))

    async def check_alive(self) -> bool:
        """Whether hooks still come. Asks the store now and then for what other gateways heard."""
        now = self._monotonic()
        if now >= self._look_again_at:
            self._look_again_at = now + self._max_silence_s / _LOOKS
            lookup = await self._store.get(_HEARD, (_HEARD,))
            # A store that forgot some purges takes everything for purged, whether hooks came or not.
            floor = await self._store.get(_NEVER, (_NEVER,))
            if lookup.available and floor.available and lookup.version > floor.version:
                heard_at = now - max(0, lookup.stamp - lookup.version) / 1_000_000
                self._heard_at = heard_at if self._heard_at is None else max(self._heard_at, heard_at)
        return not self.silent

"""Do GitLab's hooks still come? GitLab switches hooks off that fail, and says so to nobody here.

When none came for ``max_silence_s``, answers are no longer reused without asking. Hooks arrive at one gateway and count for
all on one store: the store remembers the last one, as the purge of a tag that nothing carries.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ports import CacheStore

_HEARD, _NEVER = b"hooks:heard", b"hooks:never"
_LOOKS = 20  # in the time of `max_silence_s`


class HookWatch:
    """The ear of one gateway.

    Args:
        store: The cache's.
        monotonic: Seconds.
        max_silence_s: Longer without any hook, and none is believed to come.
    """

    def __init__(self, store: CacheStore, monotonic: Callable[[], float], max_silence_s: float) -> None:
        self._store = store
        self._monotonic = monotonic
        self._max_silence_s = max_silence_s
        self._look_again_at = -1.0
        self._heard_at: float | None = None

    @property
    def silence_s(self) -> float | None:
        """Since the last hook that is known of; None: none ever came."""
        return None if self._heard_at is None else max(0.0, self._monotonic() - self._heard_at)

    @property
    def silent(self) -> bool:
        """As far as is known without asking the store."""
        silence_s = self.silence_s
        return silence_s is None or silence_s >= self._max_silence_s

    @property
    def heard_lately(self) -> bool:
        """They come, as far as was asked a moment ago; otherwise ``listening`` must say."""
        return self._monotonic() < self._look_again_at and not self.silent

    async def heard(self) -> None:
        """A hook came, here."""
        self._heard_at = self._monotonic()
        await self._store.purge((_HEARD,))

    async def listening(self) -> bool:
        """Do they come? Asks the store now and then for what other gateways heard."""
        now = self._monotonic()
        if now >= self._look_again_at:
            self._look_again_at = now + self._max_silence_s / _LOOKS
            lookup = await self._store.get(_HEARD, (_HEARD,))
            # A store that forgot purges takes everything for purged, whether hooks came or not.
            floor = await self._store.get(_NEVER, (_NEVER,))
            if lookup.available and floor.available and lookup.version > floor.version:
                heard_at = now - max(0, lookup.stamp - lookup.version) / 1_000_000
                self._heard_at = heard_at if self._heard_at is None else max(self._heard_at, heard_at)
        return not self.silent

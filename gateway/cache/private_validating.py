"""A stored answer that is revalidated: does what ``PrivateAsking`` does on a 304, where nothing has to be waited for.

Any other answer of GitLab is for a ``fetch``.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..core.cache_control import response_directives
from ..core.cache_entry import Entry
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.caching import validators
from ..core.head_form import Blanks, Values
from ..core.messages import Fields, ResponseHead
from ..core.private_caching import of_this_answer, validator_matches
from ..ports import Lookup
from ..reply import Reply
from .contract import CacheOutcome, Found, Like
from .mould import Cast, Told
from .private_asking import Joined, Landing, PrivateAsking
from .private_leading import Placing


class PrivateValidating(msgspec.Struct, eq=False):
    """Leads a revalidation; see ``contract.Leading``."""

    _asking: PrivateAsking
    """That of the same cache."""
    _store: Placing
    """Where ``_entry`` is."""
    _like: Like
    _key: bytes
    _lookup: Lookup
    """The lookup that found it."""
    flight: Joined
    """The flight that it leads."""
    _now: Callable[[], float]
    """Unix seconds."""
    _version: int
    """The version of ``_like`` at the lookup."""
    _entry: Entry
    _reason: CacheReason
    """Why GitLab is asked."""
    _requested_at: float

    __repr__ = object.__repr__

    @property
    def conditions(self) -> Fields:
        return validators(self._entry)

    def abandon(self) -> None:
        self.flight.abandon()

    def found(self) -> Found:
        return Found(self._lookup, self._version)

    def answered(self, head: ResponseHead, whole: bytes) -> Told | None:
        del head, whole
        return None

    def cast(self, blanks: Blanks, head: ResponseHead) -> Cast | None:
        del blanks, head
        return None

    def likewise(self, cast: Cast, values: Values, whole: bytes) -> Told | None:
        del cast, values, whole
        return None

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome] | None:
        entry, like, asking = self._entry, self._like, self._asking
        if not validator_matches(entry, head):
            return None
        at = self._now()
        fresh = asking.freshened(entry, head, self._requested_at, at)
        outcome = CacheOutcome(CacheStatus.REVALIDATED, self._reason)
        outcome.upstream_status, outcome.stored = 304, Stored.FRESHENED
        if response_directives(head.fields).no_store:
            self._store.drop(self._key)
            outcome.stored = Stored.NO_STORE
        elif not self._store.place(self._key, fresh, like.keep_s, like.tags, self._lookup.stamp):
            outcome.stored = Stored.INVALIDATED
        self.flight.land(Landing(fresh, 304))
        return asking.served(fresh, outcome, like.if_none_match, like.reuse_s, at, of_this_answer(head.fields)), outcome

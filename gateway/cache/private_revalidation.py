"""A stored answer that is revalidated: does what ``PrivateFetcher`` does on a 304, where nothing has to be waited for.

Any other answer of GitLab is for a ``fetch``.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..core.cache_control import response_directives
from ..core.cache_entry import Entry
from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.caching import validators
from ..core.head_form import HeadPlaceholders, Values
from ..core.messages import Fields, ResponseHead
from ..core.private_caching import per_answer_fields, validator_matches
from ..ports import Lookup
from ..reply import Reply
from .contract import CacheOutcome, CacheProfile, PriorLookup
from .entry_template import FormTemplate, MissOutcome
from .private_fetcher import AnswerFlight, FlightResult, PrivateFetcher
from .private_miss import NoWaitStore


class PrivateRevalidation(msgspec.Struct, eq=False):
    """The leader of a revalidation; see ``contract.Leader``."""

    _fetcher: PrivateFetcher
    """That of the same cache."""
    _store: NoWaitStore
    """Where ``_entry`` is."""
    _profile: CacheProfile
    _key: bytes
    _lookup: Lookup
    """The lookup that found it."""
    flight: AnswerFlight
    """The flight that it leads."""
    _now: Callable[[], float]
    """Unix seconds."""
    _version: int
    """The version of ``_profile`` at the lookup."""
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

    def prior_lookup(self) -> PriorLookup:
        return PriorLookup(self._lookup, self._version)

    def answered(self, head: ResponseHead, whole: bytes) -> MissOutcome | None:
        del head, whole
        return None

    def form_template(self, placeholders: HeadPlaceholders, head: ResponseHead) -> FormTemplate | None:
        del placeholders, head
        return None

    def answered_by_form(self, form_template: FormTemplate, values: Values, whole: bytes) -> MissOutcome | None:
        del form_template, values, whole
        return None

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome] | None:
        entry, profile, fetcher = self._entry, self._profile, self._fetcher
        if not validator_matches(entry, head):
            return None
        at = self._now()
        fresh = fetcher.freshened_entry(entry, head, self._requested_at, at)
        outcome = CacheOutcome(CacheStatus.REVALIDATED, self._reason)
        outcome.upstream_status, outcome.stored = 304, Stored.FRESHENED
        if response_directives(head.fields).no_store:
            self._store.delete_now(self._key)
            outcome.stored = Stored.NO_STORE
        elif not self._store.put_now(self._key, fresh, profile.keep_s, profile.tags, self._lookup.stamp):
            outcome.stored = Stored.INVALIDATED
        self.flight.land(FlightResult(fresh, 304))
        return fetcher.stored_reply(
            fresh, outcome, profile.if_none_match, profile.reuse_s, at, per_answer_fields(head.fields)
        ), outcome

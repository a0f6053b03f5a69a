"""A miss whose answer can be stored at once: does what ``PrivateFetcher`` does, where nothing has to be waited for.

The flights are the same, and so are the entries: whoever asks the same meanwhile, by either way, waits for this answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from ..core.cache_entry import LazyEntry
from ..core.head_form import HeadPlaceholders, Values
from ..core.messages import Fields, ResponseHead
from ..ports import Cancellable, Lookup
from ..reply import Reply
from .contract import CacheOutcome, CacheProfile, PriorLookup
from .entry_template import EntryTemplate, FormTemplate, MissOutcome, storage_fields
from .private_fetcher import AnswerFlight, FlightResult, PrivateFetcher, client_holds


class NoWaitStore(Protocol):
    """A store that is written to without waiting: as ``put`` and ``delete`` of ``ports.CacheStore``."""

    def put_now(self, key: bytes, entry: LazyEntry, ttl_s: float, tags: tuple[bytes, ...], stamp: int) -> bool: ...
    def delete_now(self, key: bytes) -> None: ...


class LocalStore(NoWaitStore, Protocol):
    """A store in this process, which is read without waiting, too."""

    def get_now(self, key: bytes, tags: tuple[bytes, ...]) -> Lookup: ...


class RemoteStore(NoWaitStore, Protocol):
    """A store elsewhere, which answers through a callback. What is written is sent, and its arrival not waited for."""

    copies: bool
    """Whether ``get`` makes copies of what it reads, for the next request."""

    def get_soon(self, key: bytes, tags: tuple[bytes, ...], then: Callable[[Lookup], None]) -> Cancellable | None:
        """As ``get``; ``then`` is called once, later. Returns None, with nothing asked, where only ``get`` will do: a copy
        is here, or the store can't be asked."""
        ...


class PrivateMiss(msgspec.Struct, eq=False):  # a struct is made in a third of the time
    """The leader of a miss; see ``contract.Leader``."""

    _fetcher: PrivateFetcher
    """That of the same cache."""
    _store: NoWaitStore
    """Where the answer goes."""
    _target: bytes
    _profile: CacheProfile
    _key: bytes
    """The answer's key."""
    _lookup: Lookup
    """The lookup that found nothing."""
    flight: AnswerFlight
    """The flight that it leads."""
    _now: Callable[[], float]
    """Unix seconds."""
    _version: int
    """The version of ``_profile`` at the lookup."""
    conditions: Fields = ()

    __repr__ = object.__repr__

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome] | None:
        del head
        return None

    def abandon(self) -> None:
        self.flight.abandon()

    def prior_lookup(self) -> PriorLookup:
        return PriorLookup(self._lookup, self._version)

    def answered(self, head: ResponseHead, whole: bytes) -> MissOutcome | None:
        condition = self._profile.if_none_match
        if condition is not None and client_holds(head, condition):
            return None  # GitLab was asked on behalf of all: the ``fetch`` tells this client that nothing is new
        template = self._template(head)
        if template is None or len(whole) > self._fetcher.max_entry_bytes:
            return None
        if template.keep is None:
            return self._land_unshared(template)
        fresh = template.entry(head, whole, self._now())
        if fresh is None:
            return None
        if not self._profile.nothing_to_learn:
            self._fetcher.tagging.learn(self._target, head, whole)
        return self._put_answer(template, fresh)

    def form_template(self, placeholders: HeadPlaceholders, head: ResponseHead) -> FormTemplate | None:
        if self._profile.if_none_match is not None:
            return None  # each answer's ETag has to be looked at
        template = self._template(head)
        return FormTemplate(template, self._profile.reuse_s, placeholders, head) if template is not None else None

    def answered_by_form(self, form_template: FormTemplate, values: Values, whole: bytes) -> MissOutcome | None:
        template = form_template.template
        profile = self._profile
        if form_template.reuse_s != profile.reuse_s or len(whole) > self._fetcher.max_entry_bytes:
            return None
        if template.keep is None:
            return self._land_unshared(template)
        late = form_template.late(values, whole, self._now())
        if late is None:
            return None
        if not profile.nothing_to_learn:
            self._fetcher.tagging.learn_coded(self._target, form_template.coding, whole)
        return self._put_answer(template, late)

    def _template(self, head: ResponseHead) -> EntryTemplate | None:
        shape, profile = head.shape, self._profile
        if shape is None:
            return None
        return profile.templates.get(
            (shape, storage_fields(shape)(head.fields), profile.reuse_s)
        ) or self._fetcher.make_template(head, profile)

    def _land_unshared(self, template: EntryTemplate) -> MissOutcome:
        self.flight.land(None)  # each asks for itself
        return template.miss_outcome

    def _put_answer(self, template: EntryTemplate, late: LazyEntry) -> MissOutcome:
        profile = self._profile
        stored = self._store.put_now(self._key, late, profile.keep_s, profile.tags, self._lookup.stamp)
        if not stored:
            self._store.delete_now(self._key)
        self.flight.land(FlightResult(late.materialise(), 200) if self.flight.waiters else None)
        return template.miss_outcome if stored else template.overtaken

"""A client's own conditions, where nothing is stored and nothing would be reused without asking: they go up unchanged, and
a 304 is for this client alone, as in ``PrivateFetcher``.

Any other answer of GitLab is for a ``fetch``.
"""

from __future__ import annotations

import msgspec

from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.head_form import HeadPlaceholders, Values
from ..core.messages import Fields, ResponseHead
from ..ports import Lookup
from ..reply import Reply
from .contract import CacheOutcome, CacheProfile, PriorLookup
from .entry_template import FormTemplate, MissOutcome
from .status_writer import CacheStatusWriter


class PrivateConditional(msgspec.Struct, eq=False):
    """See ``contract.Leader``. Nobody waits for it: others who ask bring conditions of their own."""

    _status_writer: CacheStatusWriter
    _profile: CacheProfile
    _lookup: Lookup
    """The lookup that found nothing."""
    _version: int
    """The version of ``_profile`` at the lookup."""

    __repr__ = object.__repr__

    @property
    def conditions(self) -> Fields:
        return self._profile.client_conditions

    def abandon(self) -> None:
        return None

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

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome]:
        outcome = CacheOutcome(CacheStatus.MISS, CacheReason.URI_MISS)
        outcome.upstream_status, outcome.stored = 304, Stored.STATUS
        return self._status_writer.upstream_answer(Reply(head, b""), outcome), outcome

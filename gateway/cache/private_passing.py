"""A client's own conditions, where nothing is stored and nothing would be reused without asking: they go up unchanged, and
a 304 is for this client alone, as in ``PrivateAsking``.

Any other answer of GitLab is for a ``fetch``.
"""

from __future__ import annotations

import msgspec

from ..core.cache_status import CacheReason, CacheStatus, Stored
from ..core.head_form import Blanks, Values
from ..core.messages import Fields, ResponseHead
from ..ports import Lookup
from ..reply import Reply
from .contract import CacheOutcome, Found, Like
from .labels import Labels
from .mould import Cast, Told


class PrivatePassing(msgspec.Struct, eq=False):
    """See ``contract.Leading``. Nobody waits for it: others who ask bring conditions of their own."""

    _labels: Labels
    _like: Like
    _lookup: Lookup
    """The lookup that found nothing."""
    _version: int
    """The version of ``_like`` at the lookup."""

    __repr__ = object.__repr__

    @property
    def conditions(self) -> Fields:
        return self._like.given

    def abandon(self) -> None:
        return None

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

    def validated(self, head: ResponseHead) -> tuple[Reply, CacheOutcome]:
        outcome = CacheOutcome(CacheStatus.MISS, CacheReason.URI_MISS)
        outcome.upstream_status, outcome.stored = 304, Stored.STATUS
        return self._labels.upstream_answer(Reply(head, b""), outcome), outcome

"""Asks a store elsewhere, then the other gateways, whether a request may lead: by callbacks, without a coroutine."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ..ports import Cancellable, Lookup
from .contract import Leader, Leases, PriorLookup
from .private_miss import PrivateMiss
from .private_revalidation import PrivateRevalidation

log = logging.getLogger("gateway.cache")


class PrivateLeadLookup(msgspec.Struct, eq=False):
    """What ``contract.Cache.lead_soon`` returns: the ``ports.Cancellable`` of whoever called it."""

    _decide: Callable[[Lookup], Leader | PriorLookup | None]
    """Says what is to be done, given what the store holds."""
    _then: Callable[[Leader | PriorLookup | None], None]
    _leases: Leases | None
    """Where one gateway asks for all."""
    _key: bytes
    pending: Cancellable | None = None
    """The request to the store, or to the leases, that is under way."""
    _leader: PrivateMiss | PrivateRevalidation | None = None
    """The leader that waits for its lease."""

    __repr__ = object.__repr__

    def cancel(self) -> None:
        if self.pending is not None:
            self.pending.cancel()
        self._abandon()

    def on_lookup(self, lookup: Lookup) -> None:
        """Go on from the store's answer."""
        self.pending = None
        leader = None
        try:
            leader = self._decide(lookup)
            if self._leases is not None and isinstance(leader, (PrivateMiss, PrivateRevalidation)):
                self._leader = leader
                flight_key = b"%d\n%b" % (lookup.version, self._key)  # as ``PrivateFetcher.ask`` has it
                self.pending = self._leases.lead_soon(flight_key, self.on_lease)
                if self.pending is not None:
                    return
                self._abandon()
                leader = None
        except Exception:
            log.exception("fault in the cache")  # the caller has another way: a `fetch`
            self._abandon()
            leader = None
        self._then(leader)

    def on_lease(self, ended: Callable[[], None] | None) -> None:
        """Go on from the other gateways' answer. ``ended`` is None where one of them leads."""
        self.pending = None
        leader, self._leader = self._leader, None
        assert leader is not None, "asked for it"
        if ended is None:
            leader.abandon()
            self._then(None)
        else:
            leader.flight.on_end = ended
            self._then(leader)

    def _abandon(self) -> None:
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.abandon()

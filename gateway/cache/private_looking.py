"""Asks a store elsewhere, then the other gateways, whether a request may lead: by callbacks, without a coroutine."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ..ports import Asked, Lookup
from .contract import Found, Leading, Leases
from .private_leading import PrivateLeading
from .private_validating import PrivateValidating

log = logging.getLogger("gateway.cache")


class PrivateLooking(msgspec.Struct, eq=False):
    """What ``contract.Cache.lead_soon`` returns: the ``ports.Asked`` of whoever called it."""

    _led: Callable[[Lookup], Leading | Found | None]
    """Says what is to be done, given what the store holds."""
    _then: Callable[[Leading | Found | None], None]
    _leases: Leases | None
    """Where one gateway asks for all."""
    _key: bytes
    asked: Asked | None = None
    """The question that is under way."""
    _leading: PrivateLeading | PrivateValidating | None = None
    """What waits for its lease."""

    __repr__ = object.__repr__

    def cancel(self) -> None:
        if self.asked is not None:
            self.asked.cancel()
        self._abandon()

    def looked(self, lookup: Lookup) -> None:
        """Go on from the store's answer."""
        self.asked = None
        leading = None
        try:
            leading = self._led(lookup)
            if self._leases is not None and isinstance(leading, (PrivateLeading, PrivateValidating)):
                self._leading = leading
                question = b"%d\n%b" % (lookup.version, self._key)  # as ``PrivateAsking.ask`` has it
                self.asked = self._leases.lead_soon(question, self.leased)
                if self.asked is not None:
                    return
                self._abandon()
                leading = None
        except Exception:
            log.exception("fault in the cache")  # the caller has another way: a `fetch`
            self._abandon()
            leading = None
        self._then(leading)

    def leased(self, ended: Callable[[], None] | None) -> None:
        """Go on from the other gateways' answer. ``ended`` is None where one of them leads."""
        self.asked = None
        leading, self._leading = self._leading, None
        assert leading is not None, "asked for it"
        if ended is None:
            leading.abandon()
            self._then(None)
        else:
            leading.flight.ended = ended
            self._then(leading)

    def _abandon(self) -> None:
        leading, self._leading = self._leading, None
        if leading is not None:
            leading.abandon()

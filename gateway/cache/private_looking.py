"""A store elsewhere asked whether a request may lead, then the other gateways: in callbacks, for who has no coroutine."""

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
    """See ``contract.Cache.lead_soon``: ``ports.Asked`` of whoever called it."""

    _led: Callable[[Lookup], Leading | Found | None]
    """What may be made of what the store holds."""
    _then: Callable[[Leading | Found | None], None]
    _leases: Leases | None
    """Where one gateway asks for all."""
    _key: bytes
    asked: Asked | None = None
    """Who is asked at the moment."""
    _leading: PrivateLeading | PrivateValidating | None = None
    """That waits for its lease."""

    __repr__ = object.__repr__

    def cancel(self) -> None:
        if self.asked is not None:
            self.asked.cancel()
        self._abandon()

    def looked(self, lookup: Lookup) -> None:
        """The store has answered."""
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
            log.exception("fault in the cache")  # whoever asked has another way
            self._abandon()
            leading = None
        self._then(leading)

    def leased(self, ended: Callable[[], None] | None) -> None:
        """The other gateways have been asked, too; None: one of them leads."""
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

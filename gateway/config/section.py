"""The base class of the configuration's sections."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mapping of the configuration file."""

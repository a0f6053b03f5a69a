"""The base of every mapping of the file."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every mapping of the file becomes."""

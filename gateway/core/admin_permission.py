"""What an admin key may be for. Each endpoint of the admin port names what it needs."""

from __future__ import annotations

import enum


class Permission(enum.StrEnum):
    """One thing that an admin key may be for. Whoever may change something may also see it."""

    READ = "read"
    """Every GET: the configuration, the hottest callers, upstream credentials, gateway keys; no secret is in any."""
    EXPLAIN = "explain"
    """Why a request is allowed or denied. Not part of ``read``, because it shows what a single caller asked for."""
    LIMITS = "limits"
    CREDENTIALS = "credentials"
    KEYS = "keys"

"""What a source of principals answers from memory."""

from __future__ import annotations

import enum


class Recall(enum.Enum):
    """Memory's answer when it is no principal."""

    BAD = "bad"
    """Looked up a moment ago, and refused."""
    ASK = "ask"
    """Not known: it must be looked up."""
    REFRESH = "refresh"
    """Good a while ago: it must be looked up again, and need not queue behind strangers."""

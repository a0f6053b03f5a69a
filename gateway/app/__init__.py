"""The composition root, and what the commands ``serve``, ``explain``, ``replay``, ``keys`` and ``demo`` call."""

from __future__ import annotations

from .demonstration import demo
from .explaining import Explained, Look, explain
from .key_register import Use, open_key_store
from .limit_levels import Levels, shared_levels, told
from .replaying import Replay
from .serving import Serving, run, serving

__all__ = [
    "Explained",
    "Levels",
    "Look",
    "Replay",
    "Serving",
    "Use",
    "demo",
    "explain",
    "open_key_store",
    "run",
    "serving",
    "shared_levels",
    "told",
]

"""The composition root, and what the commands ``serve``, ``check``, ``explain``, ``replay``, ``keys`` and ``demo`` call."""

from __future__ import annotations

from .credential_check import CredentialCheck, ask_gitlab
from .demonstration import demo
from .explaining import Explained, LevelLookup, explain
from .key_store_session import KeyStoreUse, open_key_store
from .limit_levels import Levels, describe, shared_levels
from .replaying import Replay
from .serving import Serving, run, serving

__all__ = [
    "CredentialCheck",
    "Explained",
    "KeyStoreUse",
    "LevelLookup",
    "Levels",
    "Replay",
    "Serving",
    "ask_gitlab",
    "demo",
    "describe",
    "explain",
    "open_key_store",
    "run",
    "serving",
    "shared_levels",
]

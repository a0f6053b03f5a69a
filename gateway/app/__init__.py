"""The composition root and what the commands call: serve, explain, keys, demo."""

from __future__ import annotations

from .demonstration import demo
from .explaining import explain
from .key_register import open_key_store
from .serving import Serving, run, serving

__all__ = ["Serving", "demo", "explain", "open_key_store", "run", "serving"]

"""The cache: one ``fetch`` between a permitted request and its upstream.

``contract`` says what the pipeline sees, ``private`` is GitLab's cache (one partition per credential), ``shared`` a plain
RFC 9111 one, ``fill`` copies answers into the store as they stream. What may be stored and reused is decided in
``core/caching.py`` and ``core/private_caching.py``.
"""

from .contract import Cache, CacheOutcome, CacheProfile, CacheRequest, Forward, Leader, NoCache, PriorLookup
from .entry_template import FormTemplate
from .private import PrivateCache
from .repeat_hit import RepeatHit
from .shared import SharedCache
from .shared_fetcher import SharedPolicy

__all__ = [
    "Cache",
    "CacheOutcome",
    "CacheProfile",
    "CacheRequest",
    "FormTemplate",
    "Forward",
    "Leader",
    "NoCache",
    "PriorLookup",
    "PrivateCache",
    "RepeatHit",
    "SharedCache",
    "SharedPolicy",
]

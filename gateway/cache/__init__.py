"""The cache: one ``fetch`` between a permitted request and its upstream.

``contract`` says what the pipeline sees, ``private`` is GitLab's cache (one partition per credential), ``shared`` a plain
RFC 9111 one, ``fill`` copies answers into the store as they stream. What may be stored and reused is decided in
``core/caching.py`` and ``core/private_caching.py``.
"""

from .again import Again
from .contract import Cache, CacheOutcome, CacheRequest, Forward, Found, Leading, Like, NoCache
from .mould import Cast
from .private import PrivateCache
from .shared import SharedCache
from .shared_asking import SharedPolicy

__all__ = [
    "Again",
    "Cache",
    "CacheOutcome",
    "CacheRequest",
    "Cast",
    "Forward",
    "Found",
    "Leading",
    "Like",
    "NoCache",
    "PrivateCache",
    "SharedCache",
    "SharedPolicy",
]

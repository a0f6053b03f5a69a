"""Tags tie stored answers to the things they show, so that a write can take them all with it.

An answer carries its project, group or user and the kinds of thing its path walks through; a write purges the same. Purging
too much costs a request; too little shows old things, which only a route's own ``ttl`` allows and bounds.
"""

from __future__ import annotations

from functools import lru_cache

from .catalogue import Operation

# Collections whose next segment names the thing that everything below belongs to.
_OWNERS = frozenset({b"projects", b"groups", b"users", b"namespaces", b"runners"})


def partition_tag(partition: bytes) -> bytes:
    """On every answer of one partition: a revoked credential takes all of them with it."""
    return b"partition:" + partition


def answer_tags(partition: bytes, target: bytes) -> tuple[bytes, ...]:
    """The tags of a stored answer, known before it is looked up: they depend on the request alone."""
    owner, kinds = _walk(target)
    # Below a project a list of issues belongs to the project; at the top it belongs to nobody and hangs on its kind.
    if owner or not kinds:
        return (partition_tag(partition), owner) if owner else (partition_tag(partition),)
    return partition_tag(partition), b"kind:" + kinds[0]


def write_tags(operation: Operation, target: bytes) -> tuple[bytes, ...]:
    """What a write to ``target`` makes doubtful, in every partition.

    ``operation`` is here for the day when id and path of a project are known to be one thing; until then
    ``projects/42`` and ``projects/g%2Fp`` are two tags.
    """
    del operation
    owner, kinds = _walk(target)
    return ((owner,) if owner else ()) + tuple(b"kind:" + kind for kind in kinds)


@lru_cache(maxsize=4096)
def _walk(target: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """The owner's tag (or nothing) and the kinds of thing on the path, in order."""
    segments = target.partition(b"?")[0].split(b"/")
    segments = segments[segments.index(b"v4") + 1 :] if b"v4" in segments else segments[1:]
    owner = b""
    if len(segments) > 1 and segments[0] in _OWNERS and segments[1]:
        # Paths are case-insensitive in GitLab, and so is the hex of an escape.
        owner = segments[0] + b":" + segments[1].removesuffix(b".json").lower()
    kinds = tuple(dict.fromkeys(segment.removesuffix(b".json") for segment in segments[::2] if segment))
    return owner, kinds

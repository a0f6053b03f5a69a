"""Whether a Redis keeps what must not be lost."""

from __future__ import annotations

from .redis_link import RedisError, RedisLink


async def durability_warning(link: RedisLink, lost: str) -> str:
    """What endangers ``lost`` ("a rotated token") there, for the operator; empty: nothing, or an ACL forbids ``INFO``.
    Raises RedisUnavailable."""
    try:
        answer = await link.execute("INFO")
    except RedisError:
        return ""
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
    info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if info.get("aof_enabled") == "0":
        return f"Redis keeps no append-only file: {lost} would be lost at its next restart"
    if info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy", "").startswith("allkeys"):
        return f"Redis evicts any key when it is full (`maxmemory-policy`): {lost} could be lost"
    return ""

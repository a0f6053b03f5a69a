"""Operators' temporary changes, shared by all gateways: one small hash, read now and then."""

from __future__ import annotations

from collections.abc import Iterable

from ..ports import StoreUnavailable
from .redis_link import Command, RedisError, RedisLink, RedisUnavailable, RedisValue

_KEY = "{gw}:changes"
_KEPT_MS = 8 * 86_400_000
"""Longer than any change lasts."""


class RedisChanges:
    """Notes by name. Every method may raise StoreUnavailable. The link is its owner's to close."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def read(self) -> dict[str, bytes]:
        """All notes, by name."""
        (answer,) = await self._execute([("HGETALL", _KEY)])
        if not isinstance(answer, list):
            raise StoreUnavailable("the changes in Redis have an unexpected type")
        flat = [one for one in answer if isinstance(one, bytes)]
        return {name.decode("utf-8", "replace"): note for name, note in zip(flat[::2], flat[1::2], strict=False)}

    async def put(self, name: str, note: bytes) -> None:
        """Store a note in place of the one of that name; where the key holds anything but notes, in place of all of it."""
        noting: list[Command] = [("HSET", _KEY, name, note), ("PEXPIRE", _KEY, str(_KEPT_MS))]
        try:
            await self._execute(noting)
        except StoreUnavailable as refused:
            if not isinstance(refused.__cause__, RedisError) or refused.__cause__.kind != "WRONGTYPE":
                raise
            await self._execute([("DEL", _KEY), *noting])

    async def drop(self, names: Iterable[str]) -> None:
        """Remove the notes of these names, where there are any."""
        listed = list(names)
        if listed:
            await self._execute([("HDEL", _KEY, *listed)])

    async def _execute(self, commands: list[Command]) -> list[RedisValue]:
        try:
            answers = await self._link.execute_many(commands)
        except RedisUnavailable as error:
            raise StoreUnavailable("Redis does not answer") from error
        values: list[RedisValue] = []
        for answer in answers:
            if isinstance(answer, RedisError):
                raise StoreUnavailable(f"Redis refuses: {answer.kind}") from answer
            values.append(answer)
        return values

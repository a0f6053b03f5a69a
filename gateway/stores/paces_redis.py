"""What the gateways heard of GitLab's limits on shared credentials, for each other: one small note per credential."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from math import isinf

from ..core.pacing import LONGEST_S, PaceReport
from ..ports import StoreUnavailable
from .bucket_script import Script
from .redis_link import Command, RedisError, RedisLink, RedisUnavailable, RedisValue
from .redis_wire import server_time_us

_NOTE = struct.Struct("<dddd")
_MOST = 1000
"""The most credentials looked up in one round trip."""


class RedisPaces:
    """Notes by credential. Every method may raise StoreUnavailable. The link is its owner's to close."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._script = Script.named("pace.lua")

    async def read(self, credentials: Sequence[str]) -> dict[str, PaceReport]:
        """The notes on those of the credentials of which something is known."""
        asked = credentials[:_MOST]
        if not asked:
            return {}
        clock, notes = await self._execute([("TIME",), ("MGET", *[pace_key(one) for one in asked])])
        try:
            now_us = server_time_us(clock)
        except RedisUnavailable as error:
            raise StoreUnavailable("Redis did not tell its time") from error
        if not isinstance(notes, list) or len(notes) != len(asked):
            raise StoreUnavailable("the paces in Redis have an unexpected type")
        found = {one: _parse_note(note, now_us) for one, note in zip(asked, notes, strict=True)}
        return {one: report for one, report in found.items() if report is not None}

    async def put(self, notes: Mapping[str, PaceReport]) -> None:
        """Add to what others heard: a longer wait of theirs stays, and so does a rate that they heard later."""
        await self._execute(
            [
                ("EVAL", self._script.text, 1, pace_key(one), *[repr(value) for value in _numbers(report)])
                for one, report in notes.items()
            ]
        )

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


def pace_key(credential: str) -> str:
    """The key of a credential's note: at most 200 octets, in the buckets' slot."""
    if len(credential) > 100 or not credential.isascii():
        credential = "#" + hashlib.blake2b(credential.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{{gw}}:q:{credential}"


def _numbers(report: PaceReport) -> tuple[float, float, float, float]:
    return (report.blocked_s, report.rate, report.window_s, -1.0 if isinf(report.age_s) else report.age_s)


def _parse_note(note: object, now_us: float) -> PaceReport | None:
    """Decode a note; None where there is none, or where the value is not one."""
    if not isinstance(note, bytes) or len(note) != _NOTE.size:
        return None
    blocked, rate, until, heard = _NOTE.unpack(note)
    blocked_s, window_s, age_s = (blocked - now_us) / 1e6, (until - now_us) / 1e6, (now_us - heard) / 1e6
    if not (blocked_s <= LONGEST_S and window_s <= LONGEST_S and rate >= 0):  # a NaN fails these, too
        return None
    return PaceReport(max(0.0, blocked_s), rate, max(0.0, window_s), max(0.0, age_s) if heard > 0 else float("inf"))
